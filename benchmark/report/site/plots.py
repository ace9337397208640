"""Plots as data: the places of points, intervals and labels in pixels. Templates draw them as SVG."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
import pandas as pd

from overpaint.grid.registry import components
from overpaint.report.figure_text import interval, number, plain
from overpaint.report.fronts import better
from overpaint.report.panels import ABOVE_ALL, ABOVE_FIRST
from overpaint.report.site.results import MANNERS, Block, Results, erased, shown
from overpaint.report.tables import Entry, Table


@dataclass(frozen=True)
class Point:
    """A point with the ends of its intervals."""

    x: float
    y: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    name: str = ""
    front: bool = False
    unedited: bool = False
    said: str = ""


@dataclass(frozen=True)
class Label:
    """The names of all points at (x, y): lines of text that start at (``left``, the height of each line).

    ``leader`` is the height at which a line from the point ends, or ``None`` for a label at its point.
    """

    x: float
    y: float
    left: float
    lines: Sequence[tuple[float, str]]
    leader: float | None
    front: bool


@dataclass(frozen=True)
class Pareto:
    """Erasure against retention: points, labels, ticks of both axes (pixel, text) and the names of the axes.

    ``left``, ``right``, ``top`` and ``bottom`` are the edges of the plot inside a picture of ``width`` × ``height`` pixels.
    ``left_out`` is a sentence that names the methods whose means are over fewer concepts; empty if there are none.
    """

    points: Sequence[Point]
    labels: Sequence[Label]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    x_name: str
    y_name: str
    name: str
    front: Sequence[str]
    height: float
    width: float = 800
    left: float = 56
    right: float = 570
    top: float = 16
    bottom: float = 348
    left_out: str = ""


#: Ticks of a share.
TICKS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
#: Figures of the plot: titles of columns of view `overpaint.report.site.results.VIEW`.
ERASURE, RETENTION = "target", "neighbours kept"
#: Height of a line of labels, width of a label at its point, and characters of a line beside the plot.
LINE, ROOM, CHARACTERS = 15, 110, 32
#: Height of the axis and its name below the plot.
AXIS = 52


def pareto(block: Block) -> Pareto | None:
    """The plot of a block. Both axes show the square root of a share that should be small, because most are near 0.

    A method is on the front if no other one is at least as good in both figures and better in one. The unedited model takes no
    part. Means over fewer concepts than the others are left out, because they are not comparable.
    """
    titles = [column.title for column in block.table.columns]
    if ERASURE not in titles or RETENTION not in titles:
        return None
    places = [titles.index(name) for name in (ERASURE, RETENTION)]
    found: dict[str, tuple[Entry, Entry]] = {}
    fewer: dict[str, tuple[int, int]] = {}
    for row in block.table.rows:
        x, y = (row.entries[place] for place in places)
        if x is not None and y is not None and None not in (x.value, x.low, x.high, y.value, y.low, y.high):
            if partial := x.of or y.of:
                fewer[row.names[0]] = partial
            else:
                found[row.names[0]] = (x, y)
    compared = {name: pair for name, pair in found.items() if block.methods.get(name) != "none"}
    if len(compared) < 2:
        return None
    values = np.array([[[_value(x), _value(y)] for x, y in compared.values()]])
    (dominates,) = better(values, ("down", "up"))
    front = [name for name, beaten in zip(compared, dominates.any(axis=0), strict=True) if not beaten]
    across = _scale(Pareto.left, Pareto.right)
    up = _scale(Pareto.bottom, Pareto.top)
    points = []
    for name, (x, y) in found.items():
        points.append(
            Point(
                x=across(1 - sqrt(_value(x))),
                y=up(1 - sqrt(1 - _value(y))),
                x_low=across(1 - sqrt(x.low or 0.0)),
                x_high=across(1 - sqrt(x.high or 0.0)),
                y_low=up(1 - sqrt(1 - (y.low or 0.0))),
                y_high=up(1 - sqrt(1 - (y.high or 0.0))),
                name=plain(name),
                front=name in front,
                unedited=name not in compared,
                said=plain(f"{name}: {ERASURE} {_interval(x)}, {RETENTION} {_interval(y)}"),
            )
        )
    labels = _labels_of(points)
    lowest = max((y for label in labels for y, _ in label.lines), default=0.0)
    return Pareto(
        points,
        labels,
        [(across(1 - sqrt(tick)), f"{tick:g}") for tick in TICKS],
        [(up(1 - sqrt(1 - tick)), f"{tick:g}") for tick in sorted(1 - t for t in TICKS)],
        f"{ERASURE} still shown: further right is better",
        RETENTION,
        block.name,
        front,
        max(Pareto.bottom + AXIS, lowest + LINE / 2),
        left_out=_left_out(fewer),
    )


def _left_out(fewer: Mapping[str, tuple[int, int]]) -> str:
    """A sentence that names the methods whose means are over fewer concepts, with both numbers."""
    if not fewer:
        return ""
    named = ", ".join(f"{plain(name)} ({count} of {most})" for name, (count, most) in fewer.items())
    return f"Left out, because their means are over fewer concepts: {named}."


def _value(entry: Entry) -> float:
    return entry.value or 0.0


def _scale(start: float, end: float) -> Callable[[float], float]:
    return lambda share: round(start + (end - start) * share, 1)


def _interval(entry: Entry) -> str:
    if entry.value is None:
        return "undefined"
    return number(entry.value, entry.unit) + interval(entry.low, entry.high, entry.unit)


def _labels_of(points: Sequence[Point]) -> list[Label]:
    """One label for each place with points: at the place if one point has room there, else in a column beside the plot.

    The column has the order of the points' heights, without overlaps. It is as long as its lines need.
    """
    places: dict[tuple[float, float], list[Point]] = {}
    for point in points:
        places.setdefault((point.x, point.y), []).append(point)
    labels, beside = [], []
    for (x, y), here in places.items():
        if len(here) > 1 or any(_crowds(x, y, *other) for other in places if other != (x, y)):
            beside.append(here)
        else:
            height = y + 14 if y < Pareto.top + LINE / 2 else y - 2
            labels.append(Label(x, y, x + 9, [(height, here[0].name)], None, here[0].front))
    free = Pareto.top
    waiting = [(here, textwrap.wrap(", ".join(p.name for p in here), CHARACTERS)) for here in beside]
    waiting.sort(key=lambda label: (label[0][0].y, -label[0][0].x))
    left_below = sum(len(lines) for _, lines in waiting)
    for here, lines in waiting:
        x, y = here[0].x, here[0].y
        latest = Pareto.bottom + AXIS - LINE * left_below  # lower, the labels that follow would leave the picture
        start = max(free, min(y, latest))
        heights = [round(start + LINE * number, 1) for number in range(len(lines))]
        labels.append(Label(x, y, Pareto.right + 16, [*zip(heights, lines, strict=True)], start, here[0].front))
        free, left_below = start + LINE * len(lines), left_below - len(lines)
    return labels


def _crowds(x: float, y: float, other_x: float, other_y: float) -> bool:
    """Whether another point or the edge leaves no room for a label to the right of (x, y)."""
    return x + ROOM > Pareto.right or (abs(y - other_y) < LINE and -10 < other_x - x < ROOM)


SMALL_WIDTH, SMALL_HEIGHT, SMALL_LEFT, SMALL_RIGHT, SMALL_TOP, SMALL_BOTTOM = 230, 130, 30, 12, 10, 24


@dataclass(frozen=True)
class Line:
    """A figure of a method by number of concepts.

    Attributes:
        figure: ``target`` or ``kept``.
        manner: how several concepts are erased: a value of `MANNERS`.
    """

    figure: str
    manner: str
    points: Sequence[Point]

    @property
    def path(self) -> str:
        return " ".join(f"{p.x},{p.y}" for p in self.points)


@dataclass(frozen=True)
class Small:
    """A small plot of one method."""

    method: str
    lines: Sequence[Line]
    said: str


@dataclass(frozen=True)
class Scaling:
    """Small plots with the same axes: figures by number of concepts. ``manners`` says what the styles of its lines mean."""

    name: str
    plots: Sequence[Small]
    ticks: Sequence[tuple[float, str]]
    heights: Sequence[tuple[float, str]]
    manners: str


#: What the styles of lines mean: manners of `Line`.
STYLES = {
    "once": "Solid: all concepts at once.",
    "turn": "Dashed: one request after the other.",
    "merged": "Dotted: erased separately, then merged.",
}


def scalings(blocks: Iterable[Block]) -> Iterator[Scaling]:
    """Curves over concept sets that contain each other, for each way of measuring; none without two such sets."""
    groups: dict[str, dict[str, Block]] = {}
    for block in blocks:
        if block.concepts in erased():
            groups.setdefault(block.measured, {})[block.concepts] = block
    for name, by_label in groups.items():
        chain = _chain([label for label in by_label if label in components("concepts")])
        counts = [len(erased()[label]) for label in chain]
        if len(counts) < 2:
            continue
        left, right = SMALL_LEFT, SMALL_WIDTH - SMALL_RIGHT
        across = {n: round(left + (right - left) * i / (len(counts) - 1), 1) for i, n in enumerate(counts)}
        up = _scale(SMALL_HEIGHT - SMALL_BOTTOM, SMALL_TOP)
        methods = dict.fromkeys(m for label in chain for m, own in by_label[label].methods.items() if own != "none")
        plots = [plot for m in methods if (plot := _small(m, chain, by_label, across, up))]
        if plots:
            heights = [(up(share), f"{share:g}") for share in (0.0, 0.5, 1.0)]
            drawn = {line.manner for plot in plots for line in plot.lines}
            said = " ".join(text for manner, text in STYLES.items() if manner in drawn)
            yield Scaling(name, plots, [(across[n], str(n)) for n in counts], heights, said)


def _small(
    method: str,
    chain: Sequence[str],
    by_label: Mapping[str, Block],
    across: Mapping[int, float],
    up: Callable[[float], float],
) -> Small | None:
    """The curves of one method."""
    lines, said = [], []
    for figure, kind in ((ERASURE, "target"), (RETENTION, "kept")):
        for manner, style in MANNERS.items():
            found = [
                (len(erased()[label]), entry)
                for label in _labels(chain, manner)
                if label in by_label and (entry := _entry(by_label[label].table, method, figure)) is not None
            ]
            if not any(n > 1 for n, _ in found):
                continue
            points = [
                Point(across[n], up(_value(e)), across[n], across[n], up(e.low or 0.0), up(e.high or 0.0))
                for n, e in found
            ]
            lines.append(Line(kind, style, points))
            values = ", ".join(f"{_interval(e)} for {n}" for n, e in found)
            said.append(f"{figure}{manner}: {values}")
    return Small(method, lines, f"{method}. {'; '.join(said)}") if lines else None


def _chain(labels: Sequence[str]) -> list[str]:
    """Concept sets by size. Each contains the one before it."""
    chain: list[str] = []
    for label in sorted(labels, key=lambda label: len(erased()[label])):
        if not chain or set(erased()[chain[-1]]) < set(erased()[label]):
            chain.append(label)
    return chain


def _labels(chain: Sequence[str], manner: str) -> list[str]:
    """The labels of a chain whose concepts are erased in this manner (`MANNERS`); a single concept has one only."""
    return [f"{label}{manner}" if len(erased()[label]) > 1 else label for label in chain]


def _entry(table: Table, method: str, title: str) -> Entry | None:
    """A figure of a table, if it has an interval."""
    titles = [column.title for column in table.columns]
    for row in table.rows:
        entry = row.entries[titles.index(title)] if row.names[0] == method and title in titles else None
        if entry is not None and None not in (entry.value, entry.low, entry.high):
            return entry
    return None


@dataclass(frozen=True)
class Square:
    """A cell of a heat map. ``excess`` is the attack's share minus that of the last control, in per cent of the colour scale."""

    text: str
    controls: str
    excess: float
    sign: str
    verdict: str
    interval: str
    n: int
    failed: int

    @property
    def said(self) -> str:
        """Everything about the cell, in words."""
        return f"{self.interval}; n = {self.n}; {self.failed} failed; {self.verdict}"


