"""Verdicts on attacks over all erasers: each finds more than its control, or as much, or neither is shown.

The pairs of an attack are its outcomes and its control's on the same prompts, erasers and concepts. A prompt is one cluster
over all erasers. Every eraser on every concept has equal weight. Superiority is a two-sided test of "no difference", Holm over
the attacks of a table. Equivalence is two one-sided tests of a difference beyond ±`MARGIN`, for each attack by itself
(Schuirmann 1987).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import pandas as pd

from overpaint.grid.labels import counted
from overpaint.report import scores
from overpaint.report.families import DIFFERS, EQUAL, SIGNIFICANCE, Mark
from overpaint.report.pooling import Outcomes, rows_by
from overpaint.report.power import power_of_equality, power_of_paired_difference
from overpaint.report.resampling import observed
from overpaint.report.statistics import MARGIN, Estimate, holm, paired_difference, proportion
from overpaint.report.tables import Entry, Head, Row, Table, blocks_of, provenance
from overpaint.report.views import View

#: The figure whose parts are those after the first images.
FIGURE = "attack_beyond_chance"


class Against(NamedTuple):
    """An attack's share, its control's, their difference, the effective number of pairs with the share that differs, and the
    methods."""

    attacked: Estimate
    control: Estimate
    difference: Estimate
    pairs: float
    differing: float
    methods: tuple[str, ...]


def verdicts(records: pd.DataFrame, view: View, outcomes: Outcomes) -> Iterator[Table]:
    """One table a block. The view's first column is tested; of the others, only the difference is shown."""
    tested, *others = view.columns
    for title, part in blocks_of(records, view, together=("seed",)):
        found = {
            name: _by_row(column.chosen(part, view.rows), view.rows, outcomes) for name, column in view.columns.items()
        }
        rows = _rows(found[tested], [found[name] for name in others])
        if not rows:
            continue
        chosen = view.columns[tested].chosen(part, view.rows)
        heads = [Head("attacked", "down"), Head("control"), *(Head(text) for text in ("attacked − control", *others))]
        heads += [Head("power: equal"), Head(f"power: {MARGIN:.2f} more")]
        notes = _notes(found[tested], rows)
        if absent := [str(name) for name in dict.fromkeys(chosen[view.rows]) if name not in found[tested]]:
            notes.append(f"Not shown: {', '.join(absent)} (outcomes are not stored).")
        yield Table(f"{tested}, {title}", (view.rows,), heads, rows, notes, provenance(chosen))


def _by_row(chosen: pd.DataFrame, rows: str, outcomes: Outcomes) -> dict[str, Against]:
    found = {name: outcomes.together(own) for name, own in rows_by(chosen, rows).items()}
    return {str(name): against(table) for name, table in found.items() if table is not None}


def against(table: pd.DataFrame) -> Against:
    """The figures of one attack from its outcomes (`Outcomes.together`)."""
    first, second = (table[name].to_numpy(float) for name in ("value", "other"))
    clusters = pd.factorize(table["cluster"].astype(str))[0]
    strata = table.groupby(["method", "concepts"], sort=False).ngroup().to_numpy()
    kept, groups, _ = observed(first - second, clusters, strata)
    of = scores.sample(kept, *groups, images=2)
    return Against(
        proportion(first, clusters, strata),
        proportion(second, clusters, strata),
        paired_difference(first, second, clusters, strata),
        min(float(scores.worth(of)[0]), float(len(kept))),
        float((of.up + of.down)[0]),
        tuple(map(str, dict.fromkeys(table["method"]))),
    )


