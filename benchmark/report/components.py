"""Where a figure's variance comes from: concepts, method seeds, prompts, and the rest.

The outcome y of method seed s on prompt p of concept c is modelled as

    y = μ + C_c + S_cs + P_cp + R_csp

with independent parts. Their variances are estimated from the mean squares of a balanced layout, as in an analysis of
variance with random effects (Searle, Casella and McCulloch 1992, chapter 4): prompts and seeds are crossed within a
concept. Negative estimates are 0. Intervals are generalised confidence intervals (Weerahandi 1993): every mean square M
with f degrees of freedom is replaced by M f / W for W from χ²(f). This assumes normal parts, and outcomes are often 0 or 1. The
squares of such deviations vary more, so f is reduced. With the excess kurtosis γ of the n deviations of a part (Box 1953),

    f' = f / (1 + γ f / 2n)

For the rest, f' is also at most 2 M² / Var M, with Var M estimated from the mean squares of single seeds, or of single prompts.
There are no intervals with hits on fewer than `FEWEST` prompts, or misses on fewer, nor for a part whose mean square is 0. If one
seed in twenty fails, but none of those that were run did, no interval shows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from overpaint.report.pooling import Outcomes, rows_by
from overpaint.report.statistics import TINY, kendall_tau_b
from overpaint.report.tables import Entry, Head, Row, Table, blocks_of, provenance
from overpaint.report.views import View

#: What varies, in the order of `components`.
PARTS = ("concepts", "seeds", "prompts", "the rest")
#: Number of draws of the mean squares.
DRAWS = 4_000
#: Fewer prompts with a hit, or with a miss, do not show how outcomes vary.
FEWEST = 10


def spreads(records: pd.DataFrame, view: View, outcomes: Outcomes) -> Iterator[Table]:
    """One table per block and column of the view: the standard deviations of each method's parts."""
    for title, part in blocks_of(records, view, together=("seed",)):
        for name, column in view.columns.items():
            chosen = column.chosen(part, view.rows)
            layouts = {
                str(method): crossed(outcomes.together(own)) for method, own in rows_by(chosen, "method").items()
            }
            values = {method: found.values for method, found in layouts.items() if found.values is not None}
            if not values:
                continue
            unit = chosen["unit"].iloc[0]
            rows = [Row((method,), entries_of(found, unit)) for method, found in values.items()]
            heads = [Head(name, chosen["direction"].iloc[0]), *(Head(f"σ of {what}") for what in PARTS)]
            yield Table(
                f"Spread of {name}, {title}",
                ("method",),
                heads,
                rows,
                [*_notes(values), *_left_out(layouts)],
                provenance(chosen),
            )


class Layout(NamedTuple):
    """Outcomes ``(concepts, seeds, prompts)``, ``None`` if they have no spread, and what was left out or lacks."""

    values: NDArray | None
    why: str = ""


def crossed(found: pd.DataFrame | None) -> Layout:
    """The layout of one method's outcomes (`Outcomes.together`): the prompts that every seed has.

    Each image of a prompt counts as a prompt of its own. If concepts have different numbers of prompts, the first ones of each
    are used.
    """
    if found is None:
        return Layout(None, "outcomes are not stored")
    tables, lost = {}, 0
    for concept, own in found.groupby("concepts", sort=False):
        unit = own["prompt_id"].astype(str) + "|" + own["seed"].astype(str) + "|" + own["label"].astype(str)
        table = own.assign(unit=unit).pivot_table("value", "run", "unit", sort=False)
        tables[str(concept)] = table.dropna(axis=1).to_numpy(float)
        lost += table.shape[1] - tables[str(concept)].shape[1]
    seeds = {concept: len(table) for concept, table in tables.items()}
    if min(seeds.values()) < 2:
        return Layout(None, "one method seed")
    if len(set(seeds.values())) > 1:
        listed = ", ".join(f"{concept} {count}" for concept, count in seeds.items())
        return Layout(None, f"different numbers of seeds: {listed}")
    prompts = min(table.shape[1] for table in tables.values())
    if prompts < 2:
        return Layout(None, "fewer than two prompts that every seed has")
    lost += sum(table.shape[1] - prompts for table in tables.values())
    values = np.stack([table[:, :prompts] for table in tables.values()])
    return Layout(values, f"{lost} of {lost + len(tables) * prompts} prompts" if lost else "")


class Deviations(NamedTuple):
    """Deviations of the means of concepts (concepts,), seeds (concepts, seeds) and prompts (concepts, prompts), and of single
    outcomes (concepts, seeds, prompts)."""

    concepts: NDArray
    seeds: NDArray
    prompts: NDArray
    rest: NDArray


def deviations(values: NDArray) -> Deviations:
    """The deviations of outcomes (concepts, seeds, prompts), whose mean squares are those of the layout."""
    by_concept, by_seed, by_prompt = values.mean((1, 2)), values.mean(2), values.mean(1)
    rest = values - by_seed[:, :, None] - by_prompt[:, None, :] + by_concept[:, None, None]
    return Deviations(
        by_concept - by_concept.mean(), by_seed - by_concept[:, None], by_prompt - by_concept[:, None], rest
    )


