"""Intervals and tests of means over method seeds, which are a sample of all possible seeds.

Let B be the variance of the means of S seeds, N the part of B that comes from prompts and images, and I the squared standard
error of the mean with the seeds treated as fixed. The variance between seeds is known with S − 1 degrees of freedom only. Its
fiducial distribution, max(B (S−1) / W − N, 0) for W from χ²(S−1), replaces an estimate (Weerahandi 1993). A deviation r of the
mean is exceeded with probability

    P(|m − μ| > r) = E_W [2 Φ(−r / √(I + max(B (S−1) / W − N, 0) / S))]

and the interval ends where this is 5 %. Without noise it is Student's t interval with S − 1 degrees of freedom; without
variance between seeds it is the interval for fixed seeds. Several concepts have independent seeds, whose variances add.

All functions are vectorised: the first axis is data sets.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Fewer seeds show nothing of other seeds: with two, Student's t quantile is 12.7.
FEWEST = 3
#: Number of points at which the fiducial distribution is evaluated.
POINTS = 200
HALVINGS = 40


class Between(NamedTuple):
    """Means of one concept's seeds: ``variance`` between their means and ``noise`` in it, ``(sets,)``, of ``runs`` seeds."""

    variance: NDArray
    noise: NDArray
    runs: int


def are_sample(runs: ArrayLike | None, concepts: ArrayLike | None = None) -> bool:
    """Whether the ``runs`` of any of the ``concepts``, both aligned ``(observations,)``, are a sample of all runs."""
    import pandas as pd

    if runs is None:
        return False
    of_concept = np.zeros(np.shape(runs)) if concepts is None else np.asarray(concepts)
    return bool(pd.Series(np.asarray(runs)).groupby(of_concept).nunique().max() >= FEWEST)


def between(values: NDArray, runs: NDArray, clusters: NDArray, weights: NDArray) -> Between:
    """The variance between runs of ``values`` (sets, n), from the codes ``runs`` and ``clusters`` (n,) and ``weights`` (n,).

    The noise is the variance of each run's mean that comes from its clusters, without what a cluster has in common in all runs.
    """
    count, prompts = int(runs.max()) + 1, int(clusters.max()) + 1
    place = runs * prompts + clusters
    total = np.bincount(runs, weights)
    means = _summed(values * weights, runs, count) / total
    if count < 2:
        return Between(np.zeros(len(values)), np.zeros(len(values)), count)
    parts = _summed((values - means[:, runs]) * weights / total[runs], place, count * prompts)
    parts = parts.reshape(len(values), count, prompts)
    held = np.bincount(place, minlength=count * prompts).reshape(count, prompts) > 0
    sharing = held.sum(axis=0)
    common = np.where(sharing > 1, parts.sum(axis=1) / np.maximum(sharing, 1), 0.0)
    own = (parts - common[:, None]) * held * np.sqrt(np.where(sharing > 1, sharing / np.maximum(sharing - 1, 1), 1.0))
    sizes = held.sum(axis=1)
    noise = (own**2).sum(axis=2) * sizes / np.maximum(sizes - 1, 1)
    return Between(means.var(axis=1, ddof=1), noise.mean(axis=1), count)


def _summed(values: NDArray, codes: NDArray, count: int) -> NDArray:
    """``(sets, count)`` sums of ``values`` (sets, n) over the codes (n,)."""
    sums = np.zeros((len(values), count))
    np.add.at(sums.T, codes, values.T)
    return sums


def plausible(found: list[Between]) -> NDArray:
    """Variances ``(sets, POINTS)`` of a mean over concepts that seeds may cause, each equally likely.

    Variances of several concepts are added, with Satterthwaite's (1946) degrees of freedom. Concepts with fewer than `FEWEST`
    seeds add nothing: their seeds are treated as fixed.
    """
    from scipy.special import gammaincinv

    parts = [of for of in found if of.runs >= FEWEST]
    if not parts:
        return np.zeros((len(found[0].variance), POINTS))
    variance, noise = (
        np.stack([getattr(of, name) / of.runs for of in parts]) / len(found) ** 2 for name in ("variance", "noise")
    )
    total, freedom = variance.sum(axis=0), np.array([[of.runs - 1] for of in parts])
    squares = (variance**2 / freedom).sum(axis=0)
    free = np.where(squares > 0, total**2 / np.where(squares > 0, squares, 1.0), freedom.sum())[:, None]
    drawn = 2 * gammaincinv(free / 2, (np.arange(POINTS) + 0.5) / POINTS)  # quantiles of χ²
    return np.maximum(total[:, None] * free / drawn - noise.sum(axis=0)[:, None], 0.0)


def tail(gap: NDArray, error: NDArray, seeds: NDArray) -> NDArray:
    """The probability ``(sets,)`` of a mean that is more than ``gap`` above the true one.

    ``error`` is the standard error for fixed seeds, ``seeds`` the variances of `plausible`.
    """
    from scipy.special import ndtr

    spread = np.sqrt(error[:, None] ** 2 + seeds)
    known = spread > 0
    certain = np.where(gap[:, None] > 0, 0.0, np.where(gap[:, None] < 0, 1.0, 0.5))
    return np.where(known, ndtr(-gap[:, None] / np.where(known, spread, 1.0)), certain).mean(axis=1)


def reach(error: NDArray, seeds: NDArray, level: float) -> NDArray:
    """The distance ``(sets,)`` of a limit from the mean."""
    from scipy.special import ndtri

    quantile = float(ndtri((1 + level) / 2))
    low = quantile * error
    high = quantile * np.sqrt(error**2 + seeds.max(axis=1))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        inside = tail(middle, error, seeds) > (1 - level) / 2
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return (low + high) / 2
