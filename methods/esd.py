"""ESD: the network is fine-tuned so that the concept's prompt predicts what negative guidance with it would predict.

Gandikota, Materzyńska, Fiotto-Kaufman and Bau, "Erasing Concepts from Diffusion Models", ICCV 2023, arXiv 2303.07345.
Notation: e0 is the frozen network, e the student, c the concept's prompt, ∅ the empty prompt, and x_t (batch, 4, h, w) a
partly denoised latent:

    target = e0(x_t, b) − η (e0(x_t, c) − e0(x_t, ∅))
    loss   = mean (e(x_t, f) − target)²                      Adam on one group of parameters (``train``)

There are four official codes (``variant``):

            base b   prompt f     x_t from                     defaults
``legacy``  ∅        c            student, DDIM 50, s_g = 3    η 1, lr 1e-5, 1000 iterations (the paper's code)
``current`` f        erase_from   base, PNDM 50, s_g = 3       η 2, lr 5e-5, 200 iterations (the repository since 2025)
``alt``     ∅ or f   erase_from   student, DDIM 50, s_g = 3    η 2, lr 2e-5, 200 iterations (b = ∅ where f = c)
``sdxl``    f        erase_from   base, Euler 50, s_g = 2      η 1, lr 2e-4 (u, full: 1e-5), 200 iterations

``erase_from`` defaults to c. Then the target of ``current`` with η equals that of ``legacy`` with η − 1. With several
concepts, each iteration draws one. The codes of ``legacy`` and ``alt`` use timesteps that do not match the noise level
of x_t; ``compat: official`` reproduces this, ``intended`` uses the matching timestep. Not reproduced: the ``current``
code rolls out at 1024 pixels at any model resolution, and the ``sdxl`` code feeds Euler's unscaled latents, which are
√(1+σ²) times the network's input at t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.rollouts import Noised, compvis_rollout, rollout
from overpaint.blocks.training import COMPVIS_GROUPS, Rule, Student, parameter_group, train
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Request
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.guidance import Guidance
from overpaint.models.lazily import torch
from overpaint.models.parameters import Parameter


def _layer(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear | torch.nn.Conv2d)


def _in_blocks(p: Parameter) -> bool:
    return _layer(p.module) and "block" in p.name and "emb" not in p.name


#: ``train`` -> the parameters to train: ESD-x, ESD-x-strict (keys and values), self-attention, ESD-u, all.
GROUPS: dict[str, Rule] = {
    "x": COMPVIS_GROUPS["xattn"],
    "strict": lambda p: p.attention == "cross" and p.role in ("key", "value"),
    "selfattn": COMPVIS_GROUPS["selfattn"],
    "u": COMPVIS_GROUPS["noxattn"],
    "full": COMPVIS_GROUPS["full"],
}
#: The 2025 repository trains only Linear and Conv2d layers: no normalisation layers, but the time embedding and output.
CURRENT_GROUPS: dict[str, Rule] = GROUPS | {
    "u": lambda p: p.attention != "cross" and _layer(p.module),
    "full": lambda p: _layer(p.module),
}
#: The SDXL script: Linear and Conv2d layers of the blocks, without their time embeddings.
SDXL_GROUPS: dict[str, Rule] = CURRENT_GROUPS | {
    "u": lambda p: p.attention != "cross" and _in_blocks(p),
    "full": _in_blocks,
}


#: Defaults of each official code, used where the YAML says null.
OFFICIAL = {
    "legacy": {"negative_guidance": 1.0, "learning_rate": 1e-5, "iterations": 1000},
    "current": {"negative_guidance": 2.0, "learning_rate": 5e-5, "iterations": 200},
    "alt": {"negative_guidance": 2.0, "learning_rate": 2e-5, "iterations": 200},
    "sdxl": {"negative_guidance": 1.0, "learning_rate": 2e-4, "iterations": 200},
}


@dataclass(kw_only=True)
class ESD(Eraser):
    """Hyper-parameters of ESD; ``conf/method/esd.yaml`` explains each."""

    variant: Literal["legacy", "current", "alt", "sdxl"]
    compat: Literal["intended", "official"]
    train: Literal["x", "u", "strict", "selfattn", "full"]
    erase_from: str | None
    negative_guidance: float | None
    start_guidance: float
    rollout_steps: int
    iterations: int | None
    learning_rate: float | None
    batch_size: int

    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    lengths: ClassVar[tuple[str, ...]] = ("iterations",)

    def __post_init__(self):
        if self.variant == "sdxl" and self.train not in ("x", "strict") and self.learning_rate is None:
            self.learning_rate = 1e-5
        for name, value in OFFICIAL[self.variant].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        at_least(1, iterations=self.iterations, batch_size=self.batch_size)
        at_least(3 if self.variant == "alt" else 2, rollout_steps=self.rollout_steps)
        at_least(0, learning_rate=self.learning_rate)
        if self.variant == "legacy" and self.erase_from is not None:
            raise UserError(
                f"erase_from={self.erase_from!r} needs variant=current, alt or sdxl; variant=legacy does not have it"
            )

    @property
    def acts_on(self) -> str:
        return "conditioning" if self.train == "strict" else "denoiser"

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        rate, iterations, eta = self.learning_rate, self.iterations, self.negative_guidance
        assert rate is not None and iterations is not None and eta is not None  # `__post_init__` fills them
        groups = {"current": CURRENT_GROUPS, "sdxl": SDXL_GROUPS}.get(self.variant, GROUPS)
        student = Student(model, parameter_group(model, groups[self.train]))
        concepts = [c.name for c in request.erase]
        texts = ["", *concepts, *([self.erase_from] if self.erase_from is not None else [])]
        with torch.no_grad():
            embeds = {text: model.encode([text]) for text in dict.fromkeys(texts)}
            nothing = model.unconditional()
        draws = Draws(self.seed)
        shape = (self.batch_size, *model.noise([0]).shape[1:])

        def loss() -> torch.Tensor:
            concept = concepts[draws.integer("concept", 0, len(concepts))]
            source = concept if self.erase_from is None else self.erase_from
            start = draws.noise("x_T", shape, embeds[""])
            latents, t = self.noised(model, student, start, embeds, nothing, concept, source, draws)
            empty, unwanted, base = self.predictions(model, latents, t, [embeds[""], embeds[concept], embeds[source]])
            if self.variant == "legacy" or (self.variant == "alt" and source == concept):
                base = empty
            target = base - eta * (unwanted - empty)
            with student.active():
                predicted = model.predict(latents, t, embeds[source].expand(self.batch_size, -1, -1))
            trace_values(x_t=latents, t=t, target=target, pred=predicted.detach())
            return torch.nn.functional.mse_loss(predicted.float(), target.float())

        train(student, torch.optim.Adam(student.masters.values(), lr=rate), iterations, loss)
        return Erasure("esd", changes=student.changes())

    def predictions(self, model: DiffusionModel, latents: torch.Tensor, t: float, embeds: list[torch.Tensor]):
        """e0(x_t, ·) (batch, 4, h, w) for each of the embeddings, in one forward without duplicates."""
        distinct = list({id(e): e for e in embeds}.values())
        rows = torch.cat([e.expand(len(latents), -1, -1) for e in distinct])
        with torch.no_grad():
            parts = model.predict(latents.repeat(len(distinct), 1, 1, 1), t, rows).chunk(len(distinct))
        found = {id(e): part for e, part in zip(distinct, parts, strict=True)}
        return [found[id(e)] for e in embeds]

    def noised(
        self, model, student: Student, start, embeds, nothing, concept: str, source: str, draws: Draws
    ) -> Noised:
        """x_t (batch, 4, h, w) and t for one iteration. ``nothing`` is the sampler's unconditional embedding."""
        steps, scheduler = self.rollout_steps, {"current": "pndm", "sdxl": "euler"}.get(self.variant)
        positive, negative = (e.expand(len(start), -1, -1) for e in (embeds[source if scheduler else concept], nothing))
        guidance = Guidance(model, positive, negative, self.start_guidance)
        k = draws.integer("k", 1, steps - 1) if self.variant == "alt" else draws.integer("k", 0, steps)
        if scheduler:  # the roll-out uses the base, not the student
            return rollout(model, start, guidance, scheduler, steps, k)
        with student.active():
            if self.variant == "legacy" and self.compat == "official":
                return compvis_rollout(model, start, guidance, steps, k, draws)
            latents, t = rollout(model, start, guidance, "ddim", steps, k)
        total = model.train_timesteps
        return latents, total - total // steps * k if self.compat == "official" else t
