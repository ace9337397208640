"""Means over concepts and method seeds, with their intervals."""

import json
from dataclasses import replace

import numpy as np
import pytest
from table_records import attacked, compared, frame, outcomes_of, piped, record, steps

from overpaint.report import statistics
from overpaint.report.families import DIFFERS
from overpaint.report.pooling import Outcomes, pooled
from overpaint.report.records import with_identity
from overpaint.report.rendering import render, tables
from overpaint.report.statistics import Estimate, mean_of_estimates
from overpaint.report.tables import averaged
from overpaint.report.views import Column, view_named


def test_one_row_a_method_and_the_mean_over_concepts(records):
    text = render(records, "md", "methods")
    header, _, uce, esd = piped(text)
    assert header[1] == "target, objects ↓ n=20" and not any("characters" in name for name in header)
    assert uce[1].startswith("0.30 [0.19, 0.44]") and uce[2] == "0.50 [0.30, 0.70]"
    assert esd[1] == "⊥ (1)" and "\n(1) no images" in text, "a mean over fewer concepts would be another figure"
    assert "these concepts are fixed" in text and "One method seed" in text


def test_a_mean_over_fewer_concepts_says_so(records):
    """ESD has no record for the car. Without a remark, its mean would seem to cover the same concepts as UCE's."""
    fewer = records[~((records["method"] == "esd") & (records["concepts"] == "car"))]
    _, _, uce, esd = piped(render(fewer, "md", "methods"))
    assert esd[1] == "0.00 [0.00, 0.30] (over 1 of 2 concepts)" and "over" not in uce[1]


def test_the_mean_of_equal_estimates_is_narrower_by_the_root_of_their_number():
    one = Estimate(0.5, 0.3, 0.8, n=10)
    four = mean_of_estimates([one] * 4)
    assert four.value == 0.5 and four.n == 40 and four.spread == 0
    assert four.low == pytest.approx(0.4) and four.high == pytest.approx(0.65)
    assert mean_of_estimates([one])[:3] == pytest.approx(one[:3])
    assert mean_of_estimates([]).value is None


def test_a_mean_over_concepts_is_one_stratified_interval_where_outcomes_are_stored():
    """Four concepts without a hit: the combined interval of 4 × 24 prompts ends at 0.07, that of 96 prompts at 0.04.

    If all concepts have the same prompts, they are worth 24 prompts.
    """
    rows = frame(*(compared("uce", c, "target_proportion", 0.0, -1.0, 1e-6, kind="object") for c in "abcd"))
    rows["low"], rows["high"] = 0.0, statistics.wilson(0, 24)[1]
    rows, outcomes = outcomes_of(rows, np.zeros((4, 24)), np.ones((4, 24)))
    (with_,), (without,) = (tables(rows, "methods", found) for found in (outcomes, None))
    sharp, joined = (next(table.entries()) for table in (with_, without))
    assert sharp.high == pytest.approx(statistics.proportion(np.zeros(96)).high, abs=1e-6)
    assert joined.high == pytest.approx(statistics.wilson(0, 24)[1] / 2, abs=1e-6)
    assert sharp.mark.says == joined.mark.says == DIFFERS and sharp.spread == 0
    (shared,) = tables(rows, "methods", outcomes.assign(cluster=outcomes["cluster"].str.split("-").str[1]))
    assert next(shared.entries()).high == pytest.approx(statistics.proportion(np.zeros(24)).high, abs=1e-6)


def test_outcomes_that_give_another_figure_are_not_used():
    rows = frame(*(record("uce", c, "target_proportion", 0.5, 0.3, 0.7) for c in "ab"))
    rows, outcomes = outcomes_of(rows, np.zeros((2, 24)), np.ones((2, 24)))
    (table,) = tables(rows, "methods", outcomes)
    assert next(table.entries()).value == 0.5


