"""Negative prompt: identities of both forms."""

import dataclasses

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


def test_guidance_follows_the_equations_of_both_forms(tiny_sd):
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


@pytest.mark.parametrize("form", ["replace", "composable"])
def test_a_window_covers_its_fraction_of_the_sampling(tiny_sd, form):
    """20 DDIM steps from 0.25 to 0.5: the steps 5 to 9 are guarded, the others are plain."""
    schedule = tiny_sd.scheduler("ddim")
    schedule.set_timesteps(20)
    erasure = overpaint.erase(tiny_sd, "negative_prompt", erase=["dog"], form=form, start=0.25, stop=0.5)
    whole = overpaint.erase(tiny_sd, "negative_prompt", erase=["dog"], form=form)
    latents = tiny_sd.noise([0, 1])
    with torch.no_grad():
        positive, negative = tiny_sd.encode(["a photo of a dog"] * 2), tiny_sd.encode([""] * 2)
        plain = tiny_sd.guidance(tiny_sd, positive, negative, 7.5)
        with whole.attached(tiny_sd):
            guarded = tiny_sd.guidance(tiny_sd, positive, negative, 7.5)
        with erasure.attached(tiny_sd):
            window = tiny_sd.guidance(tiny_sd, positive, negative, 7.5)
        for step, t in enumerate(schedule.timesteps):
            expected = (guarded if 5 <= step < 10 else plain)(latents, t, step)
            assert torch.equal(window(latents, t, step), expected), step
        times = torch.tensor([900, 600])  # a row outside and a row inside
        mixed = [plain(latents, times, 0)[0], guarded(latents, times, 0)[1]]
        assert torch.equal(window(latents, times, 0), torch.stack(mixed))


def test_windows_that_meet_are_the_whole_sampling(tiny_sd):
    erasure = overpaint.erase(tiny_sd, "negative_prompt", erase=["dog"], start=0.0, stop=0.5)
    late = overpaint.erase(tiny_sd, "negative_prompt", erase=["dog"], start=0.5)
    for t in range(tiny_sd.train_timesteps):
        inside = []
        for part in (erasure, late):
            with part.attached(tiny_sd):
                inside.append(tiny_sd.guidance(tiny_sd, *[tiny_sd.unconditional()] * 2, 7.5).inside(torch.tensor(t)))
        assert sum(map(bool, inside)) == 1


@pytest.mark.parametrize(("start", "stop"), [(-0.1, 1.0), (0.5, 0.5), (0.6, 0.4), (0.0, 1.5)])
def test_a_window_that_is_none_is_refused(tiny_sd, start, stop):
    with pytest.raises(overpaint.UserError, match=f"0 <= start < stop <= 1, got {start} and {stop}"):
        overpaint.erase(tiny_sd, "negative_prompt", erase=["dog"], start=start, stop=stop)


def test_an_older_file_without_a_window_acts_in_all_steps(tiny_sd):
    new = overpaint.erase(tiny_sd, "negative_prompt", erase=["dog"])
    old = dataclasses.replace(new, settings={k: v for k, v in new.settings.items() if k not in ("start", "stop")})
    with new.attached(tiny_sd):
        expected = tiny_sd.guidance
    with old.attached(tiny_sd):
        assert tiny_sd.guidance == expected
