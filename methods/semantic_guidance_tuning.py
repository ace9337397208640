"""Semantic guidance tuning: while sampling, guidance that turns to an erased concept loses its component along the concept.

Kang, Lee, Shin and Lee, "Semantic Guidance Tuning for Text-To-Image Diffusion Models", arXiv 2312.15964. Weights do not
change. The paper keeps images faithful to a prompt: it watches the angle between the guidance and the direction of each
concept of the prompt, and steers towards concepts from which the guidance diverges. An erased concept is the reverse: the
guidance is steered away while it does not diverge. e_∅, e_p and e_k (batch, c, h, w) are the network's outputs for the
empty (or negative) prompt, the prompt and the text of concept k; at call i of the network, with ν_0 = 0:

    G   = e_p − e_∅
    d_k = e_k − e_∅ where |d_k| reaches its ``quantile`` over the pixels of its channel, else 0
    a_k = mean of |cos(G, d_k)| over the last ``window`` calls                            of each image
    u_k = (G·d_k / d_k·d_k) d_k + s_m ν_k                      erased: the guidance's component along the concept
    u_k = d_k − (d_k·G / G·G) G + s_m ν_k                      ``towards``: the concept's component across it (the paper)
    ν_k ← β_m ν_k + (1 − β_m) u_k                                                         at every call
    e   = e_∅ + w G − s Σ u_k [a_k ≥ τ] + s Σ u_k [a_k < τ]    the sums over erased texts, and over ``towards``

The last line's sums are empty before the warm-up and from the cool-down on, and without guidance (w ≤ 1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import ClassVar

from overpaint.blocks.draws import trace_values
from overpaint.blocks.text_directions import along, cosines, largest
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Request
from overpaint.grid.typed import construct
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.guidance import Guard, Guidance
from overpaint.models.lazily import torch


@dataclass(kw_only=True)
class SemanticGuidanceTuning(Eraser):
    """Hyper-parameters; ``conf/method/semantic_guidance_tuning.yaml`` explains each."""

    towards: list[str]
    scale: float
    alignment: float
    quantile: float
    window: int
    warmup_steps: int
    cooldown_steps: int | None
    momentum_scale: float
    momentum_beta: float

    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    acts_on: ClassVar[str] = "conditioning"
    draws: ClassVar[bool] = False
    stacks: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False

    def __post_init__(self):
        at_least(0, scale=self.scale, warmup_steps=self.warmup_steps, cooldown_steps=self.cooldown_steps)
        at_least(0, momentum_scale=self.momentum_scale)
        at_least(1, window=self.window)
        for name in ("alignment", "quantile", "momentum_beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} takes a number from 0 to 1, got {getattr(self, name)!r}")

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        settings = {key: value for key, value in asdict(self).items() if key != "seed"}
        guard = TuningGuard(**settings, away=[c.name for c in request.erase])
        model.padded_ids(guard.texts)  # raises now, not during sampling, if a text is too long
        guard.on(model.guidance)
        return Erasure("semantic_guidance_tuning", "guard", settings=asdict(guard))

    @classmethod
    def install(cls, model: DiffusionModel, erasure: Erasure) -> Callable[[], None]:
        guard = construct(TuningGuard, erasure.settings, "this erasure's settings")
        return model.guided_by(guard.on(model.guidance))


@dataclass(frozen=True, kw_only=True)
class TuningGuard(Guard):
    """Creates the `Guidance` of each batch of images. ``away`` are the texts of the erased concepts."""

    away: list[str]
    towards: list[str]
    scale: float
    alignment: float
    quantile: float
    window: int
    warmup_steps: int
    cooldown_steps: int | None
    momentum_scale: float
    momentum_beta: float

    method: ClassVar[str] = "semantic_guidance_tuning"
    joins: ClassVar[str] = "away"
    stateful: ClassVar[bool] = True

    @property
    def texts(self) -> list[str]:
        """All texts, those to move away from first."""
        return [*self.away, *self.towards]

    def __call__(self, model: DiffusionModel, positive, negative, scale: float, prompts=None) -> Guidance:
        if scale <= 1:
            return Guidance(model, positive, negative, scale, prompts)
        with torch.no_grad():
            rows = model.encode(self.texts).repeat_interleave(len(positive), dim=0)
        return TunedGuidance(self, rows, model, positive, negative, scale, prompts)

    def acts(self, step: float) -> bool:
        """Whether the guidance is steered at this call."""
        return step >= self.warmup_steps and (self.cooldown_steps is None or step < self.cooldown_steps)

    def change(self, number: int, guidance: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        """u_k without momentum (batch, c, h, w), for text ``number``, G and d_k."""
        if number < len(self.away):
            return along(guidance, direction)
        return direction - along(direction, guidance)

    def chosen(self, number: int, alignment: torch.Tensor) -> torch.Tensor:
        """The factor (batch,) of u_k in the prediction, for a_k (batch,): −s, s or 0."""
        away = number < len(self.away)
        met = alignment >= self.alignment if away else alignment < self.alignment
        return met * (-self.scale if away else self.scale)


class TunedGuidance(Guidance):
    """Guidance with the trajectory of its angles and the momenta ν_k of a batch of images.

    ``texts`` (texts · batch, rows, columns) are the encodings of the first text for all images, then of the second, and so on.
    """

    def __init__(self, settings: TuningGuard, texts: torch.Tensor, *guidance):
        super().__init__(*guidance)
        self.settings, self.texts = settings, texts
        self._restart()

    def _restart(self) -> None:
        self.momenta: list[torch.Tensor | float] = [0.0] * len(self.settings.texts)
        self.angles = [deque[torch.Tensor](maxlen=self.settings.window) for _ in self.settings.texts]

    def __call__(self, latents: torch.Tensor, timestep, step: float) -> torch.Tensor:
        if step == 0:
            self._restart()  # a new batch of images
        settings, count = self.settings, 2 + len(self.settings.texts)
        embeds = torch.cat([self.negative, self.positive, self.texts])
        nothing, wanted, *tuned = self.model.predict(torch.cat([latents] * count), timestep, embeds).chunk(count)
        guidance = wanted - nothing
        predicted = nothing + self.scale * guidance
        for number, output in enumerate(tuned):
            direction = largest(output - nothing, settings.quantile)
            self.angles[number].append(cosines(guidance, direction).abs())
            alignment = torch.stack(list(self.angles[number])).mean(dim=0)
            change = settings.change(number, guidance, direction) + settings.momentum_scale * self.momenta[number]
            self.momenta[number] = settings.momentum_beta * self.momenta[number] + (1 - settings.momentum_beta) * change
            trace_values(alignment=alignment, change=change)
            if settings.acts(step):
                factor = settings.chosen(number, alignment)[:, None, None, None]
                predicted = predicted + torch.where(factor != 0, factor * change, 0.0)
        return predicted
