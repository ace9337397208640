"""Records: one row per figure, read from the store. Tables, views and trackers use them.

A record is identified by ``settings`` (a hash of everything that affects it) with its metric, detector and threshold.
``model``, ``concepts``, ``method``, ``attack``, ``protocol``, ``budget`` and ``metrics`` are labels for people; no code parses
them. ``method_name`` and ``attack_name`` are names of components. ``given`` lists the values that were set by hand. The measure
stage also writes ``outcomes.parquet`` with the observations behind each figure (`OUTCOME_COLUMNS`), which are used to compare
methods with each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from overpaint.grid.concept_sets import erased_by, listed
from overpaint.grid.digests import canonical
from overpaint.grid.directions import BETTER
from overpaint.grid.labels import label
from overpaint.grid.source_code import is_ours
from overpaint.grid.typed import bare
from overpaint.report.gathered import ARTEFACT, Kind, as_frame, gathered
from overpaint.run.history import History
from overpaint.run.plan import Plan
from overpaint.run.store import MANIFEST, Listing, Store

Record = Mapping[Hashable, Any]
#: Columns of a record, in order. One row is one figure.
RECORD_COLUMNS = (
    "model concepts kind method attack scope protocol budget metrics seed facet metric direction unit value low high n "
    "failed original control difference difference_low difference_high against p_value p_equivalence seconds why "
    "detector extractor threshold aggregation version paper settings given method_name attack_name versions"
).split()
#: Columns of a figure's outcomes: one row per image and question about it.
#: ``value`` is 1, 0 or NaN (failed), or a real number. ``other`` is the value of the unedited model or the control. Outcomes in
#: one ``cluster`` are dependent; the means of the strata (``stratum``) have equal weight ("" if there is only one).
OUTCOME_COLUMNS = "metric prompt_id seed label cluster stratum value other".split()
#: Columns of numbers; all others hold text.
NUMBERS = (
    "seed value low high n failed original control difference difference_low difference_high p_value p_equivalence seconds "
    "threshold version other"
).split()
#: Columns that records of every version have.
REQUIRED = "model concepts kind method attack budget seed facet metric direction unit value n".split()
#: The stage that writes records, on every track.
STAGE = "measure"
#: Labels of a cell.
CELL = ["model", "concepts", "kind", "method", "attack", "protocol", "budget", "metrics", "seed"]
#: Columns that identify a record.
IDENTITY = ["settings", "metric", "detector", "threshold"]
#: Labels under which equal records are shown once each. Where records of two seeds are equal, nothing depends on the seed.
SHOWN = [name for name in CELL if name != "seed"]


def settings_hash(settings: str) -> str:
    """The identity of a record: the first 12 hex digits of a hash of its settings, given as canonical JSON."""
    return hashlib.sha256(settings.encode()).hexdigest()[:12]


def stored_records(store: Store, plan: Plan | None = None, older: bool = False) -> pd.DataFrame:
    """The stored records of a plan's cells, or of the whole store. Column ``artefact`` holds the key of each record's artefact.

    If a record was measured several times, the measurement with the highest component versions is current, and among equal
    versions the one with the sources that were used last (`History`). ``older`` also returns the superseded ones and adds a
    column ``current``. Records from older stores, which lack the newest columns, are used until their cell is measured again.
    """
    listing = store.listed(STAGE)
    if plan:
        keys = dict.fromkeys(task.key for _, task in plan.cells if task.key in listing.keys)
    else:
        keys = dict.fromkeys(sorted(listing.keys))
        for key in sorted(listing.damaged):
            if (store.path(STAGE, key) / MANIFEST).is_file():
                store.read(STAGE, key)  # raises what is wrong
    found = gathered(listing, RECORDS, keys, RECORD_COLUMNS)
    if not found.num_rows:
        return pd.DataFrame(columns=[*RECORD_COLUMNS, ARTEFACT, *(["current"] if older else [])])
    place = {key: number for number, key in enumerate(keys)}
    records = as_frame(found)
    order = records[ARTEFACT].map(place).argsort(kind="stable")
    records = records.take(order.to_numpy()).reset_index(drop=True)
    records = with_current(records, {} if plan else _recency(listing))  # a plan's cells have one measurement each
    return records if older else records[records.pop("current")].reset_index(drop=True)


def _recency(listing: Listing) -> dict[str, dict[str, int]]:
    """`History.recency` of the sources from outside this package behind each artefact."""
    history, sources = History(listing.store), listing.column("sources")
    found = {
        text: history.recency(
            {component: source for component, source in json.loads(text).items() if not is_ours(source)}
        )
        for text in set(sources.values())
    }
    return {key: found[text] for key, text in sources.items()}


def checked_records(rows: pa.Table, file: str = "records.parquet") -> pa.Table:
    """The rows of this file as records. Raises a `ValueError` if they are none."""
    table = _checked(rows, file, RECORD_COLUMNS, REQUIRED)
    for name in REQUIRED:
        if name != "value" and pc.any(table.column(name).is_null(nan_is_null=True)).as_py():
            raise ValueError(f"{file} has a row without {name!r}")
    if not set(table.column("direction").unique().to_pylist()) <= set(BETTER):
        raise ValueError(f"{file} has a direction other than {', '.join(BETTER)}")
    for name in ("given", "versions"):
        check_mappings(table.column(name).drop_null().unique().to_pylist(), name, file)
    return table


def _checked_outcomes(rows: pa.Table) -> pa.Table:
    return _checked(rows, "outcomes.parquet", OUTCOME_COLUMNS, "metric prompt_id seed value".split())


def _checked(rows: pa.Table, file: str, columns: Sequence[str], required: Sequence[str]) -> pa.Table:
    """These columns of the rows. Raises a `ValueError` if a required one is missing or a column has another type."""
    missing = [name for name in required if name not in rows.column_names]
    if missing:
        raise ValueError(f"{file} has no column {missing[0]!r}")
    found = {}
    for name in columns:
        number = name in NUMBERS
        empty = pa.float64() if number else pa.string()
        column = rows.column(name) if name in rows.column_names else pa.nulls(rows.num_rows)
        kind = column.type
        if number and (types.is_integer(kind) or types.is_floating(kind)):
            found[name] = column
        elif not number and (types.is_string(kind) or types.is_large_string(kind)):
            found[name] = column.cast(pa.string())
        elif pc.all(column.is_null(nan_is_null=True), min_count=0).as_py():  # pandas writes it as numbers
            found[name] = pa.nulls(rows.num_rows, empty)
        else:
            raise ValueError(f"{file} has values of type {kind} in column {name!r}")
    return pa.table(found)


RECORDS = Kind("records.parquet", RECORD_COLUMNS, checked_records)
OUTCOMES = Kind("outcomes.parquet", OUTCOME_COLUMNS, _checked_outcomes, optional=True)


def unreadable(store: Store, key: str) -> str | None:
    """What is wrong with the files of figures in the artefact of this key, for `Store.verify`; ``None`` if nothing is."""
    folder = store.path(STAGE, key)
    for kind in (RECORDS, OUTCOMES):
        if not (folder / kind.file).is_file():
            continue
        try:
            kind.check(pq.ParquetFile(folder / kind.file).read(use_threads=False).replace_schema_metadata())
        except (ValueError, OSError, NotImplementedError) as error:
            return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return None


def stored_outcomes(store: Store, records: pd.DataFrame) -> pa.Table:
    """Outcomes of these records; column ``artefact`` holds the key of their artefact.

    Text is dictionary-encoded: a table of millions of rows takes some fifty bytes a row. Old measurements have no outcomes.
    """
    keys = set(records[ARTEFACT]) if ARTEFACT in records else set()
    return gathered(store.listed(STAGE), OUTCOMES, keys, OUTCOME_COLUMNS, ("metric", set(records["metric"])))


def with_identity(records: pd.DataFrame) -> pd.DataFrame:
    """The records. Older records get an identity that is derived from their labels, and a bound has no upper limit."""
    records = records.astype({name: object for name in (*CELL, "settings", "given", "versions")})
    without = records["settings"].isna()
    records.loc[without, "settings"] = [
        settings_hash(canonical(dict(zip(CELL, map(plain, row), strict=True))))
        for row in records.loc[without, CELL].to_numpy()
    ]
    for name in ("method", "attack"):
        records[f"{name}_name"] = records[f"{name}_name"].astype(object).fillna(records[name])
    for name in ("given", "versions"):
        records[name] = records[name].fillna("{}")
    return _with_open_bounds(records.infer_objects())


def _with_open_bounds(records: pd.DataFrame) -> pd.DataFrame:
    """The records without upper limits of values that are only lower bounds (`overpaint.metrics.metric.Figure`).

    Older records have the largest value that was measured there.
    """
    bound = records["value"].notna() & records["why"].fillna("").astype(bool)
    limits = [name for name in ("high", "difference_high") if records.loc[bound, name].notna().any()]
    return records.assign(**{name: records[name].mask(bound) for name in limits})


def plain(value: Any) -> Any:
    """A value as JSON has it: missing ones are null, whole numbers have no decimal point."""
    value = value.item() if hasattr(value, "item") else value
    if value is None or value != value:
        return None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def json_rows(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """The rows of a table as JSON has them, with every digit. `DataFrame.to_json` rounds to ten decimals: p = 1e-12 becomes 0."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def number_of(value: Any) -> float | None:
    """A number of a record; ``None`` if it is missing."""
    return None if pd.isna(value) else float(value)


