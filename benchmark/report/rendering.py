"""Tables as text: for the terminal, Markdown and LaTeX, and as data in CSV and JSON."""

from __future__ import annotations

import json
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace

import pandas as pd
import pyarrow as pa
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from overpaint.errors import UserError, unknown
from overpaint.grid.labels import bytes_said
from overpaint.grid.scope import OUTSIDE
from overpaint.report.comparisons import pairs, rankings
from overpaint.report.components import spreads
from overpaint.report.directions import ARROWS
from overpaint.report.families import DIFFERS, EQUAL, marked
from overpaint.report.fronts import ON_FRONT, fronts
from overpaint.report.missing import command_for, command_of, gaps, undefined
from overpaint.report.panels import ABOVE_ALL, ABOVE_FIRST, panels
from overpaint.report.pooling import Outcomes
from overpaint.report.standings import BEST, TIED
from overpaint.report.statistics import MARGIN
from overpaint.report.tables import Entry, Head, Table, averaged, every_figure
from overpaint.report.validity import validity
from overpaint.report.verdicts import verdicts
from overpaint.report.views import View, view_named

FORMATS = ("terminal", "md", "csv", "json", "latex")
MARKS = {DIFFERS: "≠", EQUAL: "=", "": ""}
#: Standings of figures -> how they are emphasised: strongly or weakly.
EMPHASIS = {BEST: "strong", ABOVE_ALL: "strong", ON_FRONT: "strong", TIED: "weak", ABOVE_FIRST: "weak", "": ""}
LEGEND = (
    "Figures with 95 % intervals. ≠ differs from what it is compared with (the unedited model, or the attack's control "
    f"where one is given); = equal to it within ±{MARGIN:.2f}; no mark: neither is shown. ⊥ undefined. "
    "↑ higher is better, ↓ lower is better."
)
FOOTNOTES = {
    "→ 0": "→ 0 nearer to 0 is better.",
    "†": f"† {OUTSIDE}: the attack enters behind the place where the defence acts, so it does not test it.",
    "≥": "≥ a lower bound: the most that was measured.",
    "σ": "σ the standard deviation between what was averaged, sampling noise taken out.",
    "best": (
        "Bold: the best method of a column; italic: not shown to be worse (paired tests where outcomes are stored, Holm over "
        "the methods, 5 % level)."
    ),
}


def tables(records: pd.DataFrame, view: str = "facets", outcomes: pd.DataFrame | pa.Table | None = None) -> list[Table]:
    """The tables of a view.

    With ``outcomes`` (`overpaint.report.records.stored_outcomes`), means over concepts have narrower intervals, and methods can
    be compared with each other.

    Raises:
        UserError: if there is no figure to show; the message gives the reason.
    """
    chosen, found = view_named(view).by_attack(records), Outcomes(outcomes)
    if records.empty:
        raise UserError(f"no records stored yet for view {view}. To make some: {command_of(chosen)}")
    builders: dict[str, Callable[[], Iterator[Table]]] = {
        "every": lambda: every_figure(records, chosen),
        "means": lambda: averaged(records, chosen, found),
        "ranks": lambda: rankings(records, chosen, found),
        "pairs": lambda: pairs(records, chosen, found),
        "panel": lambda: panels(records, chosen),
        "front": lambda: fronts(records, chosen, found),
        "validity": lambda: validity(records, chosen),
        "spread": lambda: spreads(records, chosen, found),
        "verdicts": lambda: verdicts(records, chosen, found),
    }
    records = records.iloc[
        (records["method_name"] != "none").to_numpy().argsort(kind="stable")
    ]  # the unedited model first
    missing = gaps(records, chosen)
    shown = list(builders[chosen.cells]())
    if not shown:
        why = missing[0] if missing else f"{undefined(records, chosen)}To make some: {command_for(records, chosen)}"
        raise UserError(f"view {view} shows none of the {len(records)} figures stored for this table. {why}")
    return [*shown[:-1], replace(shown[-1], notes=[*shown[-1].notes, *missing])]


