"""Distances between two sets of pictures, from the features that a detector gives each of them.

All arithmetic is float64. The distances depend on the network, the resize and the reference far more than on the
formula, so compare them only inside one protocol, and FID only between sets of one size (its expectation falls with
1/n).

Intervals. A bootstrap of FID is biased upwards: repeated pictures shrink the covariance. Instead the prompts are
split into two disjoint halves several times. The two halves' values F1 and F2 are equally biased, their difference
has four times the variance of the full value, and so the standard error is the root mean square of F1 - F2 over 2.
What the reference pictures contribute is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from overpaint.metrics.metric import Evidence, Figure, Metric
from overpaint.metrics.outcomes import Tally
from overpaint.report.statistics import Estimate

SPLITS = 10
KID_ROWS = 5_000  # up to so many pictures a side KID uses every pair at once, beyond them random subsets


class KernelDistance(NamedTuple):
    """Mean of KID over its subsets, and their standard deviation (``None`` for one subset)."""

    mean: float
    deviation: float | None


def fid(x: NDArray, y: NDArray) -> float:
    """Frechet distance of the Gaussians fitted to feature rows ``(n, d)`` and ``(m, d)`` (Heusel et al., arXiv
    1706.08500).

    ``|mu_x - mu_y|^2 + tr S_x + tr S_y - 2 tr (S_x S_y)^(1/2)``, covariances over n - 1. With centred rows
    ``S_x = X'X``, the last trace is the sum of the singular values of ``X Y'``: real and exact, however singular the
    covariances are.
    """
    x, y = _matrix(x), _matrix(y)
    gap = x.mean(axis=0) - y.mean(axis=0)
    a, b = _root(x), _root(y)
    overlap = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return max(float(gap @ gap + (a * a).sum() + (b * b).sum() - 2 * overlap), 0.0)


def kid(x: NDArray, y: NDArray, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> KernelDistance:
    """Kernel distance: unbiased squared MMD under ``(x.y / d + 1)^3`` (Binkowski et al., arXiv 1801.01401), can be
    negative.

    The mean over ``subsets`` random subsets of ``subset_size`` rows of either side; a single subset takes the first
    rows.
    """
    x, y = _matrix(x), _matrix(y)
    size = min(subset_size, len(x), len(y))
    if subsets == 1:
        return KernelDistance(_unbiased_mmd(x[:size], y[:size]), None)
    rng = np.random.default_rng(seed)
    values = [
        _unbiased_mmd(x[rng.choice(len(x), size, replace=False)], y[rng.choice(len(y), size, replace=False)])
        for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(values)), float(np.std(values)))


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


def half_split_error(
    statistic: Callable[[NDArray], float], clusters: NDArray, splits: int = SPLITS, seed: int = 0
) -> float | None:
    """Standard error of ``statistic(clusters)`` from disjoint halves of its clusters: rms(F1 - F2) / 2."""
    names = np.unique(clusters)
    if len(names) < 4:
        return None
    rng = np.random.default_rng(seed)
    gaps = []
    for _ in range(splits):
        shuffled = rng.permutation(names)
        middle = len(names) // 2
        gaps.append(statistic(shuffled[:middle]) - statistic(shuffled[middle : 2 * middle]))
    return float(np.sqrt(np.mean(np.square(gaps))) / 2)


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


def feature_rows(frame: pd.DataFrame) -> FeatureRows:
    """The usable features of a frame of images; an image without them, or with one that is no number, counts as failed."""
    if "features" not in frame:
        empty = pd.MultiIndex.from_arrays([[], []])
        return FeatureRows(np.empty((0, 0)), np.empty(0, dtype=str), empty, len(frame))
    usable = np.array(
        [v is not None and bool(np.isfinite(np.asarray(v, float)).all()) for v in frame["features"]], bool
    )
    if "failed" in frame:
        usable = usable & ~frame["failed"].to_numpy(bool)
    kept = frame[usable]
    prompts = kept["prompt_id"] if "prompt_id" in kept else pd.Series(range(len(kept)))
    seeds = kept["seed"] if "seed" in kept else pd.Series(np.zeros(len(kept), int))
    vectors = np.stack([np.asarray(v, float) for v in kept["features"]]) if len(kept) else np.empty((0, 0))
    keys = pd.MultiIndex.from_arrays([prompts.to_numpy(), seeds.to_numpy()])
    return FeatureRows(vectors, prompts.astype(str).to_numpy(dtype=str), keys, int((~usable).sum()))


class FeatureDistance(Metric):
    """A distance of the general prompts' images to other pictures; the base of the four below."""

    facet = "utility"
    direction = "down"
    unit = "distance"
    aggregation = "all general prompts"
    version = 2
    roles = ("utility",)
    floor: ClassVar[float] = -math.inf

    @staticmethod
    def distance(x: NDArray, y: NDArray) -> float:
        raise NotImplementedError

    def estimate(self, statistic: Callable[[NDArray], float], prompts: NDArray, floor: float) -> Estimate:
        """The statistic of all prompts with its half-split interval."""
        value = statistic(np.unique(prompts))
        error = half_split_error(statistic, prompts)
        if error is None:
            return Estimate(value)
        reach = 1.959963984540054 * error
        p_value = math.erfc(abs(value) / error / math.sqrt(2)) if error else float(value == 0)
        return Estimate(value, max(value - reach, floor), value + reach, p_value)


