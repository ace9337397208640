"""Completion and the noise probe against a recorded run of official code, and against their identities."""

from dataclasses import replace

import pytest
import torch

import overpaint
from official import by_variant, distance, victim
from overpaint.attacks.probes import step_noise
from overpaint.blocks.draws import Draws
from overpaint.grid.prompts import Prompt, shots
from overpaint.grid.registry import component
from overpaint.grid.scope import OUTSIDE, scope


def probe(name, **values):
    return component("attack", name).build(values, seed=0)


@pytest.fixture
def edited(goldens):
    return victim(goldens / "uce" / "f32" / "current_object.safetensors")


def at(context, **protocol):
    """The context with another protocol, for painting and for the attack."""
    protocol = context.protocol | protocol
    return replace(
        context, protocol=protocol, paint=lambda texts, seeds: context.victim.sample(texts, seeds, **protocol)
    )


def pixels(images):
    return [image.tobytes() for image in images]


@pytest.mark.parametrize("compat", ["official", "intended"])
def test_official_code(compat, context, erased, edited, golden):
    """For DDIM without noise, a reused scheduler and a new one give the same result."""
    meta, results, extra = golden("probes/uoc_ddim")
    prompt = Prompt(meta["prompt"], "target", seed=meta["seed"])
    context = replace(context, shots=shots([prompt], 1), protocol={"guidance_scale": meta["guidance"], "size": 32})
    attack = probe("completion", fractions=meta["fractions"], steps=meta["steps"], scheduler="ddim", compat=compat)
    with erased(edited) as there, torch.no_grad():
        there = replace(context, unedited=there.unedited)
        assert torch.equal(there.victim.noise([meta["seed"]]), extra["victim_plain.draw.0"])
        found = dict(attack.latents(there, there.shots))
    for fraction in meta["fractions"]:
        assert distance(found[f"fraction {fraction:g}"], results[f"completed.{fraction}"]) < 1e-5
    assert distance(found["fraction 0.001"], results["victim_plain"]) < 1e-5
    assert distance(found["fraction 1"], results["original_plain"]) < 1e-5


@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "dpm"])
def test_all_of_it_is_the_unedited_model_and_none_of_it_the_victim(scheduler, context, erased, edited, tiny_sd):
    context = at(context, steps=4, scheduler=scheduler)
    texts, seeds = zip(*[(shot.prompt.text, shot.noise_seed) for shot in context.shots], strict=True)
    original = pixels(context.paint(texts, seeds))
    with erased(edited) as there:
        there = replace(context, unedited=there.unedited)
        found = by_variant(probe("completion", fractions=[0.0, 0.5, 1.0]).run(there))
        victims = pixels(context.paint(texts, seeds))
    assert found["fraction 0"] == victims and found["fraction 1"] == original
    assert victims != original and found["fraction 0.5"] not in (victims, original)


def test_official_reads_fraction_zero_as_none_given(context):
    attack = probe("completion", fractions=[0.0], compat="official")
    times = torch.tensor([901, 601, 301])
    assert attack.cut(0.0, times, 1000) == (3, 0)
    assert attack.cut(0.001, times, 1000) == (0, 0) and attack.cut(1.0, times, 1000) == (3, 3)
    assert probe("completion").cut(0.0, times, 1000) == (0, 0)


def test_official_pndm_loses_a_step_where_intended_does_not(context, tiny_sd_float64):
    """If both models are the same, a scheduler that keeps its state gives the plain image; a reset scheduler does not."""
    context = at(context, steps=6, scheduler="pndm")
    plain = pixels(context.paint([s.prompt.text for s in context.shots], [s.noise_seed for s in context.shots]))
    assert by_variant(probe("completion", fractions=[0.5]).run(context))["fraction 0.5"] == plain
    official = by_variant(probe("completion", fractions=[0.5], compat="official").run(context))
    assert official["fraction 0.5"] != plain


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_noise_that_there_is_room_for_is_the_schedulers_own(eta, context, tiny_sd):
    """Bit for bit equal to the scheduler's own loop with the same noise. η = 0 is DDIM for every v."""
    context = at(context, steps=3)
    attack, part = probe("noise_probe", etas=[eta], variance_scales=[1.0, 1.5]), context.shots[:2]
    with torch.no_grad():
        found = dict(attack.latents(context, part))
        latents = tiny_sd.noise([shot.noise_seed for shot in part])
        guidance, schedule = attack.guidance(tiny_sd, context, part), attack.schedule(context, "ddim")
        variant = f"eta {eta:g}, noise 1"
        sources = [Draws.of(0, shot.prompt.noise, shot.index, variant).generator for shot in part]
        noise = step_noise(sources, 3, latents)
        for step, t in enumerate(schedule.timesteps):
            predicted = guidance(latents, t, step)
            latents = schedule.step(predicted, t, latents, eta=eta, variance_noise=noise[step], return_dict=False)[0]
    assert torch.equal(found[variant], latents)
    assert torch.equal(found[f"eta {eta:g}, noise 1.5"], latents) == (eta == 0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [1.0, 1.85, 2.5])
