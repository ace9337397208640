"""Distances between two sets of pictures, from the features that a detector gives each of them.

All arithmetic is float64. The distances depend on the network, the resize and the reference far more than on the
formula, so compare them only inside one protocol, and FID only between sets of one size (its expectation falls with
1/n).

Intervals. A bootstrap of FID is biased upwards: repeated pictures shrink the covariance. Instead each of up to 20 groups of
prompts is left out in turn (delete-a-group jackknife, Kott 2001), which biases all of these values equally. The interval is
that of `overpaint.report.statistics.from_contributions`, with Student's t. What the reference pictures contribute is not in it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from overpaint.metrics.metric import Evidence, Figure, FrameName, Metric
from overpaint.metrics.outcomes import Tally
from overpaint.report import statistics
from overpaint.report.resampling import jackknife
from overpaint.report.statistics import Estimate

#: Fewer images have no FID: at 40 of them, even real pictures are 200 away from real pictures of the same world.
FID_IMAGES = 500
KID_ROWS = 5_000  # up to so many pictures a side KID uses every pair at once, beyond them random subsets


class KernelDistance(NamedTuple):
    """Mean of KID over its subsets, and their standard deviation (``None`` for one subset)."""

    mean: float
    deviation: float | None


def fid(x: NDArray, y: NDArray) -> float:
    """Fréchet distance of the Gaussians fitted to feature rows ``(n, d)`` and ``(m, d)`` (Heusel et al., arXiv
    1706.08500), as torchmetrics computes it: ``|μ_x − μ_y|² + tr S_x + tr S_y − 2 tr (S_x S_y)^½``, covariances over n − 1."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    x, y = _matrix(x), _matrix(y)
    if min(len(x), len(y)) < 2:
        raise ValueError("a covariance needs at least two images")
    middle = x.mean(axis=0)  # torchmetrics sums squares: a common shift changes no distance and keeps its digits
    metric = FrechetInceptionDistance(feature=_given(x.shape[1])).set_dtype(_double())
    return max(_computed(metric, x - middle, y - middle), 0.0)


def kid(x: NDArray, y: NDArray, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> KernelDistance:
    """Kernel distance: unbiased squared MMD under ``(x·y / d + 1)³`` (Bińkowski et al., arXiv 1801.01401), as torchmetrics
    computes it; it can be negative.

    The mean over ``subsets`` random subsets of ``subset_size`` rows of either side; a single subset takes the first rows.
    """
    import torch
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = _matrix(x), _matrix(y)
    size = min(subset_size, len(x), len(y))
    if subsets == 1:
        x, y = x[:size], y[:size]
    with warnings.catch_warnings():  # that it keeps all features in memory
        warnings.simplefilter("ignore", UserWarning)
        metric = KernelInceptionDistance(feature=_given(x.shape[1]), subsets=subsets, subset_size=size)
    for rows, real in ((x, True), (y, False)):
        metric.update(torch.from_numpy(rows), real=real)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return KernelDistance(float(mean), float(deviation) if subsets > 1 else None)


def _given(width: int):
    """A feature network for torchmetrics that takes features as they are, ``(n, width)``."""
    from torch.nn import Identity

    class Given(Identity):
        num_features = width

    return Given()


def _double():
    import torch

    return torch.float64


def _computed(metric, x: NDArray, y: NDArray) -> float:
    """A metric of torchmetrics, from features of two sets."""
    import torch

    for rows, real in ((x, True), (y, False)):
        metric.update(torch.from_numpy(rows), real=real)
    return float(metric.compute())


def cmmd(x: NDArray, y: NDArray, sigma: float = 10.0, scale: float = 1000.0) -> float:
    """CMMD (Jayasumana et al., arXiv 2401.09603): squared MMD under a Gaussian kernel, diagonals included, times
    1000.

    Meant for unit-length CLIP embeddings; the rows are taken as they come.
    """
    x, y = _matrix(x), _matrix(y)

    def kernel(a: NDArray, b: NDArray) -> float:
        squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :] - 2 * a @ b.T
        return float(np.exp(-np.maximum(squares, 0.0) / (2 * sigma**2)).mean())

    return scale * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))


class FeatureRows(NamedTuple):
    """Feature vectors ``(n, d)`` with the prompts ``(n,)`` and the (prompt, seed) keys that they belong to."""

    vectors: NDArray
    prompts: NDArray
    keys: pd.MultiIndex
    failed: int

    def of(self, prompts: NDArray) -> NDArray:
        """The vectors of these prompts."""
        return self.vectors[np.isin(self.prompts, prompts)]

    def at(self, keys: pd.MultiIndex) -> FeatureRows:
        """The rows with these keys, in their order."""
        place = self.keys.get_indexer(keys)
        return FeatureRows(self.vectors[place], self.prompts[place], keys, self.failed)


