"""The planner: cells share equal tasks, and images depend only on prompt and seed."""

from collections import Counter

import pytest
from plans import plan, stages

import overpaint
from overpaint.grid.cells import cell_from
from overpaint.grid.choices import build
from overpaint.grid.composition import compose_cells
from overpaint.grid.concepts import load_catalogue
from overpaint.grid.prompt_files import read_prompts
from overpaint.grid.prompts import Prompt, Shot, distinct
from overpaint.grid.read_once import reading_once
from overpaint.grid.registry import component, components
from overpaint.images import planner, tasks
from overpaint.images.planner import make_plan
from overpaint.images.task_parts import ATTACK_TEMPLATES


def test_a_detector_that_is_not_on_this_machine_is_looked_up_once(monkeypatch, tmp_path):
    """A grid of published size has tens of thousands of tasks of one absent detector."""
    monkeypatch.setenv("OVERPAINT_ASSETS", str(tmp_path / "no assets"))
    asked, identity = [], tasks.detector_identity
    monkeypatch.setattr(tasks, "detector_identity", lambda name, **told: asked.append(name) or identity(name, **told))
    grid = [
        "method=none,uce",
        "concepts=church",
        "attack=none",
        "budget=smoke",
        "budget.shard=1",
        "model.detector=clip",
    ]
    with reading_once():
        made = make_plan([cell_from(c.config, c.explicit) for c in compose_cells(grid)])
    assert asked == ["clip"] and sum("asset=clip_l14" in said for said in made.absent) >= 1
    assert len([task for task in made.opened().tasks.values() if task.stage == "score"]) > 10


def test_one_erasure_for_every_attack_and_one_base_model_for_every_method():
    made = plan("method=none,uce,esd", "attack=none,cce,synonym", "budget=smoke")
    assert len(made.cells) == 9
    assert len(stages(made, "erase")) == 2
    assert len(stages(made, "measure")) == 9
    unedited = [t for t in stages(made, "generate") if not t.inputs]
    assert len({t.key for t in unedited}) == len(unedited)
    alone = plan("method=none", "attack=none,cce,synonym", "budget=smoke")
    assert {t.key for t in alone.tasks.values() if t.stage != "measure"} <= set(made.tasks)


@pytest.mark.parametrize(
    ("metrics", "needed"), [("facets", {"latency", "compare"}), ("proportions", set()), ("hub", set())]
)
def test_latency_and_similarity_are_measured_for_metrics_that_read_them(metrics, needed):
    made = plan("method=none,uce", "attack=none,synonym", "budget=smoke", f"metrics={metrics}")
    assert {task.stage for task in made.tasks.values()} & {"latency", "compare"} == needed


def test_a_plan_builds_each_method_and_attack_once(monkeypatch):
    built = []

    def building(kind, choice, seed):
        built.append((kind, choice, seed))
        return build(kind, choice, seed)

    for module in (tasks, planner):
        monkeypatch.setattr(module, "build", building, raising=False)
    cells = compose_cells(
        ["method=none,uce,esd", "attack=none,synonym,cce,merge", "concepts=church,cat", "budget=smoke"]
    )
    with reading_once():
        make_plan([cell_from(c.config, c.explicit) for c in cells])
        asked = Counter((kind, id(choice), seed) for kind, choice, seed in built)
    assert {"uce", "esd", "cce", "merge"} <= {choice.name for _, choice, _ in built} and set(asked.values()) == {1}


def test_inputs_come_before_what_needs_them():
    seen = set()
    for key, task in plan("method=uce", "attack=cce", "budget=smoke").tasks.items():
        assert set(task.inputs.values()) <= seen
        seen.add(key)


def test_sets_share_grid_and_utility_images_of_the_unedited_model():
    made = plan("method=none", "concepts=church,cat", "budget=smoke", "attack=none")
    texts = [tuple(shot[0] for shot in t.config["shots"]) for t in stages(made, "generate")]
    assert len(texts) == len(set(texts))
    assert sum("utility" in t.label for t in stages(made, "generate")) == 1


def test_attacks_learn_from_the_same_templates_however_many_a_catalogue_has():
    made = plan("method=none", "attack=cce", "budget=smoke")
    known = load_catalogue("testbed").templates["object"]["en"]
    assert len(known) > ATTACK_TEMPLATES
    assert {tuple(t.config["templates"]["object"]["en"]) for t in stages(made, "attack")} == {known[:ATTACK_TEMPLATES]}


def test_images_that_no_metric_reads_are_not_made():
    (_, measure), *_ = plan("method=uce", "attack=cce", "budget=smoke", "metrics=proportions").cells
    assert {name.split("/")[0] for name in measure.inputs} == {
        "images",
        "original",
        "plain",
        "plain_original",
        "control",
    }


@pytest.mark.parametrize(
    ("concepts", "sequential", "kind"),
    [
        ("church", "false", "uce"),
        ("mixed10", "false", "uce/10 concepts"),
        ("mixed10", "true", "uce/10 concepts in turn"),
    ],
)
def test_erasures_of_several_concepts_have_estimates_of_their_own(concepts, sequential, kind):
    made = plan("method=uce", f"concepts={concepts}", f"concepts.sequential={sequential}", "budget=smoke")
    assert {task.like.partition("/")[2] for task in stages(made, "erase")} == {kind}


def test_a_plan_says_which_of_several_concepts_an_attack_is_measured_on():
    grid = ["method=none,uce", "attack=none,synonym,cce", "budget=smoke"]
    notes = plan(*grid, "concepts.erase=[church,car]", "seed=0,1").notes
    said = "attack={} is measured on church, the first of 2 concepts of church+car"
    assert [note for note in notes if "is measured on" in note] == [said.format("synonym"), said.format("cce")]
    assert not any("is measured on" in note for note in plan(*grid, "concepts=church").notes)


