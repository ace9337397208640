"""The noise levels of a model, and the conversions between what its network predicts, the noise and the clean latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, TypeAlias

from overpaint.errors import UserError, unknown
from overpaint.models.lazily import torch

#: Settings of the family's published configurations, for pipelines whose scheduler file leaves them out.
SCHEDULER_OPTIONS = {"ddim": {"clip_sample": False}, "pndm": {"skip_prk_steps": True}}
#: What networks predict: the noise ε, or the velocity √ᾱ ε − √(1−ᾱ) x_0.
PREDICTIONS = ("epsilon", "v_prediction")
#: One time for all rows of a batch, or times (b,) of its rows; whole numbers or not.
Times: TypeAlias = "float | torch.Tensor"


class NoiseSchedule(ABC):
    """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε, with the ᾱ of a pipeline's scheduler. Latents are (b, c, h, w).

    Times are numbers of the model's own schedule, whole or not.
    """

    def __init__(self, pipeline: Any):
        prediction = pipeline.scheduler.config.prediction_type
        if prediction not in PREDICTIONS:
            raise unknown("prediction_type", prediction, PREDICTIONS, "the model's scheduler")
        self.pipeline = pipeline

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the network."""

    def check_schedule(self) -> None:
        """Raise a `UserError` if the noise does not grow from step to step."""
        schedule = self.scheduler("ddim")
        betas, alphas = schedule.betas, schedule.alphas_cumprod
        rising = bool(((betas >= 0) & (betas <= 1)).all()) and bool(alphas[-1] < alphas[0])
        if not rising or len(betas) != schedule.config.num_train_timesteps:
            raise UserError("the scheduler's betas give no noise that grows from step to step")

    @property
    def train_timesteps(self) -> int:
        """T, the number of timesteps that the model was trained with; times run from 0 up to T."""
        return len(self._alphas)

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """ᾱ_t for t = 0 … T−1, float32."""
        return self._alphas

    @cached_property
    def _alphas(self) -> torch.Tensor:
        return self.scheduler("ddim").alphas_cumprod.to(self.device)

    def scheduler(self, name: str, steps: int | None = None):
        """A fresh sampler with this model's noise schedule, with the timesteps of ``steps`` steps if given.

        It offers ``set_timesteps(n)``, ``timesteps`` (floats in some families and samplers), ``init_noise_sigma``,
        ``scale_model_input(latents, t)`` and ``step(output, t, latents)``, as diffusers' schedulers do.
        """
        from overpaint.models.schedulers import SCHEDULERS

        if name not in SCHEDULERS:
            raise unknown("scheduler", name, SCHEDULERS)
        schedule = SCHEDULERS[name].from_config(self.pipeline.scheduler.config, **SCHEDULER_OPTIONS.get(name, {}))
        if steps is not None:
            schedule.set_timesteps(steps, device=self.device)
        return schedule

    def inverse_scheduler(self):
        """DDIM read backwards: ``step(noise, t, latents)`` takes latents of the level below t to the level of t.

        It reads the noise that the latents hold (`noise_of`); the network itself may predict something else.
        """
        from overpaint.models.schedulers import DDIMInverseScheduler

        return DDIMInverseScheduler.from_config(self.scheduler("ddim").config, prediction_type="epsilon")

    def stochastic_step(self, schedule, output, t, latents, eta: float, noise: torch.Tensor) -> torch.Tensor:
        """A step of a DDIM ``schedule`` that may add more noise, η σ_t, than the next level holds.

        √|1 − ᾱ − η² σ²| takes the place of √(1 − ᾱ − η² σ²), with ᾱ of the next level. All tensors are (n, c, h, w).
        """
        before = t - schedule.config.num_train_timesteps // schedule.num_inference_steps
        alpha = schedule.alphas_cumprod[t]
        alpha_before = schedule.alphas_cumprod[before] if before >= 0 else schedule.final_alpha_cumprod
        sigma = eta * ((1 - alpha_before) / (1 - alpha) * (1 - alpha / alpha_before)) ** 0.5
        clean, predicted = self.clean_of(output, latents, t), self.noise_of(output, latents, t)
        return alpha_before**0.5 * clean + abs(1 - alpha_before - sigma**2) ** 0.5 * predicted + sigma * noise

    def draw_timesteps(self, count: int, generator: torch.Generator, lowest: int = 0) -> torch.Tensor:
        """Training times (count,), uniform over ``lowest`` … T − 1."""
        return torch.randint(lowest, self.train_timesteps, (count,), generator=generator)

    def levels(self, timesteps: Times, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Signal and deviation of x_t = signal · x_0 + deviation · ε: here √ᾱ_t and √(1−ᾱ_t).

        For one time both are scalars in at least float32. For times (b,) they are (b, 1, 1, 1) in the type of ``like``.
        Roots are taken before they are rounded: in bfloat16 1 − ᾱ is 0 at the lowest timesteps. Between two timesteps
        √((1−ᾱ)/ᾱ) is interpolated linearly, as diffusers' Euler sampler does.
        """
        alpha = self._alpha(timesteps, self._alphas.to(like.device, torch.promote_types(like.dtype, torch.float32)))
        if not alpha.ndim:
            return alpha.sqrt(), (1 - alpha).sqrt()
        alpha = alpha[:, None, None, None]
        return alpha.sqrt().to(like), (1 - alpha).sqrt().to(like)

    @staticmethod
    def _alpha(timesteps: Times, alphas: torch.Tensor) -> torch.Tensor:
        """ᾱ at times, which need not be whole numbers."""
        t = torch.as_tensor(timesteps, device=alphas.device)
        low = t.long()
        if not t.is_floating_point() or bool((t == low).all()):
            return alphas[low]
        sigmas = ((1 - alphas) / alphas).sqrt()
        between = torch.lerp(sigmas[low], sigmas[(low + 1).clamp(max=len(alphas) - 1)], (t - low).to(alphas))
        return 1 / (1 + between**2)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε for latents and noise (b, c, h, w) and timesteps (b,)."""
        signal, deviation = self.levels(timesteps, latents)
        return signal * latents + deviation * noise

    def denoising_target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The network's training target for x_t, from x_0, ε and t: ε, or the velocity √ᾱ ε − √(1−ᾱ) x_0."""
        if self._predicts_noise:
            return noise
        signal, deviation = self.levels(timesteps, latents)
        return signal * noise - deviation * latents

    def noise_of(self, output: torch.Tensor, latents: torch.Tensor, timesteps: Times) -> torch.Tensor:
        """ε (b, c, h, w) that the network's output stands for: the output itself, or √ᾱ v + √(1−ᾱ) x_t."""
        if self._predicts_noise:
            return output
        signal, deviation = self.levels(timesteps, latents)
        return signal * output + deviation * latents

    def clean_of(self, output: torch.Tensor, latents: torch.Tensor, timesteps: Times) -> torch.Tensor:
        """x_0 (b, c, h, w) that the network's output stands for: (x_t − √(1−ᾱ) ε)/√ᾱ, or √ᾱ x_t − √(1−ᾱ) v."""
        signal, deviation = self.levels(timesteps, latents)
        if self._predicts_noise:
            return (latents - deviation * output) / signal
        return signal * latents - deviation * output

    @property
    def _predicts_noise(self) -> bool:
        return self.pipeline.scheduler.config.prediction_type == "epsilon"
