"""The planner: cells share equal tasks, and images depend only on prompt and seed."""

import json
import shutil
import sys
from collections import Counter
from dataclasses import replace

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from overpaint import detectors
from overpaint.detectors.nudenet import EXPOSED9
from overpaint.errors import UserError
from overpaint.grid import source_code
from overpaint.grid.cells import cell_from
from overpaint.grid.choices import build
from overpaint.grid.composition import compose_cells
from overpaint.grid.concepts import load_catalogue
from overpaint.grid.digests import file_digest
from overpaint.grid.prompt_files import read_prompts
from overpaint.grid.prompts import Prompt, Shot, distinct
from overpaint.grid.read_once import reading_once
from overpaint.grid.registry import component, components, look_in
from overpaint.grid.roles import ROLES
from overpaint.grid.source_code import source_of
from overpaint.images import planner, task_parts, tasks
from overpaint.images.planner import make_plan
from overpaint.images.stages.attack import _context
from overpaint.images.task_parts import ATTACK_TEMPLATES, HALF_PRECISION
from overpaint.images.workbench import Workbench
from overpaint.models.sources import hub_commit
from overpaint.testbed.pictures import World


def plan(*overrides):
    return make_plan([cell_from(c.config, c.explicit) for c in compose_cells(list(overrides))]).opened()


def stages(made, name):
    return [t for t in made.tasks.values() if t.stage == name]


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


def test_prompts_of_lists_that_ask_for_a_label_the_detector_lacks_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "near.csv").write_text("prompt,concept\na zebra,zebra\na house,house\n")
    (tmp_path / "both.csv").write_text("prompt,concept,expects\nx,church,church;unicorn\ny,church,church;tree\n")
    lists = "concepts.prompts={near: near.csv, in_prompt: both.csv, utility: null}"
    grid = ("method=none", "concepts=church", "attack=none", "budget=smoke", lists)
    lacking = [note for note in plan(*grid).notes if "no label" in note]
    why = "for which detector=oracle has no label, so it does not score their images"
    assert lacking == [
        f"near prompts: 1 of 2 of near.csv ask for zebra, {why}",
        f"in_prompt prompts: 1 of 2 of both.csv ask for unicorn, {why}",
    ]
    assert not any("no label" in note for note in plan(*grid, "model.detector=null").notes)


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


def test_sizes_that_the_model_has_no_images_of_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"protocol.size=63: .* multiples of 4 pixels; near 63 are 60 and 64"):
        plan("method=none", "attack=none", "budget=smoke", "protocol.size=63")
    listed = tmp_path / "p.csv"
    listed.write_text("prompt,width,height\na church,64,64\na red church,64,66\n")
    lists = ("method=none", "attack=none", "budget=smoke", f"concepts.prompts.target={listed}")
    with pytest.raises(UserError, match=r"prompt 'a red church' of 64 × 66 pixels: .*; near 66 are 64 and 68"):
        plan(*lists, "protocol.size=null")
    assert plan(*lists, "protocol.size=64")  # replaces those of the list


@pytest.mark.parametrize("attack", ["uda", "completion", "cce"])
def test_an_attack_on_images_of_one_size_refuses_prompts_with_sizes_of_their_own(attack, tmp_path):
    listed = tmp_path / "p.csv"
    listed.write_text("prompt,width,height\na church,64,64\na red church,64,72\n")
    asked = ("method=uce", f"attack={attack}", "budget=smoke", "concepts=church", f"concepts.prompts.target={listed}")
    own = rf"attack={attack} works on images of one size, .* concepts=church .* \(64×64 and others\): set protocol.size=64"
    with pytest.raises(UserError, match=own):
        plan(*asked, "protocol.size=null")
    assert plan(*asked, "protocol.size=64")
    assert plan(*asked[:1], "attack=seed_search,random_prefix", *asked[2:], "protocol.size=null")


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


def test_a_plan_says_which_of_several_concepts_an_attack_is_measured_on():
    grid = ["method=none,uce", "attack=none,synonym,cce", "budget=smoke"]
    notes = plan(*grid, "concepts.erase=[church,car]", "seed=0,1").notes
    said = "attack={} is measured on church, the first of 2 concepts of church+car"
    assert [note for note in notes if "is measured on" in note] == [said.format("synonym"), said.format("cce")]
    assert not any("is measured on" in note for note in plan(*grid, "concepts=church").notes)


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


