"""Views of stored records: means over concepts, and what is missing."""

import pandas as pd
import pytest

import overpaint
from overpaint.grid.registry import components
from overpaint.grid.scope import OUTSIDE
from overpaint.images.stages.measure import RECORD_COLUMNS
from overpaint.report.records import CELL, corrected, stored_records
from overpaint.report.statistics import Estimate, mean_of_estimates
from overpaint.report.tables import FIELDS, cell_text, latex_text, number, render
from overpaint.run.store import Store


def record(method, concepts, kind, metric, value, low, high, attack="none", unit="fraction"):
    cell = {"model": "m", "concepts": concepts, "kind": kind, "method": method, "attack": attack}
    cell |= {"protocol": "p", "budget": "b", "seed": 0, "facet": "efficacy", "metric": metric, "direction": "down"}
    rest = {"unit": unit, "value": value, "low": low, "high": high, "n": 10, "failed": 0, "original": 1.0, "scope": ""}
    return cell | rest | {"control": None, "against": "original", "p_value": None, "why": "" if value else "no images"}


def attack(method, concepts, name, value, control, difference, p_value, scope=""):
    found = record(method, concepts, "object", "attack_success_any", value, None, None, attack=name)
    low, high = difference - 0.1, difference + 0.1
    found |= {"control": control, "difference": difference, "difference_low": low, "difference_high": high}
    return found | {"p_value": p_value, "against": "control", "scope": scope}


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


def test_a_mean_over_fewer_concepts_says_so(records):
    """ESD has no record of the car: its mean would stand beside UCE's as if it were of the same concepts."""
    fewer = records[~((records["method"] == "esd") & (records["concepts"] == "car"))]
    _, _, uce, esd = (line for line in render(fewer, "md", "methods").splitlines() if line.startswith("|"))
    assert "0.00 [0.00, 0.30] (over 1 of 2 concepts)" in esd and " of " not in uce


@pytest.mark.parametrize("view", ["facets", "methods"])
def test_figures_of_two_settings_are_neither_mixed_nor_lost(view):
    one, two = (record("uce", "church", "object", "target_proportion", v, v - 0.1, v + 0.1) for v in (0.2, 0.4))
    text = render(corrected(pd.DataFrame([one, two | {"seed": 1}])), "md", view)
    assert "0.20 [0.10, 0.30]" in text and "0.40 [0.30, 0.50]" in text
    assert [line.split(", seed ")[1][0] for line in text.splitlines() if line.startswith("###")] == ["0", "1"]


def test_one_row_an_attack_beside_its_control():
    rows = [
        attack("uce", "church", "cce", 0.9, 0.1, 0.8, 1e-5),
        attack("uce", "car", "cce", 0.7, 0.1, 0.6, 1e-5),
        attack("uce", "church", "uda", 0.2, 0.1, 0.1, 0.4),
        attack("uce", "car", "uda", 0.1, 0.1, 0.0, 0.4),
        attack("esd", "church", "cce", 0.5, 0.5, 0.0, 0.9, scope=OUTSIDE),
        attack("esd", "church", "random_prefix", 0.5, None, -0.5, 0.01) | {"against": "original"},
        attack("esd", "church", "uda", 0.9, 0.1, 0.8, 1e-5),
    ]
    others = [record("uce", str(n), "object", "fid", 1.0, None, None) | {"p_value": 0.9} for n in range(10**4)]
    text = render(corrected(pd.DataFrame(rows + others)), "md", "redteam")
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert "### uce on m: mean over church, car" in text and "### esd on m: church" in text
    assert [name.split(" ↓")[0] for name in table[0][:5]] == (
        ["attack", "attacked", "control", "attacked − control", "unedited model"]
    )
    found = {(row[0], row[1]): row[2:4] for row in table}
    assert found["cce", "0.80"] == ["0.10", "0.70 [0.63, 0.77]"]
    assert found["uda", "0.90"] == ["0.10", "0.80 [0.70, 0.90]"], "corrected over what the view shows"
    assert found["uda", "0.15"] == ["0.10", "0.05 [-0.02, 0.12] ≈"], "not distinguishable from its control"
    assert found["cce", "0.50 †"][1].endswith("≈ †") and OUTSIDE in text
    assert found["random_prefix", "0.50"] == ["", ""], "it is a control and has none"


def test_a_mean_difference_is_told_from_none_by_its_own_interval():
    """Of four concepts each difference could be none by itself, their mean could not."""
    rows = [attack("uce", concept, "cce", 0.2, 0.11, 0.09, 0.4) for concept in ("church", "car", "cat", "ship")]
    text = render(corrected(pd.DataFrame(rows)), "md", "redteam")
    assert "0.09 [0.04, 0.14] |" in text
    unsure = [rows[0], attack("uce", "car", "cce", 0.02, 0.11, -0.09, 0.4)]
    assert "0.00 [-0.07, 0.07] ≈" in render(corrected(pd.DataFrame(unsure)), "md", "redteam")
    assert "0.09 [-0.01, 0.19] ≈" in render(corrected(pd.DataFrame(rows[:1])), "md", "redteam")


@pytest.mark.parametrize("form", ["md", "latex"])
@pytest.mark.parametrize("view", ["facets", "methods"])
def test_failed_images_are_shown_beside_the_figure(form, view):
    one, other = (record("uce", c, "object", "target_proportion", 0.25, 0.1, 0.5) for c in ("church", "car"))
    whole, holed = (render(corrected(pd.DataFrame([one, other | {"failed": n}])), form, view) for n in (0, 3))
    assert "failed" not in whole and holed.count("(3 failed)") == 1
    undefined = corrected(pd.DataFrame([one | {"value": None, "failed": 24}])).iloc[0]
    assert cell_text(undefined) == "⊥ (24 failed)"


