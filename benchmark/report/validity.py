"""Does a published score order the erasers as their distance to the gold reference does?

For a score and a distance, Kendall's tau-b is taken between the orders of the methods in each concept set and averaged
over the concept sets: 1 if the score always prefers the eraser nearer to the gold reference, 0 for no relation, −1 for the
reverse. Seeds of a method are averaged before.

Intervals are made of 2,000 bootstrap samples. Each draws the concept sets with replacement, a seed of each method, and every
figure from a normal distribution with the standard error of its interval, independently between methods and figures. An interval
holds both the percentiles of the samples and their reflection at the value (the basic bootstrap interval). For these concepts
it is wider than necessary. For others it is too narrow, because four concepts say little about the variance between concepts.

Noise pulls tau towards 0. Let r be the share of the variance between methods that is not noise, in a concept set. If figures
are normal, a score whose figures without noise have the tau t with those of the distance is measured with (Greiner's relation)

    attenuated tau      2/π arcsin((r_score r_distance)^½ sin(π t / 2))

For t = 1 this is the tau that is expected of a perfect score, its `reach`. Noise is that of the prompts. The errors of
different methods are taken as independent; methods share prompts and start noise, and an error that they all have does not
change their order, so r is too small in this respect. It is too large if seeds of training, of attacks and of the gold reference
add noise that one run does not show.

What is shown of the scores comes from three tests, each corrected by Benjamini and Hochberg over all scores of the table:

    orders              tau is not 0 on these concepts: in 2,000 permutations, methods exchange their distances, in the same way
                        on each concept set. Unlike the samples, permutations allow for orders that agree by chance
    for other concepts  tau is not 0 in the samples, which also draw the concept sets, nor in the permutations
    little use          tau is below the attenuated tau of `USEFUL`, in the samples. With much noise, that is near 0

The distances differ in spread, so that one of them can dominate their mean. In `STANDARDISED`, each is first divided by its
standard deviation between the methods of a concept set.

The best two scores are those whose mean of ranks has the largest tau with the mean distance. They were chosen on the
same records, so that their gain is an upper bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from overpaint.grid.cells import gold_references
from overpaint.report.directions import loss
from overpaint.report.statistics import NORMAL, benjamini_hochberg, kendall_tau_b, taus_b
from overpaint.report.tables import Entry, Head, Row, Table, blocks_of, provenance
from overpaint.report.views import View

#: Number of bootstrap samples.
SAMPLES = 2_000
#: Fewer methods have no order worth a figure.
FEWEST = 4
#: A tau of figures without noise below this is no useful agreement.
USEFUL = 0.5
#: The name of the column with the tau that is expected of a perfect score.
REACH = "reach"
ALL = "all distances"
STANDARDISED = "standardised distances"
#: Units whose lower limits are reduced for the bias of few images (`overpaint.metrics.gold`). Upper limits give the error.
LOWERED = ("labels",)


@dataclass(frozen=True)
class Scored:
    """One column: its figures with their standard errors ``(concepts, methods, seeds)``, NaN where there is none."""

    values: NDArray
    errors: NDArray
    direction: str

    def means(self) -> NDArray:
        """Means over the seeds ``(concepts, methods)``, turned so that larger is better."""
        return -loss(_over_seeds(self.values), self.direction)

    def seeds(self) -> NDArray:
        """The number of seeds with a figure (concepts, methods), at least 1."""
        return np.maximum((~np.isnan(self.values)).sum(axis=2), 1)

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
        part = part[~part["method_name"].isin(gold_references())]  # their own distance is 0
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


@dataclass(frozen=True)
class Side:
    """One side of a tau: figures (concepts, methods), the same redrawn from one seed (samples, concepts, methods), and the number
    of seeds behind the figures (concepts, methods)."""

    values: NDArray
    drawn: NDArray
    seeds: NDArray

    @cached_property
    def reliability(self) -> NDArray:
        """The share of the variance between methods that is not noise (concepts,), if their errors are independent."""
        noise, total = (_mean(spread) for spread in (self.drawn.var(axis=0) / self.seeds, self.deviations()))
        varied = total > 0  # false without figures, too
        return np.where(varied, np.clip(1 - noise / np.where(varied, total, 1), 0, 1), 0)

    def deviations(self) -> NDArray:
        """Squared deviations from the mean of the methods (concepts, methods), whose mean is the unbiased variance."""
        count = (~np.isnan(self.values)).sum(axis=1, keepdims=True)
        return (self.values - _mean(self.values)[:, None]) ** 2 * count / np.maximum(count - 1, 1)


def _mean(figures: NDArray) -> NDArray:
    """Means over the methods (concepts,) of the known figures (concepts, methods), NaN without any."""
    return _over_seeds(figures[:, None, :])[:, 0]


def attenuated(tau: float, reliability: NDArray) -> NDArray:
    """The tau of figures with noise, if ``tau`` is that of the figures without; ``reliability`` is the product of both sides'."""
    return 2 / np.pi * np.arcsin(np.sqrt(reliability) * np.sin(np.pi * tau / 2))


