"""What every attack has to satisfy, run over every ``conf/attack/*.yaml``. A new attack is tested by being there."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml

import overpaint
from overpaint.attacks.attack import COMPARISONS, Attack
from overpaint.grid.prompts import Prompt, shots
from overpaint.grid.registry import DESCRIPTION, component, components, construct
from overpaint.grid.scope import ENTRIES
from overpaint.images.stages.attack import _note

ATTACKS = sorted(components("attack"))
LIST = Path(__file__).with_name("prompts.csv")  # a list for attacks that read one
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


def test_two_runs_are_equal_whatever_the_global_seed(attack, context):
    torch.manual_seed(1)
    one = run(attack, context)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = run(attack, context)
    assert one.shots == two.shots and one.tokens.keys() == two.tokens.keys()
    assert all(torch.equal(one.tokens[word], two.tokens[word]) for word in one.tokens)
    assert torch.equal(torch.get_rng_state(), state), "an attack draws from its own generator"


def test_shots_are_attacked_paired_and_within_budget(attack, context):
    ready = built(attack)
    assault = ready.run(context)
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
        run(attack, context)
        assert tiny_sd.guidance is guard
    assert tiny_sd.tokenizer is tokenizer
    for name, p in tiny_sd.named_parameters().items():
        assert torch.equal(p.data, before[name]) and p.grad is None, name


def test_what_it_leaves_can_be_drawn(attack, context, tiny_sd):
    assault = run(attack, context)
    with tiny_sd.learned_tokens(assault.tokens):
        for shot in assault.shots[:2]:
            (image,) = tiny_sd.sample([shot.prompt.text], [shot.noise_seed], steps=1)
            assert image.size == (32, 32)


@pytest.mark.parametrize("family", ["sdxl", "velocity"])
def test_it_runs_on_other_families(attack, family, in_front_of, tiny_sdxl, goldens):
    """Two text encoders, and a network that says the velocity: the same attack, and pictures that are some."""
    if family == "sdxl":
        model = tiny_sdxl
    else:
        model = overpaint.load_model(str(goldens / "tiny_sd"))
        scheduler = model.pipeline.scheduler
        model.pipeline.scheduler = type(scheduler).from_config(scheduler.config, prediction_type="v_prediction")
    context = in_front_of(model)
    context = replace(context, shots=[context.shots[0], context.shots[-1]])
    assault = run(attack, context)
    assert assault.shots or built(attack).needs == "nothing"
    assert all(torch.isfinite(word).all() for word in assault.tokens.values())
    assert all(picture.image is not None for picture in assault.painted)


def test_a_prompt_that_is_too_long_loses_its_end(attack, context, tiny_sd):
    """82 tokens, of which a model of 77 reads 75 words: cut as a sampler cuts them, or shorter, for words to fit."""
    long = Prompt("a photo of a cat" + " on a ship" * 25, "target", "cat", ("cat",))
    assert len(tiny_sd.tokenizer(long.text).input_ids) == 82
    ready, long = built(attack), replace(context, shots=shots([long], 1))
    assault = ready.run(long)
    if ready.needs != "nothing":
        assert _note(ready, context) == {}
        assert _note(ready, long) == {
            "note": "1 of 1 prompts were cut so that they fit the 77 tokens that the model reads"
        }
    with tiny_sd.learned_tokens(assault.tokens):
        for shot in assault.shots[:2]:
            tiny_sd.sample([shot.prompt.text], [shot.noise_seed], steps=1)


def test_an_attack_that_needs_nothing_runs_without_a_victim(attack, context):
    if attack.load().needs == "nothing":
        blind = type(context)(context.concept, context.shots, context.catalogue)
        assert run(attack, blind).shots == run(attack, context).shots


def test_an_unknown_or_wrong_hyper_parameter_is_refused(attack):
    for key in attack.defaults:
        with pytest.raises(overpaint.UserError, match=f"did you mean '{key}'"):
            attack.build({f"{key}x": 1})
        with pytest.raises(overpaint.UserError, match=f"(?s){attack.name}.*{key}"):
            attack.build({key: {"a": 1}})


@pytest.mark.parametrize("key", ["batch_size", "pictures", "tokens", "first"])
def test_numbers_that_mean_nothing_are_refused(attack, key):
    if key in attack.defaults:
        with pytest.raises(overpaint.UserError, match=key):
            attack.build({key: 0})


def test_the_yaml_says_everything(attack):
    text = components("attack")[attack.name].read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    assert config["name"] == attack.name and config["summary"]
    assert {"component", "summary", "paper", "status", "preset", "presets", "control"} <= config.keys()
    assert config["control"] is None or config["control"] in ATTACKS
    parameters = {f.name for f in fields(attack.load())} - {"seed"}
    assert parameters == config.keys() - set(DESCRIPTION), "the YAML's keys are the class's fields"
    for key in parameters:
        (line,) = (line for line in text.splitlines() if line.startswith(f"{key}:"))
        assert " # " in line, f"{key} has no comment"


def test_every_preset_can_be_built(attack):
    assert issubclass(attack.load(), Attack)
    for preset in [None, *attack.config["presets"]]:
        construct(attack.load(), attack.settle({}, preset), attack.name)


def test_it_says_where_it_comes_in(attack):
    assert attack.load().enters_by in ENTRIES
