"""Prompt files: lists of prompts as papers publish them.

A CSV file has a column for the prompt and possibly others (`COLUMNS`): an id, a seed, a guidance scale, a size, what the prompt
is about and what else it asks for. Two other forms are published: names without prompts (HUB's nouns, Six-CD's celebrities), and
text with one prompt a line and no header (HUB's target prompts). HUB's translations have one column a language.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from overpaint.errors import AssetMissing, UserError, unknown
from overpaint.grid.assets import content_digest, located, referred
from overpaint.grid.digests import file_digest
from overpaint.grid.paths import path_of
from overpaint.grid.prompts import Prompt, distinct
from overpaint.grid.registry import named_in_yaml
from overpaint.grid.typed import bare, checked, shown

#: Size limit of prompt files, in bytes.
LARGEST = 64 << 20
#: Our column names, each with its names in published prompt files, preferred names first. A list of adversarial prompts can
#: have a second column with the plain prompts.
COLUMNS = {
    "prompt": ("adv_prompt", "prompt", "text", "caption", "sensitive prompt"),  # MMA; most; ICEB; HUB's COCO; RECE
    "id": ("id", "case_number", "prompt_id", "coco_id", "image_id"),
    "seed": ("evaluation_seed", "sd_seed", "seed"),
    "guidance": ("evaluation_guidance", "sd_guidance_scale", "guidance_scale"),
    "width": ("sd_image_width", "width"),
    "height": ("sd_image_height", "height"),
    "plain": ("plain_id",),
    "concept": ("concept", "class", "classes", "artist", "profession", "noun", "object"),
    "style": ("style", "theme"),
    "categories": ("categories", "category"),
    "expects": ("expects",),
}
#: Columns with translations of one prompt (HUB), and their language codes.
LANGUAGES = {
    "original": "en", "english": "en", "spanish": "es", "french": "fr", "german": "de", "italian": "it", "portuguese": "pt"
}  # fmt: skip
#: From this number of words, a first line that names no column of ours is a prompt and not a header.
WORDS_OF_A_PROMPT = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt of a file, or one name (``text`` is then empty).

    Attributes:
        about: what the prompt is about, in the file's words; empty if the file has no such column.
        categories: I2P's categories.
        expects: what else the prompt asks for.
        variant: language code, if the file has one column a language.
    """

    text: str
    about: str = ""
    categories: tuple[str, ...] = ()
    expects: tuple[str, ...] = ()
    variant: str = ""
    id: str = ""
    seed: int | None = None
    guidance: float | None = None
    size: tuple[int, int] | None = None
    plain: str = ""

    def prompt(self, role: str, concept: str = "", expects: Sequence[str] = ()) -> Prompt:
        """The prompt of this row, with labels of a detector."""
        name, noise = self.id, ""
        if self.variant:  # translations share noise
            name, noise = f"{self.id}-{self.variant}", self.id
        labels = (role, concept, tuple(expects), self.variant)
        return Prompt(self.text, *labels, name, noise, self.seed, self.guidance, self.plain, self.size)


class ListEntry(TypedDict, total=False):
    """A prompt list in ``concepts.prompts``."""

    file: str
    where: dict[str, str | int | float]
    first: Annotated[int, Field(ge=1)]
    rows: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class PromptList:
    """A prompt file, or a part of one.

    Attributes:
        file: a path, or ``asset:NAME/FILE``.
        where: values of columns that select rows (`selects`).
        first: how many of the selected rows belong to the list, from the first on; ``None`` for all.
        rows: the number of prompts that the list is known to have. A plan uses it if the file is not on this machine.
    """

    file: str
    where: Mapping[str, Any] = field(default_factory=dict)
    first: int | None = None
    rows: int | None = None

    @classmethod
    def of(cls, given: str | Mapping[str, Any], where: str) -> PromptList:
        """A list from its setting, a file or a mapping. ``where`` names the setting in error messages."""
        if isinstance(given, str):
            return cls(given)
        entry = checked(ListEntry, given, where)
        if "file" not in entry:
            raise UserError(f"{where} needs a file: {{file: FILE.csv, where: {{column: value}}}}")
        return cls(**entry)

    @property
    def identity(self) -> Any:
        """Everything that decides the prompts: a hash of the file, and the selection if there is one."""
        if referred(self.file):
            content = content_digest(self.file) or self.file
        else:  # an absolute path: a bare word would be no path
            path = named_in_yaml("concepts", self.file)
            content = file_digest(str(path_of(path, "prompt file"))) or file_digest(str(path)) or self.file
        selection: dict[str, Any] = {"where": dict(self.where) or None, "first": self.first}
        return {"file": content} | selection if any(selection.values()) else content

    def check(self) -> None:
        """Raise a `UserError` if the list is of an asset that has no such file."""
        if referred(self.file):
            content_digest(self.file)

    @property
    def absent(self) -> str:
        """A sentence if the list belongs to an asset that is not on this machine, else an empty string."""
        try:
            self.path()
        except AssetMissing as error:
            return str(error)
        return ""

    @property
    def name(self) -> str:
        """The name of the file, for messages."""
        selected = ", ".join(f"{column} {value}" for column, value in self.where.items())
        return f"{Path(self.file).name} ({selected})" if selected else Path(self.file).name

    @property
    def names(self) -> bool:
        """Whether the list holds names instead of prompts."""
        return not self.absent and not all(row.text for row in self.read())

    def path(self) -> Path:
        """Where the file is. Raises `AssetMissing` for an asset that is not on this machine."""
        return located(self.file) or named_in_yaml("concepts", self.file)

    def read(self) -> tuple[Row, ...]:
        """The selected rows."""
        return read_rows(self.path(), self.where)[: self.first]


