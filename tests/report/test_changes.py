"""What changed between two sets of results: groups, pairing, the correction, and why figures may differ."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from overpaint.errors import UserError
from overpaint.report.changes import COLUMNS, GROUPS, LABELS, Side, compared, differences, flat, sheets
from overpaint.report.pooling import Outcomes
from overpaint.report.records import RECORD_COLUMNS
from overpaint.report.sheets import markdown
from overpaint.report.statistics import difference_of_estimates, paired_difference, proportion
from overpaint.report.views import view_named

VIEW = view_named("facets")
CELL = {
    "model": "testbed", "concepts": "church", "kind": "object", "method": "uce", "method_name": "uce", "attack": "none",
    "attack_name": "none", "protocol": "testbed", "budget": "lite", "metrics": "facets", "seed": 0, "facet": "efficacy",
    "metric": "target_proportion", "direction": "down", "unit": "fraction", "failed": 0, "against": "original",
    "aggregation": "pooled", "version": 1, "detector": "oracle v1 aa", "threshold": 0.5, "settings": "s1",
    "versions": '{"uce": 1}', "given": "{}", "why": "", "experiment": "",
}  # fmt: skip


def side(*figures, name="x", outcomes=True, runs=()):
    """A side with one record per figure, ``(labels, hits)``: each hit is the image of one prompt."""
    records, frames = [], []
    for row, (labels, hits) in enumerate(figures):
        hits = np.asarray(hits, float)
        e = proportion(hits)
        numbers = {"value": e.value, "low": e.low, "high": e.high, "n": e.n, "failed": e.failed}
        records.append(CELL | numbers | labels | {"artefact": str(row)})
        keys = {
            "metric": records[-1]["metric"],
            "artefact": str(row),
            "seed": 0,
            "label": "x",
            "stratum": "",
            "other": None,
        }
        prompts = [f"p{place}" for place in range(len(hits))]
        frames.append(pd.DataFrame({"prompt_id": prompts, "cluster": prompts, "value": hits}).assign(**keys))
    table = pd.DataFrame(records).reindex(columns=[*RECORD_COLUMNS, "artefact", "experiment"])
    return Side(name, table, Outcomes(pd.concat(frames) if outcomes else None), runs)


def hits(k, n=40):
    return np.arange(n) < k


def only(a, b, **options):
    """The one figure of both sides."""
    (figure,) = compared(a, b, VIEW, **options).to_dict("records")
    return figure


def test_a_difference_is_b_minus_a_paired_by_prompt():
    one, other = hits(30), hits(5)
    figure, gap = only(side(({}, one)), side(({}, other))), paired_difference(other, one)
    assert (figure["difference"], figure["low"], figure["high"]) == pytest.approx((gap.value, gap.low, gap.high))
    assert (figure["group"], figure["better"], figure["pairing"], figure["n"]) == ("changed", "better", "paired", 40)
    assert (figure["a"], figure["b"]) == pytest.approx((0.75, 0.125))
    turned = only(side(({}, other)), side(({}, one)))
    assert turned["better"] == "worse" and turned["difference"] == pytest.approx(-gap.value)


def test_without_outcomes_the_intervals_are_combined():
    one, other = hits(20), hits(12)
    paired, unpaired = (only(side(({}, one)), side(({}, other), outcomes=stored)) for stored in (True, False))
    gap = difference_of_estimates(proportion(other), proportion(one))
    assert (unpaired["low"], unpaired["high"], unpaired["p_value"]) == pytest.approx((gap.low, gap.high, gap.p_value))
    assert unpaired["pairing"] == "unpaired" and "outcomes are not stored" in unpaired["why"]
    assert paired["high"] - paired["low"] < unpaired["high"] - unpaired["low"]  # the pairs agree where they can


@pytest.mark.parametrize(
    ("one", "other", "group"),
    [
        (hits(20), hits(20), "identical"),
        (hits(20), ~hits(20), "inconclusive"),  # the same share of other images
        (hits(2, 200), hits(3, 200), "equal"),
        (hits(20), hits(17), "inconclusive"),
        (hits(20), hits(2), "changed"),
    ],
)
def test_a_pair_of_figures_is_in_its_group(one, other, group):
    assert only(side(({}, one)), side(({}, other)))["group"] == group


def test_another_value_of_the_same_outcomes_is_a_change():
    """No noise is between the two: the figure was computed in another way, or its file was edited."""
    a = side(({}, hits(20)))
    edited = replace(a, records=a.records.assign(value=0.55))  # within the interval of 0.5
    figure = only(a, edited)
    assert (figure["group"], figure["better"]) == ("changed", "worse")
    assert figure["why"] == "the same outcomes, another value; the figure is no mean of its outcomes"
    size = {"low": None, "high": None, "unit": "bytes"}
    a = replace(a, records=a.records.assign(**size))
    assert only(a, replace(a, records=a.records.assign(value=0.55)))["group"] == "changed"
    assert only(side(({}, hits(20)), outcomes=False), edited)["group"] != "changed"


def report(a, b, *ignored, shown=("changed",)):
    figures = compared(a, b, VIEW, ignored)
    return markdown(sheets(figures, differences(figures, a, b), a, b, shown, VIEW))


def test_figures_of_two_methods_are_not_compared_whatever_is_ignored():
    sides = side(({}, hits(3))), side(({"method": "esd", "method_name": "esd"}, hits(3)))
    for ignored in ((), ("method",)):
        said = report(*sides, *ignored)
        assert "method is uce in A and esd in B. Figures of two methods are not compared" in said
        assert "--view pairs compares methods" in said and "ignore=" not in said


def test_all_labels_that_keep_two_sides_apart_are_named():
    other = {"protocol": "testbed steps=4", "budget": "smoke", "method": "uce lamb=1.0"}
    said = report(side(({}, hits(3))), side((other, hits(3))))
    assert "method is uce in A and uce lamb=1.0 in B; protocol is testbed in A and testbed steps=4 in B" in said
    assert "ignore=method,protocol,budget leaves them out of the comparison" in said


def test_labels_that_are_combined_in_other_ways_name_what_to_ignore():
    labels = [
        {"budget": budget, "concepts": concepts} for budget in ("lite", "paper") for concepts in ("church", "car")
    ]
    a, b = (side(*((labels[place], hits(3)) for place in places)) for places in ((0, 3), (1, 2)))
    said = report(a, b)
    assert "combined in other ways. ignore=concepts or ignore=budget compares some." in said
    assert report(a, b, "budget") != said


def test_figures_of_two_metrics_are_not_compared():
    said = report(side(({}, hits(3))), side(({"metric": "ua"}, hits(3))))
    assert "metric is target_proportion in A and ua in B. Figures of two metrics are not compared." in said


def test_groups_that_are_not_listed_are_named():
    sides = side(({}, hits(20)), ({"metric": "ua"}, hits(20))), side(({}, hits(17)), ({"metric": "ira"}, hits(20)))
    assert "Not listed: inconclusive, only-a, only-b. --show all lists them." in report(*sides)
    assert "Not listed" not in report(*sides, shown=tuple(GROUPS))
    assert "Not listed" not in report(sides[0], sides[0])


def test_figures_without_a_test_are_told_apart():
    size = {"metric": "artefact_bytes", "unit": "bytes", "low": None, "high": None, "n": 1}
    a = side(
        ({**size, "value": 10.0}, hits(1)), ({"metric": "ua"}, hits(3)), ({"metric": "ira"}, hits(3)), outcomes=False
    )
    b = side(
        ({**size, "value": 11.0}, hits(1)), ({"metric": "ua", "value": None, "why": "too few"}, hits(3)),
        ({"metric": "ira", "aggregation": "per label"}, hits(3)), ({"metric": "cra"}, hits(3)), outcomes=False,
    )  # fmt: skip
    found = compared(a, b, VIEW).set_index("metric")
    assert found["group"].to_dict() == {
        "artefact_bytes": "untested", "ua": "untested", "ira": "untested", "cra": "only-b"
    }  # fmt: skip
    assert found.loc["artefact_bytes", "difference"] == 1 and found.loc["artefact_bytes", "why"] == "no interval"
    assert found.loc["ua", "why"] == "undefined in B: too few"
    assert found.loc["ira", "why"] == "aggregation: pooled in A, per label in B"


def test_all_comparisons_are_one_family():
    """Holm over the primary endpoints of all methods, Benjamini and Hochberg's correction over the rest."""
    figures = [
        ({"method": f"m{m}", "metric": metric}, hits(20)) for m in range(10) for metric in ("target_proportion", "ua")
    ]
    a = side(*figures)
    b = side(*[(labels, hits(13) if labels["method"] == "m0" else hits(20)) for labels, _ in figures])
    found = compared(a, b, VIEW).set_index(["metric", "method"])
    target, ua = found.loc[("target_proportion", "m0")], found.loc[("ua", "m0")]
    assert target["family"] == "primary (Holm)" and ua["family"] == "other (BH)"
    assert target["p_adjusted"] == pytest.approx(10 * target["p_value"]) == ua["p_adjusted"]
    assert target["p_value"] < 0.05 < target["p_adjusted"] and target["group"] == "inconclusive"


