"""`overpaint show`: draws stored images side by side, or writes them as files."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from PIL.Image import Image

from overpaint.commands.grids import ERR, Grid, note_lacking, nothing_stored, planned, taken
from overpaint.commands.targets import target, whole
from overpaint.errors import UserError, unknown
from overpaint.grid.labels import counted
from overpaint.images.contact_sheets import Sheet, draw
from overpaint.images.gallery import Entry, entries, incomplete
from overpaint.images.stages.generate import read_images
from overpaint.metrics.metric import IMAGE_ROLES

#: Batches of images that were read, by the key of the task that made them.
Images = dict[str, list[Image | None]]
#: Most columns of a sheet.
WIDEST = 12


@click.command()
@click.argument("overrides", nargs=-1)
@click.option("--show-unsafe", is_flag=True, help="Do not blur images of concepts of kind unsafe.")
@click.option("--open", "opened", is_flag=True, help="Open the sheet in a viewer.")
@click.option("--overwrite", is_flag=True, help="Replace out=FILE.png where it exists.")
def show(overrides: Sequence[str], show_unsafe: bool, opened: bool, overwrite: bool) -> None:
    """Draw stored images of a grid side by side: a row for every method and attack, a column for every seed.

    prompt=TEXT chooses the prompts that contain the text (default: the first one), role=ROLE those of a role. out=FILE.png
    names the sheet (default: show.png). out=DIR writes every chosen image as a file, with a prompts.csv that `overpaint score`
    reads. Nothing is generated.
    """
    out, rest = taken(overrides, "out")
    text, rest = taken(rest, "prompt")
    role, rest = taken(rest, "role")
    if role and role not in IMAGE_ROLES:
        raise unknown("role", role, IMAGE_ROLES)
    name = out or "show.png"
    path = target(name, ".png" if Path(name).suffix else "", overwrite or not out)
    grid = planned(rest)
    every = [e for _, task in grid.plan.opened().cells for e in entries(task, grid.plan, grid.store)]
    if not every:
        raise nothing_stored("images", grid, rest)
    note_lacking("images", incomplete(grid.plan, grid.store), grid, rest)
    found = [e for e in every if _chosen(e, text, role)]
    if not found:
        asked = " and ".join(f"{key}={value}" for key, value in (("prompt", text), ("role", role)) if value)
        stored = ", ".join(sorted({e.shot["role"] for e in every}))
        raise UserError(f"none of the {len(every)} images of this grid has {asked} (roles stored: {stored})")
    if path.suffix:
        sheet = _sheet(found, grid, text, show_unsafe)
        with whole(path) as partial:
            sheet.save(partial)
        ERR.print(f"{path}")
        if opened:
            click.launch(str(path))
    else:
        with whole(path) as partial:
            _files(found, grid, partial)
        ERR.print(f"{path}: {counted(len(found), 'image')}, listed in {path / 'prompts.csv'}")


def _chosen(entry: Entry, text: str | None, role: str | None) -> bool:
    shot = entry.shot
    return (not text or text.lower() in shot["text"].lower()) and (not role or shot["role"] == role)


def _sheet(found: Sequence[Entry], grid: Grid, text: str | None, show_unsafe: bool) -> Image:
    """One prompt, or all prompts that contain the text, over all cells; images of one column have one prompt and seed."""
    plain = [e for e in found if e.cell["attack_name"] == "none"] or found
    columns = dict.fromkeys(map(_column, plain))
    first = next(iter(columns))[0]
    asked = [column for column in columns if text or column[0] == first]
    kept = asked[:WIDEST]
    if len(asked) > WIDEST:
        ERR.print(f"note: the sheet has the first {WIDEST} of {len(asked)} columns; out=DIR writes all images")
    sheet, images = Sheet(), Images()
    for entry in found:
        column = _column(entry)
        if column not in kept:
            continue
        sheet.unsafe |= entry.cell["kind"] == "unsafe"
        attack = "" if entry.cell["attack_name"] == "none" else f" / {entry.cell['attack']}"
        row = f"{entry.cell['method']}{attack}"
        image = _image(entry, grid, images)
        sheet.place(row, f"seed {entry.shot['index']}", kept.index(column), entry.shot["text"], image)
    return draw(sheet, blurred=sheet.unsafe and not show_unsafe)


def _column(entry: Entry) -> tuple[str, int]:
    """The prompt and seed index of an entry. An attack's prompt counts as the plain one that it was made from."""
    return entry.shot.get("plain") or entry.shot["noise"], entry.shot["index"]


def _image(entry: Entry, grid: Grid, images: Images) -> Image | None:
    """The picture of an entry; ``images`` keeps the batches that were read."""
    if entry.made.key not in images:
        if not grid.store.has(entry.made.stage, entry.made.key):
            raise UserError(f"the images of {entry.cell['method']} are no longer in {grid.store.root}")
        with grid.store.reading(entry.made.stage, entry.made.key) as place:
            images[entry.made.key] = read_images(place)
    return images[entry.made.key][entry.position]


def _files(found: Sequence[Entry], grid: Grid, folder: Path) -> None:
    """Write the images and their list into a new folder."""
    images, rows = Images(), []
    for number, entry in enumerate(found):
        cell, shot = entry.cell, entry.shot
        who = cell["method"] if cell["attack_name"] == "none" else f"{cell['method']} under {cell['attack']}"
        file = Path(*(_clean(part) for part in (cell["concepts"], who, shot["role"]))) / f"{number:06}.png"
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        image = _image(entry, grid, images)
        if image is None:
            (folder / file).touch()  # a failed image: an empty file is read as one
        else:
            image.save(folder / file)
        rows.append([file.as_posix(), shot["text"], shot["concept"], ";".join(shot["expects"]), shot["role"],
                     shot["variant"], who, shot["index"], _numbered(shot)])  # fmt: skip
    with (folder / "prompts.csv").open("w", newline="", encoding="utf-8") as listing:
        written = csv.writer(listing)
        written.writerow(["file", "prompt", "concept", "expects", "role", "variant", "method", "seed", "id"])
        written.writerows(rows)


def _numbered(shot: Mapping[str, Any]) -> str:
    """The id of an image's prompt; an attack's further tries at one prompt and seed get a number."""
    return f"{shot['noise']}-{shot['draw']}" if shot.get("draw") else shot["noise"]


def _clean(name: str) -> str:
    return re.sub(r"[^\w .+=-]", "_", name)[:80]