def read_prompts(
    path: str | Path,
    role: str = "target",
    concept: str = "",
    expects: Sequence[str] = (),
    about: Collection[str] = (),
) -> list[Prompt]:
    """Every prompt of a file, with the same role and labels.

    Args:
        path: the file, or a file of an asset (``asset:NAME/FILE``).
        role, concept, expects: values of these fields for every prompt.
        about: names of a concept. If rows of the file are about it, only these are read.

    Raises:
        UserError: if the file cannot be used; the message names the file and the line.
    """
    rows = read_rows(located(str(path)) or Path(path))
    if not all(row.text for row in rows):
        raise UserError(
            f"{path} has no 'prompt' column, only names: give it in concepts.prompts, where templates use names"
        )
    chosen = [row for row in rows if row.about in about] or rows
    return distinct(row.prompt(role, concept, expects) for row in chosen)


def read_rows(path: Path, where: Mapping[str, Any] | None = None) -> tuple[Row, ...]:
    """The rows of a prompt file for which ``where`` holds (`selects`). Rows without a prompt are skipped.

    Raises:
        UserError: if the file cannot be used; the message names the file and the line.
    """
    whole = path_of(path, "prompt file")
    if not whole.is_file():
        why = "is not a regular file" if os.path.exists(whole) else "does not exist"
        raise UserError(f"prompt file {bare(str(path))} {why}")
    path = path.expanduser()
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"prompt file {path} cannot be read: {error.strerror}") from None
    return _stored_rows(path, (stat.st_size, stat.st_mtime_ns), tuple(sorted((where or {}).items())))


@lru_cache(maxsize=64)
def _stored_rows(path: Path, _: tuple[int, int], where: tuple[tuple[str, Any], ...]) -> tuple[Row, ...]:
    text = csv_text(path)
    first = text.lstrip().partition("\n")[0].strip()
    if first.startswith("version https://git-lfs"):
        raise UserError(f"prompt file {path} is a pointer of Git LFS and not the list itself; get the file behind it")
    if not _known(_header(first)) and len(first.split()) >= WORDS_OF_A_PROMPT:
        if where:
            raise UserError(f"{path} has one prompt a line and no columns, so where has nothing to select by")
        return tuple(Row(line) for line in map(_line, text.splitlines()) if line)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = list(_rows(reader, path, dict(where)))
    except csv.Error as error:
        raise UserError(f"prompt file {path} line {reader.line_num} is not CSV: {error}") from None
    if not rows:
        selected = f" where {', '.join(f'{column} is {value}' for column, value in where)}" if where else ""
        raise UserError(f"{path} has a 'prompt' column but no prompt in it{selected}")
    return tuple(rows)


def _header(line: str) -> list[str]:
    """The names of columns in a line of CSV; none if it is not CSV."""
    try:
        return [name.strip().lower() for name in next(csv.reader([line]), [])]
    except csv.Error:
        return []


def _known(header: Sequence[str]) -> bool:
    names = {"original", "english", *(name for key in ("prompt", "concept") for name in COLUMNS[key])}
    return any(name in names for name in header)


def _line(line: str) -> str:
    """A line of a list without header. A line that is one quoted field of CSV loses its quotes."""
    line = line.strip()
    if len(line) > 1 and line[0] == line[-1] == '"':
        try:
            (field,) = next(csv.reader([line], strict=True))
        except (csv.Error, ValueError):
            return line
        return field.strip()
    return line


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
    if text.count("\0") * 1000 > len(text):  # UTF-16; fewer are noise of prompts found by search
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"prompt file {path} line {line} holds a NUL character; is it a text file in UTF-8?")
    return text.replace("\0", "")


