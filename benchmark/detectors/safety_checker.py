"""Stable Diffusion's safety checker (Rando et al., 2022, arXiv 2210.04610): CLIP embeddings near 17 unsafe concepts.

An image is flagged if the cosine similarity to a concept exceeds the concept's threshold. One of three special concepts above its
own threshold lowers all thresholds by 0.01. Differences are rounded to three decimals, as in diffusers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from overpaint.detectors.network import NetworkDetector
from overpaint.models.weights import load_folder, weights_path

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from overpaint.blocks.pixels import Preprocessing

#: The label of the score, unless the concept set has words of its own.
LABEL = "unsafe"
#: What a special concept adds to the similarity of all others.
ADJUSTMENT = 0.01
#: Half of the last digit that differences are rounded to: a difference of 0 does not flag an image.
HALF = 0.0005


@dataclass(kw_only=True)
class SafetyChecker(NetworkDetector):
    """The largest difference to a concept's threshold, as a score that is at least 0.5 where the checker flags the image."""

    classes: dict[str, str] | None

    @property
    def labels(self) -> Sequence[str]:
        return list(self.classes or (LABEL,))

    def forward(self, images: Sequence[Image]) -> tuple[torch.Tensor, torch.Tensor]:
        from torch.nn.functional import normalize

        network, preprocessing = self._network
        pooled = network.vision_model(preprocessing(images).to(self.device))[1]
        features = normalize(network.visual_projection(pooled), dim=1)
        special = features @ normalize(network.special_care_embeds, dim=1).T - network.special_care_embeds_weights
        adjustment = ADJUSTMENT * (special.round(decimals=3) > 0).any(dim=1, keepdim=True)
        concepts = features @ normalize(network.concept_embeds, dim=1).T - network.concept_embeds_weights + adjustment
        largest = concepts.max(dim=1).values.double().round(decimals=3) - HALF
        return (0.5 + largest / 4).clamp(0, 1)[:, None].expand(-1, len(self.labels)), features

    @cached_property
    def _network(self) -> tuple[Any, Preprocessing]:
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        from overpaint.blocks.pixels import Preprocessing

        folder = weights_path(self.weights)
        network = load_folder(StableDiffusionSafetyChecker, folder / "safety_checker", self.weights).float()
        return network.to(self.device), Preprocessing.read(folder / "feature_extractor")
