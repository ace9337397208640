"""`overpaint run`: plans a grid, runs or resumes it, prints its table and draws its contact sheets."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import click
import pandas as pd
from omegaconf import OmegaConf

from overpaint.commands.grids import ERR, Grid, compose, prepare
from overpaint.commands.plan import summary
from overpaint.errors import UserError
from overpaint.grid.labels import counted
from overpaint.report.records import stored_outcomes, stored_records
from overpaint.report.terminal import print_tables
from overpaint.report.tracking import Sweep, Tracker, sweep_key
from overpaint.report.views import in_store, view_named
from overpaint.run.display import Display
from overpaint.run.estimates import Estimates, duration
from overpaint.run.history import changes
from overpaint.run.notes import noting
from overpaint.run.runner import Outcome
from overpaint.run.store import CorruptArtefact, Store
from overpaint.run.tasks import Task
from overpaint.run.track import track


@click.command()
@click.argument("overrides", nargs=-1)
@click.option("-m", "--multirun", is_flag=True, help="Accepted as in Hydra, without effect: lists are always swept.")
@click.option("--cfg", type=click.Choice(["job"]), help="Print the composed configuration of the first cell and stop.")
@click.option(
    "--images", is_flag=True, help="Also make images again that are gone or damaged and whose scores are stored."
)
def run(overrides: Sequence[str], multirun: bool, cfg: str | None, images: bool) -> None:
    """Plan a grid, run or resume it, and print its table. Without arguments: the demo."""
    composed = compose(overrides, demo=True)
    if cfg:
        click.echo(OmegaConf.to_yaml(composed[0].config))
        return
    sys.exit(run_grid(prepare(composed), images))


def run_grid(grid: Grid, images: bool = False) -> int:
    """Run or resume a planned grid. Returns the exit code: 0, 1 if tasks failed, or 130 if it was interrupted.

    With ``images``, those that are gone or damaged are made again, even if their scores are stored.
    """
    stop = Interruption()
    start, plan, store = time.perf_counter(), grid.plan, grid.store
    engine, tracker = grid.circumstance("engine"), grid.circumstance("tracker")
    engine.check(track(plan.track))  # reports a missing device before anything is written
    dry = getattr(engine, "dry_run", False)
    if not dry:
        store.prepare()
        store.sweep()
    if images:
        made = track(plan.track).images(plan)
        plan.again = {task.key for task in made}
        if not dry:
            _set_damaged_aside(made, store)
    estimates = Estimates(store, grid.config["engine"]["device"])
    todo, more = plan.missing(store), plan.unopened(store)
    ERR.print(summary(plan, todo, more, estimates, grid.config["engine"].get("workers", 1)))
    for note in [*plan.notes, *changes(plan, store, todo)]:
        ERR.print(f"note: {note}", style="yellow")
    if dry:
        ERR.print(engine.run(plan, store, Display(todo, estimates, ERR)).elsewhere)
        return 0
    try:
        with (
            noting(store.root, f"overpaint run, {counted(len(plan.cells), 'cell')}"),
            Display(todo, estimates, ERR, lambda: stop.asked, more) as display,
        ):
            outcome, records = _until_readable(lambda: engine.run(plan, store, display), grid)
    except KeyboardInterrupt:
        left, tasks = len(plan.missing(store)) + plan.unopened(store).total(), plan.unique().total()
        ERR.print(f"interrupted: {tasks - left} of {tasks} tasks are stored in {store.root}")
        ERR.print("run the same command to continue")
        return 130
    if outcome.elsewhere:
        ERR.print(outcome.elsewhere)
        return 0
    if len(records):
        print_tables(records, in_store(view_named("facets"), grid.config["store"]))
    sheets = _sheets(grid)
    for path in sheets:
        ERR.print(f"contact sheet: {path}")
    track_results(tracker, grid, records, sheets)
    return finish(outcome, store, time.perf_counter() - start)


def _set_damaged_aside(tasks: Iterable[Task], store: Store) -> None:
    for task in tasks:
        if store.path(task.stage, task.key).exists() and (reason := store.damage(task.stage, task.key)):
            store.make_room(CorruptArtefact(task.stage, task.key, reason))


def finish(outcome: Outcome, store: Store, seconds: float) -> int:
    """Say what a run has done. Returns its exit code: 1 if tasks failed."""
    ERR.print(f"{counted(outcome.done, 'task')} done in {duration(seconds)}, store {store.root}")
    if not outcome.failed:
        return 0
    ERR.print(
        f"{counted(len(outcome.failed), 'task')} failed; {len(outcome.blocked)} more need them and were not started. "
        f"Tracebacks are in {store.root / 'failures'}. The same command tries them again.",
        style="red",
    )
    return 1


def _until_readable(run: Callable[[], Outcome], grid: Grid) -> tuple[Outcome, pd.DataFrame]:
    """Run the grid, and repeat as long as reading a stored record finds damage: the damaged artefact is made again, once."""
    done, mended = 0, set()
    while True:
        outcome = run()
        outcome.done = done = done + outcome.done
        if outcome.elsewhere:
            return outcome, pd.DataFrame()
        try:
            return outcome, stored_records(grid.store, grid.plan)
        except CorruptArtefact as error:
            if error.key in mended:
                raise
            mended.add(error.key)
            grid.store.make_room(error)
            ERR.print(str(error))


def _sheets(grid: Grid) -> list[Path]:
    """Paths of the contact sheets. They are optional: an error, such as a full disk, is reported and does not end the run."""
    try:
        return track(grid.plan.track).sheets(grid.plan, grid.store, grid.store.root / "sheets")
    except (OSError, UserError) as error:
        ERR.print(f"no contact sheet: {error}", style="yellow")
        return []


def track_results(tracker: Tracker, grid: Grid, records: pd.DataFrame, sheets: Sequence[Path]) -> None:
    """Send the results to the tracker. Its errors are reported and do not end the run, because the results are stored."""
    key = sweep_key(task.key for _, task in grid.plan.cells)
    sweep = Sweep(key, records, grid.store.root, lambda: stored_outcomes(grid.store, records), sheets)
    try:
        tracker.send(sweep)
    except Exception as error:  # a service's library raises anything, for example if its network fails
        ERR.print(
            f"tracker={grid.config['tracker']['name']} sent nothing: {type(error).__name__}: {error}", style="yellow"
        )


class Interruption:
    """Turns SIGINT and SIGTERM into a `KeyboardInterrupt`, and remembers them: a library can swallow the exception."""

    def __init__(self) -> None:
        self.asked = False
        for kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, self)

    def __call__(self, *_) -> None:
        self.asked = True
        raise KeyboardInterrupt