def test_papers_presets_can_be_planned_and_are_those_of_the_kind():
    names = [name for name in components("attack") if "paper" in (component("attack", name).config["presets"] or {})]
    assert {"uda", "p4d_n", "pez", "rab", "mma", "cce", "relearn", "seed_search", "concept_arithmetic"} <= {*names}
    made = plan(f"attack={','.join(names)}", "attack.preset=paper", "method=uce", "concepts=sketch", "budget=smoke")
    chosen = {cell.attack.name: cell.attack for cell, _ in made.cells}
    assert chosen["uda"].values["tokens"] == 3 and chosen["uda"].values["projection"] == "bisection"
    assert chosen["rab_embedding"].values["eta"] == 0.9 and chosen["cce"].values["initial_word"] == "art"
    assert chosen["uda"].label == "uda preset=paper"


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


def test_recipes_that_cannot_be_told_are_not_paid_for():
    """Without synonyms, descriptions and translations, two of four recipes apply, also for the control."""
    made = plan("method=none", "attack=concept_arithmetic", "attack.floor=false", "budget=smoke", "concepts.catalogue=null",
                "concepts.erase=[church]", "concepts.anchor=house", "concepts.templates=['a {}']")  # fmt: skip
    ((cell, measure),) = made.cells
    control = made.tasks[made.tasks[measure.inputs["control/0"]].inputs["images"]]
    assert len(control.config["shots"]) == 2 * cell.budget.seeds


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


def test_threshold_and_metrics_change_measurements_alone():
    low, high = plan("budget=smoke"), plan("budget=smoke", "metrics.threshold=0.7")
    changed = {t.stage for k, t in high.tasks.items() if k not in low.tasks}
    assert changed == {"measure"}


@pytest.mark.parametrize(
    "whole, real",
    [
        ("method=uce method.lamb=1", "method.lamb=1.0"),
        ("method=advunlearn method.retain_weight=10", "method.retain_weight=10.0"),
    ],
)
def test_a_whole_number_is_the_same_hyperparameter_as_a_real_one(whole, real):
    method, value = whole.split()
    keys = [[t.key for t in stages(plan(method, given, "budget=smoke"), "erase")] for given in (value, real)]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    "where", [["store=elsewhere"], ["engine=local", "engine.workers=2"], ["tracker=none"], ["protocol.batch_size=3"]]
)
def test_where_and_how_a_grid_runs_names_no_task(where):
    grid = ["method=uce", "budget=smoke", "attack=none"]
    assert set(plan(*grid, *where).tasks) == set(plan(*grid).tasks)


def test_a_compiled_network_names_what_it_generates_and_no_erasure():
    grid = ["method=uce", "budget=smoke", "attack=uda"]
    plain, compiled = plan(*grid), plan(*grid, "engine.compile=true")
    new = {key: task for key, task in compiled.tasks.items() if key not in plain.tasks}
    assert {t.stage for t in stages(compiled, "generate")} == {"generate"}
    assert all(task.key in new and task.config["compiled"] for task in stages(compiled, "generate"))
    kept = {"erase", "attack", "latency", "reference"}
    assert not kept & {task.stage for task in new.values()}
    assert any("each process compiles the network" in note for note in compiled.notes)
    assert not any("compile" in note for note in plain.notes)


def test_batch_size_and_shard_size_name_no_image():
    small, large = plan("budget=smoke", "protocol.batch_size=1"), plan("budget=smoke", "protocol.batch_size=32")
    assert set(small.tasks) == set(large.tasks)


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_a_smaller_budget_is_part_of_a_larger(role):
    def of(budget):
        (composed,) = compose_cells([f"budget={budget}", f"concepts={'adult' if role.optional else 'church'}"])
        cell = cell_from(composed.config, composed.explicit)
        return {(s.prompt.id, s.noise_seed) for s in role.shots(cell.concepts, cell.budget)}

    assert of("smoke") and of("smoke") <= of("lite") <= of("paper")


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


def test_every_catalogue_anchor_and_neighbour_is_known():
    catalogue = load_catalogue("testbed")
    assert len(catalogue.of_kind("object")) >= 14
    assert len(catalogue.of_kind("style")) >= 7
    assert len(catalogue.of_kind("character")) >= 6
    for concept in catalogue.concepts.values():
        assert set(concept.neighbours) <= set(catalogue.concepts)
        assert concept.name not in concept.neighbours


