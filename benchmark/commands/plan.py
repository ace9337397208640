"""`overpaint plan`: reports what a run would do, without running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console

from overpaint.commands.grids import planned
from overpaint.errors import AssetMissing
from overpaint.grid.labels import counted
from overpaint.run.estimates import Estimates
from overpaint.run.history import changes
from overpaint.run.plan import Plan, Work, by_stage
from overpaint.run.tasks import Task
from overpaint.run.track import Track, track


@click.command()
@click.argument("overrides", nargs=-1)
@click.option("-m", "--multirun", is_flag=True, hidden=True)
def plan(overrides: Sequence[str], multirun: bool) -> None:
    """Report what a run would do: tasks, images, stored results, time, and the smallest difference it can detect."""
    grid = planned(overrides, demo=True, partial=True)
    kind, device = track(grid.plan.track), grid.config["engine"]["device"]
    for part in ("engine", "tracker"):
        try:
            grid.circumstance(part)  # refuses the values that a run refuses
        except AssetMissing as error:
            grid.plan.absent.append(str(error))
    kind.check_name(device)  # a plan is also for a machine with other devices
    todo, more = grid.plan.missing(grid.store), grid.plan.unopened(grid.store)
    estimates = Estimates(grid.store, device)
    hours = gpu_hours(kind, todo, more, estimates, grid.config["images_per_second"])
    out = Console(soft_wrap=True, highlight=False, markup=False)
    workers = grid.config["engine"].get("workers", 1)
    out.print(summary(grid.plan, todo, more, estimates, workers))
    unique, missing = grid.plan.unique(), by_stage(todo, more)
    for stage, asked in grid.plan.asked.items():
        of_stage = {work: count for work, count in more.items() if work.stage == stage}
        took = estimates.total((t for t in todo if t.stage == stage), of_stage).shared(known_number(workers))
        out.print(f"  {stage:<10} {asked:>5} asked  {unique[stage]:>5} unique  {missing[stage]:>5} to do  {took}")
    notes = [*changes(grid.plan, grid.store, todo), *grid.plan.notes, *kind.power(grid.cells)]
    for line in filter(None, [hours, *notes]):
        out.print(line)
    for said in grid.plan.absent:
        out.print(f"missing: {said}")


def gpu_hours(
    kind: Track, todo: Sequence[Task], more: Mapping[Work, int], estimates: Estimates, images_per_second: Any
) -> str:
    """A sentence with the GPU hours of the images at an assumed speed; empty if this machine has measured its speed, or if no
    image is left.

    The speed is that of images with 512² pixels in 50 steps. Erasures, searches of attacks and scoring are not included.
    Images of tasks that are not planned yet (``more``) are taken to be like the others.
    """
    images = [task for task in todo if task.stage == "generate"]
    if not images or all(estimates.of(task) is not None for task in images):
        return ""
    planned = sum(task.amount for task in images)
    later = sum(work.amount * count for work, count in more.items() if work.stage == "generate")
    hours = kind.standard_images(images) / images_per_second / 3600 * (planned + later) / planned
    told = f"about {hours:,.1f}" if hours >= 0.05 else "less than 0.1"
    return (
        f"{told} GPU hours for the images, assuming images_per_second={images_per_second:g} at 512² pixels and "
        "50 steps; erasures, attack searches and scoring are not included"
    )


def known_number(workers: int | str) -> int:
    """The number of workers that an engine sets, or 1 if it is ``auto``."""
    return workers if isinstance(workers, int) else 1


def summary(
    plan: Plan, todo: Sequence[Task], more: Mapping[Work, int], estimates: Estimates, workers: int | str = 1
) -> str:
    """One line with the numbers of cells, tasks, stored tasks and remaining tasks, and the estimated time.

    ``more`` is the work of cells whose tasks are not planned yet; what is stored of it is not known. ``workers`` is the
    engine's setting. The time is that of one worker if it is ``auto``.
    """
    tasks = plan.unique().total()
    head = f"{counted(len(plan.cells), 'cell')}, {counted(tasks, 'task')}"
    if not todo:
        return f"{head}, everything is stored"
    images = sum(t.amount for t in todo if t.stage == "generate")
    images += sum(work.amount * count for work, count in more.items() if work.stage == "generate")
    left, most = len(todo) + sum(more.values()), "up to " if more else ""
    number = known_number(workers)
    time = estimates.total(todo, more).shared(number)
    by = "" if workers == 1 else f" with {counted(number, 'worker')}"
    return (
        f"{head}: {max(0, tasks - left)} stored or not needed, {most}{left} to do ({counted(images, 'image')}), "
        f"{time.text(by)}"
    )
