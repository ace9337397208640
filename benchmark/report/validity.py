"""Does a published score order the erasers as their distance to the gold reference does?

For a score and a distance, Kendall's tau-b is taken between the orders of the methods in each concept set and averaged
over the concept sets: 1 if the score always prefers the eraser nearer to the gold reference, 0 for no relation, −1 for the
reverse. Seeds of a method are averaged before.

Intervals are made of 2,000 bootstrap samples. Each draws the concept sets with replacement, a seed of each method, and every
figure from a normal distribution with the standard error of its interval, independently between methods and figures. Noise
pulls tau towards 0: that of the figures pulls the value, and the added noise pulls the samples once more. An interval
therefore holds both the percentiles of the samples and their reflection at the value (the basic bootstrap interval). It
is too wide rather than too narrow; concept sets are few.

What is shown of the scores comes from the tests that belong to these intervals, corrected by Benjamini and Hochberg over all
scores of the table: among twenty scores that order nothing, one interval in two tables would exclude 0.

The distances have errors, so a score without error would not reach a tau of 1 with them. It would reach about the mean tau
between the measured distances and the samples.

The best two scores are those whose mean of ranks has the largest tau with the mean distance. They were chosen on the
same records, so that their gain is an upper bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from overpaint.report.directions import loss
from overpaint.report.statistics import NORMAL, benjamini_hochberg, kendall_tau_b, taus_b
from overpaint.report.tables import Entry, Head, Row, Table, blocks_of, provenance
from overpaint.report.views import View

#: Number of bootstrap samples.
SAMPLES = 2_000
#: The method that is the gold reference: its own distance is 0, so that it takes no part in the orders.
REFERENCE = "gold"
#: Fewer methods have no order worth a figure.
FEWEST = 4
#: A tau below this is no useful agreement.
USEFUL = 0.5
ALL = "all distances"


@dataclass(frozen=True)
class Scored:
    """One column: its figures with their standard errors ``(concepts, methods, seeds)``, NaN where there is none."""

    values: NDArray
    errors: NDArray
    direction: str

    def means(self) -> NDArray:
        """Means over the seeds ``(concepts, methods)``, turned so that larger is better."""
        return -loss(_over_seeds(self.values), self.direction)

    def drawn(self, seeds: NDArray, generator: np.random.Generator) -> NDArray:
        """Figures ``(samples, concepts, methods)`` of these places of seeds (samples, methods), with normal noise.

        They are turned so that larger is better.
        """
        methods = np.arange(self.values.shape[1])
        filled = []
        for figures in (self.values, self.errors):
            own = np.moveaxis(np.moveaxis(figures, 0, 2)[methods, seeds], 2, 1)
            filled.append(np.where(np.isnan(own), _over_seeds(figures), own))  # a deterministic method has one seed
        values, errors = filled
        return -loss(values + generator.standard_normal(values.shape) * np.nan_to_num(errors), self.direction)


def _over_seeds(figures: NDArray) -> NDArray:
    """Means ``(concepts, methods)`` of the known figures (concepts, methods, seeds)."""
    known = ~np.isnan(figures)
    return np.where(known.any(2), np.where(known, figures, 0).sum(2) / np.maximum(known.sum(2), 1), np.nan)


def validity(records: pd.DataFrame, view: View) -> Iterator[Table]:
    """One table per block: rows are the view's scores, columns the tau with each of its distances (`View.truth`)."""
    for title, part in blocks_of(records, view, together=("seed", "budget")):
        part = part[part["method_name"] != REFERENCE]
        columns = _columns(part, view)
        truths = {name: columns[name] for name in view.truth if name in columns}
        scores = {name: column for name, column in columns.items() if name not in view.truth}
        if not truths or not scores:
            continue
        agreed, notes = agreements(scores, truths)
        heads = [Head(name, "up") for name in agreed.pop("")]
        rows = [Row((name,), entries) for name, entries in agreed.items()]
        if part["budget"].nunique() > 1:
            notes.append(
                f"Figures of several budgets ({', '.join(part['budget'].unique())}): the one of most images counts."
            )
        if rows:
            yield Table(f"Validity, {title}", ("score",), heads, rows, notes, provenance(part))


