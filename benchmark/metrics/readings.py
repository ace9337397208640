"""Means of a number that each image has: a rating, a similarity, a distance to the unedited model's image.

The interval is Student's t over clusters of images (`overpaint.report.statistics.mean`), and so is that of the difference to the
unedited model, over images of the same prompts and seeds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pandas as pd

from overpaint.metrics.metric import Evidence, Figure, FrameName, Metric
from overpaint.metrics.outcomes import clusters, refusals, tally_of
from overpaint.report import statistics
from overpaint.report.statistics import Estimate


class MeanReading(Metric):
    """Mean over images of a column that an extractor made, compared with the unedited model's images."""

    aggregation = "mean over images, prompts as clusters"
    column: ClassVar[str]
    compared: ClassVar[tuple[FrameName, FrameName]] = ("images", "original")
    originals: ClassVar[bool] = True  # whether the unedited model's images have the number too

    def values(self, frame: pd.DataFrame, evidence: Evidence) -> pd.Series:
        """The number of each image of a frame; NaN if it has none."""
        return pd.to_numeric(frame[self.column], errors="coerce")

    def numbers(self, evidence: Evidence, frame: FrameName) -> pd.DataFrame:
        """The images of this metric's roles with their numbers in ``value``; NaN if an image failed."""
        images = evidence.images_of(*self.roles, frame=frame)
        if images.empty or self.column not in images:
            return images[["prompt_id", "seed"]].assign(cluster="", value=np.nan)
        values = self.values(images, evidence).mask(images["failed"].astype(bool))
        return images[["prompt_id", "seed"]].assign(cluster=clusters(images), value=values)

    def measure(self, evidence: Evidence) -> Figure:
        own = self.numbers(evidence, self.compared[0])
        count = tally_of(own["value"])
        figure = Figure(None, n=count.judged, failed=count.failed)
        if why := count.refusal(evidence.failure_limit, f"{'/'.join(self.roles)} images"):
            return replace(figure, why=why)
        figure = figure.estimated(statistics.mean(own["value"], own["cluster"]))
        if self.unit == "fraction":
            figure = replace(figure, low=_clipped(figure.low), high=_clipped(figure.high))
        if not self.originals:
            return figure
        other = self.numbers(evidence, self.compared[1])
        if tally_of(other["value"]).refusal(evidence.failure_limit, "original images"):
            return figure
        pairs = own.merge(other, on=["prompt_id", "seed"], suffixes=("", "_other"))
        gap = statistics.mean(pairs["value"] - pairs["value_other"], pairs["cluster"])
        return figure.compared(gap, original=statistics.mean(other["value"]).value)


def compared_means(metric: Metric, parts: tuple[MeanReading, MeanReading], evidence: Evidence) -> Figure:
    """The mean of one reading minus the mean of another one, of different images."""
    tables = [part.numbers(evidence, "images") for part in parts]
    counts = {f"{'/'.join(part.roles)} images": tally_of(t["value"]) for part, t in zip(parts, tables, strict=True)}
    figure = Figure(None, n=sum(c.judged for c in counts.values()), failed=sum(c.failed for c in counts.values()))
    if why := refusals(counts, evidence.failure_limit):
        return replace(figure, why=why)
    own = _gap(tables)
    figure = figure.estimated(own)
    others = [part.numbers(evidence, "original") for part in parts]
    if any(tally_of(other["value"]).refusal(evidence.failure_limit, "original") for other in others):
        return figure
    original = _gap(others)
    return figure.compared(statistics.difference_of_estimates(own, original), original=original.value)


def _gap(tables: list[pd.DataFrame]) -> Estimate:
    return statistics.difference_of_estimates(*(statistics.mean(t["value"], t["cluster"]) for t in tables))


def _clipped(limit: float | None) -> float | None:
    return None if limit is None else min(max(limit, 0.0), 1.0)


class Aesthetic(MeanReading):
    """Mean aesthetic score of the target prompts' images, about 1 to 10 (HUB).

    HUB's released script writes the last image's score in place of the mean.
    """

    facet = "utility"
    direction = "up"
    unit = "score"
    paper = "HUB, arXiv 2410.05664; LAION aesthetic predictor"
    roles = ("target",)
    extractor = "aesthetic"
    column = "aesthetic.value"


class Preference(MeanReading):
    """Mean human-preference score of ordinary prompts' images with their prompt, by PickScore unless ``metrics.extractors`` says
    otherwise."""

    facet = "utility"
    direction = "up"
    unit = "score"
    paper = "HUB, arXiv 2410.05664; PickScore, arXiv 2305.01569"
    roles = ("utility",)
    extractor = "preference"
    column = "preference.value"


class ImageReward(Preference):
    """Mean ImageReward of ordinary prompts' images with their prompt (HUB)."""

    paper = "HUB, arXiv 2410.05664; ImageReward, arXiv 2304.05977"
    extractor = "image_reward"
    column = "image_reward.value"


class HumanPreferenceScore(Preference):
    """Mean HPS v2 of ordinary prompts' images with their prompt: 100 cos in a space that was trained on preferences."""

    unit = "100 cos"
    paper = "HPS v2, arXiv 2306.09341"
    extractor = "hps"
    column = "hps.value"


class PerceptualDistance(MeanReading):
    """Mean LPIPS to the unedited model's image of the same prompt and noise; the base of the two below."""

    unit = "LPIPS"
    extractor = "perceptual"
    column = "perceptual.value"
    originals = False

    @classmethod
    def relevant(cls, evidence: Evidence) -> bool:
        return cls.extractor in evidence.absent or cls.column in evidence.images


class ErasedLpips(PerceptualDistance):
    """LPIPS_e: on the target prompts; larger means that the erased concept's images changed more."""

    facet = "efficacy"
    direction = "up"
    paper = "UCE, arXiv 2308.14761"
    roles = ("target",)


class RetainedLpips(PerceptualDistance):
    """LPIPS_u: on the neighbours' prompts; smaller means that other concepts' images stayed."""

    facet = "specificity"
    direction = "down"
    paper = "UCE, arXiv 2308.14761"
    roles = ("near",)


class CopySimilarity(PerceptualDistance):
    """Mean cosine of SSCD descriptors with the unedited model's image of the same prompt and noise; the base of the two below.

    From about 0.5 on, one image is a copy of the other.
    """

    unit = "cosine"
    paper = "SSCD, arXiv 2202.10261; CA, arXiv 2303.13516, for memorised images"
    extractor = "copy"
    column = "copy.value"


class ErasedCopies(CopySimilarity):
    """Copy similarity on the target prompts: whether the edited model still makes the unedited model's images."""

    facet = "efficacy"
    direction = "down"
    roles = ("target",)


class RetainedCopies(CopySimilarity):
    """Copy similarity on the neighbours' prompts."""

    facet = "specificity"
    direction = "up"
    roles = ("near",)
