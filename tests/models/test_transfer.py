"""Transfer to another model: identities of every kind of change, and what does not fit."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

import overpaint
from official import parameters
from overpaint.models.erasure import Erasure, LowRank, Replacement
from overpaint.models.transfer import transferred

ESD = {"iterations": 1, "rollout_steps": 4, "learning_rate": 1e-3, "train": "x"}
ADVERSARIAL = {"iterations": 1, "attack_steps": 1, "rollout_steps": 4, "learning_rate": 1e-3, "batch_size": 2}
SPM = {"iterations": 2, "rollout_steps": 4, "warmup_steps": 0, "learning_rate": 1e-2}
METHODS = {"uce": {"variant": "current"}, "esd": ESD, "spm": SPM, "advunlearn": ADVERSARIAL, "negative_prompt": {}}


@pytest.fixture(scope="module")
def source(goldens):
    """The path of the model that erasures are made on."""
    return str(goldens / "tiny_sd")


@pytest.fixture(scope="module")
def other(source, tmp_path_factory):
    """A model of the same layout with other weights, and the folder that holds it."""
    model = overpaint.load_model(source)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.named_parameters().values():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("other")
    model.pipeline.save_pretrained(folder)
    return overpaint.load_model(str(folder))


@pytest.fixture(scope="module")
def files(tiny_sd, tmp_path_factory):
    folder = tmp_path_factory.mktemp("erasures")
    for method, values in METHODS.items():
        overpaint.erase(tiny_sd, method, erase=["dog"], **values).save(folder / f"{method}.safetensors")
    two = overpaint.erase(tiny_sd, "esd", erase=["dog", "bird"], sequential=True, **ESD)
    overpaint.erase(tiny_sd, "uce", erase=["ship"], before=two, variant="current").save(folder / "several.safetensors")
    return folder


def moved(model, file, **values):
    return overpaint.erase(model, "checkpoint", erase=["dog"], file=str(file), transfer=True, **values)


def on(model, erasure):
    """The parameters of the model that the erasure changes, with the erasure on it."""
    with erasure.attached(model):
        return parameters(model, erasure.names)


@pytest.mark.parametrize("name", [*METHODS, "several"])
def test_to_the_same_model_it_is_the_erasure_bit_for_bit(tiny_sd, files, source, name):
    file = files / f"{name}.safetensors"
    plain = on(tiny_sd, overpaint.load_erasure(file))
    ours = moved(tiny_sd, file, base=source)
    found = on(tiny_sd, ours)
    assert found.keys() == plain.keys() and all(torch.equal(found[n], plain[n]) for n in plain)
    # without the hashes that tell that it is the same model, every weight is computed
    unnamed = dataclasses.replace(overpaint.load_erasure(file), manifest={})
    found = on(tiny_sd, transferred(unnamed, tiny_sd, overpaint.load_model(source)))
    assert found.keys() == plain.keys() and all(torch.equal(found[n], plain[n]) for n in plain)


@pytest.mark.parametrize("name", ["uce", "esd", "several"])
def test_the_change_is_added_to_the_other_weights(tiny_sd, other, files, source, name):
    erasure = overpaint.load_erasure(files / f"{name}.safetensors")
    after, before = on(tiny_sd, erasure), parameters(tiny_sd, erasure.names)
    found = on(other, moved(other, files / f"{name}.safetensors", base=source))
    assert found.keys() == after.keys()
    for n, W_B in parameters(other, erasure.names).items():
        assert not torch.equal(W_B, before[n])
        torch.testing.assert_close(
            found[n].double(), W_B.double() + after[n].double() - before[n].double(), rtol=0, atol=1e-6
        )


def test_a_text_encoder_is_put_on_as_a_whole(tiny_sd, other, files, source):
    erasure = overpaint.load_erasure(files / "advunlearn.safetensors")
    with erasure.attached(tiny_sd), torch.no_grad():
        edited = tiny_sd.encode(["a dog"])
    with moved(other, files / "advunlearn.safetensors", base=source).attached(other), torch.no_grad():
        assert torch.equal(other.encode(["a dog"]), edited)
    with torch.no_grad():
        assert not torch.equal(other.encode(["a dog"]), edited)


def test_adapters_and_low_rank_changes_need_no_base(other, files):
    for name in ("spm", "uce", "negative_prompt"):
        with moved(other, files / f"{name}.safetensors").attached(other):
            pass
    parts = overpaint.load_erasure(files / "spm.safetensors").parts
    found = moved(other, files / "spm.safetensors").parts
    assert all(torch.equal(found[key], tensor) for key, tensor in parts.items())


def test_the_erasure_belongs_to_the_other_model_then(tiny_sd, other, files, source, tmp_path):
    ours = moved(other, files / "esd.safetensors", base=source)
    ours.save(tmp_path / "moved.safetensors")
    loaded = overpaint.load_erasure(tmp_path / "moved.safetensors")
    assert all(
        torch.equal(one, two) for one, two in zip(on(other, loaded).values(), on(other, ours).values(), strict=True)
    )
    with pytest.raises(overpaint.UserError, match="made for other weights"):
        loaded.attach(tiny_sd)


def test_published_tensors_are_compared_with_their_own_model(tiny_sd, other, source, tmp_path):
    name, weight = next((n, p.data) for n, p in tiny_sd.named_parameters().items() if n.endswith("attn2.to_k.weight"))
    save_file({name: weight + 0.1 * weight.std()}, tmp_path / "esd.safetensors")
    found = on(other, moved(other, tmp_path / "esd.safetensors", base=source))
    assert found.keys() == {name}
    expected = other.named_parameters()[name].data + 0.1 * weight.std()
    torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6)
    with pytest.raises(overpaint.UserError, match=r"needs checkpoint\.base=MODEL"):
        moved(other, tmp_path / "esd.safetensors")


def test_without_transfer_another_model_is_refused(other, files):
    with pytest.raises(overpaint.UserError, match=r"checkpoint\.transfer=true puts it on another model"):
        overpaint.erase(other, "checkpoint", erase=["dog"], file=str(files / "uce.safetensors"))
    with pytest.raises(overpaint.UserError, match="set transfer=true"):
        overpaint.erase(other, "checkpoint", erase=["dog"], file=str(files / "uce.safetensors"), base="testbed")


def test_what_cannot_be_transferred_is_refused(tiny_sd, tiny_sdxl, other, files):
    with pytest.raises(overpaint.UserError, match=r"needs the model that it was made on: checkpoint\.base=MODEL"):
        moved(other, files / "esd.safetensors")
    with pytest.raises(overpaint.UserError, match=r"does not fit the model|which the model does not have"):
        moved(tiny_sdxl, files / "uce.safetensors")
    with pytest.raises(overpaint.UserError, match=r"does not fit the model|which the model does not have"):
        moved(other, files / "esd.safetensors", base="testbed")


def test_another_base_than_its_own_is_refused(tiny_sd, other, source):
    erasure = overpaint.erase(other, "esd", erase=["dog"], **ESD)
    with pytest.raises(overpaint.UserError, match=r"not made for the weights of checkpoint\.base"):
        transferred(dataclasses.replace(erasure), tiny_sd, overpaint.load_model(source))


def test_a_value_far_below_the_weights_survives(tiny_sd, source):
    """W + (W' − W) would round it away."""
    name, weight = next((n, p.data) for n, p in tiny_sd.named_parameters().items() if p.ndim == 2)
    tiny = Replacement(torch.full_like(weight, 1e-25))
    found = transferred(Erasure("m", changes={name: tiny}), tiny_sd, overpaint.load_model(source))
    assert torch.equal(found.changes[name].tensor, tiny.tensor)
    low = LowRank(torch.ones(weight.shape[0], 1), torch.ones(1, weight.shape[1]))
    assert transferred(Erasure("m", changes={name: low}), tiny_sd, None).changes[name] is low
