"""Published figures are whole and consistent; agreement, verdicts and orders follow the rules of docs/ledger.md."""

import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from command_line import CommandLine
from overpaint.errors import UserError
from overpaint.grid.cells import cell_from
from overpaint.grid.composition import compose_cells
from overpaint.grid.digests import canonical
from overpaint.grid.registry import component, components, look_in
from overpaint.images.task_parts import metric_class
from overpaint.report.ledger import agreement, measured
from overpaint.report.ledger.published import COLUMNS, UNITS, chosen, folder, names, papers, published, rules
from overpaint.report.statistics import taus_b, unpaired_difference

ROOT = Path(__file__).resolve().parents[2]
HEADER = ",".join(COLUMNS)
ROW = "Table 1,ESD,SD v1.4,nudity,,UDA,ASR,76.05,percent,down,142,,"


@pytest.fixture(scope="module")
def found():
    return published()


@pytest.fixture(scope="module")
def compared(found):
    return agreement.pairs(found)


@pytest.fixture(scope="module")
def cli(tmp_path_factory):
    """The command line in a folder without a store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OVERPAINT_STORE", raising=False)
        yield CommandLine(tmp_path_factory.mktemp("ledger"))


def figure(**values):
    """A published figure that can be compared with `record`."""
    usual = dict(method="ESD", method_name="esd", base="SD v1.4", base_name="sd14", erased="nudity", concept="nudity")
    usual |= dict(prompts="", attack="UDA", attack_name="uda", metric="ASR", metric_name="post_asr", scaled=0.76)
    usual |= dict(scale="fraction", better="down", images=142, detector="NudeNet v3, 0.45, 9 classes", note="")
    return usual | dict(paper="A", table="T", provenance="paper", value=76.0, unit="percent") | values


def record(**values):
    usual = dict(
        model="sd14", concepts="nudity", kind="unsafe", method="esd", method_name="esd", attack="uda", attack_name="uda"
    )
    usual |= dict(
        budget="paper", seed=0, facet="robustness", metric="post_asr", direction="down", unit="fraction", n=142
    )
    usual |= dict(value=0.75, low=0.67, high=0.81, detector="nudenet_exposed9 v2 0a1b2c3d", against=None)
    usual |= dict(
        given='{"concepts.prompts.target": "asset:uda_prompts/nudity.csv"}', difference_low=None, difference_high=None
    )
    return usual | values


def test_every_row_is_valid(found):
    """`published` checks each row. None of the figures of the first 22 papers gets lost."""
    assert len(found) >= 2678
    assert found["paper"].nunique() == len(papers()) >= 22
    assert {path.stem for path in folder().glob("*.csv")} == set(papers())
    assert found["scaled"].map(np.isfinite).all() and set(found["unit"]) <= set(UNITS)
    counts = found["provenance"].value_counts()
    assert counts["paper"] >= 1566 and counts["release"] >= 548 and counts["secondary"] >= 564


def test_every_paper_and_table_is_used_and_has_a_source(found):
    for key, paper in papers().items():
        assert re.fullmatch(r"\d{4}\.\d{5}", paper["arxiv"])
        assert set(paper["tables"]) == set(found.loc[found["file"] == key, "table"]), key
        assert all(table["provenance"] and table["source"] for table in paper["tables"].values())


def test_names_are_mapped_to_names_that_exist():
    known = names()
    for kind, mapped in (("method", "methods"), ("attack", "attacks"), ("model", "bases"), ("concepts", "concepts")):
        assert set(known[mapped].values()) <= set(components(kind)), mapped
    assert {name for listed in known["detectors"].values() for name in listed} <= set(components("detector"))
    assert {name for listed in known["prompts"].values() for name in listed} <= set(components("asset"))
    metrics = {name for kind in components("metrics") for name in component("metrics", kind).config["metrics"]}
    used = {rule.means for rule in rules(known)} | {name for listed in known["recorded"].values() for name in listed}
    assert {name.partition(".")[0] for name in used} <= metrics


def test_every_name_is_printed_somewhere(found):
    """A mapping of a name that no paper prints is a slip of the pen."""
    known = names()
    for mapped, column in (("methods", "method"), ("bases", "base"), ("concepts", "erased"), ("attacks", "attack")):
        assert set(known[mapped]) <= set(found[column])
    assert set(known["detectors"]) <= set(found["detector"]) and set(known["references"]) <= set(found["method"])
    printed = set(zip(found["metric"], found["metric_name"], strict=True))
    assert {(rule.printed, rule.means) for rule in rules(known)} <= printed


def test_printed_figures_have_the_direction_and_unit_of_our_metric(found):
    """Percentages are shares and hours are seconds in column ``scaled``."""
    listed = [component("metrics", kind).config["metrics"] for kind in components("metrics")]
    ours = {name: metric_class(name, reference) for of_kind in listed for name, reference in of_kind.items()}
    compared = set()
    for figure in found.drop_duplicates(["metric_name", "scale", "better"]).to_dict("records"):
        for name in (figure["metric_name"], *names()["recorded"].get(figure["metric_name"], ())):
            if metric := ours.get(name.partition(".")[0]):
                unit = {"score": "points of 1 to 10"}.get(metric.unit, metric.unit)
                assert (figure["better"], figure["scale"]) == (metric.direction, unit), name
                compared.add(name)
    assert len(compared) >= 40


def test_a_metric_has_one_direction_for_each_kind_of_prompts(found):
    directions = found.groupby(["metric_name", "prompts", "attack_name"])["better"].nunique()
    assert directions[directions > 1].index.tolist() == []
    up = found[(found["better"] == "up") & (found["attack"] != "")]
    assert set(up["metric_name"]) == {
        "CLIP_score_of_attacked_images",
        "SPQR",
        "spqr_robustness",
        "max_relative_distance",
    }


def harmonic(*terms):
    return len(terms) / sum(1 / term for term in terms)


def wide(found, paper, table, columns="metric", index=("method", "erased", "base")):
    part = found[(found["paper"] == paper) & (found["table"] == table) & ~found["note"].str.startswith("doubtful")]
    return part.pivot_table("scaled", list(index), columns)


def test_printed_totals_means_and_harmonic_means_follow_from_the_printed_figures(found):
    """The transcription agrees with the papers' own arithmetic, except in rows that are marked as doubtful."""
    detections = found[found["metric"].str.startswith("NudeNet_") & found["paper"].isin(["MACE", "ACE"])]
    parts = detections.pivot_table("scaled", ["paper", "method", "base"], "metric")
    assert len(parts) == 17 and (parts["NudeNet_total"] == parts.drop(columns="NudeNet_total").sum(axis=1)).all()

    mace = wide(found, "MACE", "Table 1").query("not erased.str.startswith('mean')").dropna()
    assert len(mace) == 27
    assert np.allclose(mace["H_o"], harmonic(1 - mace["Acc_e"], mace["Acc_s"], 1 - mace["Acc_g"]), atol=0.0016)
    celebrities = wide(found, "SPEED", "Table 2").dropna(subset="H_o")
    assert len(celebrities) == 18
    assert np.allclose(celebrities["H_o"], harmonic(1 - celebrities["Acc_e"], celebrities["Acc_r"]), atol=0.0002)
    artists = wide(found, "MACE", "Table 3", index=["method"]).dropna()
    assert len(artists) == 7 and np.allclose(artists["H_a"], artists["CLIP_s"] - artists["CLIP_e"], atol=0.011)

    spqr = found[found["paper"] == "SPQR"].pivot_table("scaled", ["table", "method", "base"], "metric").dropna()
    assert len(spqr) == 17
    assert np.allclose(spqr["SPQR"], harmonic(*(spqr[name] for name in "SPQR")), atol=0.0006)

    attacks = wide(found, "ConceptSteerers", "Table 1", "attack", ["method"])
    lengths = attacks[["Ring-A-Bell K16", "Ring-A-Bell K38", "Ring-A-Bell K77"]].mean(axis=1)
    gaps = (attacks["Ring-A-Bell"] - lengths).dropna().abs()
    assert len(gaps) == 13 and gaps.max() < 0.0002
    ace = wide(found, "ACE", "robustness table", "attack", ["method"])
    assert np.allclose(ace["mean of 3"], ace.drop(columns="mean of 3").mean(axis=1), atol=0.0001)

    hub = found[(found["paper"] == "HUB") & (found["table"] == "Table 3") & (found["metric"] != "erase_time")]
    hub = hub.pivot_table("scaled", ["method", "metric", "prompts", "attack"], "erased")
    assert len(hub) == 64 and np.allclose(hub["Overall"], hub.drop(columns="Overall").mean(axis=1), atol=0.0011)


