"""Prompts and shots (prompt × seed): the images that a measurement asks for."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from overpaint.errors import UserError
from overpaint.grid.assets import located
from overpaint.grid.labels import is_file
from overpaint.grid.paths import path_of
from overpaint.grid.typed import bare, shown

#: Size limit of prompt files, in bytes.
LARGEST = 64 << 20
#: Our column names, each with its names in published prompt files (I2P, UnlearnDiffAtk, MMA, HUB, COCO-30k), preferred
#: names first. A list of adversarial prompts can have a second column with the plain prompts.
COLUMNS = {
    "prompt": ("adv_prompt", "prompt", "text", "caption", "sensitive prompt"),
    "id": ("id", "case_number", "prompt_id", "coco_id", "image_id"),
    "seed": ("evaluation_seed", "sd_seed", "seed"),
    "guidance": ("evaluation_guidance", "sd_guidance_scale", "guidance_scale"),
    "plain": ("plain_id",),
}


@dataclass(frozen=True)
class Prompt:
    """A text and its purpose.

    Attributes:
        text: the prompt.
        role: name of the role (`overpaint.grid.roles`) for which its images are made.
        concept: detector label of the concept that the prompt is about.
        expects: labels of everything that the prompt asks for.
        variant: language, synonym or style.
        id: identifies the prompt; by default a hash of the text.
        noise: names the initial noise. Two prompts with the same ``noise``, such as a plain and an adversarial prompt, start
            from the same latents. By default ``plain``, else ``id``.
        seed: seed from a published prompt file.
        guidance: guidance scale from a published prompt file.
        plain: id of the plain prompt from which an attack derived this one. The images of all prompts derived from one
            plain prompt are statistically dependent, like images of the same text.
    """

    text: str
    role: str
    concept: str = ""
    expects: tuple[str, ...] = ()
    variant: str = ""
    id: str = ""
    noise: str = ""
    seed: int | None = None
    guidance: float | None = None
    plain: str = ""

    def __post_init__(self):
        object.__setattr__(self, "expects", tuple(self.expects))
        object.__setattr__(self, "id", self.id or hashlib.sha256(self.text.encode()).hexdigest()[:10])
        object.__setattr__(self, "noise", self.noise or self.plain or self.id)


@dataclass(frozen=True)
class Shot:
    """One image to generate: a prompt and a seed index. ``draw`` numbers an attack's repeated tries at the same shot."""

    prompt: Prompt
    index: int
    draw: int = 0

    @property
    def noise_seed(self) -> int:
        """Seed of the generator that draws the initial noise. It depends only on the noise id and the seed index.

        If the prompt file gives a seed, the result is that seed plus the index.
        """
        if self.prompt.seed is not None:
            return self.prompt.seed + self.index
        digest = hashlib.sha256(f"{self.prompt.noise}:{self.index}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def as_dict(self) -> dict:
        """The shot as JSON values for a task's configuration."""
        values = asdict(self.prompt) | {"expects": list(self.prompt.expects), "index": self.index, "draw": self.draw}
        return {key: value for key, value in values.items() if value or key not in ("plain", "draw")}

    @classmethod
    def from_dict(cls, values: dict) -> Shot:
        """The shot that `as_dict` converted to ``values``."""
        values = dict(values)
        index, draw = values.pop("index"), values.pop("draw", 0)
        return cls(Prompt(**values), index, draw)


def shots(prompts: Iterable[Prompt], seeds: int, first: int = 0) -> list[Shot]:
    """Every prompt with seed indices ``first … first + seeds − 1``."""
    return [Shot(prompt, index) for prompt in prompts for index in range(first, first + seeds)]


def read_prompts(
    path: str | Path, role: str = "target", concept: str = "", expects: Sequence[str] = ()
) -> list[Prompt]:
    """Read prompts from a CSV file with a ``prompt`` column. `COLUMNS` lists the accepted column names.

    Args:
        path: the CSV file, in UTF-8, or a file of an asset (``asset:NAME/FILE``).
        role, concept, expects: values of these fields for every prompt.

    Raises:
        UserError: if the file cannot be used; the message names the file and the line.
    """
    path = located(str(path)) or Path(path)
    if not is_file(path):
        why = "is not a regular file" if os.path.exists(path_of(path, "prompt file")) else "does not exist"
        raise UserError(f"prompt file {bare(str(path))} {why}")
    path = path.expanduser()
    reader = csv.reader(io.StringIO(csv_text(path), newline=""), strict=True)
    try:
        prompts = list(_rows(reader, path, role, concept, tuple(expects)))
    except csv.Error as error:
        raise UserError(f"prompt file {path} line {reader.line_num} is not CSV: {error}") from None
    if not prompts:
        raise UserError(f"{path} has a 'prompt' column but no prompt in it")
    return distinct(prompts)


def csv_text(path: Path) -> str:
    """The text of a prompt file in UTF-8."""
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"prompt file {path} is larger than {LARGEST >> 20} MiB")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"prompt file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"prompt file {path} line {line} is not in UTF-8; save it as UTF-8") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"prompt file {path} line {line} holds a NUL character; is it a text file in UTF-8?")
    return text


