"""Negative prompt: guidance steers away from an unwanted text. Weights do not change.

The oldest baseline, available in every diffusion user interface. p is the prompt, n the unwanted text, w the guidance
scale, and e the network's prediction (batch, c, h, w):

    replace:     e(n) + w (e(p) − e(n))                       n replaces the empty prompt
    composable:  e(∅) + w (e(p) − e(∅)) − w_n (e(n) − e(∅))   compositional negation: Liu et al., ECCV 2022,
                                                              arXiv 2206.01714; as a guard: TraSCE, arXiv 2412.07658

``replace`` has no effect on prompts equal to n (it gives e(p) at any w) and without guidance (w ≤ 1). Combined with another
negative prompt of the same form, weight and window, n is both texts, joined by a comma.

The guard acts in a window of the sampling, from ``start`` to ``stop``. With T training timesteps, timestep t is at the
fraction 1 − t/T. A window in fractions means the same for every scheduler and number of steps, and for attacks that
predict at single timesteps. Ban et al., "Understanding the Impact of Negative Prompts: When and How Do They Take Effect?",
ECCV 2024, arXiv 2406.02965, find that the negative prompt of a thing acts late.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from overpaint.errors import UserError
from overpaint.grid.concepts import Request
from overpaint.grid.typed import construct
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.guidance import Guard, Guidance
from overpaint.models.lazily import torch


@dataclass(kw_only=True)
class NegativePrompt(Eraser):
    """Hyper-parameters; ``weight`` is w_n and ``text`` is n (``None``: the names of the concepts, joined by commas)."""

    form: Literal["replace", "composable"]
    weight: float
    text: str | None
    start: float
    stop: float

    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    acts_on: ClassVar[str] = "conditioning"
    draws: ClassVar[bool] = False
    stacks: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False
    added: ClassVar[Mapping[str, Any]] = {"start": 0.0, "stop": 1.0}

    def __post_init__(self):
        if not 0 <= self.start < self.stop <= 1:
            raise UserError(
                f"start and stop take fractions of the sampling, 0 <= start < stop <= 1, got {self.start} and {self.stop}"
            )

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        text = ", ".join(c.name for c in request.erase) if self.text is None else self.text
        guard = NegativePromptGuard(text, self.form, self.weight, self.start, self.stop)
        model.padded_ids([guard.on(model.guidance).text])  # raises now, not during sampling, if the text is too long
        return Erasure("negative_prompt", "guard", settings=asdict(guard))

    @classmethod
    def install(cls, model: DiffusionModel, erasure: Erasure) -> Callable[[], None]:
        guard = construct(NegativePromptGuard, erasure.settings, "this erasure's settings")
        return model.guided_by(guard.on(model.guidance))


@dataclass(frozen=True)
class NegativePromptGuard(Guard):
    """Creates the `Guidance` of each batch of images. Files of version 0.1 have no window."""

    text: str
    form: Literal["replace", "composable"]
    weight: float
    start: float = 0.0
    stop: float = 1.0

    method: ClassVar[str] = "negative_prompt"
    joins: ClassVar[str] = "text"

    def __call__(self, model: DiffusionModel, positive, negative, scale: float, prompts=None) -> Guidance:
        with torch.no_grad():
            unwanted = model.unconditional(self.text).expand_as(positive)
        if self.form == "replace":
            guarded = Guidance(model, positive, unwanted, scale)
        else:
            guarded = Composable(model, positive, negative, scale, unwanted, self.weight)
        if (self.start, self.stop) == (0, 1):
            return guarded
        return Windowed(guarded, Guidance(model, positive, negative, scale), self.start, self.stop)


class Composable(Guidance):
    """Guidance towards the prompt and away from the unwanted text, both relative to the empty prompt."""

    def __init__(self, model, positive, negative, scale, unwanted, weight):
        super().__init__(model, positive, negative, scale)
        self.unwanted, self.weight = unwanted, weight

    def __call__(self, latents: torch.Tensor, timestep, step: float) -> torch.Tensor:
        embeds = torch.cat([self.negative, self.positive, self.unwanted])
        nothing, wanted, unwanted = self.model.predict(torch.cat([latents] * 3), timestep, embeds).chunk(3)
        return nothing + self.scale * (wanted - nothing) - self.weight * (unwanted - nothing)


class Windowed(Guidance):
    """``guarded`` guidance inside a window of the sampling, ``plain`` guidance outside."""

    def __init__(self, guarded: Guidance, plain: Guidance, start: float, stop: float):
        super().__init__(plain.model, plain.positive, plain.negative, plain.scale)
        self.guarded, self.plain, self.start, self.stop = guarded, plain, start, stop

    def __call__(self, latents: torch.Tensor, timestep, step: float) -> torch.Tensor:
        inside = self.inside(torch.as_tensor(timestep))
        if inside.all():
            return self.guarded(latents, timestep, step)
        if not inside.any():
            return self.plain(latents, timestep, step)
        guarded, plain = self.guarded(latents, timestep, step), self.plain(latents, timestep, step)
        return torch.where(inside.to(latents.device)[:, None, None, None], guarded, plain)

    def inside(self, timestep: torch.Tensor) -> torch.Tensor:
        """Whether each timestep is in the window, as booleans of the same shape; the last fraction, 1, is part of it."""
        passed = 1 - timestep.double() / self.model.train_timesteps
        return (passed >= self.start) & ((passed < self.stop) | (self.stop == 1))