def agreements(scores: Mapping[str, Scored], truths: Mapping[str, Scored]) -> tuple[dict[str, list], list[str]]:
    """Entries of every score, the names of their columns under ``""``, and notes about them."""
    generator = np.random.default_rng(0)
    example = next(iter(truths.values())).values
    concepts, methods, seeds = example.shape
    picks = generator.integers(seeds, size=(SAMPLES, methods))
    chosen = generator.integers(concepts, size=(SAMPLES, concepts))
    sides = {
        name: Side(column.means(), column.drawn(picks, generator), column.seeds())
        for name, column in {**truths, **scores}.items()
    }
    against = {name: sides[name] for name in truths}
    if len(truths) > 1:
        parts = ([getattr(sides[name], what) for name in truths] for what in ("values", "drawn", "seeds"))
        values, drawn, counts = (np.array(part) for part in parts)
        scale = np.sqrt([_mean(sides[name].deviations()) for name in truths])[:, :, None]  # (distances, concepts, 1)
        scale = np.where(scale > 0, scale, 1)
        weights = {ALL: np.ones_like(scale), STANDARDISED: scale}
        for title, each in weights.items():
            noisy = (drawn / each[:, None]).mean(axis=0)
            against[title] = Side((values / each).mean(axis=0), noisy, counts.mean(axis=0))
    places = np.argsort(generator.random((SAMPLES, methods)), axis=1)
    last = ALL if ALL in against else next(iter(against))
    found: dict[str, list] = {"": [*against, REACH]}
    tests: dict[str, tuple[float, float, float]] = {}
    for name in scores:
        agreed = {title: _agreement(sides[name], side, chosen) for title, side in against.items()}
        entries = {title: entry for title, (entry, _) in agreed.items()}
        reach = Entry(None, unit="correlation", why=entries[last].why)
        if entries[last].value is not None:
            reach = Entry(_reach(sides[name], against[last]), unit="correlation")
            tests[name] = _tests(sides[name], against[last], *agreed[last], places)
        found[name] = [*entries.values(), reach]
    return found, [*_notes(found, tests, last), *_best_pair(sides, list(scores), against[last].values, found, last)]


def _usable(score: Side, distance: Side) -> list[int]:
    """The concepts with an order."""
    known = (~np.isnan(score.values + distance.values)).sum(axis=1)
    return [place for place, count in enumerate(known) if count >= FEWEST]


def _reach(score: Side, distance: Side, tau: float = 1.0) -> float:
    """The mean `attenuated` tau over concepts."""
    usable = _usable(score, distance)
    return float(attenuated(tau, (score.reliability * distance.reliability)[usable]).mean())


def _resampled(score: Side, distance: Side, chosen: NDArray) -> NDArray:
    """Mean taus of resampled figures (samples,)."""
    usable = _usable(score, distance)
    each = np.stack([taus_b(score.drawn[:, place], distance.drawn[:, place]) for place in usable], axis=1)
    if len(usable) < len(score.values):
        chosen = np.random.default_rng(0).integers(len(usable), size=(len(chosen), len(usable)))
    resampled = np.take_along_axis(each, chosen, axis=1).mean(axis=1)
    return resampled[~np.isnan(resampled)]


def _agreement(score: Side, distance: Side, chosen: NDArray) -> tuple[Entry, NDArray]:
    """The mean tau over concepts with its interval, and the resampled means behind it (samples,)."""
    usable = _usable(score, distance)
    taus = [kendall_tau_b(*_known(score.values[place], distance.values[place])).value for place in usable]
    known = [tau for tau in taus if tau is not None]
    if not usable or len(known) < len(taus):
        return Entry(None, unit="correlation", why=f"fewer than {FEWEST} methods, or all are equal"), np.array([])
    value, resampled = float(np.mean(known)), _resampled(score, distance, chosen)
    ends = np.quantile(resampled, [0.025, 0.975])
    both = np.clip([*ends, *(2 * value - ends), value], -1, 1)
    methods = min(int((~np.isnan(score.values[place] + distance.values[place])).sum()) for place in usable)
    return Entry(value, float(min(both)), float(max(both)), "correlation", methods), resampled


