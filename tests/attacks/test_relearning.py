"""Relearning against its identities: what learns, what comes back, and that it learns."""

import re
from dataclasses import replace

import pytest
import torch

import overpaint
from official import by_name, by_variant, watched
from overpaint.attacks.relearning import RULES, Adapter
from overpaint.erasure import Erasure, LowRank
from overpaint.methods.training import parameter_group
from overpaint.registry import component
from overpaint.replay import Draws


def relearn(**values):
    values = {"pictures": 2, "batch_size": 2, "curve": [0, 2]} | values
    return component("attack", "relearn").build(values, seed=0)


def plain(scene):
    images = scene.paint([s.prompt.text for s in scene.shots], [s.noise_seed for s in scene.shots])
    return [image.tobytes() for image in images]


@pytest.mark.parametrize("train", RULES)
def test_no_steps_and_no_learning_rate_are_the_victim(train, scene, tiny_sd):
    scene = replace(scene, shots=scene.shots[:2])
    with overpaint.erase(tiny_sd, "negative_prompt", erase=["cat"]).attached(tiny_sd):
        wanted = plain(scene)
        still = by_variant(relearn(train=train, learning_rate=0.0).run(scene))
        moved = by_variant(relearn(train=train, learning_rate=0.1).run(scene))
    assert still == {"step 0": wanted, "step 2": wanted}
    assert moved["step 0"] == wanted and moved["step 2"] != wanted


@pytest.mark.parametrize("train", RULES)
def test_only_what_is_chosen_learns(train, scene, tiny_sd):
    chosen = parameter_group(tiny_sd, RULES[train])
    with watched() as seen:
        relearn(train=train, curve=[1]).run(replace(scene, shots=scene.shots[:1]))
    (step,) = seen
    gradients = step["gradients"]
    assert {re.sub(r"lora_[AB]\.default\.", "", name) for name in gradients} == set(chosen)
    assert any("attn2.to_k" in name for name in chosen)
    assert all("attn2" in name for name in chosen) == (train == "xattn_kv")
    moved = {name for name, gradient in gradients.items() if gradient.any()}
    assert moved and not any("lora_A" in name for name in moved), "up = 0 hides down from the first step"


def test_a_low_rank_change_is_what_it_says_and_leaves_the_layers_that_were_there(tiny_sd_float64):
    model, rank, alpha = tiny_sd_float64, 3, 7.0
    names, before = parameter_group(model, RULES["attention_lora"]), dict(model.unet.named_modules())
    latents, embeds = model.noise([0]), model.encode(["a cat"])
    plain, fired = model.predict(latents, 500, embeds), []
    hook = before["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"].register_forward_hook(
        lambda *_: fired.append(True)
    )
    adapter = Adapter(model, names, rank, alpha, Draws(0))
    untrained = model.predict(latents, 500, embeds)
    for master in adapter.masters.values():
        master.data.normal_(generator=torch.Generator().manual_seed(master.numel()))
    changed = model.predict(latents, 500, embeds)
    adapter.remove()
    assert len(fired) == 2, "what was hooked onto a layer goes on working"
    hook.remove()

    low_rank = {}
    for name in names:
        down, up = (adapter.masters[name.replace("weight", f"lora_{side}.default.weight")].data for side in "AB")
        assert len(down) == up.shape[1] == rank
        low_rank[name] = LowRank(alpha / rank * up, down)
    with Erasure("none", changes=low_rank).attached(model):
        wanted = model.predict(latents, 500, embeds)
    assert torch.equal(untrained, plain) and torch.equal(model.predict(latents, 500, embeds), plain)
    assert not torch.allclose(changed, plain) and torch.allclose(changed, wanted, rtol=1e-10, atol=1e-10)
    assert dict(model.unet.named_modules()) == before
    assert not any(p.requires_grad for p in model.unet.parameters())


def test_the_loss_falls(scene, monkeypatch):
    """On batches that are all alike: the same picture, caption, noise and time."""
    attack = relearn(train="full", learning_rate=1e-3, curve=[15], pictures=1)
    draw = type(attack).loss
    monkeypatch.setattr(type(attack), "loss", lambda self, *given: draw(self, *given[:-1], Draws(3)))
    with watched() as seen:
        attack.run(replace(scene, shots=scene.shots[:1]))
    losses = by_name(seen)["loss"]
    assert losses[-1] < 0.9 * losses[0]


def test_a_longer_curve_begins_as_a_shorter_one(scene):
    scene = replace(scene, shots=scene.shots[:2])
    short = by_variant(relearn(curve=[2], learning_rate=0.01).run(scene))
    long = by_variant(relearn(curve=[1, 2], learning_rate=0.01).run(scene))
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