def test_results_that_differ_by_chance_only_are_rarely_called_changed():
    """At most one of ten comparisons of 4 figures has a changed figure if there is none: 5 % in each family."""
    chance = np.random.default_rng(0)
    false, times = 0, 100
    for _ in range(times):
        labels = [{"method": f"m{m}", "metric": metric} for m in range(2) for metric in ("target_proportion", "ua")]
        a, b = (side(*[(name, chance.random(24) < 0.4) for name in labels]) for _ in range(2))
        false += (compared(a, b, VIEW)["group"] == "changed").any()
    assert false <= 0.1 * times + 3 * np.sqrt(times * 0.09)  # 19


def test_method_seeds_are_one_figure():
    a = side(*[({"seed": seed}, hits(30)) for seed in range(3)])
    b = side(*[({"seed": seed}, hits(5)) for seed in range(3)])
    figure = only(a, b)
    assert figure["a"] == pytest.approx(0.75) and figure["n"] == 120 and figure["group"] == "changed"
    fewer = only(a, side(({"seed": 1}, hits(5))))
    assert ("method seeds", "0, 1, 2", "1") in fewer["differs"]


def test_prompts_that_do_not_correspond_are_not_paired():
    a = side(({}, hits(20)))
    b = side(({}, hits(20, 90)))
    assert "fewer than half" in only(a, b)["why"]
    figure = only(side(({"value": 0.9}, hits(20))), a)  # the figure is no mean of its outcomes
    assert figure["pairing"] == "unpaired" and "no mean of its outcomes" in figure["why"]