def _rows(reader, path: Path, role: str, concept: str, expects: tuple[str, ...]) -> Iterator[Prompt]:
    """The prompts of a CSV reader. Rows without a prompt are skipped."""
    header = [name.strip().lower() for name in next(reader, [])]
    twice = [name for name in dict.fromkeys(header) if name and header.count(name) > 1]
    if twice:
        raise UserError(f"{path} has the column {twice[0]!r} more than once")
    found = {key: next((header.index(n) for n in names if n in header), None) for key, names in COLUMNS.items()}
    if found["prompt"] is None:
        given = bare(", ".join(header)) or "none"
        raise UserError(f"{path} has no 'prompt' column (its columns: {given})")
    for row in reader:
        where = f"{path} line {reader.line_num}"
        if len(row) > len(header):
            raise UserError(
                f"{where} has {len(row)} fields for {len(header)} columns; quote a prompt that holds commas"
            )
        cell = {key: row[place].strip() for key, place in found.items() if place is not None and place < len(row)}
        if not cell.get("prompt"):
            continue
        seed = _number(cell.get("seed"), int, f"{where}: seed")
        guidance = _number(cell.get("guidance"), float, f"{where}: guidance")
        if seed is not None and not 0 <= seed < 2**63:
            raise UserError(f"{where}: seed takes a number from 0 to 2**63 - 1, got {shown(seed)}")
        if guidance is not None and not 0 < guidance <= 1000:
            raise UserError(f"{where}: guidance takes a number above 0 and up to 1000, got {guidance:g}")
        names = {"id": cell.get("id", ""), "plain": cell.get("plain", "")}
        yield Prompt(cell["prompt"], role, concept, expects, **names, seed=seed, guidance=guidance)


def distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The prompts with unique ids: repeated ids get a number appended, so that equal texts give different shots.

    The noise is numbered in the same way, except for prompts derived from a plain prompt: they keep its noise.
    """
    seen: dict[str, int] = {}
    result = []
    for prompt in prompts:
        count = seen[prompt.id] = seen.get(prompt.id, 0) + 1
        noise = prompt.noise if prompt.plain else f"{prompt.noise}-{count}"
        result.append(prompt if count == 1 else replace(prompt, id=f"{prompt.id}-{count}", noise=noise))
    return result


def _number(text: str | None, kind: type, where: str):
    if not text:
        return None
    try:
        if kind is int and text.lstrip("-").isdecimal():  # a float would lose the last digits of a long seed
            return int(text)
        number = float(text)
    except ValueError:
        raise UserError(f"{where} takes a number, got {shown(text)}") from None
    if not math.isfinite(number) or (kind is int and not number.is_integer()):
        raise UserError(f"{where} takes a {'whole' if kind is int else 'finite'} number, got {shown(text)}")
    return kind(number)
