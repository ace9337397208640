"""Contact sheets: one PNG per concept set with example images of every method.

Rows are methods; columns are prompts and attacks. All images of a plain column have the same prompt and seed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from overpaint.attacks.attack import COMPARISONS
from overpaint.errors import UserError
from overpaint.grid.roles import ROLES
from overpaint.images.gallery import batches
from overpaint.images.stages.generate import read_images
from overpaint.report.records import STAGE
from overpaint.run.plan import Plan
from overpaint.run.store import CorruptArtefact, Store, read_manifest
from overpaint.run.tasks import Task

#: Number of images of a cell without attack, by role. An attacked cell shows two images.
SHOWN = {role.name: role.pictures for role in ROLES}
SIDE, GAP, HEAD, LEFT = 128, 6, 62, 150
#: Columns of a record that are the same for all rows of one sheet.
SHEET = ("model", "concepts", "protocol", "budget", "seed")
#: Maximum number of cells of a grid whose sheets are drawn.
MOST_CELLS = 1000
#: Headings are truncated to this many characters before layout, which saves time.
LONGEST = 300
NOT_IN_FILE_NAMES = re.compile(r"[^\w .+=-]")  # a concept's name may contain a slash


class Slot(NamedTuple):
    """A column: the ``number``-th image of a role or an attack."""

    group: str
    number: int


@dataclass
class Sheet:
    """Images by row (a method's label) and slot; ``None`` for a failed image. ``captions`` are the prompts of the slots."""

    rows: dict[str, dict[Slot, Image.Image | None]] = field(default_factory=dict)
    captions: dict[Slot, str] = field(default_factory=dict)
    unsafe: bool = False

    def add(self, row: str, group: str, caption: str, image: Image.Image | None) -> None:
        """Add an image to a row, in the next slot of its group."""
        number = sum(known.group == group for known in self.rows.get(row, {}))
        self.place(row, group, number, caption, image)

    def place(self, row: str, group: str, number: int, caption: str, image: Image.Image | None) -> None:
        """Put an image into a slot of a row. The first caption of a slot stays."""
        slot = Slot(group, number)
        self.rows.setdefault(row, {})[slot] = image
        self.captions.setdefault(slot, caption)

    def leave(self, row: str, group: str, number: int, caption: str) -> None:
        """Leave a slot of a row empty, for an image that is not there."""
        self.rows.setdefault(row, {})
        self.captions.setdefault(Slot(group, number), caption)


def contact_sheets(plan: Plan, store: Store, folder: Path, show_unsafe: bool = False) -> list[Path]:
    """Write one PNG into ``folder`` for each concept set and setting, and return their paths.

    Images of concepts of kind ``unsafe`` are blurred unless ``show_unsafe`` is set. Cells whose images are no longer stored
    are skipped.

    Raises:
        UserError: for a grid with more than `MOST_CELLS` cells.
    """
    if len(plan.cells) > MOST_CELLS:
        raise UserError(
            f"this grid has {len(plan.cells)} cells, and sheets are drawn for up to {MOST_CELLS}; choose some with overpaint show"
        )
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    sheets = list(_by_sheet(plan.opened(), store).items())
    for key, tasks in sheets:
        if (sheet := _readable(tasks, plan, store)) is not None:
            path = folder / f"{_file_name(key, dict(sheets))}.png"
            draw(sheet, blurred=sheet.unsafe and not show_unsafe).save(path)
            written.append(path)
    return written


def stored_sheets(store: Store, keys: Iterable[str]) -> Iterator[tuple[dict[str, str], Sheet]]:
    """The sheets of stored measurements, by their keys. Each comes with the values of `SHEET` that its rows share."""
    plan = _stored_plan(store, keys)
    for key, tasks in _by_sheet(plan, store).items():
        if (sheet := _readable(tasks, plan, store)) is not None:
            yield dict(zip(SHEET, key, strict=True)), sheet


def _stored_plan(store: Store, keys: Iterable[str]) -> Plan:
    """The cells of these measurements with the tasks that scored and made their images, read from manifests.

    Plain images and the unedited model come first.
    """
    plan = Plan("images")
    for measured in sorted((_stored_task(store, STAGE, key) for key in keys), key=_order):
        for name, scores in measured.inputs.items():
            if name.startswith("images/") and store.has("score", scores):
                plan.tasks[scores] = scored = _stored_task(store, "score", scores)
                made = scored.inputs["images"]
                stage = next((stage for stage in ("generate", "given") if store.has(stage, made)), "generate")
                plan.tasks[made] = Task(stage, {}, name=made)
        plan.cells.append((None, measured))
    return plan


def _order(measured: Task) -> tuple:
    cell = measured.config["cell"]
    return (cell["attack_name"] != "none", cell["attack"], cell["method_name"] != "none", cell["method"])


def _stored_task(store: Store, stage: str, key: str) -> Task:
    with store.reading(stage, key) as folder:
        manifest = read_manifest(folder)
    return Task(stage, manifest["config"], manifest["inputs"], name=key)


def _by_sheet(plan: Plan, store: Store) -> dict[tuple[str, ...], list[Task]]:
    """The cells whose images are stored, by the values of `SHEET`."""
    found: dict[tuple[str, ...], list[Task]] = {}
    for _, task in plan.cells:
        keys = list(_shown_tasks(task, plan))
        if all(key in plan.tasks and store.has(plan.tasks[key].stage, key) for key in keys):
            found.setdefault(tuple(str(task.config["cell"][key]) for key in SHEET), []).append(task)
    return found


def _readable(tasks: Sequence[Task], plan: Plan, store: Store) -> Sheet | None:
    """The sheet of these cells; ``None`` if it is empty or an artefact is damaged, because figures need scores only."""
    try:
        sheet = _collect(tasks, plan, store)
    except CorruptArtefact:
        return None
    return sheet if sheet.rows else None


def _file_name(key: tuple[str, ...], keys: Mapping[tuple[str, ...], object]) -> str:
    """A file name from the model, the concepts and the columns that differ between sheets; with a hash if it was changed."""
    differ = [len({other[place] for other in keys}) > 1 for place in range(len(SHEET))]
    parts = [part for place, part in enumerate(key) if place < 2 or differ[place]]
    name = "-".join(parts)
    clean = NOT_IN_FILE_NAMES.sub("_", name)[:100]
    return clean if clean == name else f"{clean}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _shown_tasks(task: Task, plan: Plan) -> Iterator[str]:
    """Keys of the scores and images of the cell itself, without its comparisons."""
    for name, key in task.inputs.items():
        if name.startswith("images/"):
            yield key
            if key in plan.tasks:
                yield plan.tasks[key].inputs["images"]


def _collect(tasks: Sequence[Task], plan: Plan, store: Store) -> Sheet:
    sheet = Sheet()
    for task in tasks:
        cell = task.config["cell"]
        sheet.unsafe |= cell["kind"] == "unsafe"
        taken: dict[str, int] = {}
        for made, _, found in batches(task, plan, store):
            attack = None if cell["attack_name"] == "none" else cell["attack"]
            wanted = _wanted(found, taken, attack)
            if not wanted:
                continue
            with store.reading(made.stage, made.key) as place:
                images = read_images(place)
            for position in wanted:
                group = attack or found[position]["role"]
                sheet.add(cell["method"], group, found[position]["text"], images[position])
    return sheet


def _wanted(found: Sequence[Mapping], taken: dict[str, int], attack: str | None) -> list[int]:
    """Positions of the images to show: distinct prompts while there is room, and the last of several draws of a shot."""
    chosen, texts = [], set()
    last = {(shot["role"], shot["noise"], shot["index"]): position for position, shot in enumerate(found)}
    for position in last.values():
        shot = found[position]
        role = shot["role"]
        room = 2 if attack else SHOWN.get(role, 0)
        if role in COMPARISONS or shot["text"] in texts:
            continue
        if taken.get(role, 0) < room:
            taken[role] = taken.get(role, 0) + 1
            texts.add(shot["text"])
            chosen.append(position)
    return chosen


def draw(sheet: Sheet, blurred: bool) -> Image.Image:
    """The sheet as an RGB image. A gray frame marks an image that the method does not have, a red frame a failed image."""
    slots = list(sheet.captions)
    size = (LEFT + len(slots) * (SIDE + GAP) + GAP, HEAD + len(sheet.rows) * (SIDE + GAP) + GAP)
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    bold, small = font("DejaVuSans-Bold", 12), font("DejaVuSans", 10)
    for column, (slot, caption) in enumerate(sheet.captions.items()):
        x = LEFT + column * (SIDE + GAP)
        pen.text((x, 4), lines_within(slot.group.replace("_", " "), bold, SIDE, 1)[0], fill="black", font=bold)
        for number, line in enumerate(lines_within(caption, small, SIDE, 3)):
            pen.text((x, 22 + 12 * number), line, fill="#555555", font=small)
    for index, (method, pictures) in enumerate(sheet.rows.items()):
        y = HEAD + index * (SIDE + GAP)
        for number, line in enumerate(lines_within(method, bold, LEFT - 16, 4)):
            pen.text((8, y + SIDE // 2 - 8 + 16 * number), line, fill="black", font=bold)
        for column, slot in enumerate(slots):
            x = LEFT + column * (SIDE + GAP)
            image = pictures.get(slot)
            if image is not None:
                small_image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
                canvas.paste(small_image.filter(ImageFilter.GaussianBlur(12)) if blurred else small_image, (x, y))
                continue
            pen.rectangle((x, y, x + SIDE, y + SIDE), outline="#cc0000" if slot in pictures else "#cccccc")
            if slot in pictures:
                pen.text((x + 8, y + SIDE // 2 - 8), "failed", fill="#cc0000", font=small)
    return canvas


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font from matplotlib, because Pillow's default font lacks accented letters."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


def lines_within(text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """Break ``text`` into 1 to ``most`` lines of at most ``width`` pixels. Truncated text ends in an ellipsis.

    Lines break between words. A word is split only if it is wider than a line.
    """
    lines: list[str] = []
    rest = " ".join(text[:LONGEST].split())
    whole = len(text) <= LONGEST
    while rest and len(lines) < most:
        fits = next(n for n in range(len(rest), 0, -1) if n == 1 or font.getlength(rest[:n]) <= width)
        if fits < len(rest) and " " in rest[: fits + 1]:
            fits = rest.rindex(" ", 0, fits + 1)
        lines.append(rest[:fits].rstrip())
        rest = rest[fits:].lstrip()
    if lines and (rest or not whole):
        last = lines[-1]
        while last and font.getlength(f"{last}…") > width:
            last = last[:-1]
        lines[-1] = f"{last}…"
    return lines or [""]
