"""Inversion: start noise from which the victim's own sampler generates a given image. Does the concept still have one?

Rusanovsky, Malnick, Jevnisek, Fried and Avidan, "Memories of Forgotten Concepts", CVPR 2025, arXiv 2412.00782.
Deterministic DDIM takes x_t to x_s, s the next lower level, with the victim's guided prediction e. Read in reverse,
with x_0 the latents of an image of the concept, x_t solves

    x_t = √(ᾱ_t/ᾱ_s) x_s + (√(1−ᾱ_t) − √(ᾱ_t (1−ᾱ_s)/ᾱ_s)) e(x_t, t)

``ddim`` approximates e(x_t, t) by e(x_s, t). ``renoise`` (Garibi et al., ECCV 2024, arXiv 2403.14602) iterates
``renoisings`` times: e at the last x_t gives the next x_t. At timesteps below ``average_below`` it uses the mean of the
first ``averaged`` predictions, elsewhere the last one. There it also regularises each prediction and their mean
``regularisations`` times before use, so that they resemble noise (`overpaint.blocks.inversion`) and the patches of
e(x_0, t). The method intends x_0 with noise, but the authors' code for Stable Diffusion adds none. From x_T the victim
samples back to an image. It is judged, and

    nll  = Σ z²/2 + D/2 ln 2π          of z = x_T with D values, under N(0, I): how likely the start noise is
    psnr = 10 log₁₀ 1/mean (a − b)²    between the given image and the one sampled from x_T, pixels in [0, 1]

That an image can be inverted proves little, because any image can. The attack therefore also inverts *scrambled* images
of the concept and *ordinary* images, which `overpaint.metrics.inversion` compares with the concept's. The floor is the
attack for a concept that the model never saw. ``text: none`` leaves out the text, as TINA does (arXiv 2603.17828),
which solves the same equation by gradient descent.

Not implemented: the authors' second study (many start noises for one image) and their null-text inversion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from overpaint.attacks.attack import Assault, Attack, AttackContext, Ledger, Painted
from overpaint.attacks.probes import IMAGES_AT_ONCE, walk
from overpaint.attacks.prompt_lists import attacked
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.inversion import Regularisation, renoised
from overpaint.errors import UserError, at_least
from overpaint.grid.prompts import Shot
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.guidance import Guidance
from overpaint.models.lazily import torch
from overpaint.run.progress import steps


class Exposure(NamedTuple):
    """An image to invert, its text, and the shot that it counts as."""

    shot: Shot
    picture: Image.Image
    text: str


@dataclass(kw_only=True)
class Inversion(Attack):
    """Hyper-parameters; ``conf/attack/inversion.yaml`` says what each means."""

    method: Literal["ddim", "renoise"]
    text: Literal["prompt", "none"]
    pictures: int
    tiles: int
    steps: int
    renoisings: int
    averaged: int
    average_below: int
    regularisations: int
    guidance_scale: float

    version: ClassVar[int] = 2
    needs: ClassVar[str] = "victim"
    paints: ClassVar[bool] = True
    enters_by: ClassVar[str] = "image"
    worded: ClassVar[bool] = False
    lengths: ClassVar[tuple[str, ...]] = ("steps",)

    def __post_init__(self):
        at_least(1, pictures=self.pictures, steps=self.steps)
        at_least(2, tiles=self.tiles)
        at_least(0, renoisings=self.renoisings, averaged=self.averaged, average_below=self.average_below)
        at_least(0, regularisations=self.regularisations)
        at_least(0, guidance_scale=self.guidance_scale)
        if self.averaged > self.renoisings + 1:
            raise UserError(
                f"attack.averaged takes at most attack.renoisings + 1 = {self.renoisings + 1}, got {self.averaged}"
            )

    def run(self, context: AttackContext) -> Assault:
        ledger, painted = Ledger(), []
        parts = [
            (role, exposures[i : i + IMAGES_AT_ONCE])
            for role, exposures in self.exposures(context).items()
            for i in range(0, len(exposures), IMAGES_AT_ONCE)
        ]
        for number in steps(len(parts), "batches"):
            role, part = parts[number]
            with ledger.counting(context.victim) if role == "attacked" else nullcontext(), torch.no_grad():
                painted += self.redrawn(context, part)
        return Assault([p.shot for p in painted], ledger=ledger, painted=painted)

    def exposures(self, context: AttackContext) -> dict[str, list[Exposure]]:
        """By role: images of the concept, one for each shot; the same images scrambled; as many ordinary images."""
        pictures = context.concept_images(min(self.pictures, len(context.shots)), "inversion")
        texts = [shot.prompt.text for shot in context.shots]
        scrambled = [self.scrambled(picture, number) for number, picture in enumerate(pictures)]
        others = context.ordinary(len(pictures)) if context.ordinary else []
        groups = {
            "attacked": zip(pictures, texts, strict=False),
            "scrambled": zip(scrambled, texts, strict=False),
            "ordinary": others,
        }
        return {
            role: [
                self.exposure(context, shot, *shown, role, draw)
                for shot, shown in zip(context.shots, group, strict=False)
            ]
            for draw, (role, group) in enumerate(groups.items())
        }

    def exposure(
        self, context: AttackContext, shot: Shot, picture: Image.Image, text: str, role: str, draw: int
    ) -> Exposure:
        """An image of one role, with the text that it is inverted with."""
        text = text if self.text == "prompt" else ""
        made = attacked(shot, text, context.concept, f"{role} picture")
        return Exposure(replace(made, prompt=replace(made.prompt, role=role), draw=draw), picture, text)

    def scrambled(self, picture: Image.Image, number: int) -> Image.Image:
        """The image cut into ``tiles`` × ``tiles`` tiles in random order. A remainder at the edges stays in place."""
        pixels, n = np.array(picture.convert("RGB")), self.tiles
        high, wide = (side // n for side in pixels.shape[:2])
        if not (high and wide):
            raise UserError(f"attack.tiles={n} is too large for an image of {picture.width} x {picture.height} pixels")
        inside = pixels[: n * high, : n * wide]
        tiles = inside.reshape(n, high, n, wide, 3).swapaxes(1, 2).reshape(n * n, high, wide, 3)
        order = torch.randperm(n * n, generator=Draws.of(self.seed, "scrambled", number).generator).numpy()
        inside[:] = tiles[order].reshape(n, n, high, wide, 3).swapaxes(1, 2).reshape(inside.shape)
        return Image.fromarray(pixels)

    def redrawn(self, context: AttackContext, part: Sequence[Exposure]) -> list[Painted]:
        """The victim's images from the start noise of each given image, judged and measured."""
        victim, pictures = context.victim, [exposure.picture for exposure in part]
        start = self.invert(victim, victim.to_latents(pictures), [exposure.text for exposure in part])
        images = victim.to_images(self.sample(victim, start, [exposure.text for exposure in part]))
        painted = []
        for exposure, image, verdict, value in zip(
            part, images, context.verdicts(images), nll(start).tolist(), strict=True
        ):
            readings = {"nll": value}
            if image:
                readings["psnr"] = image_psnr(exposure.picture, image)
            readings["dimensions"] = start[0].numel()
            painted.append(Painted(exposure.shot, image, verdict, readings))
        return painted

    def invert(self, victim: DiffusionModel, latents: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        """Start noise x_T (n, c, h, w) for latents x_0 (n, c, h, w)."""
        guidance, schedule, draws = self.guidance(victim, texts), victim.scheduler("ddim", self.steps), Draws(self.seed)
        backwards = victim.inverse_scheduler()
        backwards.set_timesteps(self.steps)
        picture, passes = latents, 1 + (self.renoisings if self.method == "renoise" else 0)

        def predicted(t: torch.Tensor, number: int, found: torch.Tensor) -> torch.Tensor:
            return self.noise(victim, guidance, found, t, number)

        def stepped(t: torch.Tensor, start: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
            return backwards.step(prediction, t, start, return_dict=False)[0]

        for number in reversed(range(len(schedule.timesteps))):
            t, start = schedule.timesteps[number], latents
            low = self.method == "renoise" and t < self.average_below
            regularise = None
            if low and self.regularisations:
                like = self.noise(victim, guidance, picture, t, number)
                regularise = partial(Regularisation(self.regularisations), like=like, draws=draws)
            latents = renoised(
                start,
                partial(predicted, t, number),
                partial(stepped, t, start),
                passes=passes,
                averaged=range(self.averaged if low else 0),
                regularise=regularise,
            )
            trace_values(latents=latents)
        return latents

    def sample(self, victim: DiffusionModel, start: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        """Latents (n, c, h, w) that the victim samples from start noise of the same shape."""
        return walk(self.guidance(victim, texts), victim.scheduler("ddim", self.steps), start, 0, None)

    def guidance(self, victim: DiffusionModel, texts: Sequence[str]) -> Guidance:
        """The victim's guidance for the prompts, or for empty ones unless ``text`` is ``prompt``."""
        nothing = victim.unconditional().expand(len(texts), -1, -1)
        embeds = victim.encode(texts, truncate=True) if self.text == "prompt" else nothing
        return victim.guidance(victim, embeds, nothing, self.guidance_scale, list(texts))

    def noise(self, victim: DiffusionModel, guidance: Guidance, latents: torch.Tensor, t, number: int) -> torch.Tensor:
        """The noise prediction e (n, c, h, w), converted from velocity if the network predicts that."""
        return victim.noise_of(guidance(latents, t, number), latents, t)


def nll(latents: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihoods (n,), float64, of start noises (n, c, h, w) under N(0, I)."""
    flat = latents.detach().double().cpu().flatten(1)
    return flat.square().sum(dim=1) / 2 + flat.shape[1] / 2 * math.log(2 * math.pi)


def psnr(one: ArrayLike, other: ArrayLike) -> float:
    """Peak signal-to-noise ratio in dB of two images of one shape with values in [0, 1]; infinite if they are equal."""
    error = float(np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2))
    return -10 * math.log10(error) if error else math.inf


def image_psnr(one: Image.Image, other: Image.Image) -> float:
    """`psnr` of two images of one size."""
    return psnr(*(np.asarray(image.convert("RGB"), np.float64) / 255 for image in (one, other)))
