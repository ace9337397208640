"""Partly denoised latents x_t and their timesteps t, on which methods train.

With `rollout`, the noise level of x_t is exactly that of t. Official code often pairs x_t with another t;
`compvis_rollout` and `leco_rollout` reproduce two such loops. S is the number of steps, k the number of steps taken.
"""

from __future__ import annotations

from typing import TypeAlias

from overpaint.blocks.draws import Draws
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.guidance import Guidance
from overpaint.models.lazily import torch

#: Latents (b, c, h, w) as the network reads them, and their time in the model's schedule.
Noised: TypeAlias = "tuple[torch.Tensor, float]"


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
    return schedule.scale_model_input(latents, schedule.timesteps[k]), schedule.timesteps[k].item()


def compvis_rollout(
    model: DiffusionModel, start: torch.Tensor, guidance: Guidance, steps: int, k: int, draws: Draws
) -> Noised:
    """The DDIM loop of CompVis's sampler as ESD (2023), Receler and AdvUnlearn call it; k counts the *remaining* steps.

    The grid is 1 + c·i with c = ⌊T/S⌋, without its last entry. The loop runs down to i = k − 1 (i = 0 for k = 0), so
    the level of x is c·(k − 2) + 1, while t is drawn from [c·k, c·(k + 1)): x is cleaner than t indicates, and for
    k = 0 and k = 1 it is an image. For networks that predict velocity, the prediction is first converted to noise; the
    official loop supports noise prediction only.
    """
    total = model.train_timesteps
    grid = list(range(1, total + 1, total // steps))[:-1]
    previous = [0, *grid[:-1]]
    latents = start
    with torch.no_grad():
        for i in reversed(range(max(k - 1, 0), len(grid))):
            predicted = guidance(latents, torch.tensor(grid[i], device=start.device), len(grid) - 1 - i)
            latents = ddim_step(model, latents, predicted, grid[i], previous[i])
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
    latents, total = start, model.train_timesteps
    with torch.no_grad():
        for step, level in enumerate(schedule.timesteps[:k]):
            latents = schedule.step(guidance(latents, level, step), level, latents, return_dict=False)[0]
    return latents, total - 1 - total * k // steps


def ddim_step(model: DiffusionModel, latents: torch.Tensor, output: torch.Tensor, t: int, previous: int):
    """One deterministic DDIM step (η = 0) from the level of t to that of ``previous``, with the network's output at t."""
    noise = model.noise_of(output, latents, t)
    (signal, deviation), (signal_previous, deviation_previous) = (model.levels(each, latents) for each in (t, previous))
    return signal_previous * ((latents - deviation * noise) / signal) + deviation_previous * noise
