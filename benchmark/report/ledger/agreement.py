"""Papers against each other: figures of one quantity, and orders of methods."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from overpaint.report import statistics
from overpaint.report.ledger.published import Names

#: Columns that make figures of different papers figures of one quantity. With the printed method, they make one cell.
QUANTITY = ["base", "concept", "prompts", "attack_name", "metric_name", "scale"]
#: Differences up to this much are agreement, by scale. On other scales, up to the share `RELATIVE` of the larger figure.
TOLERANCE = {"fraction": 0.05, "100 cos": 1.0}
RELATIVE = 0.10
#: Scales of shares, whose difference is also tested if both papers state their number of images.
SHARES = ("fraction",)
#: What two papers may say of a figure; what differs is named beside a disagreement.
SAID = {"images": "n", "detector": "detector", "note": "note"}
#: The fewest shared methods for Kendall's tau, and for its interval.
FEWEST, FEWEST_INTERVAL = 3, 5
RESAMPLES = 2_000

#: Columns of `pairs`.
PAIR_COLUMNS = [
    *("method", "base", "erased", "prompts", "attack", "metric", "better", "scale"),
    *("paper", "table", "value", "images", "provenance", "other_paper", "other_table", "other_value", "other_images"),
    *("other_provenance", "difference", "tolerances", "verdict", "differs_in"),
]
#: Verdicts. Equal figures are often quoted, so that they are no second measurement.
EQUAL, AGREE, SAMPLING, DISAGREE = "equal", "agree", "within sampling error", "disagree"


def pairs(found: pd.DataFrame) -> pd.DataFrame:
    """Every two papers that print one quantity of one method: their figures and whether they agree, the largest gap first.

    ``tolerances`` is the difference in multiples of the tolerance. ``differs_in`` says which recorded circumstances differ.
    """
    shared = found[found.groupby([*QUANTITY, "method"])["paper"].transform("nunique") > 1]
    rows = []
    for _, cell in shared.groupby([*QUANTITY, "method"], sort=False):
        rows += [_pair(a, b) for a, b in combinations(cell.to_dict("records"), 2) if a["paper"] != b["paper"]]
    compared = pd.DataFrame(rows, columns=PAIR_COLUMNS)
    return compared.sort_values(["tolerances", "method"], ascending=[False, True], kind="stable").reset_index(drop=True)


def disagreements(compared: pd.DataFrame, top: int | None = None) -> pd.DataFrame:
    """The disagreements among pairs, the largest first; ``top`` of them, and then only one of each quantity and method."""
    apart = compared[compared["verdict"] == DISAGREE]
    if top is None:
        return apart
    return apart.drop_duplicates(["method", "base", "erased", "prompts", "attack", "metric"]).head(top)


def _pair(a: Mapping[Hashable, Any], b: Mapping[Hashable, Any]) -> dict[str, Any]:
    gap = abs(a["scaled"] - b["scaled"])
    allowed = TOLERANCE.get(a["scale"], RELATIVE * max(abs(a["scaled"]), abs(b["scaled"])))
    verdict = EQUAL if gap < 1e-9 else AGREE if gap <= allowed + 1e-9 else DISAGREE
    if verdict == DISAGREE and a["scale"] in SHARES and _same_within_sampling(a, b):
        verdict = SAMPLING
    return {
        **{name: a[name] for name in ("method", "base", "erased", "prompts", "better", "scale")},
        "attack": a["attack_name"],
        "metric": a["metric_name"],
        **{name: a[name] for name in ("paper", "table", "images", "provenance")},
        **{f"other_{name}": b[name] for name in ("paper", "table", "images", "provenance")},
        "value": a["scaled"],
        "other_value": b["scaled"],
        "difference": gap,
        "tolerances": gap / allowed if allowed else 0.0,
        "verdict": verdict,
        "differs_in": differing(a, b),
    }


def _same_within_sampling(a: Mapping[Hashable, Any], b: Mapping[Hashable, Any]) -> bool:
    """Whether the 95 % interval of the difference of two shares contains 0; false if a number of images is not stated."""
    if pd.isna(a["images"]) or pd.isna(b["images"]):
        return False
    sides = [np.arange(int(side["images"])) < round(side["scaled"] * side["images"]) for side in (a, b)]
    e = statistics.unpaired_difference(*sides)
    return e.low is not None and e.high is not None and e.low <= 0 <= e.high


def differing(a: Mapping[Hashable, Any], b: Mapping[Hashable, Any]) -> str:
    """What is recorded differently of the two sides: ``n 142 | not stated``. Empty if nothing."""
    found = []
    for column, name in SAID.items():
        one, other = (_stated(side[column]) for side in (a, b))
        if one != other:
            found.append(f"{name} {one or _unstated(column)} | {other or _unstated(column)}")
    return "; ".join(found)


def _stated(value: Any) -> str:
    return "" if value == "" or pd.isna(value) else f"{value:.0f}" if isinstance(value, float) else str(value)


def _unstated(column: str) -> str:
    return "none" if column == "note" else "not stated"


#: Columns that make figures of different papers one order: the base and the metric may differ.
ORDER = ["concept", "prompts", "attack_name", "ranked"]
#: Columns of `orders`.
ORDER_COLUMNS = [
    *("erased", "prompts", "attack", "measure", "paper", "table", "base", "other_paper", "other_table", "other_base"),
    *("methods", "equal", "tau", "low", "high", "p_value", "shared"),
]


def orders(found: pd.DataFrame, known: Names) -> pd.DataFrame:
    """Kendall's tau-b between the orders of methods in every two papers that share at least `FEWEST` methods.

    ``equal`` counts the shared methods whose figures are equal, so that they may be quoted.
    """
    rows, ranked = [], erasers(found, known)
    shared = ranked[ranked.groupby(ORDER)["paper"].transform("nunique") > 1]
    for key, group in shared.groupby(ORDER, sort=False):
        for (one, first), (other, second) in combinations(list(columns(group)), 2):
            if one[0] != other[0] and (row := agreement(key, one, first, other, second)):
                rows.append(row)
    return pd.DataFrame(rows, columns=ORDER_COLUMNS)


def erasers(found: pd.DataFrame, known: Names) -> pd.DataFrame:
    """The figures of erasers with column ``ranked``: what they are ordered by."""
    kept = found[~found["method"].isin([*known["references"], "original"])]
    return kept.assign(ranked=kept["metric_name"].map(known["ranked"]).fillna(kept["metric_name"]))


def columns(group: pd.DataFrame) -> Iterator[tuple[tuple[str, str, str], dict[str, float]]]:
    """``(paper, table, base)`` and the figure of each method, turned so that higher is better."""
    for place, part in group.groupby(["paper", "table", "base", "metric_name", "detector"], sort=False):
        signed = part["scaled"].where(part["better"] == "up", -part["scaled"])
        yield tuple(map(str, place[:3])), dict(zip(part["method"], signed, strict=True))  # type: ignore[misc]


def agreement(
    key: Sequence[Hashable],
    one: Sequence[str],
    first: Mapping[str, float],
    other: Sequence[str],
    second: Mapping[str, float],
) -> dict[str, Any] | None:
    """A row of `orders`; ``None`` if the two sides share too few methods or one of them ties all of these."""
    shared = [method for method in first if method in second]
    if len(shared) < FEWEST:
        return None
    x, y = ([side[method] for method in shared] for side in (first, second))
    tau = statistics.kendall_tau_b(x, y)
    if tau.value is None:
        return None
    low, high = tau_interval(x, y)
    named = dict(zip(("erased", "prompts", "attack", "measure"), key, strict=True))
    named |= dict(zip(("paper", "table", "base"), one, strict=True))
    named |= dict(zip(("other_paper", "other_table", "other_base"), other, strict=True))
    return named | {
        "methods": len(shared),
        "equal": sum(abs(a - b) < 1e-9 for a, b in zip(x, y, strict=True)),
        "tau": tau.value,
        "low": low,
        "high": high,
        "p_value": tau.p_value,
        "shared": ", ".join(shared),
    }


def tau_interval(x: Sequence[float], y: Sequence[float]) -> tuple[float | None, float | None]:
    """95 % percentile interval of Kendall's tau-b, from resampled methods.

    Undefined below `FEWEST_INTERVAL` methods, and where every resample gives the same value, as for equal orders.
    """
    if len(x) < FEWEST_INTERVAL:
        return None, None
    drawn = np.random.default_rng(0).integers(len(x), size=(RESAMPLES, len(x)))
    taus = statistics.taus_b(np.asarray(x, float)[drawn], np.asarray(y, float)[drawn])
    taus = taus[~np.isnan(taus)]
    if not len(taus) or np.ptp(taus) < 1e-9:
        return None, None
    low, high = np.quantile(taus, [0.025, 0.975])
    return float(low), float(high)