def test_spread_of_a_world_of_normal_pictures(eta, kind, predicting):
    """Images are N(0, I), so the ideal prediction is e = √(1 − ᾱ) x, and every step multiplies x by a number and adds noise.
    The variance of 20,000 values follows the released code's coefficients, including its absolute value."""
    model, v = predicting(kind), 1.1
    schedule = model.scheduler("ddim")
    schedule.set_timesteps(10)
    normal, alphas = torch.Generator().manual_seed(0), schedule.alphas_cumprod.double()
    latents, variance, folded = torch.randn(20_000, generator=normal), 1.0, False
    for t in schedule.timesteps:
        at, before = alphas[t], alphas[t - 100] if t >= 100 else alphas[0]
        room, sigma = 1 - before, eta * ((1 - before) / (1 - at) * (1 - at / before)).sqrt()
        folded |= bool(sigma**2 > room)
        gain = (before * at).sqrt() + ((room - sigma**2).abs() * (1 - at)).sqrt()
        variance = float(gain**2 * variance + (v * sigma) ** 2)
        said = ((1 - at).sqrt() if kind == "epsilon" else 0.0) * latents  # the ideal velocity is zero
        noise = torch.randn(20_000, generator=normal)
        latents = model.stochastic_step(schedule, said.float() + 0 * latents, t, latents, eta, v * noise)
        assert float(latents.var()) == pytest.approx(variance, rel=0.05)
    assert folded == (eta > 1), "from some step on there is more noise than room"


def test_a_picture_depends_on_its_own_prompt_alone(context):
    context = at(context, steps=2)
    attack = probe("noise_probe", etas=[1.0, 1.85], variance_scales=[1.0])
    whole, part = attack.run(context), attack.run(replace(context, shots=context.shots[3:4]))
    wanted = {p.shot: p.image for p in whole.painted}
    for painted in part.painted:
        ours = torch.tensor(list(painted.image.tobytes())).int()
        assert int((ours - torch.tensor(list(wanted[painted.shot].tobytes())).int()).abs().max()) <= 1
    assert [s.draw for s in part.shots] == [0, 1] and len(whole.painted) == 2 * len(context.shots)


def test_guards_guide_the_victims_part(context, tiny_sd):
    context = at(context, steps=3)
    for name, values in (
        ("completion", {"fractions": [0.5]}),
        ("noise_probe", {"etas": [1.0], "variance_scales": [1.0]}),
    ):
        plain = pixels([p.image for p in probe(name, **values).run(context).painted])
        with overpaint.erase(tiny_sd, "negative_prompt", erase=["cat"]).attached(tiny_sd):
            assert pixels([p.image for p in probe(name, **values).run(context).painted]) != plain


def test_what_is_drawn_is_judged_and_counted(context, judge):
    judge.fires = (0,)
    assault = probe("noise_probe", etas=[1.0], variance_scales=[1.0]).run(at(context, steps=2))
    assert [p.verdict.success for p in assault.painted] == [True] + [False] * 5
    assert assault.ledger.images == 6 and assault.ledger.forwards == 6 * 2 * 2


def test_pictures_of_the_noise_probe_are_the_official_24():
    attack = component("attack", "noise_probe")
    official = attack.build(attack.settle({}, "paper"))
    assert official.images == 24 and official.steps == 50


def test_the_victim_makes_every_step_of_the_noise_probe_and_not_of_completion():
    for name, where in (("noise_probe", ""), ("completion", OUTSIDE)):
        entry = component("attack", name).load().enters_by
        assert scope("text_encoder", entry) == scope("conditioning", entry) == where and scope("denoiser", entry) == ""


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("completion", {"fractions": [1.5]}, "fractions takes numbers from 0 to 1"),
        ("completion", {"fractions": [0.5, 0.5]}, "each number once"),
        ("noise_probe", {"etas": []}, "etas takes numbers"),
        ("noise_probe", {"variance_scales": [1.0, 1.0]}, "variance_scales takes numbers, each once"),
        ("noise_probe", {"steps": 0}, "steps takes a number from 1"),
    ],
)
def test_bad_input_is_refused(name, values, said):
    with pytest.raises(overpaint.UserError, match=said):
        probe(name, **values)


def test_noise_of_other_schedulers_is_refused(context):
    with pytest.raises(overpaint.UserError, match=r"needs attack\.scheduler=ddim"):
        probe("completion", eta=1.0, scheduler="pndm").run(context)
