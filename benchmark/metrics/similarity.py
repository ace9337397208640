"""How far a general prompt's picture is from the unedited model's picture of the same noise, picture by picture.

Distances of distributions need hundreds of pictures; a pair of pictures needs none but itself, so that these figures serve at
every budget. Pixels are not the scoring detector's features: an eraser that fools the detector does not fool them. The
score stage compares the pictures (`similarity`) and stores two columns; metrics read those.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
import pandas as pd

from overpaint.metrics.metric import Evidence, Figure, Metric
from overpaint.metrics.outcomes import clusters, has_readings, tally_of
from overpaint.report import statistics
from overpaint.report.statistics import Estimate

if TYPE_CHECKING:
    from PIL.Image import Image

#: Columns of `similarity`, which the images frame of an `Evidence` holds for general prompts.
COLUMNS = ("mse_original", "ssim_original")


def similarity(images: Sequence[Image | None], originals: Sequence[Image | None]) -> pd.DataFrame:
    """`COLUMNS`, one row a pair: mean squared error of pixels in [0, 1] and SSIM (Wang et al. 2004, as torchmetrics computes
    it: Gaussian window of 11 pixels, σ 1.5). NaN where one of the two failed.

    Raises `ValueError` where the lists or the sizes of a pair differ.
    """
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    rows = []
    for image, original in zip(images, originals, strict=True):
        if image is None or original is None:
            rows.append((math.nan, math.nan))
            continue
        if image.size != original.size:
            raise ValueError(f"pictures of one noise differ in size: {image.size} and {original.size}")
        a, b = (
            torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32) / 255).permute(2, 0, 1)[None]
            for picture in (image, original)
        )
        similar = cast("torch.Tensor", ssim(a, b, data_range=1.0))  # a tuple only if more is asked for
        rows.append((float(((a - b) ** 2).mean()), float(similar)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


class OriginalSimilarity(Metric):
    """Mean over general prompts of a comparison with the unedited model's picture; the base of the two below."""

    facet = "utility"
    direction = "up"
    aggregation = "mean over pictures, prompts as clusters"
    roles = ("utility",)
    tasks = ("similarity",)
    column: ClassVar[str]

    @classmethod
    def relevant(cls, evidence: Evidence) -> bool:
        return has_readings(evidence.images, cls.column)

    def measure(self, evidence: Evidence) -> Figure:
        frame = evidence.images_of(*self.roles)
        if self.column not in frame:
            return Figure(None, why="no picture was compared with the unedited model's")
        values = pd.to_numeric(frame[self.column], errors="coerce").mask(frame["failed"].astype(bool))
        count = tally_of(values)
        figure = Figure(None, n=count.judged, failed=count.failed)
        if why := count.refusal(evidence.failure_limit, "utility images"):
            return replace(figure, why=why)
        return self.figure(statistics.mean(values, clusters(frame)), figure)

    @abstractmethod
    def figure(self, mean: Estimate, figure: Figure) -> Figure:
        """The figure from the column's mean."""


class SsimOriginal(OriginalSimilarity):
    """SSIM to the unedited model's picture of the same prompt and noise; 1 is the same picture."""

    unit = "similarity"
    paper = "SSIM, Wang et al. 2004"
    column = "ssim_original"

    def figure(self, mean: Estimate, figure: Figure) -> Figure:
        high = None if mean.high is None else min(mean.high, 1.0)
        return replace(figure, value=mean.value, low=mean.low, high=high)


class PsnrOriginal(OriginalSimilarity):
    """Peak signal-to-noise ratio of the mean squared error to the unedited model's picture; undefined for equal pictures.

    The interval is that of the mean squared error on a logarithmic scale (delta method).
    """

    unit = "dB"
    paper = "PSNR"
    column = "mse_original"

    def figure(self, mean: Estimate, figure: Figure) -> Figure:
        if not mean.value:
            return replace(figure, why="the pictures equal the unedited model's: their PSNR is infinite")
        value = -10 * math.log10(mean.value)
        if mean.high is None:
            return replace(figure, value=value)
        reach = 10 / math.log(10) * (mean.high - mean.value) / mean.value
        return replace(figure, value=value, low=value - reach, high=value + reach)