def components(values: NDArray, draws: NDArray | None = None) -> NDArray:
    """Variances of the `PARTS`, ``(4,)``, of outcomes (concepts, seeds, prompts).

    ``draws`` (n, 4) are factors of the mean squares of concepts, seeds, prompts and the rest; with them, the result is
    ``(n, 4)``. With one concept, its variance is NaN.
    """
    _, seeds, prompts = values.shape
    freedom, found = _freedom(values.shape), deviations(values)
    squares = np.array([(part**2).sum() for part in found]) * (seeds * prompts, prompts, seeds, 1)
    mean_squares = squares / np.where(freedom > 0, freedom, np.nan)
    of_concepts, of_seeds, of_prompts, left = (mean_squares if draws is None else mean_squares * draws).T
    variances = [
        (of_concepts - of_seeds - of_prompts + left) / (seeds * prompts),
        (of_seeds - left) / prompts,
        (of_prompts - left) / seeds,
        left,
    ]
    return np.maximum(np.stack(variances, axis=-1), 0.0)


def _freedom(shape: tuple[int, ...]) -> NDArray:
    concepts, seeds, prompts = shape
    return np.array(
        [concepts - 1, concepts * (seeds - 1), concepts * (prompts - 1), concepts * (seeds - 1) * (prompts - 1)]
    )


def effective_freedom(values: NDArray) -> NDArray:
    """Degrees of freedom (4,) of the mean squares, reduced for deviations whose squares vary more than normal ones."""
    found = deviations(values)
    freedom = np.maximum(_freedom(values.shape), 1).astype(float)
    for place, part in enumerate(found[1:], start=1):  # of the few concepts, kurtosis says nothing
        if (variance := (part**2).mean()) > 0:
            kurtosis = max(float((part**4).mean() / variance**2) - 3, 0.0)
            freedom[place] /= 1 + kurtosis * freedom[place] / (2 * part.size)
    for axis in (1, 2):
        squares = (found.rest**2).mean(axis).ravel()
        if (error := squares.var(ddof=1) / len(squares)) > 0:
            freedom[3] = min(freedom[3], 2 * squares.mean() ** 2 / error)
    return np.maximum(freedom, 1)


def few_vary(values: NDArray) -> bool:
    """Whether outcomes of 0 and 1 have hits, or misses, on too few prompts for intervals."""
    return bool(np.isin(values, (0, 1)).all() and min(side.max(1).sum() for side in (values, 1 - values)) < FEWEST)


def entries_of(values: NDArray, unit: str) -> list[Entry]:
    """The mean of the outcomes, and the standard deviations of the parts with their intervals."""
    generator, freedom = np.random.default_rng(0), effective_freedom(values)
    draws = freedom / generator.chisquare(freedom, (DRAWS, len(PARTS)))
    found = np.sqrt(components(values))
    low, high = np.quantile(np.sqrt(components(values, draws)), [0.025, 0.975], axis=0)
    few = few_vary(values)
    entries = [Entry(float(values.mean()), unit=unit, n=values.size)]
    for value, lowest, highest in zip(found, low, high, strict=True):
        if np.isnan(value):
            entries.append(Entry(None, unit=unit, why="one concept set"))
        elif few or highest < TINY:
            entries.append(Entry(float(value), unit=unit, n=values.size))
        else:
            limits = float(min(lowest, value)), float(max(highest, value))
            entries.append(Entry(float(value), *limits, unit=unit, n=values.size))
    return entries


def _left_out(layouts: Mapping[str, Layout]) -> list[str]:
    """What the table lacks: methods, and prompts of the methods that it shows."""
    absent = ", ".join(f"{name} ({found.why})" for name, found in layouts.items() if found.values is None)
    partly = ", ".join(
        f"{name} ({found.why})" for name, found in layouts.items() if found.values is not None and found.why
    )
    said = {"Not shown: {}.": absent, "Left out for a balanced layout: {}.": partly}
    return [sentence.format(named) for sentence, named in said.items() if named]


def _notes(values: Mapping[str, NDArray]) -> list[str]:
    """What the layout is, and how far single seeds order the methods alike."""
    notes = [
        "σ is a standard deviation of outcomes: between concepts, between the means of seeds, between the means of "
        "prompts, and what is left of single images. Layout (concepts × seeds × prompts): "
        + ", ".join(f"{method} {'×'.join(map(str, found.shape))}" for method, found in values.items())
        + "."
    ]
    few = [name for name, found in values.items() if few_vary(found)]
    if few:
        notes.append(f"No intervals: hits or misses on fewer than {FEWEST} prompts ({', '.join(few)}).")
    seeds = {found.shape[1] for found in values.values()}
    if len(values) < 2 or len(seeds) > 1:
        return notes
    means = np.stack([found.mean((0, 2)) for found in values.values()])  # (methods, seeds)
    pairs = list(combinations(range(len(means)), 2))
    order = np.array([np.sign(np.round(means[one] - means[other], 12)) for one, other in pairs])
    kept = int((np.abs(order.sum(axis=1)) == order.shape[1]).sum())
    taus = [kendall_tau_b(*means[:, [one, other]].T).value for one, other in combinations(range(means.shape[1]), 2)]
    known = [tau for tau in taus if tau is not None]
    if known:
        tied = f", in {len(known)} of {len(taus)} pairs of seeds; in the others a seed ties all methods"
        notes.append(
            f"Two seeds order the methods with a mean Kendall's τ of {np.mean(known):.2f} (lowest {min(known):.2f})"
            f"{tied if len(known) < len(taus) else ''}. "
            f"{kept} of {len(pairs)} pairs of methods have the same strict order with every seed."
        )
    return notes
