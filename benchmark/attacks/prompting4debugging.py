"""Prompting4Debugging (P4D): words under which the erased model says what the unedited one says of a prompt.

Chin, Jiang, Huang, Chen and Chiu, "Prompting4Debugging: Red-Teaming Text-to-Image Diffusion Models by Finding Problematic
Prompts", ICML 2024, arXiv 2309.06135. Z are free embeddings, read as their nearest words (PEZ, `token_variables`): N
of them in place of the whole prompt (variant ``n``), or one before each K words of it (``k``), ⌊n / K⌋ + 1 for n words.
With x_0 a draw from the posterior of the unedited model's picture's latents, each step has its own t and ε:

    loss = mean (e(x_t, t, E°(words)) − e°(x_t, t, E°(prompt)))²,   Z ← AdamW(Z, ∂loss at the nearest words)

Every few steps the words are drawn; those are kept whose picture is most like the unedited model's: by the cosine of an
image encoder's features or, where there is none, as the judge is surest of it. They are drawn again at the end.

``prediction`` says what e is. ``conditional`` does not see the sampler's guards; neither did the paper, unless asked to:
its ``filtered`` looks through a guard, but against the plain e°, at another scale. With w the guidance scale, S and n the
guard's texts, γ as in `methods/sld.py`:

    negative prompt   e(n) + w (e(words) − e(n))
    SLD               w (e(words) − γ)                γ = μ e(S) + s_m ν, without e(∅); ν runs over the search's steps,
                                                      of which the first δ have no γ

``guided`` compares both models' whole samplers. As released (``compat: official``), pixels enter the autoencoder in
[0, 1], id 0 stands behind the end token, variant ``k`` has no end token, and E° reads the words, so that an erased text
encoder is not attacked. None of it holds where pictures are drawn: ``intended`` does as the sampler does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import cosine_similarity, mse_loss

from overpaint.attacks.attack import Painted, Scene
from overpaint.attacks.prompt_search import PromptSearch, Tries, guidance_scale
from overpaint.attacks.token_variables import Frame, Nearest, descend
from overpaint.errors import at_least
from overpaint.models.diffusion import DiffusionModel
from overpaint.prompts import Shot
from overpaint.replay import Draws


@dataclass(kw_only=True)
class Prompting4Debugging(PromptSearch):
    """Hyper-parameters; ``conf/attack/p4d_n.yaml`` and ``p4d_k.yaml`` say what each means."""

    variant: Literal["n", "k"]
    tokens: int
    every: int
    steps: int
    draw_every: int
    last_images: int
    stop_early: bool
    learning_rate: float
    weight_decay: float
    clip: str | None
    prediction: Literal["conditional", "filtered", "guided"]
    compat: Literal["official", "intended"]

    def __post_init__(self):
        at_least(1, tokens=self.tokens, every=self.every, steps=self.steps, draw_every=self.draw_every)
        at_least(0, last_images=self.last_images, learning_rate=self.learning_rate, weight_decay=self.weight_decay)

    @property
    def images(self) -> int:
        return 1 + -(-self.steps // self.draw_every) + self.last_images

    def search(self, scene: Scene, tries: Tries, draws: Draws) -> None:
        victim, shot = scene.victim, tries.shot
        frame, reader = self.frame(victim, shot.prompt.text), self.reader(scene)
        variable = Nearest(victim.token_table, self.start(frame, draws))
        optimizer = torch.optim.AdamW([variable.parameter], lr=self.learning_rate, weight_decay=self.weight_decay)
        original = self.original(scene, shot)
        x0 = self.latents(victim, original, draws)
        alike, through = self.likeness(scene, original), self.view(scene, shot)
        best = (-float("inf"), variable.ids())
        for first in range(0, self.steps, self.draw_every):
            count = min(self.draw_every, self.steps - first)
            times = [draws.integer("t", 0, len(victim.alphas_cumprod)) for _ in range(count)]
            lesson = self.lesson(scene, shot, x0, times, draws, "original")

            def loss(step: int, ids: torch.Tensor, rows: torch.Tensor, lesson=lesson, first=first) -> torch.Tensor:
                noised, timestep, wanted = (part[step : step + 1] for part in lesson)
                said = through(noised, timestep, frame.encode(ids, rows, by=reader), first + step)
                return mse_loss(said.float(), wanted.float())

            for step, ids in descend(variable, optimizer, loss, draws, count):
                if step:
                    continue
                found = alike(self.draw(tries, frame, ids, f"step={first}"))
                best = max(best, (found, ids), key=lambda known: known[0])  # the first of equals
                if self.stop_early and tries.succeeded:
                    return
        for number in reversed(range(self.last_images)):  # the last one from the plain image's own start noise
            seed = Draws.of(self.seed, shot.prompt.id, shot.index, number).generator.initial_seed() if number else None
            self.draw(tries, frame, best[1], "best", seed)
            if self.stop_early and tries.succeeded:
                return

    def frame(self, victim: DiffusionModel, text: str) -> Frame:
        """N places and nothing else, or the prompt's words with a place before each K of them."""
        released = self.compat == "official"
        padding = 0 if released else None
        if self.variant == "n":
            return Frame(victim, (), tuple(range(self.tokens)), padding=padding)
        words = victim.token_ids(text)[1:-1]
        places = tuple(j * (self.every + 1) for j in range(len(words) // self.every + 1))
        return Frame(victim, tuple(words), places, ended=not released, padding=padding)

    def start(self, frame: Frame, draws: Draws) -> torch.Tensor:
        """Random words (1, k): drawn for all positions, of which the frame's places are taken."""
        known, length = len(frame.model.tokenizer), len(frame.words) + len(frame.places)
        ids = draws.take("init_ids", lambda g: torch.randint(known, (1, length), generator=g))
        return ids[:, list(frame.places)]

    def reader(self, scene: Scene) -> DiffusionModel:
        """Whose text encoder reads the words while they are searched."""
        if self.compat == "intended":
            return scene.victim
        with scene.unedited() as model:
            return model.with_text_encoders_of_now()

    def latents(self, victim: DiffusionModel, picture, draws: Draws) -> torch.Tensor:
        """x_0 (1, c, h, w), drawn from the picture's posterior."""
        mean, deviation = victim.posterior([picture], black=0.0 if self.compat == "official" else -1.0)
        return mean + deviation * draws.noise("vae_noise", tuple(mean.shape), mean)

    def likeness(self, scene: Scene, original) -> Callable[[Painted], float]:
        """How much a picture is like the unedited model's."""
        features = scene.features
        if self.clip is not None:
            from overpaint.attacks.clip import Clip

            features = Clip.load(self.clip, scene.victim.device).image_features
        if features is None:
            return lambda painted: painted.verdict.score if painted.verdict else 0.0
        wanted = features([original])
        return lambda painted: float(cosine_similarity(features([painted.image]), wanted))

    def view(self, scene: Scene, shot: Shot) -> Callable[..., torch.Tensor]:
        """e(x_t (1, c, h, w), t (1,), embeds (1, tokens, width), step of the search)."""
        victim, w = scene.victim, guidance_scale(scene, shot)
        if self.prediction == "filtered":
            if getattr(victim.guidance, "guard", "") == "sld" and victim.guidance.active:
                return FilteredBySLD(victim, w)
            if getattr(victim.guidance, "guard", ""):
                return lambda noised, t, embeds, step: self.sampled(victim, scene, shot, noised, t, embeds)
        return lambda noised, t, embeds, step: self.predicted(victim, scene, shot, noised, t, embeds)


class FilteredBySLD:
    """SLD as the released search looks through it; keeps ν from step to step."""

    def __init__(self, victim: DiffusionModel, scale: float):
        self.victim, self.scale, self.guard = victim, scale, victim.guidance
        with torch.no_grad():
            self.unwanted = victim.encode([self.guard.text])
        self.momentum: torch.Tensor | float = 0.0

    def __call__(self, noised: torch.Tensor, t: torch.Tensor, embeds: torch.Tensor, step: int) -> torch.Tensor:
        both = torch.cat([embeds, self.unwanted])
        wanted, unwanted = self.victim.predict(torch.cat([noised] * 2), t, both).chunk(2)
        gamma, momentum = self.guard.steer(torch.zeros_like(wanted), wanted, unwanted, self.momentum)
        self.momentum = momentum.detach()
        return self.scale * (wanted - gamma if step >= self.guard.warmup_steps else wanted)
