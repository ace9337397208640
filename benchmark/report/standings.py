"""Paired differences of methods, the best method of a column, and the methods that are not shown to be worse."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from overpaint.report import statistics
from overpaint.report.directions import folded, loss
from overpaint.report.pooling import Outcomes, Rows, groups_of
from overpaint.report.records import number_of
from overpaint.report.statistics import Estimate

BEST, TIED = "best", "tied"
#: Columns by which outcomes of two methods are paired.
PAIR = ["concepts", "run", "prompt_id", "seed", "label", "stratum"]
MISSING = "per-image outcomes are not stored: measured by an older version, run the grid again"
SEVERAL = "several outcomes of one prompt and seed"
UNALIKE = "no images of the same prompts and seeds"
#: Values that differ by less are equal.
SAME = 1e-9


def aligned(one: pd.DataFrame | None, other: pd.DataFrame | None) -> tuple[pd.DataFrame | None, str]:
    """Two tables of outcomes (`Outcomes.together`) joined by prompt and seed, with columns ``value`` and ``value_other``.

    The text is the reason if they cannot be joined, else empty.
    """
    if one is None or other is None:
        return None, MISSING
    alike = len(one) == len(other) and all(_equal(one[name], other[name]) for name in PAIR)
    if one.duplicated(PAIR).any() or (not alike and other.duplicated(PAIR).any()):
        return None, SEVERAL
    if alike:  # the usual case needs no slow merge
        return one.assign(value_other=other["value"].to_numpy()), ""
    both = with_equal_runs(pd.concat([one.assign(side=0), other.assign(side=1)], ignore_index=True), "side")
    sides = (both[both["side"] == side].drop(columns="side") for side in (0, 1))
    joined = next(sides).merge(next(sides), on=PAIR, suffixes=("", "_other"))
    return (None, UNALIKE) if joined.empty else (joined, "")


def with_equal_runs(table: pd.DataFrame, by: str = "method") -> pd.DataFrame:
    """The outcomes of several methods (column ``by``), in which a single run of a concept set stands for all runs of the others.

    A method that draws no random numbers has one run, whatever the seeds of the experiment are.
    """
    runs = table[[by, "concepts", "run"]].drop_duplicates()
    if runs.groupby("concepts", observed=True)["run"].nunique().max() == 1:
        return table
    count = runs.groupby([by, "concepts"], observed=True)["run"].transform("size")
    several = runs.loc[count > 1, ["concepts", "run"]].drop_duplicates()
    first = runs.loc[~runs["concepts"].isin(several["concepts"]), ["concepts", "run"]].drop_duplicates("concepts")
    wanted = pd.concat([several, first])
    single = pd.MultiIndex.from_frame(table[[by, "concepts"]]).isin(
        pd.MultiIndex.from_frame(runs.loc[count == 1, [by, "concepts"]])
    )
    repeated = table[single].drop(columns="run").merge(wanted, on="concepts")
    return pd.concat([table[~single], repeated], ignore_index=True)


def _equal(one: pd.Series, other: pd.Series) -> bool:
    """Whether two columns have the same values in the same order."""
    if isinstance(one.dtype, pd.CategoricalDtype) and one.dtype is other.dtype:
        return np.array_equal(one.array.codes, other.array.codes)
    return one.reset_index(drop=True).equals(other.reset_index(drop=True))


def paired(one: Rows, other: Rows, outcomes: Outcomes, interval: bool = True) -> tuple[Estimate, str]:
    """The mean paired difference of the records of two methods over their common concepts, seeds and prompts.

    The text is the reason if the difference is undefined, else empty. Without ``interval`` there may be only the p-value, which
    is much faster.
    """
    joined, why = aligned(outcomes.coded(one), outcomes.coded(other))
    if joined is None:
        undefined = [r["why"] for r in (*one, *other) if number_of(r["value"]) is None and r["why"]]
        return Estimate(None), undefined[0] if undefined else why
    found = statistics.paired_difference(joined["value"], joined["value_other"], interval=interval, **groups_of(joined))
    return found, "" if found.value is not None else "every pair of images failed"


def standings(
    estimates: Mapping[str, Estimate], direction: str, difference: Callable[[str, str], Estimate], exact: bool = False
) -> dict[str, str]:
    """`BEST` for the method with the best value, `TIED` for each method that is not shown to be worse than it.

    A method is worse if its ``difference(method, best)`` is on the worse side and has a p-value below 5 % after Holm's correction
    over the methods. If there is none, because outcomes are not stored or distances from 0 are compared, the two estimates are
    compared as independent ones; this is cautious, because methods share their prompts. Figures without an interval are not shown
    to be worse, unless they are ``exact``, such as sizes.
    """
    distances = {name: folded(e, direction) for name, e in estimates.items()}
    known = {name: float(loss(e.value, direction)) for name, e in distances.items() if e.value is not None}
    if len(known) < 2:
        return {}
    least = min(known.values())
    best = [name for name, value in known.items() if value - least < SAME]
    others = [name for name in known if name not in best]
    p_values = []
    for name in others:
        found = difference(name, best[0]) if direction != "zero" else Estimate(None)
        if found.p_value is None:
            found = statistics.difference_of_estimates(distances[name], distances[best[0]])
        better = found.value is not None and (found.value > 0) == (direction == "up")
        p_values.append(1.0 if better else float(not exact) if found.p_value is None else found.p_value)
    apart = statistics.holm(p_values).rejected
    tied = {name: TIED for name, worse in zip(others, apart, strict=True) if not worse}
    return dict.fromkeys(best, BEST) | tied
