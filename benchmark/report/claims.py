"""Claims: result files in git. One JSON file per method of an experiment, read like a store.

A file holds what `overpaint.report.records` holds, without images and prompts: a list of runs (command, library versions, hashes
of models and assets), the records, and the outcomes behind them where they are stored. Columns with one value in the whole file
are in ``same``, what describes a metric is in ``metrics``, and the rest is in ``columns`` and ``records``, one record per line.
``units`` are the observed prompts and seeds, by hashes, and an outcome is ``[record, units, values, other values]``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from sys import float_info
from types import NoneType
from typing import Any, TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import ArrayLike

from overpaint.errors import UserError, unknown
from overpaint.grid.labels import counted
from overpaint.grid.typed import bare, checked, shown
from overpaint.report.families import marked
from overpaint.report.records import (
    CELL,
    IDENTITY,
    NUMBERS,
    RECORD_COLUMNS,
    SHOWN,
    checked_records,
    plain,
    with_current,
)
from overpaint.report.statistics import VERSION
from overpaint.report.views import view_named
from overpaint.run.track import facets

#: Version of the file's layout.
FORMAT = 1
#: Columns of a claim's records: those of a record, the version of the statistics, and the corrected tests of view ``facets``.
COLUMNS = [*RECORD_COLUMNS, "statistics", "p_adjusted", "family", "mark"]
NUMERIC = {*NUMBERS, "statistics", "p_adjusted"}
#: Columns that describe a metric. They are in ``metrics`` if they have one value per metric.
DESCRIBED = ["facet", "direction", "unit", "aggregation", "version", "paper"]
UNIT_COLUMNS = ["prompt_id", "seed", "label", "cluster", "stratum"]
#: The least and the largest number of a record's column, and of a share's (unit ``fraction``).
RANGES = {name: (0, np.inf) for name in ("n", "failed")} | {
    name: (0, 1) for name in ("p_value", "p_equivalence", "p_adjusted")
}
OF_SHARES = {name: (0, 1) for name in ("value", "low", "high", "original", "control")} | {
    name: (-1, 1) for name in ("difference", "difference_low", "difference_high")
}
#: How far rounding takes a number out of its range.
ROUNDING = 1e-9
#: The hash of a model, unlike its label.
HASH = re.compile("[0-9a-f]{16}")

#: A value of a record.
Value = str | int | float | None


class File(TypedDict):
    """A result file as JSON."""

    format: int
    runs: list[dict[str, Any]]
    waived: dict[str, str]
    same: dict[str, Value]
    metrics: dict[str, dict[str, Value]]
    columns: list[str]
    records: list[Any]
    units: list[list[Any]]
    outcomes: list[list[Any]]


@dataclass(frozen=True)
class Claim:
    """The records of one method in one experiment.

    Attributes:
        runs: how the records were made: ``command``, ``libraries``, ``models`` and ``assets`` (name -> hash).
        records: columns `COLUMNS`.
        outcomes: columns `overpaint.report.records.OUTCOME_COLUMNS` and ``artefact``, the row of the record.
        waived: rules of `overpaint.report.eligibility` that the file cannot meet -> the reason.
    """

    runs: Sequence[Mapping[str, Any]]
    records: pd.DataFrame
    outcomes: pd.DataFrame = field(default_factory=pd.DataFrame)
    waived: Mapping[str, str] = field(default_factory=dict)


def claims_of(
    records: pd.DataFrame,
    outcomes: pd.DataFrame | pa.Table,
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    waived: Mapping[str, str] | None = None,
) -> dict[str, Claim]:
    """Claims by method, from records, their outcomes (`overpaint.report.records.stored_outcomes`) and each method's ``runs``."""
    outcomes = outcomes.to_pandas() if isinstance(outcomes, pa.Table) else outcomes
    records = records.assign(statistics=VERSION) if "statistics" not in records else records
    if "mark" not in records:
        records = marked(records, view_named("facets").primary)
    found = {}
    for method, part in records.groupby("method_name", sort=True):
        rows = {key: row for row, key in enumerate(zip(part.get("artefact", part.index), part["metric"], strict=True))}
        own = pd.DataFrame()
        if len(outcomes):
            places = [rows.get(key, -1) for key in zip(outcomes["artefact"], outcomes["metric"], strict=True)]
            own = outcomes.assign(artefact=places)
            own = own[own["artefact"] >= 0].assign(cluster=own["cluster"].map(_hashed))
        part = part.reindex(columns=COLUMNS).reset_index(drop=True)
        found[str(method)] = Claim(runs[str(method)], part, own.reset_index(drop=True), waived or {})
    return found


def _hashed(text: object) -> str:
    """A short hash of a prompt, so that no prompt is in a file."""
    return hashlib.sha256(str(text).encode()).hexdigest()[:10]


