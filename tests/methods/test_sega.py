"""SEGA against runs of diffusers' semantic pipeline, recorded and live, and its identities."""

import copy

import numpy as np
import pytest
import torch

import overpaint
from official import distance, watched
from overpaint.grid.concepts import Concept, Request
from overpaint.grid.registry import component

TAGS = ("sega_reverse", "sega_multi", "sega_batch_text", "sega_w1")
PROMPT = "a portrait photo of a naked woman"


def listed(value):
    return value if isinstance(value, list) else [value]


def settings(meta):
    """Our names for the official arguments."""
    return {
        "texts": listed(meta["editing_prompt"]),
        "reverse": meta["reverse_editing_direction"],
        "scale": meta["edit_guidance_scale"],
        "warmup_steps": meta["edit_warmup_steps"],
        "cooldown_steps": meta["edit_cooldown_steps"],
        "threshold": meta["edit_threshold"],
        "weights": meta["edit_weights"],
        "momentum_scale": meta["edit_momentum_scale"],
        "momentum_beta": meta["edit_mom_beta"],
    }


def guidance(model, prompts, w=7.5, negative="", /, **hyperparameters):
    """The guidance that an erasure with these settings installs in the sampler."""
    erasure = overpaint.erase(model, "sega", erase=["dog"], **hyperparameters)
    with erasure.attached(model), torch.no_grad():
        embeds = model.encode(listed(prompts))
        return model.guidance(model, embeds, model.encode([negative]).expand_as(embeds), w, listed(prompts))


def denoised(model, *arguments, start=None, steps=4, scheduler="ddim", **hyperparameters):
    start = model.noise([0]) if start is None else start
    with torch.no_grad():
        return model.denoise(start, guidance(model, *arguments, **hyperparameters), scheduler, steps)


def composed(recorded, guided, extra, steps):
    """The guided predictions of recorded outputs of the network."""
    recorded = copy.copy(recorded)
    recorded.predict = lambda latents, timestep, embeds: extra[f"raw.{timestep}"]
    guided.model = recorded
    return [guided(extra["x_T"], step, step) for step in range(steps)]


@pytest.mark.parametrize("tag", TAGS)
def test_the_recorded_outputs_are_composed_as_by_the_official_code(tag, tiny_sd, golden):
    meta, _, extra = golden(f"sega/{tag}")
    made = guidance(tiny_sd, meta["prompt"], meta["guidance_scale"], **settings(meta))
    for step, ours in enumerate(composed(tiny_sd, made, extra, meta["steps"])):
        assert distance(ours, extra[f"guided.{step}"]) < 1e-6, step


@pytest.mark.parametrize("tag", TAGS)
def test_the_final_latents_are_those_of_the_official_code(tag, tiny_sd, golden):
    meta, result, extra = golden(f"sega/{tag}")
    ours = denoised(
        tiny_sd, meta["prompt"], meta["guidance_scale"], start=extra["x_T"], steps=meta["steps"], **settings(meta)
    )
    assert distance(ours, result["final"]) < 1e-5


def test_recorded_edits_can_be_added_to_another_run(tiny_sd, golden):
    meta, _, extra = golden("sega/sega_multi")
    with watched() as seen:
        composed(tiny_sd, guidance(tiny_sd, meta["prompt"], **settings(meta)), extra, meta["steps"])
    edits = [values["edit"] for values in seen]
    for ours, theirs in zip(edits, extra["sem_guidance"], strict=False):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    plain = guidance(tiny_sd, meta["prompt"], texts=["nudity", "van gogh", "a cat"], scale=0.0)
    plain.added = edits
    for step, ours in enumerate(composed(tiny_sd, plain, extra, meta["steps"])):
        assert distance(ours, extra[f"guided.{step}"]) < 1e-6, step


@pytest.mark.parametrize(
    "prompts, negative, scheduler, values",
    [
        ([PROMPT], "a photo", "pndm", {}),
        ([PROMPT], "", "ddim", {"cooldown_steps": [3, 4], "warmup_steps": [1, 0], "weights": [-0.5, 1.0]}),
        (["a dog", "a ship"], "", "ddim", {"threshold": [0.5, 0.8]}),
        (["a dog", "a ship"], "", "ddim", {"compat": "official"}),
    ],
    ids=["negative prompt and PNDM", "cool-down", "batch", "batch, compat official"],
)
def test_diffusers_semantic_pipeline(prompts, negative, scheduler, values, tiny_sd):
    semantic = pytest.importorskip("diffusers.pipelines.deprecated.semantic_stable_diffusion")
    values = {"warmup_steps": [0, 2], "scale": [5.0, 3.0], "reverse": [True, False], "momentum_scale": 0.4} | values
    texts = ["nudity", "van gogh"]
    parts = {part: getattr(tiny_sd.pipeline, part) for part in ("vae", "text_encoder", "tokenizer", "unet")}
    pipeline = semantic.SemanticStableDiffusionPipeline(
        **parts, scheduler=tiny_sd.scheduler(scheduler), safety_checker=None, feature_extractor=None
    )
    pipeline.set_progress_bar_config(disable=True)
    start = tiny_sd.noise(range(len(prompts)))
    with torch.no_grad():
        theirs = pipeline(
            prompts,
            negative_prompt=[negative] * len(prompts),
            num_inference_steps=6,
            latents=start.clone(),
            output_type="latent",
            edit_guidance_scale=values["scale"],
            reverse_editing_direction=values["reverse"],
            edit_warmup_steps=values["warmup_steps"],
            edit_cooldown_steps=values.get("cooldown_steps"),
            edit_threshold=values.get("threshold", 0.9),
            edit_weights=values.get("weights"),
            edit_momentum_scale=values["momentum_scale"],
            edit_mom_beta=0.4,
            editing_prompt=texts,
        ).images
    ours = denoised(tiny_sd, prompts, 7.5, negative, start=start, steps=6, scheduler=scheduler, texts=texts, **values)
    assert distance(ours, theirs) < 1e-5


