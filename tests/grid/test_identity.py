"""Every point of a sweep has its own labels and settings; seeds on which nothing depends are one point."""

import json

import pytest

from overpaint.errors import UserError
from overpaint.grid.cells import AXES, SPEED, cell_from, merged
from overpaint.grid.composition import compose_cells
from overpaint.grid.registry import component, components
from overpaint.grid.roles import PROMPT_LISTS, ROLES, shortfalls


def cells(*overrides):
    return [cell_from(c.config, c.explicit) for c in compose_cells(list(overrides))]


#: One sweep for every axis and key that affects records, with the axis whose label shows it.
SWEEPS = [
    ("model", "model.path=testbed,owner/name"),
    ("model", "model.precision=float32,float64"),
    ("model", "model.detector=oracle,oracle_b"),
    ("model", "model.reference=world,null"),
    ("concepts", "concepts=church,cat"),
    ("concepts", "concepts.erase=[church],[cat],[church,cat]"),
    ("concepts", "concepts.anchor=house,tree"),
    ("concepts", "concepts.retain=[cat],[cat,tree]"),
    ("concepts", "concepts.near=[cat],[tree]"),
    ("concepts", "concepts.templates=['a {}'],['the {}']"),
    ("concepts", f"concepts.templates=['{'a ' * 60}x {{}}'],['{'a ' * 60}y {{}}']"),
    ("method", "method=none,uce,esd"),
    ("method", "uce.lamb=0.1,0.5,1.0"),
    ("method", "uce.default_anchor=''," + "'a picture of a very long landscape with hills'"),
    ("attack", "attack=none,uda,cce"),
    ("attack", "uda.iterations=10,20"),
    ("attack", "uda.timesteps=5,[1,2]"),
    ("attack", "uda.control=null,seed_search,random_prefix"),
    ("attack", "uda.floor=true,false"),
    ("protocol", "protocol=testbed,ddim50"),
    ("protocol", "protocol.steps=10,20"),
    ("protocol", "protocol.guidance_scale=3,4.5"),
    ("budget", "budget=smoke,lite"),
    ("budget", "budget.target_prompts=4,8"),
    ("budget", "budget.seeds=1,2"),
    ("budget", "budget.max_steps=3,5"),
    ("budget", "budget.near_seeds=1,2"),
    ("budget", "budget.utility_seeds=null,3"),
    ("metrics", "metrics.threshold=0.5,0.7"),
    ("seed", "seed=0,1,2"),
]


@pytest.mark.parametrize(("axis", "sweep"), SWEEPS, ids=[sweep[:60] for _, sweep in SWEEPS])
def test_a_sweep_of_any_axis_is_told_apart_by_labels_and_settings(axis, sweep):
    key = sweep.split("=")[0]
    beside = [o for o in ("method=uce", "attack=uda") if o.split("=")[0] != key]
    swept = cells(*beside, sweep)
    assert len(swept) > 1
    assert len({cell.identity for cell in swept}) == len(swept)
    assert len({json.dumps(cell.labels) for cell in swept}) == len(swept)
    assert len({cell.labels[axis] for cell in swept}) == len(swept)
    others = [{a: text for a, text in cell.labels.items() if a not in (axis, "seed")} for cell in swept]
    assert all(other == others[0] for other in others)
    assert merged(swept) == (swept, [])
    for cell in swept:
        assert set(cell.labels) == set(cell.names) == set(cell.settings) == set(AXES)
        assert json.loads(json.dumps(cell.settings)) == cell.settings
        assert all(len(label) < 200 for label in cell.labels.values())


def test_keys_of_speed_alone_change_neither_labels_nor_settings():
    (plain,) = cells()
    for key in SPEED:
        (other,) = cells(f"{key}=7")
        assert other.labels == plain.labels and other.settings == plain.settings
        assert other.given == plain.given == {}


def test_a_compiled_network_is_another_point_with_a_label():
    """It changes the last bits of images, unlike every other key of an engine."""
    (plain,), (local,), (compiled,) = cells(), cells("engine=local"), cells("engine=local", "engine.compile=true")
    assert plain.identity == local.identity != compiled.identity
    assert "compiled" not in plain.settings["model"] and compiled.settings["model"]["compiled"] is True
    assert (plain.labels["model"], compiled.labels["model"]) == ("testbed", "testbed compile=true")
    assert cells("engine.compile=false")[0].identity == plain.identity
    with pytest.raises(UserError, match=r"engine\.compile takes true or false, got 'maybe'"):
        cells("engine.compile=maybe")


def test_what_was_set_by_hand_is_kept_by_its_full_key():
    (cell,) = cells("method=uce", "uce.lamb=1", "budget.seeds=2", "concepts.anchor=house")
    assert cell.given == {"method.lamb": 1, "budget.seeds": 2, "concepts.anchor": "house"}
    assert cell.labels["method"] == cell.method.label == "uce lamb=1.0"
    assert cell.labels["concepts"] == "church anchor=house"
    assert cell.names["concepts"] == "church" and cell.names["budget"] == "lite"


