"""From the overrides of a command to a checked and planned grid."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import click
from pydantic import Field
from rich.console import Console

from overpaint.errors import AssetMissing, UserError
from overpaint.grid.assets import absent, require
from overpaint.grid.labels import few
from overpaint.grid.read_once import reading_once
from overpaint.grid.registry import CIRCUMSTANCES, DESCRIPTION, component
from overpaint.grid.typed import bare, check_type, given_twice
from overpaint.run.plan import Plan
from overpaint.run.store import Store
from overpaint.run.tasks import Task
from overpaint.run.track import track

if TYPE_CHECKING:
    from overpaint.grid.composition import Composed

#: Console for progress and notes. Results go to stdout.
ERR = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
#: Entry of a command's context: the keys that the command takes itself, such as out=.
OWN_KEYS = "overpaint.own_keys"


@dataclass(frozen=True)
class Grid:
    """The cells of a grid, their plan, and the configuration of the run (``config``, the same for every cell)."""

    cells: list[Any]
    plan: Plan
    store: Store
    config: Mapping[str, Any]

    def circumstance(self, kind: str) -> Any:
        """The engine or the tracker."""
        values = self.config[kind]
        return component(kind, values["name"]).build({k: v for k, v in values.items() if k not in DESCRIPTION})


def compose(overrides: Sequence[str], demo: bool = False) -> list[Composed]:
    """The configuration of every cell. With ``demo``, overrides that only say where and how to run select the demo."""
    from overpaint.grid.composition import compose_cells

    if demo and not about_cells(overrides):
        overrides = ["experiment=demo", *overrides]
    with reading_once():
        return compose_cells(overrides, own_keys())


def about_cells(overrides: Sequence[str]) -> list[str]:
    """The overrides that say something about cells; the others say where and how to run, or where components are."""
    keys = [override.split("=")[0].lstrip("+~").split(".")[0] for override in overrides]
    return [o for o, key in zip(overrides, keys, strict=True) if key not in (*CIRCUMSTANCES, "hydra")]


def planned(overrides: Sequence[str], demo: bool = False, partial: bool = False) -> Grid:
    """The planned grid of the overrides; ``partial`` as for `prepare`."""
    with reading_once():
        return prepare(compose(overrides, demo), partial)


def prepare(composed: Sequence[Composed], partial: bool = False) -> Grid:
    """Check and plan composed cells.

    Raises `AssetMissing` if they need files that are not on this machine. With ``partial`` they are planned without them,
    and ``Plan.absent`` says which are missing.
    """
    first = composed[0].config
    with reading_once():
        cells = cells_of(composed)
        kind, store = track(first["track"]["name"]), Store.chosen(first["store"])
        needed = kind.assets(cells)
        if not partial:
            require(needed)
        plan = kind.plan(cells)
    plan.absent = list(dict.fromkeys([*(asset.absence for asset in absent(needed)), *plan.absent]))
    if not partial:
        require_complete(plan)
    return Grid(cells, plan, store, circumstances(composed))


def require_complete(plan: Plan) -> None:
    """Raise `AssetMissing` if a plan lacks files that are not on this machine."""
    if plan.absent:
        raise AssetMissing("; ".join(dict.fromkeys(plan.absent)))


def circumstances(composed: Sequence[Composed]) -> dict[str, Any]:
    """The values of `CIRCUMSTANCES`. Raises a `UserError` if they are not the same for all cells."""
    first = composed[0].config
    check_type(first["images_per_second"], Annotated[float, Field(gt=0, le=1e6)], "images_per_second")
    for key in CIRCUMSTANCES:
        if any(c.config[key] != first[key] for c in composed):
            raise UserError(f"{key} says where and how the whole grid runs: give one value, not an axis")
    return {key: first[key] for key in CIRCUMSTANCES}


def cells_of(composed: Sequence[Composed]) -> list[Any]:
    """The checked cells of a grid, not planned yet."""
    kind = track(circumstances(composed)["track"]["name"])
    with reading_once():
        return [kind.cell(c.config, c.explicit) for c in composed]


def single_cell(overrides: Sequence[str], what: str) -> tuple[Any, str]:
    """The single cell of the overrides, and the device that ``engine.device`` names, the first one if it names several.

    Raises a `UserError` if there are several cells; ``what`` names the command.
    """
    composed = compose(overrides)
    if len(composed) != 1:
        raise UserError(f"{what} needs one cell; these overrides span {len(composed)}")
    first, settings = composed[0], circumstances(composed)
    kind = track(settings["track"]["name"])
    return kind.cell(first.config, first.explicit), kind.devices(settings["engine"]["device"])[0]


def store_and_grid(overrides: Sequence[str], first: str = "overpaint run") -> tuple[Store, Grid | None]:
    """The store of the overrides, and the grid that they define; ``None`` if they say nothing about cells.

    Raises a `UserError` if there is no store, which names the command to run ``first``.
    """
    store, rest = taken(overrides, "store")
    if about_cells(rest):
        grid = planned(overrides)
        return existing(grid.store, first), grid
    if rest:  # searches hydra.searchpath, and refuses what is no option
        store = circumstances(compose(overrides))["store"]
    return existing(Store.chosen(store), first), None


def existing(store: Store, first: str = "overpaint run") -> Store:
    """The store. Raises a `UserError` if its folder does not exist."""
    if not store.root.is_dir():
        raise UserError(f"there is no store at {store.root}: run something first ({first})")
    return store


def nothing_stored(what: str, grid: Grid, overrides: Sequence[str]) -> UserError:
    """The error that a store holds no images or scores (``what``) of the grid of these overrides."""
    if not about_cells(overrides):
        return UserError(
            f"{grid.store.root} holds no {what} of the default cell: give the overrides of a run, such as experiment=smoke"
        )
    return UserError(f"{grid.store.root} holds no {what} of this grid: run it first (overpaint run)")


def note_lacking(what: str, lacking: Sequence[Task], grid: Grid, overrides: Sequence[str]) -> None:
    """Print a note that the store does not hold all figures, images or scores (``what``) of some cells, given by their tasks."""
    if lacking:
        names = [task.label.removeprefix("measure ") for task in lacking]
        ERR.print(
            f"note: {len(names)} of {len(grid.plan.cells)} cells lack {what}: {few(names)}. "
            f"To make them: {shlex.join(['overpaint', 'run', *overrides])}",
            style="yellow",
        )


def taken(overrides: Sequence[str], key: str) -> tuple[str | None, list[str]]:
    """The value of ``key=value`` in the overrides (``None`` if absent), and the remaining overrides.

    Raises a `UserError` if it is given twice or empty; an unset variable of a shell leads to an empty value.
    """
    own_keys().add(key)
    found = [o.split("=", 1)[1] for o in overrides if o.startswith(f"{key}=")]
    if len(found) > 1:
        raise given_twice(key)
    if "" in found:
        raise UserError(f"{key}= is empty: give a value, or leave it out")
    return (found[0] if found else None), [o for o in overrides if not o.startswith(f"{key}=")]


def own_keys() -> set[str]:
    """The keys that the running command has `taken` itself, which may be extended. A misspelt key can mean one of them."""
    context = click.get_current_context(silent=True)
    return context.meta.setdefault(OWN_KEYS, set()) if context else set()


def refuse_keys(overrides: Sequence[str], groups: Sequence[str], why: str) -> None:
    """Raise a `UserError` for the first override of one of these groups (``attack=cce``, ``attack.steps=5``)."""
    for override in overrides:
        if override.lstrip("+~").partition("=")[0].split(".")[0] in groups:
            raise UserError(f"{bare(override)}: {why}")
