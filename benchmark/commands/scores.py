"""`overpaint scores`: prints the scores of every image of a grid as CSV."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from overpaint.commands.grids import ERR, planned, taken
from overpaint.commands.targets import target
from overpaint.errors import UserError
from overpaint.images.gallery import score_table


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
        raise UserError(f"{grid.store.root} holds no scores of this grid: run it first (overpaint run)")
    if path:
        found.to_csv(path, index=False)
        ERR.print(f"{path}: {len(found)} images")
    else:
        found.to_csv(sys.stdout, index=False)
