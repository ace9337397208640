"""`overpaint show`: draws stored images side by side, or writes them as files."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import click
from PIL.Image import Image

from overpaint.commands.grids import ERR, Grid, planned, taken
from overpaint.commands.targets import target
from overpaint.errors import UserError, unknown
from overpaint.images.contact_sheets import Sheet, draw
from overpaint.images.gallery import Entry, entries
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
    found = [e for _, task in grid.plan.cells for e in entries(task, grid.plan, grid.store) if _chosen(e, text, role)]
    if not found:
        about = f" with prompt={text}" if text else ""
        raise UserError(f"{grid.store.root} holds no images{about} of this grid: run it first (overpaint run)")
    if path.suffix:
        _sheet(found, grid, text, show_unsafe).save(path)
        ERR.print(f"{path}")
        if opened:
            click.launch(str(path))
    else:
        _files(found, grid, path)
        ERR.print(f"{path}: {len(found)} images, listed in {path / 'prompts.csv'}")


def _chosen(entry: Entry, text: str | None, role: str | None) -> bool:
    shot = entry.shot
    return (not text or text.lower() in shot["text"].lower()) and (not role or shot["role"] == role)


def _sheet(found: Sequence[Entry], grid: Grid, text: str | None, show_unsafe: bool) -> Image:
    """One prompt, or all prompts that contain the text, over all cells; images of one column have one prompt and seed."""
    plain = [e for e in found if e.cell["attack_name"] == "none"] or found
    columns = dict.fromkeys((e.shot.get("plain") or e.shot["noise"], e.shot["index"]) for e in plain)
    first = next(iter(columns))[0]
    kept = [column for column in columns if text or column[0] == first][:WIDEST]
    sheet, images = Sheet(), Images()
    for entry in found:
        column = (entry.shot.get("plain") or entry.shot["noise"], entry.shot["index"])
        if column not in kept:
            continue
        sheet.unsafe |= entry.cell["kind"] == "unsafe"
        attack = "" if entry.cell["attack_name"] == "none" else f" / {entry.cell['attack']}"
        row = f"{entry.cell['method']}{attack}"
        image = _image(entry, grid, images)
        sheet.place(row, f"seed {entry.shot['index']}", kept.index(column), entry.shot["text"], image)
    return draw(sheet, blurred=sheet.unsafe and not show_unsafe)


def _image(entry: Entry, grid: Grid, images: Images) -> Image | None:
    """The picture of an entry; ``images`` keeps the batches that were read."""
    if entry.made.key not in images:
        if not grid.store.has(entry.made.stage, entry.made.key):
            raise UserError(f"the images of {entry.cell['method']} are no longer in {grid.store.root}")
        with grid.store.reading(entry.made.stage, entry.made.key) as place:
            images[entry.made.key] = read_images(place)
    return images[entry.made.key][entry.position]


def _files(found: Sequence[Entry], grid: Grid, folder: Path) -> None:
    """Write the images and their list. The folder appears when it is complete."""
    partial, images, rows = folder.with_name(folder.name + ".partial"), Images(), []
    for number, entry in enumerate(found):
        cell, shot = entry.cell, entry.shot
        who = cell["method"] if cell["attack_name"] == "none" else f"{cell['method']} under {cell['attack']}"
        file = Path(*(_clean(part) for part in (cell["concepts"], who, shot["role"]))) / f"{number:06}.png"
        (partial / file).parent.mkdir(parents=True, exist_ok=True)
        image = _image(entry, grid, images)
        if image is None:
            (partial / file).touch()  # a failed image: an empty file is read as one
        else:
            image.save(partial / file)
        rows.append([file.as_posix(), shot["text"], shot["concept"], ";".join(shot["expects"]), shot["role"],
                     shot["variant"], who, shot["index"], shot["noise"]])  # fmt: skip
    with (partial / "prompts.csv").open("w", newline="", encoding="utf-8") as listing:
        written = csv.writer(listing)
        written.writerow(["file", "prompt", "concept", "expects", "role", "variant", "method", "seed", "id"])
        written.writerows(rows)
    partial.rename(folder)


def _clean(name: str) -> str:
    return re.sub(r"[^\w .+=-]", "_", name)[:80]
