"""A vision-language model that is asked whether an image shows its prompt, as HUB judges the nouns of its pinpoint prompts.

HUB also shows three images of the unedited model for the same prompt; here there are no reference images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from overpaint.blocks.questions import Asking, answer_score
from overpaint.extractors.extractor import Extractor
from overpaint.models.weights import weights_hashes

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(kw_only=True)
class VLMPrompt(Asking, Extractor):
    """``value`` is 1 if the answer is yes, 0 for another word, and NaN for an answer without a final word."""

    def assets(self) -> dict[str, str]:
        return weights_hashes(self.weights)

    def extract(
        self, images: Sequence[Image], prompts: Sequence[str], originals: Sequence[Image] | None = None
    ) -> pd.DataFrame:
        answers = [self.answer([image.convert("RGB")], prompt) for image, prompt in zip(images, prompts, strict=True)]
        return pd.DataFrame({"value": pd.Series([answer_score(a, self.compat) for a in answers], dtype=float)})
