"""Concept Sliders: a low-rank adapter moves predictions along the direction of a text; as an eraser, away from it.

Gandikota, Materzyńska, Zhou, Torralba and Bau, "Concept Sliders: LoRA Adaptors for Precise Control in Diffusion Models",
ECCV 2024, arXiv 2311.12092. A slider adds (α/r) up down x, with down (r, in) and up (out, r), to layers of the denoiser. Weights
do not change. Notation: e0 is the plain network, e the network with its slider, x_t a latent that e has partly denoised; a row
has a target (what is changed), a positive text, an unconditional text (the opposite of positive) and a neutral text:

    target = e0(x_t, neutral) − η (e0(x_t, positive) − e0(x_t, unconditional))          ``action: erase``; + for ``enhance``
    loss   = mean (e(x_t, target text) − target)²                                        AdamW

To erase a concept, target and positive are its name, neutral and unconditional its anchor (∅ without one): LECO, or ESD as an
adapter. ``attributes`` repeat the row with a word in front of all four texts, to leave that word alone. The roll-out is guided by
the target text away from the unconditional one. Each concept has its own slider; several are added up.

Official code rolls out on a grid that does not match t: ``compat: official``. It trains in bfloat16, where updates at its
learning rate are partly lost; here the factors are in full precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, Literal

from overpaint.blocks.adapters import Branches, fresh_factors, side_by_side
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.rollouts import Noised, leco_rollout, rollout
from overpaint.blocks.training import mean_square, train
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Request
from overpaint.grid.typed import check_type
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.guidance import Guidance
from overpaint.models.lazily import torch
from overpaint.models.parameters import Parameter

Layers = Literal["lierla", "c3lier"]
Group = Literal[
    "full", "noxattn", "innoxattn", "selfattn", "xattn", "xattn-strict", "noxattn-hspace", "noxattn-hspace-last"
]
#: The settings of a stored erasure.
SETTINGS = {"sliders": int, "alpha": float, "strength": float, "below": float | None}


@dataclass(kw_only=True)
class Sliders(Eraser):
    """Hyper-parameters of Concept Sliders; ``conf/method/sliders.yaml`` explains each."""

    compat: Literal["intended", "official"]
    layers: Layers
    train: Group
    rank: int
    alpha: float
    action: Literal["erase", "enhance"]
    target: str | None
    positive: str | None
    neutral: str | None
    unconditional: str | None
    default_anchor: str
    attributes: list[str]
    guidance: float
    start_guidance: float
    rollout_steps: int
    iterations: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    strength: float
    below: float | None

    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    lengths: ClassVar[tuple[str, ...]] = ("iterations",)

    def __post_init__(self):
        at_least(1, rank=self.rank, iterations=self.iterations, batch_size=self.batch_size)
        at_least(2, rollout_steps=self.rollout_steps)
        at_least(
            0, learning_rate=self.learning_rate, weight_decay=self.weight_decay, alpha=self.alpha, below=self.below
        )

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        parts: dict[str, torch.Tensor] = {}
        anchors = request.anchors(self.default_anchor)
        for number, (concept, anchor) in enumerate(zip(request.erase, anchors, strict=True)):
            slider = self.slider(model, concept.name, anchor)
            parts |= {f"{number}.{key}": tensor for key, tensor in slider.items()}
        settings = {"sliders": len(anchors), "alpha": self.alpha, "strength": self.strength, "below": self.below}
        return Erasure("sliders", "adapter", parts=parts, settings=settings)

    def rows(self, concept: str, anchor: str) -> list[tuple[str, str, str, str]]:
        """Target, positive, neutral and unconditional text of each row."""
        texts = [
            given if given is not None else text
            for given, text in (
                (self.target, concept),
                (self.positive, concept),
                (self.neutral, anchor),
                (self.unconditional, anchor),
            )
        ]
        target, positive, neutral, unconditional = texts
        plain = (target, positive, neutral, unconditional)
        return [tuple(f"{word} {text}".strip() for text in plain) for word in self.attributes] or [plain]  # type: ignore[misc]

    def slider(self, model: DiffusionModel, concept: str, anchor: str) -> dict[str, torch.Tensor]:
        """Train one concept's slider and return its factors."""
        draws = Draws(self.seed)
        names = adapted_layers(model, self.layers, self.train)
        if not names:
            raise UserError(
                f"method=sliders: train={self.train} with layers={self.layers} is empty: nothing would be trained"
            )
        start = draws.take("init", lambda g: fresh_factors(model, names, self.rank, g, bound=sqrt(3)))
        factors = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in start.items()}
        student = Branches(model, factors, scale=scales(factors, self.alpha))
        with torch.no_grad():
            rows = [model.encode(texts)[:, None] for texts in self.rows(concept, anchor)]
        sign = -1.0 if self.action == "erase" else 1.0

        def loss() -> torch.Tensor:
            row = rows[draws.integer("row", 0, len(rows))]
            x_t, t = self.noised(model, student, row[0], row[3], draws)
            target, positive, neutral, unconditional = (text.expand(len(x_t), -1, -1) for text in row)
            with torch.no_grad():
                three = torch.cat([positive, neutral, unconditional])
                e_p, e_n, e_u = model.predict(torch.cat([x_t] * 3), t, three).chunk(3)
            with student.active():
                predicted = model.predict(x_t, t, target)
            trace_values(x_t=x_t, t=t, positive=e_p, neutral=e_n, unconditional=e_u, target=predicted.detach())
            return mean_square(predicted, e_n + sign * self.guidance * (e_p - e_u))

        optimizer = torch.optim.AdamW(factors.values(), lr=self.learning_rate, weight_decay=self.weight_decay)
        train(student, optimizer, self.iterations, loss)
        return {name: tensor.detach() for name, tensor in factors.items()}

    def noised(self, model: DiffusionModel, student: Branches, target, unconditional, draws: Draws) -> Noised:
        """x_t (batch, 4, h, w) and t for one iteration, from a roll-out with the slider on."""
        k = draws.integer("k", 1, self.rollout_steps)
        start = draws.noise("x_T", (self.batch_size, *model.noise([0]).shape[1:]), target)
        wanted, unwanted = (embeds.expand(len(start), -1, -1) for embeds in (target, unconditional))
        guidance = Guidance(model, wanted, unwanted, self.start_guidance)
        with student.active():
            if self.compat == "official":
                return leco_rollout(model, start, guidance, self.rollout_steps, k)
            return rollout(model, start, guidance, "ddim", self.rollout_steps, k)

    @classmethod
    def install(cls, model: DiffusionModel, erasure: Erasure) -> Callable[[], None]:
        settings = erasure.settings
        for key, hint in SETTINGS.items():
            check_type(settings.get(key), hint, f"this erasure's settings: {key}")
        sliders: list[dict[str, torch.Tensor]] = [{} for _ in range(settings["sliders"])]
        for key, tensor in erasure.parts.items():
            number, _, name = key.partition(".")
            sliders[int(number)][name] = tensor.to(model.device, model.dtype)
        branches = Branches(model, side_by_side(sliders), len(sliders), scales(sliders[0], settings["alpha"]))
        branches.mix(settings["strength"])
        detach, below = branches.attach(), settings["below"]
        if below is None:
            return detach

        def gate(denoiser, inputs: tuple, options: Mapping[str, Any]) -> None:
            latents, t = inputs
            on = torch.as_tensor(t, device=latents.device).expand(len(latents)) < below
            eye = torch.eye(len(sliders), device=latents.device)
            branches.mix(settings["strength"] * on[:, None, None] * eye)

        hook = model.denoiser.register_forward_pre_hook(gate, with_kwargs=True)

        def remove() -> None:
            hook.remove()
            detach()

        return remove


