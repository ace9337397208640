"""Pareto fronts: which methods erase and retain best together, and how sure that is.

A method is dominated if another one is at least as good in both figures and better in one. The share of a method comes from
resampled prompts (2,000 bootstrap samples): the prompts of each concept are drawn with replacement, the same ones for every
method and figure, so that methods stay paired. A prompt that several concepts share is drawn once for all of them. Concepts
and method seeds are fixed. Without stored outcomes, each mean is drawn from a normal distribution with the standard error of
its interval, independently for each method.

That a method is dominated is shown by tests instead: a share without hits has none in any sample, so that a method with 0 of 24
hits is as good as any other in all of them. As no data show "at least as good" exactly, another method is shown to dominate it
if it is better in one figure, and better or less than `MARGIN` worse in the other (an intersection-union test, Berger 1982).
The tests of a method against all others are corrected by Holm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from overpaint.report.directions import folded, loss
from overpaint.report.pooling import Outcomes, pooled, rows_by, tests_of
from overpaint.report.standings import paired
from overpaint.report.statistics import MARGIN, NORMAL, Estimate, difference_of_estimates, holm
from overpaint.report.tables import Entry, Head, Row, Table, blocks_of, provenance
from overpaint.report.views import View

#: Number of bootstrap samples.
SAMPLES = 2000
ON_FRONT = "on the front"


def fronts(records: pd.DataFrame, view: View, outcomes: Outcomes) -> Iterator[Table]:
    """One table per block: two figures of each method, the share of the samples in which it is on the front, and the methods
    that are shown to dominate it. The view's first two columns are the figures."""
    for title, part in blocks_of(records, view):
        chosen = {name: column.chosen(part, view.rows) for name, column in list(view.columns.items())[:2]}
        methods, concepts = _comparable(chosen.values())
        if len(methods) < 2 or len(chosen) < 2:
            continue
        chosen = {
            name: own[own["method"].isin(methods) & own["concepts"].isin(concepts)] for name, own in chosen.items()
        }
        means: dict[str, dict[str, Entry]] = {}
        for name, figures in chosen.items():
            for method, own in rows_by(figures, "method").items():
                mean = pooled(own, "value", outcomes, view.average)
                if mean is not None and mean.estimate.value is not None:
                    e = mean.estimate
                    means.setdefault(str(method), {})[name] = Entry(
                        e.value, e.low, e.high, own[0]["unit"], e.n, e.failed
                    )
        directions = [figures["direction"].iloc[0] for figures in chosen.values()]
        values = np.array([[means[m][name].value for name in chosen] for m in methods], float)
        samples, resampled = _samples(chosen, methods, means, outcomes, view.average)
        points, on = better(values[None], directions), np.logical_not(better(samples, directions).any(axis=1))
        rows = []
        for place, method in enumerate(methods):
            standing = "" if points[0, :, place].any() else ON_FRONT
            front = Entry(float(on[:, place].mean()), n=SAMPLES, standing=standing)
            rows.append(Row((method,), [*(means[method][name] for name in chosen), front]))
        heads = [*(Head(name, d) for name, d in zip(chosen, directions, strict=True)), Head("on the front")]
        notes = [
            "Bold: on the front, not dominated by another method. On the front: the share of "
            + (
                f"{SAMPLES} samples of the prompts, paired between methods, concepts and method seeds fixed."
                if resampled
                else f"{SAMPLES} draws from the intervals of the records, independent between methods (outcomes are not stored)."
            ),
            _dominated(methods, dominating(chosen, methods, means, outcomes)),
        ]
        if absent := [str(method) for method in dict.fromkeys(part["method"]) if method not in methods]:
            notes.append(f"Not shown: {', '.join(absent)} (without both figures on {', '.join(concepts)}).")
        if part["concepts"].nunique() > len(concepts):
            notes.append(f"Means over {', '.join(concepts)} only, which all of these methods share.")
        yield Table(f"Pareto front, {title}", (view.rows,), heads, rows, notes, provenance(part))


def _comparable(chosen: Iterable[pd.DataFrame]) -> tuple[list[str], list[str]]:
    """The concept sets on which most methods have all figures, and the methods that have them there."""
    known = pd.concat(
        [own.groupby(["method", "concepts"], sort=False)["value"].agg(_defined) for own in chosen], axis=1
    )
    known = known[known.eq(True).all(axis=1)]
    of: dict[str, list[str]] = {}
    for method, concepts in known.index:
        of.setdefault(method, []).append(concepts)
    found = Counter(frozenset(concepts) for concepts in of.values())
    most = max(found, key=lambda concepts: (found[concepts], len(concepts)), default=frozenset())
    return [m for m, concepts in of.items() if most.issubset(concepts)], [
        c for c in dict.fromkeys(known.index.get_level_values("concepts")) if c in most
    ]


def _defined(values: pd.Series) -> bool:
    return bool(values.notna().all())


def better(values: NDArray, directions: Sequence[str]) -> NDArray[np.bool_]:
    """Whether method i dominates method j: ``(samples, methods, methods)`` from ``values`` (samples, methods, figures)."""
    losses = np.stack([loss(values[..., place], direction) for place, direction in enumerate(directions)], axis=-1)
    one, other = losses[:, :, None, :], losses[:, None, :, :]
    return np.logical_and((one <= other).all(axis=-1), (one < other).any(axis=-1))


