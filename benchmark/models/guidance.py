"""How a noise prediction is composed from the network's outputs: the place where sampler guards act."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from overpaint.models.diffusion import DiffusionModel


class Guidance:
    """Classifier-free guidance, e(∅) + w (e(p) − e(∅)); one object a batch of images, so guards may keep state in it.

    ``positive`` and ``negative`` are text embeddings (batch, tokens, width), ``prompts`` the texts of ``positive`` where
    there are any (learned embeddings have none). At w ≤ 1 only the prompt is evaluated.
    ``guard`` says what stands in the way, for attacks that adapt to it; plain guidance has none.
    """

    guard = ""

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
