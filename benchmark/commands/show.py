"""`overpaint show`: draws stored images side by side, or writes them as files."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from PIL.Image import Image

from overpaint.commands.grids import ERR, note_lacking, nothing_stored, planned, taken
from overpaint.commands.targets import target, whole
from overpaint.errors import UserError, unknown
from overpaint.grid.labels import counted
from overpaint.grid.prompts import FIELDS, Shot, shared_noise
from overpaint.images.contact_sheets import SHEET, Sheet, draw
from overpaint.images.gallery import Entry, entries, incomplete
from overpaint.images.stages.generate import read_images
from overpaint.metrics.metric import IMAGE_ROLES
from overpaint.run.store import CorruptArtefact, Store

#: Most columns of a sheet.
WIDEST = 12


@click.command()
@click.argument("overrides", nargs=-1)
@click.option("--show-unsafe", is_flag=True, help="Do not blur images of concepts of kind unsafe.")
@click.option("--open", "opened", is_flag=True, help="Open the sheet in a viewer.")
@click.option("--overwrite", is_flag=True, help="Replace out=FILE.png where it exists.")
def show(overrides: Sequence[str], show_unsafe: bool, opened: bool, overwrite: bool) -> None:
    """Draw stored images of a grid side by side: a row for every method and attack, a column for every prompt and seed.

    prompt=TEXT chooses the prompts that contain the text (default: the first one), role=ROLE those of a role. out=FILE.png
    names the sheet (default: show.png). out=DIR writes every chosen image as a file, with a prompts.csv that `overpaint score`
    reads. Nothing is generated. Images that are missing or damaged are gray frames on the sheet and are left out of out=DIR; a
    note prints the command that makes them again.
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
    images, naming = Images(grid.store), Naming.of(found)
    if path.suffix:
        found = _columns(found, naming, text)
        _say_gone(found, images, rest)
        sheet = _sheet(found, naming, images, show_unsafe)
        with whole(path) as partial:
            sheet.save(partial)
        ERR.print(f"{path}")
        if opened:
            click.launch(str(path))
    else:
        gone = _say_gone(found, images, rest)
        with whole(path) as partial:
            _files(found, naming, images, partial)
        ERR.print(f"{path}: {counted(len(found) - gone, 'image')}, listed in {path / 'prompts.csv'}")


def _chosen(entry: Entry, text: str | None, role: str | None) -> bool:
    shot = entry.shot
    return (not text or text.lower() in shot["text"].lower()) and (not role or shot["role"] == role)


@dataclass(frozen=True)
class Naming:
    """What tells images apart: the ``labels`` of their cells beside method and attack, and the noise that translations share."""

    labels: Sequence[str]
    shared: Collection[str]

    @classmethod
    def of(cls, found: Sequence[Entry]) -> Naming:
        """The names of these images. A label is named if images that are otherwise alike differ in it."""
        shared = shared_noise(_shot(entry) for entry in found)
        unlabelled = cls((), shared)
        alike: dict[tuple, dict[tuple[str, int], Mapping[str, Any]]] = {}
        for entry in found:
            one = (*_who(entry), entry.shot["role"], entry.shot.get("draw"), *unlabelled.column(entry))
            alike.setdefault(one, {})[entry.made.key, entry.position] = entry.cell
        several = [cells.values() for cells in alike.values() if len(cells) > 1]
        return cls([key for key in SHEET if any(len({str(c[key]) for c in cells}) > 1 for cells in several)], shared)

    def row(self, entry: Entry, between: str) -> str:
        """The method and the attack of an image, and the labels."""
        method, attack = _who(entry)
        named = f"{method}{between}{attack}" if attack else method
        return "".join([named, *(f", {key} {entry.cell[key]}" for key in self.labels)])

    def column(self, entry: Entry) -> tuple[str, int]:
        """The prompt and seed index of an image. An attack's prompt counts as the plain one that it was made from."""
        return entry.shot.get("plain") or self._own(entry), entry.shot["index"]

    def id(self, entry: Entry) -> str:
        """The id of an image's prompt; an attack's further tries at one prompt and seed get a number."""
        draw = entry.shot.get("draw")
        return f"{self._own(entry)}-{draw}" if draw else self._own(entry)

    def _own(self, entry: Entry) -> str:
        noise = entry.shot["noise"]
        return entry.shot["id"] if noise in self.shared and not entry.shot.get("plain") else noise


def _who(entry: Entry) -> tuple[str, str]:
    """The method and the attack; no attack is an empty text."""
    return entry.cell["method"], "" if entry.cell["attack_name"] == "none" else entry.cell["attack"]