def agreements(scores: Mapping[str, Scored], truths: Mapping[str, Scored]) -> tuple[dict[str, list], list[str]]:
    """Entries of every score, the names of their columns under ``""``, and notes about them."""
    generator = np.random.default_rng(0)
    example = next(iter(truths.values())).values
    concepts, methods, seeds = example.shape
    picks = generator.integers(seeds, size=(SAMPLES, methods))
    chosen = generator.integers(concepts, size=(SAMPLES, concepts))
    drawn = {name: column.drawn(picks, generator) for name, column in {**truths, **scores}.items()}
    means = {name: column.means() for name, column in {**truths, **scores}.items()}
    against = {name: (means[name], drawn[name]) for name in truths}
    if len(truths) > 1:
        both = (np.mean([side[name] for name in truths], axis=0) for side in (means, drawn))
        against[ALL] = next(both), next(both)
    found: dict[str, list] = {"": list(against)}
    tests: dict[str, tuple[float, float]] = {}
    for name in scores:
        tested = [_tested(means[name], values, drawn[name], samples, chosen) for values, samples in against.values()]
        found[name] = [entry for entry, _ in tested]
        if tested[-1][0].value is not None:
            tests[name] = tested[-1][1]
    last = list(against)[-1]
    reachable = _reachable(*against[last])
    ceiling = (
        f"A score without error would have a τ of about {reachable:.2f} with {last}, whose figures have intervals."
    )
    return found, [*_notes(found, tests, last), ceiling, *_best_pair(means, list(scores), against[last][0], found)]


def _reachable(values: NDArray, drawn: NDArray) -> float:
    """The mean tau between figures (concepts, methods) and the same figures redrawn (samples, concepts, methods)."""
    taus = [
        taus_b(np.broadcast_to(own, again.shape), again)
        for own, again in zip(values, np.moveaxis(drawn, 1, 0), strict=True)
    ]
    return float(np.nanmean(taus))


def _tested(
    values: NDArray, other: NDArray, drawn: NDArray, samples: NDArray, chosen: NDArray
) -> tuple[Entry, tuple[float, float]]:
    """The mean tau over concepts of figures (concepts, methods), with the interval of resampled ones, and p-values of "tau is 0"
    and of "tau is at least `USEFUL`", which are below 5 % if the interval is on one side of it."""
    usable = [
        place for place in range(len(values)) if (~np.isnan(values[place] + other[place])).sum() >= FEWEST
    ]  # concepts with an order
    taus = [kendall_tau_b(*_known(values[place], other[place])).value for place in usable]
    if not usable or any(tau is None for tau in taus):
        return Entry(None, unit="correlation", why=f"fewer than {FEWEST} methods, or all are equal"), (1.0, 1.0)
    each = np.stack([taus_b(drawn[:, place], samples[:, place]) for place in usable], axis=1)
    if len(usable) < len(values):
        chosen = np.random.default_rng(0).integers(len(usable), size=(len(chosen), len(usable)))
    resampled = np.take_along_axis(each, chosen, axis=1).mean(axis=1)
    value = float(np.mean([tau for tau in taus if tau is not None]))
    ends = np.nanquantile(resampled, [0.025, 0.975])
    both = np.clip([*ends, *(2 * value - ends), value], -1, 1)
    methods = min(int((~np.isnan(values[place] + other[place])).sum()) for place in usable)
    zero, useful = (_p_value(value, resampled[~np.isnan(resampled)], limit) for limit in (0.0, USEFUL))
    entry = Entry(value, float(min(both)), float(max(both)), "correlation", methods)
    return entry, (zero, useful if value < USEFUL else 1.0)


def _p_value(value: float, resampled: NDArray, limit: float) -> float:
    """The two-sided p-value of "tau is ``limit``", from the samples beyond it and beyond its reflection at the value."""
    side = 1 if value > limit else -1
    beyond = max((side * resampled <= side * limit).sum(), (side * resampled >= side * (2 * value - limit)).sum())
    return float(min(2 * (beyond + 1) / (len(resampled) + 1), 1.0))


