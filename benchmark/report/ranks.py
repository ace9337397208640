"""Ranks of methods: mean ranks, intervals of ranks, and groups of methods that are not told apart.

Rank 1 is best, and ties share the better rank. Tests of two methods are those of `overpaint.report.statistics`, with Holm's
correction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from overpaint.report import scores, seeds, statistics
from overpaint.report.directions import loss
from overpaint.report.resampling import observed
from overpaint.report.statistics import TINY, Estimate, holm, paired_difference

#: Fewer concepts have no intervals of ranks in which concepts are a sample.
FEWEST_CONCEPTS = 5


def mean_ranks(table: ArrayLike, directions: Sequence[str]) -> tuple[NDArray, NDArray]:
    """Ranks (methods, tasks) of the columns of a table, and mean ranks (methods,).

    HUB prints such mean ranks (arXiv 2410.05664, Table 5). Rank 1 is best; ties share the better rank. ``directions``
    has the direction of every task (`overpaint.report.directions`).
    """
    from scipy.stats import rankdata

    losses = [loss(column, direction) for column, direction in zip(np.asarray(table, float).T, directions, strict=True)]
    ranks = rankdata(np.stack(losses, axis=1), method="min", axis=0)
    return ranks, ranks.mean(axis=1)


def rank_intervals(
    values: ArrayLike,
    direction: str = "up",
    clusters: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    runs: ArrayLike | None = None,
    concepts: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> list[Estimate]:
    """Ranks of methods by their means over the same observations, with intervals.

    ``values`` is ``(methods, observations)``; the other arguments are those of `paired_difference`. Observations on which any
    method failed are excluded. Rank 1 is best; ties share the better rank. The interval of a rank starts after the methods that
    are significantly better and ends before those that are significantly worse, with Holm's correction for each method. It
    contains the true rank if no equal methods are declared different (Mogstad et al. 2024). A bootstrap of ranks fails if
    methods are equal or nearly equal (Xie, Singh and Zhang 2009).
    """
    table, *groups = _compared(values, direction, clusters, strata, runs, concepts, weights)
    methods, n = table.shape
    failed = np.shape(values)[1] - n
    if not n:
        return [Estimate(None, failed=failed)] * methods
    gaps, p_values = _square(methods, _gaps(table, *groups))
    return _ranked(_means(table, groups[1], groups[-1]).tolist(), gaps, p_values, n, failed)


def _means(table: NDArray, strata: NDArray | None, weights: NDArray | None) -> NDArray:
    """The mean of each row, ``(methods,)``: of the means of its strata, with the weight that each has in `proportion`."""
    stratum = np.unique(np.zeros(table.shape[1]) if strata is None else strata, return_inverse=True)[1]
    each = np.array([np.bincount(stratum, row) for row in table]) / np.bincount(stratum)
    return np.average(each, axis=1, weights=statistics.by_stratum(weights, table[0], stratum))


def _square(methods: int, tests: Sequence[tuple[float, float]]) -> tuple[NDArray, NDArray]:
    """Differences and p-values (methods, methods) of ``tests``, which has those of each two methods, in order."""
    gaps, p_values = np.zeros((methods, methods)), np.full((methods, methods), math.nan)
    for (i, j), (gap, p_value) in zip(combinations(range(methods), 2), tests, strict=True):
        gaps[i, j], gaps[j, i], p_values[i, j], p_values[j, i] = gap, -gap, p_value, p_value
    return gaps, p_values


def _ranked(means: Sequence[float], gaps: NDArray, p_values: NDArray, n: int, failed: int) -> list[Estimate]:
    """Ranks of methods by their means, small ones first, with intervals from the p-values of their ``gaps``."""
    from scipy.stats import rankdata

    found = []
    for rank, row, tests in zip(rankdata(np.round(means, 12), method="min"), gaps, p_values, strict=True):
        apart = np.array([bool(rejected) for rejected in holm(tests.tolist()).rejected])
        low, high = 1 + (apart & (row > 0)).sum(), len(means) - (apart & (row < 0)).sum()
        found.append(Estimate(float(rank), float(low), float(high), n=n, failed=failed))
    return found


def rank_intervals_over_concepts(
    values: ArrayLike, direction: str = "up", fixed: ArrayLike | None = None
) -> list[Estimate]:
    """Ranks of methods by their means over concepts, with intervals that hold for other concepts of the same kind.

    ``values`` is ``(methods, concepts)``: the figure of each concept. The concepts are a sample, and so are their prompts: the
    differences of two methods vary between concepts by both. Two methods are tested by Student's t of these differences. A
    p-value is not below the one for these concepts in ``fixed``, ``(methods, methods)``: prompts that all concepts share do not
    vary between them. Intervals follow from the tests as in `rank_intervals`; with fewer than `FEWEST_CONCEPTS` there are none.
    """
    from scipy.stats import ttest_1samp

    table = loss(values, direction)
    methods, n = table.shape
    means = table.mean(axis=1).tolist()
    tests = []
    for one, other in combinations(table, 2):
        differences = one - other
        gap = float(differences.mean())
        certain = np.ptp(differences) < TINY
        tests.append((gap, float(abs(gap) < TINY) if certain else float(ttest_1samp(differences, 0.0).pvalue)))
    gaps, p_values = _square(methods, tests)
    if fixed is not None:
        p_values = np.fmax(p_values, np.asarray(fixed, float))
    found = _ranked(means, gaps, p_values, n, 0)
    return found if n >= FEWEST_CONCEPTS else [e._replace(low=None, high=None) for e in found]


def alike(
    values: ArrayLike,
    direction: str = "up",
    clusters: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    runs: ArrayLike | None = None,
    concepts: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> list[list[int]]:
    """Groups of methods that are not told apart, best first; a method can be in several groups.

    The arguments are those of `rank_intervals`. Two methods are told apart if the p-value of their paired difference is below
    5 % after Holm's correction over all pairs. A group is a largest set of methods that do not differ (the groups of
    a compact letter display, Piepho 2004).
    """
    table, *groups = _compared(values, direction, clusters, strata, runs, concepts, weights)
    methods, n = table.shape
    if not n:
        return []
    tests = holm([None if math.isnan(p) else p for _, p in _gaps(table, *groups)])
    pairs = [pair for pair, apart in zip(combinations(range(methods), 2), tests.rejected, strict=True) if apart]
    found = [set(range(methods))]
    for one, other in pairs:
        split = [
            part
            for group in found
            for part in ((group - {one}, group - {other}) if {one, other} <= group else (group,))
        ]
        found = [group for group in split if not any(group < larger for larger in split)]
        found = [group for place, group in enumerate(found) if group not in found[:place]]
    means = _means(table, groups[1], groups[-1]).tolist()
    ordered = [sorted(group, key=lambda method: (means[method], method)) for group in found]
    return sorted(ordered, key=lambda group: [(means[method], method) for method in group])


def _compared(values: ArrayLike, direction: str, *groups: ArrayLike | None) -> list[Any]:
    """The table ``(methods, observations)`` with small values the better ones, and the groups of its observations, without
    the observations on which any method failed. Values of 0 and 1 stay 0 and 1."""
    table = np.asarray(values, float)
    complete = ~np.isnan(table).any(axis=0)
    kept = [None if names is None else np.asarray(names)[complete] for names in groups]
    table = table[:, complete]
    return [1 - table if direction == "up" else table, *kept]


def _gaps(
    table: NDArray,
    clusters: NDArray | None,
    strata: NDArray | None,
    runs: NDArray | None,
    concepts: NDArray | None,
    weights: NDArray | None,
) -> list[tuple[float, float]]:
    """The difference of each two rows of ``table`` and its p-value, NaN if undefined: all at once for shares."""
    pairs = list(combinations(table, 2))
    if pairs and not seeds.are_sample(runs, concepts) and np.isin(table, (0, 1)).all():
        rows = np.stack([one - other for one, other in pairs])
        groups = observed(rows[0], clusters, strata)[1]
        of = scores.sample(rows, *groups, statistics.by_stratum(weights, rows[0], groups[1]), images=2)
        p_values = scores.p_value(of, scores.difference_score(of, np.zeros(len(rows))))
        return list(zip(of.mean.tolist(), p_values.tolist(), strict=True))
    found = [paired_difference(a, b, clusters, strata, weights=weights, runs=runs, concepts=concepts) for a, b in pairs]
    return [(e.value or 0.0, math.nan if e.p_value is None else e.p_value) for e in found]
