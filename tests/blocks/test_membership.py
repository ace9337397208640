"""Membership scores against closed forms, and against a toy network computed step by step."""

import math

import numpy as np
import pytest
import torch

from overpaint.blocks.membership import ddim, denoising_losses, pia, secmi, step_errors

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
ALPHAS = (1 - BETAS).cumprod(0)
X = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
M = torch.randn(48, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 7


def toy(x, t):
    """tanh(M x + 0.3 sin(t / 50))"""
    return torch.tanh(x.flatten(1) @ M.T.to(x) + 0.3 * math.sin(t / 50)).reshape(x.shape)


def constant(x, t):
    return torch.full_like(x, 0.4)


def test_a_network_that_always_says_the_same_leaves_no_trace():
    assert secmi(constant, X, ALPHAS).numpy() == pytest.approx(0, abs=1e-20)
    assert pia(constant, X, ALPHAS, [10, 200]).numpy() == pytest.approx(0, abs=1e-20)
    assert step_errors(constant, X, ALPHAS, 3).numpy() == pytest.approx(0, abs=1e-20)


def test_loss_of_a_network_that_knows_the_noise_is_zero():
    noise = torch.randn(2, *X.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def knows(x, t):
        return (x - ALPHAS[t].sqrt() * X) / (1 - ALPHAS[t]).sqrt()

    assert denoising_losses(knows, X, ALPHAS, noise, [100, 900]).numpy() == pytest.approx(0, abs=1e-18)
    said = denoising_losses(constant, X, ALPHAS, noise, [100, 900])
    assert said.numpy() == pytest.approx((noise - 0.4).square().flatten(2).mean(dim=(0, 2)).numpy())


def test_secmi_ends_one_step_before_t_sec():
    """Forward through 10, …, 90, then 90 → 100 → 90."""
    x = X
    for before, after in zip(range(0, 90, 10), range(10, 100, 10), strict=True):
        clean = (x - (1 - ALPHAS[before]).sqrt() * toy(x, before)) / ALPHAS[before].sqrt()
        x = ALPHAS[after].sqrt() * clean + (1 - ALPHAS[after]).sqrt() * toy(x, before)
    up = ddim(toy, x, ALPHAS, 90, 100)
    expected = (ddim(toy, up, ALPHAS, 100, 90) - x).square().flatten(1).sum(1)
    assert secmi(toy, X, ALPHAS).numpy() == pytest.approx(expected.numpy(), rel=1e-12)
    assert (expected > 0).all()


@pytest.mark.parametrize("t_sec", [40, 100])
@pytest.mark.parametrize("kind", ["member", "nonmember"])
def test_secmi_is_that_of_the_official_code(t_sec, kind, golden, tiny_sd):
    meta, results, extra = golden("secmi/scores")
    alphas = (1 - torch.linspace(meta["beta_1"], meta["beta_T"], meta["T"], dtype=torch.float64)).cumprod(0)
    x = 2 * extra[kind] - 1
    embeds = tiny_sd.encode([meta["prompt"]]).expand(len(x), -1, -1)
    with torch.no_grad():
        ours = secmi(
            lambda latents, t: tiny_sd.predict(latents, t, embeds), x, alphas, t_sec, dict(meta["cases"])[t_sec]
        )
    assert ours.numpy() == pytest.approx(results[f"secmi.{t_sec}.{kind}"].numpy(), rel=1e-5)


def test_step_errors_start_at_the_image_itself():
    errors = step_errors(toy, X, ALPHAS, 2)
    up = ddim(toy, X, ALPHAS, 0, 10)
    assert errors[0].numpy() == pytest.approx((ddim(toy, up, ALPHAS, 10, 0) - X).square().flatten(1).sum(1).numpy())
    assert errors.shape == (2, 5)


def test_pian_scales_the_first_prediction_to_normal_noise():
    first = toy(X, 0)
    scaled = first / first.abs().mean(dim=(1, 2, 3), keepdim=True) * math.sqrt(2 / math.pi)
    assert scaled.abs().mean().item() == pytest.approx(math.sqrt(2 / math.pi))
    noised = ALPHAS[200].sqrt() * X + (1 - ALPHAS[200]).sqrt() * scaled
    expected = (scaled - toy(noised, 200)).abs().pow(4).flatten(1).sum(1)
    assert pia(toy, X, ALPHAS, [200], normalised=True)[0].numpy() == pytest.approx(expected.numpy(), rel=1e-12)
    assert pia(toy, X, ALPHAS, [200])[0].numpy() != pytest.approx(expected.numpy(), rel=1e-3)


def test_half_precision_sums_are_not_lost():
    low = secmi(toy, X.float(), ALPHAS)
    assert low.dtype == torch.float64
    assert low.numpy() == pytest.approx(secmi(toy, X, ALPHAS).numpy(), rel=0.2)
    assert np.isfinite(low.numpy()).all()