def test_doubtful_figures_are_marked(found):
    doubtful = found[found["note"].str.startswith("doubtful")]
    assert {"HUB", "MACE", "SPQR", "ConceptSteerers", "SemanticSurgery"} == set(doubtful["paper"])
    (airplane,) = doubtful[doubtful["metric"] == "H_o"].to_dict("records")
    assert (airplane["method"], airplane["erased"], airplane["value"]) == ("AC", "CIFAR-10 airplane", 6.11)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ROW.replace("76.05", "high"), "a.csv line 2: value takes a finite number, got 'high'"),
        (ROW.replace("76.05", "nan"), "value takes a finite number"),
        (ROW.replace("76.05", "176.05"), "176.05 is no percent between nothing and all"),
        (ROW.replace("percent", "per cent"), "unknown unit 'per cent' in a.csv line 2; did you mean 'percent'"),
        (ROW.replace("down", "lower"), "'lower'"),
        (ROW.replace("142", "many"), "images takes a whole number or nothing, got 'many'"),
        (ROW.replace("142", "-1"), "images"),
        (ROW.replace("ESD", ""), "a.csv line 2: no value for method"),
        (ROW + ",more", "does not have 13 cells"),
        (ROW.replace("Table 1", "Table 9"), "unknown table 'Table 9'"),
        (f"{ROW}\n{ROW}", "two published figures in one place: A, Table 1, ESD"),
        (ROW.replace("Table 1", '"Table 1'), "is not CSV"),
    ],
)
def test_a_wrong_row_is_refused(tmp_path, text, said):
    (tmp_path / "names.yaml").write_text((folder() / "names.yaml").read_text(encoding="utf-8"))
    (tmp_path / "papers.yaml").write_text(
        'a: {name: A, arxiv: "2403.06135", tables: {Table 1: {provenance: paper, source: text}}}\n'
    )
    (tmp_path / "a.csv").write_text(f"{HEADER}\n{text}\n")
    with pytest.raises(UserError, match=re.escape(said)):
        published(tmp_path)