@dataclass(frozen=True)
class HeatMap:
    """Attacks by methods. Attacks are sorted by their mean excess over the last control."""

    title: str
    concepts: str
    methods: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Square | None]]]


#: Standings of an attack as signs and as words.
ABOVE = {ABOVE_ALL: ("▲", "above all controls"), ABOVE_FIRST: ("△", "above fresh seeds only")}


def heat_maps(results: Results) -> Iterator[HeatMap]:
    """View ``panel`` as heat maps, one per concept set and setting, with methods in the same order."""
    order = {method: place for place, method in enumerate(dict.fromkeys(results.records["method"]))}
    for concepts, part in results.records.groupby("concepts", sort=False):
        for table in shown(results.of(part), "panel"):
            rows = []
            for row in table.rows:
                gaps = [e.value - e.beside[-1] for e in row.entries if e is not None and e.value is not None]
                rows.append((-sum(gaps) / len(gaps) if gaps else inf, row))
            rows.sort(key=lambda pair: pair[0])
            heads = [column.title for column in table.columns]
            places = sorted(range(len(heads)), key=lambda place: order.get(heads[place], len(order)))
            squares = [(row.names[0], [_square(row.entries[place]) for place in places]) for _, row in rows]
            title = f"{results.name}: {table.title}"
            yield HeatMap(title, str(concepts), [plain(heads[place]) for place in places], squares)


