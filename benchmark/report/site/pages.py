"""What all pages share: the content of the site, and a page before it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from overpaint.grid.registry import component, components
from overpaint.report.site.cells import Slugs
from overpaint.report.site.documents import Document, Section
from overpaint.report.site.plots import HeatMap, Scaling, heat_maps, scalings
from overpaint.report.site.results import Block, Results, blocks


@dataclass(frozen=True)
class Picture:
    """A contact sheet on the site.

    Attributes:
        concepts: the label of its concept set, and ``methods`` those of its rows.
        file: its path on the site.
        blurred: the path of a blurred copy, which is shown first; empty if the pictures are harmless.
    """

    concepts: str
    methods: Sequence[str]
    file: str
    blurred: str
    width: int
    height: int
    title: str


@dataclass(frozen=True)
class Page:
    """A page: its path, its template and the template's values. ``sections`` are its parts in the search."""

    path: str
    template: str
    title: str
    values: Mapping[str, Any]
    sections: Sequence[Section] = ()


@dataclass(frozen=True)
class Method:
    """A method in lists: its name, page, and what its YAML says of it."""

    name: str
    page: str
    summary: str
    paper: str
    status: str
    measured: bool


@dataclass
class Content:
    """Everything that the site shows."""

    results: Sequence[Results]
    documents: Sequence[Document] = ()
    pictures: Sequence[Picture] = ()
    slugs: Slugs = field(default_factory=Slugs)

    @cached_property
    def blocks(self) -> list[Block]:
        """All blocks, those with the most methods and concept sets first."""
        found = [block for results in self.results for block in blocks(results)]
        return sorted(found, key=lambda block: (-len(block.averaged), -len(block.table.rows)))

    @cached_property
    def heat_maps(self) -> list[HeatMap]:
        """The heat maps of all results, the largest first."""
        found = [one for results in self.results for one in heat_maps(results)]
        return sorted(found, key=lambda one: -len(one.rows) * len(one.methods))

    @cached_property
    def scalings(self) -> list[Scaling]:
        """The curves of all results."""
        return list(scalings(self.blocks))

    @cached_property
    def methods(self) -> list[Method]:
        """All methods that are registered or measured, by name."""
        measured = {str(name) for results in self.results for name in results.records["method_name"]}
        found = []
        for name in sorted({*components("method"), *measured}):
            about = component("method", name).config if name in components("method") else {}
            summary, paper, status = (str(about.get(key) or "") for key in ("summary", "paper", "status"))
            found.append(Method(name, self.page_of_method(name), summary, paper, status, name in measured))
        return found

    @cached_property
    def concepts(self) -> dict[str, str]:
        """The kind of every measured concept set, by label."""
        found: dict[str, str] = {}
        for results in self.results:
            for label, kind in zip(results.records["concepts"], results.records["kind"], strict=True):
                found.setdefault(str(label), str(kind))
        return found

    def page_of_method(self, name: str) -> str:
        """The path of a method's page."""
        return f"methods/{self.slugs.of(name)}.html"

    def page_of_concepts(self, label: str) -> str:
        """The path of a concept set's page."""
        return f"concepts/{self.slugs.of(label)}.html"

    def card(self, page: str) -> Document | None:
        """The document of a page."""
        return next((document for document in self.documents if document.page == page), None)
