"""ScalingConcept against runs of the official code, and the identities of its inversion and its sampling."""

import numpy as np
import pytest
import torch

import overpaint
from official import by_name, distance, watched
from overpaint.blocks.inversion import Regularisation
from overpaint.grid.concepts import Concept
from overpaint.grid.registry import component
from overpaint.methods.scaling_concept import ConceptScaler


def scaler(**values):
    """The editor that an erasure with these settings installs."""
    settled = component("method", "scaling_concept").settle({"text": "a cat"} | values)
    return ConceptScaler(seed=0, **settled)


def settings(meta):
    """Our names for the official arguments."""
    names = {
        "steps": "steps",
        "omega": "omega",
        "gamma": "gamma",
        "t_exit": "exit_step",
        "num_renoise_steps": "renoisings",
        "max_num_renoise_steps_first_step": "first_renoisings",
        "average_latent_estimations": "average",
        "average_first_step_range": "averaged_first",
        "average_step_range": "averaged",
        "noise_regularization_num_reg_steps": "regularisations",
        "noise_regularization_lambda_kl": "patches",
        "noise_regularization_lambda_ac": "rolled",
        "noise_regularization_num_ac_rolls": "rolls",
    }
    return {
        ours: float(meta[name]) if ours in ("omega", "gamma") else meta[name]
        for name, ours in names.items()
        if name in meta
    }


def references(extra):
    return [extra[f"inv.{number}"] for number in range(sum(key.startswith("inv.") for key in extra))]


def test_official_inversion(tiny_sd, golden):
    meta, results, extra = golden("scaling_concept/scaling_invert_demo")
    draws = {f"roll.{n}": shift for n, shift in enumerate(extra["rolls"].tolist())} | {"noise.0": extra["noise"]}
    with watched(draws):
        path = scaler(text=meta["prompt"], **settings(meta)).invert(tiny_sd, extra["z_0"])
    assert len(path) == meta["steps"] + 1
    for number, found in enumerate(path):
        assert distance(found, results[f"inv.{number}"]) < 1e-5, number


def test_official_plain_inversion(tiny_sd, golden):
    meta, _, extra = golden("scaling_concept/scaling_reconstruct")
    path = scaler(text=meta["concept"], regularisations=0, **settings(meta)).invert(tiny_sd, extra["z_0"])
    for number, found in enumerate(path):
        assert distance(found, extra[f"inv.{number}"]) < 1e-5, number


@pytest.mark.parametrize("tag", ["scaling_enhance", "scaling_reconstruct"])
def test_official_sampling(tag, tiny_sd, golden):
    meta, results, extra = golden(f"scaling_concept/{tag}")
    base = "" if tag == "scaling_enhance" else meta["prompt"]
    with watched() as seen, torch.no_grad():
        ours = scaler(text=meta["concept"], base=base, **settings(meta)).sample(tiny_sd, references(extra))
    for step, guided in enumerate(by_name(seen)["guided"]):
        assert distance(guided, extra[f"guided.{step}"]) < 1e-4, step
    assert distance(ours, results["final"]) < 1e-4


def test_without_a_reference_share_one_is_conditional_and_share_zero_unconditional_sampling(tiny_sd):
    start = tiny_sd.noise([0])
    path = [torch.zeros_like(start)] * 5 + [start]
    for omega, text in ((1.0, "a cat"), (0.0, "")):
        with torch.no_grad():
            ours = scaler(omega=omega, gamma=0.0, exit_step=0, steps=5).sample(tiny_sd, path)
            embeds = tiny_sd.encode([text])
            theirs = tiny_sd.denoise(start, tiny_sd.guidance(tiny_sd, embeds, embeds, 1.0), "ddim", 5)
        assert distance(ours, theirs) < 1e-5


def test_the_share_falls_to_zero_unless_gamma_is(tiny_sd):
    assert [round(scaler(omega=5.0, gamma=3.0, steps=5).share(i), 4) for i in (0, 2, 4)] == [5.0, 0.625, 0.0]
    assert [scaler(omega=5.0, gamma=0.0, steps=5).share(i) for i in (0, 4)] == [5.0, 5.0]
    assert scaler(omega=-2.0, steps=5).share(0) == 0


def test_a_converged_inversion_is_undone_by_sampling(tiny_sd_float64):
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    same = {"omega": 1.0, "gamma": 0.0, "exit_step": 0, "steps": 10, "regularisations": 0, "average": False}
    editor = scaler(renoisings=40, first_renoisings=40, **same)
    with torch.no_grad():
        assert distance(editor.sample(tiny_sd_float64, editor.invert(tiny_sd_float64, latents)), latents) < 1e-6


@pytest.mark.parametrize(("average", "early", "late"), [(True, 3, 0), (False, 2, 1)])
def test_how_often_each_step_is_regularised(average, early, late, tiny_sd, monkeypatch):
    regularised = []
    monkeypatch.setattr(Regularisation, "__call__", lambda self, said, like, draws: regularised.append(0) or said)
    scaler(steps=5, average=average, renoisings=1).invert(tiny_sd, torch.zeros(1, 4, 16, 16))
    assert len(regularised) == 2 * early + 3 * late  # timesteps 1 and 201 are below 250; 401, 601 and 801 are not


def test_an_image_does_not_depend_on_its_batch(tiny_sd):
    images = tiny_sd.sample(["a cat", "a dog"], [0, 1], steps=3)
    editor = scaler(steps=5)
    both, alone = editor.edited(tiny_sd, images), editor.edited(tiny_sd, images[1:])
    assert np.abs(np.asarray(both[1], int) - np.asarray(alone[0], int)).max() <= 1
    assert editor.edited(tiny_sd, [None, *images])[0] is None


def test_the_guard_edits_every_image_of_the_model(tiny_sd):
    values = {"steps": 4, "regularisations": 0}
    dog = Concept("dog", article="a")
    plain = tiny_sd.sample(["a ship"], [0], steps=3)
    one = overpaint.erase(tiny_sd, "scaling_concept", erase=[dog], **values)
    two = overpaint.erase(tiny_sd, "scaling_concept", erase=["cat"], before=one, **values)
    assert one.settings["text"] == "a dog"
    edited = ConceptScaler(**one.settings).edited(tiny_sd, plain)
    with one.attached(tiny_sd):
        assert np.array_equal(tiny_sd.sample(["a ship"], [0], steps=3), edited)
    with two.attached(tiny_sd):
        assert len(tiny_sd.screens) == 2
        both = tiny_sd.sample(["a ship"], [0], steps=3)
    assert np.array_equal(both, ConceptScaler(**two.settings).edited(tiny_sd, edited))
    assert tiny_sd.screens == () and not np.array_equal(plain, edited)


def test_v_prediction_is_inverted_as_noise(predicting):
    model = predicting("v_prediction")
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.3
    path = scaler(steps=5, regularisations=0).invert(model, latents)
    assert all(x.isfinite().all() for x in path)


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 1},
        {"exit_step": -1},
        {"averaged": [3, 1]},
        {"renoisings": -1},
        {"regularisations": -1},
        {"gamma": -1.0},
    ],
)
def test_settings_that_mean_nothing_are_refused(tiny_sd, values):
    with pytest.raises(overpaint.UserError, match=next(iter(values))):
        overpaint.erase(tiny_sd, "scaling_concept", erase=["dog"], **values)
