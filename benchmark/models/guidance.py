"""How a prediction is composed from the network's outputs. Sampler guards replace this composition."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

from overpaint.errors import UserError
from overpaint.models.lazily import torch

if TYPE_CHECKING:
    from overpaint.models.diffusion import DiffusionModel


class Guidance:
    """Classifier-free guidance, e(∅) + w (e(p) − e(∅)). At w ≤ 1 only the prompt is evaluated.

    Each batch of images gets an object of its own, so that a guard can keep state in it. Attacks read
    ``model.guidance.guard`` to adapt to the `Guard` that is attached; plain guidance has none.

    Args:
        model: The model whose network predicts.
        positive, negative: Text encodings (batch, rows, columns) of the prompts and of what to steer away from.
        scale: The guidance scale w.
        prompts: The texts of ``positive``; ``None`` for learned embeddings, which have none.
    """

    guard: ClassVar[Guard | None] = None

    def __init__(
        self,
        model: DiffusionModel,
        positive: torch.Tensor,
        negative: torch.Tensor,
        scale: float,
        prompts: Sequence[str] | None = None,
    ):
        self.model, self.scale, self.prompts = model, scale, prompts
        self.positive, self.negative = positive, negative

    def __call__(self, latents: torch.Tensor, timestep, step: float) -> torch.Tensor:
        """The composed prediction (b, c, h, w) for latents (b, c, h, w) at a time, which is number ``step`` of the sampler.

        Guards reset their state at step 0. An attack without a sampler passes any other number.
        """
        if self.scale <= 1:
            return self.model.predict(latents, timestep, self.positive)
        both = torch.cat([self.negative, self.positive])
        unconditional, conditional = self.model.predict(torch.cat([latents] * 2), timestep, both).chunk(2)
        return unconditional + self.scale * (conditional - unconditional)


def sampler_step(model: DiffusionModel, timesteps: torch.Tensor, steps: int) -> int:
    """The number of the step at which a sampler with ``steps`` steps reaches the first of these timesteps (n,), from 0."""
    return int((1 - float(timesteps[0]) / model.train_timesteps) * steps)


class GuidanceMaker(Protocol):
    """Makes the guidance of each batch of images: `Guidance` itself, or a `Guard`. Arguments are those of `Guidance`."""

    @property
    def guard(self) -> Guard | None: ...

    def __call__(
        self,
        model: DiffusionModel,
        positive: torch.Tensor,
        negative: torch.Tensor,
        scale: float,
        prompts: Sequence[str] | None = None,
    ) -> Guidance: ...


@dataclass(frozen=True)
class Guard(ABC):
    """Makes the guarded `Guidance` of each batch of images. It replaces ``model.guidance`` while its erasure is
    attached.

    Attacks adapt to the properties of a guard, never to the name of its method.
    """

    #: The method whose erasures it comes from, for messages.
    method: ClassVar[str] = ""
    #: The field, a text or a list, whose values are joined when the guard is put on another one of its class (`on`).
    joins: ClassVar[str] = ""
    #: Whether a prediction depends on earlier predictions for the same images, through a momentum for example.
    stateful: ClassVar[bool] = False

    @property
    def guard(self) -> Guard:
        return self

    @abstractmethod
    def __call__(
        self,
        model: DiffusionModel,
        positive: torch.Tensor,
        negative: torch.Tensor,
        scale: float,
        prompts: Sequence[str] | None = None,
    ) -> Guidance:
        """The guidance of one batch of images; arguments as in `Guidance`."""

    def on(self, guidance: GuidanceMaker) -> Self:
        """This guard for a model that has ``guidance``: merged with a guard of its class that differs only in the field `joins`.

        Raises:
            UserError: the model has another guard, or one with other settings.
        """
        if guidance is Guidance:
            return self
        said = f"method={self.method} can be combined only with another {self.method} guard"
        if type(guidance) is not type(self):
            raise UserError(said)
        own, other = getattr(self, self.joins), getattr(guidance, self.joins)
        settings = (f.name for f in fields(self) if f.name != self.joins)
        apart = [name for name in settings if getattr(self, name) != getattr(guidance, name)]
        if apart:
            raise UserError(f"{said} with the same settings (different: {', '.join(apart)})")
        return replace(self, **{self.joins: f"{other}, {own}" if isinstance(own, str) else [*other, *own]})

    def without_empty_prompt(self, model: DiffusionModel, scale: float) -> Callable[..., torch.Tensor] | None:
        """The guarded prediction with e(∅) left out of every term, or ``None`` if this guard has no such form.

        Prompting4Debugging searches through it. The returned function takes ``latents`` (1, c, h, w), ``timesteps``
        (1,), the prompt's ``embeds`` (1, tokens, width) and the step of the search; it keeps the guard's state between
        calls.
        """
        return None
