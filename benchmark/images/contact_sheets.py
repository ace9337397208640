"""The contact sheet: one picture that shows a grid's result. Rows are methods, columns prompts and attacks, same seeds."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from overpaint.attacks.attack import COMPARISONS
from overpaint.images.stages.generate import read_images
from overpaint.images.stages.score import SHOTS
from overpaint.run.plan import Plan
from overpaint.run.store import CorruptArtefact, Store
from overpaint.run.tasks import Task

#: Columns of a cell without attack: role → how many pictures. An attack shows two.
COLUMNS = {"target": 2, "near": 1, "in_prompt": 1, "grid": 1, "utility": 1}
SIDE, GAP, HEAD, LEFT = 128, 6, 62, 150
NOT_IN_FILE_NAMES = re.compile(r"[^\w .+-]")  # a concept's name can hold a slash, say


def contact_sheets(plan: Plan, store: Store, folder: Path, show_unsafe: bool = False) -> list[Path]:
    """Write one PNG a concept set into ``folder`` and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    by_set: dict[str, list[Task]] = {}
    for cell, task in plan.cells:
        if all(store.has(plan.tasks[k].stage, k) for k in _made(task, plan)):
            by_set.setdefault(f"{cell.model.name}-{cell.concepts.name}", []).append(task)
    written = []
    for name, tasks in by_set.items():
        try:
            rows = _pictures(tasks, plan, store)
        except CorruptArtefact:  # set aside when it was read; figures do not need it any more
            continue
        if not rows:
            continue
        blurred = tasks[0].config["cell"]["kind"] == "unsafe" and not show_unsafe
        path = folder / f"{NOT_IN_FILE_NAMES.sub('_', name)[:100]}.png"
        _draw(rows, blurred).save(path)
        written.append(path)
    return written


def _made(task: Task, plan: Plan) -> Iterator[str]:
    """The scores and the images that a cell's own row is drawn from."""
    for name, key in task.inputs.items():
        if name.startswith("images/"):
            yield from (key, plan.tasks[key].inputs["images"])


def _pictures(tasks: list[Task], plan: Plan, store: Store) -> dict[str, dict[tuple[str, str], Image.Image | None]]:
    """method → {(group, prompt): picture, none where it failed}, in the order of the plan."""
    rows: dict[str, dict[tuple[str, str], Image.Image | None]] = {}
    for task in tasks:
        cell = task.config["cell"]
        row = rows.setdefault(cell["method"], {})
        taken: dict[str, int] = {}
        for index, shots in enumerate(task.config["shots"]["images"]):
            scored = plan.tasks[task.inputs[f"images/{index}"]]
            found = shots or json.loads((store.read(scored.stage, scored.key) / SHOTS).read_text(encoding="utf-8"))
            wanted = _wanted(found, taken, cell["attack"])
            if not wanted:
                continue
            made = plan.tasks[scored.inputs["images"]]
            with store.reading(made.stage, made.key) as folder:
                images = read_images(folder)
            for position in wanted:
                group = found[position]["role"] if cell["attack"] == "none" else cell["attack"]
                nth = sum(1 for g, _ in row if g == group)
                row[group, f"{nth}:{found[position]['text']}"] = images[position]
    return rows


def _wanted(found: list[Mapping], taken: dict[str, int], attack: str) -> list[int]:
    """Positions to show: one picture of distinct prompts, as many as the column has room for; of many draws, the last."""
    chosen, texts = [], set()
    last = {(shot["role"], shot["noise"], shot["index"]): position for position, shot in enumerate(found)}
    for position in last.values():
        shot = found[position]
        if shot["role"] in COMPARISONS:
            continue
        room = COLUMNS.get(shot["role"], 0) if attack == "none" else 2
        if taken.get(shot["role"], 0) < room and shot["text"] not in texts:
            taken[shot["role"]] = taken.get(shot["role"], 0) + 1
            texts.add(shot["text"])
            chosen.append(position)
    return chosen


def _draw(rows: Mapping[str, Mapping[tuple[str, str], Image.Image | None]], blurred: bool) -> Image.Image:
    slots: dict[tuple[str, str], str] = {}
    for row in rows.values():
        for group, text in row:
            number, _, prompt = text.partition(":")
            slots.setdefault((group, number), prompt)
    width = LEFT + len(slots) * (SIDE + GAP) + GAP
    height = HEAD + len(rows) * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    bold, small = ImageFont.load_default(14), ImageFont.load_default(11)
    for column, ((group, _), prompt) in enumerate(slots.items()):
        x = LEFT + column * (SIDE + GAP)
        draw.text((x, 4), group.replace("_", " "), fill="black", font=bold)
        for line, part in enumerate(lines_within(prompt, small, SIDE)[:3]):
            draw.text((x, 22 + 12 * line), part, fill="#555555", font=small)
    for index, (method, row) in enumerate(rows.items()):
        y = HEAD + index * (SIDE + GAP)
        for line, part in enumerate(lines_within(method, bold, LEFT - 16)[:4]):
            draw.text((8, y + SIDE // 2 - 8 + 16 * line), part, fill="black", font=bold)
        pictures = {(group, text.partition(":")[0]): image for (group, text), image in row.items()}
        for column, slot in enumerate(slots):
            x = LEFT + column * (SIDE + GAP)
            if slot not in pictures:
                draw.rectangle((x, y, x + SIDE, y + SIDE), outline="#cccccc")
                continue
            if pictures[slot] is None:
                draw.rectangle((x, y, x + SIDE, y + SIDE), outline="#cc0000")
                draw.text((x + 8, y + SIDE // 2 - 8), "failed", fill="#cc0000", font=small)
                continue
            image = pictures[slot].resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(image.filter(ImageFilter.GaussianBlur(12)) if blurred else image, (x, y))
    return sheet


def lines_within(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """``text`` in lines of at most ``width`` pixels, broken between words where it can be."""
    for characters in range(len(text), 0, -1):
        lines = textwrap.wrap(text, characters)
        if all(font.getlength(line) <= width for line in lines):
            return lines
    return []