def test_papers_disagree_more_than_a_hundred_times(compared):
    apart = compared[compared["verdict"] == agreement.DISAGREE]
    assert len(apart) >= 100
    assert (apart["paper"] != apart["other_paper"]).all()
    assert (apart["tolerances"] > 1).all() and apart["tolerances"].is_monotonic_decreasing
    assert len(apart[~apart["provenance"].eq("secondary") & ~apart["other_provenance"].eq("secondary")]) >= 50


def test_known_disagreements_are_found(compared):
    """UCE under UnlearnDiffAtk: 79.6 % on the leaderboard, 43.0 % in SAFREE, 9.9 % in Concept Steerers."""
    part = compared[
        (compared["method"] == "UCE") & (compared["metric"] == "post_asr") & (compared["erased"] == "nudity")
    ]
    apart = part[part["verdict"] == agreement.DISAGREE]
    values = {frozenset(pair) for pair in apart[["value", "other_value"]].round(3).itertuples(index=False, name=None)}
    assert {frozenset({0.796, 0.43}), frozenset({0.796, 0.099}), frozenset({0.43, 0.099})} <= values


def pair(a, b):
    frame = pd.DataFrame([figure(paper="A", **a), figure(paper="B", **b)])
    (row,) = agreement.pairs(frame).to_dict("records")
    return row


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ({"scaled": 0.50, "images": None}, {"scaled": 0.50, "images": None}, "equal"),
        ({"scaled": 0.50, "images": None}, {"scaled": 0.55, "images": None}, "agree"),
        ({"scaled": 0.50, "images": None}, {"scaled": 0.56, "images": None}, "disagree"),
        ({"scaled": 0.50, "images": 100}, {"scaled": 0.56, "images": 100}, "within sampling error"),
        ({"scaled": 0.50, "images": 100}, {"scaled": 0.56, "images": None}, "disagree"),
        ({"scaled": 0.50, "images": 10_000}, {"scaled": 0.56, "images": 10_000}, "disagree"),
        ({"scaled": 0.50, "images": 10_000}, {"scaled": 0.52, "images": 10_000}, "agree"),
        ({"scaled": 31.0, "scale": "100 cos"}, {"scaled": 30.0, "scale": "100 cos"}, "agree"),
        ({"scaled": 31.0, "scale": "100 cos"}, {"scaled": 29.9, "scale": "100 cos"}, "disagree"),
        ({"scaled": 20.0, "scale": "distance"}, {"scaled": 18.0, "scale": "distance"}, "agree"),
        ({"scaled": 20.0, "scale": "distance"}, {"scaled": 17.9, "scale": "distance"}, "disagree"),
        ({"scaled": 0.0, "scale": "detections"}, {"scaled": 0.0, "scale": "detections"}, "equal"),
    ],
)
def test_the_rule_of_disagreement(a, b, verdict):
    assert pair(a, b)["verdict"] == pair(b, a)["verdict"] == verdict


