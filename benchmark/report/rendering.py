"""Tables as text: for the terminal, Markdown and LaTeX, and the long form as CSV and JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import pandas as pd
import pyarrow as pa
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from overpaint.errors import UserError, unknown
from overpaint.grid.scope import OUTSIDE
from overpaint.report.comparisons import pairs, rankings
from overpaint.report.families import DIFFERS, EQUAL, marked
from overpaint.report.pooling import Outcomes
from overpaint.report.statistics import MARGIN
from overpaint.report.tables import Entry, Table, averaged, every_figure
from overpaint.report.views import View, view_named

FORMATS = ("terminal", "md", "csv", "json", "latex")
MARKS = {DIFFERS: "≠", EQUAL: "=", "": ""}
LEGEND = (
    "Figures with 95 % intervals. ≠ differs from what it is compared with (the unedited model, or the attack's control "
    f"where one is given); = equal to it within ±{MARGIN:.2f}; no mark: neither is shown. ⊥ undefined. "
    "↑ higher is better, ↓ lower is better."
)
FOOTNOTES = {
    "†": f"† {OUTSIDE}: the attack enters behind the place where the defence acts, so it does not test it.",
    "≥": "≥ a lower bound: the most that was measured.",
    "σ": "σ the standard deviation between what was averaged, sampling noise taken out.",
}


def tables(records: pd.DataFrame, view: str = "facets", outcomes: pd.DataFrame | pa.Table | None = None) -> list[Table]:
    """The tables of a view.

    With ``outcomes`` (`overpaint.report.records.stored_outcomes`), means over concepts have narrower intervals, and methods can
    be compared with each other.

    Raises:
        UserError: if there is no figure to show; the message gives the reason.
    """
    chosen, found = view_named(view), Outcomes(outcomes)
    if records.empty:
        raise UserError("no records stored yet for this table: run it first (overpaint run …)")
    builders: dict[str, Callable[[], Iterator[Table]]] = {
        "every": lambda: every_figure(records, chosen),
        "means": lambda: averaged(records, chosen, found),
        "ranks": lambda: rankings(records, chosen, found),
        "pairs": lambda: pairs(records, chosen, found),
    }
    shown = list(builders[chosen.cells]())
    if not shown:
        raise UserError(f"view {view} shows none of the {len(records)} figures stored for this table")
    return shown


def render(
    records: pd.DataFrame,
    form: str,
    view: str = "facets",
    outcomes: pd.DataFrame | pa.Table | None = None,
    spreadsheet: bool = False,
) -> str:
    """A view as text in one of `FORMATS`; ``terminal`` is for `print_tables`. csv and json are always the long form.

    The long form adds ``p_adjusted``, ``family`` and ``mark`` for the view's primary endpoints. With ``spreadsheet``,
    text cells of the CSV that begin with ``= + - @``, a tab or a carriage return get a leading apostrophe, so that a
    spreadsheet program does not run them as formulas.
    """
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if form in ("csv", "json"):
        return long_form(records, view_named(view), form, spreadsheet)
    shown = tables(records, view, outcomes)
    return markdown(shown) if form == "md" else latex(shown)


# --- the long form ---------------------------------------------------------------------------------------------


def long_form(records: pd.DataFrame, view: View, form: str, spreadsheet: bool = False) -> str:
    """All records, one row per figure, as CSV or JSON."""
    found = marked(records, view.primary)
    if form == "json":
        return found.to_json(orient="records", indent=1)
    if spreadsheet:
        found = found.map(_neutral)
    for name in found.select_dtypes(["object", "string"]):
        if found[name].astype(str).str.contains("\r", regex=False).any():  # a bare carriage return would end the row
            found[name] = found[name].replace("\r", r"\\r", regex=True)
    return found.to_csv(index=False)


def _neutral(cell: object) -> object:
    """The cell, with a leading apostrophe if a spreadsheet program could read it as a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


# --- cells -----------------------------------------------------------------------------------------------------


class Reasons:
    """Reasons why figures are undefined or lower bounds, numbered in the order in which a table shows them."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def of(self, why: str) -> str:
        """The number of a reason as text, such as `` (1)``; empty for no reason."""
        return f" ({self.numbers.setdefault(why, len(self.numbers) + 1)})" if why else ""

    def said(self) -> list[str]:
        return [f"({number}) {why}" for why, number in self.numbers.items()]


def entry_text(entry: Entry | None, reasons: Reasons) -> str:
    """A figure as text: ``0.04 [0.01, 0.12] ≠``.

    † marks an attack outside the defence's scope, ≥ a lower bound and ⊥ an undefined figure. A number in parentheses refers
    to a reason under the table.
    """
    if entry is None:
        return ""
    failed = f" ({entry.failed} failed)" if entry.failed else ""
    fewer = f" (over {entry.of[0]} of {entry.of[1]} concepts)" if entry.of else ""
    if entry.value is None:
        return "⊥" + reasons.of(entry.why) + fewer + failed
    text = ("≥ " if entry.bound else "") + number(entry.value, entry.unit)
    if entry.low is not None and entry.high is not None:
        text += f" [{number(entry.low, entry.unit)}, {number(entry.high, entry.unit)}]"
    if entry.spread is not None:
        text += f" σ {number(entry.spread, entry.unit)}"
    mark = MARKS[entry.mark.says]
    text += (f" {mark}" if mark else "") + (" †" if entry.outside else "")
    if entry.control is not None:
        text += f" (control {number(entry.control, entry.unit)})"
    return text + (reasons.of(entry.why) if entry.bound else "") + fewer + failed


def number(value: float, unit: str) -> str:
    """A number as text, with the digits that its unit needs."""
    if unit == "bytes":
        for name in ("B", "kB", "MB"):
            if abs(value) < 1000:
                return f"{value:.3g} {name}"
            value /= 1000
        return f"{value:.3g} GB"
    if unit == "seconds":
        return f"{value:.3g} s"
    if unit == "dB":
        return f"{value:.1f} dB"
    if unit == "rank":
        return f"{value:.0f}"
    # + 0.0 avoids "-0.00"
    return f"{round(value, 2) + 0.0:.2f}" if unit in ("fraction", "ratio", "correlation") else f"{value:.3g}"


def plain(text: object) -> str:
    """Text with control characters and direction marks escaped, so that a terminal does not interpret them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def _texts(table: Table) -> tuple[list[list[str]], list[str]]:
    """The cells of a table's rows, without repeated first names, and the notes under the table."""
    reasons, rows, last = Reasons(), [], None
    for row in table.rows:
        names = list(map(plain, row.names))
        if len(names) > 1 and names[0] == last:
            names[0] = ""
        else:
            last = names[0]
        rows.append([*names, *(entry_text(entry, reasons) for entry in row.entries)])
    return rows, [*(plain(note) for note in table.notes if note), *map(plain, reasons.said())]


