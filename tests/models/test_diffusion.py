"""Placeholder tokens, noise levels and conversions of the model."""

import numpy as np
import pytest
import torch

import overpaint
from overpaint.errors import UserError
from overpaint.models.erasure import Erasure, Replacement


def test_a_placeholder_with_a_words_own_embedding_is_that_word(tiny_sd):
    table = tiny_sd.text_encoder.get_input_embeddings().weight
    plain = tiny_sd.encode(["a photo of a dog"])
    with tiny_sd.learned_tokens({"<x>": table[tiny_sd.token_ids("dog")[1]]}):
        assert torch.equal(tiny_sd.encode(["a photo of a <x>"]), plain)
        assert torch.equal(tiny_sd.encode(["a photo of a dog"]), plain)
    assert torch.equal(tiny_sd.encode(["a photo of a dog"]), plain)


def test_placeholders_inside_a_block_of_placeholders(tiny_sd):
    """A guard with learned words of its own encodes them while an attack learns another one."""
    table = tiny_sd.text_encoder.get_input_embeddings().weight
    rows = {word: table[tiny_sd.token_ids(word)[1]] for word in ("dog", "cat")}
    plain = tiny_sd.encode(["a dog and a cat"])
    with tiny_sd.learned_tokens({"<x>": rows["dog"]}):
        with tiny_sd.learned_tokens({"<y>": rows["cat"]}):
            assert torch.equal(tiny_sd.encode(["a <x> and a <y>"]), plain)
        assert torch.equal(tiny_sd.encode(["a <x> and a cat"]), plain)
    assert tiny_sd.text_encoder.get_input_embeddings().weight is table


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
def test_noising_agrees_with_the_scheduler(predicting, prediction):
    model = predicting(prediction)
    scheduler = model.scheduler("ddim")
    x0, noise, t = model.noise([0, 1]), model.noise([2, 3]), torch.tensor([10, 900])
    torch.testing.assert_close(model.add_noise(x0, noise, t), scheduler.add_noise(x0, noise, t))
    wanted = noise if prediction == "epsilon" else scheduler.get_velocity(x0, noise, t)
    torch.testing.assert_close(model.denoising_target(x0, noise, t), wanted)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_the_noise_of_the_lowest_timesteps(predicting, dtype, prediction):
    """Coefficients, measured with latents of ones and zeros, are rounded square roots, not roots of rounded values."""
    model = predicting(prediction)
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


def test_levels_between_timesteps_are_those_of_the_euler_sampler(tiny_sd):
    """A sampler with linearly spaced times uses fractional timesteps, at which σ = deviation / signal."""
    plain = tiny_sd.scheduler("euler")
    schedule = type(plain).from_config(plain.config, timestep_spacing="linspace")
    schedule.set_timesteps(7)
    assert (schedule.timesteps % 1).any()
    for t, sigma in zip(schedule.timesteps, schedule.sigmas[:-1], strict=True):
        signal, deviation = tiny_sd.levels(t, torch.zeros(()))
        torch.testing.assert_close(deviation / signal, sigma, rtol=1e-4, atol=0)
        torch.testing.assert_close(signal**2 + deviation**2, torch.ones(()))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_what_the_network_predicts_is_converted_to_noise_and_to_the_clean_latents(predicting, kind):
    model, t = predicting(kind), torch.tensor([1, 500])
    x0, noise = model.noise([0, 1]), model.noise([2, 3])
    noisy, output = model.add_noise(x0, noise, t), model.denoising_target(x0, noise, t)
    for times, rows in ((t, slice(None)), (500, slice(1, 2)), (500.0, slice(1, 2))):
        torch.testing.assert_close(model.noise_of(output[rows], noisy[rows], times), noise[rows], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.clean_of(output[rows], noisy[rows], times), x0[rows], rtol=1e-4, atol=1e-4)


@pytest.fixture
def quickly(monkeypatch):
    """Compilation without code generation: what torch traces and guards is the same, and its operations run as they are."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: compiled(network, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def test_a_compiled_network_has_the_weights_of_the_moment(tiny_sd, quickly):
    """One compilation serves the unedited model and every erasure that changes weights."""
    name = tiny_sd.projections("value")[0].name
    erasure = Erasure("uce", changes={name: Replacement(torch.zeros_like(tiny_sd.named_parameters()[name].data))})

    def sample():
        with torch.no_grad():
            return tiny_sd.predict(tiny_sd.noise([0, 1]), 500, tiny_sd.encode(["a dog", "a cat"]))

    plain = sample()
    with erasure.attached(tiny_sd):
        erased = sample()
    assert not torch.equal(plain, erased) and quickly() == 0
    with tiny_sd.compiled():
        torch.testing.assert_close(sample(), plain)
    graphs = quickly()
    assert graphs > 0
    with erasure.attached(tiny_sd), tiny_sd.compiled():
        torch.testing.assert_close(sample(), erased)
    with tiny_sd.compiled():
        torch.testing.assert_close(sample(), plain)
    assert quickly() == graphs
    assert torch.equal(sample(), plain)


@pytest.mark.parametrize("name", ["ddim", "dpm"])
def test_images_are_those_of_the_pipeline(goldens, name):
    """Text, guidance, sampler and decoder: diffusers' own code draws the same pixels (bit for bit where this was measured)."""
    model = overpaint.load_model(goldens / "tiny_sd")
    prompts, seeds = ["a church", "a cat and a dog"], [3, 4]
    ours = model.sample(prompts, seeds, steps=3, guidance_scale=4.0, scheduler=name)
    pipeline = model.pipeline
    pipeline.scheduler = model.scheduler(name)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    theirs = pipeline(prompts, num_inference_steps=3, guidance_scale=4.0, generator=generators).images
    assert max(np.abs(np.asarray(a, int) - np.asarray(b, int)).max() for a, b in zip(ours, theirs, strict=True)) <= 1
