"""A page per method: its figures, how it withstands attacks, what papers print, its pictures and its card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from overpaint.grid.registry import component, components
from overpaint.report.site.documents import Section
from overpaint.report.site.leaderboard import board, signs
from overpaint.report.site.pages import Content, Method, Page
from overpaint.report.site.plots import HeatMap, Scaling, Square
from overpaint.report.site.printed import HEADS, Printed


def pages(content: Content, printed: Mapping[str, Printed]) -> Iterator[Page]:
    """The list of methods, and their pages. ``printed`` holds what papers print of each method."""
    yield Page("methods/index.html", "methods.html", "Methods", {"methods": content.methods})
    for method in content.methods:
        labels = {
            label
            for results in content.results
            for label in results.records.loc[results.records["method_name"] == method.name, "method"]
        }
        shown = [block for block in content.blocks if method.name in block.methods.values()]
        card = content.card(method.page)
        values = {
            "method": method,
            "board": board(content, shown, method.name) if shown else None,
            "legend": signs(shown),
            "attacks": [attacks for one in content.heat_maps for attacks in _attacks(one, labels)],
            "curves": [curve for one in content.scalings if (curve := _curves(one, labels)).plots],
            "printed": printed.get(method.name),
            "pictures": [picture for picture in content.pictures if set(picture.methods) & labels],
            "card": card,
            "settings": _settings(method),
            "heads": HEADS,
        }
        about = Section(method.page, "", method.name, f"{method.summary} {method.paper}")
        yield Page(method.page, "method.html", method.name, values, [about, *(card.sections if card else ())])


def _attacks(one: HeatMap, labels: set[str]) -> Iterator[tuple[str, str, list[tuple[str, Square]]]]:
    """The columns of a heat map that belong to a method: its title, the method's label, and a square per attack."""
    for place, label in enumerate(one.methods):
        if label in labels:
            yield one.title, label, [(attack, s) for attack, squares in one.rows if (s := squares[place]) is not None]


def _curves(one: Scaling, labels: set[str]) -> Scaling:
    return replace(one, plots=[plot for plot in one.plots if plot.method in labels])


def _settings(method: Method) -> list[tuple[str, str]]:
    """The hyper-parameters with their defaults."""
    if method.name not in components("method"):
        return []
    defaults = component("method", method.name).defaults
    return [(name, "null" if value is None else str(value)) for name, value in defaults.items()]
