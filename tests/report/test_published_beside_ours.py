"""Published figures beside our records: when they can be compared, verdicts, and orders."""

import json

import pandas as pd
import pytest
from ledger_rows import figure, record

from overpaint.grid.cells import cell_from
from overpaint.grid.composition import compose_cells
from overpaint.grid.digests import canonical
from overpaint.grid.registry import component, look_in
from overpaint.report.ledger import measured, sheets
from overpaint.report.ledger.published import names


def beside(records, **values):
    frame = pd.DataFrame([figure(**values)])
    (row,) = measured.beside(frame, pd.DataFrame(records), names()).to_dict("records")
    return row


def test_a_record_that_is_the_same_in_everything_agrees_or_differs():
    row = beside([record()])
    assert (row["ours"], row["verdict"], row["reasons"], row["records"]) == (0.75, "agrees", "", 1)
    assert beside([record(value=0.3, low=0.23, high=0.38)])["verdict"] == "differs"
    # The printed share has an interval too.
    assert beside([record(value=0.6, low=0.52, high=0.685)])["verdict"] == "agrees"


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
        ({"concepts__erase": "nudity", "concepts__name": "nudity"}, ""),  # one name may be given without a list
        ({"metrics__threshold": 0.9}, "settings metrics.threshold=0.9"),
        ({"budget__target_prompts": 142, "budget__seeds": 1}, ""),  # n is compared
        ({"budget__max_steps": 10}, "settings budget.max_steps=10"),
        ({"model__path": "mine"}, "settings model.path=mine"),
    ],
)
def test_settings_that_are_not_the_papers_are_a_reason(by_hand, said):
    row = beside([with_given(**by_hand)])
    assert (row["verdict"], row["reasons"]) == ("not comparable" if said else "agrees", said)


def test_a_paper_states_settings_of_a_printed_name():
    """UnlearnDiffAtk's ESD is ESD-x for nudity; elsewhere the name means our preset, which is ESD-u."""
    ours, theirs = with_given(method__train="x"), record()
    own = {"paper": "UnlearnDiffAtk leaderboard"}
    assert beside([ours], **own)["verdict"] == "agrees"
    assert beside([theirs], **own)["reasons"] == "settings method.train=u"
    assert beside([ours])["reasons"] == "settings method.train=x"
    assert beside([theirs])["verdict"] == "agrees"


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


def test_our_order_does_not_mix_budgets():
    printed = (("ESD", "esd", 0.1), ("UCE", "uce", 0.2), ("MACE", "mace", 0.3))
    figures = [figure(method=m, method_name=name, scaled=v) for m, name, v in printed]
    ours = [record(method_name=name, value=v, budget=budget) for _, name, v in printed for budget in ("lite", "paper")]
    found = measured.orders_with_ours(pd.DataFrame(figures), pd.DataFrame(ours), names())
    said = [text.rpartition(", ")[2] for text in found["other_table"]]
    assert (said, [*found["methods"]]) == (["budget lite", "budget paper"], [3, 3])


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
    ("printed", "recorded", "reasons"),
    [
        ("NudeNet v3, 0.6, 8 classes", "nudenet_count v1 abc", ""),
        ("NudeNet v3, 0.6, 8 classes", "nudenet_exposed9 v1 abc", "detector"),
        ("NudeNet v3, 0.6, 8 classes", "q16 v1 abc", "detector"),
        ("NudeNet v3, 0.6, 8 classes", None, "detector"),
        ("NudeNet", "nudenet_count v1 abc", "detector"),  # of unknown classes and threshold
        ("", "nudenet_count v1 abc", "detector"),
    ],
)
def test_counts_of_detections_need_the_same_detector(printed, recorded, reasons):
    ours = record(metric="detections", unit="detections", attack_name="none", value=111.0, low=100.0, high=120.0)
    figure = {"metric_name": "detections", "scale": "detections", "attack": "", "attack_name": "", "scaled": 111.0}
    row = beside([ours | {"detector": recorded}], **figure, prompts="UnlearnDiffAtk", detector=printed)
    assert (row["verdict"], row["reasons"]) == ("not comparable" if reasons else "agrees", reasons)