def check_mappings(texts: Iterable[object], column: str, file: str) -> None:
    """Raise a `ValueError` unless all texts of column ``given`` or ``versions`` are JSON mappings, the latter of integers."""
    for text in texts:
        try:
            found = json.loads(str(text))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or (column == "versions" and not all(type(v) is int for v in found.values())):
            kind = " of whole numbers" if column == "versions" else ""
            raise ValueError(f"{file} has {bare(str(text))} in column {column!r}, which takes a JSON mapping{kind}")


def with_current(records: pd.DataFrame, recency: Mapping[str, Mapping[str, int]]) -> pd.DataFrame:
    """The records with their identity (`with_identity`), and column ``current``: whether a record is current.

    ``recency`` holds `History.recency` of the sources behind each artefact.

    For each identity and labels (`SHOWN`), the record with the highest component versions is current, and among these the one
    with the most recent sources, unless the same figure has newer components under other labels: another metric set, or a value
    set by hand that equals the default. Versions and sources are compared in the order of the components' names; records that are
    equal in both are equal measurements. A record without an identity is superseded by any newer record with the same labels and
    metric. A record without a detector is superseded by any record with one; a missing component has version 0.
    """
    figures = records[[*(name for name in CELL if name != "metrics"), "metric"]].astype(object)
    named = pd.Series(list(figures.where(figures.notna(), None).itertuples(index=False, name=None)), records.index)
    old, unjudged = records["settings"].isna(), records["aggregation"].isna()
    superseded = (old & named.isin(set(named[~old]))) | (unjudged & named.isin(set(named[~unjudged])))
    known = with_identity(records)
    by_component = component_versions(known["versions"])
    versions = [by_component[text] for text in known["versions"]]
    names = sorted({name for found in versions for name in found})
    components = sorted({component for found in recency.values() for component in found})
    identities = known[IDENTITY].astype(object).where(known[IDENTITY].notna(), None)
    figure_versions = known["version"].fillna(0).tolist()
    groups: dict[tuple, list[int]] = {}
    for row, (identity, past) in enumerate(zip(identities.itertuples(index=False, name=None), superseded, strict=True)):
        if not past:
            groups.setdefault(identity, []).append(row)
    used = [[recency.get(key, {}).get(component, -1) for component in components] for key in known["artefact"]]
    shown = known[SHOWN].astype(object).where(known[SHOWN].notna(), None)
    labels, chosen = list(shown.itertuples(index=False, name=None)), set()
    for rows in groups.values():
        best: dict[tuple, int] = {}
        for row in rows:
            rank = [
                (*(versions[r].get(n, 0) for n in names), figure_versions[r], *used[r], r)
                for r in (row, best.get(labels[row], row))
            ]
            best[labels[row]] = max(rank)[-1]
        told = {row: versions[row] | {"": figure_versions[row]} for row in best.values()}
        chosen |= {row for row in told if not any(_newer(told[other], told[row]) for other in told)}
    return known.assign(current=[row in chosen for row in range(len(records))])


