"""Images as the input of a network, made by Pillow, so that scores do not depend on which torch library is installed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from overpaint.errors import UserError

if TYPE_CHECKING:
    import torch


#: Files that describe how a model's images are prepared, preferred first.
CONFIGURATIONS = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Preprocessing:
    """How a network's input is made.

    Attributes:
        resize: side in pixels of the square that images are resized to, or of the shorter side if ``crop`` is set.
        crop: side of the square that is cut out of the centre; ``None`` for a square resize.
        mean, std: normalisation of each channel, in [0, 1].
        resample: Pillow's filter.
    """

    resize: int
    crop: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int = Image.Resampling.BICUBIC

    @classmethod
    def read(cls, folder: Path) -> Preprocessing:
        """The preprocessing of a transformers model, from its ``preprocessor_config.json``, or from the
        ``processor_config.json`` that newer versions of transformers write."""
        file = next((folder / name for name in CONFIGURATIONS if (folder / name).is_file()), folder / CONFIGURATIONS[0])
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            told = told.get("image_processor", told)
            size, crop = _side(told["size"]), _side(told.get("crop_size")) if told.get("do_center_crop") else None
            shortest = not isinstance(told["size"], dict) or "shortest_edge" in told["size"]
            if size is None or (crop is None and shortest and told.get("do_center_crop", False)):
                raise KeyError("size")
            return cls(size, crop, tuple(told["image_mean"]), tuple(told["image_std"]), told.get("resample", 3))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is not the configuration of an image processor: {error}") from error

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """The images as a float32 tensor (n, 3, side, side)."""
        import torch

        side = self.crop or self.resize
        array = np.stack([self._pixels(image) for image in images]) if images else np.zeros((0, side, side, 3))
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        array = (array.astype(np.float32) / np.float32(255) - mean) / std
        return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))

    def _pixels(self, image: Image.Image) -> np.ndarray:
        """One image as bytes (side, side, 3)."""
        image = image.convert("RGB")
        if self.crop is None:
            return np.asarray(image.resize((self.resize, self.resize), self.resample))
        short, long = min(image.size), max(image.size)
        longer = max(1, int(self.resize * long / short))
        size = (self.resize, longer) if image.width <= image.height else (longer, self.resize)
        image = image.resize(size, self.resample)
        left, top = (image.width - self.crop) // 2, (image.height - self.crop) // 2
        return np.asarray(image.crop((left, top, left + self.crop, top + self.crop)))


def _side(size: Any) -> int | None:
    """A side from transformers' notations: 224, {"shortest_edge": 224}, {"height": 224, "width": 224}."""
    if isinstance(size, dict):
        size = size.get("shortest_edge", size.get("height"))
    return size if isinstance(size, int) else None
