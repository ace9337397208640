"""The controls, floors and examples that a plan adds to an attack."""

from collections import Counter
from dataclasses import replace

import pytest
from plans import plan, stages

from overpaint.grid.cells import cell_from
from overpaint.grid.composition import compose_cells
from overpaint.images.planner import make_plan
from overpaint.images.stages.attack import _context
from overpaint.images.workbench import Workbench


def test_an_attack_brings_its_control_floor_and_the_unedited_model():
    (cell, measure), *_ = plan("method=uce", "attack=cce", "budget=smoke").cells
    assert cell.attack.name == "cce"
    assert {name.split("/")[0] for name in measure.inputs} == {
        "images", "original", "plain", "plain_original", "control", "random_prefix", "floor", "unrelated"
    }  # fmt: skip


def test_a_plan_says_which_guards_cannot_be_put_on_another():
    grid = ["concepts=church,mixed10", "concepts.sequential=false,true", "budget=smoke"]
    said = "method=sfd cannot be put on another guard: its cells with mixed10 in turn will fail"
    assert [note for note in plan("method=sfd,uce,sld", *grid).notes if "another guard" in note] == [said]
    assert not any("another guard" in note for note in plan("method=sfd", "concepts=mixed10", "budget=smoke").notes)


def test_a_plan_says_that_concepts_are_of_another_catalogue_than_the_models():
    def said(*overrides):
        return [note for note in plan("method=uce", *overrides).notes if "has catalogue" in note]

    (note,) = said("concepts=nudity", "model.detector=nudenet_exposed9")
    assert note.startswith("concepts=nudity has catalogue unsafe v1, and model=testbed has testbed v1")
    assert not said("concepts=church,quillan")
    assert not said("concepts=nudity", "model=sd14")


def test_an_attack_can_go_without_its_company_or_with_another():
    (cell, alone), *_ = plan("attack=cce", "attack.control=null", "attack.floor=false", "budget=smoke").cells
    assert {name.split("/")[0] for name in alone.inputs} == {"images", "original", "plain", "plain_original"}
    assert cell.attack.label == "cce control=null floor=false"  # other records, so another label
    beside = plan("attack=cce", "attack.control=random_prefix", "attack.floor=false", "budget=smoke")
    ((_, measure),) = beside.cells
    control, prefixes = (
        [measure.inputs[k] for k in measure.inputs if k.startswith(name)] for name in ("control", "random")
    )
    assert control == prefixes


@pytest.mark.parametrize(("judge", "threshold"), [("oracle_b", 0.5), ("oracle", 0.9), ("null", 0.9), ("nudenet", 0.6)])
def test_an_attack_judges_with_a_threshold_of_its_own_judge(judge, threshold):
    """``metrics.threshold`` is that of the detector that measures."""
    asked = ("attack=uda", "concepts=church", "budget=smoke", "metrics.threshold=0.9", f"model.judge={judge}")
    found = stages(plan("method=uce", *asked), "attack")
    assert {task.config["judge"]["threshold"] for task in found if "judge" in task.config} == {threshold}


def test_floors_are_for_a_concept_never_seen_and_for_an_unrelated_one():
    attacks = [t for t in stages(plan("method=uce", "concepts=church", "attack=cce", "budget=smoke"), "attack")]
    aimed = {t.config["concept"]["name"] for t in attacks if t.config["attack"] == "cce"}
    assert aimed == {"church", "rocket", "tree"}  # house and boat are its neighbours


def test_an_attack_that_trains_on_pictures_anyway_takes_unrelated_ones():
    attacks = [t for t in stages(plan("method=uce", "concepts=church", "attack=relearn", "budget=smoke"), "attack")]
    aimed = {
        (t.config["concept"]["name"], t.config["hyperparameters"].get("data")) for t in attacks if "erasure" in t.inputs
    }
    assert {("church", "concept"), ("church", "unrelated"), ("rocket", "concept")} <= aimed


def test_who_compares_with_pictures_of_the_concept_is_shown_some():
    for overrides, shown in ((["attack.preset=paper"], True), (["attack.preset=testbed"], False)):
        made = plan("attack=pez", "method=uce", "concepts=church", "budget=smoke", *overrides)
        tasks = [t for t in stages(made, "attack") if t.config["attack"] == "pez"]
        assert tasks and {t.config.get("examples") == "world" for t in tasks} == {shown}
        assert len(_context(tasks[0], {}, Workbench(), None).examples(3)) == (3 if shown else 0)


def test_examples_begin_with_other_noise_than_what_is_attacked():
    (composed,) = compose_cells(["method=uce", "concepts=church", "attack=cce", "budget=smoke"])
    cell = cell_from(composed.config, composed.explicit)
    made = make_plan([replace(cell, model=replace(cell.model, reference=None))]).opened()
    sources = {key for t in stages(made, "attack") for name, key in t.inputs.items() if name.startswith("examples")}
    noises = [
        {(text, seed) for text, seed, _ in t.config["shots"] or ()}
        for t in stages(made, "generate")
        if t.key in sources
    ]
    others = [
        {(text, seed) for text, seed, _ in t.config["shots"] or ()}
        for t in stages(made, "generate")
        if t.key not in sources
    ]
    assert noises and all(noises) and set.union(*noises).isdisjoint(set.union(*others))


def test_an_attack_has_no_floor_where_it_can_make_nothing(tmp_path):
    """The paper's recipe needs an anchor, and this catalogue's unrelated concept has none."""
    (tmp_path / "two.yaml").write_text(
        "concepts: {church: {anchor: house}, tree: {}}\ntemplates: {object: {en: ['a {}']}}\n"
    )
    given = ["method=none", f"concepts.catalogue={tmp_path / 'two.yaml'}", "concepts.erase=[church]", "budget=smoke"]
    for recipe, made in (("paper", False), ("testbed", True)):
        ((_, measure),) = plan(*given, "attack=concept_arithmetic", f"attack.preset={recipe}").cells
        assert any(name.startswith("unrelated") for name in measure.inputs) == made


def test_a_search_of_single_prompts_has_floors_of_a_few():
    made = plan("method=uce", "concepts=church", "attack=uda", "budget=lite", "budget.target_prompts=6")
    searched = Counter(t.config["concept"]["name"] for t in stages(made, "attack") if t.config["attack"] == "uda")
    assert searched == {"church": 12, "rocket": 4, "tree": 4}  # the church on the unedited model as well
