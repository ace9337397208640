"""Pictures to train on: painted by the model itself before the erasure, or read from a folder; and noise on their latents.

Official codes write such pictures to disk and read them back. Here they live in memory as long as the erasure runs: the
seeds of the pictures come from the method's own draws, so the same seed paints the same bank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageOps

from overpaint.blocks.draws import Draws
from overpaint.errors import UserError
from overpaint.models.diffusion import DiffusionModel
from overpaint.run.progress import announce

#: Pictures encoded in one forward of the autoencoder.
PICTURES_AT_ONCE = 16
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
#: What pictures are of where only a style, or nothing, is asked for.
THINGS = ("a house", "a tree", "a boat", "a cat", "a flower", "a car", "a woman", "a man", "a fish", "a cup")


class ImageBank:
    """Pictures with a caption each, all of the model's own size."""

    def __init__(self, model: DiffusionModel, images: Sequence[Image.Image], captions: Sequence[str]):
        self.model, self.images, self.captions = model, list(images), list(captions)

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def posterior(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation (n, c, h, w) of every picture's latents, encoded when first asked for."""
        blocks = [self.images[i : i + PICTURES_AT_ONCE] for i in range(0, len(self), PICTURES_AT_ONCE)]
        means, deviations = zip(*(self.model.posterior(block) for block in blocks))
        return torch.cat(means).to(self.model.dtype), torch.cat(deviations).to(self.model.dtype)

    def latents(self, rows: Sequence[int], draws: Draws, name: str) -> torch.Tensor:
        """A draw (b, c, h, w) from the posterior of each of the given pictures."""

        def draw(generator: torch.Generator) -> torch.Tensor:
            mean, deviation = (part[list(rows)] for part in self.posterior)
            return mean + deviation * torch.randn(mean.shape, generator=generator).to(mean)

        return draws.take(name, draw).to(self.model.device, self.model.dtype)


def paint(
    model: DiffusionModel,
    captions: Sequence[str],
    draws: Draws,
    *,
    scheduler: str,
    steps: int,
    guidance_scale: float,
    negative_prompt: str = "",
) -> ImageBank:
    """One picture a caption, by the model as it is. Progress is announced."""
    seeds = [draws.integer("picture", 0, 2**31) for _ in captions]
    done = 0

    def finished(images: int) -> None:
        nonlocal done
        done += images
        announce(done, len(captions), "pictures")

    announce(0, len(captions), "pictures")
    images = model.sample(
        captions,
        seeds,
        steps=steps,
        guidance_scale=guidance_scale,
        scheduler=scheduler,
        negative_prompt=negative_prompt,
        batch_size=PICTURES_AT_ONCE,
        on_batch=finished,
    )
    return ImageBank(model, images, captions)


def read_folder(model: DiffusionModel, folder: str | Path) -> list[Image.Image]:
    """Every picture of a folder, in the order of their names, cut square and resized to the model's size."""
    folder = Path(folder).expanduser()
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UserError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
    size = (model.image_size, model.image_size)
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(ImageOps.fit(image.convert("RGB"), size))
    return images


def shuffled(draws: Draws, name: str, count: int, batch_size: int) -> Iterator[list[int]]:
    """Batches of row numbers below ``count``: one permutation after the other, without end."""
    rows: list[int] = []
    while True:
        while len(rows) < batch_size:
            rows += draws.take(name, lambda g: torch.randperm(count, generator=g)).tolist()
        yield rows[:batch_size]
        rows = rows[batch_size:]


class Diffused(NamedTuple):
    """x_t (b, c, h, w) with what it was made of: t (b,) and ε (b, c, h, w)."""

    latents: torch.Tensor
    t: torch.Tensor
    noise: torch.Tensor


def diffused(model: DiffusionModel, latents: torch.Tensor, draws: Draws, suffix: str = "") -> Diffused:
    """x_t of latents x_0 (b, c, h, w) at timesteps drawn evenly, one a row; the draws are ``t`` and ``noise`` + suffix."""
    size = (len(latents),)
    t = draws.take(f"t{suffix}", lambda g: torch.randint(0, len(model.alphas_cumprod), size, generator=g))
    t = t.to(latents.device)
    noise = draws.noise(f"noise{suffix}", tuple(latents.shape), latents)
    return Diffused(model.add_noise(latents, noise, t), t, noise)


def with_article(noun: str) -> str:
    """``"house"`` -> ``"a house"``; what already begins with an article stays."""
    if noun.split(" ")[0].lower() in ("a", "an", "the"):
        return noun
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