def component_versions(texts: Iterable[str]) -> dict[str, dict[str, int]]:
    """The versions in texts of column ``versions``, by component, for each text.

    A component is named by its kind, too, where another one of its cell has its name: ``detector=clip_b32``. In texts that name
    it ``clip_b32`` only, the version counts for each of these kinds.
    """
    found = {text: json.loads(text) for text in set(texts)}
    kinds: dict[str, set[str]] = {}
    for name in {name for versions in found.values() for name in versions}:
        kinds.setdefault(name.rpartition("=")[2], set()).add(name)
    named = {plain: names - {plain} or {plain} for plain, names in kinds.items()}
    return {
        text: {full: version for name, version in versions.items() for full in named.get(name, {name})}
        for text, versions in found.items()
    }


def _newer(these: Mapping[str, int], those: Mapping[str, int]) -> bool:
    """Whether these versions are at least as high as those of the same components, and one is higher."""
    pairs = [(version, those[name]) for name, version in these.items() if name in those]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def given_by_hand(records: pd.DataFrame, sections: Iterable[str], without: Iterable[str] = ()) -> pd.Series:
    """Values set by hand in the given sections of the configuration, as text: ``concepts.anchor=house``, or empty."""

    def said(given: str) -> str:
        chosen = {k: v for k, v in json.loads(given).items() if k.split(".")[0] in sections and k not in without}
        return ", ".join(f"{key}={value}" for key, value in sorted(chosen.items()))

    return records["given"].fillna("{}").map(said) if "given" in records else pd.Series("", index=records.index)


