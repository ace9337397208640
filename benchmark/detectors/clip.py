"""Zero-shot classification by CLIP (Radford et al., ICML 2021) over a concept set's own words.

With f(x) the image embedding (1, d) and e_c the text embedding of a class's sentence, both of unit length, the logits are

    l_c = s ⟨f(x), e_c⟩            s = exp(logit_scale), 100 for OpenAI's models

MACE's script averages the softmax over ten classes and calls it accuracy; ``scores: probability`` returns it. Classes compete
with each other only: an image that shows none of them is assigned to one all the same. A single class competes with ``neutral``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from overpaint.detectors.network import NetworkDetector, Scores, class_scores
from overpaint.errors import UserError
from overpaint.models.weights import weights_path

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from overpaint.blocks.clip import Clip


@dataclass(kw_only=True)
class ClipDetector(NetworkDetector):
    """One label for each class, and the image embedding as features."""

    classes: dict[str, str] | None
    neutral: str
    scores: Scores

    @property
    def labels(self) -> Sequence[str]:
        if not self.classes:
            raise UserError(
                "detector=clip needs classes: set them in its YAML, or use it with a set of concepts of one kind"
            )
        return list(self.classes)

    def forward(self, images: Sequence[Image]) -> tuple[torch.Tensor, torch.Tensor]:
        from torch.nn.functional import normalize

        features = normalize(self._clip.image_features(images), dim=1)
        logits = self._clip.model.logit_scale.exp() * features @ self._sentences.T
        return class_scores(logits, self.scores)[:, : len(self.labels)], features

    @cached_property
    def _clip(self) -> Clip:
        import torch

        from overpaint.blocks.clip import Clip

        return Clip.load(str(weights_path(self.weights)), torch.device(self.device))

    @cached_property
    def _sentences(self) -> torch.Tensor:
        """Unit embeddings (classes, d) of the sentences; the neutral one is last."""
        from torch.nn.functional import normalize

        sentences = [(self.classes or {})[label] for label in self.labels]
        return normalize(
            self._clip.text_features([*sentences, *([self.neutral] if len(sentences) == 1 else [])]), dim=1
        )
