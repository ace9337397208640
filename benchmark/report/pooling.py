"""Means of records over concepts and method seeds, computed from outcomes if they are stored.

Concepts are fixed: a mean over church and car is a statement about church and car only. Method seeds and prompts are samples.
With outcomes, a mean over concepts has one stratified score interval, and its difference has one test. Without outcomes, the
intervals of the records are combined (`overpaint.report.statistics.mean_of_estimates`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias, TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from overpaint.report import statistics
from overpaint.report.gathered import ARTEFACT
from overpaint.report.records import number_of
from overpaint.report.statistics import NORMAL, Estimate

#: Fields that a view's column can show -> the columns of a record with the value and its interval.
FIELDS = {
    "value": ("value", "low", "high"),
    "control": ("control",),
    "difference": ("difference", "difference_low", "difference_high"),
    "original": ("original",),
}
#: Records (`overpaint.report.records`) as dictionaries, which are read one value at a time much faster than a frame.
Rows: TypeAlias = "Sequence[Mapping[Any, Any]]"
#: Columns of outcomes that come from their record -> the record's column.
NAMED = {"concepts": "concepts", "run": "seed", "method": "method"}
#: How many tables of outcomes are kept for the next question: a figure's value, its difference and its rank ask for the same.
LATEST = 4
#: Facets whose prompts do not name the erased concept, so that several concept sets can have the same ones.
SHARED = ("specificity", "utility")
#: If the mean of the outcomes differs by more than this from the mean of the records, it is a different figure.
SAME = 1e-6


class Outcomes:
    """Outcomes of records (`overpaint.report.records.OUTCOME_COLUMNS` and ``artefact``), looked up by record."""

    def __init__(self, found: pd.DataFrame | pa.Table | None = None):
        table = pa.Table.from_pandas(found, preserve_index=False) if isinstance(found, pd.DataFrame) else found
        self._slices: dict[tuple[Any, str], tuple[int, int]] = {}
        self._latest: dict[tuple, pd.DataFrame] = {}
        if table is not None and table.num_rows:
            self._rows = _with_categories(table)
            artefacts, metrics = (self._rows[name].array for name in (ARTEFACT, "metric"))
            codes = artefacts.codes.astype(np.int64) * len(metrics.categories) + metrics.codes
            starts = _starts(codes)
            if len(np.unique(codes[starts])) < len(starts):  # the outcomes of a record lie apart
                order = np.argsort(codes, kind="stable")
                codes, self._rows = codes[order], self._rows.take(order)
                starts = _starts(codes)
            firsts = self._rows[[ARTEFACT, "metric"]].take(starts).astype(object)
            ends = [*starts[1:].tolist(), len(codes)]
            places = zip(starts.tolist(), ends, strict=True)
            self._slices = dict(zip(firsts.itertuples(index=False, name=None), places, strict=True))

    def __len__(self) -> int:
        """The number of records that have outcomes."""
        return len(self._slices)

    @cached_property
    def digests(self) -> dict[tuple[Any, str], int]:
        """A hash of the outcomes of each record, by ``artefact`` and ``metric``. Their order does not matter."""
        if not self._slices:
            return {}
        known = [name for name in ("prompt_id", "seed", "label", "cluster", "stratum", "value") if name in self._rows]
        rows = pd.util.hash_pandas_object(self._rows[known], index=False).to_numpy()
        starts = [start for start, _ in self._slices.values()]
        return dict(zip(self._slices, np.add.reduceat(rows, starts).tolist(), strict=True))

    def together(self, records: Rows) -> pd.DataFrame | None:
        """Outcomes of several records with columns ``concepts`` and ``run`` (method seed); ``None`` if any has none."""
        found = self.coded(records)
        return None if found is None else found.astype({name: object for name in found.select_dtypes("category")})

    def coded(self, records: Rows) -> pd.DataFrame | None:
        """`together` with text as categories, which is faster for thousands of rows. The result must not be modified."""
        places = [self._slices.get((record.get(ARTEFACT), record["metric"])) for record in records]
        known = [place for place in places if place]
        if not known or len(known) < len(places):
            return None
        key = tuple(tuple(record[name] for name in (ARTEFACT, "metric", *NAMED.values())) for record in records)
        found = self._latest.pop(key) if key in self._latest else self._taken(records, known)
        self._latest[key] = found
        if len(self._latest) > LATEST:
            del self._latest[next(iter(self._latest))]  # the one that was asked for longest ago
        return found

    def _taken(self, records: Rows, places: Sequence[tuple[int, int]]) -> pd.DataFrame:
        """The outcomes of the records, which are at these ``places``, with the records' own columns."""
        found = self._rows.take(np.concatenate([np.arange(start, end) for start, end in places])).reset_index(drop=True)
        of_record = np.repeat(np.arange(len(places)), [end - start for start, end in places])
        for name, column in NAMED.items():
            own = np.array([record[column] for record in records])
            found[name] = (
                pd.Categorical(own.astype(object)).take(of_record) if own.dtype.kind == "U" else own[of_record]
            )
        return found


