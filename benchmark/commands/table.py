"""`overpaint table`: prints tables from stored records. It never generates an image."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from overpaint.commands.grids import store_and_grid
from overpaint.errors import unknown
from overpaint.report.records import stored_outcomes, stored_records
from overpaint.report.rendering import FORMATS, print_tables, render
from overpaint.report.views import view_named


@click.command()
@click.argument("overrides", nargs=-1)
@click.option("--format", "form", default="terminal", help="terminal, md, csv, json or latex.")
@click.option("--view", default="facets", help="facets (every figure), or one of `overpaint list views`.")
@click.option("--spreadsheet", is_flag=True, help="csv: put ' before text that a spreadsheet would run as a formula.")
def table(overrides: Sequence[str], form: str, view: str, spreadsheet: bool) -> None:
    """Print tables from stored records, of the grid that the overrides define or of the whole store."""
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    store, grid = store_and_grid(overrides)
    plan = grid.plan if grid else None
    shown = {column.metric for column in view_named(view).columns.values()}
    records = stored_records(store, plan)
    if form == "terminal":
        print_tables(records, view, stored_outcomes(store, records, shown))
    elif form in ("csv", "json"):
        sys.stdout.write(render(records, form, view, spreadsheet=spreadsheet))
    else:
        sys.stdout.write(render(records, form, view, stored_outcomes(store, records, shown)))
