"""The rules that result files keep to be in the leaderboards, as leaderboards/README.md states them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from overpaint.errors import UserError
from overpaint.report.claims import ROUNDING, Claim, claim_files, read_claim
from overpaint.report.families import marked
from overpaint.report.statistics import VERSION, paired_difference, proportion
from overpaint.report.views import view_named
from overpaint.run.progress import steps

#: Fewest outcomes of a primary endpoint.
FEWEST_OUTCOMES = 12
#: Largest share of failed images.
FAILURE_LIMIT = 0.05
#: Largest file, in bytes.
LARGEST = 1_000_000


def violations(folder: Path) -> list[str]:
    """Sentences about what keeps the result files below a folder from the leaderboards (rules: leaderboards/README.md)."""
    said, seen = [], set()
    files = claim_files(folder)
    for _, path in zip(steps(len(files), "result files"), files, strict=True):
        try:
            claim = read_claim(path)
        except UserError as error:
            said.append(str(error))
            continue
        if path.stat().st_size > LARGEST:
            said.append(f"{path}: {path.stat().st_size} bytes, allowed are {LARGEST}")
        rules = {"runs": _runs, "versions": _versions, "n": _numbers, "intervals": _intervals, "failures": _failures}
        rules |= {"outcomes": _shown_by_outcomes, "controls": _controls, "marks": _marks}
        for name, rule in rules.items():
            if name not in claim.waived:
                said += [f"{path}: {sentence}" for sentence in rule(claim)]
        said += [f"{path}: waived names {name!r}, which is not a rule" for name in claim.waived if name not in rules]
        kinds = claim.records[["model", "concepts", "budget"]].astype(str).drop_duplicates()
        seen |= {
            (path.parent, claim.records["method_name"].iloc[0] == "none", *row) for row in kinds.to_numpy().tolist()
        }
    for parent, unedited, *cell in sorted(seen, key=str):
        if not unedited and (parent, True, *cell) not in seen:
            said.append(
                f"{parent}: no record of the unedited model (method none) on {cell[0]}, {cell[1]}, budget {cell[2]}"
            )
    return said


def _named(record: pd.Series) -> str:
    return f"{record['method']} on {record['concepts']}, {record['attack']}, {record['metric']}"


def _first(records: pd.DataFrame, what: str) -> list[str]:
    """A sentence about the first of these records and their number."""
    if records.empty:
        return []
    more = f" (and {len(records) - 1} more)" if len(records) > 1 else ""
    return [f"{_named(records.iloc[0])}{more}: {what}"]


def _runs(claim: Claim) -> list[str]:
    wanted = ("command", "libraries", "models", "assets")
    missing = [name for name in wanted if any(not run.get(name) for run in claim.runs)]
    return [] if claim.runs and not missing else [f"runs must say their {', '.join(missing or wanted)}"]


def _versions(claim: Claim) -> list[str]:
    known = claim.records["versions"].map(lambda text: isinstance(text, str) and bool(json.loads(text)))
    known &= claim.records["version"].notna() & claim.records["settings"].notna() & claim.records["statistics"].notna()
    return _first(claim.records[~known], "settings and versions of metric, components and statistics must be known")


def _numbers(claim: Claim) -> list[str]:
    primary = {endpoint["metric"] for endpoint in view_named("facets").primary.values()}
    chosen = claim.records[claim.records["metric"].isin(primary) & claim.records["value"].notna()]
    return _first(
        chosen[chosen["n"] < FEWEST_OUTCOMES], f"a primary endpoint needs at least {FEWEST_OUTCOMES} outcomes"
    )


def _intervals(claim: Claim) -> list[str]:
    shares = claim.records[
        (claim.records["unit"] == "fraction") & claim.records["value"].notna() & (claim.records["n"] > 1)
    ]
    inside = (shares["low"] <= shares["value"] + ROUNDING) & (shares["value"] <= shares["high"] + ROUNDING)
    tested = claim.records[claim.records["p_value"].notna() & claim.records["difference_low"].notna()]
    tested = tested[tested["statistics"] == VERSION]  # before version 6, some intervals and tests were of two families
    excluded = (tested["difference_low"] > 0) | (tested["difference_high"] < 0)
    clear = (tested["p_value"] < 0.045) & ~excluded | (tested["p_value"] > 0.055) & excluded
    return [
        *_first(shares[~inside], "a share needs an interval that contains it"),
        *_first(tested[clear], "the interval of the difference contradicts its p-value"),
    ]


def _shown_by_outcomes(claim: Claim) -> list[str]:
    """Shares are computed again from their outcomes, where these are stored."""
    if claim.outcomes.empty:
        return []
    shares = claim.records[(claim.records["unit"] == "fraction") & claim.records["value"].notna()]
    wrong = []
    values, others = (claim.outcomes[name].to_numpy(float) for name in ("value", "other"))
    clusters, strata = (claim.outcomes[name].to_numpy(object) for name in ("cluster", "stratum"))
    by_record = claim.outcomes.groupby("artefact").indices
    for place, record in shares.iterrows():
        if place not in by_record:
            continue
        own = by_record[place]
        of = clusters[own], strata[own] if strata[own].astype(bool).any() else None
        again = dict(zip(("value", "low", "high"), proportion(values[own], *of), strict=False))
        if not np.isnan(others[own]).any() and pd.notna(record["difference_low"]):
            gap = paired_difference(values[own], others[own], *of)
            again |= dict(zip(("difference", "difference_low", "difference_high", "p_value"), gap, strict=False))
        if record["statistics"] != VERSION:  # intervals and tests were others, means were not
            again = {name: again[name] for name in ("value", "difference") if name in again}
        stated = [float(record[name]) for name in again]
        if not np.allclose(np.array(list(again.values()), float), stated, rtol=0, atol=1e-6, equal_nan=True):
            wrong.append(place)
    return _first(claim.records.loc[wrong], "the figure is not that of the stored outcomes")


def _failures(claim: Claim) -> list[str]:
    all_ = claim.records["n"] + claim.records["failed"].fillna(0)
    high = claim.records["value"].notna() & (claim.records["failed"].fillna(0) > FAILURE_LIMIT * all_)
    return _first(claim.records[high], f"more than {FAILURE_LIMIT:.0%} of the images failed")


def _controls(claim: Claim) -> list[str]:
    against = claim.records[(claim.records["against"] == "control") & claim.records["value"].notna()]
    lacking = against[["control", "difference", "difference_low", "difference_high"]].isna().any(axis=1)
    lacking &= against["unit"] == "fraction"
    return _first(
        against[lacking], "an attack needs its control with as many images, and the difference with its interval"
    )


def _marks(claim: Claim) -> list[str]:
    today = marked(claim.records.drop(columns=["p_adjusted", "family", "mark"]), view_named("facets").primary)
    different = today["mark"] != claim.records["mark"].fillna("")
    return _first(claim.records[different], "the mark is not the one that its p-values give")