def _square(entry: Entry | None) -> Square | None:
    if entry is None:
        return None
    if entry.value is None:
        return Square("⊥", "", 0.0, "", f"undefined: {plain(entry.why)}", "no interval", entry.n, entry.failed)
    sign, words = ABOVE.get(entry.standing, ("", "not shown to be above the controls"))
    outside = "; the attack enters behind the defence" if entry.outside else ""
    controls = " / ".join(number(value, entry.unit) for value in entry.beside)
    excess = round(100 * (entry.value - entry.beside[-1]), 1)
    return Square(
        number(entry.value, entry.unit) + ("†" if entry.outside else ""),
        controls,
        excess,
        sign,
        words + outside,
        _interval(entry),
        entry.n,
        entry.failed,
    )


@dataclass(frozen=True)
class Tau:
    """Kendall's τ of one paper's order with ours, in pixels, and what it compares."""

    x: float
    low: float | None
    high: float | None
    said: str
    text: str


#: Fewest methods of an order that is drawn.
FEWEST = 4


def taus(ordered: Sequence[Mapping]) -> list[Tau]:
    """Agreement of orders over at least `FEWEST` methods, sorted; the axis from −1 to 1 is 0 to 240 pixels.

    Orders by seconds are left out: they are from different machines.
    """
    across = _scale(0, 240)
    found = []
    for order in sorted(ordered, key=lambda o: -o["tau"]):
        if order["methods"] < FEWEST or str(order["measure"]).endswith("_seconds"):
            continue
        low, high = (None if pd.isna(order[name]) else across((order[name] + 1) / 2) for name in ("low", "high"))
        where = (
            f" under {order['attack']}" if order["attack"] else f" on {order['prompts']}" if order["prompts"] else ""
        )
        what = f"{order['measure']} of {order['erased']}{where}"
        said = f"{order['paper']}, {order['table']}: {what} against {order['other_table']}"
        text = number(order["tau"], "correlation")
        if low is not None and high is not None:
            text += interval(order["low"], order["high"], "correlation")
        found.append(Tau(across((order["tau"] + 1) / 2), low, high, said, f"{text}, {order['methods']} methods"))
    return found
