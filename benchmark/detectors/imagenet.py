"""ImageNet classes by torchvision's ResNet-50 (He et al., CVPR 2016), as ESD, UCE and RECE measure objects.

The weights are IMAGENET1K_V2: resize to 232, centre crop of 224, bilinear. A class is named as torchvision names it
(``church``) or by its WordNet id (``n03028079``); ``datasets/imagenet/classes.csv`` lists both. Scores compare a class with all
1,000, so that at least 0.5 means top-1.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from overpaint.detectors.network import NetworkDetector, Scores, class_scores, positions
from overpaint.errors import AssetMissing
from overpaint.grid.shipped import shipped
from overpaint.models.weights import load_state, weights_path

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from overpaint.blocks.pixels import Preprocessing

#: Mean and standard deviation of ImageNet's channels.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(kw_only=True)
class ImageNet(NetworkDetector):
    """One label for each class of the concept set; without classes, all 1,000."""

    classes: dict[str, str] | None
    scores: Scores

    def check(self) -> None:
        self._positions()

    @property
    def labels(self) -> Sequence[str]:
        return list(self.classes) if self.classes else [name for _, name in imagenet_classes()]

    def forward(self, images: Sequence[Image]) -> tuple[torch.Tensor, None]:
        network, preprocessing = self._network
        return class_scores(network(preprocessing(images).to(self.device)), self.scores)[:, self._positions()], None

    def _positions(self) -> list[int]:
        wnids = {wnid: place for place, (wnid, _) in enumerate(imagenet_classes())}
        return positions(self.labels, [name for _, name in imagenet_classes()], "detector=imagenet", wnids)

    @cached_property
    def _network(self) -> tuple[Any, Preprocessing]:
        from safetensors.torch import load_file

        from overpaint.blocks.pixels import Preprocessing

        network = load_state(resnet50, load_file(weights_path(self.weights)), self.weights)
        return network.to(self.device), Preprocessing(232, 224, MEAN, STD, BILINEAR)


#: Pillow's filter.
BILINEAR = 2


def resnet50(classes: int = 1000) -> Any:
    """torchvision's ResNet-50 without weights."""
    try:
        from torchvision.models import resnet50
    except ImportError as error:
        raise AssetMissing(
            "detectors imagenet and celebrity need the extra: pip install 'overpaint[torchvision]'"
        ) from error
    return resnet50(weights=None, num_classes=classes)


@cache
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """WordNet id and torchvision's name of the 1,000 classes, in the order of the network's output."""
    with (shipped("datasets") / "imagenet" / "classes.csv").open(encoding="utf-8", newline="") as file:
        return tuple((row["wnid"], row["name"]) for row in csv.DictReader(file))
