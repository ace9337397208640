"""Negative prompt: the sampler is told what to move away from; no weight changes.

The oldest baseline, in every diffusion user interface. With p the prompt, n the text of what is unwanted, w the guidance
scale and e the network's prediction:

    replace:     e(n) + w (e(p) − e(n))                       n takes the place of the empty prompt
    composable:  e(∅) + w (e(p) − e(∅)) − w_n (e(n) − e(∅))   compositional negation: Liu et al., ECCV 2022,
                                                              arXiv 2206.01714; as a guard: TraSCE, arXiv 2412.07658

``replace`` degenerates where p says no more than n: at n = p it is e(p), at any w. Without guidance (w ≤ 1) ``replace``
does nothing. On top of another negative prompt of the same form and weight, n is both texts, joined by a comma.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from overpaint.errors import UserError
from overpaint.grid.concepts import Request
from overpaint.grid.registry import construct
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.guidance import Guard, Guidance


@dataclass(kw_only=True)
class NegativePrompt(Eraser):
    """``form`` as above, ``weight`` is w_n, ``text`` is n (``None``: the erased concepts, joined by commas)."""

    form: Literal["replace", "composable"]
    weight: float
    text: str | None

    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    acts_on: ClassVar[str] = "conditioning"
    stacks: ClassVar[bool] = True

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        text = ", ".join(c.name for c in request.erase) if self.text is None else self.text
        settings = {"text": text, "form": self.form, "weight": self.weight}
        guard = NegativePromptGuard(**settings).on(model.guidance)
        model.padded_ids([guard.text])  # a text that does not fit is told now, not while sampling
        return Erasure("negative_prompt", "guard", settings=settings)

    @classmethod
    def install(cls, model: DiffusionModel, erasure: Erasure) -> Callable[[], None]:
        plain = model.guidance
        model.guidance = construct(NegativePromptGuard, erasure.settings, "this erasure's settings").on(plain)

        def remove() -> None:
            model.guidance = plain

        return remove


@dataclass(frozen=True)
class NegativePromptGuard(Guard):
    """Makes the `Guidance` of each batch of images."""

    text: str
    form: Literal["replace", "composable"]
    weight: float

    def on(self, guidance) -> NegativePromptGuard:
        """This guard for a model with that guidance: one guard with both texts, if it is another of its own sort."""
        if guidance is Guidance:
            return self
        if not isinstance(guidance, NegativePromptGuard) or replace(guidance, text=self.text) != self:
            raise UserError(
                "a negative prompt goes on top of another of the same form and weight, not on another guard"
            )
        return replace(self, text=f"{guidance.text}, {self.text}")

    def __call__(self, model: DiffusionModel, positive, negative, scale: float, prompts=None) -> Guidance:
        with torch.no_grad():
            unwanted = model.unconditional(self.text).expand_as(positive)
        if self.form == "replace":
            return Guidance(model, positive, unwanted, scale)
        return Composable(model, positive, negative, scale, unwanted, self.weight)


class Composable(Guidance):
    """Guidance towards the prompt and away from the unwanted text, each against the empty prompt."""

    def __init__(self, model, positive, negative, scale, unwanted, weight):
        super().__init__(model, positive, negative, scale)
        self.unwanted, self.weight = unwanted, weight

    def __call__(self, latents: torch.Tensor, timestep, step: int) -> torch.Tensor:
        embeds = torch.cat([self.negative, self.positive, self.unwanted])
        nothing, wanted, unwanted = self.model.predict(torch.cat([latents] * 3), timestep, embeds).chunk(3)
        return nothing + self.scale * (wanted - nothing) - self.weight * (unwanted - nothing)
