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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from pyarrow import types

from overpaint.grid.source_code import is_ours
from overpaint.run.history import History
from overpaint.run.plan import Plan
from overpaint.run.store import Store, read_manifest
from overpaint.run.tasks import canonical

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
IDENTITY = ["settings", "metric", "detector", "extractor", "threshold"]


def settings_hash(settings: Mapping[str, Any]) -> str:
    """The identity of a record: the first 12 hex digits of a hash of its settings."""
    return hashlib.sha256(canonical(settings).encode()).hexdigest()[:12]


def stored_records(store: Store, plan: Plan | None = None, older: bool = False) -> pd.DataFrame:
    """The stored records of a plan's cells, or of the whole store. Column ``artefact`` holds the key of each record's artefact.

    If a record was measured several times, the measurement with the highest component versions is current, and among equal
    versions the one with the sources that were used last (`History`). ``older`` also returns the superseded ones and adds a
    column ``current``. Records from older stores, which lack the newest columns, are used until their cell is measured again.
    """
    keys = [t.key for _, t in plan.cells if store.has(STAGE, t.key)] if plan else store.keys(STAGE)
    frames, recency, history = [], {}, History(store)
    for key in sorted(set(keys)) if plan is None else dict.fromkeys(keys):
        with store.reading(STAGE, key) as folder:
            frame = _read_records(folder / "records.parquet")
            if plan is None:  # whose cells have one measurement each
                sources = read_manifest(folder).get("sources", {})
                recency[key] = history.recency({name: s for name, s in sources.items() if not is_ours(s)})
        if len(frame):
            frames.append(frame.astype(object).assign(artefact=key))
    if not frames:
        return pd.DataFrame(columns=[*RECORD_COLUMNS, "artefact", *(["current"] if older else [])])
    records = pd.concat(frames, ignore_index=True).infer_objects()
    current = _current(records, recency)
    records = _with_identity(records).assign(current=current)
    return records if older else records[current].drop(columns="current").reset_index(drop=True)


def _read_records(file: Path) -> pd.DataFrame:
    """The records in a parquet file. Raises a `ValueError` if they are not records."""
    frame = _read(file, RECORD_COLUMNS, REQUIRED)
    for name in REQUIRED:
        if name != "value" and frame[name].isna().any():
            raise ValueError(f"{file.name} has a row without {name!r}")
    if not frame["direction"].isin(["up", "down"]).all():
        raise ValueError(f"{file.name} has a direction other than up and down")
    for name in ("given", "versions"):
        for text in frame[name].dropna().unique():
            found = json.loads(text)
            if not isinstance(found, dict) or (name == "versions" and not all(type(v) is int for v in found.values())):
                raise ValueError(f"{file.name} has values in column {name!r} that are not a mapping")
    return frame


def _read(file: Path, columns: Sequence[str], required: Sequence[str]) -> pd.DataFrame:
    """These columns of a parquet file. Raises a `ValueError` if a required one is missing or a column has another type."""
    schema = pq.read_schema(file)
    missing = [name for name in required if name not in schema.names]
    if missing:
        raise ValueError(f"{file.name} has no column {missing[0]!r}")
    for name in set(columns) & set(schema.names):
        kind = schema.field(name).type
        number = types.is_integer(kind) or types.is_floating(kind)
        text = types.is_string(kind) or types.is_large_string(kind)
        if not (types.is_null(kind) or (number if name in NUMBERS else text) or _empty(file, name)):
            raise ValueError(f"{file.name} has values of type {kind} in column {name!r}")
    return pd.read_parquet(file).reindex(columns=list(columns))


def _empty(file: Path, name: str) -> bool:
    """Whether a column has no value; pandas writes such a column as numbers."""
    values = pq.read_table(file, columns=[name]).column(name)
    return values.is_null(nan_is_null=True).to_numpy().all()


def stored_outcomes(store: Store, records: pd.DataFrame) -> pd.DataFrame:
    """Outcomes of these records; column ``artefact`` holds the key of their artefact. Old measurements have no outcomes."""
    frames = [pd.DataFrame(columns=[*OUTCOME_COLUMNS, "artefact"])]
    for key in dict.fromkeys(records.get("artefact", ())):
        with store.reading(STAGE, key) as folder:
            path = folder / "outcomes.parquet"
            if path.is_file():
                frames.append(_read(path, OUTCOME_COLUMNS, "metric prompt_id seed value".split()).assign(artefact=key))
    return pd.concat(frames[1:] or frames, ignore_index=True)


def _with_identity(records: pd.DataFrame) -> pd.DataFrame:
    """The records. Older records get an identity that is derived from their labels."""
    records = records.astype({name: object for name in (*CELL, "settings", "given", "versions")})
    without = records["settings"].isna()
    labels = records.loc[without, CELL].where(records.loc[without, CELL].notna(), None)
    records.loc[without, "settings"] = [
        settings_hash(dict(zip(CELL, map(_plain, row), strict=True))) for row in labels.to_numpy()
    ]
    for name in ("method", "attack"):
        records[f"{name}_name"] = records[f"{name}_name"].astype(object).fillna(records[name])
    for name in ("given", "versions"):
        records[name] = records[name].fillna("{}")
    return records.infer_objects()


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _current(records: pd.DataFrame, recency: Mapping[str, Mapping[str, int]]) -> pd.Series:
    """Which records are current. ``recency`` holds `History.recency` of the sources behind each artefact.

    For each identity and metric set, the record with the highest component versions is current, and among these the one with the
    most recent sources, unless another set measured the same figure with newer components. Versions and sources are compared in
    the order of the components' names; records that are equal in both are equal measurements. A record without an identity is
    superseded by any newer record with the same labels and metric. A record without a detector is superseded by any record with
    one.
    """
    figures = records[[*(name for name in CELL if name != "metrics"), "metric"]].astype(object)
    named = figures.where(figures.notna(), None).apply(tuple, axis=1)
    old, unjudged = records["settings"].isna(), records["aggregation"].isna()
    superseded = (old & named.isin(set(named[~old]))) | (unjudged & named.isin(set(named[~unjudged])))
    known = _with_identity(records)
    versions = [json.loads(text) for text in known["versions"]]
    names = sorted({name for found in versions for name in found})
    components = sorted({component for found in recency.values() for component in found})
    identities = known[IDENTITY].astype(object).where(known[IDENTITY].notna(), None)
    figure_versions = known["version"].fillna(0).tolist()
    groups: dict[tuple, list[int]] = {}
    for row, identity in enumerate(identities.itertuples(index=False, name=None)):
        if not superseded.iloc[row]:
            groups.setdefault(identity, []).append(row)
    used = [[recency.get(key, {}).get(component, -1) for component in components] for key in known["artefact"]]
    sets, chosen = known["metrics"].fillna("").tolist(), set()
    for rows in groups.values():
        best: dict[str, int] = {}
        for row in rows:
            rank = [
                (*(versions[r].get(n, 0) for n in names), figure_versions[r], *used[r], r)
                for r in (row, best.get(sets[row], row))
            ]
            best[sets[row]] = max(rank)[-1]
        told = {row: versions[row] | {"": figure_versions[row]} for row in best.values()}
        chosen |= {row for row in told if not any(_newer(told[other], told[row]) for other in told)}
    return pd.Series([row in chosen for row in range(len(records))], index=records.index)


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
