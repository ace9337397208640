"""Pictures that other code made: read from a folder and a CSV file, scored and measured like the images of a grid."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from overpaint.errors import UserError, unknown
from overpaint.grid.cells import Cell
from overpaint.grid.choices import Choice
from overpaint.grid.concept_sets import ConceptSet
from overpaint.grid.digests import digest
from overpaint.grid.prompt_files import cells_of, csv_text
from overpaint.grid.prompts import Prompt, Shot
from overpaint.grid.roles import ROLES, role
from overpaint.images.extractions import extractions
from overpaint.images.measurements import compare_task, measure_task
from overpaint.images.tasks import Batch, given_images, reference_images, shards
from overpaint.report.missing import AS_GIVEN
from overpaint.run.plan import Plan
from overpaint.run.store import file_hash

#: Columns of the CSV file, each with the names that are accepted for it, preferred names first.
COLUMNS = {
    "file": ("file", "filename", "path", "image"),
    "prompt": ("prompt", "text", "caption"),
    "concept": ("concept", "class", "label"),
    "expects": ("expects",),
    "role": ("role",),
    "variant": ("variant", "language", "style"),
    "method": ("method",),
    "seed": ("seed", "index"),
    "id": ("id", "prompt_id", "case_number"),
}
#: Names of the unedited model in the column ``method``.
UNEDITED = ("none", "original", "unedited", "base", "sd")
#: Axes whose settings matter for pictures that exist already.
LABELLED = ("concepts", "metrics", "budget")


@dataclass(frozen=True)
class Picture:
    """One picture: its file, the method that made it, and the prompt and seed index that it was made for."""

    file: Path
    method: str
    shot: Shot

    @property
    def row(self) -> str:
        """The method's name in the table, ``none`` for every name of the unedited model."""
        return "none" if self.method.lower() in UNEDITED else self.method


def read_pictures(
    folder: Path, table: Path, concepts: ConceptSet, labels: Collection[str] | None = None
) -> tuple[list[Picture], list[str]]:
    """The pictures of a CSV file with the columns ``file`` and ``prompt``, and `COLUMNS` where they are known.

    The second list names the columns that are not read.

    ``concept`` and ``expects`` (separated by ``;``) are detector labels. Without ``role``, a picture of an erased concept is a
    target, one of a neighbour is near, and any other one measures utility. An attack's pictures (role ``attacked``) are targets;
    their ``method`` names the attack too. Pictures are paired by ``id`` (by default the prompt) and ``seed`` (by default the
    number of the picture of that prompt). ``labels`` are those of the detector; with them, ``concept`` takes only these and the
    concepts of the set and of its catalogue.

    Raises:
        UserError: The file, a column, a row or a picture is unusable; the message names the line.
    """
    if not folder.is_dir():
        raise UserError(f"images={folder} is not a folder")
    header, rows = _listed(table)
    columns = {key: next((name for name in names if name in header), "") for key, names in COLUMNS.items()}
    for needed in ("file", "prompt"):
        if not columns[needed]:
            raise UserError(f"prompts={table} has no column {needed!r} (its columns: {', '.join(header) or 'none'})")
    read = {*columns.values()} - {""}
    found: list[Picture] = []
    counted: Counter[tuple[str, str]] = Counter()
    for line, row in rows:
        where = f"prompts={table} line {line}"
        cells = cells_of(row, header, read, where)
        cell = {key: cells.get(name, "") for key, name in columns.items()}
        if any(cell.values()):
            file = _file(cell["file"], folder, where)
            if cell["seed"] and not (cell["seed"].isdecimal() and int(cell["seed"]) < 2**63):
                raise UserError(f"{where}: seed takes a whole number from 0 to 2^63 − 1, got {cell['seed']!r}")
            prompt = _prompt(cell, concepts, labels, where)
            found.append(_picture(file, cell["method"] or folder.name, prompt, cell["seed"], counted))
    if not found:
        raise UserError(f"prompts={table} lists no pictures")
    _refuse_alike(found, f"prompts={table} lists")
    return found, [name for name in header if name and name not in read]


