"""Prompts and the shots (prompt × seed) made from them: what images a measurement asks for, before any is made."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from overpaint.errors import UserError

#: Column names that published prompt files use, mapped to ours (I2P, UnlearnDiffAtk, MMA, HUB, COCO-30k lists). A list of
#: adversarial prompts may hold the plain ones as well.
COLUMNS = {
    "prompt": ("adv_prompt", "prompt", "text", "caption", "sensitive prompt"),
    "id": ("id", "case_number", "prompt_id", "coco_id", "image_id"),
    "seed": ("evaluation_seed", "sd_seed", "seed"),
    "guidance": ("evaluation_guidance", "sd_guidance_scale", "guidance_scale"),
    "plain": ("plain_id",),
}


@dataclass(frozen=True)
class Prompt:
    """One text with what it is for.

    ``role`` says why images of it are made; ``concept`` is the detector label of what it is about; ``expects`` the
    labels of everything it asks for; ``variant`` the language, synonym or style. ``noise`` names the start noise, so
    that two prompts (a plain and an attacked one, say) can be drawn from the same; it is the id unless said otherwise.
    ``seed`` and ``guidance`` are a published file's own values for this prompt. ``plain`` is the id of the plain prompt
    that a search made it of, in a list of such; images of prompts made of one depend on each other as those of one text do.
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
    """One image to be made: a prompt and the index of its seed; ``draw`` counts an attack's tries at the same one."""

    prompt: Prompt
    index: int
    draw: int = 0

    @property
    def noise_seed(self) -> int:
        """Seed of the generator that draws the start noise: a function of (noise id, seed index) alone.

        A prompt file's own seed is used as it is for index 0 and counted up from there.
        """
        if self.prompt.seed is not None:
            return self.prompt.seed + self.index
        digest = hashlib.sha256(f"{self.prompt.noise}:{self.index}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def as_dict(self) -> dict:
        """Plain values, for a task's configuration: what decides the picture and what describes it."""
        values = asdict(self.prompt) | {"expects": list(self.prompt.expects), "index": self.index, "draw": self.draw}
        return {key: value for key, value in values.items() if value or key not in ("plain", "draw")}

    @classmethod
    def from_dict(cls, values: dict) -> Shot:
        values = dict(values)
        index, draw = values.pop("index"), values.pop("draw", 0)
        return cls(Prompt(**values), index, draw)


def shots(prompts: Iterable[Prompt], seeds: int, first: int = 0) -> list[Shot]:
    """Every prompt with seed indices ``first … first + seeds − 1``."""
    return [Shot(prompt, index) for prompt in prompts for index in range(first, first + seeds)]


def read_prompts(
    path: str | Path, role: str = "target", concept: str = "", expects: Sequence[str] = ()
) -> list[Prompt]:
    """Prompts from a CSV with a ``prompt`` column; ids, seeds and guidance under any of the published column names."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"prompt file {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            prompts = _rows(csv.DictReader(file), path, role, concept, tuple(expects))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"prompt file {path} cannot be read as a CSV in UTF-8: {error}") from error
    if not prompts:
        raise UserError(f"{path} has a 'prompt' column but no prompt in it")
    return distinct(prompts)


def _rows(reader: csv.DictReader, path: Path, role: str, concept: str, expects: tuple[str, ...]) -> list[Prompt]:
    header = {name.strip().lower(): name for name in reader.fieldnames or ()}
    found = {key: next((header[n] for n in names if n in header), None) for key, names in COLUMNS.items()}
    if not found["prompt"]:
        given = ", ".join(header) or "none"
        raise UserError(f"{path} has no 'prompt' column (its columns: {given})")
    prompts = []
    for row in reader:
        text = (row[found["prompt"]] or "").strip()
        if not text:
            continue
        cell = {key: (row[name] or "").strip() for key, name in found.items() if name}
        where = f"{path} line {reader.line_num}"
        seed = _number(cell.get("seed"), int, f"{where}: seed")
        guidance = _number(cell.get("guidance"), float, f"{where}: guidance")
        if seed is not None and not 0 <= seed < 2**63:
            raise UserError(f"{where}: seed takes a number from 0 to 2**63 - 1, got {seed}")
        if guidance is not None and guidance <= 0:
            raise UserError(f"{where}: guidance takes a number above 0, got {guidance:g}")
        names = {"id": cell.get("id", ""), "plain": cell.get("plain", "")}
        prompts.append(Prompt(text, role, concept, expects, **names, seed=seed, guidance=guidance))
    return prompts


def distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The prompts with repeated ids numbered apart, so that equal texts with different seeds stay different shots; those
    made of a plain one stay with it."""
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
        if kind is int and text.lstrip("-").isdigit():  # a float would lose the last digits of a long seed
            return int(text)
        number = float(text)
    except ValueError:
        raise UserError(f"{where} takes a number, got {text!r}") from None
    if not math.isfinite(number) or (kind is int and not number.is_integer()):
        raise UserError(f"{where} takes a {'whole' if kind is int else 'finite'} number, got {text!r}")
    return kind(number)
