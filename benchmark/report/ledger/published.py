"""Published figures, read from ``leaderboards/published`` and checked.

``papers.yaml`` lists the papers and their tables, ``<paper>.csv`` holds the figures of a paper, one a row, and ``names.yaml``
maps printed names to names of this project. Names that are not mapped are kept as printed.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from typing_extensions import TypedDict

from overpaint.errors import LONGEST, UserError, nearest, unknown
from overpaint.grid.shipped import shipped
from overpaint.grid.typed import Count, checked, construct, shown
from overpaint.grid.yaml_files import read_mapping

#: Unit of a printed figure -> the scale on which figures are compared, and the factor that leads there.
UNITS = {
    "fraction": ("fraction", 1.0),
    "percent": ("fraction", 0.01),
    "percent change": ("fraction change", 0.01),
    "100 cos": ("100 cos", 1.0),
    "cos": ("100 cos", 100.0),
    "250 cos": ("2.5 cos", 0.01),
    "seconds": ("seconds", 1.0),
    "minutes": ("seconds", 60.0),
    "hours": ("seconds", 3600.0),
    "GB": ("bytes", 1e9),
    "MiB": ("bytes", 2.0**20),
    **{
        unit: (unit, 1.0)
        for unit in (
            *("detections", "images", "distance", "dB", "ratio", "reward", "unstated"),
            *("points of 1 to 5", "points of 1 to 10", "rank of 1 to 7"),
        )
    },
}
#: How near a row is to the paper: its own text, its authors' release, or someone else's note.
Provenance = Literal["paper", "release", "secondary"]


@dataclass(frozen=True)
class Figure:
    """One printed figure, a row of a paper's CSV.

    Attributes:
        table: the table, as named in ``papers.yaml``.
        method: the eraser whose model is measured, also where the paper's table lists attacks; ``original`` is the unedited
            model.
        base: the model that was edited.
        erased: the erased concept or list of concepts.
        prompts: what the images were made for; empty for prompts of the erased concept.
        attack: empty without an attack.
        better: what is better for the eraser.
        images: the number of images (or of prompts, if each has several); ``None`` if it is not stated.
        detector: the network that judges the images; empty if it is not stated or none is needed.
        note: what limits this figure; begins with ``doubtful`` if it contradicts other figures of its paper.
    """

    table: str
    method: str
    base: str
    erased: str
    prompts: str
    attack: str
    metric: str
    value: float
    unit: str
    better: Literal["up", "down"]
    images: Count | None
    detector: str
    note: str


#: Columns of a paper's CSV, in order.
COLUMNS = tuple(f.name for f in fields(Figure))
#: What a table prints at most one figure for.
PLACE = ["paper", "table", "method", "base", "erased", "prompts", "attack", "metric", "detector"]


class Table(TypedDict, total=False):
    """Where the figures of a table were read, and what limits them."""

    provenance: Provenance
    source: str
    note: str


class Paper(TypedDict):
    """A paper in ``papers.yaml``."""

    name: str
    arxiv: str
    tables: dict[str, Table]


@dataclass(frozen=True)
class Rule:
    """A printed metric that means the same as one of ours. ``attack`` is ``any``, ``none`` or a name; ``None`` fits all."""

    printed: str
    means: str
    attack: str | None = None
    prompts: str | None = None
    unit: str | None = None
    detector: str | None = None

    def fits(self, figure: Mapping[str, Any], attack: str) -> bool:
        """Whether a printed figure with this attack (a name of the project where there is one) is meant."""
        wanted = {"any": bool(attack), "none": not attack, None: True}.get(self.attack, self.attack == attack)
        others = (getattr(self, name) in (None, figure[name]) for name in ("prompts", "unit", "detector"))
        return self.printed == figure["metric"] and wanted and all(others)


class Stated(TypedDict):
    """Settings of a printed method on a concept in one paper."""

    paper: str
    method: str
    concept: str
    settings: dict[str, Any]


class Names(TypedDict):
    """``names.yaml``."""

    methods: dict[str, str]
    settings: dict[str, dict[str, Any]]
    stated: list[Stated]
    references: list[str]
    bases: dict[str, str]
    concepts: dict[str, str]
    attacks: dict[str, str]
    detectors: dict[str, list[str]]
    prompts: dict[str, list[str]]
    replayed: dict[str, str]
    metrics: list[dict[str, str]]
    recorded: dict[str, list[str]]
    ranked: dict[str, str]


def folder() -> Path:
    """The folder of published figures, in a checkout and in an installed wheel."""
    return shipped("leaderboards") / "published"


@cache
def names(place: Path | None = None) -> Names:
    """The checked names of ``names.yaml``."""
    return checked(Names, read_mapping((place or folder()) / "names.yaml", "names.yaml"), "names.yaml")  # type: ignore[return-value]


def rules(known: Names) -> list[Rule]:
    """The rules for metrics, in order."""
    given = ({("means" if key == "is" else key): value for key, value in rule.items()} for rule in known["metrics"])
    return [construct(Rule, rule, f"names.yaml: metrics[{number}]") for number, rule in enumerate(given)]


def papers(place: Path | None = None) -> dict[str, Paper]:
    """The papers of ``papers.yaml``, by the name of their CSV."""
    read = read_mapping((place or folder()) / "papers.yaml", "papers.yaml")
    return {key: checked(Paper, _mapping(paper, key), f"papers.yaml: {key}") for key, paper in read.items()}  # type: ignore[misc]


def _mapping(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"papers.yaml: {key} takes a mapping with name, arxiv and tables, got {shown(value)}")
    return value


def figures(path: Path) -> list[Figure]:
    """The figures of one CSV. Raises a `UserError` that names the line of a wrong value."""
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UserError(f"{path.name} takes the columns {', '.join(COLUMNS)}, in this order")
        return [_figure(row, f"{path.name} line {reader.line_num}") for row in reader]
    except csv.Error as error:
        raise UserError(f"{path.name} line {reader.line_num} is not CSV: {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path.name} is not in UTF-8") from None


def _figure(row: Mapping[str | None, Any], where: str) -> Figure:
    if None in row or None in row.values():
        raise UserError(f"{where} does not have {len(COLUMNS)} cells")
    values: dict[str, Any] = {str(key): text for key, text in row.items()}
    for name, kind, said in (("value", float, "a finite number"), ("images", int, "a whole number or nothing")):
        try:
            values[name] = None if name == "images" and not row[name] else kind(row[name])
        except ValueError:
            raise UserError(f"{where}: {name} takes {said}, got {row[name]!r}") from None
    for name in ("table", "method", "base", "erased", "metric"):
        if not values[name]:
            raise UserError(f"{where}: no value for {name}")
    if values["unit"] not in UNITS:
        raise unknown("unit", values["unit"], UNITS, where)
    if not math.isfinite(values["value"]):
        raise UserError(f"{where}: value takes a finite number, got {row['value']!r}")
    if values["unit"] in ("fraction", "percent") and not 0 <= values["value"] * UNITS[values["unit"]][1] <= 1:
        raise UserError(f"{where}: {values['value']:g} is no {values['unit']} between nothing and all")
    return construct(Figure, values, where)


#: Columns of `published` that are added to those of a `Figure`.
ADDED = "paper file arxiv provenance source table_note method_name base_name concept attack_name metric_name scaled scale".split()


@cache
def published(place: Path | None = None) -> pd.DataFrame:
    """All published figures: the columns of `Figure`, and `ADDED`.

    ``method_name``, ``base_name``, ``concept``, ``attack_name`` and ``metric_name`` are names of this project where they mean the
    same, else the printed ones. ``scaled`` is the value on the common ``scale`` of its unit.

    Raises:
        UserError: for a row that does not fit, a paper or table that is not listed, or two figures in one place.
    """
    place = place or folder()
    listed, known = papers(place), names(place)
    mapped = rules(known)
    rows = []
    for path in sorted(place.glob("*.csv")):
        if path.stem not in listed:
            raise unknown("paper", path.stem, listed, "papers.yaml")
        paper = listed[path.stem]
        for figure in figures(path):
            if figure.table not in paper["tables"]:
                raise unknown("table", figure.table, paper["tables"], f"papers.yaml: {path.stem}")
            rows.append(_named(asdict(figure), path.stem, paper, known, mapped))
    found = pd.DataFrame(rows, columns=[*COLUMNS, *ADDED])
    twice = found[found.duplicated(PLACE)]
    if len(twice):
        place_ = ", ".join(str(v) for v in twice.iloc[0][PLACE] if v)
        raise UserError(f"two published figures in one place: {place_}")
    return found


def _named(figure: dict[str, Any], file: str, paper: Paper, known: Names, mapped: list[Rule]) -> dict[str, Any]:
    attack = known["attacks"].get(figure["attack"], figure["attack"])
    table = paper["tables"][figure["table"]]
    scale, factor = UNITS[figure["unit"]]
    return figure | {
        "paper": paper["name"],
        "file": file,
        "arxiv": paper["arxiv"],
        "provenance": table["provenance"],
        "source": table["source"],
        "table_note": table.get("note", ""),
        "method_name": known["methods"].get(figure["method"], figure["method"]),
        "base_name": known["bases"].get(figure["base"], figure["base"]),
        "concept": known["concepts"].get(figure["erased"], figure["erased"]),
        "attack_name": attack,
        "metric_name": next((rule.means for rule in mapped if rule.fits(figure, attack)), figure["metric"]),
        "scaled": round(figure["value"] * factor, 10),
        "scale": scale,
    }


#: Keys of `chosen` -> columns that they look in. A name of the project and a printed name both count.
FILTERS = {
    "method": ("method_name", "method"),
    "metric": ("metric_name", "metric"),
    "paper": ("paper", "file", "arxiv"),
    "concept": ("concept", "erased"),
    "model": ("base_name", "base"),
    "attack": ("attack_name", "attack"),
    "prompts": ("prompts",),
    "provenance": ("provenance",),
}


def named(found: pd.DataFrame) -> pd.DataFrame:
    """Every name that a filter takes: the filter, the name, the printed names that it stands for, and its figures and papers."""
    rows = []
    for key, (column, *printed) in FILTERS.items():
        for name, part in found[found[column] != ""].groupby(column):
            others = sorted({text for other in printed for text in part[other]} - {str(name)})
            rows.append((key, str(name), ", ".join(others), len(part), part["paper"].nunique()))
    return pd.DataFrame(rows, columns=["filter", "name", "printed as", "figures", "papers"])


def _unknown_name(key: str, given: str, allowed: Iterable[str]) -> UserError:
    hint = nearest(given, sorted(allowed))
    return UserError(f"unknown {key} {given[:LONGEST]!r} in the ledger{hint} (overpaint ledger --show names lists all)")


def chosen(found: pd.DataFrame, filters: Mapping[str, str]) -> pd.DataFrame:
    """The figures that fit all filters. A filter takes a name, or several with commas.

    A name of the project selects every printed name that means the same; a printed name selects only itself. Names in
    another case are found too. ``attack=none`` selects figures without an attack.

    Raises:
        UserError: for an unknown filter or name, or if no figure fits all filters.
    """
    kept = found
    for key, given in filters.items():
        if key not in FILTERS:
            raise unknown("filter", key, [*FILTERS, "store"], "the ledger")
        columns = list(FILTERS[key])
        allowed = {name for column in columns for name in found[column] if name} | (
            {"none"} if key == "attack" else set()
        )
        whole = given.casefold() in {name.casefold() for name in allowed}
        wanted: set[str] = set()
        for name in [given] if whole else given.split(","):
            alike = {a for a in allowed if a == name} or {a for a in allowed if a.casefold() == name.strip().casefold()}
            if not alike:
                raise _unknown_name(key, name, allowed)
            wanted |= {"" if key == "attack" and a == "none" else a for a in alike}
        kept = kept[kept[columns].isin(wanted).any(axis=1)]
    if kept.empty:
        said = " ".join(f"{key}={value}" for key, value in filters.items())
        raise UserError(f"no published figure fits {said}: leave out a filter")
    return kept
