"""`overpaint ledger`: prints what papers published, beside each other and beside stored records."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import click
import pandas as pd

from overpaint.commands.grids import ERR, existing, taken
from overpaint.errors import UserError, unknown
from overpaint.grid.paths import path_of
from overpaint.grid.typed import bare, given_twice
from overpaint.report.ledger import sheets
from overpaint.report.ledger.agreement import DISAGREE, disagreements, orders, pairs
from overpaint.report.ledger.measured import beside, orders_with_ours, read_records
from overpaint.report.ledger.published import chosen, named, names, published
from overpaint.report.records import json_rows, stored_records
from overpaint.report.sheets import FORMATS, Sheet, markdown, show
from overpaint.run.store import Store

SHOWN = ("overview", "figures", "disagreements", "orders", "names")


@click.command()
@click.argument("filters", nargs=-1)
@click.option("--show", "what", default=None, help="overview, figures, disagreements, orders or names.")
@click.option("--format", "form", default="terminal", help="terminal, md, csv or json.")
@click.option("--from", "place", default=None, help="Records: a file of overpaint table --format csv, or a folder.")
@click.option(
    "--top",
    default=None,
    type=click.IntRange(min=1),
    help="disagreements: the largest, one for each method and quantity.",
)
def ledger(filters: Sequence[str], what: str | None, form: str, place: str | None, top: int | None) -> None:
    """Print published figures beside each other and beside stored records.

    Filters are method=, metric=, paper=, concept=, model=, attack=, prompts= and provenance=; each takes names with commas.
    Without a filter, an overview is printed. Records are those of store=DIR or of --from.
    """
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    store, rest = taken(filters, "store")
    given = _filters(rest)
    what = what or ("figures" if given else "overview")
    if what not in SHOWN:
        raise unknown("value", what, SHOWN, "--show")
    if top and what != "disagreements":
        raise UserError("--top takes the largest disagreements: add --show disagreements")
    if what in ("disagreements", "names") and (store or place):
        raise UserError(f"--show {what} reads no records: leave out store= and --from")
    everything, known = published(), names()
    found = chosen(everything, given)
    every_pair = pairs(everything)
    compared = _of(every_pair, everything, given)
    if what == "disagreements":
        table = disagreements(compared, top)
        shown = [sheets.disagreement_sheet(table, (compared["verdict"] == DISAGREE).sum())]
    elif what == "names":
        table = named(found)
        shown = [sheets.names_sheet(table)]
    elif what == "orders":
        shown, table = _orders(everything, given, _records(store, place))
    else:
        table = beside(found, _records(store, place), known).assign(disagrees=sheets.disagrees(found, every_pair))
        shown = list(
            sheets.side_by_side(table, every_pair)
            if what == "figures"
            else sheets.overview(table, compared, orders(found, known))
        )
    notes = [*([sheets.LEGEND, sheets.NOTED] if what == "figures" else []), *_unmatched(table, everything)]
    if form == "terminal":
        show(shown, notes)
        if what == "overview":
            ERR.print(
                "Next: overpaint ledger method=esd · overpaint ledger --show disagreements · overpaint ledger --show orders"
            )
    elif form == "md":
        sys.stdout.write(markdown(shown, notes))
    elif form == "csv":
        sys.stdout.write(table.to_csv(index=False))
    else:
        sys.stdout.write(json.dumps(json_rows(table), indent=1, ensure_ascii=False) + "\n")


def _filters(given: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not value:
            raise UserError(f"overpaint ledger takes filters such as method=esd, got {bare(text)}")
        if key in found:
            raise given_twice(key, found[key], value)
        found[key] = value
    return found


def _records(store: str | None, place: str | None) -> pd.DataFrame:
    """The records of ``--from``, else those of the store, if there is one."""
    if place is not None:
        if store is not None:
            raise UserError("give store= or --from, not both")
        return read_records(path_of(place, "--from"))
    found = Store.chosen(store)
    return stored_records(found if store is None else existing(found))


def _of(compared: pd.DataFrame, everything: pd.DataFrame, given: dict[str, str]) -> pd.DataFrame:
    """The pairs whose two figures fit the filters; for ``paper`` and ``provenance``, one figure is enough."""
    kept = compared
    for key, value in given.items():
        fits = chosen(everything, {key: value})
        if key == "paper":
            papers = set(fits["paper"])
            kept = kept[kept["paper"].isin(papers) | kept["other_paper"].isin(papers)]
        elif key == "provenance":
            wanted = set(fits["provenance"])
            kept = kept[kept["provenance"].isin(wanted) & kept["other_provenance"].isin(wanted)]
        else:
            column, own = _COLUMNS[key]
            kept = kept[kept[column].isin(set(fits[own]))]
    return kept


#: Filter -> the column of pairs and of published figures that it looks at.
_COLUMNS = {
    "method": ("method", "method"),
    "metric": ("metric", "metric_name"),
    "concept": ("erased", "erased"),
    "model": ("base", "base"),
    "attack": ("attack", "attack_name"),
    "prompts": ("prompts", "prompts"),
}


def _orders(everything: pd.DataFrame, given: dict[str, str], records: pd.DataFrame) -> tuple[list[Sheet], pd.DataFrame]:
    """Orders of papers against papers, and against our records; ``paper`` selects one side."""
    found = chosen(everything, {key: value for key, value in given.items() if key != "paper"})
    between = orders(found, names())
    if "paper" in given:
        papers = set(chosen(everything, {"paper": given["paper"]})["paper"])
        between = between[between["paper"].isin(papers) | between["other_paper"].isin(papers)]
        found = found[found["paper"].isin(papers)]
    ours = orders_with_ours(found, records, names())
    table = pd.concat([between, ours], ignore_index=True) if len(ours) else between
    if table.empty:
        raise UserError("no two orders of these figures share three methods or more: leave out a filter")
    shown = [sheets.order_sheet(between, "Papers against papers")] if len(between) else []
    return shown + ([sheets.order_sheet(ours, "Papers against our records")] if len(ours) else []), table


def _unmatched(table: pd.DataFrame, everything: pd.DataFrame) -> list[str]:
    """A note on the models of records that no paper used."""
    if "ours_model" in table:
        models = set(table["ours_model"].dropna())
    elif "other_base" in table:
        models = set(table.loc[table["other_paper"] == "overpaint", "other_base"])
    else:
        return []
    alone = sorted(models - set(everything["base_name"]))
    if not alone:
        return []
    return [
        f"No paper measured {', '.join(alone)}: only orders of methods and signs of differences are comparable with papers."
    ]
