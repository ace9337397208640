"""Tables as LaTeX floats."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
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
        "‘": r"\textquoteleft{}",
        "’": r"\textquoteright{}",
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
#: Height in points of a page of LaTeX's class article, and of what stands in a float.
PAGE, ROW, HEAD_LINE, NOTE_LINE, CAPTION_LINE = 550.0, 11.5, 9.5, 8.0, 12.0
#: Height in points of the rules of a part and the space around it, and of the space around a caption and around notes.
AROUND_PART, AROUND_CAPTION, AROUND_NOTES = 24.0, 24.0, 16.0
#: Floats after which those that wait for a place are printed: LaTeX holds 18, newer versions 52.
WAITING = 16
#: Characters that fit into a line of a note and of a caption.
NOTE_WIDTH, CAPTION_WIDTH = 68, 45


def latex(shown: Sequence[Table]) -> str:
    """Tables as LaTeX floats for one column of text, with their columns in parts below each other.

    A figure has the limits of its interval above and below its line, heads are broken into lines, and the deviation between
    concepts is left out. A part that is still too wide is scaled down to the width of the column. A table that is higher than
    a page becomes several floats.
    """
    parts, waiting = ["% These tables need \\usepackage{booktabs} and \\usepackage{graphicx}."], 0
    for number_, table in enumerate(map(_without_spread, shown), start=1):
        rows, notes = texts(table, latex_cell)
        of = table.provenance
        notes = [latex_text(note) for note in [*notes, _latex_legend(table)]]
        floats = _floats(_tabulars(table, rows, _most_rows(table)), notes, _lines(table.title, CAPTION_WIDTH))
        for place, contents in enumerate(floats, start=1):
            several = f" ({place} of {len(floats)})" if len(floats) > 1 else ""
            lines = [
                f"% {of.records} records; detectors: {', '.join(map(plain, of.detectors)) or 'none'}",
                "\\begin{table}",
                "\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}\\renewcommand{\\arraystretch}{1.2}",
                f"\\caption{{{latex_text(table.title)}{several}}}",
                f"\\label{{tab:{_slug(table.title)}-{number_}{f'-{place}' if place > 1 else ''}}}",
                *contents,
                "\\end{table}",
            ]
            if waiting == WAITING:
                parts.append("\\clearpage")
                waiting = 0
            parts.append("\n".join(lines))
            waiting += 1
    return "\n\n".join(parts) + "\n"


def _without_spread(table: Table) -> Table:
    def bare(entry: Entry | None) -> Entry | None:
        return None if entry is None else replace(entry, spread=None)

    return replace(table, rows=[replace(row, entries=list(map(bare, row.entries))) for row in table.rows])


def _lines(text: str, width: int) -> int:
    """The number of lines of a text, at least one."""
    return max(1, -(-len(text) // width))


def _floats(tabulars: Iterable[tuple[str, float]], notes: Sequence[str], caption_lines: int) -> list[list[str]]:
    """The lines of each float of a table: as many of its parts as fit on a page, and its notes below the last part.

    ``tabulars`` are parts with their heights in points.
    """
    above = AROUND_CAPTION + CAPTION_LINE * caption_lines
    below = AROUND_NOTES + NOTE_LINE * sum(_lines(note, NOTE_WIDTH) for note in notes)
    floats: list[list[str]] = [[]]
    height = above
    for tabular, own in tabulars:
        if floats[-1] and height + own > PAGE:
            floats.append([])
            height = above
        floats[-1].append(tabular)
        height += own
    contents = [["\n\\par\\medskip\n".join(parts)] for parts in floats]
    if height + below > PAGE:
        contents.append([])
    contents[-1] += ["\\par\\raggedright", *(f"\\par\\scriptsize {note}" for note in notes)]
    return contents


def _most_rows(table: Table) -> int:
    """The number of rows of a part that fills a page, at least one."""
    head = max((len(_head_lines(text)) for text in heads_of(table)), default=1)
    above = AROUND_CAPTION + CAPTION_LINE * _lines(table.title, CAPTION_WIDTH) + AROUND_PART + HEAD_LINE * head
    return max(1, int((PAGE - above) / ROW))


def _tabulars(table: Table, rows: Sequence[Sequence[str]], most: int) -> Iterator[tuple[str, float]]:
    """The parts of a table with their heights in points. Each has the names of the rows and about equally many columns.

    Tables with more than ``most`` rows have parts of about equally many rows, too.
    """
    width, count = len(table.heads), len(table.columns)
    parts, pages = max(1, -(-count // LATEX_COLUMNS)), max(1, -(-len(rows) // most))
    heads = heads_of(table)
    for page in range(pages):
        own = rows[page * len(rows) // pages : (page + 1) * len(rows) // pages]
        for part in range(parts):
            places = range(part * count // parts, (part + 1) * count // parts)
            yield _tabular(heads, width, [width + place for place in places], own)


def _tabular(
    heads: Sequence[str], width: int, chosen: Sequence[int], rows: Sequence[Sequence[str]]
) -> tuple[str, float]:
    """A part with the names of the rows (the first ``width`` columns) and the ``chosen`` columns, and its height in points."""
    places = [*range(width), *chosen]
    body = [" & ".join([*map(latex_text, row[:width]), *(row[place] for place in chosen)]) + " \\\\" for row in rows]
    text = "\n".join(
        [
            "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
            f"\\begin{{tabular}}{{{'l' * width}{'r' * len(chosen)}}}",
            "\\toprule",
            " & ".join(_latex_head(heads[place]) for place in places) + " \\\\",
            "\\midrule",
            *body,
            "\\bottomrule",
            "\\end{tabular}}",
        ]
    )
    lines = max(len(_head_lines(heads[place])) for place in places)
    return text, AROUND_PART + HEAD_LINE * lines + ROW * len(rows)


def _head_lines(text: str) -> list[str]:
    """The lines of a head, of about ten characters."""
    return textwrap.wrap(text, 10, break_long_words=False)


def _latex_head(text: str) -> str:
    """A head in lines."""
    lines = r"\\".join(map(latex_text, _head_lines(text)))
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
