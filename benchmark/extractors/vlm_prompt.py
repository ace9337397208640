"""A vision-language model that is asked whether an image shows its prompt, as HUB judges the nouns of its pinpoint prompts.

The question, the answers and the numerics are those of `overpaint.detectors.vlm`, without reference images. HUB also shows three
images of the unedited model for the same prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import pandas as pd

from overpaint.detectors.vlm import VLM, answer_score
from overpaint.extractors.extractor import Extractor
from overpaint.grid.typed import Positive

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(kw_only=True)
class VLMPrompt(Extractor):
    """``value`` is 1 if the answer is yes, 0 for another word, and NaN for an answer without a final word."""

    weights: str
    question: str
    tokens: Positive
    compat: Literal["intended", "official"]

    def __post_init__(self):
        self._asked()  # checks the settings

    def _asked(self) -> VLM:
        return VLM(
            weights=self.weights,
            classes=None,
            question=self.question,
            references=None,
            tokens=self.tokens,
            compat=self.compat,
        )

    @cached_property
    def _vlm(self) -> VLM:
        made = self._asked()
        made.device = self.device
        return made

    def assets(self) -> dict[str, str]:
        return self._asked().assets()

    def extract(
        self, images: Sequence[Image], prompts: Sequence[str], originals: Sequence[Image] | None = None
    ) -> pd.DataFrame:
        answers = [self._vlm.ask(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        return pd.DataFrame({"value": pd.Series([answer_score(a, self.compat) for a in answers], dtype=float)})
