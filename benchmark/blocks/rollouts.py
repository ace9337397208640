"""Partly denoised latents: where on the way from noise to image a student is trained, and at which timestep.

The intended roll-out gives x_t whose noise level is exactly that of t. Official codes differ, and ``official`` functions
reproduce them, gaps included; the number of steps S and k are theirs.
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
    """k of S scheduler steps from unit noise, scaled as the network reads them; t is the timestep of their noise level."""
    schedule = model.scheduler(scheduler)
    schedule.set_timesteps(steps)
    with torch.no_grad():
        latents = model.denoise(start, guidance, scheduler, steps, stop=k)
    return schedule.scale_model_input(latents, schedule.timesteps[k]), int(schedule.timesteps[k])


def compvis_rollout(
    model: DiffusionModel, start: torch.Tensor, guidance: Guidance, steps: int, k: int, draws: Draws
) -> Noised:
    """The DDIM loop of CompVis's sampler as ESD (2023), Receler and AdvUnlearn call it: k counts *remaining* steps.

    The grid is 1 + c·i with c = ⌊T/S⌋, its top entry dropped; the loop runs down to i = k − 1 (i = 0 for k = 0), so
    x has level c·(k − 2) + 1 while t is drawn from [c·k, c·(k + 1)): x is cleaner than t says, and k = 0 and 1 are images.
    A velocity is turned into the noise it stands for, where the official loop, made for networks that predict noise, has
    no such step.
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
    """The DDIM loop of LECO, whose descendants are SPM, Concept Sliders and ACE: a grid c·i, c = ⌊T/S⌋, without offset.

    After k steps x has level c·(S − 1 − k) while t = T − 1 − ⌊k·T/S⌋: x is cleaner than t says (by 42 to 33 at S = 30).
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
    """From level ᾱ to ᾱ_prev along the predicted noise (η = 0)."""
    image = (latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()
    return alpha_previous.sqrt() * image + (1 - alpha_previous).sqrt() * noise