def _rows(reader, path: Path, where: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of a CSV reader for which ``where`` holds. Rows without a prompt and a name are skipped."""
    header = [name.strip().lower() for name in next(reader, [])]
    found = {key: next((name for name in names if name in header), "") for key, names in COLUMNS.items()}
    languages = [name for name in header if name in LANGUAGES]
    languages = languages if len(languages) > 1 and not found["prompt"] else []
    if not found["prompt"] and not languages and not found["concept"]:
        given = bare(", ".join(header)) or "none"
        raise UserError(f"{path} has no 'prompt' column (its columns: {given}){_advice(header)}")
    for column in where:
        if column.lower() not in header:
            raise unknown("column", column, filter(None, header), f"{path} (where)")
    used = {*found.values(), *languages, *map(str.lower, where)} - {""}
    for values in reader:
        line = f"{path} line {reader.line_num}"
        cells = cells_of(values, header, used, line)
        if not all(
            selects(cells.get(column.lower(), ""), wanted, f"{line}: {column}") for column, wanted in where.items()
        ):
            continue
        row = _row({key: cells.get(name, "") for key, name in found.items()}, line)
        for language in languages:
            if cells.get(language):
                identity = row.id or f"line {reader.line_num}"
                yield replace(row, text=cells[language], variant=LANGUAGES[language], id=identity)
        if row.text or (row.about and not found["prompt"] and not languages):
            yield row


def cells_of(values: Sequence[str], header: Sequence[str], used: Collection[str], line: str) -> dict[str, str]:
    """The cells of one line of CSV by column, of the columns that are ``used``. ``line`` names it in error messages.

    Raises:
        UserError: if there are more fields than columns, or different values in two columns of one name.
    """
    if len(values) > len(header):
        raise UserError(f"{line} has {len(values)} fields for {len(header)} columns; quote a prompt that holds commas")
    cells: dict[str, str] = {}
    for name, value in zip(header, map(str.strip, values), strict=False):
        if name in used and value != cells.setdefault(name, value):
            raise UserError(f"{line}: the file has the column {name!r} more than once, with different values")
    return cells


def _advice(header: Sequence[str]) -> str:
    """What to do about a file whose only column is none of ours."""
    if len(header) != 1:
        return ""
    if re.search(r"[;\t|]", header[0]):
        return "; separate columns by commas"
    return "; a list with one prompt a line needs a first line 'prompt'"


def selects(cell: str, wanted: Any, where: str) -> bool:
    """Whether a cell has a value, or has it among values separated by commas. ``> 50`` and ``>= 50`` compare numbers."""
    compared = re.fullmatch(r"\s*([<>]=?)\s*(\S+)\s*", str(wanted))
    if compared:
        number, limit = _number(cell, float, where), _number(compared[2], float, f"{where}: {wanted}")
        if number is None:
            return False
        return {">": number > limit, ">=": number >= limit, "<": number < limit, "<=": number <= limit}[compared[1]]
    values = {value.strip().lower() for value in (cell, *cell.split(","))}
    return str(wanted).strip().lower() in values


def _row(cell: Mapping[str, str], line: str) -> Row:
    seed = _number(cell["seed"], int, f"{line}: seed")
    guidance = _number(cell["guidance"], float, f"{line}: guidance")
    width, height = (_number(cell[key], int, f"{line}: {key}") for key in ("width", "height"))
    if seed is not None and not 0 <= seed < 2**63:
        raise UserError(f"{line}: seed takes a number from 0 to 2**63 - 1, got {shown(seed)}")
    if guidance is not None and not 0 < guidance <= 1000:
        raise UserError(f"{line}: guidance takes a number above 0 and up to 1000, got {guidance:g}")
    for key, side in (("width", width), ("height", height)):
        if side is not None and not 8 <= side <= 8192:
            raise UserError(f"{line}: {key} takes a number of pixels from 8 to 8192, got {shown(side)}")
    if (width is None) != (height is None):
        given, lacking = ("width", "height") if height is None else ("height", "width")
        raise UserError(f"{line}: {given} without {lacking}: give both, or neither for images of the model's own size")
    style, expects = cell["style"], _listed(cell["expects"])
    return Row(
        cell["prompt"],
        cell["concept"],
        _listed(cell["categories"]),
        tuple(filter(None, (cell["concept"], style))) if style and not expects else expects,
        id=cell["id"],
        seed=seed,
        guidance=guidance,
        size=(width, height) if width and height else None,
        plain=cell["plain"],
    )


def _listed(cell: str) -> tuple[str, ...]:
    """The values of a cell, separated by commas, semicolons or bars."""
    return tuple(filter(None, (value.strip() for value in re.split(r"[,;|]", cell))))


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
