"""The common test suite of attacks. It runs over every ``conf/attack/*.yaml``, so a new attack is tested automatically."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from work import undeclared

import overpaint
from overpaint.attacks.attack import COMPARISONS, Attack
from overpaint.grid.concepts import Concept, Request
from overpaint.grid.lengths import shortened
from overpaint.grid.prompts import Prompt, shots
from overpaint.grid.registry import component, components, construct
from overpaint.grid.scope import ENTRIES
from overpaint.images.stages.attack import _note
from requirements import unmet

ATTACKS = sorted(components("attack"))
#: Attacks that use no model, and attacks that use one.
BLIND = [name for name in ATTACKS if component("attack", name).load().needs == "nothing"]
SEEING = [name for name in ATTACKS if name not in BLIND]
#: Attacks without images for a cat: no attack, and prompts that imply unsafe content or marks.
SILENT = ("none", "implicit")
#: Counts that must be at least 1, with the attacks that have them.
COUNTS = ("batch_size", "first", "generations", "iterations", "pictures", "restarts", "tokens", "tries")
COUNTED = [(name, key) for name in ATTACKS for key in COUNTS if key in component("attack", name).defaults]
LIST = Path(__file__).with_name("prompts.csv")  # for attacks that read a prompt list
TINY = {
    "steps": 2,
    "batch_size": 2,
    "pictures": 2,
    "timesteps": 1,
    "iterations": 1,
    "draw_every": 2,
    "last_images": 1,
    "generations": 2,
    "population": 4,
    "candidates": 8,
    "restarts": 1,
    "rollout_steps": 2,
    "curve": [0, 1],
    "file": str(LIST),
}


@pytest.fixture(params=ATTACKS)
def attack(request):
    return component("attack", request.param)


def built(attack, seed=1, **values):
    budget = {key: value for key, value in TINY.items() if key in attack.defaults}
    return attack.build(budget | values, seed=seed)


def run(attack, context, **values):
    return built(attack, **values).run(context)


#: The result of each attack on all shots of `context`, for tests that only read it.
ASSAULTS = {}


def assault_of(attack, context):
    if attack.name not in ASSAULTS:
        ASSAULTS[attack.name] = run(attack, context)
    return ASSAULTS[attack.name]


def test_two_runs_are_equal_whatever_the_global_seed(attack, context):
    torch.manual_seed(1)
    one = assault_of(attack, context)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = run(attack, context)
    assert one.shots == two.shots and one.tokens.keys() == two.tokens.keys()
    assert all(torch.equal(one.tokens[word], two.tokens[word]) for word in one.tokens)
    assert torch.equal(torch.get_rng_state(), state), "an attack draws from its own generator"


def test_shots_are_attacked_paired_and_within_budget(attack, context):
    ready = built(attack)
    assault = assault_of(attack, context)
    shots = [s for s in assault.shots if s.prompt.role not in COMPARISONS]
    assert len(shots) <= len(context.shots) * ready.images
    assert len({(s.prompt.id, s.prompt.noise, s.index, s.draw) for s in assault.shots}) == len(assault.shots)
    if ready.paints:
        assert [p.shot for p in assault.painted] == assault.shots
    plain = {s.prompt.noise for s in context.shots}
    for shot in shots:
        assert shot.prompt.role == "attacked" and shot.prompt.concept == "cat"
        if attack.name != "replay":  # whose list has its own prompts
            assert shot.prompt.noise in plain, "attacked and plain images start from the same noise"


def test_the_victim_is_left_as_it_was(attack, context, tiny_sd):
    erasure = overpaint.erase(tiny_sd, "negative_prompt", erase=["cat"])
    before = {name: p.data.clone() for name, p in tiny_sd.named_parameters().items()}
    tokenizer = tiny_sd.tokenizer
    with erasure.attached(tiny_sd):
        guard = tiny_sd.guidance
        run(attack, replace(context, shots=context.shots[:1]))
        assert tiny_sd.guidance is guard
    assert tiny_sd.tokenizer is tokenizer
    for name, p in tiny_sd.named_parameters().items():
        assert torch.equal(p.data, before[name]) and p.grad is None, name


def drawn(model, assault, most=2):
    """The first images of an attack's result."""
    with model.learned_tokens(assault.tokens):
        shots = assault.shots[:most]
        return [image for s in shots for image in model.sample([s.prompt.text], [s.noise_seed], steps=1)]


def test_what_it_leaves_can_be_drawn(attack, context, tiny_sd):
    images = drawn(tiny_sd, assault_of(attack, context))
    assert bool(images) != (attack.name in SILENT)
    assert all(image.size == (32, 32) for image in images)