def test_a_label_that_differs_can_be_ignored():
    a, b = side(({"budget": "lite"}, hits(20))), side(({"budget": "paper"}, hits(2)))
    assert set(compared(a, b, VIEW)["group"]) == {"only-a", "only-b"}
    figure = only(a, b, ignore=["budget"])
    assert figure["budget"] == "lite → paper" and figure["group"] == "changed"
    labels = [({"method": label, "method_name": name}, hits(20)) for label, name in (("uce", "uce"), ("none", "none"))]
    other = [
        ({"method": label, "method_name": name}, hits(2)) for label, name in (("uce lamb=1", "uce"), ("none", "none"))
    ]
    found = compared(side(*labels), side(*other), VIEW, ["method"])
    assert found["method"].tolist() == ["uce → uce lamb=1", "none"]
    with pytest.raises(UserError, match="unknown label 'budgt' in ignore; did you mean 'budget'"):
        compared(a, b, VIEW, ["budgt"])
    figures = compared(a, b, VIEW)
    text = markdown(sheets(figures, differences(figures, a, b), a, b, ["changed"], VIEW))
    assert "budget is lite in A and paper in B. ignore=budget leaves it out" in text


def test_the_same_share_of_other_prompts_is_not_identical():
    """20 of 40 images either way; the order of outcomes does not matter, and identical figures need no interval."""
    one, other = side(({}, hits(20))), side(({}, hits(20)[::-1]))
    assert only(one, other)["group"] == "inconclusive"
    outcomes = one.outcomes.together(one.records.to_dict("records"))[
        ["prompt_id", "cluster", "seed", "label", "stratum", "value", "metric"]
    ]
    turned = replace(
        one, outcomes=Outcomes(outcomes[::-1].assign(artefact=one.records["artefact"].iloc[0], other=None))
    )
    same = only(one, turned)
    assert (same["group"], same["difference"], same["p_value"]) == ("identical", 0.0, 1.0) and np.isnan(same["low"])


