"""Composing once per axis value gives the same cells as composing every cell with Hydra; order of presets and overrides."""

import re
from typing import get_args, get_type_hints

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from overpaint.errors import UserError
from overpaint.grid.cells import ModelSpec, Protocol, cell_from
from overpaint.grid.composition import compose_cells
from overpaint.grid.overrides import override, read_override
from overpaint.grid.shipped import shipped


def cells(*overrides):
    return [cell_from(c.config, c.explicit) for c in compose_cells(list(overrides))]


def test_cells_equal_a_true_compose():
    axes = ["method=uce,esd", "attack=none,cce", "seed=0,3"]
    composed = compose_cells([*axes, "budget=smoke"])
    assert len(composed) == 8
    wanted = [(m, a, s) for m in ("uce", "esd") for a in ("none", "cce") for s in (0, 3)]
    for ours, (method, attack, seed) in zip(composed, wanted, strict=True):
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
            chosen = [f"method={method}", f"attack={attack}", f"seed={seed}", "budget=smoke", "protocol=testbed"]
            true = compose("config", [*chosen, "concepts.name=church"])  # named after its file
        assert ours.config == OmegaConf.to_container(true, resolve=True)


def test_experiment_brings_axes_that_overrides_replace():
    demo = cells("experiment=demo")
    assert len(demo) == len({(c.concepts.name, c.method.name, c.attack.name) for c in demo}) >= 4 * 3 * 5
    assert {c.concepts.kind for c in demo} == {"object", "style", "character"}
    fewer = cells("experiment=demo", "method=uce", "attack=none")
    assert [c.method.name for c in fewer] == ["uce"] * 3


def test_a_second_experiment_is_refused():
    with pytest.raises(UserError, match="experiment=smoke: an experiment is a grid of its own"):
        cells("experiment=demo", "experiment=smoke")


def test_preset_then_explicit_value():
    (plain,) = cells("method=esd")
    assert plain.method.preset.startswith("testbed")
    (paper,) = cells("method=esd", "method.preset=null")
    assert paper.method.values["rollout_steps"] == 50
    assert plain.method.values["rollout_steps"] != 50
    (explicit,) = cells("method=esd", "method.rollout_steps=50")  # equal to the default, and stronger than the preset
    assert explicit.method.values["rollout_steps"] == 50
    assert explicit.method.label == "esd rollout_steps=50"


def test_axis_of_values_inside_a_group():
    swept = cells("method=uce", "method.lamb=0.1,1.0")
    assert [c.method.values["lamb"] for c in swept] == [0.1, 1.0]


def test_concepts_can_be_given_on_the_command_line():
    (cell,) = cells("concepts=inline", "concepts.erase=[church]", "concepts.anchor=house")
    assert cell.concepts.request.erase[0].label == "church"
    assert cell.concepts.request.erase[0].anchor == "house"
    (cell,) = cells("concepts.erase=[van gogh]", "concepts.kind=style", "concepts.catalogue=null")
    assert cell.concepts.request.erase[0].kind == "style"


def test_configuration_allows_the_schedulers_and_precisions_that_models_have():
    """`cells` repeats their names, so that they can be checked without importing torch."""
    from overpaint.models.loading import DTYPES
    from overpaint.models.schedulers import SCHEDULERS

    assert set(get_args(get_type_hints(Protocol)["scheduler"])) == set(SCHEDULERS)
    assert set(get_args(get_type_hints(ModelSpec)["precision"])) == set(DTYPES)


def test_a_metric_of_ones_own_on_the_command_line():
    name = "overpaint.metrics.proportions:TargetProportion"
    (one,) = cells(f"+metrics.metrics.mine={name}")
    assert one.metrics.metrics["mine"] == name
    assert len(cells(f"+metrics.metrics.mine={name},{name}")) == 2


@pytest.mark.parametrize("name", ["nan", "1984", "true", "köln", "van gogh"])
def test_a_set_of_ones_own_can_have_any_name_in_quotes(tmp_path, name):
    (tmp_path / "concepts").mkdir()
    (tmp_path / "concepts" / f"{name}.yaml").write_text("defaults: [inline, _self_]\nerase: [church]\n")
    place = f"hydra.searchpath=[file://{tmp_path}]"
    (found,) = cells(place, f'concepts="{name}"')
    assert found.concepts.name == name
    if name.isalnum() and name.isascii():
        with pytest.raises(UserError, match=f"""{name} is a number, .*; quote it: 'concepts="{name}"'"""):
            cells(place, f"concepts=church,{name}")


