"""Panels: an attack is above a control if its difference remains after correction over the table that is shown."""

import pandas as pd
import pytest

from overpaint.report.panels import ABOVE_ALL, ABOVE_FIRST, panels
from overpaint.report.views import view_named

MODEL = {"model": "testbed", "concepts": "church", "kind": "object", "scope": "", "unit": "fraction"}
METRICS = ("attack_success_any", "attack_beyond_prefix")


def records(p_values, others=0):
    """Records of one attack on a method for each pair of p-values, and ``others`` tests that the table does not show."""
    rows = []
    for number, pair in enumerate(p_values):
        cell = MODEL | {"method": f"m{number}", "method_name": f"m{number}", "attack": "uda", "attack_name": "uda"}
        for metric, p in zip(METRICS, pair, strict=True):
            rows.append(
                cell | {"metric": metric, "against": "control", "p_value": p, "difference": 0.5, "control": 0.1}
            )
        rows += [
            cell | {"metric": f"x{i}", "against": "control", "p_value": 1e-9, "difference": 0.5} for i in range(others)
        ]
    filled = {"value": 0.6, "low": 0.4, "high": 0.8, "n": 12, "failed": 0, "why": "", "facet": "robustness"}
    return pd.DataFrame([filled | row for row in rows])


def standings(found):
    (table,) = panels(found, view_named("panel"))
    assert f"over the {len(table.columns) * len(METRICS)} differences of the table" in table.notes[0]
    return [entry.standing for entry in table.rows[0].entries]


def test_both_controls_count():
    pairs = [(1e-4, 1e-4), (1e-4, 0.5), (0.5, 1e-4), (0.5, 0.5)]
    assert standings(records(pairs)) == [ABOVE_ALL, ABOVE_FIRST, "", ""]


def test_a_negative_difference_is_not_above():
    found = records([(1e-4, 1e-4)])
    assert standings(found.assign(difference=-found["difference"])) == [""]


@pytest.mark.parametrize("others", [0, 50])
def test_tests_that_the_table_does_not_show_do_not_count(others):
    """Many certain differences elsewhere would make the correction more lenient."""
    assert standings(records([(0.04, 0.04)] + [(0.9, 0.9)] * 4, others)) == [""] * 5


def test_the_correction_is_over_all_methods_of_the_table():
    assert standings(records([(0.02, 0.02)])) == [ABOVE_ALL]
    assert standings(records([(0.02, 0.02)] + [(0.9, 0.9)] * 9))[0] == ""
