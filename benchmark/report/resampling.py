"""Resampling of clustered observations, for bootstrap intervals and tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def observed(
    values: ArrayLike, clusters: ArrayLike | None, strata: ArrayLike | None
) -> tuple[NDArray, tuple[NDArray, NDArray], int]:
    """The valid observations, the codes of their clusters and strata, and the number of failed observations."""
    import pandas as pd

    values = np.asarray(values, float)
    codes = [
        np.arange(len(values)) if clusters is None else pd.factorize(np.asarray(clusters))[0],
        np.zeros(len(values), int) if strata is None else pd.factorize(np.asarray(strata))[0],
    ]
    for given in codes:
        if len(given) != len(values):
            raise ValueError(f"{len(values)} observations but {len(given)} cluster or stratum names")
    valid = ~np.isnan(values)
    return values[valid], (codes[0][valid], codes[1][valid]), int((~valid).sum())


def resampled_ratios(tops: ArrayLike, bottoms: ArrayLike, draws: int, rng: np.random.Generator) -> NDArray:
    """``(draws,)`` ratios of sums over resampled clusters.

    One multinomial over the distinct clusters draws equal clusters together. Many prompts with few seeds therefore cost no
    more than few prompts, and the order of the observations does not matter.
    """
    given = np.column_stack([np.asarray(tops, float), np.asarray(bottoms, float)])
    pairs, counts = np.unique(given, axis=0, return_counts=True)
    sums = rng.multinomial(counts.sum(), counts / counts.sum(), size=draws) @ pairs
    return sums[:, 0] / sums[:, 1]


def limits(draws: NDArray, level: float) -> tuple[float, float]:
    """Percentile limits of resampled values."""
    low, high = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def bootstrap_test(draws: NDArray) -> float:
    """Two-sided p-value of "zero" (Efron and Tibshirani 1993, §15.4). It agrees with the percentile interval of the same
    resampled values: it is below 0.05 if the 95 % interval excludes zero."""
    found = np.sort(draws[~np.isnan(draws)])
    return min(1.0, max(2 * min(_level_of_zero(found), _level_of_zero(-found[::-1])), 1 / (len(found) + 1)))


def _level_of_zero(found: NDArray) -> float:
    """The highest level at which the percentile of the sorted values is at most zero."""
    count = int(np.searchsorted(found, 0.0, side="right"))
    if count in (0, len(found)):
        return count / len(found)
    before, after = found[count - 1], found[count]
    return float((count - 1 - before / (after - before)) / (len(found) - 1))
