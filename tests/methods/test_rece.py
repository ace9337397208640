"""RECE against tensors written by its official code, and against its identities."""

import json
import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import overpaint
from official import changed, distance
from overpaint.blocks.adversarial_rows import adversarial_rows, overlaps
from overpaint.blocks.draws import traced
from overpaint.grid.registry import component
from overpaint.methods.rece import RECE

RUNS = {
    "object": {"erase": ["church"], "anchor": " ", "preset": "object"},
    "multi": {"erase": ["dog", "ship"], "anchor": " ", "preset": "unsafe"},
}
#: Official code inverts in the precision it runs in.
TOLERANCE = {"f32": 2e-3, "f64": 1e-9}


def eraser(**values) -> RECE:
    return component("method", "rece").build(values)


@pytest.mark.parametrize(("tag", "precision"), [("object", "f64"), ("multi", "f64"), ("multi", "f32")])
def test_official_code(tag, precision, goldens, tiny_sd_in):
    model = tiny_sd_in(precision)
    official = load_file(goldens / "rece" / precision / f"rece_{tag}.safetensors")
    ours = changed(model, "rece", **RUNS[tag])
    assert ours.keys() == official.keys()
    for name, tensor in official.items():
        assert distance(ours[name], tensor, model.named_parameters()[name].data) < TOLERANCE[precision], name


@pytest.mark.parametrize("tag", RUNS)
def test_official_adversarial_rows(tag, goldens, tiny_sd_float64):
    official = load_file(goldens / "rece" / "f64" / f"rece_{tag}.extra.safetensors")
    meta = json.loads((goldens / "rece" / "f64" / f"rece_{tag}.json").read_text())["meta"]
    seen = {}
    with traced(lambda **values: seen.update(values)):
        overpaint.erase(tiny_sd_float64, "rece", **RUNS[tag])
    expected = {name for name in official if name.startswith("adv.")}
    assert seen.keys() >= expected and len(expected) == meta["epochs"] * len(meta["concepts"])
    for name in expected:
        assert distance(seen[name], official[name]) < 1e-9, name


def test_no_epochs_is_uce_to_the_bit(tiny_sd):
    request = {"erase": ["dog", "snoopy"], "anchor": ["cat", ""], "retain": ["bird"]}
    ours, uce = changed(tiny_sd, "rece", epochs=0, **request), changed(tiny_sd, "uce", **request)
    assert all(torch.equal(ours[name], uce[name]) for name in uce)


def test_the_adversary_of_an_unedited_model_is_the_concept(tiny_sd_float64):
    base = [p.weight for p in tiny_sd_float64.projections("key", "value")]
    E = tiny_sd_float64.encode(["dog"])[0]
    A = adversarial_rows(E, *overlaps(base, base), r=0.0)
    torch.testing.assert_close(A, E, rtol=0, atol=1e-9)
    A = adversarial_rows(E, *overlaps(base, base), r=1e9)
    assert A.norm() < 1e-5 * E.norm()


@pytest.fixture
def edited(tiny_sd_float64):
    """The matrices after a UCE edit of dog and before it, E(dog) and E(cat)."""
    base = {p.name: p.weight for p in tiny_sd_float64.projections("key", "value")}
    edited = base | changed(tiny_sd_float64, "uce", erase=["dog"], anchor="cat")
    return list(edited.values()), list(base.values()), *tiny_sd_float64.encode(["dog", "cat"])


def objective(now, base, E, terms):
    """Σ ‖W A − W° E‖² plus ``terms(A)``, and its gradient at A."""

    def gradient(A):
        A = A.clone().requires_grad_()
        total = sum(((A @ W.T - E @ W0.T) ** 2).sum() for W, W0 in zip(now, base, strict=True))
        (total + terms(A)).backward()
        return A.grad, float(total.detach())

    return gradient


def test_adversarial_rows_minimise_what_they_should(edited):
    now, base, E, T = edited
    r = 0.1
    terms = {
        "zero": lambda A: r * (A**2).sum(),
        "standard": lambda A: r * ((A - T) ** 2).sum(),
        "first": lambda A: r * sum((((A - E) @ W.T) ** 2).sum() for W in now),
        "second": lambda A: r * ((A - E) ** 2).sum(),
    }
    terms["both"] = lambda A: terms["first"](A) + terms["second"](A)
    for regulariser, term in terms.items():
        A = adversarial_rows(E, *overlaps(now, base), r, regulariser, T)
        gradient = objective(now, base, E, term)
        assert gradient(A)[0].abs().max() < 1e-9, regulariser
        assert gradient(A)[1] < gradient(E)[1], "adversarial rows come closer to the old outputs than the concept's own"