def test_sampling_error_is_that_of_the_difference_of_shares():
    e = unpaired_difference(np.arange(100) < 50, np.arange(100) < 56)
    assert e.low < 0 < e.high
    e = unpaired_difference(np.arange(10_000) < 5_000, np.arange(10_000) < 5_600)
    assert e.high < 0


def test_figures_of_other_quantities_are_not_compared():
    for other in (
        {"method": "ESD-u"},
        {"base": "SD v1.5"},
        {"concept": "church"},
        {"attack_name": "rab"},
        {"prompts": "I2P"},
    ):
        frame = pd.DataFrame([figure(paper="A"), figure(paper="B", **other)])
        assert agreement.pairs(frame).empty


def test_recorded_differences_are_named():
    row = pair({"images": 142.0, "detector": "Q16"}, {"images": None, "note": "a subset"})
    assert row["differs_in"] == ("n 142 | not stated; detector Q16 | NudeNet v3, 0.45, 9 classes; note none | a subset")
    assert pair({}, {})["differs_in"] == ""


def test_orders_of_unlearndiffatk_and_i2p(found):
    ordered = agreement.orders(found, names())
    nudity = ordered[(ordered["erased"] == "nudity") & (ordered["attack"] == "uda")]
    i2p = ordered[(ordered["prompts"] == "I2P") & (ordered["attack"] == "")]
    assert len(nudity) >= 10 and len(i2p) >= 5
    (row,) = nudity[(nudity["paper"] == "TINA") & (nudity["other_paper"] == "UnlearnDiffAtk leaderboard")].to_dict(
        "records"
    )
    board = {
        "AdvUnlearn": 21.13,
        "ESD": 76.05,
        "FMN": 97.89,
        "MACE": 74.57,
        "RECE": 75.42,
        "SalUn": 11.27,
        "UCE": 79.58,
    }
    tina = {"AdvUnlearn": 23.24, "ESD": 76.05, "FMN": 97.89, "MACE": 81.69, "RECE": 63.38, "SalUn": 13.38, "UCE": 78.87}
    assert set(row["shared"].split(", ")) == set(board) and row["equal"] == 2
    expected = kendalltau([board[m] for m in board], [tina[m] for m in board])
    assert (row["tau"], row["p_value"]) == pytest.approx((expected.statistic, expected.pvalue))
    assert row["low"] < row["tau"] < row["high"]


def test_an_order_counts_in_the_direction_of_its_metric():
    figures = [
        figure(paper=p, method=m, scaled=v) for p in "AB" for m, v in (("ESD", 0.1), ("UCE", 0.2), ("MACE", 0.3))
    ]
    known = names()
    (row,) = agreement.orders(pd.DataFrame(figures), known).to_dict("records")
    assert row["tau"] == 1 and row["methods"] == 3 and row["equal"] == 3
    turned = [f | ({"better": "up"} if f["paper"] == "B" else {}) for f in figures]
    (row,) = agreement.orders(pd.DataFrame(turned), known).to_dict("records")
    assert row["tau"] == -1


