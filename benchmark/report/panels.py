"""Panels: attacks × methods, with the same figure for the attack's controls in each cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import pandas as pd

from overpaint.grid.scope import OUTSIDE
from overpaint.report.pooling import FIELDS
from overpaint.report.records import number_of
from overpaint.report.statistics import benjamini_hochberg
from overpaint.report.tables import SETTINGS, Entry, Head, Row, Table, distinguished, provenance, several_of, under
from overpaint.report.views import Column, View

#: Standings of an attack: above all controls of its cell, or above the first one only.
ABOVE_ALL, ABOVE_FIRST = "above all controls", "above the first control"


def panels(records: pd.DataFrame, view: View) -> Iterator[Table]:
    """One table per model, concept set and setting. Rows are attacks, columns are methods without the unedited model.

    The view's first column is the figure of an attack; the others are those of its controls, shown beside it. An attack is above
    a control if its difference to it is positive and significant after the correction of Benjamini and Hochberg over all
    differences of the table, so that cells can be counted over methods.
    """
    found = distinguished(records)
    found = found[found["against"] == "control"]
    several = several_of(found, SETTINGS)
    titles = list(view.columns)
    for (model, concepts, kind, *values), part in found.groupby(
        ["model", "concepts", "kind", *several], sort=False, dropna=False
    ):
        part = part[part["method_name"] != "none"]
        methods = list(dict.fromkeys(part["method"]))
        by_metric: dict[str, dict[tuple[str, str], pd.Series]] = {}
        for _, record in part.iterrows():
            by_metric.setdefault(record["metric"], {})[record["method"], record["attack"]] = record
        if any(column.metric not in by_metric for column in view.columns.values()):
            continue
        attacks = dict.fromkeys(part["attack"])
        places = [(method, attack) for attack in attacks for method in methods]
        chosen = {place: _chosen(by_metric, view.columns, place) for place in places}
        tests = {place: _controls(own) for place, own in chosen.items()}
        p_values = [number_of(test["p_value"]) for own in tests.values() for test in own]
        apart = iter(benjamini_hochberg(p_values).rejected)
        above = {place: [bool(next(apart)) and test["difference"] > 0 for test in own] for place, own in tests.items()}
        rows = []
        for attack in attacks:
            entries = [_cell(chosen[method, attack], above[method, attack]) for method in methods]
            if any(entry is not None for entry in entries):
                rows.append(Row((attack,), entries))
        note = (
            f"Each cell: {' / '.join(titles)}. Bold: above all controls; italic: above {titles[1]} only (positive differences, "
            f"Benjamini–Hochberg over the {sum(p is not None for p in p_values)} differences of the table, 5 % level)."
        )
        title = f"{concepts} ({kind}) on {model}{under(several, values)}"
        yield Table(title, ("attack",), list(map(Head, methods)), rows, [note], provenance(part))


#: The records of one cell with the field that each shows: the attack's and those of its controls; empty if one is missing.
Shown: TypeAlias = "list[tuple[str, pd.Series]]"


def _chosen(
    by_metric: Mapping[str, Mapping[tuple[str, str], pd.Series]], columns: Mapping[str, Column], place: tuple[str, str]
) -> Shown:
    """The records of one attack on one method."""
    found = [(column.field, by_metric[column.metric].get(place)) for column in columns.values()]
    known = [(field, record) for field, record in found if record is not None]
    return known if len(known) == len(columns) else []


def _controls(shown: Shown) -> list[pd.Series]:
    """The records whose differences to a control are tested."""
    return [record for field, record in shown if field == "control"]


def _cell(shown: Shown, above: Sequence[bool]) -> Entry | None:
    """The figure of an attack with those of its controls; ``above`` says for each control whether the attack is above it."""
    if not shown:
        return None
    values = [number_of(record[FIELDS[field][0]]) for field, record in shown]
    own = shown[0][1]
    if None in values:
        why = shown[values.index(None)][1]["why"]
        said = why if isinstance(why, str) else ""
        return Entry(None, unit=own["unit"], n=int(own["n"]), failed=int(own["failed"]), why=said)
    return Entry(
        values[0],
        number_of(own["low"]),
        number_of(own["high"]),
        own["unit"],
        int(own["n"]),
        int(own["failed"]),
        outside=own["scope"] == OUTSIDE,
        beside=tuple(value for value in values[1:] if value is not None),
        standing="" if not above or not above[0] else ABOVE_ALL if all(above) else ABOVE_FIRST,
    )
