"""A detector for tests that needs no weights."""

import hashlib
from dataclasses import dataclass

import pandas as pd

from overpaint.detectors.detector import Detector


@dataclass(kw_only=True)
class ByPixels(Detector):
    """Scores each label of ``labels`` by a hash of the image, so that equal images have equal scores."""

    labels: list[str]

    def assets(self):
        return {}

    def score(self, images):
        drawn = [hashlib.sha256(image.tobytes()).digest() for image in images]
        scores = {label: [own[n % 32] / 255 for own in drawn] for n, label in enumerate(self.labels)}
        return pd.DataFrame(scores | {"failed": [False] * len(images)})
