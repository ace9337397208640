"""Shared training code: gradients in half precision; float32 models are unaffected."""

import pytest
import torch

import overpaint
from official import distance, flat, watched
from overpaint.blocks.training import LOSS_SCALE, backward, gradient, gradient_of, gradients

#: Latents with Stable Diffusion's size, each of which contributes little to the mean.
SIDE = 64


def first_gradients(folder, dtype, method="esd", **arguments):
    """Gradients of the first step of an erasure on latents of that size, as one vector."""
    model = overpaint.load_model(str(folder), dtype=dtype)
    model.denoiser.register_to_config(sample_size=SIDE)
    with watched({"k.0": torch.tensor([1])}) as seen:
        overpaint.erase(model, method, erase=["dog"], iterations=1, rollout_steps=2, **arguments)
    found = next(values["gradients"] for values in seen if "gradients" in values)
    return flat(found, sorted(found))


def test_float16_gradients_are_those_of_float32_at_full_size(goldens):
    exact, half = (first_gradients(goldens / "tiny_sd", dtype, train="x") for dtype in ("float32", "float16"))
    assert half.dtype == torch.float32, "masters"
    assert distance(half, exact) < 0.05
    assert (half.sign() == exact.sign()).float().mean() > 0.99
    assert (half == 0).float().mean() < 0.01


def small_product(dtype):
    """A float32 master weight, and a loss whose gradient, 2⁻²⁶ per row, passes through ``dtype``."""
    master = torch.nn.Parameter(torch.ones(3))
    return master, ((master.to(dtype) * torch.tensor(2.0**-13, dtype=dtype)).float() * 2.0**-13).sum()


def test_a_gradient_below_float16_arrives():
    plain, loss = small_product(torch.float16)
    loss.backward()
    assert plain.grad.eq(0).all(), "this is what is lost"
    master, loss = small_product(torch.float16)
    backward(loss, [master], torch.float16)
    assert master.grad.eq(2.0**-26).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_other_precisions_are_left_alone(dtype):
    one, loss = small_product(dtype)
    backward(loss, [one], dtype)
    other, loss = small_product(dtype)
    loss.backward()
    assert torch.equal(one.grad, other.grad)


def test_a_scaled_loss_that_overflows_is_scaled_less():
    """The gradient 60 overflows float16 when scaled by 2¹⁴, but not by 2¹⁰."""
    master = torch.nn.Parameter(torch.ones(3))
    loss = (master.to(torch.float16) * 60).float().sum()
    assert 60 * LOSS_SCALE > 65504
    (found,) = gradients(loss, [master], torch.float16)
    assert found.eq(60).all()


def test_what_has_no_part_in_the_loss_has_no_gradient():
    master, loss = small_product(torch.float16)
    found, none = gradients(loss, [master, torch.nn.Parameter(torch.ones(1))], torch.float16)
    assert found.eq(2.0**-26).all() and none is None


def test_a_gradient_that_must_be_there_is_missed_aloud():
    master, loss = small_product(torch.float16)
    idle = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(RuntimeError, match="does not depend"):
        gradient(loss, idle, torch.float16)
    with pytest.raises(RuntimeError, match="does not depend"):
        gradient_of(idle)
    assert gradient(loss, master, torch.float16).eq(2.0**-26).all()