def _listed(table: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header of a CSV file in small letters, and its rows with their lines."""
    if not table.is_file():
        raise UserError(
            f"prompts={table} is not a readable CSV file: {'a folder' if table.is_dir() else 'no such file'}"
        )
    reader = csv.reader(io.StringIO(csv_text(table), newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UserError(f"prompts={table} line {reader.line_num} is not CSV: {error}") from None
    return [name.strip().lower() for name in rows[0][1]] if rows else [], rows[1:]


def _file(name: str, folder: Path, where: str) -> Path:
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{where}: {name} is outside images={folder}")
    if not name or not file.is_file():
        raise UserError(f"{where}: images={folder} has no file {name!r}")
    return file


def _picture(file: Path, method: str, prompt: Prompt, seed: str, counted: Counter[tuple[str, str]]) -> Picture:
    """A picture. Without a ``seed``, it is the number of pictures of this method and prompt that were ``counted`` before."""
    index = int(seed) if seed else counted[method, prompt.id]
    counted[method, prompt.id] += 1
    return Picture(file, method, Shot(prompt, index))


def _refuse_alike(pictures: Sequence[Picture], where: str) -> None:
    """Raise a `UserError` that starts with ``where`` if two pictures have one identity."""
    identity, count = Counter(map(_identity, pictures)).most_common(1)[0]
    if count > 1:
        alike = [picture for picture in pictures if _identity(picture) == identity]
        row, shot, names = alike[0].row, alike[0].shot, list(dict.fromkeys(picture.method for picture in alike))
        typed = "" if names == [row] else f" ({', '.join(names)})"
        raise UserError(
            f"{where} {count} pictures by {row}{typed} of prompt {shot.prompt.text!r} and seed {shot.index}"
        )


def _identity(picture: Picture) -> tuple[str, str, int]:
    """What only one picture of a list has: its row in the table, its prompt and its seed index."""
    return picture.row, picture.shot.prompt.id, picture.shot.index


#: A part of a pattern of file names or of a text for prompts.
PART = r"\{(.*?)\}"
#: What each part of a pattern of file names matches; ``{any}`` is not read.
PARTS = {"seed": r"\d+"} | dict.fromkeys((*(k for k in COLUMNS if k not in ("file", "seed")), "any"), r"[^/]+?")


def named_pictures(
    folder: Path,
    pattern: str,
    text: str,
    role_name: str,
    concepts: ConceptSet,
    labels: Collection[str] | None = None,
) -> list[Picture]:
    """The pictures whose paths below the folder match a pattern, such as ``{variant}_{concept}_seed{seed}.jpg``.

    Parts in braces are the columns of `COLUMNS`, or ``{any}``. ``text`` makes the prompt of them. ``labels`` as for
    `read_pictures`; of concept and variant, a picture is expected to show those that are labels.

    Raises:
        UserError: The pattern or the text has an unknown part, or the pattern matches no file, or two of one prompt and seed.
    """
    if not folder.is_dir():
        raise UserError(f"images={folder} is not a folder")
    _check_parts(text)
    expression = ""
    for plain, part in re.findall(rf"([^{{]*)(?:{PART})?", pattern):
        if part and part not in PARTS:
            raise unknown("part", part, PARTS, f"names={pattern}")
        again = part and part != "any" and f"(?P<{part}>" in expression
        expression += re.escape(plain)
        expression += "" if not part else f"(?P={part})" if again else _group(part)
    found: list[Picture] = []
    counted: Counter[tuple[str, str]] = Counter()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        match = re.fullmatch(expression, file.relative_to(folder).as_posix())
        if match:
            cell = dict.fromkeys(COLUMNS, "") | match.groupdict()
            cell["role"] = cell["role"] or role_name
            cell["prompt"] = cell["prompt"] or text.format_map(cell)
            shown = (cell["concept"], cell["variant"])
            cell["expects"] = cell["expects"] or ";".join(p for p in shown if p and (labels is None or p in labels))
            prompt = _prompt(cell, concepts, labels, f"names={pattern}: {file.relative_to(folder)}")
            found.append(_picture(file, cell["method"] or folder.resolve().name, prompt, cell["seed"], counted))
    if not found:
        raise UserError(f"names={pattern} matches no file in images={folder}")
    _refuse_alike(found, f"names={pattern} matches")
    return found


def _check_parts(text: str) -> None:
    """Raise a `UserError` unless every brace of a text for prompts belongs to a part that the names of files can have."""
    known = [part for part in PARTS if part not in ("any", "prompt")]
    for part in re.findall(PART, text):
        if part not in known:
            raise unknown("part", part, known, f"prompt={text}")
    if re.search(r"[{}]", re.sub(PART, "", text)):
        raise UserError(f"prompt={text} has a brace without its pair; parts are {', '.join(f'{{{p}}}' for p in known)}")


def _group(part: str) -> str:
    return PARTS[part] if part == "any" else f"(?P<{part}>{PARTS[part]})"


def _prompt(cell: Mapping[str, str], concepts: ConceptSet, labels: Collection[str] | None, where: str) -> Prompt:
    erased, near, retained, others = (
        [c.label or c.name for c in found]
        for found in (
            concepts.request.erase,
            concepts.near,
            concepts.request.retain,
            concepts.catalogue.concepts.values(),
        )
    )
    concept = cell["concept"] or (erased[0] if cell["role"] in ("target", "attacked") and len(erased) == 1 else "")
    expects = tuple(part.strip() for part in cell["expects"].split(";") if part.strip())
    if labels is not None:
        known = {*labels, *erased, *near, *retained, *others}
        for what, name in (("concept", concept), *(("label in expects", label) for label in expects)):
            if name and name not in known:
                raise unknown(what, name, known, where)
    asked = "target" if cell["role"] == "attacked" else cell["role"]
    kind = asked or ("target" if concept in erased else "near" if concept in near else "utility")
    if kind not in {r.name for r in ROLES}:
        raise unknown("role", kind, (r.name for r in ROLES), where)
    if kind == "target" and concept and concept not in erased:
        raise UserError(f"{where}: a target shows an erased concept ({', '.join(erased)}), got {concept!r}")
    expects = expects or ((concept,) if concept else ())
    return Prompt(cell["prompt"], role(kind).name, concept, expects, cell["variant"], id=cell["id"])


def given_plan(cell: Cell, pictures: Iterable[Picture], name: str) -> Plan:
    """The plan that scores and measures the pictures of every method, beside those of the unedited model if there are any.

    Args:
        cell: says which concepts were erased, which detector scores, and which metrics are computed.
        name: how tables call the model.
    """
    plan, by_method = Plan("images"), dict[str, list[Picture]]()
    for picture in pictures:
        by_method.setdefault(picture.row, []).append(picture)
    hashes = {p.file: file_hash(p.file) for found in by_method.values() for p in found}
    batches = {method: _batches(plan, cell, found, hashes, method) for method, found in by_method.items()}
    content = {m: digest([(hashes[p.file], p.shot.as_dict()) for p in found])[:16] for m, found in by_method.items()}
    for method, found in batches.items():
        theirs = replace(
            cell,
            model=replace(cell.model, name=name),
            method=Choice(method, None, {"pictures": content[method], "original": content.get("none")}),
            protocol=replace(cell.protocol, name=AS_GIVEN),
            budget=replace(cell.budget, name=f"{len(by_method[method])} pictures"),
            given={key: value for key, value in cell.given.items() if key.split(".")[0] in LABELLED},
        )
        frames = {"images": found, "original": batches.get("none", [])}
        if cell.model.reference and cell.model.detector:
            frames["reference"] = [reference_images(plan, cell)]
        beside = _beside(plan, frames) | extractions(plan, theirs, frames)
        plan.cells.append((theirs, measure_task(plan, theirs, frames, beside, given=True)))
    return plan


def _batches(
    plan: Plan, cell: Cell, pictures: Sequence[Picture], hashes: Mapping[Path, str], method: str
) -> list[Batch]:
    files = {id(p.shot): p.file for p in pictures}
    return [
        given_images(plan, cell, shard, [(files[id(s)], hashes[files[id(s)]]) for s in shard], method)
        for shard in shards([p.shot for p in pictures], cell.budget.shard)
    ]


def _beside(plan: Plan, frames: Mapping[str, Sequence[Batch]]) -> dict:
    """Comparisons with the unedited model's pictures, if both have pictures of the same prompts and seeds in one order."""
    ours, originals = frames["images"], frames["original"]
    if ours is originals or len(ours) != len(originals):
        return {}
    pairs = list(zip(ours, originals, strict=True))
    if any(list(map(_pair, a.shots or [])) != list(map(_pair, b.shots or [])) for a, b in pairs):
        return {}
    return {f"similarity/{index}": compare_task(plan, *pair) for index, pair in enumerate(pairs)}


def _pair(shot: Shot) -> tuple[str, int]:
    return shot.prompt.noise, shot.index
