"""The contract of a detector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image


class Detector(ABC):
    """Scores images for concepts. The threshold belongs to the measurement, so that scores survive a change of
    threshold.

    ``version`` is raised when the scores can change.
    """

    version: ClassVar[int] = 1

    @abstractmethod
    def assets(self) -> dict[str, str]:
        """The name of every file that the detector needs, with its sha256.

        Raises `AssetMissing`, with the way to get the file, if one is missing.
        """

    @abstractmethod
    def score(self, images: Sequence[Image]) -> pd.DataFrame:
        """Score images: one row for each, in order.

        Columns are one for each label, with scores in [0, 1]; ``features``, lists of floats, if the detector has an
        embedding; and ``failed``, true where the image could not be scored. The scores of a failed image are NaN.
        """
