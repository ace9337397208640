"""Views of stored records: means over concepts, and what is missing."""

import pandas as pd
import pytest

import overpaint
from overpaint.registry import components
from overpaint.statistics import Estimate, mean_of_estimates
from overpaint.tables import corrected, render


def record(method, concepts, kind, metric, value, low, high, attack="none", unit="fraction"):
    cell = {"model": "m", "concepts": concepts, "kind": kind, "method": method, "attack": attack}
    cell |= {"protocol": "p", "budget": "b", "seed": 0, "facet": "efficacy", "metric": metric, "direction": "down"}
    rest = {"unit": unit, "value": value, "low": low, "high": high, "n": 10, "failed": 0, "original": 1.0}
    return cell | rest | {"control": None, "against": "original", "p_value": None}


@pytest.fixture
def records():
    rows = [
        record("uce", "church", "object", "target_proportion", 0.2, 0.1, 0.4),
        record("uce", "car", "object", "target_proportion", 0.4, 0.2, 0.6),
        record("uce", "sketch", "style", "target_proportion", 0.5, 0.3, 0.7),
        record("esd", "church", "object", "target_proportion", 0.0, 0.0, 0.3),
        record("esd", "car", "object", "target_proportion", None, None, None),
    ]
    return corrected(pd.DataFrame(rows))


def test_one_row_a_method_and_the_mean_over_concepts(records):
    text = render(records, "md", "methods")
    header, _, uce, esd = (line for line in text.splitlines() if line.startswith("|"))
    assert "target, objects ↓" in header and "characters" not in header
    assert "0.30 [0.19, 0.44]" in uce and "0.50 [0.30, 0.70]" in uce
    assert "⊥" in esd, "a mean over fewer concepts would be another figure"


def test_an_unknown_view_names_the_known(records):
    with pytest.raises(overpaint.UserError, match="did you mean 'methods'"):
        render(records, "md", "method")


@pytest.mark.parametrize("view", sorted(components("view")))
def test_every_view_asks_for_metrics_that_exist(view):
    import yaml

    known = yaml.safe_load(components("metrics")["facets"].read_text())["metrics"]
    columns = yaml.safe_load(components("view")[view].read_text())["columns"]
    assert {column["metric"] for column in columns.values()} <= known.keys()
    assert {column.get("attack", "none") for column in columns.values()} <= components("attack").keys()


def test_the_mean_of_equal_estimates_is_narrower_by_the_root_of_their_number():
    one = Estimate(0.5, 0.3, 0.8, n=10)
    four = mean_of_estimates([one] * 4)
    assert four.value == 0.5 and four.n == 40
    assert four.low == pytest.approx(0.4) and four.high == pytest.approx(0.65)
    assert mean_of_estimates([one])[:3] == pytest.approx(one[:3])
    assert mean_of_estimates([]).value is None
