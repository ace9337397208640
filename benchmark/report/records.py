"""Records: one row a figure, read from the store. Every table, view and tracker starts here."""

from __future__ import annotations

import pandas as pd

from overpaint.report.statistics import holm
from overpaint.run.plan import Plan
from overpaint.run.store import MANIFEST, Store

#: Columns of a record, in order; one row is one figure.
RECORD_COLUMNS = (
    "model concepts kind method attack scope protocol budget seed settings given method_name "
    "attack_name versions facet metric direction unit value low high n failed "
    "original control difference difference_low difference_high against p_value seconds why detector threshold "
    "aggregation version paper"
).split()
#: The stage whose artefacts are records, on every track.
STAGE = "measure"
#: What tells one cell from another.
CELL = ["model", "concepts", "kind", "method", "attack", "protocol", "budget", "seed"]
SIGNIFICANCE = 0.05


def stored_records(store: Store, plan: Plan | None = None) -> pd.DataFrame:
    """Records of the plan's cells that are stored, or of the whole store; p-values corrected over all of them (Holm).

    Where the store holds several measurements of one figure (an earlier version, say), the newest counts. Figures of two
    detectors or thresholds are two; records from before they were kept count until there is a newer one.
    """
    if plan:
        keys = [task.key for _, task in plan.cells if store.has(STAGE, task.key)]
    else:
        keys = sorted(store.keys(STAGE), key=lambda k: (store.path(STAGE, k) / MANIFEST).stat().st_mtime_ns)
    if not keys:
        return pd.DataFrame(columns=[*RECORD_COLUMNS, "p_holm", "distinguishable"])
    frames = [_records(store, key) for key in dict.fromkeys(keys)]
    frames = [f for f in frames if len(f)]
    records = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(RECORD_COLUMNS))
    records = records.reindex(columns=list(RECORD_COLUMNS))  # an older store's records have fewer
    replaced = records["aggregation"].isna() & records.duplicated([*CELL, "metric"], keep="last")
    records = records[~replaced].drop_duplicates([*CELL, "metric", "detector", "threshold"], keep="last")
    return corrected(records).reset_index(drop=True)


def _records(store: Store, key: str) -> pd.DataFrame:
    with store.reading(STAGE, key) as folder:
        return pd.read_parquet(folder / "records.parquet")


def corrected(records: pd.DataFrame) -> pd.DataFrame:
    """Add ``p_holm`` (corrected over every comparison of the table) and ``distinguishable`` (p_holm below 5 %)."""
    records = records.copy()
    itself = (records["method"] == "none") & (records["against"] == "original")  # compared to itself: no test
    tested = records["p_value"].astype(float).notna() & ~itself
    records["p_holm"] = float("nan")
    if tested.any():
        records.loc[tested, "p_holm"] = holm(records.loc[tested, "p_value"].astype(float).tolist()).p_values
    below = records["p_holm"] < SIGNIFICANCE
    records["distinguishable"] = below.where(tested, None).astype(object)
    return records
