"""Negative prompt: identities of both forms."""

import numpy as np
import pytest
import torch

import overpaint


def guided(model, prompt="a photo of a dog", scale=7.5, **hyperparameters):
    """The composed prediction with the guard on (none: no guard), and the network's outputs."""
    with torch.no_grad():
        positive, negative = model.encode([prompt]), model.encode([""])
        latents, t = model.noise([0]), torch.tensor(500)
        if not hyperparameters:
            return model.guidance(model, positive, negative, scale)(latents, t, 0)
        erasure = overpaint.erase(model, "negative_prompt", **({"erase": ["dog"]} | hyperparameters))
        with erasure.attached(model):
            return model.guidance(model, positive, negative, scale)(latents, t, 0)


def predicted(model, prompt):
    with torch.no_grad():
        return model.predict(model.noise([0]), torch.tensor(500), model.encode([prompt]))


def test_the_empty_text_is_plain_guidance_bit_for_bit(tiny_sd):
    assert torch.equal(guided(tiny_sd, text=""), guided(tiny_sd))
    erasure = overpaint.erase(tiny_sd, "negative_prompt", erase=["dog"], text="")
    plain = tiny_sd.sample(["a dog"], [3], steps=3)
    with erasure.attached(tiny_sd):
        guarded = tiny_sd.sample(["a dog"], [3], steps=3)
    assert np.array_equal(np.asarray(plain[0]), np.asarray(guarded[0]))


@pytest.mark.parametrize("form", ["replace", "composable"])
@pytest.mark.parametrize("zeros", [True, False])
def test_the_empty_text_is_plain_guidance_where_the_empty_prompt_is_zeros(tiny_sdxl, form, zeros):
    before = tiny_sdxl.pipeline.config.force_zeros_for_empty_prompt
    tiny_sdxl.pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
    erasure = overpaint.erase(tiny_sdxl, "negative_prompt", erase=["dog"], text="", form=form)
    try:
        with torch.no_grad():
            positive, negative = tiny_sdxl.encode(["a photo of a dog"]), tiny_sdxl.unconditional()
            latents, t = tiny_sdxl.noise([0]), torch.tensor(500)
            plain = tiny_sdxl.guidance(tiny_sdxl, positive, negative, 7.5)(latents, t, 0)
            with erasure.attached(tiny_sdxl):
                guarded = tiny_sdxl.guidance(tiny_sdxl, positive, negative, 7.5)(latents, t, 0)
    finally:
        tiny_sdxl.pipeline.register_to_config(force_zeros_for_empty_prompt=before)
    torch.testing.assert_close(guarded, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [3.0, 7.5, 30.0])
def test_a_prompt_equal_to_the_text_is_not_guided(tiny_sd, scale):
    ours = guided(tiny_sd, prompt="dog", text="dog", scale=scale)
    torch.testing.assert_close(ours, predicted(tiny_sd, "dog"), rtol=1e-4, atol=1e-4)


def test_the_equations(tiny_sd):
    nothing, wanted, unwanted = (predicted(tiny_sd, p) for p in ("", "a photo of a dog", "dog, ship"))
    text = {"erase": ["dog", "ship"]}
    torch.testing.assert_close(guided(tiny_sd, **text), unwanted + 7.5 * (wanted - unwanted), rtol=1e-4, atol=1e-4)
    composed = nothing + 7.5 * (wanted - nothing) - 2.0 * (unwanted - nothing)
    ours = guided(tiny_sd, form="composable", weight=2.0, **text)
    torch.testing.assert_close(ours, composed, rtol=1e-4, atol=1e-4)


def test_no_weight_in_the_composable_form_is_plain_guidance(tiny_sd):
    ours = guided(tiny_sd, form="composable", weight=0.0)
    torch.testing.assert_close(ours, guided(tiny_sd), rtol=1e-5, atol=1e-5)


def test_a_text_that_does_not_fit_is_refused(tiny_sd):
    with pytest.raises(overpaint.UserError, match="tokens"):
        overpaint.erase(tiny_sd, "negative_prompt", erase=["dog"], text="dog " * 100)
