"""Families of tests and the marks of a difference.

A *family* is the set of tests of one method in one block of a table. A view declares one primary endpoint per facet in advance;
their tests get Holm's correction. The other tests of a family get the correction of Benjamini and Hochberg. A difference is
marked

- `DIFFERS` if the corrected p-value of "no difference" is below 5 %,
- `EQUAL` if the corrected p-value of "a difference of at least `overpaint.report.statistics.MARGIN`" is below 5 %.

Otherwise it has no mark: a difference that is not significant is not evidence of equality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from overpaint.grid.labels import counted
from overpaint.report.records import CELL, number_of
from overpaint.report.statistics import MARGIN, benjamini_hochberg, holm

DIFFERS, EQUAL = "differs", "equal"
SIGNIFICANCE = 0.05
#: Columns that define a family in the long form: one method on one concept set, with everything else equal.
FAMILY = [name for name in CELL if name != "attack"] + ["detector", "threshold"]

#: The columns of a record that its test is made of.
TESTED = ["method_name", "attack_name", "against", "facet", "metric", "p_value", "p_equivalence"]


@dataclass(frozen=True)
class Compared:
    """The two p-values of one difference, whether it is a primary endpoint of the view, and the facet of its figure."""

    p_value: float | None
    p_equivalence: float | None = None
    primary: bool = False
    facet: str = ""


@dataclass(frozen=True)
class Mark:
    """The result of a corrected test: `DIFFERS`, `EQUAL` or nothing, and the corrected p-value of "no difference"."""

    says: str = ""
    p_adjusted: float | None = None
    family: str = ""


UNMARKED = Mark()


def marks(tests: Sequence[Compared | None]) -> list[Mark]:
    """The marks of the tests of one family, in the order given. ``None`` stands for a figure without a test."""
    found = [UNMARKED] * len(tests)
    for primary, correct, family in ((True, holm, "primary (Holm)"), (False, benjamini_hochberg, "other (BH)")):
        places = [i for i, t in enumerate(tests) if t is not None and t.p_value is not None and t.primary == primary]
        chosen = [test for i in places if (test := tests[i]) is not None]
        differs, equal = (correct(p).p_values for p in ([t.p_value for t in chosen], [t.p_equivalence for t in chosen]))
        for place, p, q in zip(places, differs, equal, strict=True):
            says = DIFFERS if p is not None and p < SIGNIFICANCE else ""
            if not says and q is not None and q < SIGNIFICANCE:
                says = EQUAL
            found[place] = Mark(says, p, family)
    return found


def is_primary(primary: Mapping[str, Mapping[str, str]], facet: str, metric: str, attack: str, against: str) -> bool:
    """Whether a figure is one of a view's ``primary`` endpoints: the endpoint of its facet must have the same metric, and
    the same attack and comparison if it specifies them."""
    endpoint = primary.get(facet)
    return (
        endpoint is not None
        and endpoint["metric"] == metric
        and endpoint.get("attack", attack) == attack
        and endpoint.get("against", against) == against
    )


def test_of(record: Mapping[Any, Any] | pd.Series, primary: Mapping[str, Mapping[str, str]]) -> Compared | None:
    """The test of a record; ``None`` if it has none, and for the unedited model, which is compared with itself."""
    itself = record["method_name"] == "none" and record["against"] == "original"
    if pd.isna(record["p_value"]) or itself:
        return None
    endpoint = is_primary(primary, record["facet"], record["metric"], record["attack_name"], record["against"])
    return Compared(float(record["p_value"]), number_of(record.get("p_equivalence")), endpoint, record["facet"])


def marked(records: pd.DataFrame, primary: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """The records with ``p_adjusted``, ``family`` and ``mark``, corrected within each method on each concept set."""
    records = records.copy()
    tests = [test_of(row, primary) for row in records.reindex(columns=TESTED).to_dict("records")]
    families: dict[int, list[int]] = {}
    grouped = records.groupby([n for n in FAMILY if n in records], sort=False, dropna=False)
    for place, family in enumerate(grouped.ngroup()):
        families.setdefault(family, []).append(place)
    found = [UNMARKED] * len(records)
    for places in families.values():
        for place, mark in zip(places, marks([tests[i] for i in places]), strict=True):
            found[place] = mark
    records["p_adjusted"] = [mark.p_adjusted for mark in found]
    records["family"] = [mark.family for mark in found]
    records["mark"] = [mark.says for mark in found]
    return records


def families_said(tests: Sequence[Compared | None], primary: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A note under a table about the corrections of a family; none if the family has no test."""
    done = [t for t in tests if t is not None and t.p_value is not None]
    first = sum(t.primary for t in done)
    made = []
    if first:
        tested = {test.facet for test in done if test.primary}
        named = ", ".join(f"{facet} {_endpoint(primary[facet])}" for facet in primary if facet in tested)
        made.append(f"Holm over its {counted(first, 'test')} of primary endpoints ({named})")
    if len(done) > first:
        made.append(f"Benjamini–Hochberg over its {counted(len(done) - first, 'other test')}")
    if not made:
        return []
    return [f"Tests are corrected for each method: {'; '.join(made)}. 5 % level, equivalence margin {MARGIN:.2f}."]


def _endpoint(endpoint: Mapping[str, str]) -> str:
    attack = f" under {endpoint['attack']}" if endpoint.get("attack") else ""
    return endpoint["metric"].replace("_", " ") + attack