def _tests(
    score: Side, distance: Side, entry: Entry, resampled: NDArray, places: NDArray
) -> tuple[float, float, float]:
    """p-values of "tau is 0" on these concepts and on others, and of "tau is at least that of a useful score with as much noise".

    ``places`` (permutations, methods) are new places of the methods.
    """
    value, usable = float(entry.value or 0.0), _usable(score, distance)
    exchanged = np.mean(
        [
            taus_b(np.broadcast_to(score.values[place], places.shape), distance.values[place][places])
            for place in usable
        ],
        axis=0,
    )
    here = float(((np.abs(exchanged) >= abs(value) - 1e-12).sum() + 1) / (len(places) + 1))
    limit = _reach(score, distance, USEFUL)
    useless = _p_value(value, resampled, limit) if value < limit else 1.0
    return here, max(here, _p_value(value, resampled, 0.0)), useless


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
        below = below.mask(chosen["unit"].isin(LOWERED) & above.notna(), above)
        errors[index] = (below.fillna(above) + above.fillna(below)) / (2 * NORMAL)  # of one side if the other is open
        found[title] = Scored(values, errors, chosen["direction"].iloc[0])
    return found


def _notes(
    found: Mapping[str, Sequence[Entry]], tests: Mapping[str, tuple[float, float, float]], last: str
) -> list[str]:
    """Which scores are shown to order the methods as column ``last`` does, or to be of little use, by corrected ``tests``."""
    place = found[""].index(last)
    tried = [benjamini_hochberg(list(p)).rejected for p in zip(*tests.values(), strict=True)] if tests else [[]] * 3
    groups: dict[str, list[str]] = {"orders": [], "elsewhere": [], "reverse": [], "little": [], "open": []}
    for name, here, elsewhere, little in zip(tests, *tried, strict=True):
        above = (found[name][place].value or 0.0) > 0
        shown = {
            "orders": here and above,
            "elsewhere": elsewhere and above,
            "reverse": here and not above,
            "little": little,
        }
        for group in [group for group, yes in shown.items() if yes] or ["open"]:
            groups[group].append(name)
    said = {
        "orders": f"Shown to order the methods by {last} on these concepts (τ above 0)",
        "elsewhere": "Of these, also shown if the concepts are a sample of all concepts",
        "reverse": "Shown to order them in reverse on these concepts (τ below 0)",
        "little": f"Shown to be of little use (without noise, τ would be below {USEFUL:g})",
        "open": "None of these is shown",
    }
    reach = (
        f"{REACH}: the τ with {last} that is expected of a perfect score whose figures have as much noise of prompts as this "
        "one's, if the noise of different methods is independent. Noise of training, attack and gold seeds is left out."
    )
    corrected = (
        f"Each kind of test is corrected by Benjamini–Hochberg over the {len(tests)} scores, 5 % level. "
        "Intervals are not corrected, and also allow for the choice of concepts."
    )
    return [*(f"{said[group]}: {', '.join(names) or 'none'}." for group, names in groups.items()), corrected, reach]


def _best_pair(
    sides: Mapping[str, Side], scores: Sequence[str], truth: NDArray, found: Mapping[str, Sequence[Entry]], last: str
) -> list[str]:
    """What the best combination of two scores gains over the best single one."""
    from scipy.stats import rankdata

    place = found[""].index(last)
    whole = [name for name in scores if not np.isnan(sides[name].values).any() and found[name][place].value is not None]
    if len(whole) < 2 or np.isnan(truth).any():
        return []

    def tau(ranks: NDArray) -> float:
        taus = [kendall_tau_b(own, other).value for own, other in zip(ranks, truth, strict=True)]
        return float(np.mean([0.0 if tau is None else tau for tau in taus]))

    ranks = {name: rankdata(sides[name].values, axis=1) for name in whole}
    single = {name: tau(ranks[name]) for name in whole}
    pairs = {(one, other): tau(ranks[one] + ranks[other]) for one, other in combinations(whole, 2)}
    best, pair = max(single, key=lambda name: single[name]), max(pairs, key=lambda name: pairs[name])
    return [
        f"Best single score: {best} (τ {single[best]:.2f}). Best mean of two ranks: {pair[0]} and {pair[1]} "
        f"(τ {pairs[pair]:.2f}), the best of {len(pairs)} pairs."
    ]