def test_two_detectors_are_two_figures():
    pair = [({"detector": name}, hits(k)) for name, k in (("oracle v1 aa", 20), ("oracle_b v1 bb", 2))]
    assert compared(side(*pair), side(*pair), VIEW)["group"].tolist() == ["identical"] * 2
    found = compared(side(*pair), side(pair[1]), VIEW)
    assert sorted(found["group"]) == ["identical", "only-a"]


def test_what_differs_in_how_they_were_made_is_named():
    run = {"libraries": {"torch": "2.1"}, "machine": "x86_64", "models": ["m" * 20], "assets": {"oracle": "b" * 20}}
    a = side(({}, hits(20)), runs=[run])
    changes = {
        "versions": '{"uce": 2}',
        "detector": "oracle v2 bb",
        "version": 2,
        "given": '{"uce.lamb": 1}',
        "settings": "s2",
    }
    b = side((changes, hits(20)), runs=[run | {"libraries": {"torch": "2.2"}, "assets": {"oracle": "c" * 20}}])
    figures = compared(a, b, VIEW)
    rows = differences(figures, a, b).set_index("what")
    assert rows.loc["version of uce"].tolist() == ["1", "2", 1]
    assert rows.loc["version of target_proportion"].tolist() == ["1", "2", 1]
    assert rows.loc["detector"].tolist() == ["oracle v1 aa", "oracle v2 bb", 1]
    assert rows.loc["set by hand"].tolist() == ["none", '{"uce.lamb": 1}', 1]
    assert rows.loc["settings (hash)", "figures"] == 1
    assert rows.loc["library torch"].tolist() == ["2.1", "2.2", 0]
    assert rows.loc["asset oracle"].tolist() == ["b" * 12, "c" * 12, 0] and "model" not in rows.index
    said = flat(figures)["differs"].item()
    assert "version of uce: 1 → 2" in said and list(flat(figures)) == COLUMNS


def test_components_that_share_a_name_have_versions_of_their_own():
    a, b = (side(({"versions": text}, hits(20))) for text in ('{"x": 1}', '{"method=x": 1, "detector=x": 2}'))
    rows = differences(compared(a, b, VIEW), a, b).set_index("what")
    assert rows.loc["version of detector=x"].tolist() == ["1", "2", 1] and "version of method=x" not in rows.index


def test_hostile_labels_stay_text():
    a, b = side(({"method": "a|b\n[red]"}, hits(20))), side(({"method": "a|b\n[red]"}, hits(2)))
    figures = compared(a, b, VIEW)
    text = markdown(sheets(figures, differences(figures, a, b), a, b, list(GROUPS), VIEW))
    assert r"a\|b\\n\[red\]" in text and "\n[red]" not in text
    assert json.loads(figures.to_json(orient="records"))[0]["method"] == "a|b\n[red]"
    assert "experiment" in LABELS


def test_better_follows_the_difference_that_is_tested():
    """A's 24 images are among B's 40. B shows the concept more often as a whole, but less often in the shared images."""
    a, b = side(({}, hits(8, 24))), side(({}, np.arange(40) >= 24))
    figure, turned = only(a, b), only(b, a)
    assert figure["a"] < figure["b"] and figure["difference"] < 0 and figure["pairing"] == "paired"
    assert (figure["group"], figure["better"], turned["better"]) == ("changed", "better", "worse")
    assert figure["why"] == "the shared images differ the other way than A and B as a whole" == turned["why"]
    up = {"direction": "up", "metric": "ira"}
    assert only(side((up, hits(8, 24))), side((up, np.arange(40) >= 24)))["better"] == "worse"
    assert only(side(({}, hits(30))), side(({}, hits(5))))["why"] == ""