def test_the_content_of_a_named_file_decides_the_erasure(tmp_path):
    captions = tmp_path / "captions.csv"

    def key(text):
        captions.write_text(text)
        found = plan("method=mace", f"method.prior_captions={captions}", "method.preserve_scale=1", "budget=smoke")
        return next(task.key for task in found.tasks.values() if task.stage == "erase")

    one = key("prompt\na tree\n")
    assert key("prompt\na tree\n") == one != key("prompt\na boat\n")


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


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_has_a_version_of_its_own(precision):
    """The version is part of the keys of half-precision training; single-precision keys do not contain it."""
    exact, half = (
        plan("method=esd", "attack=cce", "budget=smoke", f"model.precision={kind}") for kind in ("float32", precision)
    )
    for stage in ("erase", "attack"):
        assert not any("half" in task.versions for task in stages(exact, stage))
        assert stages(half, stage) and all(task.versions["half"] == HALF_PRECISION for task in stages(half, stage))


@pytest.fixture
def unloadable(tiny_sdxl_folder, tmp_path, monkeypatch):
    """A folder that names SDXL's pipeline and holds nothing else. Reading its weights would fail."""
    (tmp_path / "sdxl").mkdir()
    shutil.copy(tiny_sdxl_folder / "model_index.json", tmp_path / "sdxl")
    monkeypatch.setattr(
        "overpaint.images.task_parts.fingerprint_model", lambda path: pytest.fail("the weights were read")
    )
    return ["model=local", f"model.path={tmp_path / 'sdxl'}", "concepts=inline", "concepts.erase=[church]"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method=uce,mace"], "method=mace supports the families sd, not sdxl"),
        (["method=uce", "attack=none,cce"], "attack=cce runs on models of the families sculpture, not on sdxl"),
        (["method=none", "attack=cce"], "attack=cce runs on models of the families sculpture, not on sdxl"),
    ],
)
def test_an_unsupported_family_is_refused_before_anything_is_read(unloadable, overrides, said, monkeypatch):
    monkeypatch.setattr(component("attack", "cce").load(), "families", ("sculpture",))
    with pytest.raises(UserError, match=f"^{said}$"):
        plan(*unloadable, *overrides, "budget=smoke")


def test_a_control_of_an_unsupported_family_is_refused_too(unloadable, monkeypatch):
    for name, value in (("families", ("sculpture",)), ("needs", "victim")):
        monkeypatch.setattr(component("attack", "seed_search").load(), name, value)
    with pytest.raises(UserError, match=r"^attack=seed_search runs on models of the families sculpture, not on sdxl$"):
        plan(*unloadable, "attack=uda", "attack.control=seed_search", "method=none", "budget=smoke")


def test_concepts_that_a_method_does_not_erase_are_refused_when_they_are_planned(monkeypatch):
    method = component("method", "uce").load()
    for name, value in (("kinds", ("style",)), ("multiple", False)):
        with monkeypatch.context() as patched:
            patched.setattr(method, name, value)
            if name == "kinds":
                with pytest.raises(UserError, match="method=uce erases the kinds style, not object"):
                    plan("method=none,uce", "concepts=mosaic,church", "budget=smoke")
            else:
                assert plan("method=uce", "concepts=objects5", "concepts.sequential=true", "budget=smoke").cells
                with pytest.raises(UserError, match="method=uce erases one concept per request, got 5"):
                    plan("method=uce", "concepts=objects5", "budget=smoke")


def test_an_unknown_family_of_a_hub_model_is_checked_when_it_is_loaded(monkeypatch):
    monkeypatch.setattr("overpaint.images.planner.model_family", lambda path: None)
    monkeypatch.setattr(component("attack", "cce").load(), "families", ("sculpture",))
    assert plan("method=uce", "attack=cce", "budget=smoke").cells


#: Kind, one of our components that a user's module offers as its own, what selects it, and the stages that depend on it.
FOREIGN = [
    ("method", "uce", "method=mine_method", {"erase", "generate", "score", "compare", "latency", "attack", "measure"}),
    ("attack", "cce", "attack=none,mine_attack", {"attack", "generate", "score", "measure"}),
    ("detector", "oracle", "model.detector=mine_detector", {"score", "measure"}),
    ("detector", "oracle_b", "model.judge=mine_detector", {"attack", "score", "measure"}),
    ("pictures", "world", "model.reference=mine_pictures", {"reference", "attack", "generate", "score", "measure"}),
    ("metrics", "", "metrics.metrics.mine='mine_metrics:Mine'", {"measure"}),
]