def test_no_scale_is_plain_guidance_bit_for_bit(tiny_sd):
    erasure = overpaint.erase(tiny_sd, "sega", erase=["dog"], scale=0.0)
    plain = tiny_sd.sample(["a dog"], [3], steps=3)
    with erasure.attached(tiny_sd):
        guarded = tiny_sd.sample(["a dog"], [3], steps=3)
    assert np.array_equal(np.asarray(plain[0]), np.asarray(guarded[0]))


@pytest.mark.parametrize(
    "values",
    [{"warmup_steps": 4}, {"cooldown_steps": 0, "warmup_steps": 0}, {"texts": [""], "warmup_steps": 0}],
    ids=["warm-up longer than the schedule", "finished at once", "the empty text"],
)
def test_where_no_edit_acts_guidance_is_plain(tiny_sd, values):
    plain = denoised(tiny_sd, "a cat", scale=0.0)
    assert distance(denoised(tiny_sd, "a cat", **values), plain) < 1e-5
    assert distance(denoised(tiny_sd, "a cat", warmup_steps=0), plain) > 1e-2


def test_weights_of_zero_beside_an_edit_in_warm_up(tiny_sd):
    values = {"texts": ["dog", "ship"], "warmup_steps": [0, 9], "weights": [0.0, 1.0]}
    plain = denoised(tiny_sd, "a cat", scale=0.0)
    assert distance(denoised(tiny_sd, "a cat", **values), plain) < 1e-5
    assert denoised(tiny_sd, "a cat", compat="official", **values).isnan().any()


@pytest.mark.parametrize("compat", ["intended", "official"])
def test_an_image_does_not_depend_on_its_batch(compat, tiny_sd):
    values = {"texts": ["dog", "ship"], "warmup_steps": 0, "compat": compat}
    both = denoised(tiny_sd, ["a cat", "a house"], start=tiny_sd.noise([0, 1]), **values)
    assert distance(denoised(tiny_sd, "a house", start=tiny_sd.noise([1]), **values), both[1:]) < 1e-5


def test_each_batch_starts_with_a_new_momentum(tiny_sd):
    values = {"warmup_steps": 0, "momentum_scale": 0.5}
    once = denoised(tiny_sd, "a dog", **values)
    with torch.no_grad():
        used = guidance(tiny_sd, "a dog", **values)
        twice = [tiny_sd.denoise(tiny_sd.noise([0]), used, "ddim", 4) for _ in range(2)]
    assert torch.equal(twice[0], once) and torch.equal(twice[1], once)


def test_sequences_add_edits(tiny_sd):
    one, two = (overpaint.erase(tiny_sd, "sega", erase=[name]) for name in ("dog", "ship"))
    other = overpaint.erase(tiny_sd, "sega", erase=["ship"], momentum_beta=0.5)
    together = overpaint.erase(tiny_sd, "sega", erase=["dog", "ship"])
    with together.attached(tiny_sd):
        wanted = tiny_sd.guidance
    with one.attached(tiny_sd):
        with two.attached(tiny_sd):
            assert tiny_sd.guidance == wanted and wanted.guard.stateful
        assert [edit.text for edit in tiny_sd.guidance.edits] == ["dog"]
        with pytest.raises(overpaint.UserError, match=r"different: momentum_beta"), other.attached(tiny_sd):
            pass


def test_sdxl_is_guarded_too(tiny_sdxl):
    plain, other = (denoised(tiny_sdxl, "a cat", warmup_steps=0, scale=scale) for scale in (0.0, 5.0))
    assert distance(other, plain) > 1e-4


def test_one_edit_for_each_concept_with_settings_of_its_own():
    eraser = component("method", "sega").build({"scale": [1.0, 2.0], "threshold": 0.7}, seed=0)
    edits = eraser.edits(Request((Concept("dog"), Concept("ship"))))
    assert [(e.text, e.scale, e.threshold, e.weight) for e in edits] == [("dog", 1, 0.7, 1), ("ship", 2, 0.7, 1)]


@pytest.mark.parametrize(
    "values",
    [
        {"warmup_steps": -1},
        {"warmup_steps": [1, 2]},
        {"scale": [-1.0]},
        {"threshold": 1.5},
        {"weights": [1.0, 2.0]},
        {"momentum_beta": 1.5},
        {"momentum_scale": -0.1},
        {"cooldown_steps": -2},
        {"texts": []},
        {"texts": ["dog " * 100]},
    ],
)
def test_settings_that_mean_nothing_are_refused(tiny_sd, values):
    word = "tokens" if values.get("texts") else next(iter(values))
    with pytest.raises(overpaint.UserError, match=word):
        overpaint.erase(tiny_sd, "sega", erase=["dog"], **values)
