"""Resampling of clustered observations: what intervals and permutation tests draw from.

Equal clusters are drawn together, by one multinomial over the distinct ones, so a table of many prompts with few
seeds costs no more than a small one, and results do not depend on the order of observations.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def observed(
    values: ArrayLike, clusters: ArrayLike | None, strata: ArrayLike | None
) -> tuple[NDArray, tuple[NDArray, NDArray], int]:
    """Valid observations, the codes of their clusters and strata, and how many failed."""
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


def cluster_tables(values: NDArray, clusters: NDArray, strata: NDArray) -> list[tuple[NDArray, NDArray]]:
    """For each stratum (sum, size) of its clusters, in an order that does not depend on that of the observations."""
    tables = []
    for stratum in np.unique(strata):
        inside = strata == stratum
        _, member = np.unique(clusters[inside], return_inverse=True)
        tables.append((np.bincount(member, weights=values[inside]), np.bincount(member)))
    return sorted(tables, key=lambda t: sorted(zip(t[0].tolist(), t[1].tolist())))


def resampled_means(tables: list[tuple[NDArray, NDArray]], draws: int, rng: np.random.Generator) -> NDArray:
    """``(draws,)`` resampled means of the strata's ratios, each stratum resampled apart.

    A stratum of one cluster could not vary; all clusters are drawn together then, weighted so that strata weigh the same.
    """
    if any(len(k) < 2 for k, _ in tables):
        weighted = [(k / m.sum(), m / m.sum()) for k, m in tables]
        tables = [tuple(np.concatenate(column) for column in zip(*weighted))]
    return np.mean([resampled_ratios(k, m, draws, rng) for k, m in tables], axis=0)


def distinct(tops: ArrayLike, bottoms: ArrayLike) -> tuple[NDArray, NDArray]:
    """The different (top, bottom) pairs, ``(pairs, 2)``, and how often each occurs."""
    return np.unique(np.column_stack([np.asarray(tops, float), np.asarray(bottoms, float)]), axis=0, return_counts=True)


def resampled_ratios(tops: ArrayLike, bottoms: ArrayLike, draws: int, rng: np.random.Generator) -> NDArray:
    """``(draws,)`` ratios of sums over resampled clusters."""
    pairs, counts = distinct(tops, bottoms)
    chunk = max(1, 2_000_000 // len(pairs))
    ratios = []
    for start in range(0, draws, chunk):
        sums = rng.multinomial(counts.sum(), counts / counts.sum(), size=min(chunk, draws - start)) @ pairs
        ratios.append(sums[:, 0] / sums[:, 1])
    return np.concatenate(ratios)


def limits(draws: NDArray, level: float) -> tuple[float, float]:
    """Percentile limits of resampled values."""
    low, high = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)
