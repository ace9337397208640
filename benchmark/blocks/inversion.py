"""Inversion of deterministic DDIM by repeated prediction (ReNoise), with predictions that are made more like noise.

A step of DDIM takes x_t to x_s, s the next lower level. Read in reverse, x_t solves x_t = step⁻¹(x_s, e(x_t, t)). ReNoise
(Garibi et al., ECCV 2024, arXiv 2403.14602) iterates: e at the last x_t gives the next x_t. Some predictions and their
mean are regularised before use, so that they resemble noise (pix2pix-zero, arXiv 2302.03027):

    e ← e − 0.065 clamp(∂K, ±100)      K = Σ |ln s*²/s² + (s² + (m − m*)²)/s*² − 1|
    e ← e − 20/5 ∂A, five times        A = Σ mean(e · e rolled down)² + mean(e · e rolled sideways)²

m and s² are mean and variance of 4 × 4 patches of a channel. Those with a star belong to a prediction ``like`` for x_0. A
runs over channels and their halvings down to a side of 8, with new rolls each time that are the same for all images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from overpaint.blocks.draws import Draws
from overpaint.models.lazily import functional, torch


@dataclass(frozen=True)
class Regularisation:
    """How often a prediction is regularised, the step sizes by K and by A, and the number of steps by A each time."""

    times: int
    patches: float = 0.065
    rolled: float = 20.0
    rolls: int = 5

    def __call__(self, prediction: torch.Tensor, like: torch.Tensor, draws: Draws) -> torch.Tensor:
        """The prediction (n, c, h, w) regularised towards noise and the patches of ``like``."""
        e = prediction
        for _ in range(self.times):
            if self.patches:
                e = e - self.patches * slope(lambda e: patch_divergence(e, like), e).clamp(-100, 100)
            for _ in range(self.rolls):
                e = e - self.rolled / self.rolls * slope(lambda e: autocorrelation(e, draws), e)
        return e


def renoised(
    latents: torch.Tensor,
    predict: Callable[[torch.Tensor], torch.Tensor],
    step: Callable[[torch.Tensor], torch.Tensor],
    *,
    passes: int,
    averaged: range = range(0),
    regularise: Callable[[torch.Tensor], torch.Tensor] | None = None,
    regularise_from: int = 0,
) -> torch.Tensor:
    """Latents x_t (n, c, h, w) of the next higher level, after ``passes`` predictions.

    Args:
        latents: x_s, where the iteration starts.
        predict: e(x, t) for latents x.
        step: x_t for a prediction.
        averaged: the passes whose mean prediction gives the result; if there are none, the last prediction does.
        regularise: applied to predictions from pass ``regularise_from`` on, and to the mean.
    """
    found, predictions = latents, []
    for number in range(passes):
        predictions.append(predict(found))
        e = predictions[-1]
        found = step(regularise(e) if regularise and number >= regularise_from else e)
    chosen = [predictions[number] for number in averaged if number < passes]
    if not chosen:
        return found
    mean = torch.stack(chosen).mean(dim=0)
    return step(regularise(mean) if regularise else mean)


def slope(loss: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> torch.Tensor:
    """The gradient of a scalar loss with respect to a tensor, at ``at``."""
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        return torch.autograd.grad(loss(at), at)[0]


def patch_divergence(e: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """K (), summed over images, for predictions (n, c, h, w)."""
    (var, mean), (wanted_var, wanted_mean) = (
        torch.var_mean(x.unfold(2, 4, 4).unfold(3, 4, 4), dim=(-2, -1)) for x in (e, like)
    )
    var_ratio = ((wanted_var + 1e-6) / (var + 1e-6)).log()
    return (var_ratio + (var + (mean - wanted_mean) ** 2) / (wanted_var + 1e-6) - 1).abs().sum()


def autocorrelation(e: torch.Tensor, draws: Draws) -> torch.Tensor:
    """A (), summed over images. Each channel and halving has one random roll, from 0 to half its height."""
    total = e.new_zeros(())
    for channel in e.split(1, dim=1):
        while True:
            shift = draws.integer("roll", 0, channel.shape[2] // 2)
            for side in (2, 3):
                total = total + (channel * channel.roll(shift, dims=side)).mean(dim=(1, 2, 3)).square().sum()
            if channel.shape[2] <= 8:
                break
            channel = functional.avg_pool2d(channel, 2)
    return total
