"""Records: one row a figure, read from the store. Every table, view and tracker starts here.

A record is identified by ``settings``, a hash of everything that decided it, with its metric, detector and threshold.
``model``, ``concepts``, ``method``, ``attack``, ``protocol``, ``budget`` and ``metrics`` are labels for people: no code
reads anything out of them. ``method_name`` and ``attack_name`` are the names of components, ``given`` is what was set by
hand. Beside ``records.parquet``, the measure stage writes ``outcomes.parquet``: what each figure was made of
(`OUTCOME_COLUMNS`), from which methods are compared with each other.
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

#: Columns of a record, in order; one row is one figure.
RECORD_COLUMNS = (
    "model concepts kind method attack scope protocol budget metrics seed facet metric direction unit value low high n "
    "failed original control difference difference_low difference_high against p_value p_equivalence seconds why "
    "detector threshold aggregation version paper settings given method_name attack_name versions"
).split()
#: Columns of a figure's outcomes: one row for each image and each thing that was asked about it.
#: ``value`` is 1, 0 or NaN (failed), or a real number; ``other`` that of the unedited model or the control; ``cluster``
#: and ``stratum`` say which outcomes depend on each other and which means weigh the same ("" where there is one).
OUTCOME_COLUMNS = "metric prompt_id seed label cluster stratum value other".split()
#: The stage whose artefacts are records, on every track.
STAGE = "measure"
#: Labels that tell one cell from another.
CELL = ["model", "concepts", "kind", "method", "attack", "protocol", "budget", "metrics", "seed"]
#: What identifies a record.
IDENTITY = ["settings", "metric", "detector", "threshold"]


def settings_hash(settings: Mapping[str, Any]) -> str:
    """The identity of a record: 12 hex digits of everything that decided it."""
    return hashlib.sha256(canonical(settings).encode()).hexdigest()[:12]


def stored_records(store: Store, plan: Plan | None = None, older: bool = False) -> pd.DataFrame:
    """Records of the plan's cells that are stored, or of the whole store; ``artefact`` is the key that each was read from.

    Of several measurements of one record, the one with the highest component versions is current. ``older`` keeps the
    superseded ones, too, and adds a column ``current``. Records of older stores, which lack the newest columns, count until
    their cell is measured again.
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
    """Outcomes of these records, with the key of the ``artefact`` that they were read from; none where a measurement is
    older than outcomes are."""
    frames = [pd.DataFrame(columns=[*OUTCOME_COLUMNS, "artefact"])]
    for key in dict.fromkeys(records.get("artefact", ())):
        with store.reading(STAGE, key) as folder:
            path = folder / "outcomes.parquet"
            if path.is_file():
                frames.append(pd.read_parquet(path).reindex(columns=OUTCOME_COLUMNS).assign(artefact=key))
    return pd.concat(frames[1:] or frames, ignore_index=True)


def _with_identity(records: pd.DataFrame) -> pd.DataFrame:
    """The records, older ones with an identity that is derived from their labels."""
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

    Of one identity it is the record with the highest component versions, compared in the order of the components' names;
    equal ones are equal measurements. An older record, without an identity, is superseded by any newer one of its labels
    and metric; the oldest, without a detector, by any with one.
    """
    figures = records[[*(name for name in CELL if name != "metrics"), "metric"]].astype(object)
    named = figures.where(figures.notna(), None).apply(tuple, axis=1)
    old, unjudged = records["settings"].isna(), records["aggregation"].isna()
    superseded = (old & named.isin(set(named[~old]))) | (unjudged & named.isin(set(named[~unjudged])))
    known = _with_identity(records)
    versions = [json.loads(text) for text in known["versions"]]
    names = sorted({name for found in versions for name in found})
    best: dict[tuple, tuple] = {}
    identities = known[IDENTITY].astype(object).where(known[IDENTITY].notna(), None)
    for row, identity in enumerate(identities.itertuples(index=False, name=None)):
        if not superseded.iloc[row]:
            rank = (*(versions[row].get(name, 0) for name in names), known["version"].fillna(0).iloc[row], row)
            best[identity] = max(rank, best.get(identity, rank))
    chosen = {rank[-1] for rank in best.values()}
    return pd.Series([row in chosen for row in range(len(records))], index=records.index)


def given_by_hand(records: pd.DataFrame, sections: Iterable[str], without: Iterable[str] = ()) -> pd.Series:
    """What was set by hand in some sections of the configuration, as text (``concepts.anchor=house``); empty if nothing."""

    def said(given: str) -> str:
        chosen = {k: v for k, v in json.loads(given).items() if k.split(".")[0] in sections and k not in without}
        return ", ".join(f"{key}={value}" for key, value in sorted(chosen.items()))

    return records["given"].fillna("{}").map(said) if "given" in records else pd.Series("", index=records.index)
