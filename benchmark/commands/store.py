"""`overpaint store`: verify a store, merge another one into it, or pack it into one file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import click

from overpaint.commands.grids import ERR, store_and_grid, taken
from overpaint.commands.targets import target, whole
from overpaint.errors import UserError, unknown
from overpaint.grid.labels import bytes_said, counted, printable
from overpaint.grid.paths import path_of
from overpaint.grid.typed import bare
from overpaint.report.records import STAGE, unreadable
from overpaint.run import archives
from overpaint.run.display import steps_shown
from overpaint.run.store import CorruptArtefact, Damage, Store


class Commands(click.Group):
    """A group whose error for an unknown command names the nearest."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        found = super().get_command(ctx, cmd_name)
        if found is None:
            raise unknown("store command", cmd_name, self.commands)
        return found


@click.group(cls=Commands, invoke_without_command=True)
@click.pass_context
def store(context: click.Context) -> None:
    """Verify a store, merge another store or an archive into it, or pack it into one file."""
    if context.invoked_subcommand is None:
        raise UserError(f"store takes a command: {', '.join(sorted(store.commands))}")


@store.command()
@click.argument("what", nargs=-1)
@click.option(
    "--set-aside", is_flag=True, help="Move damaged artefacts into the folder corrupt, so that run makes them again."
)
def verify(what: Sequence[str], set_aside: bool) -> None:
    """Hash every file of every artefact, of the stages WHAT or of all; store=DIR names the store.

    Files with figures are parsed as well. The exit code is 1 if an artefact is damaged. Files above 1 MB are not hashed when they
    are read, so this finds what a disk did to them.
    """
    named, stages = taken(what, "store")
    found, _ = store_and_grid([f"store={named}"] if named else [])
    for stage in stages:
        if stage not in found.stages():
            raise unknown("stage", stage, found.stages(), str(found.root))
    count = 0
    with steps_shown(ERR):
        for damage in (
            damage for stage in stages or found.stages() for damage in found.verify(stage, {STAGE: unreadable})
        ):
            count += 1
            _say([damage])
            if set_aside:
                found.make_room(CorruptArtefact(*damage))
    ERR.print(
        counted(count, "damaged artefact") + (f", moved to {found.root / 'corrupt'}" if set_aside and count else "")
    )
    sys.exit(1 if count else 0)


@store.command()
@click.argument("source")
@click.argument("overrides", nargs=-1)
def merge(source: str, overrides: Sequence[str]) -> None:
    """Copy artefacts that store=DIR lacks from another store or an archive, SOURCE.

    If both have an artefact, the one in store=DIR stays. Every file is hashed; damaged artefacts are left out and named, and
    the exit code is 1. Runs can go on meanwhile, and an interrupted merge is continued by the same command.
    """
    place = path_of(source, "SOURCE")
    if not place.exists():
        raise UserError(f"{source} does not exist: give the folder of a store, or a file of overpaint store pack")
    if not place.is_dir() and not place.is_file():
        raise UserError(f"{source} is neither a folder nor a regular file")
    target_store = _only_store(overrides)
    target_store.prepare()
    with steps_shown(ERR):
        moved = archives.merge(target_store, place)
    _say(moved.damaged)
    ERR.print(
        f"{counted(moved.copied, 'artefact')} copied, {moved.there} were there, "
        f"{counted(len(moved.damaged), 'damaged one')} left out"
    )
    sys.exit(1 if moved.damaged else 0)


@store.command()
@click.argument("overrides", nargs=-1)
@click.option("--overwrite", is_flag=True, help="Replace out=FILE.tar where it exists.")
def pack(overrides: Sequence[str], overwrite: bool) -> None:
    """Write a store into the one file out=FILE.tar, which `overpaint store merge` reads.

    With overrides, what is stored of the grid that they define. The store stays as it is. Where the number of files is limited,
    keep finished work as one archive and delete the store.
    """
    out, rest = taken(overrides, "out")
    if not out:
        raise UserError("pack takes out=FILE.tar")
    path = target(out, ".tar", overwrite)
    found, grid = store_and_grid(rest)
    listings = {stage: found.listed(stage) for stage in found.stages()}
    kept = {stage: listing.keys | listing.damaged.keys() for stage, listing in listings.items()}
    if grid:
        tasks = grid.plan.opened().tasks
        kept = {stage: keys & tasks.keys() for stage, keys in kept.items()}
    with whole(path) as partial, steps_shown(ERR):
        moved = archives.pack(found, partial, kept)
        size = bytes_said(partial.stat().st_size)
    _say(moved.damaged)
    ERR.print(
        f"{out}: {counted(moved.copied, 'artefact')}, {size}; {counted(len(moved.damaged), 'damaged one')} left out"
    )
    sys.exit(1 if moved.damaged else 0)


def _only_store(overrides: Sequence[str]) -> Store:
    named, rest = taken(overrides, "store")
    if rest:
        raise UserError(f"merge takes one SOURCE and store=DIR, got {bare(rest[0])}")
    return Store.chosen(named)


def _say(damaged: Iterable[Damage]) -> None:
    for stage, key, reason in damaged:
        click.echo(printable(f"{stage}/{key}: {reason}"))
