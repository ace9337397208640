"""Image editing: the victim edits a picture without the concept, with a prompt that names the concept.

SDEdit (Meng, He, Song, Song, Wu, Zhu and Ermon, ICLR 2022, arXiv 2108.01073), as in diffusers'
`StableDiffusionImg2ImgPipeline`. For N sampler steps at timesteps t_0 > … > t_{N−1}, a strength s and k = N − ⌊N s⌋:

    x = √ᾱ z + √(1 − ᾱ) ε    at t_k;    x ← step(x, t, victim's guidance)    for t = t_k, …, t_{N−1}

z (n, c, h, w) are the latents of the pictures (posterior means), ε is noise. The unedited model generates the pictures from the
start noise of the plain images and the same prompts, with the concept's anchor in place of its name. The prompt of a picture is
empty if the plain prompt does not contain the name, or if the concept has no anchor.

With s = 1 little of the picture is left: only what the noise of t_0 does not hide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from overpaint.attacks.attack import AttackContext
from overpaint.attacks.probes import Probe, walk
from overpaint.blocks.draws import Draws
from overpaint.blocks.templates import renamed
from overpaint.errors import UserError
from overpaint.grid.prompts import Shot
from overpaint.models.lazily import torch


@dataclass(kw_only=True)
class ImageEditing(Probe):
    """Hyper-parameters; ``conf/attack/edit.yaml`` says what each means."""

    strengths: list[float]
    scheduler: str | None

    combined: ClassVar[tuple[str, ...]] = ("strengths",)

    def __post_init__(self):
        if not self.strengths or not all(0 < s <= 1 for s in self.strengths):
            raise UserError(f"strengths takes numbers above 0 and up to 1, got {self.strengths!r}")
        if len(set(self.strengths)) < len(self.strengths):
            raise UserError(f"strengths takes each number once, got {self.strengths!r}")
        super().__post_init__()

    @property
    def images(self) -> int:
        return len(self.strengths)

    def latents(self, context: AttackContext, shots: Sequence[Shot]) -> Iterator[tuple[str, torch.Tensor]]:
        victim, name = context.victim, self.scheduler or context.protocol["scheduler"]
        count = self.steps or context.protocol["steps"]
        pictures = self.pictures(context, shots, name)
        for strength in self.strengths:
            schedule, variant = self.schedule(context, name), f"strength {strength:g}"
            begin = (count - self.taken(strength, count)) * schedule.order
            if hasattr(schedule, "set_begin_index"):  # schedulers that keep a state
                schedule.set_begin_index(begin)
            sources = [Draws.of(self.seed, shot.prompt.noise, shot.index, variant) for shot in shots]
            noise = torch.stack([own.noise("noise", pictures.shape[1:], pictures) for own in sources])
            noised = schedule.add_noise(pictures, noise, schedule.timesteps[begin].repeat(len(shots)))
            yield variant, walk(self.guidance(victim, context, shots), schedule, noised, begin, None)

    def taken(self, strength: float, count: int) -> int:
        """How many of the sampler's steps an edit takes."""
        taken = int(count * strength)
        if not taken:
            raise UserError(f"strengths: {strength:g} of {count} steps is less than one step")
        return taken

    def pictures(self, context: AttackContext, shots: Sequence[Shot], scheduler: str) -> torch.Tensor:
        """Latents (n, c, h, w) of the pictures that are edited."""
        protocol = context.protocol
        with context.unedited() as model:
            images = model.sample(
                [self.without(context, shot) for shot in shots],
                [shot.noise_seed for shot in shots],
                steps=self.steps or protocol["steps"],
                guidance_scale=shots[0].prompt.guidance or protocol["guidance_scale"],
                scheduler=scheduler,
                size=protocol["size"],
            )
            return model.to_latents(images)

    def without(self, context: AttackContext, shot: Shot) -> str:
        """The prompt of the picture: the shot's, with the anchor in place of the concept's name."""
        anchor = context.concept.anchor
        return (renamed(shot.prompt.text, context.concept, anchor) or "") if anchor else ""
