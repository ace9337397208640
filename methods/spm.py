"""SPM: rank-one adapters unlearn the concept, and each prompt sets their strength by its similarity to the concept.

Lyu, Yang, Hong, Chen, Jin, He, Xue, Han and Ding, "One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models
and Erasing Applications", CVPR 2024, arXiv 2312.16145. A semi-permeable membrane adds γ up down x, with down (1, in) and
up (out, 1), to every Linear and Conv2d layer of the denoiser's transformers. Weights do not change. Notation: e0 is the
plain network, e the network with its membrane at γ = 1, c the concept, n its anchor (∅ without one), p the prompt to
negate (c by default), x_t a partly denoised latent, and v_j (tokens, width) random embeddings that represent other prompts:

    target    = e0(x_t, n) − η (e0(x_t, p) − e0(x_t, n))
    erasing   = mean (e(x_t, c) − target)²
    anchoring = mean_j (e(x_t, v_j) − e0(x_t, v_j))²         v_j = r_j ‖E(c)‖ g_j / ‖g_j‖, r_j ~ U(0.8, 1.2), g_j ~ N(0, I)
    loss      = erasing + ``anchor_strength`` · anchoring                                            AdamW, cosine restarts

A direction g_j is accepted with probability 1 − cos(g_j, E(c)), which is close to 1 in high dimensions. Each concept of a
request has its own membrane, trained separately. Images of a prompt q are generated with

    γ_i = max(cos(E(q), E(c_i)), |tokens(q) ∩ tokens(c_i)| / |tokens(c_i)|),       adding Σ_i γ_i up_i down_i x

Official code differs in two ways. It rolls out on a grid that does not match t, and because of an indexing error it
anchors (∅, v_3, ∅, v_4) instead of (v_1, …, v_4): ``compat: official``. It multiplies both factors by γ and sums them
separately, (Σ_i γ_i up_i)(Σ_j γ_j down_j x), so that one membrane acts with γ² and several interact: ``transport:
released``. It also uses 8-bit AdamW; here the optimiser states are in full precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from overpaint.blocks.adapters import Branches, fresh_factors, side_by_side, transformer_layers
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.rollouts import Noised, leco_rollout, rollout
from overpaint.blocks.training import train
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Request
from overpaint.grid.typed import check_type
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.guidance import Guard, Guidance, GuidanceMaker
from overpaint.models.lazily import functional, torch

#: Range of the anchors' norms, relative to the norm of the concept's embedding.
LENGTHS = (0.8, 1.2)


Transport = Literal["linear", "released"]
Matching = Literal["clipcos_tokenuni", "clipcos", "tokenuni", "allone"]
#: The settings of a stored erasure.
SETTINGS = {"concepts": list[str], "scale": float, "transport": Transport, "matching": Matching}


@dataclass(kw_only=True)
class SPM(Eraser):
    """Hyper-parameters of SPM; ``conf/method/spm.yaml`` explains each."""

    compat: Literal["intended", "official"]
    rank: int
    alpha: float
    default_anchor: str
    negated: str | None
    negative_guidance: float
    anchor_strength: float
    anchors: int
    start_guidance: float
    rollout_steps: int
    dynamic_resolution: bool
    iterations: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    restarts: int
    transport: Transport
    matching: Matching

    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    reads_prompts: ClassVar[bool] = True
    lengths: ClassVar[tuple[str, ...]] = ("iterations",)
    paced: ClassVar[Mapping[str, str]] = {"warmup_steps": "iterations"}

    def __post_init__(self):
        at_least(1, rank=self.rank, iterations=self.iterations, batch_size=self.batch_size, restarts=self.restarts)
        at_least(1, anchors=self.anchors)
        at_least(2, rollout_steps=self.rollout_steps)
        at_least(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay, warmup_steps=self.warmup_steps)
        at_least(0, alpha=self.alpha, anchor_strength=self.anchor_strength)
        if self.warmup_steps >= self.iterations:
            raise UserError(f"warmup_steps={self.warmup_steps} must be smaller than iterations={self.iterations}")

    @property
    def scale(self) -> float:
        """The factor of the branches: ``alpha``/``rank``, or 1 if ``alpha`` is 0."""
        return (self.alpha or self.rank) / self.rank

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        names = [c.name for c in request.erase]
        parts: dict[str, torch.Tensor] = {}
        for number, (name, anchor) in enumerate(zip(names, request.anchors(self.default_anchor), strict=True)):
            parts |= {f"{number}.{key}": tensor for key, tensor in self.membrane(model, name, anchor).items()}
        settings = {
            "concepts": names,
            "scale": self.scale,
            "transport": self.transport,
            "matching": self.matching,
        }
        return Erasure("spm", "adapter", parts=parts, settings=settings)

    def membrane(self, model: DiffusionModel, concept: str, anchor: str) -> dict[str, torch.Tensor]:
        """Train one concept's membrane and return its factors."""
        draws = Draws(self.seed)
        start = draws.take("init", lambda g: fresh_factors(model, transformer_layers(model), self.rank, g))
        factors = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in start.items()}
        student = Branches(model, factors, scale=self.scale)
        with torch.no_grad():
            texts = ["", concept, anchor, concept if self.negated is None else self.negated]
            nothing, named, neutral, negated = model.encode(texts)[:, None]

        def loss() -> torch.Tensor:
            x, t = self.noised(model, student, named, nothing, draws)
            others = self.anchored(model, named, nothing, draws)
            again = x[torch.arange(len(others)) % len(x)]  # latents for the anchors
            rows = (len(x), len(x), len(others))
            with torch.no_grad():
                embeds = torch.cat([neutral.expand(len(x), -1, -1), negated.expand(len(x), -1, -1), others])
                e0_n, e0_p, e0_v = model.predict(torch.cat([x, x, again]), t, embeds).split(rows)
            with student.active():
                embeds = torch.cat([named.expand(len(x), -1, -1), others])
                e_c, e_v = model.predict(torch.cat([x, again]), t, embeds).split(rows[1:])
            erasing = functional.mse_loss(e_c.float(), (e0_n - self.negative_guidance * (e0_p - e0_n)).float())
            anchoring = functional.mse_loss(e_v.float(), e0_v.float()) if len(others) else erasing.new_zeros(())
            trace_values(x_t=x, t=t, pred=e_c.detach(), neutral=e0_n, positive=e0_p)
            trace_values(loss_erase=erasing.detach(), loss_anchor=anchoring.detach())
            return erasing + self.anchor_strength * anchoring

        from diffusers.optimization import get_cosine_with_hard_restarts_schedule_with_warmup

        optimizer = torch.optim.AdamW(factors.values(), lr=self.learning_rate, weight_decay=self.weight_decay)
        schedule = get_cosine_with_hard_restarts_schedule_with_warmup(
            optimizer, self.warmup_steps, self.iterations, self.restarts
        )
        train(student, optimizer, self.iterations, loss, after=schedule.step)
        return {name: tensor.detach() for name, tensor in factors.items()}

    def noised(self, model: DiffusionModel, student: Branches, named, nothing, draws: Draws) -> Noised:
        """x_t (batch, 4, h, w) and t for one iteration, from a roll-out with the membrane on."""
        k = draws.integer("k", 1, self.rollout_steps)
        channels, *sides = model.noise([0]).shape[1:]
        if self.dynamic_resolution:
            sides = [sizes[draws.integer("size", 0, len(sizes))] for sizes in map(resolutions, sides)]
        start = draws.noise("x_T", (self.batch_size, channels, *sides), nothing)
        guidance = Guidance(
            model, named.expand(len(start), -1, -1), nothing.expand(len(start), -1, -1), self.start_guidance
        )
        with student.active():
            if self.compat == "official":
                return leco_rollout(model, start, guidance, self.rollout_steps, k)
            return rollout(model, start, guidance, "ddim", self.rollout_steps, k)

    def anchored(self, model: DiffusionModel, named: torch.Tensor, nothing: torch.Tensor, draws: Draws) -> torch.Tensor:
        """The anchored embeddings (n, rows, columns) of one iteration; empty if ``anchor_strength`` is 0.

        SDXL's rows of tokens and its pooled vector are drawn apart.
        """
        if not self.anchor_strength:
            return named[:0]

        def draw(generator: torch.Generator) -> torch.Tensor:
            parts = model.parts(named[0]).items()
            return model.join({name: anchors(part, self.anchors, generator) for name, part in parts})

        drawn = draws.take("anchors", draw).to(named)
        if self.compat == "intended":
            return drawn
        return torch.stack([nothing.expand_as(drawn), drawn], dim=1).flatten(0, 1)[len(drawn) :]

    @classmethod
    def install(cls, model: DiffusionModel, erasure: Erasure) -> Callable[[], None]:
        settings = erasure.settings
        for key, hint in SETTINGS.items():
            check_type(settings.get(key), hint, f"this erasure's settings: {key}")
        count, kind = len(settings["concepts"]), model.dtype
        membranes: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
        for key, tensor in erasure.parts.items():
            number, _, name = key.partition(".")
            membranes[int(number)][name] = tensor.to(model.device, kind)
        branches = Branches(model, side_by_side(membranes), count, settings["scale"])
        gate = Gate(branches, settings, model.guidance)
        branches.mix(gate.mixing(torch.ones(1, count)))
        detach, restore = branches.attach(), model.guided_by(gate)

        def remove() -> None:
            detach()
            restore()

        return remove


