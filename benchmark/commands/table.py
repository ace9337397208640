"""`overpaint table`: prints tables from stored records. It never generates an image."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

import click
import pandas as pd

from overpaint.commands.grids import Grid, about_cells, note_lacking, store_and_grid, taken
from overpaint.errors import UserError, unknown
from overpaint.grid.labels import few
from overpaint.grid.paths import path_of
from overpaint.grid.registry import search
from overpaint.report.claims import published
from overpaint.report.filters import narrowed
from overpaint.report.missing import command_of
from overpaint.report.records import STAGE, stored_outcomes, stored_records
from overpaint.report.rendering import FORMATS, render
from overpaint.report.terminal import print_tables
from overpaint.report.views import View, in_store, view_named
from overpaint.run.store import Store


@click.command()
@click.argument("overrides", nargs=-1)
@click.option("--format", "form", default="terminal", help="terminal, md, csv, json or latex.")
@click.option("--view", default="facets", help="facets (every figure), or one of `overpaint list views`.")
@click.option("--from", "folder", metavar="DIR", help="Read result files (overpaint publish) instead of a store.")
@click.option("--spreadsheet", is_flag=True, help="csv: put ' before text that a spreadsheet would run as a formula.")
def table(overrides: Sequence[str], form: str, view: str, folder: str | None, spreadsheet: bool) -> None:
    """Print tables from stored records, of the grid that the overrides define or of the whole store.

    With --from, the overrides are filters, such as method=uce,esd concepts=church metric=ira.
    """
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    rest = search(overrides)  # before the view, which may be in hydra.searchpath
    chosen = view_named(view)
    if folder:
        records, outcomes = published(path_of(folder, "--from"))
        records = narrowed(records, rest, folder)
    else:
        chosen = in_store(chosen, taken(overrides, "store")[0])
        records, outcomes = _stored(overrides, chosen)
    if spreadsheet and form != "csv":
        raise UserError("--spreadsheet needs --format csv")
    if form == "terminal":
        print_tables(records, chosen, outcomes)
    else:
        sys.stdout.write(render(records, form, chosen, outcomes, spreadsheet))


def _stored(overrides: Sequence[str], view: View) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The records of a grid or of the whole store, and the outcomes of the figures in the view's columns."""
    first = shlex.join(["overpaint", "run", *overrides]) if about_cells(overrides) else command_of(view)
    store, grid = store_and_grid(overrides, first)
    records = stored_records(store, grid.plan if grid else None)
    if grid and records.empty:
        command = shlex.join(["overpaint", "run", *overrides])
        if all(task.stage == STAGE for task in grid.plan.missing(store)):
            raise UserError(
                f"{store.root} holds all images of this grid and none of its figures. To measure them: {command}"
            )
        raise UserError(f"{store.root} holds no cell of this grid{_instead(store, grid)}. To make them: {command}")
    if grid:
        stored = store.listed(STAGE).keys
        note_lacking("figures", [task for _, task in grid.plan.cells if task.key not in stored], grid, overrides)
    return records, stored_outcomes(store, view.shown(records))


def _instead(store: Store, grid: Grid) -> str:
    """The models, budgets and other settings that the store has and the grid has not: `` (stored: budget=smoke)``."""
    records = stored_records(store)
    asked = [cell.labels for cell, _ in grid.plan.cells]
    others = {
        axis: [label for label in dict.fromkeys(records[axis].dropna()) if label != ""]
        for axis in ("model", "protocol", "budget", "method", "concepts", "attack")
        if len(records) and not {*records[axis]} & {labels[axis] for labels in asked}
    }
    said = [f"{axis}={few(labels)}" for axis, labels in others.items() if labels]
    return f" (stored: {', '.join(said)})" if said else ""
