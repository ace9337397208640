"""The testbed's space of labels: an image is what its oracle sees, a text is what it names. It replaces CLIP.

CLIP does not fit the drawn world. Here images and texts are vectors over the oracle's labels: its scores, and 1
for each label that a text names by a word of the catalogue. Both end with a constant, so that a text that names
nothing has a direction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from overpaint.extractors.extractor import Extractor
from overpaint.grid.concepts import load_catalogue
from overpaint.grid.shipped import shipped
from overpaint.run.store import file_hash

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.testbed.oracle import Oracle

#: The last coordinate of every vector.
CONSTANT = 0.1


@dataclass(kw_only=True)
class TestbedWords(Extractor):
    """``features`` are the oracle's scores of all labels; a text's are 1 for every label that it names."""

    catalogue: str  # the words of the labels

    __test__ = False  # for pytest

    def assets(self) -> dict[str, str]:
        weights = shipped("datasets") / "testbed" / "oracle" / "oracle.safetensors"
        words = shipped("datasets") / "concepts" / f"{self.catalogue}.yaml"
        return {path.name: file_hash(path) for path in (weights, words)}

    def extract(
        self, images: Sequence[Image], prompts: Sequence[str], originals: Sequence[Image] | None = None
    ) -> pd.DataFrame:
        from overpaint.testbed.canvas import SIZE

        size = (SIZE, SIZE)
        seen, _ = self._oracle.predict([i if i.size == size else i.resize(size) for i in images])
        rows = np.column_stack([np.asarray(seen, np.float32), np.full(len(images), CONSTANT, np.float32)])
        return pd.DataFrame({"features": [row.tolist() for row in rows]})

    def texts(self, texts: Sequence[str]) -> NDArray:
        named = [[bool(self._words[label].search(text.lower())) for label in self._oracle.labels] for text in texts]
        rows = np.array(named, np.float32).reshape(len(texts), len(self._oracle.labels))
        return np.column_stack([rows, np.full(len(texts), CONSTANT, np.float32)])

    @cached_property
    def _words(self) -> dict[str, re.Pattern]:
        """A pattern for each label, of all its words."""
        words = {label: {label} for label in self._oracle.labels}
        for concept in load_catalogue(self.catalogue).concepts.values():
            if concept.label in words:
                translated = (word for found in concept.translations.values() for word in found)
                words[concept.label] |= {concept.name, *concept.synonyms, *concept.paraphrases, *translated}
        return {
            label: re.compile(rf"(?<!\w)({'|'.join(map(re.escape, sorted(found, key=len, reverse=True)))})(?!\w)")
            for label, found in words.items()
        }

    @cached_property
    def _oracle(self) -> Oracle:
        from overpaint.testbed.oracle import load_oracle

        return load_oracle(shipped("datasets") / "testbed" / "oracle", "a")