def _known(x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    known = ~np.isnan(x + y)
    return x[known], y[known]


def _columns(part: pd.DataFrame, view: View) -> dict[str, Scored]:
    """The view's columns that records fill."""
    concepts, methods = (list(dict.fromkeys(part[name])) for name in ("concepts", "method"))
    seeds = sorted(dict.fromkeys(part["seed"].astype(str)))
    places = [{name: i for i, name in enumerate(names)} for names in (concepts, methods, seeds)]
    found = {}
    for title, column in view.columns.items():
        chosen = column.chosen(part, view.rows)
        chosen = (
            chosen[chosen[column.field].notna()]
            .sort_values("n")
            .drop_duplicates(["concepts", "method", "seed"], keep="last")
        )
        if chosen.empty:
            continue
        shape = (len(concepts), len(methods), len(seeds))
        values, errors = np.full(shape, np.nan), np.full(shape, np.nan)
        named = zip(chosen["concepts"], chosen["method"], chosen["seed"].astype(str), strict=True)
        index = tuple(np.array([[places[axis][name] for axis, name in enumerate(key)] for key in named]).T)
        values[index] = chosen[column.field].to_numpy(float)
        low, high = ("low", "high") if column.field == "value" else (f"{column.field}_low", f"{column.field}_high")
        below, above = (abs(chosen[name].to_numpy(float) - chosen[column.field]) for name in (low, high))
        errors[index] = (below.fillna(above) + above.fillna(below)) / (2 * NORMAL)  # of one side if the other is open
        found[title] = Scored(values, errors, chosen["direction"].iloc[0])
    return found


def _notes(found: Mapping[str, Sequence[Entry]], tests: Mapping[str, tuple[float, float]], last: str) -> list[str]:
    """Which scores are shown to order the methods as the last column does, and which are shown not to, by corrected ``tests``."""
    place = found[""].index(last)
    orders, useless = (
        (benjamini_hochberg(list(p)).rejected for p in zip(*tests.values(), strict=True)) if tests else ([], [])
    )
    groups: dict[str, list[str]] = {"orders": [], "not": [], "open": []}
    for name, ordering, other in zip(tests, orders, useless, strict=True):
        above = ordering and (found[name][place].value or 0.0) > 0
        groups["orders" if above else "not" if other else "open"].append(name)
    said = {
        "orders": f"Shown to order the methods by {last} (τ above 0)",
        "not": f"Shown to be of little use for it (τ shown to be below {USEFUL:g}, not shown to be above 0)",
        "open": "Neither is shown",
    }
    corrected = (
        f"Tests of both are corrected by Benjamini–Hochberg over the {len(tests)} scores, 5 % level. "
        "Intervals are not corrected, so one of them can exclude 0 where nothing is shown."
    )
    return [*(f"{said[group]}: {', '.join(names) or 'none'}." for group, names in groups.items()), corrected]


def _best_pair(
    means: Mapping[str, NDArray], scores: Sequence[str], truth: NDArray, found: Mapping[str, Sequence[Entry]]
) -> list[str]:
    """What the best combination of two scores gains over the best single one."""
    from scipy.stats import rankdata

    whole = [name for name in scores if not np.isnan(means[name]).any() and found[name][-1].value is not None]
    if len(whole) < 2 or np.isnan(truth).any():
        return []

    def tau(ranks: NDArray) -> float:
        taus = [kendall_tau_b(own, other).value for own, other in zip(ranks, truth, strict=True)]
        return float(np.mean([0.0 if tau is None else tau for tau in taus]))

    ranks = {name: rankdata(means[name], axis=1) for name in whole}
    single = {name: tau(ranks[name]) for name in whole}
    pairs = {(one, other): tau(ranks[one] + ranks[other]) for one, other in combinations(whole, 2)}
    best, pair = max(single, key=lambda name: single[name]), max(pairs, key=lambda name: pairs[name])
    return [
        f"Best single score: {best} (τ {single[best]:.2f}). Best mean of two ranks: {pair[0]} and {pair[1]} "
        f"(τ {pairs[pair]:.2f}), the best of {len(pairs)} pairs."
    ]
