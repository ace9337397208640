"""Edits of pictures against diffusers' image-to-image pipeline, and what a picture shows."""

from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline

import overpaint
from official import distance, victim
from overpaint.blocks.draws import Draws
from overpaint.grid.registry import component


def editing(**values):
    return component("attack", "edit").build(values, seed=0)


def at(context, **protocol):
    return replace(context, protocol=context.protocol | {"guidance_scale": 4.0, "size": 32} | protocol)


@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "dpm", "lms", "euler"])
@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
def test_edits_are_those_of_diffusers(scheduler, strength, context, tiny_sd):
    context = at(context, scheduler=scheduler, steps=8)
    shots, attack = context.shots[:2], editing(strengths=[strength])
    pictures = attack.pictures(context, shots, scheduler)
    with torch.no_grad():
        ((variant, found),) = attack.latents(replace(context, shots=shots), shots)
    plain = tiny_sd.pipeline
    pipeline = StableDiffusionImg2ImgPipeline(
        vae=plain.vae, text_encoder=plain.text_encoder, tokenizer=plain.tokenizer, unet=plain.unet,
        scheduler=tiny_sd.scheduler(scheduler, 8), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    sources = [Draws.of(0, shot.prompt.noise, shot.index, variant).generator for shot in shots]
    wanted = pipeline(
        prompt=[shot.prompt.text for shot in shots], image=pictures, strength=strength, num_inference_steps=8,
        guidance_scale=4.0, generator=sources, output_type="latent",
    ).images  # fmt: skip
    assert distance(found, wanted) < 1e-5


def test_a_picture_is_the_unedited_models_of_the_anchor(context, erased, goldens):
    context = at(replace(context, concept=replace(context.concept, anchor="umbrella")), steps=2)
    shots, attack = context.shots[:2], editing()
    texts = [attack.without(context, shot) for shot in shots]
    assert all("an umbrella" in text and context.concept.name not in text for text in texts)
    unedited = context.victim.sample(texts, [shot.noise_seed for shot in shots], **context.protocol)
    with erased(victim(goldens / "uce" / "f32" / "current_object.safetensors")) as there, torch.no_grad():
        there = replace(context, unedited=there.unedited, victim=there.victim)
        found = attack.pictures(there, shots, there.protocol["scheduler"])
    assert torch.equal(found, context.victim.to_latents(unedited))
    nameless = replace(shots[0], prompt=replace(shots[0].prompt, text="a ship"))
    assert attack.without(context, nameless) == ""
    assert attack.without(replace(context, concept=replace(context.concept, anchor=None)), shots[0]) == ""


def test_every_strength_makes_an_image_of_each_shot(context):
    context = at(context, steps=4)
    assault = editing(strengths=[0.5, 1.0]).run(context)
    assert assault.ledger.images == 2 * len(context.shots) == len(assault.shots)
    assert {shot.draw for shot in assault.shots} == {0, 1}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"strengths": []}, "strengths takes numbers above 0"),
        ({"strengths": [0.0, 0.5]}, "strengths takes numbers above 0"),
        ({"strengths": [1.5]}, "up to 1"),
        ({"strengths": [0.5, 0.5]}, "each number once"),
        ({"strengths": [0.05], "steps": 10}, "0.05 of 10 steps is less than one step"),
    ],
)
def test_bad_values_are_refused(values, told, context):
    with pytest.raises(overpaint.UserError, match=told):
        editing(**values).run(at(context, steps=4))
