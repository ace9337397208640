"""Semantic guidance tuning against its equations, and its identities. There is no recording: no official code was run."""

import numpy as np
import pytest
import torch

import overpaint
from official import by_name, distance, watched

ALWAYS = {"warmup_steps": 0, "cooldown_steps": None}


def guidance(model, prompts, w=7.5, negative="", /, erase=("dog",), **hyperparameters):
    erasure = overpaint.erase(model, "semantic_guidance_tuning", erase=list(erase), **hyperparameters)
    with erasure.attached(model), torch.no_grad():
        embeds = model.encode(prompts)
        return model.guidance(model, embeds, model.encode([negative]).expand_as(embeds), w, prompts)


def denoised(model, prompts, w=7.5, negative="", /, start=None, **hyperparameters):
    start = model.noise(range(len(prompts))) if start is None else start
    with torch.no_grad():
        return model.denoise(start, guidance(model, prompts, w, negative, **hyperparameters), "ddim", 4)


def test_the_equations(tiny_sd):
    """Two explicit calls with one erased text and one to steer towards, so that window and momentum have an effect."""
    values = {"towards": ["a ship"], "scale": 3.0, "quantile": 0.6, "window": 2, "momentum_scale": 0.3}
    composed = guidance(tiny_sd, ["a dog"], alignment=0.4, momentum_beta=0.7, **values, **ALWAYS)
    latents, momenta, angles = tiny_sd.noise([0]), [0.0, 0.0], [[], []]
    for step, t in enumerate((800, 600)):
        with torch.no_grad():
            ours = composed(latents, torch.tensor(t), step)
            nothing, wanted, *said = (
                tiny_sd.predict(latents, torch.tensor(t), tiny_sd.encode([x])) for x in ("", "a dog", "dog", "a ship")
            )
        pull = wanted - nothing
        theirs = nothing + 7.5 * pull
        for k, output in enumerate(said):
            d = output - nothing
            for channel in d[0]:
                channel[channel.abs() < channel.abs().flatten().quantile(0.6)] = 0
            angles[k].append(float((pull * d).sum() / (pull.norm() * d.norm())))
            aligned = np.mean(np.abs(angles[k][-2:]))
            u = (pull * d).sum() / (d * d).sum() * d if k == 0 else d - (pull * d).sum() / (pull * pull).sum() * pull
            u = u + 0.3 * momenta[k]
            momenta[k] = 0.7 * momenta[k] + 0.3 * u
            if k == 0 and aligned >= 0.4:
                theirs = theirs - 3.0 * u
            if k == 1 and aligned < 0.4:
                theirs = theirs + 3.0 * u
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_at_the_guidance_scale_nothing_of_the_concept_is_left(tiny_sd):
    """With s = w and no momentum the guided direction has no component along the concept's."""
    values = {"scale": 7.5, "alignment": 0.0, "quantile": 0.0, "momentum_scale": 0.0}
    composed = guidance(tiny_sd, ["a dog on the ground"], **values, **ALWAYS)
    latents, t = tiny_sd.noise([0]), torch.tensor(700)
    with torch.no_grad():
        guided = composed(latents, t, 0)
        nothing, dog = (tiny_sd.predict(latents, t, tiny_sd.encode([x])) for x in ("", "dog"))
        wanted = tiny_sd.predict(latents, t, tiny_sd.encode(["a dog on the ground"]))
    cosine = torch.cosine_similarity((guided - nothing).flatten(), (dog - nothing).flatten(), dim=0)
    assert abs(float(cosine)) < 1e-4
    assert abs(float(torch.cosine_similarity((wanted - nothing).flatten(), (dog - nothing).flatten(), dim=0))) > 0.1