def test_concepts_given_by_hand_are_named_after_themselves():
    (cell,) = cells("concepts.erase=[church,cat]", "concepts.sequential=true")
    assert cell.names["concepts"] == cell.labels["concepts"] == "church+cat in turn"
    (named,) = cells("concepts=objects5", "concepts.erase=[church]")
    assert named.labels["concepts"] == "objects5 erase=[church]"


def test_a_prompt_file_is_what_it_holds(tmp_path):
    one, same, other = (tmp_path / f"{name}.csv" for name in ("one", "same", "other"))
    one.write_text("prompt\na church\n")
    same.write_text("prompt\na church\n")
    other.write_text("prompt\na chapel\n")
    first, second, third = (cells(f"concepts.prompts.target={path}")[0] for path in (one, same, other))
    assert first.identity == second.identity != third.identity
    assert first.labels["concepts"].startswith("church prompts.target=one.csv#")


def test_values_that_an_experiment_sets_count_as_set_by_hand(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nprotocol: {steps: 5}\nhydra:\n  sweeper:\n    params:\n      method: none,uce\n"
        "      uce.lamb: 0.1,1\n"
    )
    found = cells("experiment=mine", f"hydra.searchpath=[file://{tmp_path}]")
    assert [c.method.label for c in found] == ["none", "uce lamb=0.1", "uce lamb=1.0"]
    assert {c.labels["protocol"] for c in found} == {"testbed steps=5"}
    (plain,) = cells(
        "experiment=mine", "method=uce", "uce.lamb=2", "protocol.steps=7", f"hydra.searchpath=[{tmp_path}]"
    )
    assert (plain.method.label, plain.protocol.steps) == ("uce lamb=2.0", 7)


def test_a_baseline_stands_beside_a_sweep():
    found = cells("method=none,uce", "uce.lamb=0.1,0.5", "attack=none,uda", "uda.iterations=10")
    labels = [(c.method.label, c.attack.label) for c in found]
    assert labels == [
        (method, attack)
        for method in ("none", "uce lamb=0.1", "uce lamb=0.5")
        for attack in ("none", "uda iterations=10")
    ]


def test_an_address_and_the_group_are_one_key_for_one_component():
    (by_address,), (by_group,) = cells("method=uce", "uce.lamb=1"), cells("method=uce", "method.lamb=1")
    assert by_address == by_group and by_address.given == by_group.given


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["method=none,uce", "method.lamb=0.1,0.5"],
            "method.lamb=0.1,0.5: this grid has several methods (none, uce); name the one you mean: uce.lamb=0.1,0.5",
        ),
        (["method=uce,esd", "method.iterations=10"], "uce.iterations=10 or esd.iterations=10"),
        (["method=none,uce", "method.lam=1"], "did you mean 'lamb'"),
        (["method=esd", "uce.lamb=1"], "uce.lamb=1: this grid does not run uce (its methods: esd)"),
        (["method=uce", "uce.lam=1"], "unknown hyper-parameter 'lam' in method=uce; did you mean 'lamb'"),
        (["method=uce", "method.seed=3"], "method.seed=3: methods and attacks share one seed; use seed=3"),
        (["method=none,uce", "uce.seed=3,4"], "uce.seed=3,4: methods and attacks share one seed; use seed=3,4"),
        (["attack=none,uda", "attack.seed=3"], "attack.seed=3: methods and attacks share one seed; use seed=3"),
        (["method=uce", "ucee.lamb=1"], "unknown key 'ucee' in the configuration; did you mean 'uce'"),
    ],
)
def test_a_key_of_several_components_says_whose_it_is(overrides, said):
    with pytest.raises(UserError) as refused:
        cells(*overrides)
    assert said in str(refused.value)


def test_presets_and_what_stands_beside_an_attack_are_for_all_of_them():
    found = cells("attack=cce,uda", "attack.control=null", "attack.preset=testbed", "attack.floor=false")
    assert [(c.attack.control, c.attack.floor, c.attack.preset) for c in found] == [
        (None, False, "testbed_object"),
        (None, False, "testbed"),
    ]


def test_a_seed_that_nothing_draws_from_is_run_once_and_said():
    kept, said = merged(cells("method=none,uce,esd", "attack=none,synonym,uda", "seed=0,1,2"))
    counts = {}
    for cell in kept:
        counts.setdefault((cell.method.name, cell.attack.name), []).append(cell.seed)
    alone = {pair for pair, seeds in counts.items() if seeds == [0]}
    assert alone == {(m, a) for m in ("none", "uce") for a in ("none", "synonym")}
    assert all(seeds == [0, 1, 2] for pair, seeds in counts.items() if pair not in alone)
    assert "method uce with attack none draws nothing from the seed: seeds 0, 1, 2 are one run" in said
    assert len(said) == 4