@pytest.mark.parametrize(
    ("kind", "like", "override", "stages"), FOREIGN, ids=[case[2].split("=")[0] for case in FOREIGN]
)
def test_the_source_of_a_users_component_is_in_the_keys_of_what_depends_on_it(
    kind, like, override, stages, tmp_path, monkeypatch
):
    monkeypatch.setattr("overpaint.grid.registry._asked", [])
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, f"mine_{kind}", raising=False)
    ours = component(kind, like).config["component"] if like else "overpaint.metrics.cost:EraseSeconds"
    code = "from {} import {} as Mine\n".format(*ours.split(":"))
    (tmp_path / f"mine_{kind}.py").write_text(code)
    (tmp_path / "conf" / kind).mkdir(parents=True)
    if like:
        text = components(kind)[like].read_text().replace(ours, f"mine_{kind}:Mine")
        (tmp_path / "conf" / kind / f"mine_{kind}.yaml").write_text(text.replace(f"name: {like}", f"name: mine_{kind}"))
    grid = {"method": "uce", "attack": "none,uda" if "judge" in override else "none,cce", "budget": "smoke"}
    chosen = [f"{key}={value}" for key, value in grid.items() if key != override.split("=")[0]]

    def planned():
        for cached in (source_of, source_code._parsed, task_parts.source_code):
            cached.cache_clear()
        return plan(*chosen, override, f"hydra.searchpath=[file://{tmp_path / 'conf'}]").tasks

    before = planned()
    mine = {key for key, task in before.items() if task.foreign}
    assert {before[key].stage for key in mine} == stages
    assert {name for key in mine for name in before[key].foreign} == {
        f"{kind}=mine_{kind}" if like else "metrics.metrics.mine"
    }
    (tmp_path / f"mine_{kind}.py").write_text(f"# A comment\n{code}")
    assert planned().keys() == before.keys()
    (tmp_path / f"mine_{kind}.py").write_text(f"{code}changed = 1\n")
    after = planned()
    assert len(after) == len(before) and after.keys() & before.keys() == before.keys() - mine
    for cached in (source_of, source_code._parsed, task_parts.source_code):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("grid", "stage"),
    [
        (["attack=relearn"], "attack"),
        (["attack=none", "metrics=muse"], "membership"),
        (["attack=none", "metrics=muse"], "replicate"),
        (["attack=none"], "reference"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_version_of_a_source_of_pictures_is_in_the_keys_of_all_that_read_it(grid, stage, monkeypatch):
    def readers():
        made = stages(plan("method=uce", "budget=smoke", *grid), stage)
        return [task for task in made if stage != "attack" or "examples" in task.config]

    first = readers()
    assert first and all("pictures" not in task.versions for task in first)  # the keys of older results
    monkeypatch.setattr(World, "version", 2)
    second = readers()
    assert len(second) == len(first) and not {task.key for task in first} & {task.key for task in second}


def test_a_word_is_no_file_whatever_the_working_directory_contains(tmp_path, monkeypatch):
    """ESD has a variant ``x``; a file of that name must not change its key."""
    before = {t.key for t in stages(plan("method=esd", "budget=smoke"), "erase")}
    (tmp_path / "x").write_text("a file")
    monkeypatch.chdir(tmp_path)
    assert {t.key for t in stages(plan("method=esd", "budget=smoke"), "erase")} == before


LOOKING = {
    "geom": ["geom.regions=detector", "geom.detector=mine"],
    "hfi": ["hfi.reward=mine"],
    "rece": ["rece.select=validation", "rece.validation_detector=mine"],
    "safety_checker": ["safety_checker.detector=mine", "safety_checker.weights=null"],
    "uce": ["uce.variant=current", "uce.attributes=[cat,dog]", "uce.classifier=mine"],
}


@pytest.fixture
def looking(tmp_path):
    """``looking(method, weights)``: the erase task of a method that looks at images with the detector ``mine``, and its plan."""
    folder = tmp_path / "conf" / "detector"
    folder.mkdir(parents=True)
    about = "name: mine\ncomponent: overpaint.detectors.nudenet:NudeNet\ngroup: core4\nclasses: null\n"

    def erase_task(method, weights):
        (folder / "mine.yaml").write_text(f"{about}weights: {weights}\n")
        look_in()
        detectors._identity.cache_clear()
        place = f"hydra.searchpath=[file://{folder.parent}]"
        made = plan(f"method={method}", "attack=none", "budget=smoke", place, *LOOKING[method])
        return stages(made, "erase")[0], made

    yield erase_task
    look_in()
    detectors._identity.cache_clear()


@pytest.mark.parametrize("method", LOOKING)
def test_the_weights_of_a_detector_that_an_erasure_asks_are_in_its_key(looking, method, tmp_path):
    files = [tmp_path / f"{name}.onnx" for name in ("a", "b", "same as a")]
    for file, content in zip(files, (b"1", b"2", b"1"), strict=True):
        file.write_bytes(content)
    first, made = looking(method, files[0])
    assert first.config["detectors"]["mine"]["assets"] == {"a.onnx": file_digest(str(files[0]))}
    assert all(task.config["cell"]["versions"].count('"mine":1') for task in stages(made, "measure"))
    assert first.key != looking(method, files[1])[0].key
    assert not plan(f"method={method}", "attack=none", "budget=smoke").absent


@pytest.mark.parametrize("method", LOOKING)
def test_a_plan_says_which_detector_of_a_method_is_missing(looking, method):
    _, made = looking(method, "asset:gcd")
    assert any("asset=gcd" in said and "is not in" in said for said in made.absent)


def test_components_that_share_a_name_have_versions_of_their_own():
    ((_, task),) = plan("method=safety_checker", "method.detector=safety_checker", "attack=none", "budget=smoke").cells
    versions = json.loads(task.config["cell"]["versions"])
    assert {"method=safety_checker", "detector=safety_checker", "oracle", "generate"} <= versions.keys()
    ((_, task),) = plan("method=safety_checker", "method.detector=oracle", "attack=none", "budget=smoke").cells
    assert {"safety_checker", "oracle"} <= json.loads(task.config["cell"]["versions"]).keys()


def test_an_erasure_without_detectors_has_its_key_as_before():
    (task,) = stages(plan("method=uce", "attack=none", "budget=smoke"), "erase")
    assert "detectors" not in task.config


@pytest.mark.parametrize(
    ("grid", "stage", "key"),
    [
        (["attack=pez", "attack.clip=owner/clip"], "attack", "clip"),
        (["attack=p4d_n", "attack.clip=owner/clip"], "attack", "clip"),
        (["attack=conceptor", "attack.clip=owner/clip"], "attack", "clip"),
        (
            ["method=prompt_filter", "method.rule=embedding", "method.threshold=0.5", "method.clip=owner/clip"],
            "erase",
            "clip",
        ),
        (["method=checkpoint", "method.file=owner/clip"], "erase", "file"),
        (["method=mace", "method.masks=segmenter", "method.detector=owner/clip"], "erase", "detector"),
        (["method=sfd", "method.generator=owner/clip"], "erase", "generator"),
        (
            ["method=uce", "uce.variant=current", "uce.attributes=[cat,dog]", "uce.classifier=owner/clip"],
            "erase",
            "classifier",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_the_commit_of_a_network_of_the_hub_is_in_keys(grid, stage, key, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    main = tmp_path / "models--owner--clip" / "refs" / "main"
    main.parent.mkdir(parents=True)
    found = []
    for commit in ("a" * 40, "b" * 40):
        main.write_text(commit)
        hub_commit.cache_clear()
        found.append(stages(plan("budget=smoke", *grid), stage)[0])
    hub_commit.cache_clear()
    assert [task.config["files"][key] for task in found] == [f"hub:{'a' * 40}", f"hub:{'b' * 40}"]
    assert found[0].key != found[1].key


def test_the_content_of_a_folder_that_an_attack_names_is_in_its_key(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    given = ("attack=pez", f"attack.clip={tmp_path}", "budget=smoke")
    first = stages(plan(*given), "attack")[0]
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert stages(plan(*given), "attack")[0].key != first.key
    assert "files" not in stages(plan("attack=pez", "budget=smoke"), "attack")[0].config


def test_the_content_of_a_benign_change_is_in_the_key_of_a_merge(tmp_path):
    file, found = tmp_path / "benign.safetensors", []
    for value in (0.0, 1.0):
        save_file({"conv_in.bias": torch.full((2,), value)}, file)
        found.append(stages(plan("attack=merge", f"attack.checkpoint={file}", "budget=smoke"), "attack")[0])
    assert found[0].config["files"]["checkpoint"] != found[1].config["files"]["checkpoint"]


def test_a_measurement_knows_the_classes_that_the_detector_counts():
    counted = [
        stages(plan("method=none", "attack=none", "budget=smoke", *more), "measure")[0].config.get("counted")
        for more in ([], ["model.detector=nudenet"])
    ]
    assert counted == [None, list(EXPOSED9)]
