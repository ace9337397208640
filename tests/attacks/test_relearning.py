"""Relearning against its identities: what learns, what comes back, and that it learns."""

from dataclasses import replace

import pytest

import overpaint
from overpaint.attacks.relearning import RULES
from overpaint.methods.training import parameter_group
from overpaint.registry import component
from overpaint.replay import traced


def relearn(**values):
    values = {"pictures": 2, "batch_size": 2, "curve": [0, 2]} | values
    return component("attack", "relearn").build(values, seed=0)


def by_step(assault):
    found = {}
    for painted in assault.painted:
        found.setdefault(painted.shot.prompt.variant, []).append(painted.image.tobytes())
    return found


def plain(scene):
    images = scene.paint([s.prompt.text for s in scene.shots], [s.noise_seed for s in scene.shots])
    return [image.tobytes() for image in images]


@pytest.mark.parametrize("train", RULES)
def test_no_steps_and_no_learning_rate_are_the_victim(train, scene, tiny_sd):
    scene = replace(scene, shots=scene.shots[:2])
    with overpaint.erase(tiny_sd, "negative_prompt", erase=["cat"]).attached(tiny_sd):
        wanted = plain(scene)
        still = by_step(relearn(train=train, learning_rate=0.0).run(scene))
        moved = by_step(relearn(train=train, learning_rate=0.1).run(scene))
    assert still == {"step 0": wanted, "step 2": wanted}
    assert moved["step 0"] == wanted and moved["step 2"] != wanted


@pytest.mark.parametrize("train", RULES)
def test_only_what_is_chosen_learns(train, scene, tiny_sd):
    chosen = parameter_group(tiny_sd, RULES[train])
    seen = []
    with traced(lambda **values: seen.append(values)):
        relearn(train=train, curve=[1]).run(replace(scene, shots=scene.shots[:1]))
    (step,) = seen
    assert {name.rsplit(":", 1)[0] for name in step["gradients"]} == set(chosen)
    assert any("attn2.to_k" in name for name in chosen)
    assert all("attn2" in name for name in chosen) == (train == "xattn_kv")


def test_the_loss_falls(scene, monkeypatch):
    """On batches that are all alike: the same picture, caption, noise and time."""
    attack, seen = relearn(train="full", learning_rate=1e-3, curve=[15], pictures=1), []
    draw = type(attack).loss
    from overpaint.replay import Draws

    monkeypatch.setattr(type(attack), "loss", lambda self, *given: draw(self, *given[:-1], Draws(3)))
    with traced(lambda **values: seen.append(float(values["loss"]))):
        attack.run(replace(scene, shots=scene.shots[:1]))
    assert seen[-1] < 0.9 * seen[0]


def test_a_longer_curve_begins_as_a_shorter_one(scene):
    scene = replace(scene, shots=scene.shots[:2])
    short = by_step(relearn(curve=[2], learning_rate=0.01).run(scene))
    long = by_step(relearn(curve=[1, 2], learning_rate=0.01).run(scene))
    assert short["step 2"] == long["step 2"]


def test_unrelated_pictures_are_of_other_things(scene):
    concept = replace(scene.concept, synonyms=("house",))
    pictures, captions = relearn(data="unrelated", pictures=12).unrelated(replace(scene, concept=concept))
    assert len(pictures) == len(captions) == 12
    assert not any(word in text for (text,) in captions for word in ("cat", "house"))


def test_bad_input(scene):
    for values, said in (({"curve": [5, 5]}, "curve takes rising"), ({"clip": 0.0}, "clip takes")):
        with pytest.raises(overpaint.UserError, match=said):
            relearn(**values)
    with pytest.raises(overpaint.UserError, match="needs pictures of 'cat'"):
        relearn().run(replace(scene, examples=lambda n: []))
