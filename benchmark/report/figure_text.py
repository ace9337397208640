"""Figures, heads and legends as text, for every format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from overpaint.grid.labels import bytes_said
from overpaint.grid.scope import OUTSIDE
from overpaint.report.directions import ARROWS
from overpaint.report.families import DIFFERS, EQUAL
from overpaint.report.fronts import ON_FRONT
from overpaint.report.panels import ABOVE_ALL, ABOVE_FIRST
from overpaint.report.standings import BEST, TIED
from overpaint.report.statistics import MARGIN
from overpaint.report.tables import Entry, Head, Row, Table

MARKS = {DIFFERS: "≠", EQUAL: "=", "": ""}
#: Standings of figures -> how they are emphasised: strongly or weakly.
EMPHASIS = {BEST: "strong", ABOVE_ALL: "strong", ON_FRONT: "strong", TIED: "weak", ABOVE_FIRST: "weak", "": ""}
LEGEND = (
    "Figures with 95 % intervals. ≠ differs from what it is compared with (the unedited model, or the attack's control "
    f"where one is given); = equal to it within ±{MARGIN:.2f}; no mark: neither is shown. ⊥ undefined. "
    "↑ higher is better, ↓ lower is better."
)
#: Units of numbers with two digits after the point.
TWO_DIGITS = ("fraction", "ratio", "correlation", "mean rank")
FOOTNOTES = {
    "→ 0": "→ 0 nearer to 0 is better.",
    "†": f"† {OUTSIDE}: the attack enters behind the place where the defence acts, so it does not test it.",
    "≥": "≥ a lower bound: the most that was measured.",
    "σ": "σ standard deviation between the averaged concepts or seeds, without sampling noise.",
    "best": (
        "Bold: the best method of a column; italic: not shown to be worse (paired tests where outcomes are stored, Holm over "
        "the methods, 5 % level)."
    ),
}


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
    """A number as text, with the digits that its unit needs.

    A mean such as 0.875 differs in its last bits between CPUs. It is rounded to ten digits first, so that its text does not.
    """
    if unit == "bytes":
        return bytes_said(value)
    value = float(f"{value:.10g}")
    if unit == "seconds":
        return f"{value:.3g} s"
    if unit == "%":
        return f"{round(value, 1) + 0.0:.1f}"
    if unit == "dB":
        return f"{value:.1f} dB"
    if unit == "rank":
        return f"{value:.0f}"
    # + 0.0 avoids "-0.00"
    return f"{round(value, 2) + 0.0:.2f}" if unit in TWO_DIGITS else f"{value:.3g}"


def plain(text: object) -> str:
    """Text with control characters and direction marks escaped, so that a terminal does not interpret them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def head_text(head: Head) -> str:
    """The head of a column as text: ``target ↓ n=24``."""
    return " ".join(part for part in (head.title, ARROWS[head.direction], f"n={head.n}" if head.n else "") if part)


def row_text(row: Row) -> str:
    """The last name of a row as text, with its direction and n: ``target proportion ↓ n=24``."""
    return " ".join(part for part in (row.names[-1], ARROWS[row.direction], f"n={row.n}" if row.n else "") if part)


def with_own_n(text: str, entry: Entry | None, row: Row) -> str:
    """The text of a figure, with its n if that is not the n that the row's name gives."""
    if entry is None or entry.value is None or row.n in (0, entry.n):
        return text
    return f"{text} (n={entry.n})"


def heads_of(table: Table) -> list[str]:
    return [*table.heads, *map(head_text, table.columns)]


def _names(table: Table) -> Iterator[list[str]]:
    """The names of each row, without repeated first names. The last name has the row's direction and n."""
    last = None
    for row in table.rows:
        names = [*map(plain, row.names[:-1]), plain(row_text(row))]
        yield ["", *names[1:]] if len(names) > 1 and row.names[0] == last else names
        last = row.names[0]


def texts(table: Table, cell: Callable[[Entry | None, Reasons], str] = entry_text) -> tuple[list[list[str]], list[str]]:
    """The names and figures of a table's rows as text, and the notes under the table.

    A row's name has the largest n of its figures; a figure with another n says so.
    """
    reasons = Reasons()
    rows = [
        [*names, *(with_own_n(cell(entry, reasons), entry, row) for entry in row.entries)]
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