@dataclass(frozen=True)
class Gate:
    """Creates the guidance of each batch of images, in which each image's prompt sets the strength of the membranes.

    Without prompts (learned embeddings of an attack, or predictions without guidance) the membranes are fully on.
    """

    branches: Branches
    settings: Mapping[str, Any]
    plain: GuidanceMaker

    @property
    def guard(self) -> Guard | None:
        """The guard below the gate, if any. The gate itself belongs to an adapter."""
        return self.plain.guard

    def mixing(self, gamma: torch.Tensor) -> torch.Tensor:
        """m (images, n, n) for strengths γ (images, n)."""
        if self.settings["transport"] == "released":
            return gamma[:, :, None] * gamma[:, None, :]
        return torch.diag_embed(gamma)

    def __call__(self, model: DiffusionModel, positive, negative, scale: float, prompts=None):
        guidance = self.plain(model, positive, negative, scale, prompts)
        if prompts is None:
            return guidance
        gamma = permeability(model, prompts, positive, self.settings["concepts"], self.settings["matching"])

        def opened(latents: torch.Tensor, timestep, step: int) -> torch.Tensor:
            with self.branches.at(self.mixing(gamma)):
                return guidance(latents, timestep, step)

        return opened


def resolutions(side: int) -> range:
    """Side lengths of latents from half the model's own upwards, in steps of 8 latents (64 pixels) or an eighth."""
    return range(side // 2, side, max(1, min(8, side // 8)))


def anchors(embedding: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """``count`` random embeddings (count, tokens, width) with about the norm of the concept's (tokens, width)."""
    kept: list[torch.Tensor] = []
    like = embedding.detach().double().cpu()
    while len(kept) < count:
        direction = torch.randn(like.shape, generator=generator, dtype=like.dtype)
        direction /= direction.norm()
        if torch.rand((), generator=generator) < 1 - (direction * like).sum() / like.norm():
            kept.append(direction)
    low, high = LENGTHS
    lengths = low + (high - low) * torch.rand(count, 1, 1, generator=generator, dtype=like.dtype)
    return torch.stack(kept) * lengths * like.norm()


def permeability(
    model: DiffusionModel, prompts: Sequence[str], embeds: torch.Tensor, concepts: Sequence[str], matching: str
) -> torch.Tensor:
    """γ (prompts, concepts): the similarity of each prompt to each concept.

    ``embeds`` (prompts, rows, columns) are the prompts' embeddings; ``matching`` selects the measure. Cosines are those of the
    tokens' rows.
    """
    if matching == "allone":
        return torch.ones(len(prompts), len(concepts))
    with torch.no_grad():
        asked, erased = (
            model.parts(rows.detach())["clip"].flatten(1).double() for rows in (embeds, model.encode(concepts))
        )
        cosine = functional.cosine_similarity(asked[:, None], erased[None], dim=-1).cpu()
    special = set(model.tokenizer.all_special_ids)
    prompt_ids, concept_ids = (
        [set(model.token_ids(text)) - special for text in texts] for texts in (prompts, concepts)
    )
    shared = torch.tensor([[len(p & c) / max(1, len(c)) for c in concept_ids] for p in prompt_ids], dtype=cosine.dtype)
    return {"clipcos": cosine, "tokenuni": shared, "clipcos_tokenuni": torch.maximum(cosine, shared)}[matching]
