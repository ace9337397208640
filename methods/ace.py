"""ACE: the prediction without a prompt learns the concept, so that classifier-free guidance itself removes it.

Wang, Wei, Li, Pei, Xu and Zuo, "ACE: Anti-Editing Concept Erasure in Text-to-Image Models", CVPR 2025, arXiv 2501.01633.
A LoRA of rank r (scale ``alpha``/r) goes beside every Linear and Conv2d layer of the denoiser's transformers. Notation: e0 is the
plain network, e the network with its LoRA, ∅ the empty prompt, c the concept, a_j the related concepts of this step, which
stay, s* the concept's anchor, and x_t (batch, 4, h, w) a latent that e has partly denoised for c:

    null  = mean (e(x_t, ∅) − [e0(x_t, ∅) + η (e0(x_t, c) − e0(x_t, ∅)) − s g])²
    g     = Σ_j w_j (e0(x_t, a_j) − e0(x_t, ∅))         w_j = relevance(a_j)/relevance(c), or 1    (``steer: related``)
          = e0(x_t, s*) − e0(x_t, ∅)                                                               (``steer: anchor``)
    cond  = mean (e(x_t, c) − [e0(x_t, ∅) − η (e0(x_t, c) − e0(x_t, ∅))])²
    prior = mean_j (e(x_t, a_j) − e0(x_t, a_j))²
    loss  = (1 − p) [n null + (1 − n) cond] + p prior                      n ``null_weight``, p ``prior_weight``; Adam

e(p) − e(∅) of any prompt p, or of an edit that does not name the concept, then points away from c. g keeps the related concepts
from being removed with it. ``null_prior`` adds mean (e(x'_t, ∅) − e0(x'_t, ∅))² to the prior, with latents x'_t of
the related concepts.

Official code never stops its roll-out: x_t is almost an image for every t, and the second roll-out (x'_t) continues the
scheduler's memory of the first one. A related concept that is also to be erased is dropped only if it is all that is erased,
in the same letter case. ``compat: official`` reproduces these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from overpaint.blocks.adapters import Branches, fresh_factors, transformer_layers
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.prior import Captions, check_captions, read_captions
from overpaint.blocks.rollouts import rollout
from overpaint.blocks.training import train
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Request, read_as
from overpaint.grid.typed import check_type
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.guidance import Guidance
from overpaint.models.lazily import functional, torch


@dataclass(kw_only=True)
class ACE(Eraser):
    """Hyper-parameters of ACE; ``conf/method/ace.yaml`` explains each."""

    compat: Literal["intended", "official"]
    rank: int
    alpha: float
    related: Captions
    related_per_step: int
    relevance: dict[str, float] | None
    steer: Literal["related", "anchor"]
    default_anchor: str
    negative_guidance: float
    steer_guidance: float
    null_weight: float
    prior_weight: float
    null_prior: bool
    start_guidance: float
    rollout_steps: int
    iterations: int
    learning_rate: float
    batch_size: int

    lengths: ClassVar[tuple[str, ...]] = ("iterations",)

    def __post_init__(self):
        at_least(1, rank=self.rank, related_per_step=self.related_per_step, batch_size=self.batch_size)
        at_least(1, iterations=self.iterations)
        at_least(2, rollout_steps=self.rollout_steps)
        at_least(0, learning_rate=self.learning_rate, alpha=self.alpha)
        for name in ("null_weight", "prior_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} takes a number from 0 to 1, got {getattr(self, name):g}")
        if self.null_prior and not (self.null_weight and self.prior_weight):
            raise UserError("null_prior=true needs null_weight and prior_weight above 0")
        check_captions(self.related)

    @property
    def scale(self) -> float:
        """The factor of the branches: ``alpha``/``rank``, or 1 if ``alpha`` is 0."""
        return (self.alpha or self.rank) / self.rank

    @property
    def needs_related(self) -> bool:
        """Whether a term of the loss uses related concepts."""
        return self.prior_weight > 0 or (self.null_weight > 0 and self.steer == "related")

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        draws = Draws(self.seed)
        concepts = list(zip([c.name for c in request.erase], request.anchors(self.default_anchor), strict=True))
        weights = self.weights(request)
        related = self.others(request) if self.needs_related else []
        deal = dealer(related, self.related_per_step, draws)
        start = draws.take("init", lambda g: fresh_factors(model, transformer_layers(model), self.rank, g))
        factors = {name: torch.nn.Parameter(tensor.clone().to(model.device)) for name, tensor in start.items()}
        student = Branches(model, factors, scale=self.scale)

        def loss() -> torch.Tensor:
            concept, anchor = concepts[draws.integer("concept", 0, len(concepts)) if len(concepts) > 1 else 0]
            beside = deal()
            with torch.no_grad():
                nothing, named, instead, *others = model.encode(["", concept, anchor, *beside])[:, None]
            x, t, x_related = self.noised(model, student, named, nothing, others, draws)
            with torch.no_grad():
                e0 = predicted(model, x, t, [nothing, named, instead, *others])
                e0_null, e0_c, e0_anchor, *e0_related = e0
            g = torch.zeros_like(e0_null)
            if self.steer == "anchor":
                g = e0_anchor - e0_null
            else:
                for other, there in zip(beside, e0_related, strict=True):
                    g = g + weights(concept, other) * (there - e0_null)
            direction = self.negative_guidance * (e0_c - e0_null)
            target_null, target_cond = e0_null + direction - self.steer_guidance * g, e0_null - direction
            with student.active():
                e_null, e_c, *e_related = predicted(model, x, t, [nothing, named, *others])
            null, cond = (
                functional.mse_loss(e.float(), wanted.float())
                for e, wanted in ((e_null, target_null), (e_c, target_cond))
            )
            prior = null.new_zeros(())
            if self.prior_weight:
                prior = functional.mse_loss(torch.cat(e_related).float(), torch.cat(e0_related).float())
                if self.null_prior:
                    prior = prior + self.kept(model, student, x_related, t, nothing)
            trace_values(x_t=x, t=t, e0_null=e0_null, e0_c=e0_c, e0_anchor=e0_anchor, e0_related=e0_related)
            trace_values(null=e_null.detach(), cond=e_c.detach(), related=[e.detach() for e in e_related])
            trace_values(target_null=target_null, target_cond=target_cond)
            trace_values(loss_null=null.detach(), loss_cond=cond.detach(), loss_prior=prior.detach())
            erasing = self.null_weight * null + (1 - self.null_weight) * cond
            return (1 - self.prior_weight) * erasing + self.prior_weight * prior

        optimizer = torch.optim.Adam(factors.values(), lr=self.learning_rate)
        train(student, optimizer, self.iterations, loss)
        parts = {name: tensor.detach() for name, tensor in factors.items()}
        return Erasure("ace", "adapter", parts=parts, settings={"scale": self.scale})

    def others(self, request: Request) -> list[str]:
        """The related concepts: those of ``related``, or else the concepts to retain, without those to erase."""
        found = [c.name for c in request.retain] if self.related is None else read_captions(self.related)
        erased = [c.name for c in request.erase]
        if self.compat == "official":
            kept = [name for name in found if name != ", ".join(erased)]
        else:
            dropped = {read_as(name) for name in erased}
            kept = [name for name in found if read_as(name) not in dropped]
        if not kept:
            raise UserError(
                "method=ace needs related concepts that stay: set concepts.retain or method.related, or method.prior_weight=0 "
                "with method.steer=anchor"
            )
        missing = [name for name in kept if name not in (self.relevance or kept)]
        if missing:
            raise UserError(f"method=ace: relevance has no score for {missing[0]!r}, a related concept")
        return kept

    def weights(self, request: Request) -> Callable[[str, str], float]:
        """w_j of a related concept for the concept that is erased in a step."""
        scores = self.relevance
        if scores is None:
            return lambda concept, other: 1.0
        names = [c.name for c in request.erase]
        whole = ", ".join(names) if self.compat == "official" else None
        for name in [whole] if whole else names:
            if not scores.get(name, 0):
                raise UserError(f"method=ace: relevance needs a score other than 0 for {name!r}, the concept to erase")
        return lambda concept, other: scores[other] / scores[whole or concept]

    def noised(
        self, model: DiffusionModel, student: Branches, named, nothing, others, draws: Draws
    ) -> tuple[torch.Tensor, float, torch.Tensor]:
        """x_t (batch, 4, h, w), t, and x'_t (related · batch, 4, h, w), which is empty without ``null_prior``."""
        steps = self.rollout_steps
        k = draws.integer("k", 0, steps)
        start = draws.noise("x_T", (self.batch_size, *model.noise([0]).shape[1:]), nothing)
        beside = start.repeat(len(others), 1, 1, 1) if self.null_prior else start[:0]

        def guidance(rows: list[torch.Tensor]) -> Guidance:
            positive = torch.cat(rows).repeat_interleave(len(start), dim=0)
            return Guidance(model, positive, nothing.expand_as(positive), self.start_guidance)

        if self.compat == "intended":
            with student.active():
                x, t = rollout(model, start, guidance([named]), "pndm", steps, k)
            if len(beside):
                beside, _ = rollout(model, beside, guidance(others), "pndm", steps, k)
            return x, t, beside
        schedule = model.scheduler("pndm", steps)
        with student.active():
            x = through(schedule, start, guidance([named]), steps)
        if len(beside):
            beside = through(schedule, beside, guidance(others), steps)
        schedule.set_timesteps(model.train_timesteps)
        return x, schedule.timesteps[model.train_timesteps * k // steps].item(), beside

    def kept(self, model: DiffusionModel, student: Branches, x: torch.Tensor, t: float, nothing) -> torch.Tensor:
        """mean (e(x'_t, ∅) − e0(x'_t, ∅))² at the latents x'_t (n, 4, h, w) of related concepts."""
        rows = nothing.expand(len(x), -1, -1)
        with torch.no_grad():
            e0 = model.predict(x, t, rows)
        with student.active():
            e = model.predict(x, t, rows)
        return functional.mse_loss(e.float(), e0.float())

    @classmethod
    def install(cls, model: DiffusionModel, erasure: Erasure) -> Callable[[], None]:
        scale = erasure.settings["scale"]
        check_type(scale, float, "this erasure's settings: scale")
        factors: Mapping[str, torch.Tensor] = {
            name: part.to(model.device, model.dtype) for name, part in erasure.parts.items()
        }
        branches = Branches(model, factors, scale=scale)
        branches.mix(1.0)
        return branches.attach()


def dealer(names: list[str], size: int, draws: Draws) -> Callable[[], list[str]]:
    """Deals the names in random order, ``size`` at a time. The last hand of a pass may be smaller."""
    deck: list[str] = []

    def hand(generator: torch.Generator) -> list[str]:
        nonlocal deck
        if not deck:
            deck = [names[i] for i in torch.randperm(len(names), generator=generator).tolist()]
        dealt, deck = deck[:size], deck[size:]
        return dealt

    return lambda: draws.take("related", hand) if names else []


def predicted(model: DiffusionModel, x: torch.Tensor, t: float, embeds: list[torch.Tensor]) -> list[torch.Tensor]:
    """The predictions (batch, 4, h, w) for each text encoding (1, tokens, width) at the same x_t, in one forward."""
    rows = torch.cat(embeds).repeat_interleave(len(x), dim=0)
    return list(model.predict(x.repeat(len(embeds), 1, 1, 1), t, rows).split(len(x)))


def through(schedule, latents: torch.Tensor, guidance: Guidance, steps: int) -> torch.Tensor:
    """Latents after the first ``steps`` calls of a multistep schedule, which keeps its memory of earlier calls."""
    with torch.no_grad():
        for step, timestep in enumerate(schedule.timesteps[:steps]):
            output = guidance(schedule.scale_model_input(latents, timestep), timestep, step)
            latents = schedule.step(output, timestep, latents, return_dict=False)[0]
    return latents
