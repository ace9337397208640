"""Panels: attacks × methods, with the same figure for the attack's controls in each cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd

from overpaint.grid.scope import OUTSIDE
from overpaint.report.families import DIFFERS, marked
from overpaint.report.pooling import FIELDS
from overpaint.report.records import number_of
from overpaint.report.tables import SETTINGS, Entry, Head, Row, Table, distinguished, provenance, several_of, under
from overpaint.report.views import Column, View

#: Standings of an attack: above all controls of its cell, or above the first one only.
ABOVE_ALL, ABOVE_FIRST = "above all controls", "above the first control"


def panels(records: pd.DataFrame, view: View) -> Iterator[Table]:
    """One table per model, concept set and setting. Rows are attacks, columns are methods without the unedited model.

    The view's first column is the figure of an attack; the others are those of its controls, shown beside it. An attack is above
    a control if the record of that control marks its difference as positive, corrected as in all figures of the method.
    """
    found = marked(distinguished(records), view.primary)
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
        rows = []
        for attack in dict.fromkeys(part["attack"]):
            entries = [_cell(by_metric, view.columns, (method, attack)) for method in methods]
            if any(entry is not None for entry in entries):
                rows.append(Row((attack,), entries))
        note = (
            f"Each cell: {' / '.join(titles)}. Bold: above all controls; italic: above {titles[1]} only (positive differences, "
            "corrected over all tests of the method on the concept set, 5 % level)."
        )
        title = f"{concepts} ({kind}) on {model}{under(several, values)}"
        yield Table(title, ("attack",), list(map(Head, methods)), rows, [note], provenance(part))


def _cell(
    by_metric: Mapping[str, Mapping[tuple[str, str], pd.Series]], columns: Mapping[str, Column], place: tuple[str, str]
) -> Entry | None:
    """The figure of one attack on one method with its controls; ``None`` if one of them is missing."""
    found = [(column.field, by_metric[column.metric].get(place)) for column in columns.values()]
    known = [(field, record) for field, record in found if record is not None]
    if len(known) < len(columns):
        return None
    values = [number_of(record[FIELDS[field][0]]) for field, record in known]
    own = known[0][1]
    if None in values:
        why = known[values.index(None)][1]["why"]
        said = why if isinstance(why, str) else ""
        return Entry(None, unit=own["unit"], n=int(own["n"]), failed=int(own["failed"]), why=said)
    above = [
        bool(record["mark"] == DIFFERS and record["difference"] > 0) for field, record in known if field == "control"
    ]
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