def test_the_interval_of_tau():
    """The vectorised tau-b of resamples is scipy's; equal orders and few methods have no interval."""
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=12), generator.integers(0, 4, size=12)
    drawn = generator.integers(12, size=(50, 12))
    assert taus_b(x[drawn], y[drawn]) == pytest.approx([kendalltau(x[i], y[i]).statistic for i in drawn])
    low, high = agreement.tau_interval(list(x), list(y))
    assert -1 <= low < high <= 1
    assert agreement.tau_interval([1, 2, 3, 4], [1, 3, 2, 4]) == (None, None)
    assert agreement.tau_interval([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]) == (None, None)


def test_the_interval_of_tau_covers(n=20, rho=0.5):
    """For normal pairs with correlation rho, tau is 2/π asin(rho)."""
    generator, covered = np.random.default_rng(0), 0
    truth = 2 / np.pi * np.arcsin(rho)
    for _ in range(60):
        x = generator.normal(size=n)
        y = rho * x + np.sqrt(1 - rho**2) * generator.normal(size=n)
        low, high = agreement.tau_interval(list(x), list(y))
        covered += low <= truth <= high
    assert covered >= 53


def beside(records, **values):
    frame = pd.DataFrame([figure(**values)])
    (row,) = measured.beside(frame, pd.DataFrame(records), names()).to_dict("records")
    return row


def test_a_record_that_is_the_same_in_everything_agrees_or_differs():
    row = beside([record()])
    assert (row["ours"], row["verdict"], row["reasons"], row["records"]) == (0.75, "agrees", "", 1)
    assert beside([record(value=0.3, low=0.23, high=0.38)])["verdict"] == "differs"
    assert (
        beside([record(value=0.6, low=0.52, high=0.685)])["verdict"] == "agrees"
    )  # the printed share has an interval too


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"model": "testbed"}, "base"),
        ({"concepts": "church"}, "concept"),
        ({"detector": "oracle v1 953619de"}, "detector"),
        ({"detector": None}, "detector"),
        ({"given": "{}"}, "prompts"),
        ({"given": None}, "prompts"),
        ({"given": '{"concepts.prompts.target": "asset:uda_prompts_2/nudity.csv"}'}, "prompts"),
        ({"n": 24}, "n"),
        ({"n": 140}, "n"),
    ],
)
def test_each_reason_against_a_comparison(changed, reason):
    row = beside([record(**{"concepts": "mime", **changed})], concept="mime")  # no concept set has this name
    assert (row["verdict"], row["reasons"]) == ("not comparable", reason)


def test_a_concept_set_says_what_it_erases_and_on_which_prompts(tmp_path):
    (tmp_path / "concepts").mkdir()
    (tmp_path / "concepts" / "listed.yaml").write_text(
        "erase: [Nudity]\nprompts: {target: {file: 'asset:uda_prompts/nudity.csv', rows: 142}, utility: null}\n"
    )
    (tmp_path / "concepts" / "several.yaml").write_text("erase: [nudity, hate]\n")
    look_in(tmp_path)
    try:
        assert beside([record(concepts="listed", given="{}")])["verdict"] == "agrees"
        by_hand = '{"concepts.prompts.target": "mine.csv"}'
        assert beside([record(concepts="listed", given=by_hand)])["reasons"] == "prompts"
        assert beside([record(concepts="several")])["reasons"] == "concept"
    finally:
        look_in()
        measured._concept_set.cache_clear()


def test_lists_with_an_empty_prompt_count_as_the_same_number():
    assert beside([record(n=4702)], images=4703)["verdict"] == "agrees"


def with_given(**values):
    """A record whose prompts are those of the paper, with these other values set by hand."""
    by_hand = {"concepts.prompts.target": "asset:uda_prompts/nudity.csv"} | values
    return record(given=json.dumps({key.replace("__", "."): value for key, value in by_hand.items()}))


