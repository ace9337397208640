"""`overpaint export`: writes an erased model as a diffusers folder, or the prompts that an attack found as a CSV."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

import click

from overpaint.attacks.prompt_file import write_prompts
from overpaint.commands.grids import ERR, planned, refuse_keys, single_cell, taken
from overpaint.commands.targets import check_writable, target, whole
from overpaint.errors import UserError, nearest
from overpaint.grid.labels import counted
from overpaint.grid.registry import components
from overpaint.models import load_model
from overpaint.models.erasure import load_erasure
from overpaint.models.lazily import torch
from overpaint.run.store import Store
from overpaint.run.tasks import Task

#: Groups that change nothing of a model with an erasure.
NOT_OF_A_MODEL = ("method", "concepts", "protocol", "budget", "metrics", "seed")


@click.command()
@click.argument("overrides", nargs=-1)
@click.option("--overwrite", is_flag=True, help="Replace out=FILE where it exists.")
def export(overrides: Sequence[str], overwrite: bool) -> None:
    """Write an erased model as a diffusers folder, or the prompts that an attack found.

    erasure=FILE model=… out=DIR writes a pipeline folder. attack=… out=FILE.csv writes prompts, either of one stored attack
    (given by its key or a prefix of it) or of all cells with an attack (given by its name and the overrides of the grid).
    """
    out, rest = taken(overrides, "out")
    file, others = taken(rest, "erasure")
    if file:
        refuse_keys(others, ("attack",), "erasure=FILE writes a model, and attack=… prompts; give one of them")
        refuse_keys(others, NOT_OF_A_MODEL, "erasure=FILE says what is erased; leave it out")
    if out and file:
        export_pipeline(others, file, out)
    elif out and any(o.startswith("attack=") for o in others):
        export_prompts(others, out, overwrite)
    else:
        raise UserError("give erasure=FILE.safetensors and out=DIR, or attack=… and out=FILE.csv")


def export_pipeline(overrides: Sequence[str], file: str, out: str) -> None:
    """Write the model with a delta erasure applied as a diffusers folder."""
    folder = target(out)
    erasure = load_erasure(file)
    for part in erasure.sequence:
        if part.kind != "delta":
            raise UserError(
                f"{file} holds a {part.method} {part.kind}, which acts while sampling: weights cannot hold it"
            )
    cell, device = single_cell(overrides, "export")
    check_writable(folder)
    model = load_model(cell.model.path, cell.model.precision, device)
    with erasure.attached(model), whole(folder) as partial:
        model.pipeline.save_pretrained(partial, safe_serialization=True)
    half = "" if model.dtype == torch.float32 else f", torch_dtype={model.dtype}"  # diffusers loads float32 otherwise
    call = f"diffusers.DiffusionPipeline.from_pretrained({out!r}{half})"
    ERR.print(f"{out}: {cell.model.name} with {erasure.method} applied; {call}")


def export_prompts(overrides: Sequence[str], out: str, overwrite: bool) -> None:
    """Write the prompts that stored attacks found as a CSV that ``attack=replay`` and other harnesses read."""
    path = target(out, ".csv", overwrite)
    wanted = next(o.split("=", 1)[1] for o in overrides if o.startswith("attack="))
    if set(wanted.split(",")) <= set(components("attack")):
        store, keys = _attacks_of_cells(overrides, wanted)
    else:
        root, others = taken(overrides, "store")
        store = Store.chosen(root)
        keys = [key for key in store.keys("attack") if wanted and key.startswith(wanted)]
        if not keys:
            hint = nearest(wanted, components("attack"))
            raise UserError(
                f"attack={wanted} is neither an attack's name nor the key of a stored attack in {store.root}{hint}"
            )
        if len(keys) > 1:
            raise UserError(f"attack={wanted} is the start of {len(keys)} keys in {store.root}: give more of the key")
        if others != [f"attack={wanted}"]:
            ignored = next(o for o in others if o != f"attack={wanted}")
            raise UserError(f"attack={wanted} is the key of one stored attack, which takes no overrides, got {ignored}")
    with whole(path) as partial:
        rows = write_prompts(partial, [store.read("attack", key) for key in keys])
    ERR.print(f"{out}: {counted(rows, 'prompt')}")


def _attacks_of_cells(overrides: Sequence[str], wanted: str) -> tuple[Store, list[str]]:
    """The store, and the keys of the attacks in the cells of the overrides. Raises a `UserError` if one is not stored."""
    grid = planned(overrides)
    scored = [grid.plan.tasks[key] for _, task in grid.plan.opened().cells for key in _inputs(task.inputs, "images/")]
    keys = [key for task in scored for key in _attacks(task, grid.plan.tasks[task.inputs["images"]])]
    keys = list(dict.fromkeys(keys))
    if not keys:
        raise UserError(f"attack={wanted} has nothing to export: its prompts are fixed")
    missing = [key for key in keys if not grid.store.has("attack", key)]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(keys)} searches of attack={wanted} are not stored in {grid.store.root}: run them first "
            f"({shlex.join(['overpaint', 'run', *overrides])})"
        )
    return grid.store, keys


def _attacks(scored: Task, images: Task) -> list[str]:
    """Keys of the attacks behind scored images: those that chose the prompts, or the one that generated the images."""
    return [images.key] if images.stage == "attack" else _inputs(scored.inputs, "assault/")


def _inputs(inputs: Mapping[str, str], start: str) -> list[str]:
    return [key for name, key in inputs.items() if name.startswith(start)]