def scales(factors: Mapping[str, torch.Tensor], alpha: float) -> dict[str, float]:
    """The factor α/r of each layer's branch, or 1 for an α of 0. A layer with few channels has a smaller rank r."""
    ranks = {name.removesuffix(".down"): len(down) for name, down in factors.items() if name.endswith(".down")}
    return {layer: (alpha or rank) / rank for layer, rank in ranks.items()}


def adapted_layers(model: DiffusionModel, layers: Layers, group: Group) -> Sequence[str]:
    """Names of the Linear and Conv2d layers that a slider adapts, in state-dict order.

    ``lierla`` are the projections of attention; ``c3lier`` has residual blocks and resampling layers too. The groups are
    named as in the official code; "h-space" is the middle block.
    """

    def inside(p: Parameter) -> bool:
        layer = isinstance(p.module, torch.nn.Linear | torch.nn.Conv2d) and p.is_weight
        convolutional = any(part in p.name for part in (".resnets.", ".downsamplers.", ".upsamplers."))
        if not layer or not (p.attention or (layers == "c3lier" and convolutional)):
            return False
        if group == "full":
            return True
        if group in ("xattn", "xattn-strict"):
            return p.attention == "cross" and (group == "xattn" or p.role != "out")
        if group == "selfattn":
            return p.attention == "self"
        if group == "noxattn-hspace-last":
            return p.name == "mid_block.resnets.1.conv2.weight" and layers == "c3lier"
        return p.attention != "cross" and (group != "noxattn-hspace" or p.name.startswith("mid_block."))

    return [p.name.removesuffix(".weight") for p in model.parameters(model.denoiser_names) if inside(p)]
