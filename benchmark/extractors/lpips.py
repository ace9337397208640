"""LPIPS (Zhang et al., arXiv 1801.03924), version 0.1 with AlexNet: the perceptual distance of two images.

torchmetrics ships the linear heads; AlexNet's own weights are an asset. The scripts of ESD and UCE resize images by torchvision's
default, bilinear with antialiasing, as Pillow does; RECE's uses OpenCV's bilinear filter, which has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pandas as pd

from overpaint.errors import UserError, at_least
from overpaint.extractors.extractor import Extractor, alike, hashes, named_path
from overpaint.models.weights import single_precision

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


#: Pillow's filters.
FILTERS = {"bilinear": 2, "bicubic": 3}


@dataclass(kw_only=True)
class Lpips(Extractor):
    """``value`` is the distance to the unedited model's image; 0 for equal images."""

    weights: str  # a safetensors file of AlexNet's tensors, or asset:NAME/FILE
    side: int | None  # pixels to which both images are resized first (ESD and UCE: 64); null: not resized
    resample: Literal["bilinear", "bicubic"]

    paired: ClassVar[bool] = True

    def __post_init__(self):
        at_least(32, side=self.side)

    def assets(self) -> dict[str, str]:
        return hashes(self.weights)

    def extract(
        self, images: Sequence[Image], prompts: Sequence[str], originals: Sequence[Image] | None = None
    ) -> pd.DataFrame:
        if originals is None:
            raise ValueError("LPIPS compares images with originals")
        found = [0.0] * len(images)
        with single_precision():
            for places in alike(images):
                pair = (self.pixels([shown[place] for place in places]) for shown in (images, originals))
                for place, distance in zip(places, self._network(*pair).flatten().cpu().tolist(), strict=True):
                    found[place] = distance
        return pd.DataFrame({"value": pd.Series(found, dtype=float)})

    def pixels(self, images: Sequence[Image]) -> torch.Tensor:
        """Images (n, 3, side, side) in [−1, 1]."""
        import torch

        shown = [image.convert("RGB") for image in images]
        if self.side:
            shown = [image.resize((self.side, self.side), FILTERS[self.resample]) for image in shown]
        arrays = [np.asarray(image, np.float32) / 127.5 - 1 for image in shown]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).to(self.device)

    @cached_property
    def _network(self):
        from safetensors.torch import load_file
        from torchmetrics.functional.image import lpips

        try:
            network = lpips._NoTrainLpips(net="alex", pnet_rand=True)
        except ModuleNotFoundError:
            raise UserError("extractor=lpips needs torchvision: pip install 'overpaint[metrics]'") from None
        given = load_file(named_path(self.weights))
        own = network.net.state_dict()  # slice1.0.weight for AlexNet's features.0.weight
        network.net.load_state_dict({name: given["features." + name.split(".", 1)[1]] for name in own})
        return network.to(self.device)