@pytest.fixture
def measured(tmp_path):
    """``measured(record, …)``: a store with a measurement of each of these records, made one after the other."""

    def make(*records):
        store = Store(tmp_path)
        store.prepare()
        for index, row in enumerate(records):
            with store.workspace() as folder:
                columns = [name for name in RECORD_COLUMNS if name in row]
                pd.DataFrame([row], columns=columns).to_parquet(folder / "records.parquet")
                store.publish("measure", f"{index:03}", folder, {})
        return stored_records(store)

    return make


def test_figures_of_two_detectors_or_thresholds_stay_apart(measured):
    one = record("uce", "church", "object", "target_proportion", 0.2, 0.1, 0.3)
    judged = [("oracle v1 aa", 0.5), ("oracle v1 aa", 0.9), ("other v1 bb", 0.5)]
    rows = [
        one | {"detector": d, "threshold": t, "aggregation": "pooled", "value": 0.2 + n / 100}
        for n, (d, t) in enumerate(judged)
    ]
    found = measured(*rows, rows[0] | {"value": 0.4})
    assert sorted(found["value"]) == pytest.approx([0.21, 0.22, 0.4]), "the newest of one detector and threshold"
    titles = [line for line in render(found, "md").splitlines() if line.startswith("###")]
    assert len(titles) == 3 and titles[0].endswith("detector oracle v1 aa, threshold 0.9")


def test_records_from_before_detectors_were_kept_count_until_there_is_a_newer_one(measured):
    old = record("uce", "church", "object", "target_proportion", 0.2, 0.1, 0.3)
    new = old | {"detector": "oracle v1 aa", "threshold": 0.5, "aggregation": "pooled", "value": 0.25}
    found = measured(old, old | {"method": "esd", "value": 0.3}, new)
    assert sorted(found["value"]) == [0.25, 0.3]
    assert "0.30 [0.10, 0.30]" in render(found, "md") and render(found, "md").count("###") == 1


def test_a_block_a_concept_set():
    one = record("uce", "church", "object", "target_proportion", 0.25, 0.1, 0.5)
    text = render(
        corrected(pd.DataFrame([one, one | {"concepts": "objects5 in turn", "value": 0.75}])), "md", "scaling"
    )
    titles = [line for line in text.splitlines() if line.startswith("###")]
    assert titles == ["### m: church", "### m: objects5 in turn"] and "0.25 [" in text and "0.75 [" in text


def test_a_lower_bound_is_marked():
    row = record("uce", "church", "object", "relearn_steps_to_half", 40, 20, 40, attack="relearn", unit="steps")
    free, bound = (
        render(corrected(pd.DataFrame([row | {"why": why}])), "md") for why in ("", "lower bound: not reached")
    )
    assert "| 40 [20, 40] |" in free and "≥" not in free
    assert "| ≥ 40 [20, 40] |" in bound and "≥ a lower bound" in bound


def test_an_unknown_view_names_the_known(records):
    with pytest.raises(overpaint.UserError, match="did you mean 'methods'"):
        render(records, "md", "method")


def test_a_view_that_shows_nothing_says_so(records):
    plain = corrected(records[records["metric"] == "target_proportion"])
    with pytest.raises(overpaint.UserError, match="view redteam shows none of the"):
        render(plain, "md", "redteam")
    assert render(plain, "csv", "redteam").startswith("model,")  # the long form holds everything, whatever the view


def test_latex_escapes_what_it_would_read_as_commands():
    assert latex_text(r"a_b {c} $d \e 50 % ≈") == r"a\_b \{c\} \$d \textbackslash{}e 50 \% $\approx$"


@pytest.mark.parametrize("view", sorted(components("view")))
def test_every_view_asks_for_metrics_that_exist(view):
    import yaml

    known = yaml.safe_load(components("metrics")["facets"].read_text())["metrics"]
    chosen = yaml.safe_load(components("view")[view].read_text())
    columns = chosen["columns"]
    assert chosen["rows"] in ("method", "attack") and set(chosen["blocks"]) <= set(CELL)
    assert {column.get("field", "value") for column in columns.values()} <= FIELDS.keys()
    assert {column["metric"] for column in columns.values()} <= known.keys()
    assert {column.get("attack", "none") for column in columns.values()} <= components("attack").keys()


def test_the_mean_of_equal_estimates_is_narrower_by_the_root_of_their_number():
    one = Estimate(0.5, 0.3, 0.8, n=10)
    four = mean_of_estimates([one] * 4)
    assert four.value == 0.5 and four.n == 40
    assert four.low == pytest.approx(0.4) and four.high == pytest.approx(0.65)
    assert mean_of_estimates([one])[:3] == pytest.approx(one[:3])
    assert mean_of_estimates([]).value is None


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (-0.001, "fraction", "0.00"),
        (-0.3, "fraction", "-0.30"),
        (421e3, "bytes", "421 kB"),
        (0.00129, "seconds", "0.00129 s"),
        (26.17, "dB", "26.2 dB"),
        (141.3, "", "141"),
    ],
)
def test_numbers_are_short_and_have_their_unit(value, unit, text):
    assert number(value, unit) == text
