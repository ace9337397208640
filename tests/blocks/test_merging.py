"""Merging against hand-made changes, and the identities of every rule."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import overpaint
from official import parameters
from overpaint.blocks.merging import concept_rows, merged
from overpaint.grid.concept_sets import Merge
from overpaint.grid.concepts import Request
from overpaint.models.erasure import Erasure, LowRank, Replacement

TWO = {"erase": ["dog", "bird"], "anchor": ["cat", "ship"]}
REQUEST = Request.of(["dog", "bird"])


def rows(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


WEIGHT = rows(8, 6, seed=0)
MODEL = SimpleNamespace(named_parameters=lambda: {"w": torch.nn.Parameter(WEIGHT), "v": torch.nn.Parameter(WEIGHT + 1)})


def low(seed, rank=1):
    return LowRank(rows(8, rank, seed=seed), rows(rank, 6, seed=seed + 100))


def replaced(change):
    return Replacement(WEIGHT + change)


def change(merge, *parts):
    """The merged change of ``w``, from one change of it by each erasure."""
    erasures = [Erasure("m", changes={"w": part} if not isinstance(part, dict) else part) for part in parts]
    return merged(MODEL, erasures, REQUEST, merge).changes["w"].apply(WEIGHT) - WEIGHT


def test_sum_and_mean():
    one, two = low(1), low(2)
    total = one.up @ one.down + two.up @ two.down
    for second in (two, replaced(two.up @ two.down)):
        torch.testing.assert_close(change(Merge("sum"), one, second), total)
        torch.testing.assert_close(change(Merge("sum", 0.3), one, second), 0.3 * total)
        torch.testing.assert_close(change(Merge("mean"), one, second), total / 2)


def test_low_rank_changes_stay_low_rank_where_that_is_smaller():
    for rank, kind in ((1, LowRank), (2, Replacement)):
        parts = [Erasure("m", changes={"w": low(seed, rank)}) for seed in (1, 2)]
        assert isinstance(merged(MODEL, parts, REQUEST, Merge("sum")).changes["w"], kind)


def test_a_weight_that_one_erasure_changes_has_its_change():
    parts = [Erasure("m", changes={"w": low(1)}), Erasure("m", changes={"v": low(2)})]
    found = merged(MODEL, parts, REQUEST, Merge("sum")).changes
    for name, part in zip(("w", "v"), parts, strict=True):
        torch.testing.assert_close(found[name].apply(WEIGHT), part.changes[name].apply(WEIGHT))


def test_ties_by_hand():
    """Half of the values of each count: 4 and -3 of one, -5 and 2 of the other. The signs are those of 4, -8 and 2."""
    one, two = torch.zeros(8, 6, dtype=torch.float64), torch.zeros(8, 6, dtype=torch.float64)
    one[0, :4] = torch.tensor([4.0, -3.0, 1.0, 0.5])
    two[0, :4] = torch.tensor([0.5, -5.0, 2.0, -1.0])
    expected = torch.zeros_like(one)
    expected[0, :4] = torch.tensor([4.0, -4.0, 2.0, 0.0])
    found = change(Merge("ties", keep=2 / 48), replaced(one), replaced(two))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(change(Merge("ties", 0.5, 2 / 48), replaced(one), replaced(two)), expected / 2)


def test_ties_takes_the_mean_of_those_that_agree():
    one, two, three = (torch.full((8, 6), value, dtype=torch.float64) for value in (3.0, 1.0, -2.0))
    found = change(Merge("ties", keep=1.0), *map(replaced, (one, two, three)))
    torch.testing.assert_close(found, torch.full_like(one, 2.0))


def test_the_largest_values_of_ties_are_those_of_all_weights_together():
    small, large = torch.full((8, 6), 0.1, dtype=torch.float64), torch.full((8, 6), 5.0, dtype=torch.float64)
    first = {"w": replaced(small), "v": Replacement(WEIGHT + 1 + large)}
    assert change(Merge("ties", keep=0.5), first, first).abs().max() < 1e-12
    torch.testing.assert_close(change(Merge("ties", keep=1.0), first, first), small)


def test_equal_erasures_merge_to_themselves():
    part = low(3)
    same = part.up @ part.down
    for merge in (Merge("mean"), Merge("ties", keep=1.0)):
        torch.testing.assert_close(change(merge, part, part, part), same)


@pytest.mark.parametrize("captions", [None, "testbed/captions"])
def test_a_closed_merge_keeps_what_each_erasure_does_to_its_concept(tiny_sd_float64, captions):
    model, asked = tiny_sd_float64, {"variant": "current", "retain": ["house"]}
    parts = [overpaint.erase(model, "uce", erase=e, anchor=a, **asked) for e, a in zip(*TWO.values(), strict=True)]
    merge = {"rule": "closed"} | ({"captions": captions} if captions else {})
    joined = overpaint.erase(model, "uce", **TWO, **asked, merge=merge)
    for K, part in zip(concept_rows(model, TWO["erase"]), parts, strict=True):
        for name, tensor in part.tensors.items():
            torch.testing.assert_close(K @ joined.tensors[name].T, K @ tensor.T, rtol=0, atol=1e-12)


def test_a_closed_merge_changes_other_texts_least(tiny_sd_float64):
    model, retain = tiny_sd_float64, ["house", "a car"]
    asked = {"variant": "legacy", "retain": retain}
    kept = torch.cat(list(concept_rows(model, retain)))
    found = {}
    for rule in ("sum", "closed"):
        joined = overpaint.erase(model, "uce", **TWO, **asked, merge=rule)
        base = parameters(model, joined.changes)
        found[rule] = sum(float((kept @ (joined.tensors[name] - W).T).norm()) for name, W in base.items())
    assert found["closed"] < found["sum"]


def test_membranes_merge_to_the_erasure_of_all(tiny_sd):
    """SPM trains one membrane per concept on the unedited model: at once and merged are the same."""
    small = {"iterations": 2, "rollout_steps": 4, "warmup_steps": 0, "learning_rate": 1e-2}
    together = overpaint.erase(tiny_sd, "spm", **TWO, **small)
    joined = overpaint.erase(tiny_sd, "spm", **TWO, **small, merge="sum")
    assert joined.artefact_bytes == together.artefact_bytes
    pictures = []
    for erasure in (together, joined):
        with erasure.attached(tiny_sd):
            (image,) = tiny_sd.sample(["a dog and a bird"], [0], steps=3)
            pictures.append(np.asarray(image, dtype=int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    plain = np.asarray(tiny_sd.sample(["a dog and a bird"], [0], steps=3)[0], dtype=int)
    assert np.abs(pictures[0] - plain).max() > 1


def test_the_file_and_the_costs_are_those_of_all(tiny_sd, tmp_path):
    one = overpaint.erase(tiny_sd, "uce", erase=["dog"], variant="current")
    joined = overpaint.erase(tiny_sd, "uce", erase=["dog", "bird"], variant="current", merge="mean")
    assert joined.artefact_bytes == 2 * one.artefact_bytes == joined.manifest["artefact_bytes"]
    assert joined.manifest["merge"] == {"rule": "mean", "scale": 1.0} and joined.manifest["seconds"] > 0
    joined.save(tmp_path / "e.safetensors")
    loaded = overpaint.load_erasure(tmp_path / "e.safetensors")
    with loaded.attached(tiny_sd):
        assert all(torch.equal(tensor, loaded.tensors[name]) for name, tensor in joined.tensors.items())


def test_every_part_of_merged_guards_has_its_manifest(tiny_sd):
    joined = overpaint.erase(tiny_sd, "negative_prompt", erase=["dog", "bird", "ship"], merge="sum")
    asked = [[c["name"] for c in level.manifest["erase"]] for level in joined.sequence]
    assert asked == [["dog"], ["bird"], ["dog", "bird", "ship"]]
    assert not any({"seconds", "base", "model"} & level.manifest.keys() for level in joined.sequence[:-1])
    with joined.attached(tiny_sd):
        assert tiny_sd.guidance.text == "dog, bird, ship"


def test_one_concept_is_the_same_erasure(tiny_sd):
    plain, joined = (overpaint.erase(tiny_sd, "uce", erase=["dog"], **how) for how in ({}, {"merge": "ties"}))
    assert all(torch.equal(plain.tensors[name], tensor) for name, tensor in joined.tensors.items())


@pytest.mark.parametrize(
    ("merge", "said"),
    [
        ("tie", "unknown rule"),
        ({"keep": 0.1}, "needs a rule"),
        ({"rule": "sum", "keep": 0.1}, "keep is used by rule=ties, not by rule=sum"),
        ({"rule": "ties", "keep": 0}, "keep"),
        ({"rule": "ties", "kept": 0.1}, "keep"),
        ({"rule": "closed", "captions": "nowhere"}, "got nowhere"),
    ],
)
def test_what_is_no_merge_is_refused(tiny_sd, merge, said):
    with pytest.raises(overpaint.UserError, match=said):
        overpaint.erase(tiny_sd, "uce", **TWO, merge=merge)


def test_a_rule_that_does_not_fit_the_erasures_is_refused(tiny_sd):
    with pytest.raises(overpaint.UserError, match="method=negative_prompt makes guards; use merge=sum"):
        overpaint.erase(tiny_sd, "negative_prompt", **TWO, merge="mean")
    esd = {"iterations": 1, "rollout_steps": 4, "train": "u"}
    with pytest.raises(overpaint.UserError, match="merge=closed merges the projections that read the text"):
        overpaint.erase(tiny_sd, "esd", **TWO, **esd, merge="closed")
    with pytest.raises(overpaint.UserError, match="it takes no sequential"):
        overpaint.erase(tiny_sd, "uce", **TWO, merge="sum", sequential=True)


def test_the_rules_of_merging_give_different_weights(tiny_sd):
    found = [overpaint.erase(tiny_sd, "uce", **TWO, merge=rule).tensors for rule in ("sum", "mean", "ties", "closed")]
    name = next(iter(found[0]))
    assert all(not torch.equal(one[name], two[name]) for one, two in pairwise(found))