def render(
    records: pd.DataFrame,
    form: str,
    view: str = "facets",
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
    chosen = view_named(view)
    if form in ("csv", "json") and chosen.cells == "every":
        return long_form(records, chosen, form, spreadsheet)
    shown = tables(records, view, outcomes)
    if form == "csv":
        return _csv(cells_of(shown), spreadsheet)
    return {"md": markdown, "latex": latex, "json": json_text}[form](shown)


# --- the long form ---------------------------------------------------------------------------------------------


def long_form(records: pd.DataFrame, view: View, form: str, spreadsheet: bool = False) -> str:
    """All records, one row per figure, as CSV or JSON."""
    found = marked(records, view.primary)
    if form == "json":
        return found.to_json(orient="records", indent=1)
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


# --- tables as data --------------------------------------------------------------------------------------------


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
    if entry.beside:
        text += "".join(f" / {number(value, entry.unit)}" for value in entry.beside)
    else:
        text += interval(entry.low, entry.high, entry.unit)
    if entry.spread is not None:
        text += f" σ {number(entry.spread, entry.unit)}"
    mark = MARKS[entry.mark.says]
    text += (f" {mark}" if mark else "") + (" †" if entry.outside else "")
    if entry.control is not None:
        text += f" (control {number(entry.control, entry.unit)})"
    return text + (reasons.of(entry.why) if entry.bound else "") + fewer + failed


def interval(low: float | None, high: float | None, unit: str) -> str:
    """An interval as text that follows a value: `` [0.01, 0.12]``, or `` [82, ∞)`` if it is open; empty for no limit."""
    if low is None and high is None:
        return ""
    start = "(−∞" if low is None else f"[{number(low, unit)}"
    return f" {start}, " + ("∞)" if high is None else f"{number(high, unit)}]")


def number(value: float, unit: str) -> str:
    """A number as text, with the digits that its unit needs."""
    if unit == "bytes":
        return bytes_said(value)
    if unit == "seconds":
        return f"{value:.3g} s"
    if unit == "%":
        return f"{round(value, 1) + 0.0:.1f}"
    if unit == "dB":
        return f"{value:.1f} dB"
    if unit == "rank":
        return f"{value:.0f}"
    # + 0.0 avoids "-0.00"
    return f"{round(value, 2) + 0.0:.2f}" if unit in ("fraction", "ratio", "correlation") else f"{value:.3g}"


def plain(text: object) -> str:
    """Text with control characters and direction marks escaped, so that a terminal does not interpret them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def head_text(head: Head) -> str:
    """The head of a column as text: ``target ↓ n=24``."""
    return " ".join(part for part in (head.title, ARROWS[head.direction], f"n={head.n}" if head.n else "") if part)


def _heads(table: Table) -> list[str]:
    return [*table.heads, *map(head_text, table.columns)]


def _names(table: Table) -> Iterator[list[str]]:
    """The names of each row, without repeated first names. The last name has the row's direction and n."""
    last = None
    for row in table.rows:
        names = list(map(plain, row.names))
        about = [ARROWS[row.direction], f"n={row.n}" if row.n else ""]
        names[-1] = " ".join([names[-1], *(part for part in about if part)])
        yield ["", *names[1:]] if len(names) > 1 and row.names[0] == last else names
        last = row.names[0]


def _texts(
    table: Table, cell: Callable[[Entry | None, Reasons], str] = entry_text
) -> tuple[list[list[str]], list[str]]:
    """The names and figures of a table's rows as text, and the notes under the table."""
    reasons = Reasons()
    rows = [
        [*names, *(cell(entry, reasons) for entry in row.entries)]
        for names, row in zip(_names(table), table.rows, strict=True)
    ]
    return rows, [*(plain(note) for note in table.notes if note), *map(plain, reasons.said())]


def legend(shown: Sequence[Table], emphasis: bool = True) -> str:
    """The meaning of the marks in these tables. With ``emphasis``, the best figures are bold and those tied with them italic."""
    entries = [entry for table in shown for entry in table.entries()]
    directions = [head.direction for table in shown for head in table.columns]
    directions += [row.direction for table in shown for row in table.rows]
    used = {
        "→ 0": "zero" in directions,
        "†": any(e.outside and e.value is not None for e in entries),
        "≥": any(e.bound for e in entries),
        "σ": any(e.spread is not None for e in entries),
        "best": emphasis and any(e.standing in (BEST, TIED) for e in entries),
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
        rows, notes = _texts(table, _markdown_cell)
        heads, width = _heads(table), len(table.heads)
        lines = [
            f"### {markdown_text(table.title)}",
            "",
            piped(map(markdown_text, heads)),
            piped(["---"] * len(heads)),
        ]
        lines += [piped([*map(markdown_text, row[:width]), *row[width:]]) for row in rows]
        parts.append("\n".join(lines))
        parts += [markdown_text(note) for note in notes]
    return "\n\n".join([*parts, markdown_text(legend(shown))]) + "\n"


def _markdown_cell(entry: Entry | None, reasons: Reasons) -> str:
    text = entry_text(entry, reasons)
    star = {"strong": "**", "weak": "*", "": ""}[EMPHASIS[entry.standing] if entry else ""]
    return f"{star}{text}{star}"


def piped(values: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(values) + " |"


# --- LaTeX -----------------------------------------------------------------------------------------------------

_LATEX: dict[int, str] = str.maketrans(
    {character: f"\\{character}" for character in "_%&#${}"}
    | {
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "[": "{[}",
        "~": r"\textasciitilde{}",
        "<": "$<$",
        ">": "$>$",
    }
    | {"⊥": r"$\bot$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "†": r"$\dagger$", "≥": r"$\geq$", "≠": r"$\neq$"}
    | {
        "∞": r"$\infty$",
        "±": r"$\pm$",
        "−": "$-$",
        "σ": r"$\sigma$",
        "×": r"$\times$",
        "τ": r"$\tau$",
        "–": "--",
        "…": r"\dots{}",
    }
)


def latex_text(text: str) -> str:
    """Text with LaTeX's special characters escaped. Characters that LaTeX's default fonts lack become their code points."""
    return "".join(map(_latex_character, plain(text)))


def _latex_character(character: str) -> str:
    if ord(character) in _LATEX:
        return _LATEX[ord(character)]
    base = unicodedata.normalize("NFKD", character)[0]
    known = character.isascii() or (character.isalpha() and base.isascii() and ord(character) < 0x180)
    return character if known else f"{{[}}U+{ord(character):04X}]"


#: Columns of figures that fit beside the names of rows into a column of text.
LATEX_COLUMNS = 5


def latex(shown: Sequence[Table]) -> str:
    """Tables as LaTeX floats for one column of text, with their columns in parts below each other.

    A figure has the limits of its interval above and below its line, heads are broken into lines, and the deviation between
    concepts is left out. A part that is still too wide is scaled down to the width of the column.
    """
    parts = ["% These tables need \\usepackage{booktabs} and \\usepackage{graphicx}."]
    for number_, table in enumerate(map(_without_spread, shown), start=1):
        rows, notes = _texts(table, latex_cell)
        of = table.provenance
        lines = [
            f"% {of.records} records; detectors: {', '.join(map(plain, of.detectors)) or 'none'}",
            "\\begin{table}",
            "\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}\\renewcommand{\\arraystretch}{1.2}",
            f"\\caption{{{latex_text(table.title)}}}",
            f"\\label{{tab:{_slug(table.title)}-{number_}}}",
            "\n\\par\\medskip\n".join(_tabulars(table, rows)),
            "\\par\\raggedright",
            *(f"\\par\\scriptsize {latex_text(note)}" for note in [*notes, _latex_legend(table)]),
            "\\end{table}",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _without_spread(table: Table) -> Table:
    def bare(entry: Entry | None) -> Entry | None:
        return None if entry is None else replace(entry, spread=None)

    return replace(table, rows=[replace(row, entries=list(map(bare, row.entries))) for row in table.rows])


def _tabulars(table: Table, rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The parts of a table, each with the names of the rows and about equally many columns."""
    width, count = len(table.heads), len(table.columns)
    parts = max(1, -(-count // LATEX_COLUMNS))
    heads = _heads(table)
    for part in range(parts):
        chosen = [width + place for place in range(part * count // parts, (part + 1) * count // parts)]
        names = [
            " & ".join([*map(latex_text, row[:width]), *(row[place] for place in chosen)]) + " \\\\" for row in rows
        ]
        yield "\n".join(
            [
                "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
                f"\\begin{{tabular}}{{{'l' * width}{'r' * len(chosen)}}}",
                "\\toprule",
                " & ".join(_latex_head(heads[place]) for place in [*range(width), *chosen]) + " \\\\",
                "\\midrule",
                *names,
                "\\bottomrule",
                "\\end{tabular}}",
            ]
        )


def _latex_head(text: str) -> str:
    """A head in lines of about ten characters."""
    lines = r"\\".join(map(latex_text, textwrap.wrap(text, 10, break_long_words=False)))
    return f"\\shortstack[r]{{{lines}}}" if r"\\" in lines else lines


def latex_cell(entry: Entry | None, reasons: Reasons) -> str:
    """A figure for LaTeX: ``0.04$^{0.12}_{0.01}$``. The best value is bold, and values tied with it are underlined."""
    if entry is None:
        return ""
    limits = not (entry.low is None and entry.high is None) and entry.value is not None and not entry.beside
    text = latex_text(entry_text(replace(entry, low=None, high=None) if limits else entry, reasons))
    if entry.value is None:
        return text
    value = latex_text(number(entry.value, entry.unit))
    command = {"strong": f"\\textbf{{{value}}}", "weak": f"\\underline{{{value}}}", "": value}[EMPHASIS[entry.standing]]
    above, below = _bare(entry.high, entry.unit) or r"\infty", _bare(entry.low, entry.unit) or r"-\infty"
    return text.replace(value, command + (f"$^{{{above}}}_{{{below}}}$" if limits else ""), 1)


def _bare(value: float | None, unit: str) -> str:
    """A limit of an interval in LaTeX's mathematics, without its unit; empty for an open side."""
    return "" if value is None else number(value, unit).replace(" ", r"\,").replace("%", r"\%")


def _latex_legend(table: Table) -> str:
    return (
        legend([table]).replace("Figures with 95 %", "Sub- and superscripts are 95 %").replace("italic:", "underlined:")
    )


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40] or "table"


# --- terminal --------------------------------------------------------------------------------------------------


def standard_output() -> Console:
    """The console for tables. It has 200 columns if it is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def print_tables(
    records: pd.DataFrame,
    view: str = "facets",
    outcomes: pd.DataFrame | pa.Table | None = None,
    console: Console | None = None,
) -> None:
    """Print a view to the terminal. A table that is too wide is split into parts, so that no column is truncated."""
    console = console or standard_output()
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
    heads = _heads(table)
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
    heads = _heads(table)
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