def feature_rows(frame: pd.DataFrame, column: str = "features") -> FeatureRows:
    """The usable features of a frame of images; an image without them, or with one that is no number, counts as failed."""
    if column not in frame:
        empty = pd.MultiIndex.from_arrays([[], []])
        return FeatureRows(np.empty((0, 0)), np.empty(0, dtype=str), empty, len(frame))
    usable = np.array([v is not None and bool(np.isfinite(np.asarray(v, float)).all()) for v in frame[column]], bool)
    if "failed" in frame:
        usable = usable & ~frame["failed"].to_numpy(bool)
    kept = frame[usable]
    prompts = kept["prompt_id"] if "prompt_id" in kept else pd.Series(range(len(kept)))
    seeds = kept["seed"] if "seed" in kept else pd.Series(np.zeros(len(kept), int))
    vectors = np.stack([np.asarray(v, float) for v in kept[column]]) if len(kept) else np.empty((0, 0))
    keys = pd.MultiIndex.from_arrays([prompts.to_numpy(), seeds.to_numpy()])
    return FeatureRows(vectors, prompts.astype(str).to_numpy(dtype=str), keys, int((~usable).sum()))


class FeatureDistance(Metric):
    """A distance of images to other pictures, of general prompts unless ``roles`` says otherwise; the base of all below."""

    facet = "utility"
    direction = "down"
    unit = "distance"
    aggregation = "all general prompts"
    needs_detector = True
    version = 4
    roles: ClassVar[tuple[str, ...]] = ("utility",)
    floor: ClassVar[float] = -math.inf
    least: ClassVar[int] = 2  # images a side below which the distance means nothing

    @staticmethod
    def distance(x: NDArray, y: NDArray) -> float:
        raise NotImplementedError

    def images(self, evidence: Evidence, frame: FrameName) -> pd.DataFrame:
        """The images of a frame that are compared: those of the metric's roles."""
        return evidence.images_of(*self.roles, frame=frame)

    def rows(self, evidence: Evidence, frame: FrameName) -> FeatureRows:
        """Features of the images: those of the extractor, or else of the detector."""
        return feature_rows(self.images(evidence, frame), self.features())

    @classmethod
    def features(cls) -> str:
        """The column with the features."""
        return f"{cls.extractor}.features" if cls.extractor else "features"

    def estimate(self, statistic: Callable[[NDArray], float], prompts: NDArray, floor: float) -> Estimate:
        """The statistic of all prompts with its jackknife interval, whose lower limit is at least ``floor``.

        Fewer than `statistics.FEWEST_PROMPTS` prompts have no interval. They are not left out in turn, because too few images
        for a distance could remain.
        """
        names = np.unique(prompts)
        value = statistic(names)
        if len(names) < statistics.FEWEST_PROMPTS:
            return Estimate(value)
        found = statistics.from_contributions(value, jackknife(statistic, prompts))
        return found if found.low is None else found._replace(low=max(found.low, floor))


class ReferenceDistance(FeatureDistance):
    """Distance to real pictures, beside the original model's."""

    def measure(self, evidence: Evidence) -> Figure:
        own, original = self.rows(evidence, "images"), self.rows(evidence, "original")
        count = Tally(len(own.vectors), own.failed)
        real = pd.DataFrame() if evidence.reference is None else evidence.reference
        reference = feature_rows(real, self.features()).vectors
        what = f"{' and '.join(self.roles)} images"
        why = count.refusal(evidence.failure_limit, what) or _too_few(len(own.vectors), what, self.least)
        why = why or _too_few(len(reference), "reference pictures", self.least)
        if why:
            return Figure(None, n=count.judged, failed=count.failed, why=why)
        value = self.estimate(lambda p: self.distance(own.of(p), reference), own.prompts, self.floor)
        figure = Figure(value.value, value.low, value.high, n=count.judged, failed=count.failed)
        unusable = Tally(len(original.vectors), original.failed).refusal(evidence.failure_limit, "original images")
        shared = own.keys.intersection(original.keys)
        if unusable or len(shared) < self.least or not (own.keys.is_unique and original.keys.is_unique):
            return figure
        here, there = own.at(shared), original.at(shared)
        gap = self.estimate(
            lambda p: self.distance(here.of(p), reference) - self.distance(there.of(p), reference),
            here.prompts,
            -math.inf,
        )
        return figure.compared(gap, original=self.distance(original.vectors, reference))


class OriginalDistance(FeatureDistance):
    """Distance to what the original model draws for the same prompts and seeds: how far the erasure moved the rest."""

    def measure(self, evidence: Evidence) -> Figure:
        own, original = self.rows(evidence, "images"), self.rows(evidence, "original")
        count = Tally(len(own.vectors), own.failed)
        why = count.refusal(evidence.failure_limit, "utility images")
        why = why or Tally(len(original.vectors), original.failed).refusal(evidence.failure_limit, "original images")
        if not why and not (own.keys.is_unique and original.keys.is_unique):
            why = "several images of one prompt and seed"
        shared = own.keys.intersection(original.keys)
        why = why or _too_few(len(shared), "images with an original of the same prompt and seed", self.least)
        if why:
            return Figure(None, n=count.judged, failed=count.failed, why=why)
        here, there = own.at(shared), original.at(shared)
        value = self.estimate(lambda p: self.distance(here.of(p), there.of(p)), here.prompts, self.floor)
        return Figure(value.value, value.low, value.high, n=len(shared), failed=count.failed)