@pytest.mark.parametrize(
    ("by_hand", "said"),
    [
        ({"method__iterations": 10}, "settings method.iterations=10"),
        ({"method__compat": "official"}, ""),
        ({"method__start_guidance": 3.0}, ""),  # the default
        ({"method__preset": "style"}, "settings method.preset=style"),
        ({"attack__iterations": 5, "attack__tokens": 2}, "settings attack.tokens=2 attack.iterations=5"),
        ({"attack__preset": "paper"}, ""),
        ({"attack__preset": "lite"}, "settings attack.preset=lite"),
        ({"attack__control": None, "attack__floor": False}, ""),  # measured beside the attack
        ({"protocol__steps": 10}, "settings protocol.steps=10"),
        ({"concepts__anchor": "person"}, "settings concepts.anchor=person"),
        ({"concepts__erase": ["nudity"], "concepts__name": "nudity"}, ""),
        ({"metrics__threshold": 0.9}, "settings metrics.threshold=0.9"),
        ({"budget__target_prompts": 142, "budget__seeds": 1}, ""),  # n is compared
        ({"budget__max_steps": 10}, "settings budget.max_steps=10"),
        ({"model__path": "mine"}, "settings model.path=mine"),
    ],
)
def test_settings_that_are_not_the_papers_are_a_reason(by_hand, said):
    row = beside([with_given(**by_hand)])
    assert (row["verdict"], row["reasons"]) == ("not comparable" if said else "agrees", said)


def test_a_printed_name_states_settings():
    """ESD-u is `train=u`, which is also what the preset for unsafe concepts has; SLD-Medium is SLD's default."""
    assert beside([record()], method="ESD-u")["verdict"] == "agrees"
    assert beside([record()], method="ESD-x")["reasons"] == "settings method.train=u"
    assert beside([with_given(method__train="x")], method="ESD-x")["verdict"] == "agrees"
    assert beside([with_given(method__train="x")])["reasons"] == "settings method.train=x"
    sld = {"method": "sld", "method_name": "sld"}
    printed = {"method_name": "sld"}
    assert beside([record(**sld)], method="SLD-Medium", **printed)["verdict"] == "agrees"
    reasons = beside([record(**sld)], method="SLD-Max", **printed)["reasons"]
    assert reasons.startswith("settings method.warmup_steps=10 method.safety_scale=1000.0")
    own = sld | {"given": with_given(method__preset="max")["given"]}
    assert beside([record(**own)], method="SLD-Max", **printed)["verdict"] == "agrees"
    assert beside([record(**own)], method="SLD", **printed)["reasons"] == "settings method.preset=max"
    known = names()
    for method, stated in known["settings"].items():
        chosen_ = component("method", known["methods"][method])
        assert set(stated) <= {*chosen_.defaults, "preset"}
        assert stated.get("preset") in {*chosen_.presets, None}


def test_a_budget_that_shortens_methods_is_a_reason():
    by_hand = '{"budget.target_prompts": 142, "concepts.prompts.target": "asset:uda_prompts/nudity.csv"}'
    row = beside([record(budget="smoke target_prompts=142", given=by_hand)])
    assert row["reasons"] == "settings budget.max_steps=10"


def test_labels_with_values_that_were_set_by_hand_are_compared_without_them():
    """The labels of a real cell, whose prompts, detector and number of prompts were set by hand."""
    (composed,) = compose_cells(
        "model=sd14 concepts=nudity method=esd attack=none budget=paper budget.target_prompts=142 "
        "concepts.prompts.target=asset:uda_prompts/nudity.csv model.detector=nudenet_exposed9".split()
    )
    cell = cell_from(composed.config, composed.explicit)
    ours = record(**{axis: cell.labels[axis] for axis in ("model", "concepts", "budget")}, given=canonical(cell.given))
    assert "prompts.target" in ours["concepts"] and "detector" in ours["model"]
    assert beside([ours])["verdict"] == "agrees"


def test_what_a_paper_does_not_state_cannot_be_compared():
    assert beside([record()], images=None)["reasons"] == "n"
    assert beside([record()], detector="")["reasons"] == "detector"


def test_the_nearest_record_is_shown_and_others_are_counted():
    row = beside([record(model="testbed", n=24), record(), record(method_name="uce"), record(metric="fid")])
    assert (row["verdict"], row["records"]) == ("agrees", 2)
    assert pd.isna(beside([record(method_name="uce")])["ours"])
    assert beside([record(metric="attack_success_union")])["verdict"] == "agrees"  # another name of post_asr


def test_the_sign_of_a_difference():
    original = figure(method="original", method_name="none", scaled=0.95)
    frame = pd.DataFrame([original, figure()])
    for limits, sign in (((-0.3, -0.1), "same"), ((0.1, 0.3), "opposite"), ((-0.1, 0.1), "open")):
        ours = record(model="testbed", against="original", difference_low=limits[0], difference_high=limits[1])
        assert measured.beside(frame, pd.DataFrame([ours]), names())["sign"].tolist() == [None, sign]
    control = record(against="control", difference_low=-0.3, difference_high=-0.1)
    assert measured.beside(frame, pd.DataFrame([control]), names())["sign"].isna().all()


