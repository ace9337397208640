"""RealEra: erases a neighbourhood of the concept's text row, in which related concepts are expected.

Liu, An, Zhang, Li, Wu, Gu, Lin and Wang, "RealEra: Semantic-level Concept Erasure via Neighbor-Concept Mining", arXiv
2410.09140. There is no official code; the hyper-parameters are our own. e (d,) is the row of a concept's last token and m
that of its anchor. The neighbours of e ("mined concepts") are

    e + η,  η = r u,  u uniform on the unit sphere,  r uniform on (0, D₁],  kept if S₁ ≤ cos(e, e + η) ≤ S₂

with D₁ = ``radius`` ‖e‖. In high dimensions η is almost orthogonal to e and cos ≈ 1/√(1 + r²/‖e‖²), so the radius and
the bounds of the cosine constrain nearly the same quantity. For each cross-attention key and value matrix W (o, d), e_0 = e
and its neighbours e_1 … e_K are mapped to m:

    R_k = (m − e_k) Wᵀ                                    and R = (G − E) Wᵀ for the later rows, to the end of the padding
    W₁ = W + Σ w Rᵀ E (λI + Σ w EᵀE + β Σ PᵀP)⁻¹          w = 1/(K + 1) for the e_k, 1 for the later rows

P are rows *beyond* the concept, whose outputs are preserved: all rows of "" and of every retained concept, and
``beyond_samples`` rows at distances between D₁ and D₂ = ``beyond_radius`` ‖e‖ (each with weight β/``beyond_samples``).
Without them the edit would shrink W in all directions, since Σ w e_kᵀe_k over many neighbours approaches e eᵀ + σ²I. With
D₁ = 0 and K = 0 the edit is UCE.

Then a low-rank change of the same matrices is trained. T(c + η) is the concept's encoding with a new η in its row, r a
retained concept (or ""), x_t a noised image of the concept, and e0 the unedited network:

    loss = mean (e(x_t, T(c + η)) − e0(x_t, T(m)))² + β' mean (e(x_t, T(r)) − e0(x_t, T(r)))²              Adam
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.image_bank import ImageBank, diffused, paint
from overpaint.blocks.ridge import Ridge, factor, gram, stored
from overpaint.blocks.text_rows import TextRows
from overpaint.blocks.training import LowRankStudent, train
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Request
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure, LowRank
from overpaint.models.lazily import functional, torch

#: Rounds of rejection sampling before neighbours count as impossible to draw.
ROUNDS = 100
#: Tolerance of the bounds of the cosine, for rounding.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Neighbourhood:
    """Perturbed rows e + η of a row e.

    ‖η‖/‖e‖ is between ``nearest`` and ``farthest``, cos(e, e + η) between ``lowest`` and ``highest``.
    """

    nearest: float
    farthest: float
    lowest: float
    highest: float

    def sample(self, e: torch.Tensor, count: int, draws: Draws, name: str) -> torch.Tensor:
        """``count`` rows (count, d) around e (d,)."""
        return draws.take(name, lambda g: self._draw(e.double(), count, g)).to(e)

    def _draw(self, e: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
        rows = e.new_empty(0, len(e))
        for _ in range(ROUNDS):
            if len(rows) >= count:
                return rows[:count]
            u = torch.randn(count, len(e), generator=generator, dtype=e.dtype).to(e.device)
            r = torch.rand(count, 1, generator=generator, dtype=e.dtype).to(e.device)
            distance = (self.farthest - r * (self.farthest - self.nearest)) * e.norm()
            drawn = e + distance * functional.normalize(u, dim=1)
            cosine = functional.cosine_similarity(drawn, e[None])
            rows = torch.cat([rows, drawn[(cosine >= self.lowest - ROUNDING) & (cosine <= self.highest + ROUNDING)]])
        raise UserError(
            f"radius={self.farthest:g} is incompatible with min_cosine={self.lowest:g} and max_cosine={self.highest:g}: "
            f"at that distance the cosine is about {(1 + self.farthest**2) ** -0.5:.3f}"
        )


@dataclass(kw_only=True)
class RealEra(Eraser):
    """Hyper-parameters of RealEra; ``conf/method/realera.yaml`` explains each."""

    default_anchor: str
    neighbours: int
    radius: float
    min_cosine: float
    max_cosine: float
    preserve_scale: float | None
    beyond_samples: int
    beyond_radius: float
    lamb: float
    iterations: int
    learning_rate: float
    rank: int
    batch_size: int
    beyond_weight: float
    pictures: int
    picture_steps: int
    picture_guidance: float

    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    acts_on: ClassVar[str] = "conditioning"
    lengths: ClassVar[tuple[str, ...]] = ("iterations", "pictures")
    added: ClassVar[Mapping[str, Any]] = {"picture_guidance": 7.5}

    def __post_init__(self):
        at_least(0, neighbours=self.neighbours, radius=self.radius, beyond_samples=self.beyond_samples)
        at_least(0, preserve_scale=self.preserve_scale, lamb=self.lamb, iterations=self.iterations)
        at_least(0, learning_rate=self.learning_rate, beyond_weight=self.beyond_weight)
        at_least(
            1, rank=self.rank, batch_size=self.batch_size, pictures=self.pictures, picture_steps=self.picture_steps
        )
        at_least(self.radius, beyond_radius=self.beyond_radius)
        if not -1 <= self.min_cosine <= self.max_cosine <= 1:
            raise UserError(
                f"min_cosine and max_cosine take numbers from -1 to 1 in ascending order, got {self.min_cosine:g} and "
                f"{self.max_cosine:g}"
            )

    @property
    def neighbourhood(self) -> Neighbourhood:
        """Where the concept's mined neighbours lie."""
        return Neighbourhood(0.0, self.radius, self.min_cosine, self.max_cosine)

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        draws = Draws(self.seed)
        pairs = [
            (c.name, anchor) for c, anchor in zip(request.erase, request.anchors(self.default_anchor), strict=True)
        ]
        retained = list(dict.fromkeys(["", *(c.name for c in request.retain)]))
        shared, G, E = self.aligned(model, pairs, retained, draws)
        closed = {
            p.name: LowRank(p.weight.double() @ (G - E).T, shared.down)
            for p in model.projections("key", "value", stream="text")
        }
        manifest = {"condition": shared.condition, "rows": len(E)}

        bases = {p.name: p.weight for p in model.projections("key", "value", stream="text")}
        starts = {name: change.apply(bases[name]) for name, change in closed.items()}
        student = LowRankStudent(model, list(closed), self.rank, draws, starts=starts)
        if self.iterations:
            self.train(model, student, pairs, retained, draws)
        changes = {name: stored(joined(change, student, name), bases[name]) for name, change in closed.items()}
        return Erasure("realera", changes=changes, manifest=manifest)

    def aligned(
        self, model: DiffusionModel, pairs: list[tuple[str, str]], retained: list[str], draws: Draws
    ) -> tuple[Ridge, torch.Tensor, torch.Tensor]:
        """The factored problem, and the rows G and E (n, d), scaled by the square roots of their weights."""
        rows = TextRows(model, [text for pair in pairs for text in pair] + retained)
        wanted, edited, beyond = [], [], []
        ring = Neighbourhood(self.radius, self.beyond_radius, -1.0, 1.0)
        for name, anchor in pairs:
            E, G = rows.tails(name, anchor)
            near = torch.cat([E[:1], self.neighbourhood.sample(E[0], self.neighbours, draws, "neighbours")])
            weight = len(near) ** -0.5
            edited += [near * weight, E[1:]]
            wanted += [G[:1].expand_as(near) * weight, G[1:]]
            if self.beyond_samples:
                beyond.append(ring.sample(E[0], self.beyond_samples, draws, "beyond") / self.beyond_samples**0.5)
        E, G = torch.cat(edited), torch.cat(wanted)
        kept = gram([*map(rows.all, retained), *beyond], E)
        scale = max(0.1, 1 / len(retained)) if self.preserve_scale is None else self.preserve_scale
        return factor(E, kept, self.lamb, keep_weight=scale), G, E

    def train(
        self,
        model: DiffusionModel,
        student: LowRankStudent,
        pairs: list[tuple[str, str]],
        retained: list[str],
        draws: Draws,
    ) -> None:
        """Train the low-rank change on images of each concept."""
        banks = [self.paint(model, name, draws) for name, _ in pairs]
        with torch.no_grad():
            embeds = {text: model.encode([text]) for text in [text for pair in pairs for text in pair] + retained}

        def loss() -> torch.Tensor:
            which = draws.integer("concept", 0, len(pairs))
            (name, anchor), other = pairs[which], retained[draws.integer("retained", 0, len(retained))]
            rows = [draws.integer("picture_of", 0, self.pictures) for _ in range(self.batch_size)]
            x_t, t, _ = diffused(model, banks[which].latents(rows, draws, "x0"), draws)
            anchored, beyond = (embeds[text].expand(self.batch_size, -1, -1) for text in (anchor, other))
            near = self.near(model, name, embeds[name], draws)
            with torch.no_grad():
                targets = model.predict(torch.cat([x_t, x_t]), t, torch.cat([anchored, beyond]))
            with student.active():
                predicted = model.predict(torch.cat([x_t, x_t]), t, torch.cat([near, beyond]))
            erased, kept = (
                functional.mse_loss(ours.float(), target.float())
                for ours, target in zip(predicted.chunk(2), targets.chunk(2), strict=True)
            )
            trace_values(erased=erased.detach(), kept=kept.detach())
            return erased + self.beyond_weight * kept

        train(student, torch.optim.Adam(student.masters.values(), lr=self.learning_rate), self.iterations, loss)

    def paint(self, model: DiffusionModel, name: str, draws: Draws) -> ImageBank:
        """Images of a concept, generated by the unedited model."""
        captions = [name] * self.pictures
        return paint(
            model, captions, draws, scheduler="ddim", steps=self.picture_steps, guidance_scale=self.picture_guidance
        )

    def near(self, model: DiffusionModel, name: str, embeds: torch.Tensor, draws: Draws) -> torch.Tensor:
        """T(c + η) (batch, tokens, width) for c's encoding (1, tokens, width), with a new η for each latent."""
        position = model.last_subject_token(name)
        rows = self.neighbourhood.sample(embeds[0, position], self.batch_size, draws, "eta")
        placed = embeds.repeat(self.batch_size, 1, 1)
        placed[:, position] = rows
        return placed


def joined(change: LowRank, student: LowRankStudent, name: str) -> LowRank:
    """The sum of the closed-form and the trained change, as concatenated factors."""
    up, down = (student.masters[f"{name}:{side}"].detach().double() for side in ("up", "down"))
    return LowRank(torch.cat([change.up, up], dim=1), torch.cat([change.down, down]))
