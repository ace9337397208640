"""SSCD (Pizzi et al., arXiv 2202.10261): descriptors in which copies of an image are close, edited copies included.

The network is torchvision's ResNet-50 with generalised-mean pooling and 512 outputs, scaled to length 1::

    pooled_c = (mean over pixels of max(x_c, 1e-6)³)^(1/3)

The authors read a cosine of at least 0.5 as a copy, and papers on memorisation do too. Images are resized to a square with
bilinear interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from overpaint.blocks.pixels import Preprocessing
from overpaint.errors import AssetMissing, at_least
from overpaint.extractors.clip import cosines
from overpaint.extractors.extractor import Extractor, batched, hashes, named_path
from overpaint.models.weights import load_state, single_precision

if TYPE_CHECKING:
    import torch

#: Mean and standard deviation of ImageNet's channels.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Length of a descriptor, and the exponent of the pooling.
WIDTH, EXPONENT = 512, 3


@dataclass(kw_only=True)
class Sscd(Extractor):
    """``value`` is the cosine of an image's descriptor with that of the unedited model's image; 1 for equal images."""

    weights: str  # a safetensors file with the tensors of the torchvision version, or asset:NAME/FILE
    side: int  # pixels of the square that images are resized to

    paired: ClassVar[bool] = True

    def __post_init__(self):
        at_least(32, side=self.side)

    def assets(self) -> dict[str, str]:
        return hashes(self.weights)

    def extract(
        self, images: Sequence[Image.Image], prompts: Sequence[str], originals: Sequence[Image.Image] | None = None
    ) -> pd.DataFrame:
        if originals is None:
            raise ValueError("SSCD compares images with originals")
        if not images:
            return pd.DataFrame({"value": pd.Series(dtype=float)})
        return pd.DataFrame({"value": cosines(self.descriptors(images), self.descriptors(originals))})

    def descriptors(self, images: Sequence[Image.Image]) -> NDArray:
        """Descriptors (n, 512) of images, not scaled yet."""
        prepare = Preprocessing(self.side, None, MEAN, STD, Image.Resampling.BILINEAR)
        with single_precision():
            parts = [
                self._network(prepare(images[part]).to(self.device)).cpu().numpy() for part in batched(len(images))
            ]
        return np.concatenate(parts)

    @cached_property
    def _network(self) -> Any:
        from safetensors.torch import load_file

        state = {name.removeprefix("backbone."): tensor for name, tensor in load_file(named_path(self.weights)).items()}
        return load_state(network, state, self.weights).to(self.device)


def network() -> Any:
    """The network without weights and without the last scaling."""
    try:
        from torchvision.models import resnet50
    except ImportError as error:
        raise AssetMissing("extractor=sscd needs the extra: pip install 'overpaint[torchvision]'") from error
    from torch import nn

    class GeneralisedMean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(2).clamp(min=1e-6).pow(EXPONENT).mean(dim=2).pow(1 / EXPONENT)

    built = resnet50(weights=None, num_classes=WIDTH)
    built.avgpool = GeneralisedMean()
    return built
