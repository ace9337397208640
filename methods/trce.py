"""TRCE: end tokens of sentences with the concept map to those of safe sentences; then early denoising steps are steered.

Chen, Guo, Wang, Zhang, Nie and Liu, "TRCE: Towards Reliable Malicious Concept Erasure in Text-to-Image Diffusion Models",
ICCV 2025, arXiv 2503.07389.

Stage 1 is a closed-form edit. o = template(concept) and n = template(anchor) are N = concepts × templates pairs of
sentences with encodings (77, d). Four kinds of rows are mapped, with the weights w of ``token_weights``; the official
settings use only the second:

    begin → begin        first end token → first end token        last position → last, times the length of the padding
    the concept's words in o → last position of n

    R = (G − K) Wᵀ                                                          (m, o)   K (m, d) rows of o, G of n
    W' = W + (1/N) (√w R)ᵀ (√w K) A⁻¹,   A = λI + (1/N) Σ w KᵀK + p B        B = Σ EᵀE over a caption collection (d, d)

Stage 2 is training. e0 is the base, e1 the network after stage 1, and e the student: e1 with trained self-attention and
cross-attention queries. x_t are the latents at steps s ≤ ``early`` · S of DDIM roll-outs by the base for o:

    P = e0(n) + γ (e0(n) − e0(∅)),   R = e0(o) + γ (e0(o) − e0(∅))           γ ``contrast``, all at (x_t, t)
    hinge = mean over u ∈ {e(o), e(∅)} of max(0, β (mean (u − P)² − mean (u − R)² + m))      m ``margin``
    loss  = hinge + ``regular_weight`` · mean (e(x'_t, ∅) − e1(x'_t, ∅))²    AdamW; x'_t from unconditional roll-outs

All random choices are drawn first, so that the base is rolled out once, only as far as needed, and before stage 1 is
attached.

``compat: official`` reproduces the released code, whose constants are tuned to its errors. The preserve scale s is
multiplied twice: p = s²/30000. Positions are found by counting words, which is wrong if a word has several tokens, and
only the first word of a concept is used. x_t is one step cleaner than t indicates (in the regulariser, one to two).
Gradients are never zeroed, so they accumulate. Every epoch uses the same first unconditional roll-outs. In ``intended``,
p = s/30000, positions are counted in tokens, x_t matches t, each step has its own gradient, and roll-outs are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from math import sqrt
from typing import ClassVar, Literal

from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.prior import Captions, caption_statistics, check_captions, read_captions
from overpaint.blocks.ridge import factor
from overpaint.blocks.templates import phrase_templates
from overpaint.blocks.text_rows import TextRows
from overpaint.blocks.training import Student, parameter_group, train
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Request
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure, LowRank, Replacement
from overpaint.models.guidance import Guidance
from overpaint.models.lazily import torch
from overpaint.models.parameters import Parameter

#: Latents per forward of the base.
LATENTS_AT_ONCE = 16
#: (o, n, concept): a sentence with the concept, the same sentence with its anchor, and the name of the concept.
Sentences = list[tuple[str, str, str]]
Changes = dict[str, LowRank | Replacement]


@dataclass(kw_only=True)
class TRCE(Eraser):
    """Hyper-parameters of TRCE; ``conf/method/trce.yaml`` explains each."""

    compat: Literal["official", "intended"]
    default_anchor: str
    synonyms: bool
    templates: list[str] | None
    template_count: int
    token_weights: list
    lamb: float
    prior_captions: Captions
    preserve_scale: float
    prior_size: int | None
    epochs: int
    trajectory_template: str | None
    trajectories: int
    rollout_steps: int
    rollout_guidance: float
    early: float
    contrast: float
    margin: float
    beta: float
    regular_weight: float
    regular_trajectories: int
    regular_batch: int
    learning_rate: float
    weight_decay: float
    batch_size: int

    version: ClassVar[int] = 3
    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    lengths: ClassVar[tuple[str, ...]] = ("epochs", "trajectories", "regular_trajectories")

    def __post_init__(self):
        check_captions(self.prior_captions)
        at_least(0, lamb=self.lamb, preserve_scale=self.preserve_scale, epochs=self.epochs, early=self.early)
        at_least(0, beta=self.beta, regular_weight=self.regular_weight)
        at_least(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        at_least(1, template_count=self.template_count, trajectories=self.trajectories, batch_size=self.batch_size)
        at_least(1, regular_trajectories=self.regular_trajectories, regular_batch=self.regular_batch)
        at_least(1, rollout_steps=self.rollout_steps, prior_size=self.prior_size)
        if len(self.token_weights) != 4 or not all(isinstance(w, int | float) and w >= 0 for w in self.token_weights):
            kinds = "begin, first end, last position, the concept's words"
            raise UserError(f"token_weights takes four numbers of at least 0 ({kinds}), got {self.token_weights!r}")

    def check(self, family: str | None, request: Request, name: str, sequential: bool = False) -> None:
        super().check(family, request, name, sequential)
        if not self.prior_captions and not self.lamb:
            raise UserError(
                f"method={name} needs {name}.prior_captions, whose outputs it preserves: a CSV file with a prompt column (COCO's "
                f"in official code: asset:coco_30k/coco_30k.csv) or a list of texts; or use {name}.lamb > 0"
            )

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        changes, condition = self.mapped(model, self.sentences(request, self.template_count, self.templates))
        if self.epochs:
            own = self.templates if self.trajectory_template is None else [self.trajectory_template]
            changes |= self.steered(model, changes, self.sentences(request, 1, own))
        return Erasure("trce", changes=changes, manifest={"condition": condition})

    def sentences(self, request: Request, count: int, own: list | None) -> Sentences:
        """The first ``count`` templates, or those of ``own``, for every concept and its anchor."""
        return [
            (template.format(name), template.format(anchor), name)
            for concept, anchor in zip(request.erase, request.anchors(self.default_anchor), strict=True)
            for name in (concept.name, *(concept.synonyms if self.synonyms else ()))
            for template in phrase_templates(concept.kind, count, own)
        ]

    def mapped(self, model: DiffusionModel, sentences: Sentences) -> tuple[Changes, float]:
        """W' of every key and value matrix, and the condition number of A."""
        captions = read_captions(self.prior_captions)
        B, number = caption_statistics(model, captions)
        rows = TextRows(model, [text for sentence in sentences for text in sentence[:2]])
        found: list[tuple[torch.Tensor, torch.Tensor, float]] = [
            (rows.all(old)[i], rows.all(new)[j], sqrt(weight))
            for old, new, concept in sentences
            for i, j, weight in self.positions(model, old, new, concept)
        ]
        K = torch.stack([old for old, _, _ in found]) if found else B[:0]
        G = torch.stack([new for _, new, _ in found]) if found else B[:0]
        root = B.new_tensor([weight for *_, weight in found])[:, None]
        scale = self.preserve_scale**2 if self.compat == "official" else self.preserve_scale
        p = scale / (self.prior_size or max(number, 1))
        shared = factor(root * K, B, self.lamb, 1 / len(sentences), p)
        changes = shared.text_map(root * (G - K)).changes(model.projections("key", "value", stream="text"))
        return changes, shared.condition

    def positions(self, model: DiffusionModel, old: str, new: str, concept: str) -> Iterator[tuple[int, int, float]]:
        """(position in o, position in n, weight) of the rows to map; rows with weight 0 are left out."""
        last = model.tokens - 1
        if self.compat == "official":
            ends = [min(len(text.split()) + 1, last) for text in (old, new)]
            words = _word(old.split(), concept.split())
        else:
            ends = [model.last_subject_token(text) + 1 for text in (old, new)]
            words = _pieces(model, old, concept)
        begin, end, padding, word = self.token_weights
        rows = [(0, 0, begin), (*ends, end), (last, last, padding * (last - ends[0]))]
        return (row for row in [*rows, *((i, last, word) for i in words)] if row[2] > 0)

    def steered(self, model: DiffusionModel, stage1: Changes, sentences: Sentences) -> dict[str, Replacement]:
        """Train self-attention and queries on top of stage 1, and return the trained weights."""
        draws = Draws(self.seed)
        with torch.no_grad():
            old = model.encode([o for o, _, _ in sentences]).repeat_interleave(self.trajectories, 0)
            new = model.encode([n for _, n, _ in sentences]).repeat_interleave(self.trajectories, 0)
            nothing = model.unconditional()
            chosen, x, t = self.concept_latents(model, old, nothing, draws)
            P, R = self.targets(model, x, t, old[chosen], new[chosen], nothing)
            iterations = -(-len(x) // self.batch_size)
            x_regular, t_regular = self.regular_latents(model, nothing, iterations, draws)

        student = Student(model, parameter_group(model, _self_attention_and_queries))
        optimizer = torch.optim.AdamW(student.masters.values(), lr=self.learning_rate, weight_decay=self.weight_decay)
        turn = count()

        def loss() -> torch.Tensor:
            n = next(turn)
            now, also = (slice(n * size, (n + 1) * size) for size in (self.batch_size, self.regular_batch))
            asked, empty = old[chosen[now]], nothing.expand(self.regular_batch, -1, -1)
            with torch.no_grad():
                kept = model.predict(x_regular[also], t_regular[also], empty)
            latents = torch.cat([x[now], x[now], x_regular[also]])
            times = torch.cat([t[now], t[now], t_regular[also]])
            with student.active():
                predicted = model.predict(latents, times, torch.cat([asked, nothing.expand_as(asked), empty]))
            u, regular = predicted.float().split([2 * len(asked), self.regular_batch])
            hinge = self.hinge(u, P[now].repeat(2, 1, 1, 1), R[now].repeat(2, 1, 1, 1))
            drift = torch.nn.functional.mse_loss(regular, kept.float())
            trace_values(x_t=x[now], t=t[now], P=P[now], R=R[now], hinge=hinge.detach(), drift=drift.detach())
            return hinge + self.regular_weight * drift

        adjust = _accumulate(student) if self.compat == "official" else None
        with Erasure("trce", changes=stage1).attached(model):
            train(student, optimizer, iterations, loss, adjust=adjust)
        return dict(student.changes())

    def concept_latents(
        self, model: DiffusionModel, old: torch.Tensor, nothing: torch.Tensor, draws: Draws
    ) -> tuple[list[int], torch.Tensor, torch.Tensor]:
        """One random early step of each roll-out per epoch: indices of the roll-outs, x_t (n, c, h, w) and t (n,).

        The order is random, or that of the concepts with ``compat: official``.
        """
        noises = draws.noise("x_T", (len(old), *model.noise([0]).shape[1:]), nothing)
        rollouts = Rollouts(model, noises, old, nothing, self.rollout_guidance, self.rollout_steps)
        if self.compat == "official":
            chosen = [*range(len(old))] * self.epochs
        else:
            orders = [draws.take("order", lambda g: torch.randperm(len(old), generator=g)) for _ in range(self.epochs)]
            chosen = torch.cat(orders).tolist()
        last = min(int(self.early * self.rollout_steps), self.rollout_steps - 1)
        visits = [(j, draws.integer("s", 0, last + 1)) for j in chosen]
        return chosen, rollouts.at(visits, self.late), rollouts.times(visits)

    def regular_latents(
        self, model: DiffusionModel, nothing: torch.Tensor, iterations: int, draws: Draws
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x'_t and t' of random steps of random unconditional roll-outs, ``regular_batch`` per iteration.

        With ``compat: official`` the roll-outs are used in order, starting from the first one in each epoch.
        """
        number, steps = self.regular_trajectories, self.rollout_steps
        noises = draws.noise("regular_x_T", (number, *model.noise([0]).shape[1:]), nothing)
        rollouts = Rollouts(model, noises, nothing.expand(number, -1, -1), nothing, 1.0, steps)
        total = iterations * self.regular_batch
        if self.compat == "official":
            epoch = max(total // self.epochs, 1)
            visits = [(n % epoch % number, draws.integer("regular_s", 0, steps)) for n in range(total)]
        else:
            visits = [(draws.integer("regular", 0, number), draws.integer("regular_s", 0, steps)) for _ in range(total)]
        t = rollouts.times(visits)
        if self.compat == "official":
            spacing = model.train_timesteps // steps
            t = (t + t.new_tensor([draws.integer("within", 0, spacing) for _ in visits])).clamp(max=spacing * steps - 1)
        return rollouts.at(visits, self.late), t

    @property
    def late(self) -> int:
        """The number of steps between t and x_t: 1 in official code, else 0."""
        return 1 if self.compat == "official" else 0

    def targets(self, model: DiffusionModel, x, t, old, new, nothing) -> tuple[torch.Tensor, torch.Tensor]:
        """P and R (n, c, h, w), float32, predicted by the base."""
        pairs = []
        for rows in torch.arange(len(x)).split(LATENTS_AT_ONCE):
            embeds = torch.cat([new[rows], old[rows], nothing.expand_as(old[rows])])
            safe, unsafe, plain = model.predict(x[rows].repeat(3, 1, 1, 1), t[rows], embeds).float().chunk(3)
            pairs.append([e + self.contrast * (e - plain) for e in (safe, unsafe)])
        P, R = (torch.cat(side) for side in zip(*pairs, strict=True))
        return P, R

    def hinge(self, u: torch.Tensor, P: torch.Tensor, R: torch.Tensor) -> torch.Tensor:
        """Mean over rows of max(0, β (mean (u − P)² − mean (u − R)² + m)) for predictions u (n, c, h, w)."""
        closer = ((u - P) ** 2 - (u - R) ** 2).flatten(1).mean(1)
        return (self.beta * (closer + self.margin)).clamp(min=0).mean()


@dataclass(frozen=True)
class Rollouts:
    """DDIM roll-outs of the base from noises (n, c, h, w) for embeddings (n, tokens, width), run only as far as needed."""

    model: DiffusionModel
    noises: torch.Tensor
    positive: torch.Tensor
    nothing: torch.Tensor
    scale: float
    steps: int

    def at(self, visits: list[tuple[int, int]], late: int = 0) -> torch.Tensor:
        """x (m, c, h, w) for visits (j, s): roll-out j before step s + ``late``."""
        wanted = {(j, s + late) for j, s in visits}
        found: dict[tuple[int, int], torch.Tensor] = {}
        distinct = sorted({j for j, _ in visits})
        for first in range(0, len(distinct), LATENTS_AT_ONCE):
            block = distinct[first : first + LATENTS_AT_ONCE]
            last = max(s for j, s in wanted if j in block)
            for s, latents in zip(range(last + 1), self.path(block), strict=False):
                found |= {(j, s): x.clone() for j, x in zip(block, latents, strict=True) if (j, s) in wanted}
        return torch.stack([found[j, s + late] for j, s in visits])

    def path(self, block: list[int]) -> Iterator[torch.Tensor]:
        """The latents (b, c, h, w) of some roll-outs before each step and after the last one."""
        positive = self.positive[block]
        guidance = Guidance(self.model, positive, self.nothing.expand_as(positive), self.scale)
        schedule = self.model.scheduler("ddim", self.steps)
        latents = self.noises[block] * schedule.init_noise_sigma
        yield latents
        for step, timestep in enumerate(schedule.timesteps):
            noise = guidance(schedule.scale_model_input(latents, timestep), timestep, step)
            latents = schedule.step(noise, timestep, latents, return_dict=False)[0]
            yield latents

    def times(self, visits: list[tuple[int, int]]) -> torch.Tensor:
        """t (m,) for visits (j, s): the timestep of the noise level before step s."""
        return self.model.scheduler("ddim", self.steps).timesteps[[s for _, s in visits]]


def _self_attention_and_queries(p: Parameter) -> bool:
    """Whether stage 2 trains a parameter: all of self-attention, and the queries of cross-attention."""
    return p.attention == "self" or (p.attention == "cross" and p.role == "query")


def _word(text: list[str], words: list[str]) -> list[int]:
    """The position of the first of ``words`` where they first occur in a text; words count from 1, after the begin token."""
    starts = range(len(text) - len(words) + 1)
    return [n + 1 for n in starts if text[n : n + len(words)] == words][:1]


def _pieces(model: DiffusionModel, text: str, word: str) -> list[int]:
    """The positions of a word's tokens where it first occurs in a text."""
    ids, own = model.token_ids(text), model.token_ids(word)[1:-1]
    starts = [i for i in range(len(ids)) if own and ids[i : i + len(own)] == own]
    return list(range(starts[0], starts[0] + len(own))) if starts else []


def _accumulate(student: Student) -> Callable[[], None]:
    """An ``adjust`` for `train` that adds all earlier gradients, as if they were never zeroed."""
    total: dict[str, torch.Tensor] = {}

    def add() -> None:
        for name, parameter in student.masters.items():
            if parameter.grad is not None:
                total[name] = parameter.grad = parameter.grad + total.get(name, 0)

    return add
