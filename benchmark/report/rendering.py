"""Views as tables, and tables as text in every format. `overpaint.report.terminal` prints them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace

import pandas as pd
import pyarrow as pa

from overpaint.errors import UserError, unknown
from overpaint.report.comparisons import pairs, rankings
from overpaint.report.components import spreads
from overpaint.report.families import marked
from overpaint.report.figure_text import legend
from overpaint.report.fronts import fronts
from overpaint.report.joined import joined
from overpaint.report.latex import latex
from overpaint.report.markdown import markdown
from overpaint.report.missing import DEFAULTS, command_for, command_of, gaps, too_few, undefined
from overpaint.report.panels import panels
from overpaint.report.pooling import Outcomes
from overpaint.report.records import given_by_hand, json_rows
from overpaint.report.tables import UNLABELLED, Entry, Table, averaged, distinguished, every_figure
from overpaint.report.validity import validity
from overpaint.report.verdicts import verdicts
from overpaint.report.views import View, view_named

FORMATS = ("terminal", "md", "csv", "json", "latex")
#: What makes the tables of each content of views (`View.cells`).
BUILDERS: dict[str, Callable[[pd.DataFrame, View, Outcomes], Iterator[Table]]] = {
    "every": lambda records, view, _: every_figure(records, view),
    "means": averaged,
    "ranks": rankings,
    "pairs": pairs,
    "panel": lambda records, view, _: panels(records, view),
    "front": fronts,
    "validity": lambda records, view, _: validity(records, view),
    "spread": spreads,
    "verdicts": verdicts,
}


class NothingToShow(UserError):
    """The records fill no column of a view; the message says why."""


def tables(
    records: pd.DataFrame, view: str | View = "facets", outcomes: pd.DataFrame | pa.Table | None = None
) -> list[Table]:
    """The tables of a view, which may be given by its name.

    With ``outcomes`` (`overpaint.report.records.stored_outcomes`), means over concepts have narrower intervals, and methods can
    be compared with each other.

    Raises:
        NothingToShow: if there is no figure to show; the message gives the reason.
        UserError: if there is no view of this name.
    """
    view = view_named(view) if isinstance(view, str) else view
    # single texts are read much faster from Python's objects than from Arrow's memory
    records = records.astype(dict.fromkeys(records.select_dtypes("string"), object))
    if records.empty:
        raise NothingToShow(f"no records stored yet for view {view.name}. To make some: {command_of(view)}")
    records = records.iloc[
        (records["method_name"] != "none").to_numpy().argsort(kind="stable")
    ]  # the unedited model first
    chosen, found = view if view.together else view.by_attack(records), Outcomes(outcomes)
    shown: list[Table] = []
    for part, own, notes in joined(records, chosen):
        own = own.by_attack(part) if view.together else own
        made = list(BUILDERS[view.cells](part, own, found))
        shown += [*made[:-1], replace(made[-1], notes=[*made[-1].notes, *notes])] if made else []
    missing = gaps(records, chosen)
    if not shown:
        why = missing[0] if missing else f"{undefined(records, chosen)}To make some: {command_for(records, chosen)}"
        why = too_few(records, chosen) + why
        raise NothingToShow(f"view {view.name} shows none of the {len(records)} figures stored for this table. {why}")
    unlabelled = [UNLABELLED] if (distinguished(records)["method"] != records["method"]).any() else []
    return [*shown[:-1], replace(shown[-1], notes=[*shown[-1].notes, *settings_of(records), *unlabelled, *missing])]


def settings_of(records: pd.DataFrame) -> list[str]:
    """A note about settings that all records share, that are not the defaults, and that titles leave out."""
    said = []
    for name, usual in {"budget": DEFAULTS["budget"], "seed": "0"}.items():
        labels = records[name].dropna().astype(str).unique()
        said += [f"{name} {label}" for label in labels if len(labels) == 1 and label != usual]
    by_hand = given_by_hand(records, ("metrics",)).unique()
    said += [text for text in by_hand if text and len(by_hand) == 1]
    return [f"Other settings than the defaults: {', '.join(said)}."] if said else []


def tables_if_any(records: pd.DataFrame, view: str, outcomes: pd.DataFrame | pa.Table | None) -> list[Table]:
    """The tables of a view; none if the records fill none of its columns."""
    try:
        return tables(records, view, outcomes)
    except NothingToShow:
        return []


def render(
    records: pd.DataFrame,
    form: str,
    view: str | View = "facets",
    outcomes: pd.DataFrame | pa.Table | None = None,
    spreadsheet: bool = False,
) -> str:
    """A view as text in one of `FORMATS`; ``terminal`` is for `print_tables`.

    csv and json of view ``facets`` are the long form, one row per record with all its columns and ``p_adjusted``, ``family`` and
    ``mark``. Those of other views hold their tables, one row (or object) per figure. With ``spreadsheet``, text cells of the CSV
    that begin with ``= + - @``, a tab or a carriage return get a leading apostrophe, so that a spreadsheet program does not run
    them as formulas.
    """
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    chosen = view_named(view) if isinstance(view, str) else view
    if form in ("csv", "json") and chosen.cells == "every":
        return long_form(records, chosen, form, spreadsheet)
    shown = tables(records, chosen, outcomes)
    if form == "csv":
        return _csv(cells_of(shown), spreadsheet)
    return {"md": markdown, "latex": latex, "json": json_text}[form](shown)


def long_form(records: pd.DataFrame, view: View, form: str, spreadsheet: bool = False) -> str:
    """All records, one row per figure, as CSV or JSON."""
    found = marked(records, view.primary)
    if form == "json":
        return json.dumps(json_rows(found), indent=1, ensure_ascii=False) + "\n"
    return _csv(found, spreadsheet)


def _csv(found: pd.DataFrame, spreadsheet: bool) -> str:
    if spreadsheet:
        found = found.map(_neutral)
    for name in found.select_dtypes(["object", "string"]):
        if found[name].astype(str).str.contains("\r", regex=False).any():  # a bare carriage return would end the row
            found[name] = found[name].replace("\r", r"\\r", regex=True)
    return found.to_csv(index=False)


def _neutral(cell: object) -> object:
    """The cell, with a leading apostrophe if a spreadsheet program could read it as a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def cells_of(shown: Sequence[Table]) -> pd.DataFrame:
    """Every figure of these tables, one per row: its table, row and column, and the fields of `Entry`."""
    rows = []
    for table in shown:
        for row in table.rows:
            names = dict(zip(table.heads, row.names, strict=True))
            for head, entry in zip(table.columns, row.entries, strict=True):
                if entry is not None:
                    about = {"table": table.title, **names, "column": head.title}
                    rows.append(about | {"direction": head.direction or row.direction} | _fields(entry))
    return pd.DataFrame(rows)


def _fields(entry: Entry) -> dict:
    """The fields of an entry, without nested ones."""
    found = {k: v for k, v in asdict(entry).items() if k not in ("mark", "of", "beside")}
    number_of, most = entry.of or (None, None)
    mark = {"mark": entry.mark.says, "p_adjusted": entry.mark.p_adjusted, "family": entry.mark.family}
    return found | mark | {"concepts": number_of, "of_concepts": most, "beside": "/".join(map(str, entry.beside))}


def json_text(shown: Sequence[Table]) -> str:
    """Tables as JSON: every field of `Table`, and the legend of its marks."""
    return (
        json.dumps([asdict(table) | {"legend": legend([table])} for table in shown], indent=1, ensure_ascii=False)
        + "\n"
    )