@pytest.mark.parametrize("family", ["sdxl", "velocity"])
@pytest.mark.parametrize("name", SEEING)
def test_it_runs_on_other_families(name, family, in_front_of, tiny_sdxl, goldens):
    """With two text encoders, and with a network that predicts velocity, the attack runs and gives finite images."""
    attack = component("attack", name)
    if family == "sdxl":
        model = tiny_sdxl
    else:
        model = overpaint.load_model(str(goldens / "tiny_sd"))
        scheduler = model.pipeline.scheduler
        model.pipeline.scheduler = type(scheduler).from_config(scheduler.config, prediction_type="v_prediction")
    context = in_front_of(model)
    context = replace(context, shots=[context.shots[0], context.shots[-1]])
    assault = run(attack, context)
    assert assault.shots
    assert all(torch.isfinite(word).all() for word in assault.tokens.values())
    assert all(picture.image is not None for picture in assault.painted)


@pytest.mark.parametrize("name", SEEING)
def test_a_model_of_another_family_is_refused_by_name(name):
    ready = built(component("attack", name))
    for family in ready.families:
        ready.check_family(family, name)
    with pytest.raises(
        overpaint.UserError, match=f"^attack={name} runs on models of the families .* not on sculpture$"
    ):
        ready.check_family("sculpture", name)


@pytest.mark.parametrize("name", SEEING)
def test_over_long_prompts_are_truncated_and_reported(name, context, tiny_sd):
    """82 tokens for a model with 77: truncated like a sampler's prompts, or further to make room for learned tokens."""
    long = Prompt("a photo of a cat" + " on a ship" * 25, "target", "cat", ("cat",))
    assert len(tiny_sd.tokenizer(long.text).input_ids) == 82
    ready, long = built(component("attack", name)), replace(context, shots=shots([long], 1))
    assault = ready.run(long)
    images = drawn(tiny_sd, assault)
    assert images and all(image.size == (32, 32) for image in images)
    assert _note(ready, context, replace(assault, shots=context.shots)) == {}
    assert _note(ready, long, assault)["note"].startswith("1 of 1 prompts ")


@pytest.mark.parametrize("name", BLIND)
def test_an_attack_that_needs_nothing_runs_without_a_victim(name, context):
    attack, blind = component("attack", name), type(context)(context.concept, context.shots, context.catalogue)
    assert run(attack, blind).shots == assault_of(attack, context).shots
    built(attack).check_family("sculpture", name)


def test_an_unknown_or_wrong_hyper_parameter_is_refused(attack):
    with pytest.raises(overpaint.UserError, match=f"'qqq' in attack={attack.name}"):
        attack.build({"qqq": 1})
    for key in attack.defaults:
        with pytest.raises(overpaint.UserError, match=f"did you mean '{key}'"):
            attack.build({f"{key}x": 1})
        with pytest.raises(overpaint.UserError, match=f"(?s){attack.name}.*{key}"):
            attack.build({key: {"a": 1}})


@pytest.mark.parametrize(("name", "key"), COUNTED)
def test_counts_below_1_are_refused(name, key):
    with pytest.raises(overpaint.UserError, match=key):
        component("attack", name).build({key: 0})


def test_the_yaml_and_the_page_are_complete(attack):
    missing = unmet("attack", attack.name, Attack)
    assert not missing, f"conf/attack/{attack.name}.yaml:\n- " + "\n- ".join(missing)
    assert attack.config["control"] is None or attack.config["control"] in ATTACKS


def test_every_preset_can_be_built(attack):
    for preset in [None, *attack.config["presets"]]:
        construct(attack.load(), attack.settle({}, preset), attack.name)


def test_whatever_it_repeats_is_a_length_that_a_budget_can_shorten(attack, context):
    one = replace(context, shots=context.shots[:1])
    missing = undeclared(built(attack), attack.defaults, lambda **values: run(attack, one, **values))
    assert not missing, f"{attack.name}: declare lengths: {', '.join(missing)} (overpaint.grid.lengths)"


@pytest.mark.parametrize("limit", [2, 10])
def test_every_preset_can_be_shortened(attack, limit):
    request = Request((Concept("cat"),))
    for preset in [None, *attack.config["presets"]]:
        values = attack.settle({}, preset)
        cut = {key: new for key, (_, new) in shortened(attack.build(values), limit, (), request).items()}
        short = attack.build(values | cut)
        reached = {key: getattr(short, key) for key in short.lengths if getattr(short, key) is not None}
        assert reached.keys() >= set(short.lengths) & {*short.endless}
        assert all(max(value) <= limit if isinstance(value, list) else value <= limit for value in reached.values())
        assert all(getattr(short, part) < getattr(short, length) for part, length in short.paced.items())


def test_it_says_where_it_comes_in(attack):
    assert attack.load().enters_by in ENTRIES
