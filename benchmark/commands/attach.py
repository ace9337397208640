"""`overpaint attach`: follows a run that other processes make, and prints its table when it has ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import click

from overpaint.commands.grids import ERR, taken
from overpaint.commands.run import Interruption, finish
from overpaint.errors import UserError, unknown
from overpaint.grid.registry import component, look_in, search
from overpaint.grid.typed import bare
from overpaint.report.records import stored_records
from overpaint.report.terminal import print_tables
from overpaint.run.display import Display
from overpaint.run.estimates import Estimates
from overpaint.run.following import Follower
from overpaint.run.shared_run import SharedRun, shared_runs
from overpaint.run.store import Store


@click.command()
@click.argument("overrides", nargs=-1)
def attach(overrides: Sequence[str]) -> None:
    """Follow a run of engine=slurm or engine=ray in store=DIR to its end. With several runs, give the ID of one.

    Ctrl-C stops following; the run goes on.
    """
    root, rest = taken(search(overrides), "store")
    store = Store.chosen(root)
    ids = [word for word in rest if "=" not in word]
    if len(ids) > 1 or len(ids) < len(rest):
        wrong = next(word for word in rest if "=" in word or word != ids[0])
        raise UserError(f"attach takes one run's ID and store=DIR, got {bare(wrong)}")
    sys.exit(follow(_chosen(store, ids[0] if ids else None), store))


def follow(shared: SharedRun, store: Store) -> int:
    """Follow a run to its end and print its table. Returns the exit code as `overpaint run` does."""
    stop, start = Interruption(), time.perf_counter()
    look_in(*map(Path, shared.conf_folders))
    engine, plan, estimates = component("engine", shared.engine).load(), shared.plan(), Estimates(store)
    todo = plan.missing(store)
    ERR.print(
        f"run {shared.id} (engine={shared.engine}, begun on {shared.host} at "
        f"{datetime.fromtimestamp(shared.began):%Y-%m-%d %H:%M}): {len(todo)} of {len(plan.tasks)} tasks to do"
    )

    try:
        with Display(todo, estimates, ERR, lambda: stop.asked) as display:
            follower = Follower(plan, store, shared.run, display)
            follower.follow(lambda: engine.tend(shared, store, follower, display))
    except KeyboardInterrupt:
        ERR.print("interrupted: the run goes on")
        return 130
    engine.close(shared, store)
    records = stored_records(store, plan)
    if len(records):
        print_tables(records)
    return finish(follower.outcome, store, time.perf_counter() - start)


def _chosen(store: Store, asked: str | None) -> SharedRun:
    """The run of that id, or the only one of the store."""
    found = {shared.id: shared for shared in shared_runs(store)}
    if asked in found:
        return found[asked]
    if asked:
        raise unknown("run", asked, found, f"store={store.root}")
    if not found:
        raise UserError(f"store={store.root} has no run of engine=slurm or engine=ray to follow")
    if len(found) > 1:
        raise UserError(f"store={store.root} has {len(found)} runs: give the ID of one ({', '.join(found)})")
    return next(iter(found.values()))
