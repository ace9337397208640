"""Means of records over concepts and method seeds, computed from outcomes if they are stored.

Concepts are fixed: a mean over church and car is a statement about church and car only. Method seeds and prompts are samples.
With outcomes, a mean over concepts has one stratified score interval, and its difference has one test. Without outcomes, the
intervals of the records are combined (`overpaint.report.statistics.mean_of_estimates`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from overpaint.report import statistics
from overpaint.report.gathered import ARTEFACT, as_frame
from overpaint.report.statistics import NORMAL, Estimate

#: Fields that a view's column can show -> the columns of a record with the value and its interval.
FIELDS = {
    "value": ("value", "low", "high"),
    "control": ("control",),
    "difference": ("difference", "difference_low", "difference_high"),
    "original": ("original",),
}
#: The columns of a record that an estimate is made of.
ESTIMATED = [
    *dict.fromkeys(name for names in FIELDS.values() for name in names),
    "n",
    "failed",
    "p_value",
    "p_equivalence",
]
#: If the mean of the outcomes differs by more than this from the mean of the records, it is a different figure.
SAME = 1e-6


class Outcomes:
    """Outcomes of records (`overpaint.report.records.OUTCOME_COLUMNS` and ``artefact``), looked up by record."""

    def __init__(self, found: pd.DataFrame | pa.Table | None = None):
        table = pa.Table.from_pandas(found, preserve_index=False) if isinstance(found, pd.DataFrame) else found
        self._slices: dict[tuple[Any, str], tuple[int, int]] = {}
        if table is not None and table.num_rows:
            (artefacts, of_artefact), (metrics, of_metric) = (
                _coded(table.column(name)) for name in (ARTEFACT, "metric")
            )
            codes = of_artefact * len(metrics) + of_metric
            order = np.argsort(codes, kind="stable")
            codes, self._table = codes[order], table.combine_chunks().take(order)
            starts = np.flatnonzero(np.diff(codes, prepend=-1)).tolist()
            for start, end in zip(starts, [*starts[1:], len(codes)], strict=True):
                artefact, metric = divmod(int(codes[start]), len(metrics))
                self._slices[artefacts[artefact], metrics[metric]] = start, end

    def __len__(self) -> int:
        """The number of records that have outcomes."""
        return len(self._slices)

    def together(self, records: pd.DataFrame) -> pd.DataFrame | None:
        """Outcomes of several records with columns ``concepts`` and ``run`` (method seed); ``None`` if any has none."""
        if ARTEFACT not in records:
            return None
        slices = [self._slices.get(place) for place in zip(records[ARTEFACT], records["metric"], strict=True)]
        known = [place for place in slices if place]
        if not known or len(known) < len(slices):
            return None
        found = as_frame(self._table.take(np.concatenate([np.arange(start, end) for start, end in known])))
        rows = np.repeat(np.arange(len(known)), [end - start for start, end in known])
        named = {"concepts": "concepts", "run": "seed", "method": "method"}
        return found.assign(**{name: records[column].take(rows).to_numpy() for name, column in named.items()})


def _coded(column: pa.ChunkedArray) -> tuple[list, NDArray]:
    """The distinct values of a column, and for each row the place of its value among them."""
    encoded = column.combine_chunks()
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


@dataclass(frozen=True)
class Pooled:
    """A mean with its interval, and the tests of its difference."""

    estimate: Estimate
    p_value: float | None = None
    p_equivalence: float | None = None


def pooled(figures: pd.DataFrame, field: str, outcomes: Outcomes, average: str = "concepts") -> Pooled | None:
    """The mean of one field of records of one metric over their concepts and method seeds; ``None`` if the field is empty.

    ``average`` says what has equal weight: every concept set, or every kind (`overpaint.report.views.Average`). The
    tests always refer to the difference, even if another field is shown.
    """
    shown = _mean(figures, field, outcomes, average)
    if shown.value is None and (field in ("control", "difference") or not len(figures)):
        return None
    tested = figures[figures["p_value"].notna()]
    itself = (tested["method_name"] == "none") & (tested["against"] == "original")
    if len(tested) < len(figures) or itself.any() or field in ("control", "original"):
        return Pooled(shown)
    if len(figures) == 1:
        record = figures.iloc[0]
        same = record.get("p_equivalence")
        return Pooled(shown, float(record["p_value"]), None if pd.isna(same) else float(same))
    gap = shown if field == "difference" else _mean(figures, "difference", outcomes, average)
    return Pooled(shown, *tests_of(gap, figures["unit"].iloc[0]))


def tests_of(gap: Estimate, unit: str) -> tuple[float | None, float | None]:
    """The p-values of a difference: its own, or else those derived from its interval under a normal distribution."""
    if gap.p_value is not None:
        return gap.p_value, gap.p_equivalence
    middle, low, high = gap.value, gap.low, gap.high
    if middle is None or low is None or high is None:
        return None, None

    def beyond(value: float) -> float:
        """The one-sided p-value of "the difference is beyond ``value``", from the half-width on that side."""
        error = ((middle - low) if middle > value else (high - middle)) / NORMAL
        return 0.5 * math.erfc(abs(middle - value) / error / math.sqrt(2)) if error > 0 else float(middle == value)

    margin = statistics.MARGIN
    inside = abs(middle) < margin
    same = max(beyond(-margin), beyond(margin)) if inside else 1.0
    return min(2 * beyond(0.0), 1.0), same if unit == "fraction" else None


def _mean(figures: pd.DataFrame, field: str, outcomes: Outcomes, average: str) -> Estimate:
    """The mean of one field: over the method seeds of each concept, then over concepts (of each kind, then over kinds), which
    share general prompts."""
    general = figures["facet"].iloc[0] == "utility" if len(figures) else False
    if average == "kinds" and figures["kind"].nunique() > 1:
        kinds = [_mean(part, field, outcomes, "concepts") for _, part in figures.groupby("kind", sort=False)]
        return statistics.mean_of_estimates(kinds, shared=general)
    by_concept: dict[str, list[dict]] = {}
    for record in figures.reindex(columns=["concepts", *ESTIMATED]).to_dict("records"):
        by_concept.setdefault(record["concepts"], []).append(record)
    own = [_over_seeds(records, field) for records in by_concept.values()]
    mean = own[0] if len(own) == 1 else statistics.mean_of_estimates(own, shared=general)
    if mean.value is None or len(figures) == 1:
        return mean
    found = _from_outcomes(figures, field, outcomes, mean.value)
    if found is None:
        return mean
    return found if len(own) == 1 else found._replace(spread=mean.spread)


def _over_seeds(records: Sequence[Mapping[str, Any]], field: str) -> Estimate:
    """The mean of one concept's records over method seeds, without outcomes. The seeds are treated as a sample.

    They share their prompts, whose part in the errors is not known.
    """
    own = [estimate_of(record, field) for record in records]
    if len(own) == 1:
        return own[0]
    mean = statistics.mean_of_estimates(own, shared=True)
    found = statistics.mean_over_runs(mean, [e.value for e in own if e.value is not None], range(len(own)))
    return found._replace(spread=mean.spread)


def _from_outcomes(figures: pd.DataFrame, field: str, outcomes: Outcomes, value: float) -> Estimate | None:
    """The mean as one stratified score estimate; ``None`` if the outcomes do not reproduce the mean of the records."""
    table = outcomes.together(figures) if field in ("value", "difference") else None
    if table is None or not table["value"].dropna().isin((0, 1)).all():
        return None
    if field == "value":
        found = statistics.proportion(table["value"], **groups_of(table))
    else:
        found = statistics.paired_difference(table["value"], table["other"], **groups_of(table))
    return found if found.value is not None and abs(found.value - value) < SAME else None


class Groups(TypedDict):
    """Columns that say which outcomes belong together, as `overpaint.report.statistics` takes them."""

    clusters: pd.Series
    strata: pd.Series
    runs: pd.Series
    concepts: pd.Series


def groups_of(table: pd.DataFrame) -> Groups:
    """The groups of outcomes (`Outcomes.together`).

    A prompt that several concepts and method seeds share is one cluster.
    """
    concepts = table["concepts"].astype(str)
    strata, runs = (concepts + "\x1f" + table[name].astype(str) for name in ("stratum", "run"))
    return {"clusters": table["cluster"].astype(str), "strata": strata, "runs": runs, "concepts": concepts}


def estimate_of(record: Mapping[str, Any], field: str) -> Estimate:
    """One field of a record as an estimate."""
    numbers = [None if pd.isna(record[name]) else float(record[name]) for name in FIELDS[field]]
    found = Estimate(numbers[0], n=int(record["n"]), failed=int(record["failed"]))
    if len(numbers) > 1:
        found = found._replace(low=numbers[1], high=numbers[2])
    if field == "difference" and not pd.isna(record["p_value"]):
        same = record.get("p_equivalence")
        return found._replace(p_value=float(record["p_value"]), p_equivalence=None if pd.isna(same) else float(same))
    return found
