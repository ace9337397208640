"""Relearning: which weights are trained, that the loss falls, and that the concept returns."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import overpaint
from official import by_name, by_variant, distance, watched
from overpaint.attacks.fine_tuning import RULES, Adapter
from overpaint.blocks.draws import Draws
from overpaint.blocks.training import parameter_group
from overpaint.grid.registry import component
from overpaint.models.erasure import Erasure, LowRank


def relearn(**values):
    values = {"pictures": 2, "batch_size": 2, "curve": [0, 2]} | values
    return component("attack", "relearn").build(values, seed=0)


def plain(context):
    images = context.paint([s.prompt.text for s in context.shots], [s.noise_seed for s in context.shots])
    return [image.tobytes() for image in images]


@pytest.mark.parametrize("train", RULES)
def test_no_steps_and_no_learning_rate_are_the_victim(train, context, tiny_sd):
    context = replace(context, shots=context.shots[:2])
    with overpaint.erase(tiny_sd, "negative_prompt", erase=["cat"]).attached(tiny_sd):
        wanted = plain(context)
        still = by_variant(relearn(train=train, learning_rate=0.0).run(context))
        moved = by_variant(relearn(train=train, learning_rate=0.1).run(context))
    assert still == {"step 0": wanted, "step 2": wanted}
    assert moved["step 0"] == wanted and moved["step 2"] != wanted


@pytest.mark.parametrize("train", RULES)
def test_only_what_is_chosen_learns(train, context, tiny_sd):
    chosen = parameter_group(tiny_sd, RULES[train])
    with watched() as seen:
        relearn(train=train, curve=[1]).run(replace(context, shots=context.shots[:1]))
    (step,) = seen
    gradients = step["gradients"]
    assert {re.sub(r"lora_[AB]\.default\.", "", name) for name in gradients} == set(chosen)
    assert any("attn2.to_k" in name for name in chosen)
    assert all("attn2" in name for name in chosen) == (train == "xattn_kv")
    moved = {name for name, gradient in gradients.items() if gradient.any()}
    assert moved and not any("lora_A" in name for name in moved), "up = 0 hides down from the first step"


def test_a_low_rank_change_is_what_it_says_and_leaves_the_layers_that_were_there(tiny_sd_float64):
    model, rank, alpha = tiny_sd_float64, 3, 7.0
    names, before = parameter_group(model, RULES["attention_lora"]), dict(model.denoiser.named_modules())
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

    low_rank, told = {}, adapter.changes()
    for name in names:
        down, up = (adapter.masters[name.replace("weight", f"lora_{side}.default.weight")].data for side in "AB")
        assert len(down) == up.shape[1] == rank
        low_rank[name] = LowRank(alpha / rank * up, down)
        assert torch.equal(told[name].up, low_rank[name].up) and torch.equal(told[name].down, down)
    assert told.keys() == low_rank.keys()
    with Erasure("none", changes=low_rank).attached(model):
        wanted = model.predict(latents, 500, embeds)
    assert torch.equal(untrained, plain) and torch.equal(model.predict(latents, 500, embeds), plain)
    assert not torch.allclose(changed, plain) and torch.allclose(changed, wanted, rtol=1e-10, atol=1e-10)
    assert dict(model.denoiser.named_modules()) == before
    assert not any(p.requires_grad for p in model.denoiser.parameters())


@pytest.mark.parametrize("train", ["xattn_kv", "attention_lora"])
def test_half_precision_learns_what_single_precision_learns(train, context, goldens):
    """Images stay finite, and gradients equal those of single precision: no factor is trained in half precision."""
    gradients, pictures, shown = {}, {}, [picture.resize((64, 64)) for picture in context.examples(2)]
    for dtype in ("float32", "float16"):
        model = overpaint.load_model(str(goldens / "tiny_sd"), dtype=dtype)

        def paint(texts, seeds, embeds=None, guidance=None, worded=True, model=model):
            return model.sample(texts, seeds, embeds=embeds, **context.protocol)

        own = replace(context, victim=model, shots=context.shots[:2], paint=paint, judge=None, examples=lambda n: shown)
        with watched() as seen:
            assault = relearn(train=train, curve=[3], learning_rate=1e-4, batch_size=4).run(own)
        found = by_name(seen)
        assert all(bool(torch.isfinite(loss)) for loss in found["loss"])
        gradients[dtype] = torch.cat([gradient.flatten() for gradient in found["gradients"][0].values()])
        pictures[dtype] = np.stack([np.asarray(p.image, float) for p in assault.painted])
    assert gradients["float16"].dtype == torch.float32
    assert distance(gradients["float16"], gradients["float32"]) < 5e-3
    assert np.abs(pictures["float16"] - pictures["float32"]).mean() < 2


def test_the_loss_falls(context, monkeypatch):
    """All batches have the same image, caption, noise and timestep."""
    attack = relearn(train="full", learning_rate=1e-3, curve=[15], pictures=1)
    draw = type(attack).loss
    monkeypatch.setattr(type(attack), "loss", lambda self, *given: draw(self, *given[:-1], Draws(3)))
    with watched() as seen:
        attack.run(replace(context, shots=context.shots[:1]))
    losses = by_name(seen)["loss"]
    assert losses[-1] < 0.9 * losses[0]


def test_the_curve_of_a_toy_problem_is_monotone(context, tiny_sd):
    """The victim is trained on one red image. At every point of the curve its images are closer to the latents of it."""
    red = Image.new("RGB", (32, 32), (220, 30, 30))
    goal = tiny_sd.to_latents([red])

    def paint(texts, seeds, embeds=None, guidance=None, worded=True):
        return tiny_sd.sample(texts, seeds, steps=4, guidance_scale=1.0)

    context = replace(context, examples=lambda n: [red], paint=paint, shots=context.shots[:3])
    assault = relearn(train="full", learning_rate=1e-3, curve=[0, 5, 15, 40], pictures=1, batch_size=4).run(context)
    off = {}
    for painted in assault.painted:
        apart = tiny_sd.to_latents([painted.image]) - goal
        off.setdefault(painted.readings["steps"], []).append(float(apart.norm()))
    curve = [float(np.mean(apart)) for apart in off.values()]
    assert list(off) == [0, 5, 15, 40] and curve == sorted(curve, reverse=True) and curve[-1] < 0.97 * curve[0], curve


def test_a_longer_curve_begins_as_a_shorter_one(context):
    context = replace(context, shots=context.shots[:2])
    short = by_variant(relearn(curve=[2], learning_rate=0.01).run(context))
    long = by_variant(relearn(curve=[1, 2], learning_rate=0.01).run(context))
    assert short["step 2"] == long["step 2"]


def test_unrelated_pictures_are_of_other_things(context):
    concept = replace(context.concept, synonyms=("house",))
    pictures, captions = relearn(data="unrelated", pictures=12).unrelated(replace(context, concept=concept))
    assert len(pictures) == len(captions) == 12
    assert not any(word in text for (text,) in captions for word in ("cat", "house"))


def test_bad_input_is_refused(context):
    for values, said in (({"curve": [5, 5]}, "curve takes increasing"), ({"clip": 0.0}, "clip takes")):
        with pytest.raises(overpaint.UserError, match=said):
            relearn(**values)
    with pytest.raises(overpaint.UserError, match="needs images of 'cat'"):
        relearn().run(replace(context, examples=lambda n: []))
