"""SLD against runs of diffusers' safe pipeline, recorded and live, and its identities."""

import copy

import numpy as np
import pytest
import torch

import overpaint
from official import distance
from overpaint.grid.concepts import Concept, Request
from overpaint.grid.registry import component
from overpaint.models.guidance import Guidance

TAGS = ("sld_weak", "sld_strong", "sld_custom_concept", "sld_disabled")
OFF = {"safety_scale": 0.0}


def settings(meta):
    """Our names for the official arguments."""
    return {
        "text": meta["concept"],
        "warmup_steps": meta["sld_warmup_steps"],
        "safety_scale": meta["sld_guidance_scale"],
        "threshold": meta["sld_threshold"],
        "momentum_scale": meta["sld_momentum_scale"],
        "momentum_beta": meta["sld_mom_beta"],
    }


def guidance(model, prompt, scale=7.5, negative="", **hyperparameters):
    """The guidance that an erasure with these settings installs in the sampler."""
    erasure = overpaint.erase(model, "sld", erase=["dog"], **hyperparameters)
    with erasure.attached(model), torch.no_grad():
        return model.guidance(model, model.encode([prompt]), model.encode([negative]), scale, [prompt])


def denoised(model, *arguments, start=None, steps=4, scheduler="ddim", **hyperparameters):
    start = model.noise([0]) if start is None else start
    with torch.no_grad():
        return model.denoise(start, guidance(model, *arguments, **hyperparameters), scheduler, steps)


@pytest.mark.parametrize("tag", TAGS)
def test_the_recorded_outputs_are_composed_as_by_the_official_code(tag, tiny_sd, golden):
    meta, _, extra = golden(f"sld/{tag}")
    recorded = copy.copy(tiny_sd)
    recorded.predict = lambda latents, timestep, embeds: extra[f"raw.{timestep}"]
    composed = guidance(recorded, meta["prompt"], **settings(meta))
    for step in range(meta["steps"]):
        ours = composed(extra["x_T"], step, step)
        assert torch.allclose(ours, extra[f"guided.{step}"], rtol=0, atol=1e-6), step


@pytest.mark.parametrize("tag", TAGS)
def test_the_final_latents_are_those_of_the_official_code(tag, tiny_sd, golden):
    meta, result, extra = golden(f"sld/{tag}")
    ours = denoised(tiny_sd, meta["prompt"], start=extra["x_T"], steps=meta["steps"], **settings(meta))
    assert distance(ours, result["final"]) < 1e-4


