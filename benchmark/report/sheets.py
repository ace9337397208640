"""Tables of text: as Markdown and for the terminal. Tables of figures are in `overpaint.report.tables`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.table import Table as Grid
from rich.text import Text

from overpaint.report.figure_text import plain
from overpaint.report.markdown import markdown_text, piped
from overpaint.report.terminal import standard_output

#: Forms in which commands print sheets.
FORMATS = ("terminal", "md", "csv", "json")


@dataclass(frozen=True)
class Sheet:
    """A table of text. Cells of the first ``names`` columns are repeated in every part of a wide table."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1
    notes: Sequence[str] = field(default_factory=tuple)


def markdown(sheets: Sequence[Sheet], notes: Sequence[str] = ()) -> str:
    """Tables as GitHub-flavoured Markdown, with the notes after the last one."""
    parts = []
    for sheet in sheets:
        head, *rows = (piped(map(markdown_text, cells)) for cells in (sheet.heads, *sheet.rows))
        lines = [f"### {markdown_text(sheet.title)}", "", head, piped(["---"] * len(sheet.heads)), *rows]
        parts.append("\n".join(lines))
        parts += map(markdown_text, sheet.notes)
    return "\n\n".join([*parts, *map(markdown_text, notes)]) + "\n"


def show(sheets: Sequence[Sheet], notes: Sequence[str] = ()) -> None:
    """Print tables to the terminal. A table that is too wide is split into parts, so that no column is truncated."""
    console = standard_output()
    for sheet in sheets:
        for part in _parts(sheet, console.width):
            grid = Grid(title=Text(plain(sheet.title), style="bold"), title_justify="left", pad_edge=False)
            for index in part:
                grid.add_column(Text(plain(sheet.heads[index])), style="bold" if index == 0 else None, overflow="fold")
            last: Sequence[str] = ()
            for row in sheet.rows:
                cells = [plain(text) for text in row]
                repeated = next((i for i in range(sheet.names - 1) if not last or row[i] != last[i]), sheet.names - 1)
                grid.add_row(*(Text("" if i < repeated else cells[i]) for i in part))
                last = row
            console.print(grid)
        for note in sheet.notes:
            console.print(Text(plain(note), style="dim"))
    for note in notes:
        console.print(Text(plain(note), style="dim"))


#: Cells that are wider than this are folded (characters).
_WIDEST = 44


def _parts(sheet: Sheet, width: int) -> list[list[int]]:
    """The columns of a table in groups that fit into a terminal of this width (characters)."""
    texts = [sheet.heads, *sheet.rows]
    needed = [min(max(cell_len(plain(row[i])) for row in texts), _WIDEST) + 3 for i in range(len(sheet.heads))]
    names = list(range(sheet.names))
    parts: list[list[int]] = [[*names]]
    for column in range(sheet.names, len(sheet.heads)):
        if len(parts[-1]) > len(names) and sum(needed[i] for i in [*parts[-1], column]) > width:
            parts.append([*names])
        parts[-1].append(column)
    return parts
