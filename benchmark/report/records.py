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
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from overpaint.run.plan import Plan
from overpaint.run.store import Store
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

    If a record was measured several times, the measurement with the highest component versions is current. ``older`` also
    returns the superseded ones and adds a column ``current``. Records from older stores, which lack the newest columns, are
    used until their cell is measured again.
    """
    keys = [t.key for _, t in plan.cells if store.has(STAGE, t.key)] if plan else store.keys(STAGE)
    frames = []
    for key in sorted(set(keys)) if plan is None else dict.fromkeys(keys):
        with store.reading(STAGE, key) as folder:
            frame = pd.read_parquet(folder / "records.parquet")
        if len(frame):
            frames.append(frame.reindex(columns=RECORD_COLUMNS).astype(object).assign(artefact=key))
    if not frames:
        return pd.DataFrame(columns=[*RECORD_COLUMNS, "artefact", *(["current"] if older else [])])
    records = pd.concat(frames, ignore_index=True).infer_objects()
    current = _current(records)
    records = _with_identity(records).assign(current=current)
    return records if older else records[current].drop(columns="current").reset_index(drop=True)


def stored_outcomes(store: Store, records: pd.DataFrame) -> pd.DataFrame:
    """Outcomes of these records; column ``artefact`` holds the key of their artefact. Old measurements have no outcomes."""
    frames = [pd.DataFrame(columns=[*OUTCOME_COLUMNS, "artefact"])]
    for key in dict.fromkeys(records.get("artefact", ())):
        with store.reading(STAGE, key) as folder:
            path = folder / "outcomes.parquet"
            if path.is_file():
                frames.append(pd.read_parquet(path).reindex(columns=OUTCOME_COLUMNS).assign(artefact=key))
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


def _current(records: pd.DataFrame) -> pd.Series:
    """Which records are current.

    For each identity and metric set, the record with the highest component versions is current, unless another set measured the
    same figure with newer components. Versions are compared in the order of the components' names; records with equal versions
    are equal measurements. A record without an identity is superseded by any newer record with the same labels and metric. A
    record without a detector is superseded by any record with one.
    """
    figures = records[[*(name for name in CELL if name != "metrics"), "metric"]].astype(object)
    named = figures.where(figures.notna(), None).apply(tuple, axis=1)
    old, unjudged = records["settings"].isna(), records["aggregation"].isna()
    superseded = (old & named.isin(set(named[~old]))) | (unjudged & named.isin(set(named[~unjudged])))
    known = _with_identity(records)
    versions = [json.loads(text) for text in known["versions"]]
    names = sorted({name for found in versions for name in found})
    identities = known[IDENTITY].astype(object).where(known[IDENTITY].notna(), None)
    figure_versions = known["version"].fillna(0).tolist()
    groups: dict[tuple, list[int]] = {}
    for row, identity in enumerate(identities.itertuples(index=False, name=None)):
        if not superseded.iloc[row]:
            groups.setdefault(identity, []).append(row)
    sets, chosen = known["metrics"].fillna("").tolist(), set()
    for rows in groups.values():
        best: dict[str, int] = {}
        for row in rows:
            rank = [
                (*(versions[r].get(n, 0) for n in names), figure_versions[r], r)
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
