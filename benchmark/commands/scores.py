"""`overpaint scores`: prints the scores of every image of a grid as CSV."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from overpaint.commands.grids import ERR, note_lacking, nothing_stored, planned, taken
from overpaint.commands.targets import target, whole
from overpaint.grid.labels import counted
from overpaint.images.gallery import incomplete, score_table


@click.command()
@click.argument("overrides", nargs=-1)
@click.option("--overwrite", is_flag=True, help="Replace out=FILE where it exists.")
def scores(overrides: Sequence[str], overwrite: bool) -> None:
    """Print the scores of every stored image of a grid as CSV, or write them to out=FILE.csv. Nothing is generated."""
    out, rest = taken(overrides, "out")
    path = target(out, ".csv", overwrite) if out else None
    grid = planned(rest)
    found = score_table(grid.plan, grid.store)
    if not len(found):
        raise nothing_stored("scores", grid, rest)
    note_lacking("scores", incomplete(grid.plan, grid.store), grid, rest)
    if path:
        with whole(path) as partial:
            found.to_csv(partial, index=False)
        ERR.print(f"{path}: {counted(len(found), 'image')}")
    else:
        found.to_csv(sys.stdout, index=False)
