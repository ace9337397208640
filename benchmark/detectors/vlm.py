"""A vision-language model that is asked whether an image shows a concept, as HUB judges styles and characters.

It sees up to three reference images of the concept, if there are any, and the image in question (`overpaint.blocks.questions`).
Only ``yes`` counts as present. HUB samples the answers; here, decoding is greedy. Unlike other detectors, the model computes in
the precision of its weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from overpaint.blocks.questions import Asking, answer_score
from overpaint.detectors.detector import Detector
from overpaint.detectors.network import score_frame
from overpaint.errors import UserError
from overpaint.grid.digests import IMAGE_SUFFIXES
from overpaint.models.weights import weights_hashes, weights_path

if TYPE_CHECKING:
    from PIL.Image import Image

#: Reference images of one concept.
REFERENCES = 3


@dataclass(kw_only=True)
class VLM(Asking, Detector):
    """One label for each class. An answer without a final word is unknown: the image has failed. ``answers`` keeps all texts."""

    classes: dict[str, str] | None
    references: str | None

    @property
    def labels(self) -> Sequence[str]:
        return list(self.classes or ())

    def assets(self) -> dict[str, str]:
        pictures = [file for label in self.classes or () for file in self._files(label)]
        return weights_hashes(self.weights) | {
            f"{file.parent.name}/{file.name}": digest
            for file in pictures
            for digest in weights_hashes(str(file)).values()
        }

    def score(self, images: Sequence[Image]) -> pd.DataFrame:
        if not self.classes:
            raise UserError(
                "detector=vlm needs classes: set them in its YAML, or use it with a set of concepts of one kind"
            )
        said = [{label: self.ask(image, label) for label in self.classes} for image in images]
        rows = [[answer_score(text, self.compat) for text in answers.values()] for answers in said]
        frame = score_frame(np.array(rows, np.float32) if rows else None, self.labels, [])
        frame["answers"] = pd.Series([json.dumps(answers, ensure_ascii=False) for answers in said], dtype=str)
        return frame

    def ask(self, image: Image, label: str) -> str:
        """The model's answer about one image and one class."""
        return self.answer([*self._references(label), image.convert("RGB")], label)

    def _files(self, label: str) -> list[Path]:
        if self.references is None:
            return []
        folder = weights_path(self.references) / label
        files = sorted(file for file in folder.glob("*") if file.suffix.lower() in IMAGE_SUFFIXES)[:REFERENCES]
        if not files:
            raise UserError(f"references={self.references} has no images in the folder {label}")
        return files

    def _references(self, label: str) -> list[Image]:
        from PIL import Image

        return [Image.open(file).convert("RGB") for file in self._files(label)]
