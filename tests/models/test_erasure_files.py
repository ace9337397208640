"""Erasure files: saved files can be read again, and malformed or foreign files give an error of one sentence."""

import copy
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import overpaint
from overpaint.models.erasure import Erasure, LowRank, Replacement, load_erasure

KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
HEADER = {"method": "uce", "kind": "delta", "settings": {}, "manifest": {}}
SMALL = {"iterations": 1, "rollout_steps": 2}
SPM = SMALL | {"warmup_steps": 0, "anchors": 1}


def write(path, tensors, header):
    """Write an erasure file with this header, a JSON value or a text."""
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors or {"x": torch.zeros(1)}, path, metadata={"overpaint": text})


SLD = {
    "text": "dog", "warmup_steps": 0, "scale": 5.0, "threshold": 0.1, "momentum_scale": 0.0, "momentum_beta": 0.4, "active": True
}  # fmt: skip
W = torch.zeros(4, 4)
MISFITS = {
    "an unknown name": ({"unet.weight": W}, HEADER, "changes unet.weight, which the model does not have"),
    "another shape": ({KEY: W}, HEADER, "does not fit the model"),
    "a scalar": ({KEY: torch.zeros(())}, HEADER, "does not fit the model"),
    "an unknown method": ({"part:a": W}, HEADER | {"method": "essd", "kind": "guard"}, "did you mean 'esd'"),
    "a method without a guard": ({"part:a": W}, HEADER | {"kind": "guard"}, "uce"),
    "sld without settings": ({}, HEADER | {"method": "sld", "kind": "guard"}, "settings"),
    "sld with an unknown setting": (
        {},
        HEADER | {"method": "sld", "kind": "guard", "settings": SLD | {"treshold": 0.1}},
        "did you mean 'threshold'",
    ),
    "sld with a threshold that is a text": (
        {},
        HEADER | {"method": "sld", "kind": "guard", "settings": SLD | {"threshold": "high"}},
        "threshold takes a finite number, got 'high'",
    ),
    "a negative prompt that is a number": (
        {},
        HEADER
        | {"method": "negative_prompt", "kind": "guard", "settings": {"text": 5, "form": "replace", "weight": 1}},
        "text takes a text, got 5",
    ),
    "spm without settings": ({}, HEADER | {"method": "spm", "kind": "adapter"}, "concepts"),
    "spm without membranes": (
        {},
        HEADER
        | {
            "method": "spm",
            "kind": "adapter",
            "settings": {"concepts": ["dog"], "scale": 1.0, "transport": "linear", "matching": "allone"},
        },
        "cannot be put on the model",
    ),
    "receler without erasers": ({}, HEADER | {"method": "receler", "kind": "adapter"}, "do not fit the model"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_files_that_do_not_fit_are_told_and_leave_the_model_alone(tmp_path, tiny_sd, case):
    tensors, header, said = MISFITS[case]
    write(tmp_path / "e.safetensors", {name: t for name, t in tensors.items()} or {"part:a": W}, header)
    before, guidance = {n: p.data.clone() for n, p in tiny_sd.named_parameters().items()}, tiny_sd.guidance
    with pytest.raises(overpaint.UserError, match=said) as raised:
        load_erasure(tmp_path / "e.safetensors").attach(tiny_sd)
    assert "\n" not in str(raised.value) and tiny_sd.guidance is guidance
    assert all(torch.equal(p.data, before[name]) for name, p in tiny_sd.named_parameters().items())
    assert not any(module._forward_hooks for module in tiny_sd.denoiser.modules())


@pytest.mark.parametrize(
    "method, settings",
    [("sld", {}), ("negative_prompt", {}), ("spm", SPM), ("receler", SMALL | {"inner_steps": 1}), ("uce", {})],
)
def test_an_erasure_meets_only_the_weights_that_it_was_made_for(goldens, tiny_sd, tmp_path, method, settings):
    erasure = overpaint.erase(tiny_sd, method, erase=["dog"], **settings)
    erasure.save(tmp_path / "e.safetensors")
    loaded = load_erasure(tmp_path / "e.safetensors")
    with loaded.attached(tiny_sd):
        pass
    other = overpaint.load_model(str(goldens / "tiny_sd"))
    with loaded.attached(other):
        pass
    for name in (KEY, "text_model.final_layer_norm.weight"):
        if method == "uce" and name != KEY:
            continue  # a delta depends on the weights that it changes alone
        plain = other.named_parameters()[name].data.clone()
        other.named_parameters()[name].data.view(-1)[0] += 1
        with pytest.raises(overpaint.UserError, match="other weights"):
            loaded.attach(other)
        other.named_parameters()[name].data.copy_(plain)
    loaded.attach(other)()
    with pytest.raises(overpaint.UserError, match="another precision"):
        loaded.attach(overpaint.load_model(str(goldens / "tiny_sd"), dtype="bfloat16"))


def test_tensors_that_several_changes_share_are_saved_for_each(tmp_path, tiny_sd):
    values = [p for p in tiny_sd.projections("value", stream="text")]
    shape = values[0].weight.shape
    same = [p.name for p in values if p.weight.shape == shape]
    assert len(same) > 1
    down, whole = torch.randn(1, shape[1]), torch.randn(2 * shape[0], shape[1])
    changes = {name: LowRank(torch.ones(shape[0], 1), down) for name in same}
    changes[same[0]] = Replacement(whole[: shape[0]])
    changes[same[1]] = Replacement(whole[shape[0] :])
    erasure = Erasure("uce", changes=changes, manifest={"method": "uce"})
    erasure.save(tmp_path / "e.safetensors")
    loaded = load_erasure(tmp_path / "e.safetensors")
    assert loaded.changes.keys() == changes.keys()
    for name, tensor in erasure._stored().items():
        assert torch.equal(loaded._stored()[name], tensor)


def test_erasures_with_non_finite_weights_are_not_written(tmp_path, tiny_sd):
    erasure = Erasure("esd", changes={KEY: Replacement(torch.full((2, 2), float("nan")))})
    with pytest.raises(overpaint.UserError, match=f"the erasure of esd: {KEY} has non-finite values"):
        erasure.save(tmp_path / "e.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_header_is_readable_without_overpaint(tmp_path, tiny_sd):
    erasure = overpaint.erase(tiny_sd, "uce", erase=["dog"], anchor="cat")
    erasure.save(tmp_path / "e.safetensors")
    with safe_open(str(tmp_path / "e.safetensors"), framework="np") as file:
        header = json.loads(file.metadata()["overpaint"])
    assert header["manifest"] == erasure.manifest and header["method"] == "uce"
    assert set(load_file(tmp_path / "e.safetensors")) == set(erasure._stored())


def test_files_from_before_the_hash_of_the_model_still_attach(tiny_sd):
    erasure = overpaint.erase(tiny_sd, "sld", erase=["dog"])
    old = copy.copy(erasure)
    old.manifest = {k: v for k, v in erasure.manifest.items() if k != "model"}
    assert "model" in erasure.manifest
    old.attach(tiny_sd)()
