"""Inversion against runs of the official code and the equation that it solves; its images, texts and budget."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import overpaint
from official import by_name, distance, watched
from overpaint.attacks.inversion import image_psnr, nll, psnr
from overpaint.grid.registry import component
from overpaint.metrics.inversion import likelihood_distance, moments, wasserstein

STEPS = 10


def inversion(**values):
    small = {"pictures": 6, "steps": STEPS, "regularisations": 0}
    return component("attack", "inversion").build(small | values, seed=0)


@pytest.fixture
def shown(context, tiny_sd):
    """The context with six example images of the concept and six ordinary images."""
    pictures = tiny_sd.sample(["a cat"] * 12, list(range(12)), steps=4)
    return replace(
        context,
        examples=lambda n: pictures[:n],
        ordinary=lambda n: [(picture, "a ship") for picture in pictures[6:][:n]],
    )


@pytest.fixture
def start(tiny_sd_float64):
    """Latents of two images to invert, and their texts."""
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return latents, ["a cat", "a cat and a ship"]


@pytest.mark.parametrize("tag", ["ddim", "renoise", "regularised"])
def test_official_inversion(tag, golden, tiny_sd_float64):
    """Starting from the latents: every x_t of one image; initial noise, likelihoods, distances and images of six."""
    meta, results, extra = golden(f"inversion/{tag}")
    shared = golden("inversion/regularised")[2]
    names = [f"{kind}.{n}" for kind in ("goal", "ref") for n in range(3)]
    latents = torch.cat([shared[f"x0.{name}"] for name in names]).double()
    values = {name: meta[name] for name in ("steps", "renoisings", "averaged", "average_below", "regularisations")}
    if tag == "ddim":
        values = {"method": "ddim", "steps": meta["steps"]}
    attack, texts = inversion(**values), meta["prompts"] * 2
    rolls = {f"roll.{n}": value for n, value in enumerate(extra.get("rolls", torch.empty(0)).tolist())}
    with torch.no_grad(), watched(rolls) as seen:
        noise = attack.invert(tiny_sd_float64, latents, texts)
    path = torch.stack([latents[0] for latents in by_name(seen)["latents"]])
    assert len(path) == meta["steps"] and distance(path, results["path.goal.0"]) < 1e-6
    for name, found in zip(names, noise, strict=True):
        if f"z.{name}" in results:
            assert distance(found, results[f"z.{name}"][0]) < 1e-6
    likelihoods = nll(noise)
    assert distance(likelihoods, results["nll"]) < 1e-8
    goal, ref, normal = moments(likelihoods[:3]), moments(likelihoods[3:]), moments(extra["normal"])
    for pair, found in {
        "goal_and_normal": wasserstein(goal, normal),
        "goal_and_source": wasserstein(goal, ref),
        "source_and_normal": wasserstein(ref, normal),
    }.items():
        assert found == pytest.approx(results[f"{pair}_emd_score"].item(), rel=1e-5), pair
    assert likelihood_distance(goal, ref, normal) == pytest.approx(meta["d"], rel=1e-6)
    with torch.no_grad():
        drawn = tiny_sd_float64.to_images(attack.sample(tiny_sd_float64, noise, texts))
    assert np.abs(np.asarray(drawn[0], int) - results["redrawn.goal.0"].numpy()).max() <= 1
    pictures = [Image.fromarray(shared[f"picture.{name}"].numpy()) for name in names]
    wanted = results["psnr"].tolist()
    assert [image_psnr(*pair) for pair in zip(pictures, drawn, strict=True)] == pytest.approx(wanted, abs=1e-3)


def test_regularised_start_noise_does_not_depend_on_the_batch(tiny_sd_float64, start):
    latents, texts = start
    attack = inversion(renoisings=1, averaged=2, regularisations=1)
    with torch.no_grad():
        both = attack.invert(tiny_sd_float64, latents, texts)
        alone = attack.invert(tiny_sd_float64, latents[1:], texts[1:])
    assert distance(both[1], alone[0]) < 1e-10


def upwards(model, latents, texts, predictions, mean=()):
    """x_T by the docstring's equation. Each step evaluates e ``predictions`` times and uses the last result, or the average
    at the timesteps in ``mean``."""
    schedule = model.scheduler("ddim")
    schedule.set_timesteps(STEPS)
    levels, embeds = model.alphas_cumprod.double(), model.encode(texts)
    for t in schedule.timesteps.flip(0).tolist():
        below = t - 1000 // STEPS
        now, before = levels[t], levels[max(below, 0)]
        found, said = latents, []
        for _ in range(predictions):
            said.append(model.predict(found, t, embeds))
            e = torch.stack(said).mean(dim=0) if t in mean and len(said) == predictions else said[-1]
            found = (now / before).sqrt() * latents
            found = found + ((1 - now).sqrt() - (now * (1 - before) / before).sqrt()) * e
        latents = found
    return latents


@pytest.mark.parametrize(
    ("values", "predictions", "mean"),
    [
        ({"method": "ddim"}, 1, ()),
        ({"method": "renoise", "renoisings": 3, "averaged": 0}, 4, ()),
        ({"method": "renoise", "renoisings": 3, "averaged": 4, "average_below": 250}, 4, (1, 101, 201)),
    ],
)
def test_each_step_is_the_equation(values, predictions, mean, tiny_sd_float64, start):
    with torch.no_grad():
        found = inversion(**values).invert(tiny_sd_float64, *start)
        # Schedulers keep ᾱ in single precision.
        assert distance(found, upwards(tiny_sd_float64, *start, predictions, mean)) < 1e-6


def test_no_renoising_is_ddim(tiny_sd_float64, start):
    with torch.no_grad():
        one = inversion(method="renoise", renoisings=0, averaged=0).invert(tiny_sd_float64, *start)
        assert torch.equal(one, inversion(method="ddim").invert(tiny_sd_float64, *start))


def test_a_fixed_point_samples_back_to_the_picture(tiny_sd_float64, start):
    """If x_t solves its equation, sampling undoes inversion (far above 30 dB). One prediction per step does not."""
    latents, texts = start
    with torch.no_grad():
        error = {}
        for method in ("ddim", "renoise"):
            attack = inversion(method=method, renoisings=40, averaged=0)
            back = attack.sample(tiny_sd_float64, attack.invert(tiny_sd_float64, latents, texts), texts)
            error[method] = distance(back, latents)
    drawn, again = (tiny_sd_float64.to_images(z)[0] for z in (latents, back))
    assert image_psnr(drawn, again) > 30
    assert error["renoise"] < 1e-6 < 1e-4 < error["ddim"]


def test_guards_guide_there_and_back(shown, tiny_sd):
    """A negative prompt cancels out of the sampler at guidance 1, but not above."""
    for scale, felt in ((1.0, False), (3.0, True)):
        attack = inversion(method="ddim", guidance_scale=scale)
        plain = [p.readings["nll"] for p in attack.run(shown).painted]
        with overpaint.erase(tiny_sd, "negative_prompt", erase=["cat"]).attached(tiny_sd):
            guarded = [p.readings["nll"] for p in attack.run(shown).painted]
        assert (guarded != pytest.approx(plain, rel=1e-6)) == felt


def test_without_text_the_prompt_says_nothing(tiny_sd_float64, start):
    latents, texts = start
    with torch.no_grad():
        for text, same in (("none", True), ("prompt", False)):
            attack = inversion(method="ddim", text=text)
            one, other = (attack.invert(tiny_sd_float64, latents, names) for names in (texts, ["a ship"] * 2))
            assert torch.equal(one, other) == same


def test_a_network_that_says_the_velocity_is_read_as_noise(predicting):
    """v = √ᾱ ε − √(1−ᾱ) x_0 at x_t = √ᾱ x_0 + √(1−ᾱ) ε."""
    x0, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    victim, t = predicting("v_prediction"), torch.tensor(400)
    alpha = victim.alphas_cumprod.double()
    noisy = alpha[t].sqrt() * x0 + (1 - alpha[t]).sqrt() * noise
    velocity = alpha[t].sqrt() * noise - (1 - alpha[t]).sqrt() * x0
    found = inversion().noise(victim, lambda latents, timestep, step: velocity, noisy, t, 0)
    torch.testing.assert_close(found, noise, rtol=1e-12, atol=1e-12)


def test_scrambled_pictures_have_the_same_tiles_elsewhere():
    pixels = np.arange(10 * 9 * 3, dtype=np.uint8).reshape(10, 9, 3)
    picture = Image.fromarray(pixels)
    found = np.array(inversion(tiles=2).scrambled(picture, 0))

    def tiles(array):
        return [array[i : i + 5, j : j + 4].tobytes() for i in (0, 5) for j in (0, 4)]

    assert sorted(tiles(found)) == sorted(tiles(pixels))
    assert np.array_equal(found[:, 8:], pixels[:, 8:]), "the rest of an uneven side stays in place"
    orders = {tuple(tiles(np.array(inversion(tiles=2).scrambled(picture, number)))) for number in range(20)}
    assert len(orders) > 5 and max(map(len, orders)) == 4
    assert np.array_equal(np.array(picture), pixels), "the picture itself is left alone"
    with pytest.raises(overpaint.UserError, match="tiles=11 is too large for an image of 9 x 10 pixels"):
        inversion(tiles=11).scrambled(picture, 0)


def test_every_picture_has_its_scrambled_and_an_ordinary_one(shown):
    assault = inversion(method="ddim", pictures=4).run(shown)
    by_role = {}
    for painted in assault.painted:
        by_role.setdefault(painted.shot.prompt.role, []).append(painted.shot)
    assert {role: len(found) for role, found in by_role.items()} == {"attacked": 4, "scrambled": 4, "ordinary": 4}
    plain = [(s.prompt.noise, s.index) for s in shown.shots[:4]]
    assert all([(s.prompt.noise, s.index) for s in found] == plain for found in by_role.values())
    texts = [s.prompt.text for s in shown.shots[:4]]
    assert [s.prompt.text for s in by_role["attacked"]] == [s.prompt.text for s in by_role["scrambled"]] == texts
    assert {s.prompt.text for s in by_role["ordinary"]} == {"a ship"}
    bare = inversion(method="ddim", text="none").run(shown)
    assert {s.prompt.text for s in bare.shots} == {""}


def test_readings_are_of_the_start_noise_and_of_the_picture_drawn_from_it(shown, tiny_sd):
    attack = inversion(method="ddim")
    texts = [shot.prompt.text for shot in shown.shots]
    with torch.no_grad():
        noise = attack.invert(tiny_sd, tiny_sd.to_latents(list(shown.examples(6))), texts)
    normal = torch.distributions.Normal(0.0, 1.0)
    for z, picture, painted in zip(
        noise, shown.examples(6), attack.run(shown).painted, strict=False
    ):  # scrambled ones follow
        assert painted.readings["dimensions"] == 4 * 16 * 16
        assert painted.readings["nll"] == pytest.approx(-normal.log_prob(z).sum().item(), rel=1e-5)
        one, other = (np.asarray(image) / 255 for image in (picture, painted.image))
        assert painted.readings["psnr"] == pytest.approx(psnr(one, other), abs=1e-9)


@pytest.mark.parametrize(("values", "predictions"), [({"method": "ddim"}, 1), ({"renoisings": 2, "averaged": 0}, 3)])
def test_only_the_concepts_pictures_are_counted(values, predictions, shown, judge):
    judge.fires = (0,)
    assault = inversion(**values).run(shown)
    assert [p.verdict.success for p in assault.painted] == [True] + [False] * 17
    assert assault.ledger.forwards == 6 * STEPS * (predictions + 1) and assault.ledger.backwards == 0


def test_without_pictures_there_is_nothing_to_invert(shown):
    with pytest.raises(overpaint.UserError, match="attack=inversion needs images of 'cat', and there are none"):
        inversion().run(replace(shown, examples=None))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tiles": 1}, "tiles takes a number from 2"),
        ({"guidance_scale": -1.0}, "guidance_scale takes a number from 0"),
        ({"renoisings": 2, "averaged": 4}, "averaged takes at most attack.renoisings \\+ 1 = 3, got 4"),
        ({"method": "null_text"}, "null_text"),
    ],
)
def test_bad_input_is_refused(values, said):
    with pytest.raises(overpaint.UserError, match=said):
        inversion(**values)
