"""Tables as LaTeX floats."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace

from overpaint.report.figure_text import EMPHASIS, Reasons, entry_text, heads_of, legend, number, plain, texts
from overpaint.report.tables import Entry, Table

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
        "→": r"$\rightarrow$",
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
        rows, notes = texts(table, latex_cell)
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
    heads = heads_of(table)
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