def given_of(record: Record) -> dict[str, Any]:
    """The values of a record that were set by hand, by full key; a value of its method is ``method.lamb``."""
    given = record.get("given")
    return json.loads(given) if isinstance(given, str) else {}


def erased_of(record: Record) -> tuple[str, ...]:
    """The concepts that a record's cell erases: set by hand, or those of its known concept set; empty for another set."""
    given = given_of(record).get("concepts.erase")
    return erased_by(plain_name(record, "concepts")) if given is None else tuple(map(str, listed(given)))


def given_in(record: Record, section: str) -> dict[str, Any]:
    """The values of a record that were set by hand in a section of the configuration, without its name: ``lamb``."""
    return {key.partition(".")[2]: value for key, value in given_of(record).items() if key.startswith(f"{section}.")}


def label_without(record: Record, axis: str, key: str) -> str:
    """The record's label on an axis without one value that was set by hand, which is built again as `Cell.labels` does."""
    shown = {k: value for k, value in given_in(record, axis).items() if k == key}
    return str(record[axis]).replace(label("", shown), "", 1) if shown else str(record[axis])


def plain_name(record: Record, axis: str) -> str:
    """The record's label on an axis without the values that were set by hand, which are built again as `Cell.labels` does."""
    shown = {key: value for key, value in given_in(record, axis).items() if key != "name"}
    for values in (shown, {key: value for key, value in shown.items() if key != "erase"}):
        suffix = label("", values)
        if suffix and str(record[axis]).endswith(suffix):
            return str(record[axis]).removesuffix(suffix)
    return str(record[axis])
