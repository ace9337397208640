"""Pareto fronts: which methods erase and retain best together, and how sure that is.

A method is dominated if another one is at least as good in both figures and better in one. The uncertainty comes from resampled
prompts (2,000 bootstrap samples): the prompts of each concept are drawn with replacement, the same ones for every method and
figure, so that methods stay paired. A prompt that several concepts share is drawn once for all of them. Concepts and method
seeds are fixed. Without stored outcomes, each mean is drawn from a normal distribution with the standard error of its interval,
independently for each method.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from overpaint.report.directions import loss
from overpaint.report.pooling import Outcomes, pooled
from overpaint.report.statistics import NORMAL
from overpaint.report.tables import Entry, Head, Row, Table, blocks_of, provenance
from overpaint.report.views import View

#: Number of bootstrap samples.
SAMPLES = 2000
#: Share of the samples in which one method must dominate another to be shown to dominate it.
SHOWN = 0.95
ON_FRONT = "on the front"


def fronts(records: pd.DataFrame, view: View, outcomes: Outcomes) -> Iterator[Table]:
    """One table per block: two figures of each method, the share of the samples in which it is on the front, and the methods
    that dominate it. The view's first two columns are the figures."""
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
            for method, own in figures.groupby("method", sort=False):
                mean = pooled(own, "value", outcomes, view.average)
                if mean is not None and mean.estimate.value is not None:
                    e = mean.estimate
                    means.setdefault(str(method), {})[name] = Entry(
                        e.value, e.low, e.high, own["unit"].iloc[0], e.n, e.failed
                    )
        directions = [figures["direction"].iloc[0] for figures in chosen.values()]
        values = np.array([[means[m][name].value for name in chosen] for m in methods], float)
        samples, resampled = _samples(chosen, methods, means, outcomes, view.average)
        points, found = better(values[None], directions), better(samples, directions)
        shares, on = found.mean(axis=0), np.logical_not(found.any(axis=1))
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
            *_dominated(methods, shares),
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


def _dominated(methods: Sequence[str], shares: NDArray) -> list[str]:
    """A sentence about the methods that are shown to be dominated."""
    said = []
    for place, method in enumerate(methods):
        by = [other for other, share in zip(methods, shares[:, place], strict=True) if share >= SHOWN]
        if by:
            said.append(f"{method} (by {', '.join(by)})")
    return [f"Shown to be dominated, in {SHOWN:.0%} of the samples or more: {'; '.join(said) or 'none'}."]


def _samples(
    chosen: Mapping[str, pd.DataFrame],
    methods: Sequence[str],
    means: Mapping[str, Mapping[str, Entry]],
    outcomes: Outcomes,
    average: str,
) -> tuple[NDArray, bool]:
    """Samples of the figures ``(samples, methods, figures)``, and whether they come from outcomes."""
    generator = np.random.default_rng(0)
    found = [outcomes.together(figures[figures["method"].isin(methods)]) for figures in chosen.values()]
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