def _shot(entry: Entry) -> Shot:
    return Shot.from_dict({key: entry.shot[key] for key in (*FIELDS, "index", "draw") if key in entry.shot})


class Images:
    """The images of a store. Each batch is read once."""

    def __init__(self, store: Store):
        self._store, self._batches = store, dict[str, list[Image | None] | None]()

    def has(self, entry: Entry) -> bool:
        """Whether the image is stored and whole."""
        return self._batch(entry) is not None

    def of(self, entry: Entry) -> Image | None:
        """The image of an entry that `has`; ``None`` for a failed image."""
        return (self._batch(entry) or [])[entry.position]

    def _batch(self, entry: Entry) -> list[Image | None] | None:
        made = entry.made
        if made.key not in self._batches:
            try:
                with self._store.reading(made.stage, made.key) as place:
                    self._batches[made.key] = read_images(place)
            except CorruptArtefact:
                self._batches[made.key] = None
        return self._batches[made.key]


def _say_gone(found: Sequence[Entry], images: Images, overrides: Sequence[str]) -> int:
    """Print a note if some images are gone or damaged, and return their number. Raises a `UserError` if all are."""
    gone = [entry for entry in found if not images.has(entry)]
    if gone:
        whose = ", ".join(dict.fromkeys(entry.cell["method"] for entry in gone))
        told = f"{len(gone)} of {counted(len(found), 'image')} ({whose})"
        command = shlex.join(["overpaint", "run", "--images", *overrides])
        if len(gone) == len(found):
            raise UserError(f"gone or damaged: {told}. To make them again: {command}")
        ERR.print(f"note: gone or damaged, and left out: {told}. To make them again: {command}", style="yellow")
    return len(gone)


def _columns(found: Sequence[Entry], naming: Naming, text: str | None) -> list[Entry]:
    """The entries of a sheet: one prompt, or all prompts that contain the text, over all cells, in up to `WIDEST` columns."""
    columns = dict.fromkeys(map(naming.column, _plain(found)))
    first = next(iter(columns))[0]
    asked = [column for column in columns if text or column[0] == first]
    kept = asked[:WIDEST]
    if len(asked) > WIDEST:
        ERR.print(f"note: the sheet has the first {WIDEST} of {len(asked)} columns; out=DIR writes all images")
    return [entry for entry in found if naming.column(entry) in kept]


def _sheet(found: Sequence[Entry], naming: Naming, images: Images, show_unsafe: bool) -> Image:
    """The images of all cells; those of one column have one prompt and seed."""
    sheet, columns = Sheet(), list(dict.fromkeys(map(naming.column, _plain(found))))
    for entry in found:
        sheet.unsafe |= entry.cell["kind"] == "unsafe"
        row, seed = naming.row(entry, " / "), f"seed {entry.shot['index']}"
        place = (row, seed, columns.index(naming.column(entry)), entry.shot["text"])
        if images.has(entry):
            sheet.place(*place, images.of(entry))
        else:
            sheet.leave(*place)
    return draw(sheet, blurred=sheet.unsafe and not show_unsafe)


def _plain(found: Sequence[Entry]) -> Sequence[Entry]:
    """The entries without an attack, which decide the columns; all if there are none."""
    return [e for e in found if e.cell["attack_name"] == "none"] or found


def _files(found: Sequence[Entry], naming: Naming, images: Images, folder: Path) -> None:
    """Write the images that are there, and their list, into a new folder."""
    rows = []
    for number, entry in enumerate(found):
        if not images.has(entry):
            continue
        cell, shot = entry.cell, entry.shot
        who = naming.row(entry, " under ")
        file = Path(*(_clean(part) for part in (cell["concepts"], who, shot["role"]))) / f"{number:06}.png"
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        image = images.of(entry)
        if image is None:
            (folder / file).touch()  # a failed image: an empty file is read as one
        else:
            image.save(folder / file)
        rows.append([file.as_posix(), shot["text"], shot["concept"], ";".join(shot["expects"]), shot["role"],
                     shot["variant"], who, shot["index"], naming.id(entry)])  # fmt: skip
    with (folder / "prompts.csv").open("w", newline="", encoding="utf-8") as listing:
        written = csv.writer(listing)
        written.writerow(["file", "prompt", "concept", "expects", "role", "variant", "method", "seed", "id"])
        written.writerows(rows)


def _clean(name: str) -> str:
    return re.sub(r"[^\w .+=-]", "_", name)[:80]
