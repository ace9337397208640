"""`overpaint gc`: reports what no listed grid needs, and deletes it on request."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from shlex import split

import click
from rich.console import Console
from rich.table import Table

from overpaint.commands.grids import about_cells, planned, store_and_grid, taken
from overpaint.errors import UserError
from overpaint.grid.labels import bytes_said, few
from overpaint.grid.registry import component
from overpaint.run import leases
from overpaint.run.notes import notes
from overpaint.run.shared_run import SharedRun, shared_runs
from overpaint.run.store import Store


@click.command()
@click.argument("overrides", nargs=-1)
@click.option("--also", multiple=True, metavar="OVERRIDES", help="Overrides of another grid to keep, in one argument.")
@click.option("--delete", is_flag=True, help="Delete it. Without this option nothing changes.")
def gc(overrides: Sequence[str], also: Sequence[str], delete: bool) -> None:
    """Report how much of the store the listed grids do not need, by stage. --delete deletes it.

    The overrides define a grid to keep. experiment=demo,redteam keeps several experiments, and --also 'method=uce seed=1' another
    grid. Everything that the results of these grids were made from is kept, too.
    """
    place = [o for o in overrides if o.lstrip("+").startswith(("store=", "hydra."))]
    rest = [o for o in overrides if o not in place]
    if not about_cells(rest) and not also:
        raise UserError("gc takes the grids to keep: overpaint gc experiment=NAME, or overrides; --also adds others")
    store, _ = store_and_grid([o for o in overrides if o not in about_cells(overrides)])
    grids = [planned([*(o for o in place if o not in words), *words]).plan for words in listed(rest, also)]
    needed = closed({key for plan in grids for key in plan.opened().tasks}, store)
    useless = dict(unneeded(store, needed))
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(_drawn(store, useless))
    total = bytes_said(sum(size for found in useless.values() for size in found.values()))
    if not delete:
        console.print(f"{total} can be deleted: add --delete")
        return
    store.prepare()
    store.sweep()  # what dead processes left does not count as work
    refuse_while_in_use(store)
    for stage, found in useless.items():
        for key in found:
            if stage == SET_ASIDE:
                shutil.rmtree(store.root / "corrupt" / key, ignore_errors=True)
            else:
                store.remove(stage, key)
    console.print(f"{total} deleted")


#: Name of what lies in ``corrupt``, for people.
SET_ASIDE = "set aside as damaged"


def listed(overrides: Sequence[str], also: Iterable[str]) -> Iterator[list[str]]:
    """The overrides of each grid: one for every experiment of the first ones, and one for each text of ``--also``.

    Raises a `UserError` for an empty name or text, which would keep nothing.
    """
    experiments, rest = taken(overrides, "experiment")
    if experiments:
        names = experiments.split(",")
        if not all(names):
            raise UserError(f"experiment={experiments} has an empty name")
        yield from ([f"experiment={name}", *rest] for name in names)
    elif about_cells(rest):
        yield rest
    for text in also:
        try:
            words = split(text)
        except ValueError as error:
            raise UserError(f"--also {text!r} cannot be split into overrides: {error}") from error
        if not about_cells(words):
            raise UserError(f"--also {text!r} names no grid: give overrides, for example --also 'experiment=demo'")
        yield words


def closed(keys: Iterable[str], store: Store) -> set[str]:
    """These keys, and those of everything that their stored artefacts were made from."""
    inputs = {key: text for stage in store.stages() for key, text in store.listed(stage).column("inputs").items()}
    found, new = set(), list(keys)
    while new:
        key = new.pop()
        if key not in found:
            found.add(key)
            new += json.loads(inputs.get(key, "[]"))
    return found


def unneeded(store: Store, needed: set[str]) -> Iterator[tuple[str, dict[str, int]]]:
    """The bytes of what is not needed, by stage and key: whole artefacts, damaged ones, and what was set aside."""
    for stage in store.stages():
        listing = store.listed(stage)
        sizes = {key: size for key, size in listing.column("bytes").items() if key not in needed}
        damaged = {key: _bytes(store.path(stage, key)) for key in listing.damaged if key not in needed}
        yield stage, sizes | damaged
    corrupt = store.root / "corrupt"
    yield SET_ASIDE, {place.name: _bytes(place) for place in corrupt.iterdir()} if corrupt.is_dir() else {}


def _bytes(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())


def refuse_while_in_use(store: Store) -> None:
    """Raise a `UserError` if a process works on the store: it may need what it has not asked for yet."""
    working = [f"{note.what} on {note.host}" for note in notes(store.root)]
    working += [f"run {shared.id} (engine={shared.engine}), begun on {shared.host}," for shared in _at_work(store)]
    working += [f"{lease.label} on {lease.host}" for lease in leases.held(store.root) if lease.alive is not False]
    if working:
        work = "works" if len(working) == 1 else "work"
        raise UserError(f"nothing was deleted: {few(working, 1)} {work} on {store.root}; wait for it or stop it")


def _at_work(store: Store) -> Iterator[SharedRun]:
    """The runs that go on without the process that began them, also while their jobs wait for a place in the queue."""
    for shared in shared_runs(store):
        if shared.jobs_file.exists() and component("engine", shared.engine).load().at_work(shared, store):
            yield shared


def _drawn(store: Store, useless: dict[str, dict[str, int]]) -> Table:
    grid = Table(title=f"{store.root}: what no listed grid needs", title_justify="left")
    for head in ("stage", "kept", "not needed", "size"):
        grid.add_column(head, justify="left" if head == "stage" else "right")
    for stage, found in useless.items():
        kept = "" if stage == SET_ASIDE else f"{len(store.listed(stage).keys - found.keys()):,}"
        grid.add_row(stage, kept, f"{len(found):,}", bytes_said(sum(found.values())))
    return grid
