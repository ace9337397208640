"""Figures for HTML: what a cell shows, what it says in words, and where its interval is drawn."""

from __future__ import annotations

import re
from dataclasses import dataclass

from overpaint.report.directions import ARROWS
from overpaint.report.families import DIFFERS, EQUAL
from overpaint.report.figure_text import MARKS, number, plain
from overpaint.report.standings import BEST, TIED
from overpaint.report.tables import Entry, Head

#: Signs of the best figure of a column and of those that are not shown to be worse.
SIGNS = {BEST: "●", TIED: "○", "": ""}
WORDS = {BEST: "best", TIED: "not shown to be worse than the best", "": ""}
SAID = {
    DIFFERS: "differs",
    EQUAL: "equal within the margin",
    "": "",
}


@dataclass(frozen=True)
class Cell:
    """A figure of a table.

    Attributes:
        sort: the value by which a column is sorted; empty if there is none.
        text: the value as text; ``signs`` its marks.
        said: everything else about it, in words: interval, n, failures, tests.
        part: the concepts of a mean and of its column, such as ``2/7``, if they differ.
        bar: the interval and the value as percentages of the axis 0 to 1; ``None`` if they are not shares.
    """

    sort: str
    text: str
    signs: str
    said: str
    standing: str
    part: str
    bar: tuple[str, str, str] | None


def cell(entry: Entry | None) -> Cell | None:
    """A figure as a cell."""
    if entry is None:
        return None
    part = f"{entry.of[0]}/{entry.of[1]}" if entry.of else ""
    if entry.value is None:
        return Cell("", "⊥", "", _sentence([f"undefined: {plain(entry.why)}", _failed(entry)]), "", part, None)
    text = ("≥ " if entry.bound else "") + number(entry.value, entry.unit)
    signs = "".join((MARKS[entry.mark.says], "†" if entry.outside else "", SIGNS.get(entry.standing, "")))
    return Cell(f"{entry.value:.6g}", text, signs, _said(entry), entry.standing, part, _bar(entry))


def _said(entry: Entry) -> str:
    p = "" if entry.mark.p_adjusted is None else f" (p = {entry.mark.p_adjusted:.2g}, {entry.mark.family})"
    return _sentence(
        [
            _interval(entry),
            f"n = {entry.n}" if entry.n else "",
            _failed(entry),
            f"σ between concepts {number(entry.spread, entry.unit)}" if entry.spread is not None else "",
            f"control {number(entry.control, entry.unit)}" if entry.control is not None else "",
            SAID[entry.mark.says] + p if entry.mark.says else f"no difference is shown{p}" if p else "",
            "the attack enters behind the defence" if entry.outside else "",
            f"over {entry.of[0]} of {entry.of[1]} concepts" if entry.of else "",
            f"a lower bound: {plain(entry.why)}" if entry.bound else "",
            WORDS.get(entry.standing, ""),
        ]
    )


def _interval(entry: Entry) -> str:
    low, high = (None if limit is None else number(limit, entry.unit) for limit in (entry.low, entry.high))
    if low is None and high is None:
        return "no interval"
    if low is None or high is None:
        return "95 % interval " + (f"up to {high}, no lower limit" if low is None else f"from {low}, no upper limit")
    return f"95 % interval {low} to {high}"


def _failed(entry: Entry) -> str:
    return f"{entry.failed} failed"


def _sentence(parts: list[str]) -> str:
    return "; ".join(part for part in parts if part)


def _bar(entry: Entry) -> tuple[str, str, str] | None:
    values = (entry.low, entry.value, entry.high)
    if entry.unit != "fraction" or not all(value is not None and 0 <= value <= 1 for value in values):
        return None
    low, value, high = (100 * value for value in values if value is not None)
    return f"{low:.1f}", f"{value:.1f}", f"{high:.1f}"


def head(column: Head) -> str:
    """The head of a column: ``target ↓``."""
    return f"{plain(column.title)} {ARROWS[column.direction]}".strip()


def slug(name: str) -> str:
    """A name for files and anchors: letters, digits, ``_`` and ``-``."""
    return re.sub(r"[^\w-]+", "-", name).strip("-") or "page"


class Slugs:
    """Names of files, different for different names."""

    def __init__(self) -> None:
        self._taken: dict[str, str] = {}

    def of(self, name: str) -> str:
        """The file name of a name, the same one every time."""
        wanted, number_ = slug(name)[:60], 1
        found = wanted
        while self._taken.setdefault(found.lower(), name) != name:
            number_ += 1
            found = f"{wanted}-{number_}"
        return found