def _cells_of(claim: Claim) -> list[tuple[str, ...]]:
    """The labels and settings of each record's cell."""
    cells = claim.records[[*CELL, "settings"]].astype(object).fillna("").astype(str)
    return list(cells.itertuples(index=False, name=None))


def merged(old: Claim, new: Claim) -> Claim:
    """The new claim with the records of the old one whose cells it does not measure again, and the marks of both together."""
    again = set(_cells_of(new))
    again |= {(*labels, "") for *labels, _ in again}  # records from before settings were recorded
    kept = [row for row, cell in enumerate(_cells_of(old)) if cell not in again]
    if not kept:
        return new
    places = {row: place for place, row in enumerate(kept)}
    before = old.outcomes
    if len(before):
        before = before[before["artefact"].isin(kept)]
        before = before.assign(artefact=before["artefact"].map(places))
    after = new.outcomes.assign(artefact=new.outcomes["artefact"] + len(kept)) if len(new.outcomes) else new.outcomes
    frames = [frame for frame in (before, after) if len(frame)]
    runs = [*old.runs, *(run for run in new.runs if run not in old.runs)]
    records = pd.concat([old.records.iloc[kept].astype(object), new.records.astype(object)], ignore_index=True)
    records = marked(records.drop(columns=["p_adjusted", "family", "mark"]), view_named("facets").primary)
    outcomes = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return Claim(runs, records[COLUMNS], outcomes, {**old.waived, **new.waived})


def file_name(method: str) -> str:
    """The name of a method's file."""
    return re.sub(r"[^\w.+=-]", "_", method) + ".json"


