"""Families of tests and the three marks of a difference.

The tests of one table that belong to one claim are a *family*: those of one method in one block of the table. A view
names its primary endpoints beforehand, one a facet; Holm's correction covers them. The other tests of a family are
corrected by Benjamini and Hochberg. A difference is marked

- `DIFFERS` where the corrected p-value of "no difference" is below 5 %,
- `EQUAL` where the corrected p-value of "a difference of at least the margin" is (`overpaint.report.statistics.MARGIN`),
- and is not marked where neither is shown. Not significant never means equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from overpaint.report.records import CELL
from overpaint.report.statistics import MARGIN, benjamini_hochberg, holm

DIFFERS, EQUAL = "differs", "equal"
SIGNIFICANCE = 0.05
#: A claim of the long form: one method on one concept set, with everything else equal.
FAMILY = [name for name in CELL if name != "attack"] + ["detector", "threshold"]


@dataclass(frozen=True)
class Compared:
    """The two p-values of one difference, and whether the view names it as a primary endpoint."""

    p_value: float | None
    p_equivalence: float | None = None
    primary: bool = False


@dataclass(frozen=True)
class Mark:
    """What a corrected test shows: `DIFFERS`, `EQUAL` or nothing, and the corrected p-value of "no difference"."""

    says: str = ""
    p_adjusted: float | None = None
    family: str = ""


UNMARKED = Mark()


def marks(tests: Sequence[Compared | None]) -> list[Mark]:
    """The marks of one family's tests, in the order given; ``None`` stands for a figure without a test."""
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
    """Whether a view's ``primary`` endpoints include a figure: the endpoint of its facet names its metric, and the attack
    and the comparison where it says so."""
    endpoint = primary.get(facet)
    return (
        endpoint is not None
        and endpoint["metric"] == metric
        and endpoint.get("attack", attack) == attack
        and endpoint.get("against", against) == against
    )


def test_of(record: pd.Series, primary: Mapping[str, Mapping[str, str]]) -> Compared | None:
    """The test of a record; ``None`` where it has none, and for the unedited model beside itself."""
    itself = record["method_name"] == "none" and record["against"] == "original"
    if pd.isna(record["p_value"]) or itself:
        return None
    endpoint = is_primary(primary, record["facet"], record["metric"], record["attack_name"], record["against"])
    same = record.get("p_equivalence")
    return Compared(float(record["p_value"]), None if pd.isna(same) else float(same), endpoint)


def marked(records: pd.DataFrame, primary: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """The records with ``p_adjusted``, ``family`` and ``mark``, corrected within each method on each concept set."""
    records = records.copy()
    found = pd.Series([UNMARKED] * len(records), index=records.index, dtype=object)
    for _, part in records.groupby([n for n in FAMILY if n in records], sort=False, dropna=False):
        found.loc[part.index] = pd.Series(marks([test_of(r, primary) for _, r in part.iterrows()]), index=part.index)
    records["p_adjusted"] = [mark.p_adjusted for mark in found]
    records["family"] = [mark.family for mark in found]
    records["mark"] = [mark.says for mark in found]
    return records


def families_said(tests: Sequence[Compared | None], primary: Mapping[str, Mapping[str, str]]) -> str:
    """The families of one claim in a sentence, for the notes under a table."""
    counted = [t for t in tests if t is not None and t.p_value is not None]
    first = sum(t.primary for t in counted)
    named = ", ".join(f"{facet} {_endpoint(endpoint)}" for facet, endpoint in primary.items())
    rest = f"Benjamini–Hochberg over its {len(counted) - first} other tests"
    if not primary:
        return f"Tests are corrected for each method: {rest}."
    return (
        f"Tests are corrected for each method: Holm over its {first} tests of primary endpoints ({named}); {rest}. "
        f"5 % level, equivalence margin {MARGIN:.2f}."
    )


def _endpoint(endpoint: Mapping[str, str]) -> str:
    attack = f" under {endpoint['attack']}" if endpoint.get("attack") else ""
    return endpoint["metric"].replace("_", " ") + attack
