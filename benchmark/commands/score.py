"""`overpaint score`: measures pictures that other code made."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from overpaint.commands.grids import ERR, Grid, circumstances, compose, refuse_keys, require_complete, taken
from overpaint.commands.run import run_grid
from overpaint.errors import UserError
from overpaint.grid.paths import path_of
from overpaint.images.given import given_plan, named_pictures, read_pictures
from overpaint.images.tasks import scored_labels
from overpaint.run.store import Store
from overpaint.run.track import track


@click.command()
@click.argument("overrides", nargs=-1)
def score(overrides: Sequence[str]) -> None:
    """Measure pictures that other code made, and print their table.

    images=DIR holds the pictures, prompts=FILE.csv lists them: columns file and prompt, and where known concept, expects, role,
    variant, method, seed and id. Without a list, names={variant}_{concept}_seed{seed}.jpg reads them from the files' names, with
    role=… and prompt='a {concept} in {variant} style'. concepts=… says what was erased. detector=… scores the pictures, or the
    detector of model=….
    """
    images, rest = taken(overrides, "images")
    table, rest = taken(rest, "prompts")
    names, rest = taken(rest, "names")
    role, rest = taken(rest, "role")
    text, rest = taken(rest, "prompt")
    detector, rest = taken(rest, "detector")
    name, rest = taken(rest, "name")
    for key, value in (("images", images), ("prompts", table)):
        path_of(value or "", key)  # refuses what cannot be a path
    ignored = [f"{key}={value}" for key, value in (("role", role), ("prompt", text)) if value]
    if table and ignored:
        raise UserError(
            f"{ignored[0]} is for names=PATTERN: the list in prompts= says the role and prompt of each picture"
        )
    refuse_keys(
        rest,
        ("method", "attack", "protocol", "seed"),
        "score makes no image; say in the column 'method' who made a picture",
    )
    composed = compose([*rest, *([f"model.detector={detector}"] if detector else [])])
    if not images or bool(table) == bool(names):
        raise UserError("give images=DIR, and either prompts=FILE.csv or names=PATTERN")
    if not detector and not any(o.startswith("model") for o in rest):
        raise UserError("give detector=NAME (overpaint list detectors), or model=NAME to use that model's detector")
    if len(composed) != 1:
        raise UserError(f"score measures one set of pictures; these overrides span {len(composed)} cells")
    first = composed[0].config
    cell = track(first["track"]["name"]).cell(first, composed[0].explicit)
    folder = Path(images).expanduser()
    labels = scored_labels(cell)
    if table:
        pictures, unread = read_pictures(folder, Path(table).expanduser(), cell.concepts, labels)
        if unread:
            ERR.print(
                f"note: prompts={table}: columns that are not read: {', '.join(unread)}", style="yellow", markup=False
            )
    else:
        pictures = named_pictures(folder, names or "", text or "{concept} {variant}", role or "", cell.concepts, labels)
    if not any(picture.shot.prompt.role == "target" for picture in pictures):
        erased = ", ".join(c.label or c.name for c in cell.concepts.request.erase)
        said = f"note: no picture is a target: name an erased concept ({erased}) in the column or part 'concept'"
        ERR.print(said, style="yellow", markup=False)
    plan = given_plan(cell, pictures, name or f"pictures in {folder.resolve().name}")
    require_complete(plan)
    cells = [cell for cell, _ in plan.cells]
    sys.exit(run_grid(Grid(cells, plan, Store.chosen(first["store"]), circumstances(composed))))
