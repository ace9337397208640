"""Negative prompt: guidance steers away from an unwanted text. Weights do not change.

The oldest baseline, available in every diffusion user interface. p is the prompt, n the unwanted text, w the guidance
scale, and e the network's prediction (batch, c, h, w):

    replace:     e(n) + w (e(p) − e(n))                       n replaces the empty prompt
    composable:  e(∅) + w (e(p) − e(∅)) − w_n (e(n) − e(∅))   compositional negation: Liu et al., ECCV 2022,
                                                              arXiv 2206.01714; as a guard: TraSCE, arXiv 2412.07658

``replace`` has no effect on prompts equal to n (it gives e(p) at any w) and without guidance (w ≤ 1). Combined with another
negative prompt of the same form and weight, n is both texts, joined by a comma.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Literal

from overpaint.errors import UserError
from overpaint.grid.concepts import Request
from overpaint.grid.typed import construct
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.guidance import Guard, Guidance
from overpaint.models.lazily import torch


@dataclass(kw_only=True)
class NegativePrompt(Eraser):
    """Hyper-parameters; ``weight`` is w_n and ``text`` is n (``None``: the names of the concepts, joined by commas)."""

    form: Literal["replace", "composable"]
    weight: float
    text: str | None

    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    acts_on: ClassVar[str] = "conditioning"
    draws: ClassVar[bool] = False
    stacks: ClassVar[bool] = True

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        text = ", ".join(c.name for c in request.erase) if self.text is None else self.text
        guard = NegativePromptGuard(text=text, form=self.form, weight=self.weight)
        model.padded_ids([guard.on(model.guidance).text])  # raises now, not during sampling, if the text is too long
        return Erasure("negative_prompt", "guard", settings=asdict(guard))

    @classmethod
    def install(cls, model: DiffusionModel, erasure: Erasure) -> Callable[[], None]:
        plain = model.guidance
        model.guidance = construct(NegativePromptGuard, erasure.settings, "this erasure's settings").on(plain)

        def remove() -> None:
            model.guidance = plain

        return remove


@dataclass(frozen=True)
class NegativePromptGuard(Guard):
    """Creates the `Guidance` of each batch of images."""

    text: str
    form: Literal["replace", "composable"]
    weight: float

    def on(self, guidance) -> NegativePromptGuard:
        """This guard for a model that has ``guidance``: merged with a negative prompt of the same form and weight.

        Raises:
            UserError: the model has another kind of guard, or a negative prompt with another form or weight.
        """
        if guidance is Guidance:
            return self
        if not isinstance(guidance, NegativePromptGuard) or replace(guidance, text=self.text) != self:
            raise UserError(
                "method=negative_prompt can be combined only with another negative prompt of the same form and weight"
            )
        return replace(self, text=f"{guidance.text}, {self.text}")

    def __call__(self, model: DiffusionModel, positive, negative, scale: float, prompts=None) -> Guidance:
        with torch.no_grad():
            unwanted = model.unconditional(self.text).expand_as(positive)
        if self.form == "replace":
            return Guidance(model, positive, unwanted, scale)
        return Composable(model, positive, negative, scale, unwanted, self.weight)


class Composable(Guidance):
    """Guidance towards the prompt and away from the unwanted text, both relative to the empty prompt."""

    def __init__(self, model, positive, negative, scale, unwanted, weight):
        super().__init__(model, positive, negative, scale)
        self.unwanted, self.weight = unwanted, weight

    def __call__(self, latents: torch.Tensor, timestep, step: float) -> torch.Tensor:
        embeds = torch.cat([self.negative, self.positive, self.unwanted])
        nothing, wanted, unwanted = self.model.predict(torch.cat([latents] * 3), timestep, embeds).chunk(3)
        return nothing + self.scale * (wanted - nothing) - self.weight * (unwanted - nothing)