def dominating(
    chosen: Mapping[str, pd.DataFrame],
    methods: Sequence[str],
    means: Mapping[str, Mapping[str, Entry]],
    outcomes: Outcomes,
) -> NDArray:
    """P-values ``(methods, methods)`` of "method i does not dominate method j", from the records of the two figures.

    "Better in one figure" has twice the smaller one-sided p-value, "not worse by `MARGIN` in both" the larger one.
    """
    better_by, worse_by = np.ones((2, len(chosen), len(methods), len(methods)))
    for place, (name, own) in enumerate(chosen.items()):
        direction, unit = str(own["direction"].iloc[0]), str(own["unit"].iloc[0])
        of = rows_by(own, "method")
        for i, j in combinations(range(len(methods)), 2):
            gap = paired(of[methods[i]], of[methods[j]], outcomes)[0] if direction != "zero" else Estimate(None)
            if gap.p_value is None:
                ends = (means[methods[m]][name] for m in (i, j))
                gap = difference_of_estimates(*(folded(Estimate(e.value, e.low, e.high), direction) for e in ends))
                p_value, p_equivalence = tests_of(gap._replace(p_value=None), equivalence=unit == "fraction")
                gap = gap._replace(p_value=p_value, p_equivalence=p_equivalence)
            if gap.value is None or gap.p_value is None:
                continue
            first = gap.p_value / 2 if (gap.value > 0) == (direction == "up") else 1 - gap.p_value / 2
            same = 1.0 if gap.p_equivalence is None else gap.p_equivalence
            for (one, other), p in (((i, j), first), ((j, i), 1 - first)):
                better_by[place, one, other], worse_by[place, one, other] = p, min(p, same)
    return np.maximum(np.minimum(len(chosen) * better_by.min(axis=0), 1.0), worse_by.max(axis=0))


def _dominated(methods: Sequence[str], p_values: NDArray) -> str:
    """A sentence about the methods that are shown to be dominated."""
    said = []
    for place, method in enumerate(methods):
        others = [other for other in range(len(methods)) if other != place]
        apart = holm([float(p_values[other, place]) for other in others]).rejected
        by = [methods[other] for other, shown in zip(others, apart, strict=True) if shown]
        if by:
            said.append(f"{method} (by {', '.join(by)})")
    return (
        f"Shown to be dominated: {'; '.join(said) or 'none'}. The other method is better in one figure, and better or less than "
        f"{MARGIN:.2f} worse in the other (Holm over a method's differences to all others, 5 % level)."
    )


def _samples(
    chosen: Mapping[str, pd.DataFrame],
    methods: Sequence[str],
    means: Mapping[str, Mapping[str, Entry]],
    outcomes: Outcomes,
    average: str,
) -> tuple[NDArray, bool]:
    """Samples of the figures ``(samples, methods, figures)``, and whether they come from outcomes."""
    generator = np.random.default_rng(0)
    found = [
        outcomes.together(figures[figures["method"].isin(methods)].to_dict("records")) for figures in chosen.values()
    ]
    tables = [table for table in found if table is not None]
    if len(tables) == len(found):
        every = pd.concat(chosen.values())
        kinds = every["kind"] if average == "kinds" else every["concepts"]
        return resampled(tables, methods, dict(zip(every["concepts"], kinds, strict=True)), generator), True
    errors = [[_error(means[m][name]) for name in chosen] for m in methods]
    values = [[means[m][name].value for name in chosen] for m in methods]
    noise = generator.standard_normal((SAMPLES, len(methods), len(chosen)))
    return np.array(values, float) + noise * np.array(errors), False


def _error(entry: Entry) -> float:
    """The standard error of a figure, from its interval, or from the side that has a limit; 0 without an interval."""
    widths = [abs(limit - (entry.value or 0.0)) for limit in (entry.low, entry.high) if limit is not None]
    return sum(widths) / len(widths) / NORMAL if widths else 0.0


def resampled(
    tables: Sequence[pd.DataFrame], methods: Sequence[str], kinds: Mapping[str, str], generator: np.random.Generator
) -> NDArray:
    """Bootstrap means ``(samples, methods, tables)`` of outcomes (`Outcomes.together`), one table for each figure.

    Strata have equal weight in a concept, concepts in their kind (``kinds``), and kinds in the mean. A cluster's number of draws
    is the same for all methods, concepts and tables. Clusters are drawn with replacement among those of the same concepts and
    tables.
    """
    clusters, draws = _draws(tables, generator)
    found = np.zeros((SAMPLES, len(methods), len(tables)))
    for figure, table in enumerate(tables):
        for place, method in enumerate(methods):
            own = table[(table["method"] == method) & table["value"].notna()]
            means = {}
            for (concept, stratum), rows in own.groupby(["concepts", "stratum"], dropna=False, observed=True):
                weights = draws[:, np.asarray(clusters.get_indexer(pd.Index(rows["cluster"])), int)]
                total = weights.sum(axis=1)
                drawn = total > 0
                mean = weights @ rows["value"].to_numpy(float) / np.where(drawn, total, 1.0)
                means[kinds[str(concept)], concept, stratum] = np.where(drawn, mean, np.nan)
            by_stratum = pd.DataFrame(means).T
            by_concept = by_stratum.groupby(level=[0, 1]).mean()
            found[:, place, figure] = by_concept.groupby(level=0).mean().mean()
    return found


def _draws(tables: Sequence[pd.DataFrame], generator: np.random.Generator) -> tuple[pd.Index, NDArray]:
    """The clusters of all tables, and how often each is drawn: ``(samples, clusters)``."""
    parts = [
        pd.DataFrame({"cluster": table["cluster"], "of": f"{place} " + table["concepts"].astype(str)})
        for place, table in enumerate(tables)
    ]
    members = pd.concat(parts).drop_duplicates().sort_values("of").groupby("cluster")["of"].agg("\x1f".join)
    draws = np.zeros((SAMPLES, len(members)))
    for alike in members.unique():
        places = np.flatnonzero(members == alike)
        draws[:, places] = generator.multinomial(len(places), np.full(len(places), 1 / len(places)), SAMPLES)
    return members.index, draws