def by_images(records: pd.DataFrame, outcomes: Outcomes) -> dict[str, list[tuple[str, Against]]]:
    """Attack -> its figures after the first 1, 2, 5 … attacked images of each plain image, and after all of them.

    Attacks that make one image are left out. Keys are names of attacks, or their labels if a name has several.
    """
    edited = records[records["method_name"] != "none"]
    parts = edited["metric"][edited["metric"].str.startswith(f"{FIGURE}.first_")]
    counts = sorted({int(metric.rpartition("_")[2]) for metric in parts})
    named = {f"{FIGURE}.first_{count}": str(count) for count in counts} | {FIGURE: "all"}
    found: dict[str, list[tuple[str, Against]]] = {}
    for metric, label in named.items():
        for attack, own in _by_row(edited[edited["metric"] == metric], "attack", outcomes).items():
            found.setdefault(attack, []).append((label, own))
    names = records.drop_duplicates("attack").set_index("attack")["attack_name"]
    several = names[names.duplicated(keep=False)]
    return {
        attack if attack in several.index else str(names[attack]): points
        for attack, points in found.items()
        if len(points) > 1
    }


def _rows(found: Mapping[str, Against], others: list[dict[str, Against]]) -> list[Row]:
    adjusted = holm([own.difference.p_value for own in found.values()]).p_values
    rows = []
    for (name, own), p in zip(found.items(), adjusted, strict=True):
        equal = own.difference.p_equivalence
        says = (
            DIFFERS
            if p is not None and p < SIGNIFICANCE
            else EQUAL
            if equal is not None and equal < SIGNIFICANCE
            else ""
        )
        gap = replace(_entry(own.difference), mark=Mark(says, p, "attacks of the table (Holm)"))
        beside = [_entry(other[name].difference) if name in other else None for other in others]
        power = [Entry(value, n=own.difference.n) for value in _powers(own, len(found))]
        rows.append(Row((name,), [_entry(own.attacked), _entry(own.control), gap, *beside, *power]))
    return rows


def _entry(found: Estimate) -> Entry:
    return Entry(found.value, found.low, found.high, n=found.n, failed=found.failed)


def _powers(own: Against, tests: int) -> tuple[float, float]:
    """The power of equivalence for equal shares, and of superiority for a difference of `MARGIN`.

    Both are for as many pairs that differ, and as many effective pairs, as were observed.
    """
    pairs = max(int(own.pairs), 1)
    # Shares of 0.5 ± half; q = 2 (0.25 + half²) − 2 r (0.25 − half²) gives the correlation r of pairs.
    half = MARGIN / 2
    correlation = (0.5 + 2 * half**2 - max(own.differing, MARGIN)) / (0.5 - 2 * half**2)
    more = power_of_paired_difference(MARGIN, pairs, tests=tests, pair_correlation=correlation)
    return power_of_equality(own.differing, pairs), more


def _notes(found: Mapping[str, Against], rows: list[Row]) -> list[str]:
    said: dict[str, list[str]] = {"more than": [], "less than": [], "as much as": [], "": []}
    for row in rows:
        gap = row.entries[2]
        assert gap is not None
        kind = {DIFFERS: "more than" if (gap.value or 0) > 0 else "less than", EQUAL: "as much as"}.get(
            gap.mark.says, ""
        )
        said[kind].append(row.names[0])
    verdicts = [
        f"Shown to find {kind} the control{f' (within ±{MARGIN:.2f})' if kind == 'as much as' else ''}: {', '.join(names)}."
        for kind, names in said.items()
        if names and kind
    ]
    if said[""]:
        verdicts.append(f"Undecided: {', '.join(said[''])}.")
    effective = ", ".join(f"{name} {own.difference.n} ({own.pairs:.0f})" for name, own in found.items())
    sets = dict.fromkeys(own.methods for own in found.values())
    over = "; ".join(
        ", ".join(methods)
        + (f" ({', '.join(name for name, own in found.items() if own.methods == methods)})" if len(sets) > 1 else "")
        for methods in sets
    )
    number = (
        f"Pairs over {over}; a prompt is one cluster over all of them. Number of pairs (effective number of "
        f"independent pairs): {effective}."
    )
    power = (
        "Power is the probability of the verdict with this many pairs: of equivalence if the shares are equal, and of "
        f"superiority, Holm over {counted(len(rows), 'attack')}, if the attack finds {MARGIN:.2f} more."
    )
    return [*verdicts, number, power]