@pytest.mark.parametrize("preset", component("method", "sld").config["presets"])
@pytest.mark.parametrize("scheduler, negative", [("ddim", "a black and white photo"), ("pndm", "")])
def test_diffusers_safe_pipeline(preset, scheduler, negative, tiny_sd):
    safe = pytest.importorskip("diffusers.pipelines.deprecated.stable_diffusion_safe")
    method = component("method", "sld")
    values = method.settle({"text": "naked", "warmup_steps": 2}, preset)
    parts = {part: getattr(tiny_sd.pipeline, part) for part in ("vae", "text_encoder", "tokenizer", "unet")}
    pipeline = safe.StableDiffusionPipelineSafe(
        **parts,
        scheduler=tiny_sd.scheduler(scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.safety_concept = values["text"]
    start, theirs = tiny_sd.noise([0]), []
    pipeline(
        "a woman on the ground",
        negative_prompt=negative,
        num_inference_steps=6,
        latents=start.clone(),
        callback=lambda step, timestep, latents: theirs.append(latents.clone()),
        sld_guidance_scale=values["safety_scale"],
        sld_warmup_steps=values["warmup_steps"],
        sld_threshold=values["threshold"],
        sld_momentum_scale=values["momentum_scale"],
        sld_mom_beta=values["momentum_beta"],
    )
    ours = denoised(
        tiny_sd, "a woman on the ground", 7.5, negative, start=start, steps=6, scheduler=scheduler, **values
    )
    assert distance(ours, theirs[-1]) < 1e-4


def test_the_equations(tiny_sd):
    """Two explicit steps, so that the momentum has an effect."""
    composed = guidance(
        tiny_sd, "a dog", warmup_steps=1, safety_scale=7.0, threshold=0.5, momentum_scale=0.2, momentum_beta=0.6
    )
    latents, momentum = tiny_sd.noise([0]), 0.0
    for step, t in enumerate((800, 600)):
        with torch.no_grad():
            ours = composed(latents, torch.tensor(t), step)
            e, e_p, e_s = (tiny_sd.predict(latents, torch.tensor(t), tiny_sd.encode([x])) for x in ("", "a dog", "dog"))
        mu = torch.clamp(7.0 * (e_p - e_s).abs(), max=1) * (e_p - e_s < 0.5)
        gamma = mu * (e_s - e) + 0.2 * momentum
        momentum = 0.6 * momentum + 0.4 * gamma
        torch.testing.assert_close(ours, e + 7.5 * (e_p - e - (gamma if step else 0)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("values", [OFF, {"safety_scale": 1.0}])
def test_no_scale_is_plain_guidance_bit_for_bit(tiny_sd, values):
    erasure = overpaint.erase(tiny_sd, "sld", erase=["dog"], **values)
    plain = tiny_sd.sample(["a dog"], [3], steps=3)
    with erasure.attached(tiny_sd):
        guarded = tiny_sd.sample(["a dog"], [3], steps=3)
    assert np.array_equal(np.asarray(plain[0]), np.asarray(guarded[0]))


@pytest.mark.parametrize(
    "values",
    [{"warmup_steps": 4}, {"text": "a cat", "warmup_steps": 0}, {"threshold": -1e9, "warmup_steps": 0}],
    ids=["warm-up longer than the schedule", "the prompt is the text", "nothing is below the threshold"],
)
def test_where_nothing_is_unwanted_guidance_is_plain(tiny_sd, values):
    plain = denoised(tiny_sd, "a cat", **OFF)
    assert distance(denoised(tiny_sd, "a cat", **values), plain) < 1e-5
    assert distance(denoised(tiny_sd, "a cat", warmup_steps=0, text="dog"), plain) > 1e-2


def test_scale_one_is_on_in_the_papers_repository(tiny_sd):
    values = {"safety_scale": 1.0, "warmup_steps": 0, "threshold": 1.0}
    plain = denoised(tiny_sd, "a dog", **OFF)
    assert torch.equal(denoised(tiny_sd, "a dog", compat="diffusers", **values), plain)
    assert not torch.equal(denoised(tiny_sd, "a dog", compat="original", **values), plain)
    assert torch.equal(denoised(tiny_sd, "a dog", compat="original", **(values | {"safety_scale": 0.99})), plain)


def test_without_guidance_it_does_nothing(tiny_sd):
    assert torch.equal(denoised(tiny_sd, "a dog", 1.0, warmup_steps=0), denoised(tiny_sd, "a dog", 1.0, **OFF))


def test_each_batch_has_its_own_momentum_and_starts_anew(tiny_sd):
    values = {"warmup_steps": 0, "momentum_scale": 0.5}
    once = denoised(tiny_sd, "a dog", **values)
    with torch.no_grad():
        used = guidance(tiny_sd, "a dog", **values)
        twice = [tiny_sd.denoise(tiny_sd.noise([0]), used, "ddim", 4) for _ in range(2)]
    assert torch.equal(twice[0], once) and torch.equal(twice[1], once)


def test_the_text_is_the_safety_text_for_unsafe_concepts_and_else_the_names():
    method = component("method", "sld")
    naked, dog = Concept("naked", kind="unsafe"), Concept("dog")
    eraser = method.build(seed=0)
    assert eraser.unwanted(Request((naked,))).startswith("an image showing hate, harassment")
    assert eraser.unwanted(Request((dog,))) == "dog"
    assert eraser.unwanted(Request((dog, naked))) == "dog, naked"
    assert method.build({"unsafe_text": None}, seed=0).unwanted(Request((naked,))) == "naked"
    assert method.build({"text": "blood"}, seed=0).unwanted(Request((naked,))) == "blood"


def test_on_top_of_another_both_texts_are_unwanted(tiny_sd):
    one, two = (overpaint.erase(tiny_sd, "sld", erase=[name]) for name in ("dog", "ship"))
    other = overpaint.erase(tiny_sd, "sld", erase=["ship"], preset="max")
    with one.attached(tiny_sd):
        with two.attached(tiny_sd):
            assert tiny_sd.guidance.text == "dog, ship"
        assert tiny_sd.guidance.text == "dog"
        with pytest.raises(overpaint.UserError, match="same settings"), other.attached(tiny_sd):
            pass


def test_sdxl_is_guarded_too(tiny_sdxl):
    """If S equals the prompt, the guard has no effect; with another text it has."""
    plain, same, other = (
        denoised(tiny_sdxl, "a cat", **(values | {"warmup_steps": 0})) for values in (OFF, {"text": "a cat"}, {})
    )
    assert distance(same, plain) < 1e-4 < distance(other, plain)


def test_attacks_can_tell_the_guard(tiny_sd):
    erasure = overpaint.erase(tiny_sd, "sld", erase=["dog"])
    assert Guidance.guard is None
    with erasure.attached(tiny_sd):
        assert tiny_sd.guidance.guard.stateful


@pytest.mark.parametrize(
    "values", [{"warmup_steps": -1}, {"safety_scale": -1.0}, {"momentum_beta": 1.5}, {"momentum_scale": -0.1}]
)
def test_settings_that_mean_nothing_are_refused(tiny_sd, values):
    with pytest.raises(overpaint.UserError, match=next(iter(values))):
        overpaint.erase(tiny_sd, "sld", erase=["dog"], **values)


def test_a_text_that_does_not_fit_is_refused(tiny_sd):
    with pytest.raises(overpaint.UserError, match="tokens"):
        overpaint.erase(tiny_sd, "sld", erase=["dog"], text="dog " * 100)
