"""ABO against its equations: the first loss, both terms, the fixed point, and refusals."""

import pytest
import torch

import overpaint
from official import by_name, watched
from overpaint.blocks.training import parameter_group
from overpaint.grid.registry import component
from overpaint.methods.abo import GROUPS

SMALL = {"iterations": 1, "rollout_steps": 4, "learning_rate": 1e-3, "batch_size": 2}


def traced(model, **values):
    with watched() as seen:
        erasure = overpaint.erase(model, "abo", **({"erase": ["dog"]} | SMALL | values))
    return erasure, by_name(seen)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("anchor", [None, "cat"])
def test_the_first_loss_is_the_distance_to_the_alternative(tiny_sd_float64, norm, anchor):
    model = tiny_sd_float64
    _, seen = traced(model, norm=norm, anchor=anchor)
    x_t, t = seen["x_t"][0], seen["t"][0]
    named, other = (model.predict(x_t, t, model.encode([text] * 2)) for text in ("dog", anchor or ""))
    error = (named - other).float()
    wanted = error.square().mean() if norm == "l2" else error.abs().mean()
    torch.testing.assert_close(seen["loss"][0], wanted, rtol=1e-5, atol=0)
    assert seen["preserving"][0] < 1e-20


def test_without_a_prompt_the_model_reads_what_its_sampler_reads(tiny_sdxl):
    """SDXL's guidance takes zeros for the empty prompt, not the encoding of an empty text."""
    _, seen = traced(tiny_sdxl)
    x_t, t = seen["x_t"][0], seen["t"][0]
    texts = (tiny_sdxl.encode(["dog"] * 2), tiny_sdxl.unconditional().expand_as(tiny_sdxl.encode(["dog"] * 2)))
    named, nothing = (tiny_sdxl.predict(x_t, t, text) for text in texts)
    torch.testing.assert_close(seen["loss"][0], (named - nothing).square().mean(), rtol=1e-3, atol=0)


def test_a_concept_that_is_its_own_alternative_stays(tiny_sd_float64):
    model = tiny_sd_float64
    erasure, seen = traced(model, default_anchor="dog", iterations=2)
    assert seen["loss"][-1] < 1e-20
    base = model.named_parameters()
    assert all(torch.equal(change.tensor, base[name].data) for name, change in erasure.changes.items())


def drift(model, weight):
    """How far the prediction without a prompt moves in training, and what is left of the concept's guidance."""
    erasure, seen = traced(model, preserve_weight=weight, iterations=12, learning_rate=3e-3)
    x, empty = model.noise([0]), model.encode([""])
    before = model.predict(x, 500, empty)
    with erasure.attached(model):
        return (model.predict(x, 500, empty) - before).norm(), seen["erasing"]


def test_the_second_term_holds_the_prediction_without_a_prompt(tiny_sd):
    free, erasing = drift(tiny_sd, 0.0)
    held, also = drift(tiny_sd, 30.0)
    assert held < 0.5 * free
    assert torch.stack(erasing[-4:]).mean() < torch.stack(erasing[:4]).mean()
    assert torch.stack(also[-4:]).mean() < torch.stack(also[:4]).mean()


def test_each_concept_has_its_own_alternative(tiny_sd):
    erasures = [
        traced(tiny_sd, erase=["dog", "ship"], anchor=a, iterations=4)[0] for a in (["cat", "bird"], ["cat", "cat"])
    ]
    name = next(iter(erasures[0].changes))
    assert not torch.equal(*(erasure.tensors[name] for erasure in erasures))


@pytest.mark.parametrize(("group", "count"), [("xattn", 35), ("kv", 14)])
def test_each_group_has_its_number_of_parameters(tiny_sd, group, count):
    assert len(parameter_group(tiny_sd, GROUPS[group])) == count


@pytest.mark.parametrize(
    "values", [{"iterations": 0}, {"rollout_steps": 1}, {"preserve_weight": -1.0}, {"learning_rate": -1.0}]
)
def test_bad_values_are_refused(values):
    with pytest.raises(overpaint.UserError, match=next(iter(values))):
        component("method", "abo").build(values)
