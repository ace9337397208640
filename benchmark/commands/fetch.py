"""`overpaint fetch`: downloads the weights, prompt files and models that a grid needs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from overpaint.commands.downloads import Report, fetch_asset
from overpaint.commands.grids import ERR, about_cells, cells_of, compose, own_keys
from overpaint.errors import AssetMissing, UserError
from overpaint.grid.assets import Asset, asset
from overpaint.grid.labels import bytes_said
from overpaint.grid.overrides import read_override
from overpaint.grid.registry import search
from overpaint.run.track import track

#: One thing to fetch: its name, whether it is here, and a function that fetches it and says what it did.
Need = tuple[str, bool, Callable[[], str]]


@click.command()
@click.argument("overrides", nargs=-1)
@click.option("-m", "--multirun", is_flag=True, hidden=True)
def fetch(overrides: Sequence[str], multirun: bool) -> None:
    """Download the weights and prompt files that a grid needs, or those of `asset=a,b`.

    Models of the hub are downloaded too. The same command continues an interrupted download. Assets are stored in
    $OVERPAINT_ASSETS, or in the platform's cache folder.
    """
    sys.exit(fetch_all(_asked(overrides), "this grid" if about_cells(overrides) else "the demo"))


def fetch_all(needs: Iterable[Need], what: str) -> int:
    """Fetch everything that ``what`` needs. Returns the exit code: 1 if something could not be fetched, which is reported on
    stderr."""
    failed = count = 0
    for name, present, get in needs:
        count += 1
        if present:
            click.echo(f"{name}: present")
            continue
        try:
            click.echo(f"{name}: fetched to {get()}")
        except UserError as error:
            failed += 1
            click.echo(f"overpaint: {error}", err=True)
    if not count:
        click.echo(f"nothing to fetch: {what} needs no asset")
    return 1 if failed else 0


def _asked(overrides: Sequence[str]) -> Iterator[Need]:
    """The assets of ``asset=a,b``, else the assets and models that the grid of the overrides needs."""
    own_keys().add("asset")
    named = [override for override in overrides if override.startswith("asset=")]
    if named:
        others = search([override for override in overrides if override not in named])
        if others:
            raise UserError(f"fetch takes asset=NAME,… or the overrides of a run, not both: got {others[0]}")
        names = [str(name) for override in named for name in read_override(override).values]
        yield from [_asset(name) for name in dict.fromkeys(names)]  # all names are checked before the first download
        return
    seen: set[str] = set()
    while True:  # a cell may need an asset to be composed; its own needs are known after that
        models: Mapping[str, Callable] = {}
        try:
            composed = compose(overrides, demo=True)
            cells, kind = cells_of(composed), track(composed[0].config["track"]["name"])
            names = [*kind.assets(cells), *kind.optional_assets(cells)]
            models, complete = kind.models(cells), True
        except AssetMissing as error:
            names, complete = list(error.assets), False
            if not set(names) - seen:
                raise
        yield from [_asset(name) for name in dict.fromkeys(names) if name not in seen]
        yield from [(f"model {name}", False, get) for name, get in models.items()]
        seen.update(names)
        if complete:
            return


def _asset(name: str) -> Need:
    chosen = asset(name)
    return f"asset={name}", chosen.present(), lambda: _fetched(chosen)


def _fetched(chosen: Asset) -> str:
    """Fetch an asset, and say where it is, under which licence, and which files were trusted."""
    with _progress(chosen) as report:
        folder = fetch_asset(chosen, report)
    unknown = [name for name, entry in chosen.files.items() if not entry.get("sha256")]
    note = f"; trusted on first use: {', '.join(unknown)}" if unknown else ""
    return f"{folder} (licence: {chosen.licence}{note})"


@contextmanager
def _progress(chosen: Asset) -> Iterator[Report]:
    """Context: a function that shows the bytes of each file, as a bar in a terminal, else one line for each file."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    bars: dict[str, TaskID] = {}
    console: Console = ERR
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def report(name: str, done: int, size: int | None) -> None:
            if name not in bars:
                bars[name] = progress.add_task(f"{chosen.name}/{name}", total=size)
                if not console.is_terminal:
                    told = f" ({bytes_said(size)})" if size else ""
                    console.print(f"asset={chosen.name}: {name}{told}")
            progress.update(bars[name], completed=done, total=size)

        yield report