def test_papers_presets_can_be_planned_and_are_those_of_the_kind():
    names = [name for name in components("attack") if "paper" in (component("attack", name).config["presets"] or {})]
    assert {"uda", "p4d_n", "pez", "rab", "mma", "cce", "relearn", "seed_search", "concept_arithmetic"} <= {*names}
    made = plan(f"attack={','.join(names)}", "attack.preset=paper", "method=uce", "concepts=sketch", "budget=smoke")
    chosen = {cell.attack.name: cell.attack for cell, _ in made.cells}
    assert chosen["uda"].values["tokens"] == 3 and chosen["uda"].values["projection"] == "bisection"
    assert chosen["rab_embedding"].values["eta"] == 0.9 and chosen["cce"].values["initial_word"] == "art"
    assert chosen["uda"].label == "uda preset=paper"


def test_recipes_that_cannot_be_told_are_not_paid_for():
    """Without synonyms, descriptions and translations, two of four recipes apply, also for the control."""
    made = plan("method=none", "attack=concept_arithmetic", "attack.floor=false", "budget=smoke", "concepts.catalogue=null",
                "concepts.erase=[church]", "concepts.anchor=house", "concepts.templates=['a {}']")  # fmt: skip
    ((cell, measure),) = made.cells
    control = made.tasks[made.tasks[measure.inputs["control/0"]].inputs["images"]]
    assert len(control.config["shots"]) == 2 * cell.budget.seeds


def test_noise_seed_is_a_function_of_prompt_id_and_index():
    one, other = Prompt("a church", "target"), Prompt("a church", "near", "x", ("y",))
    assert Shot(one, 3).noise_seed == Shot(other, 3).noise_seed
    assert len({Shot(one, i).noise_seed for i in range(50)} | {Shot(Prompt("a cat", "target"), 0).noise_seed}) == 51
    assert Shot(Prompt("x", "target", seed=188), 2).noise_seed == 190


def test_shots_survive_their_plain_form():
    shot = Shot(Prompt("a church", "target", "church", ("church",), "en", guidance=7.0), 4)
    assert Shot.from_dict(shot.as_dict()) == shot


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prompt,evaluation_seed,evaluation_guidance,id\nhello,42,7.5,a1\n", ("hello", 42, 7.5, "a1")),
        ("case_number,source,prompt,sd_seed,sd_guidance_scale\n7,coco,hello,42,7.5\n", ("hello", 42, 7.5, "7")),
        ('Prompt,categories\n"hello,\nworld",x\n', ("hello,\nworld", None, None, None)),
    ],
)
def test_published_prompt_files_are_understood(tmp_path, text, expected):
    path = tmp_path / "p.csv"
    path.write_text(text)
    (prompt,) = read_prompts(path)
    assert (prompt.text, prompt.seed, prompt.guidance) == expected[:3]
    assert expected[3] is None or prompt.id == expected[3]


def test_equal_prompts_stay_different_shots():
    a, b = distinct([Prompt("x", "target"), Prompt("x", "target")])
    assert a.id != b.id and Shot(a, 0).noise_seed != Shot(b, 0).noise_seed


def test_every_neighbour_is_in_the_catalogue():
    catalogue = load_catalogue("testbed")
    assert len(catalogue.of_kind("object")) >= 14
    assert len(catalogue.of_kind("style")) >= 7
    assert len(catalogue.of_kind("character")) >= 6
    for concept in catalogue.concepts.values():
        assert set(concept.neighbours) <= set(catalogue.concepts)
        assert concept.name not in concept.neighbours


def test_prompts_are_attacked_together_as_far_as_a_batch_goes():
    sizes = {}
    for overrides in ((), ("budget.seeds=3",), ("budget.seeds=9",), ("protocol.batch_size=4",)):
        made = plan("method=none", "attack=uda", "budget.target_prompts=10", *overrides)
        searches = [t for t in stages(made, "attack") if t.config["attack"] == "uda"]
        attacks = [t for t in searches if t.config["concept"]["name"] == "church"]
        assert len(attacks) == 10 and len({t.key for t in attacks}) == 10, "each prompt is a task of its own"
        sizes[overrides] = [len(made.bundles[t.key]) for t in attacks]
    first, *others = sizes.values()
    assert first == [8] * 8 + [2] * 2
    assert [sorted(set(found)) for found in others] == [[2], [1], [2, 4]]
    one = plan("method=none", "attack=rab", "budget.target_prompts=10")
    assert not one.bundles


def test_rules_that_merge_weights_need_a_method_that_changes_them():
    with pytest.raises(
        overpaint.UserError, match=r"concepts\.merge=ties merges changed weights, and method=sld makes none"
    ):
        plan("method=sld", "concepts=objects5", "concepts.merge=ties", "budget=smoke")
    with pytest.raises(overpaint.UserError, match=r"merge=closed merges changed weights, and method=spm makes none"):
        plan("method=spm", "concepts=objects5", "concepts.merge=closed", "budget=smoke")
    plan("method=uce,sld,spm", "concepts=objects5", "concepts.merge=sum", "budget=smoke")
    plan("method=uce", "concepts=objects5", "concepts.merge=ties", "budget=smoke")


def test_a_plan_names_concepts_that_the_detector_has_no_label_for():
    grid = ["method=uce", "attack=none", "budget=smoke"]
    said = "concepts=zebra: detector=oracle has no label for zebra"
    assert any(note.startswith(said) for note in plan(*grid, "concepts.catalogue=null", "concepts.erase=[zebra]").notes)
    assert not any("has no label for" in note for note in plan(*grid, "concepts=church").notes)
