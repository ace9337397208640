"""Pictures of the pages, in SVG: a heat map of attacks by erasers, shares by number of images, and rank correlations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from overpaint.report.figure_text import number
from overpaint.report.panels import ABOVE_ALL, ABOVE_FIRST
from overpaint.report.statistics import Estimate
from overpaint.report.tables import Row, Table
from overpaint.report.validity import ALL, REACH, STANDARDISED
from overpaint.report.verdicts import Against

#: Width and height of a cell, and the space for the names of rows and columns, in pixels.
WIDTH, HEIGHT, LEFT, TOP = 66, 40, 190, 110
RED, BLUE = (178, 24, 43), (33, 102, 172)


def _opening(width: int, height: int, font_size: int, title: str) -> list[str]:
    """The first lines of a picture: its size in pixels, its title and a white ground."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="{font_size}" text-anchor="middle" role="img">',
        f"<title>{title}</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]


def panel(found: Table) -> str:
    """View ``panel`` as a heat map: erasers in rows, attacks in columns, sorted by their mean colour.

    The colour is the attack's share minus that of the last control.
    """
    attacks = sorted(found.rows, key=lambda row: -_mean_excess(row))
    width, height = LEFT + WIDTH * len(attacks) + 60, TOP + HEIGHT * len(found.columns) + 50
    lines = _opening(width, height, 14, "Attacks by erasers: concepts recovered beyond random words")
    for column, attack in enumerate(attacks):
        x, y = LEFT + WIDTH * (column + 0.5), TOP - 8
        lines.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="start" transform="rotate(-40 {x:g} {y:g})">{escape(attack.names[0])}</text>'
        )
    for place, eraser in enumerate(found.columns):
        y = TOP + HEIGHT * place
        lines.append(f'<text x="{LEFT - 8}" y="{y + 25}" text-anchor="end">{escape(eraser.title)}</text>')
        for column, attack in enumerate(attacks):
            entry = attack.entries[place]
            if entry is not None and entry.value is not None:
                lines += _cell(LEFT + WIDTH * column, y, entry)
    lines += [
        f'<text x="{LEFT}" y="{height - 30}" text-anchor="start" font-size="12">Large: any image of the attack. Small: as many '
        "images of fresh seeds, and of random words. Colour: attack − random words.</text>",
        f'<text x="{LEFT}" y="{height - 12}" text-anchor="start" font-size="12">Framed: above both controls (5 %, corrected over '
        "the whole table). Italic: above fresh seeds only. †: enters behind the defence.</text>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _mean_excess(attack: Row) -> float:
    known = [_excess(entry) for entry in attack.entries if entry is not None and entry.value is not None]
    return sum(known) / len(known) if known else -1.0


def _excess(entry) -> float:
    """The attack's share minus that of the last control."""
    return entry.value - entry.beside[-1]


def _cell(x: int, y: int, entry) -> list[str]:
    excess = _excess(entry)
    base = RED if excess > 0 else BLUE
    shade = [round(255 + (part - 255) * min(1.0, abs(excess))) for part in base]
    colour = "#fff" if abs(excess) > 0.6 else "#000"
    style = {ABOVE_ALL: ' font-weight="bold"', ABOVE_FIRST: ' font-style="italic"'}.get(entry.standing, "")
    frame = ' stroke="#000" stroke-width="2"' if entry.standing == ABOVE_ALL else ""
    middle = x + WIDTH / 2
    controls = "  ".join(number(value, entry.unit) for value in entry.beside)
    return [
        f'<rect x="{x + 2}" y="{y + 2}" width="{WIDTH - 4}" height="{HEIGHT - 4}" fill="rgb({shade[0]},{shade[1]},{shade[2]})"'
        f"{frame}/>",
        f'<text x="{middle:g}" y="{y + 18}" fill="{colour}"{style}>{number(entry.value, entry.unit)}'
        f"{'†' if entry.outside else ''}</text>",
        f'<text x="{middle:g}" y="{y + 33}" fill="{colour}" font-size="11" xml:space="preserve">{controls}</text>',
    ]


#: Width and height of one plot, the space around it, and the number of plots in a row, in pixels.
PLOT_WIDTH, PLOT_HEIGHT, MARGIN_LEFT, MARGIN_TOP, GAP, IN_A_ROW = 210, 150, 44, 56, 34, 3
GREY = (90, 90, 90)


def curves(found: Mapping[str, Sequence[tuple[str, Against]]]) -> str:
    """One small plot an attack: the share of prompts with a success among the first k attacked images of each plain image, of
    the attack and of its control.

    ``found`` has the shares by number of images, from few to all. Bands are 95 % intervals.
    """
    count = -(-len(found) // IN_A_ROW)
    width = MARGIN_LEFT + IN_A_ROW * (PLOT_WIDTH + GAP)
    height = MARGIN_TOP + count * (PLOT_HEIGHT + MARGIN_TOP)
    lines = [
        *_opening(
            width, height, 12, "Prompts with an image that shows the concept, by number of images: attack and control"
        ),
        f'<text x="{MARGIN_LEFT}" y="20" text-anchor="start">Share of prompts with an image that shows the concept, by number of '
        f'images. <tspan fill="rgb{RED}">Red: attack.</tspan> <tspan fill="rgb{GREY}">Grey, dashed: control.</tspan></text>',
    ]
    for place, (name, points) in enumerate(found.items()):
        left = MARGIN_LEFT + place % IN_A_ROW * (PLOT_WIDTH + GAP)
        top = MARGIN_TOP + place // IN_A_ROW * (PLOT_HEIGHT + MARGIN_TOP)
        lines += _plot(left, top, name, points)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _plot(left: float, top: float, name: str, points: Sequence[tuple[str, Against]]) -> list[str]:
    across = [left + PLOT_WIDTH * (place + 0.5) / len(points) for place in range(len(points))]
    lines = [f'<text x="{left}" y="{top - 8}" text-anchor="start" font-weight="bold">{escape(name)}</text>']
    for share in (0.0, 0.5, 1.0):
        y = top + PLOT_HEIGHT * (1 - share)
        lines.append(f'<line x1="{left}" x2="{left + PLOT_WIDTH}" y1="{y:g}" y2="{y:g}" stroke="#ddd"/>')
        lines.append(f'<text x="{left - 6}" y="{y + 4:g}" text-anchor="end">{share:g}</text>')
    for x, (label, _) in zip(across, points, strict=True):
        lines.append(f'<text x="{x:g}" y="{top + PLOT_HEIGHT + 16:g}">{escape(label)}</text>')
    for colour, dashes, shares in (
        (GREY, ' stroke-dasharray="5 3"', [found.control for _, found in points]),
        (RED, "", [found.attacked for _, found in points]),
    ):
        lines += _curve(top, across, shares, colour, dashes)
    return lines


def _curve(
    top: float, across: Sequence[float], shares: Sequence[Estimate], colour: tuple[int, ...], dashes: str
) -> list[str]:
    def path(heights: Sequence[float | None], places: Sequence[float]) -> str:
        return " ".join(
            f"{x:g},{top + PLOT_HEIGHT * (1 - (height or 0.0)):.1f}" for x, height in zip(places, heights, strict=True)
        )

    band = path([s.low for s in shares], across) + " " + path([s.high for s in shares][::-1], across[::-1])
    line = path([s.value for s in shares], across)
    dots = [point.split(",") for point in line.split()]
    return [
        f'<polygon points="{band}" fill="rgb{colour}" fill-opacity="0.15"/>',
        f'<polyline points="{line}" fill="none" stroke="rgb{colour}" stroke-width="2"{dashes}/>',
        *(f'<circle cx="{x}" cy="{y}" r="2.5" fill="rgb{colour}"/>' for x, y in dots),
    ]


#: Width of a column of correlations, height of a row, and the space between and above columns, in pixels.
TAU_WIDTH, TAU_HEIGHT, TAU_GAP, TAU_TOP = 146, 20, 36, 40


def taus(found: Table) -> str:
    """View ``validity`` as dots with 95 % intervals: scores in rows, distances in columns, each from -1 to 1.

    The mean distance, or the only one, is in front and sorts the scores; the mean of standardised distances is left to the table.
    A tick marks the tau that is expected of a perfect score with as much noise. An interval that excludes 0 is drawn in colour.
    """
    titles = [head.title for head in found.columns]
    reach = titles.index(REACH)
    front = titles.index(ALL) if ALL in titles else reach - 1
    columns = [front, *(place for place in range(reach) if place != front and titles[place] != STANDARDISED)]
    rows = sorted(found.rows, key=lambda row: -_value(row.entries[columns[0]]))
    width, bottom = LEFT + (TAU_WIDTH + TAU_GAP) * len(columns), TAU_TOP + TAU_HEIGHT * len(rows)
    title = "Kendall's tau of scores with distances to the gold reference, with 95 % intervals"
    lines = _opening(width, bottom + 30, 13, title)
    for place, row in enumerate(rows):
        y = TAU_TOP + TAU_HEIGHT * (place + 0.5)
        lines.append(f'<text x="{LEFT - 8}" y="{y + 4:g}" text-anchor="end">{escape(row.names[0])}</text>')
    for place, column in enumerate(columns):
        left = LEFT + (TAU_WIDTH + TAU_GAP) * place
        title = escape(found.columns[column].title)
        lines.append(f'<text x="{left + TAU_WIDTH / 2:g}" y="{TAU_TOP - 12}" font-weight="bold">{title}</text>')
        for tau in (-1.0, -0.5, 0.0, 0.5, 1.0):
            x, stroke = _across(left, tau), "#888" if tau == 0 else "#ddd"
            lines.append(f'<line x1="{x:g}" x2="{x:g}" y1="{TAU_TOP}" y2="{bottom}" stroke="{stroke}"/>')
            lines.append(f'<text x="{x:g}" y="{bottom + 16}" font-size="11">{tau:g}</text>')
        for under, row in enumerate(rows):
            lines += _tau(left, TAU_TOP + TAU_HEIGHT * (under + 0.5), row.entries[column])
            if place == 0 and _value(row.entries[reach]) > -1:
                x, y = _across(left, _value(row.entries[reach])), TAU_TOP + TAU_HEIGHT * under
                lines.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y + 4}" y2="{y + 16}" stroke="#000"/>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _value(entry) -> float:
    return -2.0 if entry is None or entry.value is None else entry.value


def _across(left: float, tau: float) -> float:
    return left + TAU_WIDTH * (tau + 1) / 2


def _tau(left: float, y: float, entry) -> list[str]:
    if entry is None or entry.value is None:
        return []
    colour = BLUE if entry.low > 0 else RED if entry.high < 0 else GREY
    low, value, high = (_across(left, tau) for tau in (entry.low, entry.value, entry.high))
    return [
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y:g}" y2="{y:g}" stroke="rgb{colour}" stroke-width="2"/>',
        f'<circle cx="{value:.1f}" cy="{y:g}" r="4" fill="rgb{colour}"/>',
    ]
