"""SEGA: during sampling, edits add or subtract the directions of texts, each at the values where its direction is largest.

Brack, Friedrich, Hintersdorf, Struppek, Schramowski and Kersting, "SEGA: Instructing Text-to-Image Models using Semantic
Guidance", NeurIPS 2023, arXiv 2301.12247. It succeeds SLD. Weights do not change. An erased concept is an edit in reverse.
e_∅, e_p and e_S (batch, c, h, w) are the network's outputs for the empty (or negative) prompt, the prompt, and the text S
of an edit with scale s, threshold λ, weight v (at least 0), warm-up and cool-down. At call i of the network, with ν_0 = 0:

    d       = ± s (e_S − e_∅) where |d| reaches its λ-quantile over the pixels of its channel, else 0       − in reverse
    γ       = Σ v d + s_m ν_i                                              of all edits, those in warm-up too
    ν_{i+1} = β_m ν_i + (1 − β_m) γ
    edit    = γ  if every edit's warm-up is over;  Σ v d / Σ v of those whose is over;  0 if none is
    e       = e_∅ + w (e_p − e_∅) + edit

From its cool-down on, an edit has d = v = 0. The guidance scale w does not multiply the edit, unlike in SLD. PNDM makes
one call more than its steps. Without guidance (w ≤ 1) there is no edit.

Official code divides by zero if Σ v = 0 while another edit is in warm-up: ``compat: official``. ``intended`` adds nothing
there. Not reproduced: for edits given as embeddings instead of texts, official code assigns those of a batch to the wrong
images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

from overpaint.blocks.draws import trace_values
from overpaint.blocks.text_directions import largest
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Request
from overpaint.grid.typed import construct
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.guidance import Guard, Guidance
from overpaint.models.lazily import torch


@dataclass(kw_only=True)
class SEGA(Eraser):
    """Hyper-parameters of SEGA; ``conf/method/sega.yaml`` explains each. A list has one entry for each text."""

    compat: Literal["intended", "official"]
    texts: list[str] | None
    reverse: bool | list[bool]
    scale: float | list[float]
    warmup_steps: int | list[int]
    cooldown_steps: int | list[int] | None
    threshold: float | list[float]
    weights: list[float] | None
    momentum_scale: float
    momentum_beta: float

    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    acts_on: ClassVar[str] = "conditioning"
    draws: ClassVar[bool] = False
    stacks: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False

    def __post_init__(self):
        for name in ("scale", "warmup_steps", "cooldown_steps"):
            at_least(0, **{name: min(_listed(getattr(self, name) or 0))})
        at_least(0, momentum_scale=self.momentum_scale)
        for name in ("threshold", "momentum_beta"):
            if not all(0 <= value <= 1 for value in _listed(getattr(self, name))):
                raise UserError(f"{name} takes a number from 0 to 1, got {getattr(self, name)!r}")

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        guard = SemanticGuard(self.edits(request), self.momentum_scale, self.momentum_beta, self.compat)
        model.padded_ids([edit.text for edit in guard.edits])  # raises now, not during sampling, if a text is too long
        guard.on(model.guidance)
        return Erasure("sega", "guard", settings=asdict(guard))

    def edits(self, request: Request) -> list[Edit]:
        """One edit for each of ``texts``, or for each concept to erase."""
        texts = [c.name for c in request.erase] if self.texts is None else self.texts
        if not texts:
            raise UserError("texts takes at least one text, got []")
        settings = {
            "reverse": self.reverse,
            "scale": self.scale,
            "warmup_steps": self.warmup_steps,
            "cooldown_steps": self.cooldown_steps,
            "threshold": self.threshold,
            "weights": 1.0 if self.weights is None else self.weights,
        }
        for name, value in settings.items():
            if isinstance(value, list) and len(value) != len(texts):
                raise UserError(f"{name} takes one value for each of the {len(texts)} texts, got {value!r}")
        columns = [value if isinstance(value, list) else [value] * len(texts) for value in settings.values()]
        return [Edit(*row) for row in zip(texts, *columns, strict=True)]

    @classmethod
    def install(cls, model: DiffusionModel, erasure: Erasure) -> Callable[[], None]:
        where = "this erasure's settings"
        guard = construct(SemanticGuard, erasure.settings, where)
        edits = [construct(Edit, edit, where) for edit in erasure.settings["edits"]]
        return model.guided_by(replace(guard, edits=edits).on(model.guidance))


def _listed(value) -> list:
    return value if isinstance(value, list) else [value]


@dataclass(frozen=True)
class Edit:
    """The direction of a text: see the module's equations."""

    text: str
    reverse: bool
    scale: float
    warmup_steps: int
    cooldown_steps: int | None
    threshold: float
    weight: float

    def direction(self, nothing: torch.Tensor, steered: torch.Tensor) -> torch.Tensor:
        """d from e_∅ and e_S (batch, c, h, w)."""
        return largest((steered - nothing) * (-self.scale if self.reverse else self.scale), self.threshold)

    def finished(self, step: float) -> bool:
        """Whether the edit has ended by call ``step`` of the sampler."""
        return self.cooldown_steps is not None and step >= self.cooldown_steps