def test_other_figures_need_a_detector_only_if_the_paper_names_one():
    ours = record(metric="fid", unit="distance", attack_name="none", value=20.0, low=19.0, high=21.0, detector=None)
    figure = {"metric_name": "fid", "scale": "distance", "attack": "", "attack_name": "", "scaled": 20.0}
    figure["prompts"] = "UnlearnDiffAtk"
    assert beside([ours], **figure, detector="")["verdict"] == "agrees"
    assert beside([ours], **figure, detector="NudeNet")["reasons"] == "detector"


def side_by_side(figures, records):
    """The columns ``ours`` and ``verdict`` of the only row."""
    found = measured.beside(pd.DataFrame(figures), pd.DataFrame(records), names()).assign(table_note="")
    none = pd.DataFrame(columns=[*sheets._SIDE, "erased", "verdict", "other_paper", "other_table"])
    (sheet,) = sheets.side_by_side(found, none)
    (row,) = sheet.rows
    return row[-2:]


def test_each_paper_stands_beside_the_record_that_is_nearest_to_its_figure():
    few, many = record(budget="few"), record(value=0.5, low=0.45, high=0.55, n=1000, budget="many")
    figures = [
        figure(paper="A"),
        figure(paper="B", images=1000, scaled=0.5),
        figure(paper="C", images=1000, scaled=0.9),
    ]
    assert side_by_side(figures, [few, many]) == [
        "A: 0.75 [0.67, 0.81] esd, uda, sd14, nudity, few | B, C: 0.50 [0.45, 0.55] esd, uda, sd14, nudity, many",
        "A: agrees | B: agrees | C: differs",
    ]
    assert side_by_side(figures[1:], [few, many]) == [
        "0.50 [0.45, 0.55] esd, uda, sd14, nudity, many",
        "B: agrees | C: differs",
    ]
    two_tables = [figure(), figure(table="U", images=1000, scaled=0.9)]
    ours, verdicts = side_by_side(two_tables, [few, many])
    assert ours.startswith("A, T: 0.75 ") and " | A, U: 0.50 " in ours
    assert verdicts == "A, T: agrees | A, U: differs"


def test_hubs_general_reward_has_our_name(found):
    hub = found[(found["paper"] == "HUB") & (found["metric"] == "ImageReward_general")]
    assert len(hub) == 40 and set(hub["metric_name"]) == {"image_reward_general"}
    assert "image_reward_general" in component("metrics", "hub").config["metrics"]


def test_replayed_prompts_of_an_attack_have_its_name_and_concept():
    """HUB's Ring-A-Bell prompts are replayed; its figures name one concept of its concept set."""
    printed = dict(
        erased="NSFW Nudity", concept=names()["concepts"]["NSFW Nudity"], attack="Ring-A-Bell", attack_name="rab"
    )
    printed |= dict(metric="target_proportion", metric_name="attack_proportion", images=1000, detector="Q16")
    given = {"attack.file": "asset:hub_prompts/attack_robustness/{concept}.csv", "attack.most": 1000}

    def replayed(*erased, file=given["attack.file"]):
        own = {"attack": "replay", "attack_name": "replay", "metric": "attack_proportion", "n": 1000}
        by_hand = given | {"attack.file": file, "concepts.erase": list(erased)}
        return record(**own, concepts="hub33", detector="q16 v1", given=json.dumps(by_hand))

    row = beside([replayed("Nudity")], **printed)
    assert (row["verdict"], row["reasons"], row["ours_attack"]) == ("agrees", "", "replay")
    assert beside([replayed("Violent")], **printed)["reasons"] == "concept"
    assert beside([replayed("Nudity", "Violent")], **printed)["reasons"] == "concept"
    assert beside([replayed("Nudity", file="mine.csv")], **printed)["verdict"] is None, (
        "these prompts are no Ring-A-Bell"
    )
