"""A page per concept set: every figure of every method on it, with the attacks and the pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from overpaint.report.directions import ARROWS
from overpaint.report.figure_text import Reasons, entry_text, legend, plain, with_own_n
from overpaint.report.site.documents import Section
from overpaint.report.site.pages import Content, Page
from overpaint.report.site.plots import pareto
from overpaint.report.site.results import Results, erased_in, shown
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
    listed, measured = [], {}
    for label, kind in content.concepts.items():
        own = [results.of(results.records[results.records["concepts"] == label]) for results in content.results]
        measured[label] = [results for results in own if len(results.records)]
        what = ", ".join(erased_in(measured[label][0].records, label))
        where = ", ".join(results.name for results in measured[label])
        listed.append((label, content.page_of_concepts(label), kind, what, where))
    yield Page("concepts/index.html", "concepts.html", "Concepts", {"concepts": listed})
    for label, page, kind, what, _ in listed:
        found = [(results, table) for results in measured[label] for table in shown(results, "facets")]
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


def figures(results: Results, table: Table) -> Figures:
    """A table of view ``facets`` as text. Reasons are numbered in its notes."""
    reasons, lines, last = Reasons(), [], ""
    for row in table.rows:
        facet, name = map(plain, row.names)
        about = [name, ARROWS[row.direction], f"n = {row.n}" if row.n else ""]
        cells = [with_own_n(entry_text(entry, reasons), entry, row) for entry in row.entries]
        lines.append(Line("" if facet == last else facet, " ".join(part for part in about if part), cells))
        last = facet
    notes = [*(plain(note) for note in table.notes if note), *map(plain, reasons.said())]
    return Figures(f"{results.name}: {table.title}", [plain(head.title) for head in table.columns], lines, notes)
