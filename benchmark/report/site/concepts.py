"""A page per concept set: every figure of every method on it, with the attacks and the pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from overpaint.report.directions import ARROWS
from overpaint.report.figure_text import Reasons, entry_text, legend, plain
from overpaint.report.site.documents import Section
from overpaint.report.site.pages import Content, Page
from overpaint.report.site.plots import pareto
from overpaint.report.site.results import Results, erased, shown
from overpaint.report.tables import Table


@dataclass(frozen=True)
class Line:
    """A figure of a table as text, with one cell per method."""

    facet: str
    name: str
    cells: Sequence[str]


@dataclass(frozen=True)
class Figures:
    """All figures of a concept set in one experiment."""

    title: str
    heads: Sequence[str]
    lines: Sequence[Line]
    notes: Sequence[str]


def pages(content: Content) -> Iterator[Page]:
    """The list of concept sets, and their pages."""
    listed = [
        (label, content.page_of_concepts(label), kind, ", ".join(erased().get(label, ())), _measured(content, label))
        for label, kind in content.concepts.items()
    ]
    yield Page("concepts/index.html", "concepts.html", "Concepts", {"concepts": listed})
    for label, page, kind, what, _ in listed:
        own = [
            results.of(results.records[results.records["concepts"] == label])
            for results in content.results
            if (results.records["concepts"] == label).any()
        ]
        found = [(results, table) for results in own for table in shown(results, "facets")]
        values = {
            "concepts": label,
            "kind": kind,
            "what": what,
            "figures": [figures(results, table) for results, table in found],
            "legend": legend([table for _, table in found]),
            "paretos": [p for block in content.blocks if block.concepts == label and (p := pareto(block))][:1],
            "heat_maps": [one for one in content.heat_maps if one.concepts == label],
            "pictures": [picture for picture in content.pictures if picture.concepts == label],
        }
        yield Page(page, "concept.html", label, values, [Section(page, "", label, f"{kind} {what}")])


def _measured(content: Content, label: str) -> str:
    return ", ".join(r.name for r in content.results if (r.records["concepts"] == label).any())


def figures(results: Results, table: Table) -> Figures:
    """A table of view ``facets`` as text. Reasons are numbered in its notes."""
    reasons, lines, last = Reasons(), [], ""
    for row in table.rows:
        facet, name = map(plain, row.names)
        about = [name, ARROWS[row.direction], f"n = {row.n}" if row.n else ""]
        cells = [_text(entry_text(entry, reasons), entry.n if entry else 0, row.n) for entry in row.entries]
        lines.append(Line("" if facet == last else facet, " ".join(part for part in about if part), cells))
        last = facet
    notes = [*(plain(note) for note in table.notes if note), *map(plain, reasons.said())]
    return Figures(f"{results.name}: {table.title}", [plain(head.title) for head in table.columns], lines, notes)


def _text(text: str, n: int, most: int) -> str:
    """A figure; with its own n where it has fewer than its row says."""
    return f"{text} (n = {n})" if text and n != most else text