def test_method_seeds_are_averaged_and_their_spread_is_shown():
    rows = frame(
        *(
            record("uce", "church", "target_proportion", v, v - 0.1, v + 0.1, seed=s)
            for s, v in enumerate((0.2, 0.4, 0.6))
        )
    )
    (table,) = tables(rows, "methods")
    entry = next(table.entries())
    assert entry.value == pytest.approx(0.4) and entry.spread == pytest.approx(0.193, abs=0.001)
    assert entry.high - 0.4 > 4.302653 * 0.2 / np.sqrt(3) and entry.low == 0
    (two,) = tables(rows.iloc[:2], "methods")
    assert next(two.entries()).low == pytest.approx(0.2), (
        "two seeds: an interval for these, from prompts that they share"
    )
    two = render(rows.iloc[:2], "md", "methods")
    assert "2 method seeds (0, 1): the intervals do not cover the variation between seeds" in two
    assert "Means over 3 method seeds (0, 1, 2)" in render(rows, "md", "methods") and "σ" in render(
        rows, "md", "methods"
    )


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ({"cat": [0], "church": [3]}, "One method seed for each method and concept (0, 3): the intervals do not cover"),
        ({"cat": [0, 1], "church": [0, 1]}, "Means over 2 method seeds (0, 1): the intervals do not cover"),
        ({"cat": [0, 1], "church": [2, 3]}, "Means over 2 method seeds for each method and concept (0, 1, 2, 3): the"),
        ({"cat": [0], "church": [0, 1]}, "Means over 1 to 2 method seeds for each method and concept (0, 1): the"),
        ({"cat": [0, 1, 2], "church": [3, 4, 5]}, "for each method and concept (0, 1, 2, 3, 4, 5), a sample of seeds."),
        (
            {"cat": [0], "church": [0, 1, 2]},
            "(0, 1, 2): the intervals cover the variation between seeds where there are 3",
        ),
    ],
)
def test_the_note_gives_the_seeds_of_each_concept(seeds, said):
    """The unedited model has one seed and is not counted."""
    rows = [
        record(method, concept, "target_proportion", 0.2, 0.1, 0.3, seed=seed)
        for concept, of in seeds.items()
        for method, own in (("none", of[:1]), ("uce", of))
        for seed in own
    ]
    assert said in render(frame(*rows), "md", "methods")


def test_an_interval_of_seeds_stays_within_the_scale():
    rows = (
        compared("uce", "church", "target_proportion", v, v - 1, 1e-6, seed=s) for s, v in enumerate((0.0, 0.5, 1.0))
    )
    rows = frame(*rows)
    (table,) = tables(rows, "methods")
    entry = next(table.entries())
    assert (entry.value, entry.low, entry.high) == (0.5, 0.0, 1.0)
    assert pooled(rows.to_dict("records"), "difference", Outcomes()).estimate[:3] == (
        -0.5,
        -1.0,
        pytest.approx(0.742, abs=0.01),
    )


def test_concepts_set_by_hand_are_not_averaged_with_others():
    one = record("uce", "church", "target_proportion", 0.2, 0.1, 0.3)
    two = one | {
        "concepts": "church anchor=tree",
        "given": json.dumps({"concepts.anchor": "tree"}),
        "settings": "b" * 12,
    }
    shown = tables(frame(one, two | {"value": 0.4}), "methods")
    assert [next(t.entries()).value for t in shown] == [0.2, 0.4] and "concepts.anchor=tree" in shown[1].title


def test_a_mean_difference_is_told_from_none_by_its_own_interval():
    """For four concepts, no single difference is significant, but their mean is."""
    rows = [attacked("uce", concept, "cce", 0.2, 0.11, 0.09, 0.4) for concept in ("church", "car", "cat", "ship")]
    assert "0.09 [0.04, 0.14] σ 0.00 ≠" in render(frame(*rows), "md", "redteam")
    unsure = [rows[0], attacked("uce", "car", "cce", 0.02, 0.11, -0.09, 0.4)]
    assert "0.00 [-0.07, 0.07] σ" in render(frame(*unsure), "md", "redteam")
    assert "≠" not in "".join(piped(render(frame(*unsure), "md", "redteam"))[2])
    assert "0.09 [-0.01, 0.19] |" in render(frame(rows[0]), "md", "redteam")