def legend(shown: Sequence[Table]) -> str:
    """The meaning of the marks in these tables."""
    entries = [entry for table in shown for entry in table.entries()]
    used = {
        "†": any(e.outside and e.value is not None for e in entries),
        "≥": any(e.bound for e in entries),
        "σ": any(e.spread is not None for e in entries),
    }
    return " ".join([LEGEND, *(said for mark, said in FOOTNOTES.items() if used[mark])])


# --- Markdown --------------------------------------------------------------------------------------------------

_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~&])")


def markdown_text(text: str) -> str:
    """Text with Markdown mark-up escaped. An underscore inside a word is not mark-up and is kept."""
    escaped = _MARKDOWN.sub(r"\\\1", plain(text))
    return re.sub(r"(?<=\w)\\_(?=\w)", "_", escaped)


def markdown(shown: Sequence[Table]) -> str:
    """Tables as GitHub-flavoured Markdown."""
    parts = []
    for table in shown:
        rows, notes = _texts(table)
        heads, width = [*table.heads, *table.columns], len(table.heads)
        lines = [
            f"### {markdown_text(table.title)}",
            "",
            _piped(map(markdown_text, heads)),
            _piped(["---"] * len(heads)),
        ]
        lines += [_piped([*map(markdown_text, row[:width]), *row[width:]]) for row in rows]
        parts.append("\n".join(lines))
        parts += [markdown_text(note) for note in notes]
    return "\n\n".join([*parts, markdown_text(legend(shown))]) + "\n"


def _piped(values) -> str:
    return "| " + " | ".join(values) + " |"


# --- LaTeX -----------------------------------------------------------------------------------------------------

_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "_%&#${}"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": "$<$", ">": "$>$"}
    | {"⊥": r"$\bot$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "†": r"$\dagger$", "≥": r"$\geq$", "≠": r"$\neq$"}
    | {"±": r"$\pm$", "−": "$-$", "σ": r"$\sigma$", "×": r"$\times$", "τ": r"$\tau$", "–": "--", "…": r"\dots{}"}
)


def latex_text(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return plain(text).translate(_LATEX)


def latex(shown: Sequence[Table]) -> str:
    """Tables as LaTeX floats. A table that is wider than the text is scaled down to its width."""
    parts = ["% These tables need \\usepackage{booktabs} and \\usepackage{graphicx}."]
    for number_, table in enumerate(shown, start=1):
        rows, notes = _texts(table)
        columns = "l" * len(table.heads) + "r" * len(table.columns)
        heads = " & ".join(map(latex_text, [*table.heads, *table.columns]))
        lines = [
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{latex_text(table.title)}}}",
            f"\\label{{tab:{_slug(table.title)}-{number_}}}",
            "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
            f"\\begin{{tabular}}{{{columns}}}",
            "\\toprule",
            f"{heads} \\\\",
            "\\midrule",
            *(" & ".join(map(latex_text, row)) + " \\\\" for row in rows),
            "\\bottomrule",
            "\\end{tabular}}",
            *(f"\\par\\footnotesize {latex_text(note)}" for note in [*notes, legend([table])]),
            "\\end{table}",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40] or "table"


# --- terminal --------------------------------------------------------------------------------------------------


def print_tables(
    records: pd.DataFrame,
    view: str = "facets",
    outcomes: pd.DataFrame | pa.Table | None = None,
    console: Console | None = None,
) -> None:
    """Print a view to the terminal. A table that is too wide is split into parts, so that no column is truncated."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=200)
    shown = tables(records, view, outcomes)
    for table in shown:
        rows, notes = _texts(table)
        for part in _parts(table, rows, console.width):
            console.print(_terminal_table(table, rows, part))
        for note in notes:
            console.print(Text(note, style="dim"))
    console.print(Text(legend(shown), style="dim"))


def _parts(table: Table, rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """The columns of a table in groups that fit into a terminal of this width (characters)."""
    heads = [*table.heads, *table.columns]
    needed = [max(map(cell_len, [plain(heads[i]), *(row[i] for row in rows)])) + 3 for i in range(len(heads))]
    names = len(table.heads)
    parts: list[list[int]] = [[]]
    for column in range(names, len(heads)):
        taken = sum(needed[:names]) + sum(needed[c] for c in parts[-1]) + 1
        if parts[-1] and taken + needed[column] > width:
            parts.append([])
        parts[-1].append(column)
    return parts


def _terminal_table(table: Table, rows: Sequence[Sequence[str]], part: Sequence[int]):
    names = len(table.heads)
    heads = [*table.heads, *table.columns]
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
        grid.add_row(*(Text(row[i]) for i in [*range(names), *part]))
    return grid