def test_our_order_uses_concepts_that_all_methods_share():
    printed = {"ESD": 0.1, "UCE": 0.2, "MACE": 0.3, "SLD-Max": 0.4, "SLD-Strong": 0.5}
    known = names()
    figures = [
        figure(
            method=m,
            method_name=known["methods"][m],
            metric_name="ua",
            scaled=v,
            better="up",
            attack_name="",
            attack="",
        )
        for m, v in printed.items()
    ]
    ours = [
        record(model="testbed", concepts=c, method_name=m, metric="ua", attack_name="none", direction="up", value=v)
        for c in ("car", "cat")
        for m, v in (("esd", 0.2), ("uce", 0.3), ("mace", 0.4), ("sld", 0.0))
    ]
    alone = record(
        model="testbed", concepts="dog", method_name="esd", metric="ua", attack_name="none", direction="up", value=0.99
    )
    (row,) = measured.orders_with_ours(pd.DataFrame(figures), pd.DataFrame([*ours, alone]), known).to_dict("records")
    assert (row["tau"], row["methods"], row["other_base"]) == (1, 3, "testbed")
    assert row["shared"] == "esd, uce, mace"  # SLD is printed in two variants
    assert row["other_table"] == "ua, mean over 2 concept sets"


def test_our_order_leaves_out_records_with_other_settings():
    """The points of a sweep are not averaged with the method's own record."""
    printed = (("ESD", "esd", 0.1), ("UCE", "uce", 0.2), ("MACE", "mace", 0.3))
    figures = [figure(method=m, method_name=name, scaled=v) for m, name, v in printed]
    ours = [record(method_name=name, value=v) for _, name, v in printed]
    sweep = [record(method_name="esd", value=1.0, given=f'{{"method.iterations": {n}}}') for n in (1, 2)]
    (row,) = measured.orders_with_ours(pd.DataFrame(figures), pd.DataFrame([*ours, *sweep]), names()).to_dict("records")
    assert (row["tau"], row["methods"]) == (1, 3)
    assert measured.orders_with_ours(pd.DataFrame(figures), pd.DataFrame([*ours[1:], *sweep]), names()).empty


def test_orders_on_i2p_need_the_same_prompts():
    figures = [
        figure(
            method=m,
            method_name=m.lower(),
            attack="",
            attack_name="",
            prompts="I2P",
            metric_name="target_proportion",
            scaled=v,
        )
        for m, v in (("ESD", 0.1), ("UCE", 0.2), ("MACE", 0.3))
    ]
    other = [
        record(method_name=m, metric="target_proportion", attack_name="none", value=v)
        for m, v in (("esd", 0), ("uce", 1), ("mace", 2))
    ]
    same = [r | {"given": '{"concepts.prompts.target": "asset:i2p/unsafe-prompts4703.csv"}'} for r in other]
    assert measured.orders_with_ours(pd.DataFrame(figures), pd.DataFrame(other), names()).empty
    (row,) = measured.orders_with_ours(pd.DataFrame(figures), pd.DataFrame(same), names()).to_dict("records")
    assert row["tau"] == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "has no column 'model'"),
        ("\0\0", ""),
        (
            "model,concepts,kind,method,attack,budget,seed,facet,metric,direction,unit,value,n\n" + ",".join("x" * 13),
            "text in column",
        ),
    ],
)
def test_files_that_are_no_records_are_refused(cli, text, said):
    (cli.folder / "records.csv").write_text(text)
    assert said in cli("ledger", "--from", "records.csv", code=2).stderr


def test_filters_select_names_of_the_project_and_printed_names(found):
    assert set(chosen(found, {"method": "esd"})["method"]) == {"ESD", "ESD-u", "ESD-x"}
    assert set(chosen(found, {"method": "ESD-u"})["method"]) == {"ESD-u"}
    assert set(chosen(found, {"concept": "van gogh"})["erased"]) == {"Van Gogh"}
    assert set(chosen(found, {"paper": "hub,2403.06135"})["paper"]) == {"HUB", "MACE"}
    assert set(chosen(found, {"attack": "none", "paper": "MACE"})["attack"]) == {""}
    assert set(chosen(found, {"method": "MACE, CFR only"})["method"]) == {"MACE, CFR only"}


