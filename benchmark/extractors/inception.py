"""Inception v3 of the original FID, as torch-fidelity computes it: 8-bit images, TensorFlow's bilinear resize to 299."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from overpaint.errors import UserError
from overpaint.extractors.extractor import Extractor, alike, hashes, named_path
from overpaint.models.weights import single_precision

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(kw_only=True)
class Inception(Extractor):
    """``features`` are the 2048 values of the last pooling layer, from the network and weights that torchmetrics also uses."""

    weights: str  # a safetensors file of the network's tensors, or asset:NAME/FILE

    def assets(self) -> dict[str, str]:
        return hashes(self.weights)

    def extract(
        self, images: Sequence[Image], prompts: Sequence[str], originals: Sequence[Image] | None = None
    ) -> pd.DataFrame:
        import torch

        rows: list[list[float]] = [[] for _ in images]
        with single_precision():
            for places in alike(images):  # photographs of a reference differ in size
                pixels = np.stack([np.asarray(images[place].convert("RGB"), np.uint8) for place in places])
                (found,) = self._network(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device))
                for place, row in zip(places, found.flatten(1).cpu().tolist(), strict=True):
                    rows[place] = row
        return pd.DataFrame({"features": rows})

    @cached_property
    def _network(self):
        import torch
        from safetensors.torch import load_file

        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise UserError("extractor=inception needs torch-fidelity: pip install 'overpaint[metrics]'") from None
        with tempfile.TemporaryDirectory() as folder:  # torch-fidelity reads PyTorch files only
            copied = Path(folder) / "inception.pth"
            torch.save(load_file(named_path(self.weights)), copied)
            return FeatureExtractorInceptionV3("inception", ["2048"], str(copied)).to(self.device)
