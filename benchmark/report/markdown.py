"""Tables as GitHub-flavoured Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from overpaint.report.figure_text import EMPHASIS, Reasons, entry_text, heads_of, legend, plain, texts
from overpaint.report.tables import Entry, Table

_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~&])")


def markdown_text(text: str) -> str:
    """Text with Markdown mark-up escaped. An underscore inside a word is not mark-up and is kept."""
    escaped = _MARKDOWN.sub(r"\\\1", plain(text))
    return re.sub(r"(?<=\w)\\_(?=\w)", "_", escaped)


def markdown(shown: Sequence[Table]) -> str:
    """Tables as GitHub-flavoured Markdown."""
    parts = []
    for table in shown:
        rows, notes = texts(table, _markdown_cell)
        heads, width = heads_of(table), len(table.heads)
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