def test_a_method_from_a_folder_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text(
        "name: mine\ncomponent: overpaint_mine:Mine\nsummary: halves the values\npreset: auto\nstrength: 0.5\npresets: {}\n"
    )
    (tmp_path / "overpaint_mine.py").write_text(
        "from dataclasses import dataclass\nfrom overpaint.methods.eraser import Eraser\n"
        "from overpaint.models.erasure import Erasure\n"
        "@dataclass(kw_only=True)\nclass Mine(Eraser):\n    strength: float\n"
        "    def erase(self, model, request):\n        return Erasure('mine')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (cell,) = cells("method=mine", "method.strength=0.25", f"hydra.searchpath=[file://{tmp_path}]")
    assert cell.method.values == {"strength": 0.25}
    file = tmp_path / "method" / "mine.yaml"
    for before, after, said in (
        ("strength", "other: 1\nstrength", "unknown hyper-parameter 'other' in method=mine (allowed: strength)"),
        (
            "preset: auto",
            "preset: auto\nstatus: verifed",
            "unknown status 'verifed' in method=mine; did you mean 'verified'? "
            "(allowed: defined here, experimental, paper only, verified)",
        ),
    ):
        text = file.read_text()
        file.write_text(text.replace(before, after))
        with pytest.raises(UserError, match=re.escape(said)):
            cells("method=mine", f"hydra.searchpath=[file://{tmp_path}]")
        file.write_text(text)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("method=uce method=esd", "method= is given twice: give a list, method=uce,esd"),
        ("method=uce method=uce", "method= is given twice: give it once"),
        (
            "method=uce method.lamb=0.1 +method.lamb=0.2",
            "method.lamb= is given twice: give a list, method.lamb=0.1,0.2",
        ),
        ("method=uce uce.lamb=0.1 method.lamb=0.2", "uce.lamb=0.1 and method.lamb=0.2 set the same value"),
        (
            "attack=cce,none attack.floor=true cce.floor=false",
            "attack.floor=true and cce.floor=false set the same value",
        ),
        ("store=a store=b", "store= is given twice: give it once"),
    ],
)
def test_a_setting_that_is_given_twice_is_refused(line, said):
    with pytest.raises(UserError, match=re.escape(said)):
        cells(*line.split())


@pytest.mark.parametrize("axes", ["method.lamb: 0.7", "uce.lamb: 0.7", "method.lamb: 0.7, uce.erase_scale: 1.0"])
@pytest.mark.parametrize("by_hand", ["method.lamb=9", "uce.lamb=9"])
def test_a_value_by_hand_beats_that_of_an_experiment_for_all_or_one(axes, by_hand, tmp_path):
    (tmp_path / "experiment").mkdir()
    content = f"# @package _global_\nhydra: {{sweeper: {{params: {{method: uce, {axes}}}}}}}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(content)
    (cell,) = compose_cells([f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine", by_hand])
    assert cell.config["method"]["lamb"] == 9


def test_one_attack_of_an_experiment_gets_a_floor_that_the_others_lack():
    floors = {
        c.config["attack"]["name"]: c.config["attack"]["floor"]
        for c in compose_cells(["experiment=demo", "cce.floor=true"])
    }
    assert floors.pop("cce") is True and set(floors.values()) == {False}


def test_settings_of_an_experiment_and_of_other_components_are_no_repetitions():
    assert len(cells("experiment=demo", "method=uce", "attack=none", "budget=smoke", "seed=1")) == 3
    assert len(cells("method=uce,esd", "uce.lamb=0.1", "esd.preset=testbed", "esd.iterations=3")) == 2


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("${esd.iterations}", "method.iterations refers to esd.iterations, which is no key of the configuration"),
        ("${budget.nope}", "method.iterations refers to budget.nope, which is no key of the configuration"),
        ("${method.iterations}", "method.iterations cannot be read: recursive interpolation detected"),
        ("${method}", "method.iterations cannot be read: interpolation to parent node detected"),
    ],
)
def test_a_reference_that_leads_nowhere_is_told_in_one_sentence(value, said):
    with pytest.raises(UserError) as error:
        cells("method=esd", f"esd.iterations={value}")
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("people", "preset"), [(1, "person"), (2, "person"), (5, "person_5"), (10, "person_10"), (100, "person_100")]
)
def test_a_preset_can_be_for_a_number_of_concepts(people, preset):
    names = ",".join(f"person{n}" for n in range(people))
    people_set = ["concepts=inline", f"concepts.erase=[{names}]", "concepts.kind=person"]
    (cell,) = cells("method=mace", "model=sd14", "mace.prior_captions=testbed/captions", *people_set)
    assert cell.method.preset == preset


@pytest.mark.parametrize(
    ("erase", "asked", "preset"),
    [
        ("nudity", "auto", "nudity"),
        ("Nudity", "auto", "nudity"),  # HUB's spelling
        ("nudity", "paper", "paper_nudity"),
        ("violence", "auto", "unsafe"),
        ("violence", "paper", "paper_unsafe"),
        ("nudity,violence", "auto", "unsafe"),
    ],
)
def test_settings_for_nudity_are_for_nudity_only(erase, asked, preset):
    unsafe = ["concepts=inline", f"concepts.erase=[{erase}]", "concepts.kind=unsafe"]
    (cell,) = cells("method=rece", "model=sd14", f"rece.preset={asked}", *unsafe)
    assert cell.method.preset == preset


@pytest.mark.parametrize("method", ["safree", "sfd", "hfi", "geom"])
def test_no_method_takes_words_or_detectors_of_nudity_for_other_unsafe_concepts(method):
    def values(concept, kind):
        settings = ["concepts=inline", f"concepts.erase=[{concept}]", f"concepts.kind={kind}"]
        (cell,) = cells(f"method={method}", "model=sd14", *settings)
        return cell.method.values

    assert values("violence", "unsafe") == values("violence", "object") != values("nudity", "unsafe")


VALUES = [
    0.5,
    10,
    1e-5,
    True,
    None,
    "object",
    "True",
    "null",
    "1.5",
    "a, b",
    "it's",
    'say "no"',
    "a=b",
    "",
    "asset:i2p/x.csv",
]


@pytest.mark.parametrize("value", [*VALUES, VALUES, {"name": 1.0, "two words, a: b": -1.0}, []], ids=str)
def test_an_override_is_read_as_the_value_that_it_was_written_from(value):
    assert read_override(override("uce.lamb", value)).values == (value,)