class FidReference(ReferenceDistance):
    """FID to the reference pictures."""

    least = FID_IMAGES
    paper = "FID, arXiv 1706.08500"
    floor = 0.0
    distance = staticmethod(fid)


class FidOriginal(OriginalDistance):
    """FID to the original model's images (HUB's FID-SD)."""

    least = FID_IMAGES
    paper = "FID, arXiv 1706.08500"
    floor = 0.0
    distance = staticmethod(fid)


def full_kid(x: NDArray, y: NDArray) -> float:
    """KID over all pairs where the sets are small enough for that, over random subsets otherwise.

    torchmetrics takes as many pictures of one side as of the other; here every picture of both sides counts.
    """
    if max(len(x), len(y)) <= KID_ROWS:
        return _unbiased_mmd(_matrix(x), _matrix(y))
    return kid(x, y).mean


def paired_kid(x: NDArray, y: NDArray) -> float:
    """KID of pictures in pairs, rows ``(n, d)`` in one order: the U-statistic of Gretton et al. (2012, equation 4).

    A picture and its partner depend on each other, so that their similarity says nothing of the distributions and is left
    out: ``Σ_{i≠j} k(x_i, x_j) + k(y_i, y_j) − k(x_i, y_j) − k(x_j, y_i)`` over n (n − 1). It is 0 for equal sets.
    """
    x, y = _matrix(x), _matrix(y)
    if x.shape != y.shape or len(x) < 2:
        raise ValueError(f"pairs of at least two images are needed, got features {x.shape} and {y.shape}")
    if len(x) > KID_ROWS:
        chosen = np.random.default_rng(0).choice(len(x), KID_ROWS, replace=False)
        x, y = x[chosen], y[chosen]
    if np.array_equal(x, y):
        return 0.0
    across = _kernel(x, y)
    both = _kernel(x, x) + _kernel(y, y) - across - across.T
    return float((both.sum() - np.trace(both)) / (len(x) * (len(x) - 1)))


class KidReference(ReferenceDistance):
    """KID to the reference pictures: unbiased at any number of images."""

    paper = "KID, arXiv 1801.01401"
    distance = staticmethod(full_kid)


class KidOriginal(OriginalDistance):
    """KID to the unedited model's images of the same prompts and seeds, in pairs; 0 for an erasure that leaves them alone."""

    paper = "KID, arXiv 1801.01401; Gretton et al. 2012"
    aggregation = "all general prompts, pairs left out of the cross term"
    distance = staticmethod(paired_kid)


class InceptionFidReference(FidReference):
    """FID to the reference pictures on Inception features, as published tables print it."""

    version = 1
    extractor = "inception"
    extracted = ("images", "original", "reference")


class InceptionFidOriginal(FidOriginal):
    """FID to the unedited model's images on Inception features (HUB's FID-SD)."""

    version = 1
    extractor = "inception"


class InceptionKidReference(KidReference):
    """KID to the reference pictures on Inception features."""

    version = 1
    extractor = "inception"
    extracted = ("images", "original", "reference")


def unit_cmmd(x: NDArray, y: NDArray) -> float:
    """CMMD of embeddings (n, d) and (m, d) after scaling each to length 1, as the paper's encoder does."""
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (_matrix(x), _matrix(y)))
    return cmmd(x, y)


class CmmdReference(ReferenceDistance):
    """CMMD to the reference pictures: squared MMD of CLIP embeddings, times 1000; it is meaningful for fewer images than FID."""

    version = 1
    paper = "CMMD, arXiv 2401.09603"
    extractor = "mmd"
    extracted = ("images", "original", "reference")
    distance = staticmethod(unit_cmmd)


class CmmdOriginal(OriginalDistance):
    """CMMD to the unedited model's images of the same prompts and seeds."""

    version = 1
    paper = "CMMD, arXiv 2401.09603"
    extractor = "mmd"
    distance = staticmethod(unit_cmmd)


def _matrix(rows_: NDArray) -> NDArray:
    matrix = np.asarray(rows_, dtype=np.float64)
    if matrix.ndim != 2 or len(matrix) == 0:
        raise ValueError(f"features must be (images, width) with at least one image, got shape {matrix.shape}")
    return matrix


def _kernel(a: NDArray, b: NDArray) -> NDArray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _unbiased_mmd(x: NDArray, y: NDArray) -> float:
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError("the unbiased kernel distance needs at least two images a side")
    xx, yy = _kernel(x, x), _kernel(y, y)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * _kernel(x, y).mean())


def _too_few(count: int, what: str, least: int) -> str:
    """Why so few images have no distance, or an empty string."""
    return f"{count} {what}: this distance needs at least {least}" if count < least else ""