@dataclass(frozen=True)
class SemanticGuard(Guard):
    """Creates the `Guidance` of each batch of images."""

    edits: list[Any]  # of `Edit`
    momentum_scale: float
    momentum_beta: float
    compat: Literal["intended", "official"]

    method: ClassVar[str] = "sega"
    joins: ClassVar[str] = "edits"
    stateful: ClassVar[bool] = True

    def __call__(self, model: DiffusionModel, positive, negative, scale: float, prompts=None) -> Guidance:
        if scale <= 1:
            return Guidance(model, positive, negative, scale, prompts)
        images = len(positive)
        with torch.no_grad():
            rows = model.encode([edit.text for edit in self.edits]).repeat_interleave(images, dim=0)
        return SemanticGuidance(self, rows, model, positive, negative, scale, prompts)

    def edit(self, nothing: torch.Tensor, steered: Sequence[torch.Tensor], step: float, momentum):
        """The edit and the next ν (batch, c, h, w), from e_∅, the e_S of every edit, the call i and ν."""
        weights = nothing.new_tensor([0.0 if e.finished(step) else max(e.weight, 0.0) for e in self.edits])
        zero = torch.zeros_like(nothing)
        directions = torch.stack(
            [
                zero if e.finished(step) else e.direction(nothing, output)
                for e, output in zip(self.edits, steered, strict=True)
            ]
        )
        gamma = torch.tensordot(weights, directions, 1) + self.momentum_scale * momentum
        following = self.momentum_beta * momentum + (1 - self.momentum_beta) * gamma
        active = [step >= e.warmup_steps for e in self.edits]
        if all(active):
            return gamma, following
        if not any(active):
            return zero, following
        shares = weights[active] / weights[active].sum()
        if self.compat == "intended":
            shares = shares.nan_to_num()
        return torch.tensordot(shares, directions[active], 1), following


class SemanticGuidance(Guidance):
    """Guidance towards the prompt plus the edits, with the momentum ν of a batch of images.

    ``texts`` (edits · batch, rows, columns) are the encodings of the first edit for all images, then of the second, and so
    on. ``added`` are edits (batch, c, h, w), one for each call, that were recorded in another run; they are added too.
    """

    added: Sequence[torch.Tensor] = ()

    def __init__(self, settings: SemanticGuard, texts: torch.Tensor, *guidance):
        super().__init__(*guidance)
        self.settings, self.texts = settings, texts
        self.momentum: torch.Tensor | float = 0.0

    def __call__(self, latents: torch.Tensor, timestep, step: float) -> torch.Tensor:
        if step == 0:
            self.momentum = 0.0  # a new batch of images
        count = 2 + len(self.settings.edits)
        embeds = torch.cat([self.negative, self.positive, self.texts])
        nothing, wanted, *steered = self.model.predict(torch.cat([latents] * count), timestep, embeds).chunk(count)
        edit, self.momentum = self.settings.edit(nothing, steered, step, self.momentum)
        trace_values(edit=edit)
        if self.added:
            edit = edit + self.added[int(step)].to(edit)
        return nothing + (self.scale * (wanted - nothing) + edit)