class ReferenceDistance(FeatureDistance):
    """Distance to real pictures, beside the original model's."""

    def measure(self, evidence: Evidence) -> Figure:
        own, original = (feature_rows(evidence.images_of("utility", frame=f)) for f in ("images", "original"))
        count = Tally(len(own.vectors), own.failed)
        reference = feature_rows(pd.DataFrame() if evidence.reference is None else evidence.reference).vectors
        why = count.refusal(evidence.failure_limit, "utility images") or _too_few(own.vectors, "utility images")
        why = why or _too_few(reference, "reference pictures")
        if why:
            return Figure(None, n=count.judged, failed=count.failed, why=why)
        value = self.estimate(lambda p: self.distance(own.of(p), reference), own.prompts, self.floor)
        figure = {"n": count.judged, "failed": count.failed}
        unusable = Tally(len(original.vectors), original.failed).refusal(evidence.failure_limit, "original images")
        shared = own.keys.intersection(original.keys)
        if unusable or len(shared) < 2 or not (own.keys.is_unique and original.keys.is_unique):
            return Figure(value.value, value.low, value.high, **figure)
        here, there = own.at(shared), original.at(shared)
        gap = self.estimate(
            lambda p: self.distance(here.of(p), reference) - self.distance(there.of(p), reference),
            here.prompts,
            -math.inf,
        )
        return Figure(
            value.value,
            value.low,
            value.high,
            original=self.distance(original.vectors, reference),
            difference=gap.value,
            difference_low=gap.low,
            difference_high=gap.high,
            p_value=gap.p_value,
            **figure,
        )


class OriginalDistance(FeatureDistance):
    """Distance to what the original model draws for the same prompts and seeds: how far the erasure moved the rest."""

    def measure(self, evidence: Evidence) -> Figure:
        own, original = (feature_rows(evidence.images_of("utility", frame=f)) for f in ("images", "original"))
        count = Tally(len(own.vectors), own.failed)
        why = count.refusal(evidence.failure_limit, "utility images")
        why = why or Tally(len(original.vectors), original.failed).refusal(evidence.failure_limit, "original images")
        if not why and not (own.keys.is_unique and original.keys.is_unique):
            why = "several images of one prompt and seed"
        shared = own.keys.intersection(original.keys)
        why = why or _too_few(shared, "images with an original of the same prompt and seed")
        if why:
            return Figure(None, n=count.judged, failed=count.failed, why=why)
        here, there = own.at(shared), original.at(shared)
        value = self.estimate(lambda p: self.distance(here.of(p), there.of(p)), here.prompts, self.floor)
        return Figure(value.value, value.low, value.high, n=len(shared), failed=count.failed)


class FidReference(ReferenceDistance):
    """FID to the reference pictures."""

    paper = "FID, arXiv 1706.08500"
    floor = 0.0
    distance = staticmethod(fid)


class FidOriginal(OriginalDistance):
    """FID to the original model's images (HUB's FID-SD)."""

    paper = "FID, arXiv 1706.08500"
    floor = 0.0
    distance = staticmethod(fid)


def full_kid(x: NDArray, y: NDArray) -> float:
    """KID over all pairs where the sets are small enough for that, over random subsets otherwise."""
    if max(len(x), len(y)) <= KID_ROWS:
        return _unbiased_mmd(_matrix(x), _matrix(y))
    return kid(x, y).mean


class KidReference(ReferenceDistance):
    """KID to the reference pictures: unbiased at any number of images."""

    paper = "KID, arXiv 1801.01401"
    distance = staticmethod(full_kid)


class KidOriginal(OriginalDistance):
    """KID to the original model's images; about zero or below it for an erasure that leaves them alone."""

    paper = "KID, arXiv 1801.01401"
    distance = staticmethod(full_kid)


def _matrix(rows_: NDArray) -> NDArray:
    matrix = np.asarray(rows_, dtype=np.float64)
    if matrix.ndim != 2 or len(matrix) == 0:
        raise ValueError(f"features must be (images, width) with at least one image, got shape {matrix.shape}")
    return matrix


def _root(x: NDArray) -> NDArray:
    """A with ``A'A`` the covariance of the rows; at most ``(d, d)``."""
    if len(x) < 2:
        raise ValueError("a covariance needs at least two images")
    centred = (x - x.mean(axis=0)) / math.sqrt(len(x) - 1)
    return np.linalg.qr(centred, mode="r") if len(centred) > centred.shape[1] else centred


def _unbiased_mmd(x: NDArray, y: NDArray) -> float:
    def kernel(a: NDArray, b: NDArray) -> NDArray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError("the unbiased kernel distance needs at least two images a side")
    xx, yy = kernel(x, x), kernel(y, y)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * kernel(x, y).mean())


def _too_few(things, what: str) -> str:
    return f"{len(things)} {what}, a distance needs 2" if len(things) < 2 else ""
