"""SLD: during sampling, the prediction is steered away from an unwanted text where the prompt comes close to it.

Schramowski, Brack, Deiseroth and Kersting, "Safe Latent Diffusion: Mitigating Inappropriate Degeneration in Diffusion
Models", CVPR 2023, arXiv 2211.05105. Weights do not change. e_∅, e_p and e_S (batch, c, h, w) are the network's outputs
for the empty (or negative) prompt, the prompt, and the unwanted text S. At step i, with ν_0 = 0 and all operations
elementwise:

    μ       = min(1, s_S |e_p − e_S|)  where e_p − e_S < λ, else 0
    γ       = μ (e_S − e_∅) + s_m ν_i
    ν_{i+1} = β_m ν_i + (1 − β_m) γ                                  also during the warm-up
    e       = e_∅ + w (e_p − e_∅ − γ)                                without γ for i < δ

The threshold λ is signed, and the guidance scale w also multiplies γ. The warm-up δ counts calls of the network; PNDM makes
one more than its steps. The two official codes (``compat``) differ in when the guard is off: at s_S ≤ 1 (``diffusers``)
or at s_S < 1 (``original``). Both are off without guidance (w ≤ 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Request
from overpaint.grid.typed import construct
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.guidance import Guard, Guidance
from overpaint.models.lazily import torch


@dataclass(kw_only=True)
class SLD(Eraser):
    """Hyper-parameters of SLD; ``conf/method/sld.yaml`` explains each."""

    compat: Literal["diffusers", "original"]
    text: str | None
    unsafe_text: str | None
    warmup_steps: int
    safety_scale: float
    threshold: float
    momentum_scale: float
    momentum_beta: float

    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    acts_on: ClassVar[str] = "conditioning"
    draws: ClassVar[bool] = False
    stacks: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False

    def __post_init__(self):
        at_least(0, warmup_steps=self.warmup_steps, safety_scale=self.safety_scale, momentum_scale=self.momentum_scale)
        if not 0 <= self.momentum_beta <= 1:
            raise UserError(f"momentum_beta takes a number from 0 to 1, got {self.momentum_beta!r}")

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        guard = SafetyGuard(
            text=self.unwanted(request),
            warmup_steps=self.warmup_steps,
            scale=self.safety_scale,
            threshold=self.threshold,
            momentum_scale=self.momentum_scale,
            momentum_beta=self.momentum_beta,
            active=self.safety_scale > 1 or (self.safety_scale == 1 and self.compat == "original"),
        )
        model.padded_ids([guard.on(model.guidance).text])  # raises now, not during sampling, if the text is too long
        return Erasure("sld", "guard", settings=asdict(guard))

    def unwanted(self, request: Request) -> str:
        """S: ``text`` if given, ``unsafe_text`` if all concepts are unsafe, else the names of the concepts."""
        if self.text is not None:
            return self.text
        if self.unsafe_text is not None and all(c.kind == "unsafe" for c in request.erase):
            return self.unsafe_text
        return ", ".join(c.name for c in request.erase)

    @classmethod
    def install(cls, model: DiffusionModel, erasure: Erasure) -> Callable[[], None]:
        guard = construct(SafetyGuard, erasure.settings, "this erasure's settings")
        return model.guided_by(guard.on(model.guidance))


@dataclass(frozen=True)
class SafetyGuard(Guard):
    """Creates the `Guidance` of each batch of images."""

    text: str
    warmup_steps: int
    scale: float
    threshold: float
    momentum_scale: float
    momentum_beta: float
    active: bool

    method: ClassVar[str] = "sld"
    joins: ClassVar[str] = "text"
    stateful: ClassVar[bool] = True

    def __call__(self, model: DiffusionModel, positive, negative, scale: float, prompts=None) -> Guidance:
        if not self.active or scale <= 1:
            return Guidance(model, positive, negative, scale, prompts)
        with torch.no_grad():
            unwanted = model.encode([self.text]).expand_as(positive)
        return SafeGuidance(self, unwanted, model, positive, negative, scale, prompts)

    def without_empty_prompt(self, model: DiffusionModel, scale: float) -> SafetyWithoutEmptyPrompt | None:
        return SafetyWithoutEmptyPrompt(self, model, scale) if self.active else None

    def steer(self, nothing: torch.Tensor, wanted: torch.Tensor, unwanted: torch.Tensor, momentum):
        """γ and the next ν, from e_∅, e_p, e_S (batch, c, h, w) and ν."""
        towards = wanted - unwanted
        mu = torch.where(towards < self.threshold, (towards.abs() * self.scale).clamp(max=1.0), 0.0)
        gamma = mu * (unwanted - nothing) + self.momentum_scale * momentum
        return gamma, self.momentum_beta * momentum + (1 - self.momentum_beta) * gamma


class SafeGuidance(Guidance):
    """Guidance towards the prompt and away from the unwanted text, with the momentum ν of a batch of images."""

    def __init__(self, settings: SafetyGuard, unwanted: torch.Tensor, *guidance):
        super().__init__(*guidance)
        self.settings, self.unwanted = settings, unwanted
        self.momentum: torch.Tensor | float = 0.0

    def __call__(self, latents: torch.Tensor, timestep, step: float) -> torch.Tensor:
        if step == 0:
            self.momentum = 0.0  # a new batch of images
        embeds = torch.cat([self.negative, self.positive, self.unwanted])
        nothing, wanted, unwanted = self.model.predict(torch.cat([latents] * 3), timestep, embeds).chunk(3)
        gamma, self.momentum = self.settings.steer(nothing, wanted, unwanted, self.momentum)
        direction = wanted - nothing
        if step >= self.settings.warmup_steps:
            direction = direction - gamma
        return nothing + self.scale * direction


class SafetyWithoutEmptyPrompt:
    """w (e_p − γ) with γ = μ e_S + s_m ν; keeps ν from call to call (see `Guard.without_empty_prompt`)."""

    def __init__(self, settings: SafetyGuard, model: DiffusionModel, scale: float):
        self.settings, self.model, self.scale = settings, model, scale
        with torch.no_grad():
            self.unwanted = model.encode([settings.text])
        self.momentum: torch.Tensor | float = 0.0

    def __call__(self, latents: torch.Tensor, timesteps: torch.Tensor, embeds: torch.Tensor, step: int) -> torch.Tensor:
        both = torch.cat([embeds, self.unwanted])
        wanted, unwanted = self.model.predict(torch.cat([latents] * 2), timesteps, both).chunk(2)
        gamma, momentum = self.settings.steer(torch.zeros_like(wanted), wanted, unwanted, self.momentum)
        self.momentum = momentum.detach()
        return self.scale * (wanted - gamma if step >= self.settings.warmup_steps else wanted)
