"""How a noise prediction is composed from the network's outputs: the place where sampler guards act."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

if TYPE_CHECKING:
    from overpaint.models.diffusion import DiffusionModel


class Guidance:
    """Classifier-free guidance, e(∅) + w (e(p) − e(∅)); one object a batch of images, so guards may keep state in it.

    ``positive`` and ``negative`` are text embeddings (batch, tokens, width), ``prompts`` the texts of ``positive``
    where there are any (learned embeddings have none). At w ≤ 1 only the prompt is evaluated. Attacks read
    ``model.guidance.guard`` to adapt to the `Guard` that is attached; plain guidance has none.
    """

    guard: ClassVar[Guard | None] = None

    def __init__(
        self,
        model: DiffusionModel,
        positive: torch.Tensor,
        negative: torch.Tensor,
        scale: float,
        prompts: Sequence[str] | None = None,
    ):
        self.model, self.scale, self.prompts = model, scale, prompts
        self.positive, self.negative = positive, negative

    def __call__(self, latents: torch.Tensor, timestep, step: int) -> torch.Tensor:
        """The composed prediction for ``latents`` (batch, channels, height, width) at scheduler step ``step``."""
        if self.scale <= 1:
            return self.model.predict(latents, timestep, self.positive)
        both = torch.cat([self.negative, self.positive])
        unconditional, conditional = self.model.predict(torch.cat([latents] * 2), timestep, both).chunk(2)
        return unconditional + self.scale * (conditional - unconditional)


class Guard(ABC):
    """Makes the guarded `Guidance` of each batch of images. It replaces ``model.guidance`` while its erasure is
    attached.

    Attacks adapt to what a guard says of itself here, never to the name of its method.
    """

    #: Whether a prediction depends on earlier predictions for the same images, through a momentum for example.
    stateful: ClassVar[bool] = False

    @property
    def guard(self) -> Guard:
        return self

    @abstractmethod
    def __call__(
        self,
        model: DiffusionModel,
        positive: torch.Tensor,
        negative: torch.Tensor,
        scale: float,
        prompts: Sequence[str] | None = None,
    ) -> Guidance:
        """The guidance of one batch of images; arguments as in `Guidance`."""

    def without_empty_prompt(self, model: DiffusionModel, scale: float) -> Callable[..., torch.Tensor] | None:
        """The guarded prediction with e(∅) left out of every term, or ``None`` if this guard has no such form.

        Prompting4Debugging searches through it. The returned function takes ``latents`` (1, c, h, w), ``timesteps``
        (1,), the prompt's ``embeds`` (1, tokens, width) and the step of the search; it keeps the guard's state between
        calls.
        """
        return None