@pytest.mark.parametrize(
    ("axes", "count", "name"),
    [
        (["method=uce", "uce.lamb=0.1,0.10,0.2"], 2, "church / uce lamb=0.1 / none"),
        (["method=esd", "seed=0,0"], 1, "church / esd / none"),
        (["method=none", "concepts=church,car", "concepts.erase=[star]"], 1, "star / none / none"),
    ],
)
def test_points_that_are_the_same_cell_run_once_and_are_told(axes, count, name):
    kept, said = merged(cells(*axes, "attack=none"))
    assert len(kept) == count
    assert said == [f"several points of this grid are the same cell, which runs once: {name}"]


def test_seeds_of_a_role_are_part_of_a_cell_only_where_they_are_set():
    (plain,), (own,) = cells("budget=smoke"), cells("budget=smoke", "budget.near_seeds=1")
    assert not plain.budget.settings.keys() & {"near_seeds", "utility_seeds"}, "keys of older records"
    assert own.budget.settings == plain.budget.settings | {"near_seeds": 1}


def test_settings_decide_whether_a_method_draws():
    (closed,), (balancing,) = (
        cells("method=uce", *more) for more in ([], ["uce.variant=current", "uce.attributes=[red,blue]"])
    )
    assert not closed.draws and balancing.draws
    assert closed.settings["seed"] is None and balancing.settings["seed"] == 0
    assert closed.labels["seed"] == "any" and balancing.labels["seed"] == "0"


@pytest.mark.parametrize("kind", ["method", "attack"])
def test_every_component_says_whether_it_draws(kind):
    """A component that declares that it does not draw must not use ``self.seed`` in its source."""
    import inspect

    for name in components(kind):
        cls = component(kind, name).load()
        if cls.draws is False:
            assert "self.seed" not in inspect.getsource(cls), f"{kind}={name}"


def test_a_model_has_its_own_protocol_and_the_users_is_stronger():
    by_model = {c.model.name: c.protocol for c in cells("model=testbed,sd14")}
    assert (by_model["testbed"].steps, by_model["sd14"].steps, by_model["sd14"].guidance_scale) == (10, 50, 7.5)
    assert {c.protocol.name for c in cells("model=testbed,sd14", "protocol=dpm20")} == {"dpm20"}
    (steps,) = cells("model=sd14", "protocol.steps=30")
    assert (steps.protocol.name, steps.protocol.steps, steps.labels["protocol"]) == ("ddim50", 30, "ddim50 steps=30")
    with pytest.raises(UserError, match="set protocol=… instead"):
        cells("model.protocol=dpm20")


def test_a_budget_that_asks_for_more_than_there_is_says_so():
    (cell,) = cells("budget.target_prompts=1000", "budget.near_prompts=1", "budget.grid=2", "budget.in_prompt=2")
    (said,) = shortfalls(cell)
    made = len(ROLES[0].prompts(cell.concepts, cell.budget))
    assert said == f"budget.target_prompts=1000: concepts=church has only {made} target prompts"
    (enough,) = cells(f"budget.target_prompts={made}", "budget=smoke")
    assert shortfalls(enough) == []


@pytest.mark.parametrize("concepts", ["church", "sketch", "quillan", "slime", "watermark"])
def test_the_testbed_has_the_prompts_that_paper_asks_for(concepts):
    """All but the roles whose prompts pair the erased concept with every other one: there are no more of these."""
    (cell,) = cells("budget=paper", f"concepts={concepts}", "method=none", "attack=none")
    short = {said.split("=")[0] for said in shortfalls(cell)}
    assert short <= {"budget.grid", "budget.in_prompt"}
    assert (
        len({prompt.text for prompt in ROLES[0].prompts(cell.concepts, cell.budget)})
        == cell.budget.target_prompts
        == 50
    )


def test_every_role_has_its_key_in_budgets_and_concept_sets():
    for name in components("budget"):
        assert {role.budget for role in ROLES} <= set(component("budget", name).config)
    assert {*(role.name for role in ROLES), *PROMPT_LISTS} == set(component("concepts", "inline").config["prompts"])


def test_a_later_hyper_parameter_is_in_keys_only_where_it_changes_something():
    (plain,), (same,) = cells("method=negative_prompt"), cells("method=negative_prompt", "method.start=0")
    assert "start" not in plain.settings["method"]["values"] and plain.settings == same.settings
    swept = cells("method=negative_prompt", "method.start=0.25,0.5")
    assert [cell.settings["method"]["values"]["start"] for cell in swept] == [0.25, 0.5]
    assert [cell.labels["method"] for cell in swept] == ["negative_prompt start=0.25", "negative_prompt start=0.5"]