@pytest.mark.parametrize(
    "values",
    [{"scale": 0.0}, {"warmup_steps": 4}, {"cooldown_steps": 0}, {"alignment": 1.0}],
    ids=["no strength", "warm-up longer than the schedule", "finished at once", "never aligned"],
)
def test_where_nothing_is_steered_guidance_is_plain(tiny_sd, values):
    plain = denoised(tiny_sd, ["a cat"], **ALWAYS | {"scale": 0.0})
    assert torch.equal(denoised(tiny_sd, ["a cat"], **ALWAYS | values), plain)
    assert distance(denoised(tiny_sd, ["a cat"], alignment=0.0, **ALWAYS), plain) > 1e-2


def test_steering_towards_a_text_turns_the_guidance_to_it(tiny_sd):
    angles = {}
    for scale in (0.0, 2.0):
        with watched() as seen:
            denoised(tiny_sd, ["a cat"], towards=["a ship"], scale=scale, alignment=1.0, **ALWAYS)
        angles[scale] = by_name(seen)["alignment"]
    assert len(angles[0.0]) == 8  # both texts at four calls
    assert torch.equal(angles[0.0][1], angles[2.0][1])  # the first call sees the same latents
    plain, steered = (
        denoised(tiny_sd, ["a cat"], towards=["a ship"], alignment=1.0, scale=s, **ALWAYS) for s in (0, 2)
    )
    assert distance(steered, plain) > 1e-2


def test_an_image_does_not_depend_on_its_batch(tiny_sd):
    both = denoised(tiny_sd, ["a cat", "a dog"], alignment=0.4, **ALWAYS)
    alone = denoised(tiny_sd, ["a dog"], start=tiny_sd.noise([1]), alignment=0.4, **ALWAYS)
    assert distance(alone, both[1:]) < 1e-5


def test_each_batch_starts_anew(tiny_sd):
    with torch.no_grad():
        used = guidance(tiny_sd, ["a dog"], window=3, alignment=0.0, **ALWAYS)
        twice = [tiny_sd.denoise(tiny_sd.noise([0]), used, "ddim", 4) for _ in range(2)]
    assert torch.equal(*twice)


def test_without_guidance_it_does_nothing(tiny_sd):
    plain = denoised(tiny_sd, ["a dog"], 1.0, scale=0.0)
    assert torch.equal(denoised(tiny_sd, ["a dog"], 1.0, alignment=0.0, **ALWAYS), plain)


def test_sequences_steer_away_from_all_concepts(tiny_sd):
    one, two, together = (
        overpaint.erase(tiny_sd, "semantic_guidance_tuning", erase=names)
        for names in (["dog"], ["ship"], ["dog", "ship"])
    )
    other = overpaint.erase(tiny_sd, "semantic_guidance_tuning", erase=["ship"], scale=1.0)
    with together.attached(tiny_sd):
        wanted = tiny_sd.guidance
    with one.attached(tiny_sd):
        with two.attached(tiny_sd):
            assert tiny_sd.guidance == wanted and wanted.guard.stateful
        with pytest.raises(overpaint.UserError, match="same settings"), other.attached(tiny_sd):
            pass


def test_sdxl_is_guarded_too(tiny_sdxl):
    plain, steered = (denoised(tiny_sdxl, ["a cat"], alignment=0.0, scale=scale, **ALWAYS) for scale in (0.0, 5.0))
    assert distance(steered, plain) > 1e-4


@pytest.mark.parametrize(
    "values",
    [
        {"scale": -1.0},
        {"alignment": 1.5},
        {"quantile": -0.1},
        {"momentum_beta": 2.0},
        {"momentum_scale": -0.1},
        {"window": 0},
        {"warmup_steps": -1},
        {"cooldown_steps": -1},
    ],
)
def test_settings_that_mean_nothing_are_refused(tiny_sd, values):
    with pytest.raises(overpaint.UserError, match=next(iter(values))):
        overpaint.erase(tiny_sd, "semantic_guidance_tuning", erase=["dog"], **values)


def test_a_text_that_does_not_fit_is_refused(tiny_sd):
    with pytest.raises(overpaint.UserError, match="tokens"):
        overpaint.erase(tiny_sd, "semantic_guidance_tuning", erase=["dog"], towards=["dog " * 100])
