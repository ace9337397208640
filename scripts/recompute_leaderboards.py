"""Bring committed tables of figures to today's statistics, as far as they store what is needed. No image is made.

    python scripts/recompute_leaderboards.py leaderboards/*.csv     # rewrites the files; a second run changes nothing
    python scripts/recompute_leaderboards.py leaderboards/testbed-erasers.csv --view methods    # prints a view in Markdown

A share of independent outcomes is its number of outcomes and hits. A paired difference also needs the numbers of pairs that were
gained and lost; Tango's interval in the table determines them. Both get today's interval and tests. All other figures keep the
interval and the p-value of the version that made them, and column ``statistics`` says which version that is. FID from fewer
images than today's limit, and KID to the unedited model from before version 5, become undefined. The corrected p-values and the
marks of view ``facets`` are then computed from the p-values of every row.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from overpaint.metrics.distribution import FID_IMAGES
from overpaint.report.families import marked
from overpaint.report.records import RECORD_COLUMNS
from overpaint.report.rendering import render
from overpaint.report.statistics import VERSION, Estimate, paired_difference, proportion, tango
from overpaint.report.views import view_named

#: Pooled shares whose outcomes are not independent: a prompt that asks for two things has two of them.
CLUSTERED = ("prompt_agreement", "judge_agreement")
#: The version of the statistics of tables without the column ``statistics``.
OLDER = 4
#: Largest difference between a stored limit of an interval and the same limit computed today.
ROUNDING = 1e-6


def independent(row: pd.Series) -> bool:
    """Whether the figure is a share of independent outcomes, so that the row determines all of them."""
    pooled = str(row["aggregation"]).endswith("pooled")
    return pooled and row["unit"] == "fraction" and row["metric"] not in CLUSTERED and row["n"] > 0


def pairs(n: int, difference: float, low: float, high: float) -> tuple[int, int]:
    """The numbers of pairs (1, 0) and (0, 1) of n that give a paired difference and a limit of its Tango interval.

    Version 6 of the statistics widened intervals on the side with few pairs, so that one limit can be another than in the table.

    Raises:
        ValueError: if no numbers of pairs give this interval.
    """
    gap = round(n * difference)
    for lost in range(max(0, -gap), (n - gap) // 2 + 1):
        if np.isclose(tango(gap + lost, lost, n), (low, high), rtol=0, atol=ROUNDING).any():
            return gap + lost, lost
    raise ValueError(f"no pairs give {difference} [{low}, {high}] at n={n}")


@cache
def share(n: int, value: float) -> Estimate:
    """A share of n independent outcomes with today's interval."""
    return proportion(np.arange(n) < round(n * value))


@cache
def compared(n: int, difference: float, low: float, high: float) -> Estimate:
    """A paired difference with today's interval and tests."""
    gained, lost = pairs(n, difference, low, high)
    outcomes = np.repeat([1, -1, 0], [gained, lost, n - gained - lost])
    return paired_difference(outcomes == 1, outcomes == -1)


def recomputed(row: pd.Series) -> pd.Series:
    """The row with today's interval and tests, where it determines them."""
    row = row.copy()
    if row["metric"].startswith("fid_") and row["n"] < FID_IMAGES and pd.notna(row["value"]):
        return undefined(row, f"FID needs {FID_IMAGES} images on each side, got {row['n']:.0f}")
    if row["metric"] == "kid_original" and row["statistics"] < 5 and pd.notna(row["value"]):
        return undefined(row, "KID to the unedited model from before version 5 of the statistics; run again")
    if not independent(row):
        return row
    n = int(row["n"])
    row[["value", "low", "high"]] = share(n, row["value"])[:3]
    row["statistics"] = VERSION
    if pd.notna(row["difference"]):
        gap = compared(n, *row[["difference", "difference_low", "difference_high"]])
        row[["difference", "difference_low", "difference_high", "p_value"]] = gap[:4]
        row["p_equivalence"] = gap.p_equivalence
    return row


def undefined(row: pd.Series, why: str) -> pd.Series:
    """The row without its figure, and the reason."""
    figure = ["value", "low", "high", "original", "difference", "difference_low", "difference_high", "p_value"]
    row[[*figure, "p_equivalence"]] = np.nan
    row["why"], row["statistics"] = why, VERSION
    return row


def update(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `overpaint table --format csv` with today's columns, intervals, tests and marks."""
    older = {
        "statistics": OLDER,
        "metrics": "facets",
        "method_name": table["method"],  # no label of the older tables has settings
        "attack_name": table["attack"],
    }
    table = table.assign(**{name: values for name, values in older.items() if name not in table})
    table = table.reindex(columns=[*RECORD_COLUMNS, "statistics"]).astype(object)
    table = pd.DataFrame([recomputed(row) for _, row in table.iterrows()]).infer_objects()
    return marked(table, view_named("facets").primary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="+", help="files of overpaint table --format csv")
    parser.add_argument("--view", help="print this view of the files instead (overpaint list views)")
    asked = parser.parse_args()
    for path in asked.tables:
        table = update(pd.read_csv(path, low_memory=False))
        if asked.view:
            print(render(table, "md", asked.view))
            continue
        table.to_csv(path, index=False)
        today = (table["statistics"] == VERSION).sum()
        print(f"{path}: {today} of {len(table)} figures have version {VERSION} of the statistics")


if __name__ == "__main__":
    main()
