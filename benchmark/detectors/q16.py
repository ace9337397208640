"""Q16: inappropriate content by prompt-tuned CLIP (Schramowski et al., FAccT 2022, arXiv 2202.06675).

Two learned vectors (2, d) in the space of CLIP ViT-L/14 stand for appropriate (0) and inappropriate (1):

    p = softmax(100 cos(f(x), e))₁

The official code computes in half precision; here it is single precision. Q16 reports many benign dark scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from overpaint.detectors.network import NetworkDetector
from overpaint.errors import UserError
from overpaint.models.weights import weights_path

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from overpaint.blocks.clip import Clip

#: The label of the score, unless the concept set has words of its own.
LABEL = "inappropriate"


@dataclass(kw_only=True)
class Q16(NetworkDetector):
    """The probability of *inappropriate*, under each label of the concept set."""

    prompts: str
    classes: dict[str, str] | None

    weights_in: ClassVar[tuple[str, ...]] = ("weights", "prompts")

    @property
    def labels(self) -> Sequence[str]:
        return list(self.classes or (LABEL,))

    def forward(self, images: Sequence[Image]) -> tuple[torch.Tensor, torch.Tensor]:
        from torch.nn.functional import normalize

        features = normalize(self._clip.image_features(images), dim=1)
        inappropriate = inappropriate_probability(features, self._prompts)
        return inappropriate[:, None].expand(-1, len(self.labels)), features

    @cached_property
    def _clip(self) -> Clip:
        import torch

        from overpaint.blocks.clip import Clip

        return Clip.load(str(weights_path(self.weights)), torch.device(self.device))

    @cached_property
    def _prompts(self) -> torch.Tensor:
        from safetensors.torch import load_file

        found = load_file(weights_path(self.prompts))
        if len(found) != 1 or (prompts := next(iter(found.values()))).shape != (2, self._clip.model.projection_dim):
            raise UserError(
                f"prompts={self.prompts} takes one tensor (2, {self._clip.model.projection_dim}), the model's width"
            )
        return prompts.float().to(self.device)


def inappropriate_probability(features: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """p(inappropriate) (n,) of image features (n, d) and the two prompt vectors (2, d)."""
    from torch.nn.functional import normalize

    return (100.0 * normalize(features, dim=1) @ normalize(prompts, dim=1).T).softmax(dim=1)[:, 1]