def rows_by(records: pd.DataFrame, column: str) -> dict[Any, list[dict]]:
    """The records with each value of a column, in their order."""
    return _grouped(records.to_dict("records"), column)


def _grouped(records: Rows, column: str) -> dict[Any, list]:
    found: dict[Any, list] = {}
    for record in records:
        found.setdefault(record[column], []).append(record)
    return found


def _with_categories(table: pa.Table) -> pd.DataFrame:
    """The table with its text, and what outcomes are looked up by, as categories."""

    def encoded(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
        text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        plain = not pa.types.is_dictionary(column.type)
        return column.dictionary_encode() if plain and (text or name in (ARTEFACT, "metric")) else column

    columns = {name: encoded(name, table.column(name)) for name in table.column_names}
    return pa.table(columns).unify_dictionaries().to_pandas()


def _starts(codes: NDArray) -> NDArray:
    """Where runs of equal codes begin."""
    return np.flatnonzero(np.diff(codes, prepend=-1))


@dataclass(frozen=True)
class Pooled:
    """A mean with its interval, and the tests of its difference."""

    estimate: Estimate
    p_value: float | None = None
    p_equivalence: float | None = None


def pooled(records: Rows, field: str, outcomes: Outcomes, average: str = "concepts") -> Pooled | None:
    """The mean of one field of records of one metric over their concepts and method seeds; ``None`` if the field is empty.

    ``average`` says what has equal weight: every concept set, or every kind (`overpaint.report.views.Average`). The
    tests always refer to the difference, even if another field is shown.
    """
    shown = _mean(records, field, outcomes, average)
    if shown.value is None and (field in ("control", "difference") or not records):
        return None
    itself = any(record["method_name"] == "none" and record["against"] == "original" for record in records)
    if field in ("control", "original") or itself or any(number_of(record["p_value"]) is None for record in records):
        return Pooled(shown)
    if len(records) == 1:
        return Pooled(shown, float(records[0]["p_value"]), number_of(records[0].get("p_equivalence")))
    gap = shown if field == "difference" else _mean(records, "difference", outcomes, average)
    tested = all(number_of(record.get("p_equivalence")) is not None for record in records)
    return Pooled(shown, *tests_of(gap, equivalence=tested))


def tests_of(gap: Estimate, equivalence: bool) -> tuple[float | None, float | None]:
    """The p-values of a difference: its own, or else those derived from its interval under a normal distribution.

    They are undefined for an open interval, whose value can be a bound. Differences of real values have no test of
    ``equivalence``.
    """
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
    return min(2 * beyond(0.0), 1.0), same if equivalence else None


def _mean(records: Rows, field: str, outcomes: Outcomes, average: str) -> Estimate:
    """The mean of one field: over the method seeds of each concept, then over concepts (of each kind, then over kinds), which can
    share prompts for other concepts."""
    if len(records) == 1:
        return estimate_of(records[0], field)
    general = bool(records) and records[0]["facet"] in SHARED
    if average == "kinds" and len(kinds := _grouped(records, "kind")) > 1:
        means = [_mean(part, field, outcomes, "concepts") for part in kinds.values()]
        return statistics.mean_of_estimates(means, shared=general)
    share = bool(records) and records[0]["unit"] == "fraction"
    bounds = (-1.0 if field == "difference" else 0.0, 1.0) if share else (-math.inf, math.inf)
    own = [_over_seeds(of_concept, field, bounds) for of_concept in _grouped(records, "concepts").values()]
    mean = own[0] if len(own) == 1 else statistics.mean_of_estimates(own, shared=general)
    if mean.value is None:
        return mean
    found = _from_outcomes(records, field, outcomes, mean.value)
    if found is None:
        return mean
    return found if len(own) == 1 else found._replace(spread=mean.spread)


def _over_seeds(records: Rows, field: str, bounds: tuple[float, float]) -> Estimate:
    """The mean of one concept's records over method seeds, without outcomes. The seeds are a sample, the mean is in ``bounds``.

    They share their prompts, whose part in the errors is not known.
    """
    own = [estimate_of(record, field) for record in records]
    if len(own) == 1:
        return own[0]
    mean = statistics.mean_of_estimates(own, shared=True)
    found = statistics.mean_over_runs(
        mean, [e.value for e in own if e.value is not None], range(len(own)), bounds=bounds
    )
    return found._replace(spread=mean.spread)


def _from_outcomes(records: Rows, field: str, outcomes: Outcomes, value: float) -> Estimate | None:
    """The mean as one stratified score estimate; ``None`` if the outcomes do not reproduce the mean of the records."""
    table = outcomes.coded(records) if field in ("value", "difference") else None
    if table is None or not np.isin(table["value"].dropna(), (0, 1)).all():
        return None
    if field == "value":
        found = statistics.proportion(table["value"], **groups_of(table))
    else:
        found = statistics.paired_difference(table["value"], table["other"], **groups_of(table))
    return found if found.value is not None and abs(found.value - value) < SAME else None


class Groups(TypedDict):
    """Columns that say which outcomes belong together, as `overpaint.report.statistics` takes them."""

    clusters: NDArray
    strata: NDArray
    runs: NDArray
    concepts: NDArray
    weights: NDArray


def groups_of(table: pd.DataFrame) -> Groups:
    """The groups of outcomes (`Outcomes.together`).

    A prompt that several concepts and method seeds share is one cluster. Concepts have equal weight, however many strata each
    has, and so have the strata of a concept.
    """
    concepts = _codes(table["concepts"])
    strata, runs = (concepts * (len(table) + 1) + _codes(table[name]) for name in ("stratum", "run"))
    of_concept = np.bincount(np.unique(strata) // (len(table) + 1))  # number of strata
    return {
        "clusters": _codes(table["cluster"]),
        "strata": strata,
        "runs": runs,
        "concepts": concepts,
        "weights": 1.0 / of_concept[concepts],
    }


def _codes(column: pd.Series) -> NDArray:
    """A number from 0 to the number of rows for each value, the same for equal ones; missing values are one more value."""
    coded = isinstance(column.dtype, pd.CategoricalDtype)
    return pd.factorize(column.cat.codes if coded else column, use_na_sentinel=False)[0]


def estimate_of(record: Mapping[str, Any], field: str) -> Estimate:
    """One field of a record as an estimate."""
    numbers = [number_of(record.get(name)) for name in FIELDS[field]]
    found = Estimate(numbers[0], n=int(record["n"]), failed=int(record["failed"]))
    if len(numbers) > 1:
        found = found._replace(low=numbers[1], high=numbers[2])
    if field == "difference" and not pd.isna(record["p_value"]):
        p_equivalence = number_of(record.get("p_equivalence"))
        return found._replace(p_value=float(record["p_value"]), p_equivalence=p_equivalence)
    return found
