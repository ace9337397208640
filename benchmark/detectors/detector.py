"""The contract of a detector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image


class Detector(ABC):
    """Looks at images; its threshold belongs to the measurement, so that scores outlive a change of it."""

    version: ClassVar[int] = 1

    @abstractmethod
    def assets(self) -> dict[str, str]:
        """The files it needs and their sha256; raises `AssetMissing`, saying how to get one that is not there."""

    @abstractmethod
    def score(self, images: Sequence[Image]) -> pd.DataFrame:
        """One row an image, in order: one column a label with scores in [0, 1], ``features`` (a list of floats) where
        the detector has an embedding, and ``failed`` (true where no score could be had; its scores are then NaN)."""