def test_without_a_filter_it_prints_an_overview(cli, compared):
    out = cli("ledger").stdout
    apart = (compared["verdict"] == agreement.DISAGREE).sum()
    assert f"2,678 published figures of 22 papers, {apart} disagreements" in out
    assert len(out.splitlines()) < 120


def test_figures_stand_side_by_side(cli):
    out = cli("ledger", "method=UCE", "metric=post_asr", "concept=nudity", "--format", "md").stdout
    assert (
        "| nudity (SD v1.4) | post_asr ↓ under uda | UCE | 0.0986 ≠ (142) | 0.43° ≠ | 0.7887 ≠ (142) | 0.7958 ≠ (142) |"
        in out
    )


def test_marks_count_papers_that_the_filters_leave_out(cli):
    out = cli("ledger", "method=UCE", "metric=post_asr", "provenance=paper", "--format", "md").stdout
    assert "| UCE | 0.0986 ≠ (142) |" in out


def test_our_record_and_its_verdict_stand_beside_a_figure(cli):
    ours = [
        record(method_name="uce", method="uce lamb=0.5", value=0.8, low=0.72, high=0.86),
        record(method_name="esd", model="testbed", concepts="church", n=24, value=0.5, low=0.3, high=0.7),
    ]
    pd.DataFrame(ours).to_csv(cli.folder / "ours.csv", index=False)
    arguments = (
        "ledger",
        "method=uce,ESD",
        "metric=post_asr",
        "paper=unlearndiffatk",
        "concept=nudity",
        "--from",
        "ours.csv",
    )
    out = cli(*arguments, "--format", "md").stdout
    assert "| UCE | 0.7958 ≠ (142) | 0.80 \\[0.72, 0.86\\] uce lamb=0.5, uda, sd14, nudity, paper | agrees |" in out
    assert "testbed, church, paper | not comparable: base, concept, n |" in out
    assert "No paper measured testbed: only orders of methods and signs of differences are comparable" in out
    form = pd.read_json(io.StringIO(cli(*arguments, "--format", "json").stdout))
    assert dict(zip(form["method"], form["verdict"], strict=True)) == {"UCE": "agrees", "ESD": "not comparable"}
    assert re.search(r"Records: \d+ figures have a record .*: \d agrees", cli("ledger", "--from", "ours.csv").stdout)


def test_limits_of_tables_and_figures_are_said(cli):
    out = cli("ledger", "paper=HUB", "metric=fid", "method=MACE", "--format", "md").stdout
    assert (
        "| 22.15? (30000) |" in out
        and "HUB, Table 3, MACE, NSFW (3), FID: another table of the paper prints 13.313" in out
    )
    assert "HUB, Table 4: printed as a mean over 33 concepts" in out


def test_csv_and_json_are_the_long_form(cli, found):
    form = pd.read_csv(io.StringIO(cli("ledger", "paper=MACE", "--format", "csv").stdout))
    assert len(form) == (found["paper"] == "MACE").sum() and {*COLUMNS, "verdict", "disagrees"} <= set(form.columns)


def page():
    return (ROOT / "docs" / "ledger.md").read_text(encoding="utf-8")


TABLES = re.findall(r"^`overpaint ledger (.+)` prints:\n\n((?:\|.*\n)+)", page(), re.M)


def test_the_page_shows_tables():
    assert len(TABLES) == 3


@pytest.mark.parametrize(("arguments", "table"), TABLES, ids=[arguments for arguments, _ in TABLES])
def test_the_tables_of_the_page_are_those_of_the_command(cli, arguments, table):
    out = cli("ledger", *shlex.split(arguments), "--format", "md").stdout
    assert [line for line in out.splitlines() if line.startswith("|")] == table.splitlines()


def test_the_page_counts_right(found):
    assert f"{len(found):,} printed figures of {found['paper'].nunique()} papers" in page()
    for value in (0.0282, 0.8169):  # "3 %" and "82 %" in the text
        assert f"| {value} |" in page()
