"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import pyarrow as pa
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from overpaint.report.figure_text import EMPHASIS, heads_of, legend, plain, texts
from overpaint.report.rendering import tables
from overpaint.report.tables import Table
from overpaint.report.views import View


def standard_output() -> Console:
    """The console for tables. It has 200 columns if it is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def print_tables(
    records: pd.DataFrame,
    view: str | View = "facets",
    outcomes: pd.DataFrame | pa.Table | None = None,
    console: Console | None = None,
) -> None:
    """Print a view to the terminal. A table that is too wide is split into parts, so that no column is truncated."""
    console = console or standard_output()
    shown = tables(records, view, outcomes)
    for table in shown:
        rows, notes = texts(table)
        for part in _parts(table, rows, console.width):
            console.print(_terminal_table(table, rows, part))
        for note in notes:
            console.print(Text(note, style="dim"))
    console.print(Text(legend(shown), style="dim"))


def _parts(table: Table, rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """The columns of a table in groups that fit into a terminal of this width (characters)."""
    heads = heads_of(table)
    needed = [max(map(cell_len, [plain(heads[i]), *(row[i] for row in rows)])) + 3 for i in range(len(heads))]
    names = len(table.heads)
    parts: list[list[int]] = [[]]
    for column in range(names, len(heads)):
        taken = sum(needed[:names]) + sum(needed[c] for c in parts[-1]) + 1
        if parts[-1] and taken + needed[column] > width:
            parts.append([])
        parts[-1].append(column)
    return parts


_STYLES = {"strong": "bold", "weak": "italic", "": ""}


def _terminal_table(table: Table, rows: Sequence[Sequence[str]], part: Sequence[int]):
    names = len(table.heads)
    heads = heads_of(table)
    total = len(table.columns)
    title = plain(table.title)
    if len(part) < total:
        title += f" (columns {part[0] - names + 1} to {part[-1] - names + 1} of {total})"
    grid = Grid(title=Text(title, style="bold"), title_justify="left", expand=False, pad_edge=False)
    for index in [*range(names), *part]:
        grid.add_column(Text(plain(heads[index])), style="bold" if index == 0 else None, overflow="fold")
    for place, row in enumerate(rows):
        if names > 1 and row[0] and place:
            grid.add_section()
        styles = [*[""] * names, *(_STYLES[EMPHASIS[e.standing] if e else ""] for e in table.rows[place].entries)]
        grid.add_row(*(Text(row[i], style=styles[i]) for i in [*range(names), *part]))
    return grid
