"""The index: the table of all methods with filters, and plots of erasure, retention, attacks and scaling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from overpaint.report.figure_text import legend, plain
from overpaint.report.site.cells import SIGNS, Cell, cell, head
from overpaint.report.site.pages import Content, Page
from overpaint.report.site.plots import HeatMap, pareto
from overpaint.report.site.results import VIEW, Block
from overpaint.report.standings import BEST, TIED
from overpaint.report.views import view_named

#: What the signs of cells say, besides the legend of all tables.
STANDINGS = (
    f"{SIGNS[BEST]} the best of the methods that were measured in the same way on the same concepts; {SIGNS[TIED]} not shown "
    "to be worse than it."
)
CELLS = (
    "A fraction such as 2/7: the mean is over 2 of 7 concepts. Bars run from 0 to 1 with the interval. ·: not measured. Means "
    "over concepts weigh them equally."
)

#: Heads of the columns before the figures. Where blocks differ in further settings, one for these follows.
LABELS = ("method", "concepts", "kind", "results", "model", "protocol", "budget")


@dataclass(frozen=True)
class Row:
    """A method in a block: the labels that filters look at, and a cell per column."""

    method: str
    page: str
    block: Block
    cells: Sequence[Cell | None]
    shown: bool

    @property
    def linked(self) -> bool:
        """Whether there is a page of its concepts: of one set, not of a mean over several."""
        return not self.block.averaged


@dataclass(frozen=True)
class Board:
    """The table of the index. ``labels`` are the heads before the figures, ``groups`` facets with their number of columns."""

    labels: Sequence[str]
    heads: Sequence[str]
    groups: Sequence[tuple[str, int]]
    rows: Sequence[Row]
    start: Block
    filters: dict[str, list[str]]


def pages(content: Content) -> Iterator[Page]:
    """The index."""
    found = board(content, content.blocks) if content.blocks else None
    plots = [
        (block, plot)
        for block in content.blocks
        if (block.averaged or len(content.blocks) == 1) and (plot := pareto(block))
    ]
    if not plots:
        plots = [(block, plot) for block in content.blocks[:1] if (plot := pareto(block))]
    values = {
        "board": found,
        "paretos": [plot for _, plot in plots[:1]],
        "heat_maps": _most_telling(content.heat_maps),
        "scalings": content.scalings,
        "legend": signs(content.blocks),
    }
    yield Page("index.html", "index.html", "Leaderboard", values)


def signs(blocks: Sequence[Block]) -> str:
    """What the signs of these blocks' cells say."""
    return f"{STANDINGS} {legend([block.table for block in blocks], emphasis=False)} {CELLS}"


def _most_telling(maps: Sequence[HeatMap]) -> Sequence[HeatMap]:
    """Heat maps of at least three attacks; all of them if there is none."""
    return [one for one in maps if len(one.rows) > 2] or maps


def board(content: Content, shown: Sequence[Block], method: str | None = None) -> Board:
    """The rows of these blocks, of one method or of all. Only those of the first block are visible at first."""
    start = shown[0]
    columns = view_named(VIEW).columns
    heads = {column.title: column for block in shown for column in block.table.columns}
    titles = sorted(heads, key=lambda title: list(columns).index(heads[title].column))
    metrics = [columns[heads[title].column].metric for title in titles]
    facets = [next(block.facets[metric] for block in shown if metric in block.facets) for metric in metrics]
    rows = [
        Row(
            plain(row.names[0]),
            content.page_of_method(block.methods[row.names[0]]),
            block,
            [_cell(block, row.entries, title) for title in titles],
            block is start or method is not None,
        )
        for block in shown
        for row in block.table.rows
        if method in (None, block.methods[row.names[0]])
    ]
    further = ["settings"] if any(block.settings for block in shown) else []
    filters = {
        "results": [block.results.name for block in shown],
        **{
            name: [getattr(block, name) for block in shown]
            for name in ("concepts", "kind", "model", "protocol", "budget", *further)
        },
    }
    return Board(
        [*LABELS, *further],
        [head(heads[title]) for title in titles],
        [(facet, len(list(same))) for facet, same in groupby(facets)],
        rows,
        start,
        {name: list(dict.fromkeys(value for value in values if value)) for name, values in filters.items()},
    )


def _titles(block: Block) -> list[str]:
    return [column.title for column in block.table.columns]


def _cell(block: Block, entries: Sequence, title: str) -> Cell | None:
    titles = _titles(block)
    return cell(entries[titles.index(title)]) if title in titles else None
