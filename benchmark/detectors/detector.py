"""The contract of a detector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from overpaint.models.weights import weights_hashes

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

#: Columns of scores that are not labels.
OTHERS = ("features", "failed", "detections", "answers")


class Detector(ABC):
    """Scores images for concepts. The threshold belongs to the measurement, so that scores survive a change of
    threshold.

    A setting ``classes`` with the value ``null`` receives the concept set's own words: a mapping of labels to sentences.
    ``device`` is the device of the run; it is not a setting. ``version`` is raised when the scores can change. ``counted`` are
    the classes of boxes that figures of detections count, all if empty. A detector that knows its labels before it loads a
    network lists them as ``labels``, a property or a field.
    """

    version: ClassVar[int] = 1
    #: The settings that name weights: ``asset:NAME``, a folder, or a hub id.
    weights_in: ClassVar[tuple[str, ...]] = ("weights",)
    counted: ClassVar[tuple[str, ...]] = ()
    device = "cpu"

    def assets(self) -> dict[str, str]:
        """The name of every file that the detector needs, with its sha256.

        Raises `AssetMissing`, with the way to get the file, if one is missing.
        """
        found: dict[str, str] = {}
        for setting in self.weights_in:
            found |= weights_hashes(getattr(self, setting))
        return found

    def check(self) -> None:
        """Raise a `UserError` if the settings do not fit the weights. Called before anything runs; loads no network."""
        return

    @abstractmethod
    def score(self, images: Sequence[Image]) -> pd.DataFrame:
        """Score images: one row for each, in order.

        Columns are one for each label, with scores in [0, 1]; ``failed``, true where the image could not be scored;
        ``features``, lists of floats, if the detector has an embedding; ``detections`` and ``answers``, JSON, if it has
        boxes or texts. The scores of a failed image are NaN.
        """