def text_of(claim: Claim) -> str:
    """A claim as text. Equal claims give equal bytes."""
    rows = [[plain(value) for value in row] for row in claim.records[COLUMNS].astype(object).to_numpy().tolist()]
    columns = list(zip(*rows, strict=True))
    same = {name: values[0] for name, values in zip(COLUMNS, columns, strict=True) if len(set(values)) == 1}
    described = [name for name in DESCRIBED if claim.records.groupby("metric")[name].nunique(dropna=False).max() == 1]
    metrics = {
        row[COLUMNS.index("metric")]: {name: row[COLUMNS.index(name)] for name in described if name not in same}
        for row in rows
    }
    varying = [place for place, name in enumerate(COLUMNS) if name not in {*same, *described}]
    units: dict[tuple, int] = {}
    outcomes = []
    if len(claim.outcomes):
        for row, part in claim.outcomes.groupby("artefact", sort=True):
            keys = [tuple(map(plain, key)) for key in part[UNIT_COLUMNS].astype(object).to_numpy().tolist()]
            places = [units.setdefault(key, len(units)) for key in keys]
            outcomes.append([row, places, *([plain(v) for v in part[name]] for name in ("value", "other"))])
    parts = [
        f'"format": {FORMAT}',
        f'"runs": {_lines(claim.runs)}',
        f'"waived": {_json(dict(claim.waived))}',
        f'"same": {_json(same)}',
        f'"metrics": {_entries(metrics)}',
        f'"columns": {_json([COLUMNS[place] for place in varying])}',
        f'"records": {_lines([[row[place] for place in varying] for row in rows])}',
        f'"units": {_lines(list(units))}',
        f'"outcomes": {_lines(outcomes)}',
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _entries(values: Mapping[str, Any]) -> str:
    """A JSON object with one entry per line."""
    return "{\n" + ",\n".join(f"{_json(name)}: {_json(value)}" for name, value in sorted(values.items())) + "\n}"


def _lines(values: Iterable[Any]) -> str:
    """A JSON list with one element per line."""
    found = [_json(value) for value in values]
    return "[\n" + ",\n".join(found) + "\n]" if found else "[]"


def read_claim(path: Path) -> Claim:
    """The claim in a file. Raises a `UserError` if it is not one, or has a record that no measurement gives."""
    no_claim = f"{path} is not a result file of overpaint publish"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise UserError(f"{no_claim}: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{no_claim}: {error}") from None
    keys = found if isinstance(found, dict) else {}
    if keys.get("format", FORMAT) != FORMAT:
        raise UserError(f"{no_claim}: its format is {shown(keys['format'])}, allowed is {FORMAT}")
    lacking = [name for name in File.__annotations__ if name not in keys]
    if lacking:
        raise UserError(f'{no_claim}: it has no "{lacking[0]}"')
    found = checked(File, found, f"result file {path}")
    try:
        records = _records(found, str(path))
        checked_records(pa.Table.from_pandas(records, preserve_index=False), path.name)
        records = records.reindex(columns=COLUMNS)
        _refuse_impossible(records, str(path), "intervals" in found["waived"])
        outcomes = _outcomes(found["units"], found["outcomes"], records)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{no_claim}: {error}") from None
    return Claim(found["runs"], records, outcomes, found["waived"])


def _typed(records: pd.DataFrame) -> pd.DataFrame:
    numbers = {name: pd.to_numeric(records[name]) for name in records if name in NUMERIC}
    return records.assign(**{name: n.astype(float) if n.dtype == object else n for name, n in numbers.items()})


def _records(found: Mapping[str, Any], where: str) -> pd.DataFrame:
    """The records of a file with numbers and texts where they belong."""
    columns, rows, metrics = found["columns"], found["records"], found["metrics"]
    described = list(dict.fromkeys(name for values in metrics.values() for name in values))
    names = [*columns, *found["same"], *described]
    for name in names:
        if name not in COLUMNS:
            raise unknown("column", name, COLUMNS, where)
        if names.count(name) > 1:
            raise UserError(f"{where} has column {name!r} twice")
    if not rows or "metric" not in (*columns, *found["same"]):
        raise UserError(f"{where} has no records" if not rows else f"{where} has no column 'metric'")
    for number, row in enumerate(rows, 1):
        if type(row) is not list or len(row) != len(columns):
            given = counted(len(row), "field") if type(row) is list else shown(row)
            raise UserError(f"{where}: record {number} is {given}, allowed is a list of {len(columns)} fields")
    table: dict[str, Sequence[Value]] = dict(zip(columns, zip(*rows, strict=True), strict=True))
    table |= {name: [value] * len(rows) for name, value in found["same"].items()}
    for number, metric in enumerate(table["metric"], 1):
        if not isinstance(metric, str) or metric not in metrics:
            raise UserError(f'{where}: record {number} has metric {shown(metric)}, which "metrics" does not describe')
    table |= {name: [metrics[metric].get(name) for metric in table["metric"]] for name in described}
    records = pd.DataFrame(table, dtype=object)
    for name, values in table.items():
        kinds, allowed = ({int, float}, "a finite number") if name in NUMERIC else ({str}, "a text")
        if not {*map(type, values)} <= {*kinds, NoneType}:
            _refuse(records, [type(value) not in (*kinds, NoneType) for value in values], name, allowed, where)
        if name in NUMERIC:
            _refuse(records, [not _finite(value) for value in values], name, allowed, where)
    return _typed(records)


def _finite(number: Any) -> bool:
    """Whether a number is one of double precision, or missing."""
    return number is None or abs(number) <= float_info.max


def _refuse(records: pd.DataFrame, wrong: ArrayLike, name: str, allowed: str, where: str) -> None:
    """Raise a `UserError` about the first of the ``wrong`` records, whose column ``name`` is not what is ``allowed``."""
    if np.any(wrong):
        row = int(np.argmax(wrong))
        value = records[name].iloc[row]
        said = bare(json.dumps(value.item() if isinstance(value, np.generic) else value))
        raise UserError(f"{_place(records, row, where)}: {name} is {said}, allowed is {allowed}")


def _place(records: pd.DataFrame, row: int, where: str) -> str:
    """A record as error messages name it: its file, its number, its concepts and its metric."""
    record = records.reindex(columns=["concepts", "metric"]).iloc[row]
    return f"{where}: record {row + 1} ({', '.join(bare(str(value)) for value in record)})"


def _refuse_impossible(records: pd.DataFrame, where: str, any_interval: bool) -> None:
    """Raise a `UserError` about the first record that no measurement gives.

    With ``any_interval``, shares may be outside of their intervals.
    """
    strange = ~records["facet"].isin(facets())
    if strange.any():
        row = int(np.argmax(strange))
        raise unknown("facet", records["facet"].iloc[row], facets(), _place(records, row, where))
    numbers = {name: records[name].to_numpy(float) for name in NUMERIC.intersection(records)}
    share = (records["unit"] == "fraction").to_numpy(bool)
    for ranges, chosen, what in ((RANGES, np.ones_like(share), ""), (OF_SHARES, share, " (a share)")):
        for name, (least, most) in ranges.items():
            outside = (numbers[name] < least - ROUNDING) | (numbers[name] > most + ROUNDING)
            allowed = f"{least} or more" if most == np.inf else f"{least} to {most}"
            _refuse(records, chosen & outside, name, allowed + what, where)
    value, low, high = (numbers[name] for name in ("value", "low", "high"))
    _refuse(records, low > high + ROUNDING, "low", "a number up to high", where)
    crossed = numbers["difference_low"] > numbers["difference_high"] + ROUNDING
    _refuse(records, crossed, "difference_low", "a number up to difference_high", where)
    if not any_interval:
        outside = share & (numbers["n"] > 1) & ((value < low - ROUNDING) | (value > high + ROUNDING))
        _refuse(records, outside, "value", "a number from low to high", where)
    again = records.duplicated([*CELL, *IDENTITY]).to_numpy()
    if again.any():
        raise UserError(
            f"{_place(records, int(np.argmax(again)), where)} has the labels, settings and detector of an earlier record"
        )


def _outcomes(units: Sequence, outcomes: Sequence, records: pd.DataFrame) -> pd.DataFrame:
    """One row per outcome: its unit, its values, and the metric and number of its record. Raises a `ValueError`."""
    if not outcomes:
        return pd.DataFrame()
    if {*map(len, units)} - {len(UNIT_COLUMNS)} or {*map(type, chain(*units))} - {str, int, float, NoneType}:
        raise ValueError(f"units takes lists of {len(UNIT_COLUMNS)} values ({', '.join(UNIT_COLUMNS)})")
    if {*map(len, outcomes)} != {4} or any(type(part) is not list for of in outcomes for part in of[1:]):
        raise ValueError("outcomes takes lists of a record, units, values and other values")
    rows, places, values, others = zip(*outcomes, strict=True)
    if not all(len(a) == len(b) == len(c) for a, b, c in zip(places, values, others, strict=True)):
        raise ValueError("outcomes has a record with more or fewer values than units")
    for what, given, count in (("record", rows, len(records)), ("unit", list(chain(*places)), len(units))):
        strange = {*map(type, given)} != {int} or min(given) < 0 or max(given) >= count
        if strange:
            wrong = next(number for number in given if type(number) is not int or not 0 <= number < count)
            raise ValueError(f"outcomes names {what} {shown(wrong)}, allowed are 0 to {count - 1}")
    if len({*rows}) < len(rows):
        raise ValueError("outcomes names a record twice")
    numbers = [*chain(*values), *chain(*others)]
    if {*map(type, numbers)} - {int, float, NoneType} or not all(map(_finite, numbers)):
        raise ValueError("outcomes has a value that is neither a finite number nor null")
    of_record = np.repeat(rows, list(map(len, places)))
    found = pd.DataFrame(units, columns=UNIT_COLUMNS).take(np.fromiter(chain(*places), int)).reset_index(drop=True)
    value, other = (pd.array(list(chain(*numbers)), dtype=float) for numbers in (values, others))
    metric = records["metric"].to_numpy()[of_record]
    return found.assign(value=value, other=other, metric=metric, artefact=of_record)


def claim_files(folder: Path) -> list[Path]:
    """The result files below a folder, in the order of their names, or the one that the path names.

    Raises a `UserError` if there is none.
    """
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    if (folder / "artefacts").is_dir():
        raise UserError(f"{folder} is a store, not a folder of result files: give store={folder}")
    found = sorted(folder.rglob("*.json"))
    if not found:
        raise UserError(f"{folder} holds no result files (*.json): overpaint publish writes them")
    return found


def published(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The records and outcomes of all result files below a folder, like those of a store.

    Of several records with the same settings, metric, detector, threshold and labels, the one with the newest components is kept
    (`overpaint.report.records.with_current`); among equal ones the one with the newest statistics.
    """
    frames, outcomes = [], []
    for number, path in enumerate(claim_files(folder)):
        claim = read_claim(path)
        names = [f"{number}/{row}" for row in range(len(claim.records))]
        frames.append(claim.records.astype(object).assign(artefact=names))
        if len(claim.outcomes):
            outcomes.append(claim.outcomes.assign(artefact=[names[row] for row in claim.outcomes["artefact"]]))
    records = _typed(pd.concat(frames, ignore_index=True)).sort_values("statistics", kind="stable")
    records = with_current(records, {})
    records = records[records.pop("current")]
    labels = [name for name in SHOWN if name != "metrics"]
    newest = ~records[[*IDENTITY, *labels]].astype(object).duplicated(keep="last")
    records = records[newest].sort_index().drop(columns=["p_adjusted", "family", "mark"]).reset_index(drop=True)
    found = pd.concat(outcomes, ignore_index=True) if outcomes else pd.DataFrame()
    return records, found


def hashes(configs: Iterable[Mapping[str, Any]]) -> tuple[list[str], dict[str, str]]:
    """The hashes of models and of asset files in the configurations of tasks."""
    models: dict[str, None] = {}
    assets: dict[str, str] = {}

    def look(value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if key == "model" and isinstance(inner, str) and HASH.fullmatch(inner):  # else the label of a cell
                    models[inner] = None
                if key == "assets" and isinstance(inner, Mapping):
                    assets.update({str(name): str(digest) for name, digest in inner.items()})
                look(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                look(inner)

    for config in configs:
        look(config)
    return sorted(models), dict(sorted(assets.items()))