def test_the_standard_regulariser_pulls_to_its_text(tiny_sd):
    request = {"erase": ["dog"], "anchor": "", "regulariser": "standard"}
    plain = changed(tiny_sd, "rece", **request)
    named = changed(tiny_sd, "rece", regulariser_text="dog", **request)
    other = changed(tiny_sd, "rece", regulariser_text="cat", **request)
    assert all(torch.allclose(plain[n], named[n], atol=1e-6) for n in plain)
    assert not all(torch.allclose(plain[n], other[n], atol=1e-4) for n in plain)


def test_the_empty_text_retained_once_a_concept_weighs_as_often(tiny_sd_float64):
    one = changed(tiny_sd_float64, "rece", erase=["dog", "ship"], empty_texts="one_a_concept")
    two = changed(tiny_sd_float64, "rece", erase=["dog", "ship"], retain_scale=0.2)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-10)


def test_each_concept_has_its_own_anchor_and_order_does_not_matter(tiny_sd_float64):
    one = changed(tiny_sd_float64, "rece", erase=["dog", "snoopy"], anchor=["cat", ""], retain=["bird", "ship"])
    two = changed(tiny_sd_float64, "rece", erase=["snoopy", "dog"], anchor=["", "cat"], retain=["ship", "bird"])
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-9)


@pytest.fixture
def eye(monkeypatch):
    """A detector ``eye`` that reports a dog in a given number of images of each batch, or fails: (seen, failed)."""
    rates = []

    class Eye:
        def score(self, images):
            seen, failed = rates[0] if isinstance(rates[0], tuple) else (rates[0], 0)
            rates.pop(0)
            scores = [math.nan] * failed + [1.0] * seen + [0.0] * (len(images) - seen - failed)
            return pd.DataFrame({"dog": scores, "failed": pd.isna(scores)})

    def find(kind, name):
        return SimpleNamespace(build=lambda values: Eye(), told=lambda classes: {})

    monkeypatch.setattr("overpaint.blocks.concept_scores.component", find)
    monkeypatch.setattr("overpaint.methods.rece.RECE.detectors", lambda self, request: {})  # it has no files
    return rates


def test_validation_takes_the_first_epoch_with_the_lowest_rate(tiny_sd, eye):
    eye += [2, 1, 1]
    found = overpaint.erase(
        tiny_sd, "rece", erase=["dog"], epochs=2, select="validation", validation_detector="eye", validation_images=2
    )
    assert found.manifest["epoch"] == 1 and found.manifest["rates"] == [1.0, 0.5, 0.5]
    expected = changed(tiny_sd, "rece", erase=["dog"], epochs=1)
    with found.attached(tiny_sd):
        assert all(torch.equal(tiny_sd.named_parameters()[n].data, expected[n]) for n in expected)


def test_pictures_that_the_detector_fails_on_do_not_count_as_erased(tiny_sd, eye):
    settings = {"erase": ["dog"], "select": "validation", "validation_detector": "eye", "validation_images": 2}
    eye += [1, (1, 1)]
    assert overpaint.erase(tiny_sd, "rece", epochs=1, **settings).manifest["rates"] == [0.5, 1.0]
    eye += [1, (0, 2)]
    with pytest.raises(overpaint.UserError, match="eye failed on every validation image"):
        overpaint.erase(tiny_sd, "rece", epochs=1, **settings)


def test_validation_needs_a_detector_that_knows_the_concept(tiny_sd, eye):
    with pytest.raises(overpaint.UserError, match="validation_detector"):
        overpaint.erase(tiny_sd, "rece", erase=["dog"], select="validation")
    eye += [0]
    with pytest.raises(overpaint.UserError, match=r"unknown label 'dogs'.*did you mean 'dog'"):
        overpaint.erase(
            tiny_sd, "rece", erase=["dogs"], select="validation", validation_detector="eye", validation_images=1
        )


def test_bad_values_are_refused(tiny_sd):
    with pytest.raises(overpaint.UserError, match="epochs takes a number from 0 up"):
        overpaint.erase(tiny_sd, "rece", erase=["dog"], epochs=-1)
    with pytest.raises(overpaint.UserError, match=r"lamb=0.*singular"):
        overpaint.erase(tiny_sd, "rece", erase=["dog"], lamb=0, retain_scale=0, erase_scale=0)
    with pytest.raises(overpaint.UserError, match="regulariser_text needs regulariser=standard"):
        overpaint.erase(tiny_sd, "rece", erase=["dog"], regulariser_text="cat")
