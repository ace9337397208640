"""`overpaint plan`: reports what a run would do, without running it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import click
from rich.console import Console

from overpaint.commands.grids import planned
from overpaint.run.estimates import Estimates
from overpaint.run.history import changes
from overpaint.run.plan import Plan, Work
from overpaint.run.tasks import Task
from overpaint.run.track import track


@click.command()
@click.argument("overrides", nargs=-1)
@click.option("-m", "--multirun", is_flag=True, hidden=True)
def plan(overrides: Sequence[str], multirun: bool) -> None:
    """Report what a run would do: tasks, images, stored results, time, and the smallest difference it can detect."""
    grid = planned(overrides, demo=True)
    todo, more = grid.plan.missing(grid.store), grid.plan.unopened(grid.store)
    estimates = Estimates(grid.store)
    out = Console(soft_wrap=True, highlight=False, markup=False)
    out.print(summary(grid.plan, todo, more, estimates))
    unique, missing = grid.plan.unique(), Counter(t.stage for t in todo)
    for work, count in more.items():
        missing[work.stage] += count
    for stage, asked in grid.plan.asked.items():
        of_stage = {work: count for work, count in more.items() if work.stage == stage}
        took = estimates.total((t for t in todo if t.stage == stage), of_stage)
        out.print(f"  {stage:<10} {asked:>5} asked  {unique[stage]:>5} unique  {missing[stage]:>5} to do  {took}")
    for line in [*changes(grid.plan, grid.store, todo), *grid.plan.notes, *track(grid.plan.track).power(grid.cells)]:
        out.print(line)


def summary(plan: Plan, todo: Sequence[Task], more: Mapping[Work, int], estimates: Estimates) -> str:
    """One line with the numbers of cells, tasks, stored tasks and remaining tasks, and the estimated time.

    ``more`` is the work of cells whose tasks are not planned yet; what is stored of it is not known.
    """
    tasks = plan.unique().total()
    head = f"{len(plan.cells)} cells, {tasks} tasks"
    if not todo:
        return f"{head}, everything is stored"
    images = sum(t.amount for t in todo if t.stage == "generate")
    images += sum(work.amount * count for work, count in more.items() if work.stage == "generate")
    left, most = len(todo) + sum(more.values()), "up to " if more else ""
    return (
        f"{head}: {max(0, tasks - left)} stored or not needed, {most}{left} to do ({images} images), "
        f"{estimates.total(todo, more)}"
    )
