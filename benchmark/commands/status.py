"""`overpaint status`: what runs where since when, what failed and why, what is left of a grid, and what is stored."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from overpaint.commands.grids import Grid, store_and_grid
from overpaint.errors import UserError, unknown
from overpaint.grid.labels import bytes_said, counted, printable
from overpaint.run import leases
from overpaint.run.estimates import Estimate, Estimates, duration
from overpaint.run.leases import Lease
from overpaint.run.notes import Note, notes
from overpaint.run.plan import by_stage
from overpaint.run.shared_run import SharedRun, shared_runs
from overpaint.run.store import Failure, Store

FORMATS = ("terminal", "json")
#: What JSON says of a run that other machines join.
RUN = ("id", "engine", "host", "began", "jobs")
#: Seconds between two looks of ``--watch``.
PAUSE = 2.0
#: Most lines of a section on the terminal.
LINES = 12


@click.command()
@click.argument("overrides", nargs=-1)
@click.option("--watch", is_flag=True, help=f"Look again every {PAUSE:g} seconds until Ctrl-C.")
@click.option("--format", "form", default="terminal", help="terminal or json.")
def status(overrides: Sequence[str], watch: bool, form: str) -> None:
    """Report running tasks, failures with their errors, what is left of a grid, and what is stored.

    With overrides, tasks and failures are those of the grid that they define. Without them, those of the whole store.
    """
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if watch and form == "json":
        raise UserError("--watch draws on the terminal: leave out --format json")
    store, grid = store_and_grid(overrides)
    if form == "json":
        click.echo(json.dumps(Status.of(store, grid).as_dict(), indent=1))
        return
    console = Console(highlight=False, soft_wrap=False)
    if not watch:
        console.print(drawn(Status.of(store, grid)))
        return
    with Live(drawn(Status.of(store, grid)), console=console, auto_refresh=False) as screen:
        while True:
            time.sleep(PAUSE)
            screen.update(drawn(Status.of(store, grid)), refresh=True)


@dataclass(frozen=True)
class Left:
    """What is left of a grid: missing tasks by stage, and how long the processes that work now take for them."""

    cells: int
    tasks: int
    missing: Mapping[str, int]
    time: Estimate


@dataclass(frozen=True)
class Status:
    """A store at one moment: commands, runs that other machines join, and tasks at work, failures by key, artefacts and bytes by
    stage, the rest of a grid."""

    store: str
    commands: Sequence[Note]
    runs: Sequence[SharedRun]
    working: Sequence[Lease]
    failures: Mapping[str, Failure]
    stages: Mapping[str, tuple[int, int]]
    left: Left | None

    @classmethod
    def of(cls, store: Store, grid: Grid | None) -> Status:
        """The status of a store, or of one grid in it."""
        working = [lease for lease in leases.held(store.root) if lease.alive is not False]
        failures, left = store.failures(), None
        if grid:
            todo, more = grid.plan.missing(store), grid.plan.unopened(store)
            if not more:  # else it is not known whose tasks these are
                tasks = grid.plan.opened().tasks
                working = [lease for lease in working if lease.key in tasks]
                failures = {key: failure for key, failure in failures.items() if key in tasks}
            total = Estimates(store, grid.config["engine"]["device"]).total(todo, more)
            shared = total.shared(max(1, len(working)))
            left = Left(len(grid.plan.cells), grid.plan.unique().total(), dict(by_stage(todo, more)), shared)
        sizes = {stage: store.listed(stage).column("bytes").values() for stage in store.stages()}
        stages = {stage: (len(found), sum(found)) for stage, found in sizes.items()}
        runs = [shared for shared in shared_runs(store) if shared.jobs or shared.living]
        return cls(str(store.root), notes(store.root), runs, working, failures, stages, left)

    def as_dict(self) -> dict[str, Any]:
        """The status as JSON values."""
        failures = [
            {"key": key, "task": f.task, "run": f.run, "attempt": f.attempt, "reason": f.reason}
            for key, f in self.failures.items()
        ]
        return {
            "store": self.store,
            "commands": [note._asdict() for note in self.commands],
            "runs": [{key: getattr(shared, key) for key in RUN} for shared in self.runs],
            "working": [asdict(lease) | {"alive": lease.alive} for lease in self.working],
            "failures": failures,
            "stages": {stage: {"artefacts": count, "bytes": size} for stage, (count, size) in self.stages.items()},
            "left": asdict(self.left) if self.left else None,
        }


def drawn(found: Status) -> RenderableType:
    """The status for the terminal, about one screen of it."""
    return Group(*_sections(found))


def _sections(found: Status) -> Iterator[RenderableType]:
    now = time.time()
    yield Text(f"store {printable(found.store)}", style="bold")
    rows = [(n.what, "", f"{n.host}, process {n.process}", _since(n.since, now)) for n in found.commands]
    rows += [(_run(shared), shared.id, shared.host, _since(shared.began, now)) for shared in found.runs]
    rows += [(lease.label, lease.key, _place(lease), _since(lease.since, now)) for lease in found.working]
    yield from _section("at work", ("what", "key", "where", "since"), rows, "nothing is running")
    failed = [(f.task, key, f"attempt {f.attempt}", f.reason) for key, f in found.failures.items()]
    yield from _section("failed", ("task", "key", "", "why"), failed, "nothing has failed")
    if failed:
        yield Text(f"`overpaint run` tries them again; tracebacks are in {printable(found.store)}/failures")
    if found.left:
        left = found.left
        missing = sum(left.missing.values())
        stages = ", ".join(f"{count} {stage}" for stage, count in left.missing.items())
        rest = (
            f"{missing} of {left.tasks} tasks ({stages}), {left.time}" if missing else "nothing, everything is stored"
        )
        yield Text(f"left of {counted(left.cells, 'cell')}: {rest}")
    stored = [(stage, f"{count:,}", bytes_said(size)) for stage, (count, size) in found.stages.items()]
    total = [sum(values) for values in zip(*found.stages.values(), strict=True)] or [0, 0]
    stored.append(("all", f"{total[0]:,}", bytes_said(total[1])))
    yield from _section("stored", ("stage", "artefacts", "size"), stored, "")


def _section(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> Iterator[RenderableType]:
    if not rows:
        yield Text(empty)
        return
    grid = Table(title=Text(f"{title}: {len(rows)}" if len(heads) > 3 else title), title_justify="left", expand=False)
    for head in heads:
        whole = head in ("why", "what", "task")
        grid.add_column(head, overflow="fold" if whole else "ellipsis", no_wrap=not whole)
    for row in rows[:LINES]:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    yield grid
    if len(rows) > LINES:
        yield Text(f"and {len(rows) - LINES} more (--format json lists all)")


def _run(shared: SharedRun) -> str:
    return f"run of engine={shared.engine}" + (f", {counted(shared.jobs, 'job')}" if shared.jobs else "")


def _place(lease: Lease) -> str:
    silent = "" if lease.alive else f", last sign of life {_since(lease.beat, time.time())} ago"
    return f"{lease.host}{', ' if lease.worker else ''}{lease.worker}{silent}"


def _since(moment: float, now: float) -> str:
    return duration(max(0.0, now - moment))  # another machine's clock can be ahead
