"""Placeholder words, and noising, on the model itself."""

import copy

import pytest
import torch

from overpaint.errors import UserError


def test_a_placeholder_with_a_words_own_embedding_is_that_word(tiny_sd):
    table = tiny_sd.text_encoder.get_input_embeddings().weight
    plain = tiny_sd.encode(["a photo of a dog"])
    with tiny_sd.learned_tokens({"<x>": table[tiny_sd.token_ids("dog")[1]]}):
        assert torch.equal(tiny_sd.encode(["a photo of a <x>"]), plain)
        assert torch.equal(tiny_sd.encode(["a photo of a dog"]), plain)
    assert torch.equal(tiny_sd.encode(["a photo of a dog"]), plain)


def test_parameter_names_stay_the_same_inside(tiny_sd):
    names = list(tiny_sd.named_parameters())
    with tiny_sd.learned_tokens({"<x>": torch.zeros(48)}):
        assert list(tiny_sd.named_parameters()) == names
    assert tiny_sd.named_parameters() is not None


@pytest.mark.parametrize("word", ["dog</w>", "<|endoftext|>"])
def test_known_words_are_refused(tiny_sd, word):
    with pytest.raises(UserError, match="must be new"), tiny_sd.learned_tokens({word: torch.zeros(48)}):
        pass


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noising_agrees_with_the_scheduler(tiny_sd, prediction):
    model, scheduler = copy.copy(tiny_sd), tiny_sd.scheduler("ddim")
    model.pipeline = copy.copy(tiny_sd.pipeline)
    model.pipeline.scheduler = type(scheduler).from_config(scheduler.config, prediction_type=prediction)
    x0, noise, t = model.noise([0, 1]), model.noise([2, 3]), torch.tensor([10, 900])
    torch.testing.assert_close(model.add_noise(x0, noise, t), scheduler.add_noise(x0, noise, t))
    wanted = noise if prediction == "epsilon" else scheduler.get_velocity(x0, noise, t)
    torch.testing.assert_close(model.denoising_target(x0, noise, t), wanted)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_the_noise_of_the_lowest_timesteps(tiny_sd, dtype, prediction):
    """Coefficients, read off latents of ones and zeros, are the rounded roots, not roots of what is rounded."""
    model, scheduler = copy.copy(tiny_sd), tiny_sd.scheduler("ddim")
    model.pipeline = copy.copy(tiny_sd.pipeline)
    model.pipeline.scheduler = type(scheduler).from_config(scheduler.config, prediction_type=prediction)
    t = torch.tensor([0, 1, 2, 10, 50, 500, 999])
    one = torch.ones(len(t), 1, 1, 1, dtype=dtype)
    signal, deviation = model.alphas_cumprod[t].sqrt(), (1 - model.alphas_cumprod[t]).sqrt()
    assert torch.equal(model.add_noise(one, 0 * one, t).flatten(), signal.to(dtype))
    assert torch.equal(model.add_noise(0 * one, one, t).flatten(), deviation.to(dtype))
    if prediction == "v_prediction":
        assert torch.equal(model.denoising_target(one, 0 * one, t).flatten(), -deviation.to(dtype))


def test_single_precision_noising_is_the_plain_formula_bit_for_bit(tiny_sd):
    x0, noise, t = tiny_sd.noise([0, 1]), tiny_sd.noise([2, 3]), torch.tensor([0, 900])
    alpha = tiny_sd.alphas_cumprod[t][:, None, None, None]
    assert torch.equal(tiny_sd.add_noise(x0, noise, t), alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise)


def test_one_timestep_a_row_serves_a_stacked_batch(tiny_sd):
    latents, embeds, t = tiny_sd.noise([0, 1]), tiny_sd.encode(["dog", "ship"]), torch.tensor([10, 900])
    with torch.no_grad():
        twice = tiny_sd.predict(torch.cat([latents] * 2), t, torch.cat([embeds] * 2))
        once = tiny_sd.predict(latents, t, embeds)
    torch.testing.assert_close(twice, torch.cat([once] * 2))
