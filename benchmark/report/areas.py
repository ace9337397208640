"""Intervals of areas under ROC curves, and the correlation of two areas that share their observations."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from overpaint.report.statistics import NORMAL, TINY


def limits(value: float, positives: int, negatives: int) -> tuple[float, float]:
    """The 95 % limits of an area with this ``value`` and these numbers of observations (Newcombe 2006, method 5).

    They are the areas A from which the value is 1.96 standard errors away. The variance at A is that of Hanley and McNeil (1982)
    with the mean N of the two numbers in two of its terms::

        A (1 - A) (1 + (N - 1) ((1 - A) / (2 - A) + A / (1 + A))) / (positives · negatives)

    A bootstrap covers too little near 0 and 1: the area of separated scores is 1 in all samples.
    """
    from scipy.optimize import brentq

    # the variance is 0 at an area of 0 or 1, so a search must start beside the value
    others = (positives + negatives) / 2 - 1

    def beyond(area: float) -> float:
        spread = 1 + others * ((1 - area) / (2 - area) + area / (1 + area))
        return (area - value) ** 2 - NORMAL**2 * area * (1 - area) * spread / (positives * negatives)

    low = 0.0 if value <= TINY else float(brentq(beyond, 0.0, value - TINY))
    high = 1.0 if value >= 1 - TINY else float(brentq(beyond, value + TINY, 1.0))
    return low, high


def correlation(first: tuple[NDArray, NDArray], second: tuple[NDArray, NDArray]) -> float:
    """The correlation of two areas, from ``(positives,)`` and ``(negatives,)`` scores of the same observations.

    It is that of DeLong et al. (1988), and 0 if one of the areas has no variance, such as that of separated scores. Raises a
    `ValueError` for NaN.
    """
    if any(np.isnan(side).any() for side in (*first, *second)):
        raise ValueError("scores must not be NaN")
    above, below = (
        np.cov(np.stack(pair)) / len(pair[0]) for pair in zip(_placements(*first), _placements(*second), strict=True)
    )
    covariance = above + below
    scale = math.sqrt(covariance[0, 0] * covariance[1, 1])
    return float(np.clip(covariance[0, 1] / scale, -1, 1)) if scale > 0 else 0.0


def _placements(positive: NDArray, negative: NDArray) -> tuple[NDArray, NDArray]:
    """For each positive, the share of negatives with a smaller score, and for each negative the share of positives with a larger
    one; equal scores count half."""
    from scipy.stats import rankdata

    p, q = len(positive), len(negative)
    ranks = rankdata(np.concatenate([positive, negative]))
    above = (ranks[:p] - rankdata(positive)) / q
    return above, 1 - (ranks[p:] - rankdata(negative)) / p
