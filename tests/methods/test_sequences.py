"""Sequences of erasures: on the model, in a file, and errors for sequences that do not fit the model."""

import pytest
import torch

import overpaint
from official import parameters
from overpaint.grid.concepts import Request
from overpaint.models.guidance import Guidance

ESD = {"iterations": 1, "rollout_steps": 4, "learning_rate": 1e-3, "train": "strict"}


def test_every_request_is_made_on_the_last_ones_victim(tiny_sd):
    first = overpaint.erase(tiny_sd, "uce", erase=["dog"], anchor="cat")
    with first.attached(tiny_sd):
        second = overpaint.erase(tiny_sd, "uce", erase=["bird"], anchor="ship")
        with second.attached(tiny_sd):
            expected = parameters(tiny_sd, first.changes)
    sequence = overpaint.erase(tiny_sd, "uce", erase=["dog", "bird"], anchor=["cat", "ship"], sequential=True)
    continued = overpaint.erase(tiny_sd, "uce", erase=["bird"], anchor="ship", before=first)
    joint = overpaint.erase(tiny_sd, "uce", erase=["dog", "bird"], anchor=["cat", "ship"])
    for erasure, same in ((sequence, True), (continued, True), (joint, False)):
        with erasure.attached(tiny_sd):
            found = parameters(tiny_sd, first.changes)
            assert all(torch.equal(erasure.tensors[name], tensor) for name, tensor in found.items())
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()) == same


def test_the_file_holds_the_whole_sequence(tiny_sd, tmp_path):
    one = overpaint.erase(tiny_sd, "uce", erase=["dog"], variant="current")
    three = overpaint.erase(tiny_sd, "uce", erase=["dog", "bird", "ship"], variant="current", sequential=True)
    assert three.artefact_bytes == three.manifest["artefact_bytes"] == 3 * one.artefact_bytes
    three.save(tmp_path / "e.safetensors")
    loaded = overpaint.load_erasure(tmp_path / "e.safetensors")
    assert [e.manifest["erase"][0]["name"] for e in loaded.sequence] == ["dog", "bird", "ship"]
    with loaded.attached(tiny_sd), pytest.raises(overpaint.UserError, match="other weights"):
        three.attach(tiny_sd)
    with loaded.attached(tiny_sd):
        assert torch.equal(loaded.tensors[three.names[0]], tiny_sd.named_parameters()[three.names[0]].data)


def test_what_a_later_request_replaces_is_not_kept(tiny_sd):
    one = overpaint.erase(tiny_sd, "esd", erase=["dog"], **ESD)
    two = overpaint.erase(tiny_sd, "esd", erase=["dog", "bird"], sequential=True, **ESD)
    assert two.artefact_bytes == one.artefact_bytes and not two.before.changes
    mixed = overpaint.erase(tiny_sd, "uce", erase=["bird"], before=two, variant="current")
    assert mixed.artefact_bytes > two.artefact_bytes
    with two.attached(tiny_sd):
        start = parameters(tiny_sd, mixed.changes)
    with mixed.attached(tiny_sd):
        name, change = next(iter(mixed.changes.items()))
        torch.testing.assert_close(tiny_sd.named_parameters()[name].data, start[name] + change.up @ change.down)


def test_seconds_are_the_sum_and_the_peak_is_the_highest(tiny_sd):
    first = overpaint.erase(tiny_sd, "uce", erase=["dog"])
    first.manifest |= {"seconds": 100.0, "peak_bytes": 1 << 60}
    second = overpaint.erase(tiny_sd, "uce", erase=["bird"], before=first)
    assert 100 < second.manifest["seconds"] < 200 and second.manifest["peak_bytes"] == 1 << 60
    assert "seconds" not in second.before.manifest and first.manifest["seconds"] == 100


def test_a_negative_prompt_after_another_is_one_guard_with_both_texts(tiny_sd):
    joint = overpaint.erase(tiny_sd, "negative_prompt", erase=["dog", "bird"])
    sequence = overpaint.erase(tiny_sd, "negative_prompt", erase=["dog", "bird"], sequential=True)
    with joint.attached(tiny_sd):
        expected = tiny_sd.guidance
    with sequence.attached(tiny_sd):
        assert tiny_sd.guidance == expected and expected.text == "dog, bird"
    assert tiny_sd.guidance is Guidance


def test_guards_that_do_not_compose_are_refused_when_made(tiny_sd):
    first = overpaint.erase(tiny_sd, "negative_prompt", erase=["dog"])
    with pytest.raises(overpaint.UserError, match=r"the same settings \(different: form\)"):
        overpaint.erase(tiny_sd, "negative_prompt", erase=["bird"], form="composable", before=first)
    with pytest.raises(overpaint.UserError, match="the model takes 77"):
        overpaint.erase(tiny_sd, "negative_prompt", erase=["bird"], text="bird " * 74, before=first)
    assert tiny_sd.guidance is Guidance


def test_a_guard_may_follow_weights_and_weights_a_guard(tiny_sd):
    for methods in (("uce", "negative_prompt"), ("negative_prompt", "uce")):
        first = overpaint.erase(tiny_sd, methods[0], erase=["dog"])
        both = overpaint.erase(tiny_sd, methods[1], erase=["bird"], before=first)
        with both.attached(tiny_sd):
            assert tiny_sd.guidance is not Guidance and both.base
        assert tiny_sd.guidance is Guidance


def test_an_erasure_that_cannot_be_attached_leaves_nothing_behind(tiny_sd):
    first = overpaint.erase(tiny_sd, "uce", erase=["dog"])
    sequence = overpaint.erase(tiny_sd, "negative_prompt", erase=["bird"], before=first)
    plain, tiny_sd.guidance = parameters(tiny_sd, first.changes), lambda *_: None
    try:
        with pytest.raises(overpaint.UserError, match="can be combined only with another"):
            sequence.attach(tiny_sd)
    finally:
        tiny_sd.guidance = Guidance
    assert all(torch.equal(tiny_sd.named_parameters()[name].data, tensor) for name, tensor in plain.items())


def test_requests_one_concept_each():
    request = Request.of(["dog", "bird"], ["cat", "ship"], ["house"])
    assert [[c.anchor for c in part.erase] for part in request.singly()] == [["cat"], ["ship"]]
    assert all(part.retain == request.retain for part in request.singly())
