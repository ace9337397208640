"""Membership scores: numbers that are smaller for images that a diffusion model was trained on.

With a network e(x, t) that predicts the noise in x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε, and latents x_0 (n, c, h, w)::

    loss     mean_t ‖ε − e(x_t, t)‖² / D                       the training loss, at fixed timesteps and fixed noise
    SecMI    ‖x_s − up-and-down(x_s)‖²                         Duan et al., arXiv 2302.01316; x_s by deterministic DDIM from x_0
    PIA      Σ |e_0 − e(√ᾱ_t x_0 + √(1−ᾱ_t) e_0, t)|^p         Kong et al., arXiv 2305.18355; e_0 = e(x_0, 0)
    PIAN     the same with e_0 √(2/π) / mean |e_0|             e_0 scaled as if it were standard normal noise

SecMI's step from t to s is x̂_0 = (x_t − √(1−ᾱ_t) e) / √ᾱ_t, x_s = √ᾱ_s x̂_0 + √(1−ᾱ_s) e. With ``t_sec`` 100 and
steps of 10 its code ends at s = 90, then goes up to 100 and down to 90. PIA's repository has another score of that
name (`step_errors`). PIA's script for Stable Diffusion builds a linear noise schedule; here ᾱ is the model's own. All
sums are over the D values of an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

from overpaint.models.lazily import torch

#: A noise prediction (n, c, h, w) for latents (n, c, h, w) at one timestep.
Noise: TypeAlias = "Callable[[torch.Tensor, int], torch.Tensor]"


def denoising_losses(
    noise_of: Noise, x0: torch.Tensor, alphas: torch.Tensor, noise: torch.Tensor, timesteps: Sequence[int]
) -> torch.Tensor:
    """Mean squared errors (n,) of the predicted noise, averaged over timesteps; ``noise`` is (timesteps, n, c, h, w)."""
    losses = []
    for own, t in zip(noise, timesteps, strict=True):
        said = noise_of(_noised(x0, own, alphas, t), t)
        losses.append((own - said).double().flatten(1).square().mean(dim=1))
    return torch.stack(losses).mean(dim=0)


def secmi(noise_of: Noise, x0: torch.Tensor, alphas: torch.Tensor, t_sec: int = 100, step: int = 10) -> torch.Tensor:
    """SecMI's statistic (n,): the squared error of going one step up and one down at the last step before ``t_sec``."""
    steps = list(range(0, t_sec, step))
    found = x0
    for before, after in pairwise(steps):
        found = ddim(noise_of, found, alphas, before, after)
    last = steps[-1]
    again = ddim(noise_of, ddim(noise_of, found, alphas, last, last + step), alphas, last + step, last)
    return (again - found).double().flatten(1).square().sum(dim=1)


def step_errors(
    noise_of: Noise, x0: torch.Tensor, alphas: torch.Tensor, count: int, step: int = 10, p: float = 2
) -> torch.Tensor:
    """Errors (count, n) that PIA's repository calls SecMI: |x_{t−step} − one step down from x_t|^p, for t = step, 2 step, …

    x_t is one deterministic step up from x_{t−step}, and x_0 are the latents themselves.
    """
    found, errors = x0, []
    for number in range(count):
        before, after = number * step, (number + 1) * step
        above = ddim(noise_of, found, alphas, before, after)
        again = ddim(noise_of, above, alphas, after, before)
        errors.append((again - found).abs().double().pow(p).flatten(1).sum(dim=1))
        found = above
    return torch.stack(errors)


def pia(
    noise_of: Noise,
    x0: torch.Tensor,
    alphas: torch.Tensor,
    timesteps: Sequence[int],
    p: float = 4,
    normalised: bool = False,
) -> torch.Tensor:
    """PIA's scores (timesteps, n), or PIAN's if ``normalised``."""
    first = noise_of(x0, 0)
    if normalised:
        size = first.abs().mean(dim=tuple(range(1, first.ndim)), keepdim=True)
        first = first / size * math.sqrt(2 / math.pi)
    errors = [first - noise_of(_noised(x0, first, alphas, t), t) for t in timesteps]
    return torch.stack([error.abs().double().pow(p).flatten(1).sum(dim=1) for error in errors])


def ddim(noise_of: Noise, x: torch.Tensor, alphas: torch.Tensor, t: int, target: int) -> torch.Tensor:
    """Latents at timestep ``target`` from latents at ``t``, by one deterministic step in either direction."""
    here, there = alphas[t].to(x), alphas[target].to(x)
    said = noise_of(x, t)
    clean = (x - (1 - here).sqrt() * said) / here.sqrt()
    return there.sqrt() * clean + (1 - there).sqrt() * said


def _noised(x0: torch.Tensor, noise: torch.Tensor, alphas: torch.Tensor, t: int) -> torch.Tensor:
    alpha = alphas[t].to(x0)
    return alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise
