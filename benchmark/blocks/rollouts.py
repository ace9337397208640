"""Partly denoised latents x_t and their timesteps t, on which methods train.

With `rollout`, the noise level of x_t is exactly that of t. Official code often pairs x_t with another t;
`compvis_rollout` and `leco_rollout` reproduce two such loops. S is the number of steps, k the number of steps taken.
"""

from __future__ import annotations

import torch

from overpaint.blocks.draws import Draws
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.guidance import Guidance

Noised = tuple[torch.Tensor, int]


def rollout(
    model: DiffusionModel, start: torch.Tensor, guidance: Guidance, scheduler: str, steps: int, k: int
) -> Noised:
    """Take k of S scheduler steps from unit noise ``start`` (b, c, h, w).

    Returns x_t (b, c, h, w), scaled as the network's input, and the timestep t of its noise level.
    """
    schedule = model.scheduler(scheduler)
    schedule.set_timesteps(steps)
    with torch.no_grad():
        latents = model.denoise(start, guidance, scheduler, steps, stop=k)
    return schedule.scale_model_input(latents, schedule.timesteps[k]), int(schedule.timesteps[k])


def compvis_rollout(
    model: DiffusionModel, start: torch.Tensor, guidance: Guidance, steps: int, k: int, draws: Draws
) -> Noised:
    """The DDIM loop of CompVis's sampler as ESD (2023), Receler and AdvUnlearn call it; k counts the *remaining* steps.

    The grid is 1 + c·i with c = ⌊T/S⌋, without its last entry. The loop runs down to i = k − 1 (i = 0 for k = 0), so
    the level of x is c·(k − 2) + 1, while t is drawn from [c·k, c·(k + 1)): x is cleaner than t indicates, and for
    k = 0 and k = 1 it is an image. For networks that predict velocity, the prediction is first converted to noise; the
    official loop supports noise prediction only.
    """
    alphas = model.alphas_cumprod.to(start.device, torch.promote_types(start.dtype, torch.float32))
    total = len(alphas)
    grid = list(range(1, total + 1, total // steps))[:-1]
    previous = [0, *grid[:-1]]
    latents = start
    with torch.no_grad():
        for i in reversed(range(max(k - 1, 0), len(grid))):
            predicted = guidance(latents, torch.tensor(grid[i], device=start.device), len(grid) - 1 - i)
            noise = predicted_noise(model, predicted, latents, alphas[grid[i]])
            latents = ddim_step(latents, noise, alphas[grid[i]], alphas[previous[i]])
    low, high = round(k / steps * total), round((k + 1) / steps * total)
    return latents, draws.integer("t", low, high)


def leco_rollout(model: DiffusionModel, start: torch.Tensor, guidance: Guidance, steps: int, k: int) -> Noised:
    """The DDIM loop of LECO, from which SPM, Concept Sliders and ACE derive: the grid c·i, c = ⌊T/S⌋, without offset.

    After k steps the level of x is c·(S − 1 − k), while t = T − 1 − ⌊k·T/S⌋: x is cleaner than t indicates (by 42 to 33
    timesteps at S = 30).
    """
    plain = model.scheduler("ddim")
    schedule = type(plain).from_config(plain.config, steps_offset=0, timestep_spacing="leading")
    schedule.set_timesteps(steps, device=start.device)
    latents, total = start, len(model.alphas_cumprod)
    with torch.no_grad():
        for step, level in enumerate(schedule.timesteps[:k]):
            latents = schedule.step(guidance(latents, level, step), level, latents, return_dict=False)[0]
    return latents, total - 1 - total * k // steps


def predicted_noise(model: DiffusionModel, predicted: torch.Tensor, latents: torch.Tensor, alpha: torch.Tensor):
    """ε that the network's output (b, c, h, w) stands for at level ᾱ: itself, or √ᾱ v + √(1−ᾱ) x of a velocity v."""
    if model.pipeline.scheduler.config.prediction_type != "v_prediction":
        return predicted
    return alpha.sqrt() * predicted + (1 - alpha).sqrt() * latents


def ddim_step(latents: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor, alpha_previous: torch.Tensor):
    """One deterministic DDIM step (η = 0) from level ᾱ to ᾱ_prev with the predicted noise."""
    image = (latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()
    return alpha_previous.sqrt() * image + (1 - alpha_previous).sqrt() * noise
