"""`overpaint plan`: reports what a run would do, without running it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import click
from rich.console import Console

from overpaint.commands.grids import planned
from overpaint.run.estimates import Estimates
from overpaint.run.history import changes
from overpaint.run.plan import Plan
from overpaint.run.tasks import Task
from overpaint.run.track import track


@click.command()
@click.argument("overrides", nargs=-1)
@click.option("-m", "--multirun", is_flag=True, hidden=True)
def plan(overrides: Sequence[str], multirun: bool) -> None:
    """Report what a run would do: tasks, images, stored results, time, and the smallest difference it can detect."""
    grid = planned(overrides, demo=True)
    todo = grid.plan.missing(grid.store)
    estimates = Estimates(grid.store)
    out = Console(soft_wrap=True, highlight=False, markup=False)
    out.print(summary(grid.plan, todo, estimates))
    unique, missing = Counter(t.stage for t in grid.plan.tasks.values()), Counter(t.stage for t in todo)
    for stage, asked in grid.plan.asked.items():
        took = estimates.total(t for t in todo if t.stage == stage)
        out.print(f"  {stage:<10} {asked:>5} asked  {unique[stage]:>5} unique  {missing[stage]:>5} to do  {took}")
    for line in [*changes(grid.plan, grid.store, todo), *grid.plan.notes, *track(grid.plan.track).power(grid.cells)]:
        out.print(line)


def summary(plan: Plan, todo: Sequence[Task], estimates: Estimates) -> str:
    """One line with the numbers of cells, tasks, stored tasks and remaining tasks, and the estimated time."""
    head = f"{len(plan.cells)} cells, {len(plan.tasks)} tasks"
    if not todo:
        return f"{head}, everything is stored"
    images = sum(t.amount for t in todo if t.stage == "generate")
    return (
        f"{head}: {len(plan.tasks) - len(todo)} stored or not needed, {len(todo)} to do ({images} images), "
        f"{estimates.total(todo)}"
    )
