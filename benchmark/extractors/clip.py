"""CLIP: embeddings of images and texts in one space, and ratings by CLIP models that were trained on preferences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors.numpy import load_file

from overpaint.extractors.extractor import Extractor, batched, hashes, named_path
from overpaint.models.weights import single_precision

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.blocks.clip import Clip


@dataclass(kw_only=True)
class ClipFeatures(Extractor):
    """``features`` are the projected embeddings, not normalised. Over-long texts are truncated to the model's tokens.

    Embeddings come from transformers' CLIP model itself and not from torchmetrics' ``CLIPScore``, which fails with
    transformers 5, takes no folder, and clamps scores at 0.
    """

    path: str  # a folder in transformers' layout, or asset:NAME

    def assets(self) -> dict[str, str]:
        return hashes(self.path)

    def extract(
        self, images: Sequence[Image], prompts: Sequence[str], originals: Sequence[Image] | None = None
    ) -> pd.DataFrame:
        return pd.DataFrame({"features": [row.tolist() for row in self.embedded(images)]})

    def embedded(self, images: Sequence[Image]) -> NDArray:
        """Features (n, d) of images."""
        with single_precision():
            parts = [self._clip.image_features(images[part]).float().cpu().numpy() for part in batched(len(images))]
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)

    def texts(self, texts: Sequence[str]) -> NDArray:
        return self._clip.text_features(texts).float().cpu().numpy()

    @cached_property
    def _clip(self) -> Clip:
        import torch

        from overpaint.blocks.clip import Clip

        return Clip.load(str(named_path(self.path)), torch.device(self.device))


@dataclass(kw_only=True)
class ClipRating(ClipFeatures):
    """``value`` is the logit of an image and its prompt: 100 × cosine, for the usual scale of 100.

    PickScore v1 (Kirstain et al., arXiv 2305.01569) is such a model. `overpaint.extractors.hps` reads HPS v2.
    """

    def extract(
        self, images: Sequence[Image], prompts: Sequence[str], originals: Sequence[Image] | None = None
    ) -> pd.DataFrame:
        if not images:
            return pd.DataFrame({"value": pd.Series(dtype=float)})
        scale = float(self._clip.model.logit_scale.exp())
        return pd.DataFrame({"value": scale * cosines(self.embedded(images), self.texts(prompts))})


@dataclass(kw_only=True)
class Aesthetic(ClipFeatures):
    """``value`` is LAION's aesthetic score, about 1 to 10: a stack of linear layers on the unit-length CLIP ViT-L/14 embedding.

    The head ``sac+logos+ava1-l14-linearMSE`` has no activations between its layers, and dropout that is off here.
    """

    head: str  # a file of the head's tensors, or asset:NAME/FILE

    def assets(self) -> dict[str, str]:
        return hashes(self.path, self.head)

    def extract(
        self, images: Sequence[Image], prompts: Sequence[str], originals: Sequence[Image] | None = None
    ) -> pd.DataFrame:
        if not images:
            return pd.DataFrame({"value": pd.Series(dtype=float)})
        rows = unit(self.embedded(images))
        for weight, bias in self._layers:
            rows = rows @ weight.T + bias
        return pd.DataFrame({"value": rows[:, 0]})

    @cached_property
    def _layers(self) -> list[tuple[NDArray, NDArray]]:
        tensors = {name: value.astype(np.float64) for name, value in load_file(named_path(self.head)).items()}
        places = sorted({int(name.split(".")[1]) for name in tensors})
        return [(tensors[f"layers.{place}.weight"], tensors[f"layers.{place}.bias"]) for place in places]


def unit(rows: NDArray) -> NDArray:
    """Rows (n, d) scaled to length 1, in float64."""
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def cosines(one: NDArray, other: NDArray) -> NDArray:
    """Cosines (n,) of aligned rows (n, d)."""
    return (unit(one) * unit(other)).sum(axis=-1)
