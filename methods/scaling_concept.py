"""ScalingConcept: an image is inverted with a concept as its text and sampled again with the concept's share scaled.

Huang, Liang, Tian, Kumar and Xu, "Scaling Concept With Text-Guided Diffusion Models", arXiv 2410.24151. It edits images:
as an eraser it is a guard behind the model, which takes every image and removes the concept from it. Weights do not change.
x_0 are an image's latents, c the concept's text, b the base text (empty), N the number of DDIM steps. First x_0 is inverted
with c (ReNoise, `overpaint.blocks.inversion`): x*_0 = x_0, …, x*_N. Then from x_N = x*_N, at step i,

    ω_i = max(0, ω (1 − i/(N−1))^γ)                                      with 0⁰ = 1
    e   = e(x, b) + ω_i (e(x, c) − e(x, b)) + [i < exit] ω_i (e(½ x + ½ x*_{N−i}, c) − e(x, c))

There is no other guidance. ω > 1 enlarges the concept, ω = 1 about reproduces the image, ω < 1 shrinks the concept and ω = 0
samples from x*_N without it. The paper enlarges; its defaults are the preset ``enhance``.

Each step of the inversion evaluates the network 1 + ``renoisings`` times (at times below 250 at most 1 +
``first_renoisings`` times), at the time of the level that it goes to. Its predictions are numbered from 0. The mean of
those in the range ``averaged`` (below 250: ``averaged_first``) gives x*; if there are none, or without ``average``, the last
prediction does. Regularised are the mean and the predictions from the start of the range on; without ``average``, all but
the first, and the first too if the range starts at 0. It pulls a prediction towards noise and towards the patches of
e(q(x_0, ε, t), c), with one ε for all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, ClassVar

from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.inversion import Regularisation, renoised
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Request
from overpaint.grid.typed import construct
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.guidance import Guidance
from overpaint.models.lazily import torch

if TYPE_CHECKING:
    from PIL.Image import Image

#: The time below which the inversion follows its own numbers (official).
FIRST = 250
#: Images that are edited side by side.
IMAGES_AT_ONCE = 16


@dataclass(kw_only=True)
class ScalingConcept(Eraser):
    """Hyper-parameters; ``conf/method/scaling_concept.yaml`` explains each."""

    text: str | None
    base: str
    omega: float
    gamma: float
    exit_step: int
    steps: int
    renoisings: int
    first_renoisings: int
    average: bool
    averaged_first: list[int]
    averaged: list[int]
    regularisations: int
    patches: float
    rolled: float
    rolls: int

    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    stacks: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False

    def __post_init__(self):
        at_least(2, steps=self.steps)
        at_least(0, exit_step=self.exit_step, gamma=self.gamma)
        at_least(0, renoisings=self.renoisings, first_renoisings=self.first_renoisings)
        at_least(0, regularisations=self.regularisations, patches=self.patches, rolled=self.rolled, rolls=self.rolls)
        for name in ("averaged_first", "averaged"):
            ends = getattr(self, name)
            if len(ends) != 2 or not 0 <= ends[0] <= ends[1]:
                raise UserError(
                    f"{name} takes the first number and the one after the last, such as [0, 5], got {ends!r}"
                )

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        values = asdict(self)
        values["text"] = ", ".join(c.phrase for c in request.erase) if self.text is None else self.text
        editor = ConceptScaler(**values)
        model.padded_ids([editor.text, editor.base])  # raises now, not during sampling, if a text is too long
        return Erasure("scaling_concept", "guard", settings=asdict(editor))

    @classmethod
    def install(cls, model: DiffusionModel, erasure: Erasure) -> Callable[[], None]:
        editor = construct(ConceptScaler, erasure.settings, "this erasure's settings")
        return model.screened_by(partial(editor.edited, model))


@dataclass(frozen=True, kw_only=True)
class ConceptScaler:
    """Edits images with a model. The fields are those of `ScalingConcept`."""

    seed: int
    text: str
    base: str
    omega: float
    gamma: float
    exit_step: int
    steps: int
    renoisings: int
    first_renoisings: int
    average: bool
    averaged_first: list[int]
    averaged: list[int]
    regularisations: int
    patches: float
    rolled: float
    rolls: int

    def edited(self, model: DiffusionModel, images: Sequence[Image | None]) -> list[Image | None]:
        """The images with the concept scaled; failed ones stay ``None``."""
        with torch.no_grad():
            edited: list[Image | None] = list(images)
            made = [number for number, image in enumerate(images) if image]
            for start in range(0, len(made), IMAGES_AT_ONCE):
                part = made[start : start + IMAGES_AT_ONCE]
                path = self.invert(model, model.to_latents([images[number] for number in part]))
                for number, image in zip(part, model.decoded(self.sample(model, path)), strict=True):
                    edited[number] = image
            return edited

    def invert(self, model: DiffusionModel, latents: torch.Tensor) -> list[torch.Tensor]:
        """x*_0 … x*_N (n, c, h, w) for latents x_0 of the same shape. Images do not depend on each other."""
        with torch.no_grad():
            schedule, backwards = model.scheduler("ddim", self.steps), model.inverse_scheduler()
            backwards.set_timesteps(self.steps)
            draws, text = Draws(self.seed), model.encode([self.text]).expand(len(latents), -1, -1)
            noise = draws.noise("noise", (1, *latents.shape[1:]), latents).expand_as(latents)
            path = [latents]

            def predicted(found: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
                return model.noise_of(model.predict(found, t, text), found, t)

            def stepped(t: torch.Tensor, at: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
                return backwards.step(prediction, t, at, return_dict=False)[0]

            def regularised(like: Callable[[], torch.Tensor], prediction: torch.Tensor) -> torch.Tensor:
                return self.regularisation(prediction, like(), draws)

            for t in reversed(schedule.timesteps):
                early = bool(t < FIRST)
                passes = 1 + (min(self.renoisings, self.first_renoisings) if early else self.renoisings)
                averaged = range(*(self.averaged_first if early else self.averaged))

                @cache
                def like(t: torch.Tensor = t) -> torch.Tensor:
                    return predicted(model.add_noise(path[0], noise, t.expand(len(noise))), t)

                path.append(
                    renoised(
                        path[-1],
                        partial(predicted, t=t),
                        partial(stepped, t, path[-1]),
                        passes=passes,
                        averaged=averaged if self.average else range(0),
                        regularise=partial(regularised, like) if self.regularisations else None,
                        regularise_from=averaged.start if self.average else min(1, averaged.start),
                    )
                )
                trace_values(inverted=path[-1])
            return path

    def sample(self, model: DiffusionModel, path: Sequence[torch.Tensor]) -> torch.Tensor:
        """Latents (n, c, h, w) that are sampled from x*_N of an inversion ``path`` with the concept scaled."""
        named, base = (model.encode([text]).expand(len(path[-1]), -1, -1) for text in (self.text, self.base))
        return model.denoise(path[-1], ScaledGuidance(self, path, model, named, base, 1.0), "ddim", self.steps)

    def share(self, step: float) -> float:
        """ω_i at step i of the sampler."""
        return max(0.0, self.omega * (1 - step / (self.steps - 1)) ** self.gamma)

    @property
    def regularisation(self) -> Regularisation:
        """How predictions of the inversion are regularised."""
        return Regularisation(self.regularisations, self.patches, self.rolled, self.rolls)


class ScaledGuidance(Guidance):
    """The base text's prediction and the concept's, at share ω_i, with the inversion's latents as a reference."""

    def __init__(self, settings: ConceptScaler, path: Sequence[torch.Tensor], *guidance):
        super().__init__(*guidance)
        self.settings, self.path = settings, path

    def __call__(self, latents: torch.Tensor, timestep, step: float) -> torch.Tensor:
        share, rows, embeds = self.settings.share(step), [latents, latents], [self.negative, self.positive]
        if step < self.settings.exit_step:
            rows.append((latents + self.path[len(self.path) - 1 - int(step)]) / 2)
            embeds.append(self.positive)
        base, named, *reference = self.model.predict(torch.cat(rows), timestep, torch.cat(embeds)).chunk(len(rows))
        predicted = base + share * (named - base)
        for output in reference:
            predicted = predicted + share * (output - named)
        trace_values(guided=predicted)
        return predicted