def test_settings_of_an_attack_are_columns_and_have_no_common_mean():
    labels = {"cce steps=1": 0.0, "cce steps=50": 0.5, "cce": 1.0}
    rows = frame(*(attacked("uce", "church", label, v, 0.0, v, 1e-6) for label, v in labels.items()))
    (table,) = tables(rows, "leaderboard")
    shown = {head.title: entry.value for head, entry in zip(table.columns, table.rows[0].entries, strict=True)}
    inversion = {f"concept inversion, {label}": value for label, value in labels.items()}
    assert shown == inversion | {f"its control, {label}": 0.0 for label in labels}
    (alone,) = tables(rows[rows["attack"] == "cce"], "leaderboard")
    assert [head.title for head in alone.columns] == ["concept inversion", "its control"]


def test_a_bound_of_an_older_record_has_no_upper_limit():
    """It was the last step. Other records keep theirs."""
    rows = frame(
        steps(40, 20, 40, "lower bound: half is not reached"), steps(30, 20, 40), steps(None, None, None, "none")
    )
    found = with_identity(rows)
    for name in ("high", "difference_high"):
        assert found[name].tolist() == pytest.approx([np.nan, 40, np.nan], nan_ok=True)
    assert found["low"].tolist() == pytest.approx([20, 20, np.nan], nan_ok=True)


@pytest.mark.parametrize("field", ["value", "difference"])
def test_a_mean_with_a_bound_has_no_upper_limit_and_no_test(field):
    why = "lower bound: half is not reached"
    rows = frame(steps(40, 20, None, why), steps(20, 10, 30, concepts="car")).to_dict("records")
    found = pooled(rows, field, Outcomes())
    assert found.estimate[:3] == (30, pytest.approx(30 - np.hypot(20, 10) / 2), None)
    assert found.estimate.spread is found.p_value is found.p_equivalence is None
    alone = pooled(rows[:1], field, Outcomes())
    assert (alone.estimate.high, alone.p_value) == (None, 0.001)


def test_a_mean_of_bounds_over_a_sample_of_seeds_has_no_interval():
    """Three seeds that do not reach half have equal values, which says nothing about how much they vary."""
    why = "lower bound: half is not reached"
    rows = frame(*(steps(40, 20, None, why, seed=seed) for seed in range(3))).to_dict("records")
    found = pooled(rows, "value", Outcomes())
    assert found.estimate[:3] == (40, None, None) and found.estimate.spread is found.p_value is None
    two = pooled(rows[:2], "value", Outcomes())
    assert two.estimate[:3] == (40, 20, None)


def test_a_difference_with_a_bound_is_marked():
    rows = frame(
        *(steps(40, 20, None, "lower bound: half is not reached", concepts=name) for name in ("car", "church"))
    )
    view = replace(
        view_named("remains"), columns={"gap": Column("relearn_steps_to_half", "relearn", field="difference")}
    )
    (table,) = averaged(rows, view, Outcomes())
    (entry,) = table.entries()
    assert entry.bound and entry.high is None and entry.mark.says == ""


@pytest.mark.parametrize(("facet", "half"), [("specificity", 0.06), ("utility", 0.06), ("efficacy", 0.03)])
def test_concepts_that_can_share_prompts_are_not_averaged_as_independent(facet, half):
    """Neighbours, the grid and general prompts of two concept sets can be the same; target prompts cannot."""
    rows = [record("uce", c, "distance", 0.10, 0.04, 0.16, facet=facet) for c in ("church", "car", "sketch", "quillan")]
    found = pooled(frame(*rows).to_dict("records"), "value", Outcomes()).estimate
    assert (found.low, found.high) == (pytest.approx(0.10 - half), pytest.approx(0.10 + half))


def test_real_values_without_a_test_of_equivalence_get_none_from_their_mean():
    tested, real = (
        [compared("uce", c, "figure", 0.5, 0.01, 0.6, same, reach=0.04) for c in ("church", "car")]
        for same in (0.001, None)
    )
    assert pooled(frame(*tested).to_dict("records"), "value", Outcomes()).p_equivalence < 0.001
    found = pooled(frame(*real).to_dict("records"), "value", Outcomes())
    assert found.p_value > 0.4 and found.p_equivalence is None
