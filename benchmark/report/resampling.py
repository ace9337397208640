"""Groups of observations, and leaving out each of them in turn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Largest number of groups that a jackknife leaves out one by one.
GROUPS = 20


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


def left_out(values: ArrayLike) -> NDArray:
    """Contributions ``(groups,)`` to a statistic, from its ``values`` without each of the groups in turn (jackknife, Kott
    2001), for `overpaint.report.statistics.from_contributions`."""
    values = np.asarray(values, float)
    return (values.mean() - values) * (len(values) - 1) / len(values)


def jackknife(statistic: Callable[[NDArray], float], clusters: ArrayLike, seed: int = 0) -> NDArray:
    """Contributions of at most `GROUPS` random groups of ``clusters`` to ``statistic(clusters)``.

    The groups differ in size by at most one cluster.
    """
    names = np.random.default_rng(seed).permutation(np.unique(np.asarray(clusters)))
    groups = np.arange(len(names)) % min(GROUPS, len(names))
    return left_out([statistic(names[groups != group]) for group in range(groups.max() + 1)])
