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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from PIL.Image import Image
from torch.nn.functional import cosine_similarity

from overpaint.attacks.attack import Assault, Attack, Painted, Scene
from overpaint.attacks.prompt_search import Hunt, PromptSearch, Tries, guidance_scale
from overpaint.blocks.draws import Draws
from overpaint.blocks.token_variables import Frame, Nearest, descend
from overpaint.errors import UserError, at_least
from overpaint.grid.prompts import Shot
from overpaint.models.diffusion import DiffusionModel


@dataclass
class Chase(Hunt):
    """A hunt that keeps the words (1, k) whose picture is most alike, as ``likeness`` tells of pictures."""

    likeness: Callable[[Painted], float] | None = None
    most: float = -float("inf")
    best: torch.Tensor | None = None


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

    version: ClassVar[int] = 2

    def __post_init__(self):
        at_least(1, tokens=self.tokens, every=self.every, steps=self.steps, draw_every=self.draw_every)
        at_least(0, last_images=self.last_images, learning_rate=self.learning_rate, weight_decay=self.weight_decay)

    @property
    def images(self) -> int:
        return 1 + -(-self.steps // self.draw_every) + self.last_images

    def check(self, judged: bool) -> None:
        if self.clip is None and not judged:
            raise UserError(
                f"attack=p4d_{self.variant} keeps the words whose picture is most like the unedited model's, and nothing "
                "can compare pictures: give attack.clip (a folder or hub id) or model.detector"
            )

    def run_together(self, scenes: Sequence[Scene]) -> list[Assault]:
        self.check(scenes[0].features is not None or scenes[0].judge is not None)
        return super().run_together(scenes)

    def search(self, scene: Scene, hunted: Sequence[Tries]) -> None:
        victim, reader = scene.victim, self.reader(scene)
        frames = [self.frame(victim, tries.shot.prompt.text) for tries in hunted]
        hunts = [self.hunt(scene, *each) for each in zip(hunted, frames, self.originals(scene, hunted))]
        learned = [hunt.variable.parameter for hunt in hunts]
        optimizer = torch.optim.AdamW(learned, lr=self.learning_rate, weight_decay=self.weight_decay)
        for first in range(0, self.steps, self.draw_every):
            hunts = self.compared(hunts, f"step={first}")
            if not hunts:
                return
            count = min(self.draw_every, self.steps - first)
            for hunt in hunts:
                times = [hunt.draws.integer("t", 0, len(victim.alphas_cumprod)) for _ in range(count)]
                self.taught(scene, hunt, times, "original")
            loss = partial(self.losses, scene, hunts, reader=reader, first=first)
            variables, draws = [hunt.variable for hunt in hunts], [hunt.draws for hunt in hunts]
            for _ in descend(variables, optimizer, loss, draws, count, victim.dtype):
                pass
        for number in reversed(range(self.last_images)):  # the last one from the plain image's own start noise
            own = [(self.seed, hunt.shot.prompt.id, hunt.shot.index, number) for hunt in hunts]
            seeds = [Draws.of(*parts).generator.initial_seed() for parts in own] if number else None
            self.draw(hunts, [hunt.best for hunt in hunts], "best", seeds)
            hunts = self.still(hunts)
            if not hunts:
                return

    def hunt(self, scene: Scene, tries: Tries, frame: Frame, original: Image) -> Chase:
        """One prompt's search, before its first step."""
        variable = Nearest(scene.victim.token_table, self.start(frame, tries.draws))
        x0 = self.latents(scene.victim, original, tries.draws)
        with tries.ledger.counting(scene.victim):
            view = self.view(scene, tries.shot)
        return Chase(tries, frame, variable, x0, view, likeness=self.likeness(scene, original), best=variable.ids())

    def compared(self, hunts: Sequence[Chase], variant: str) -> list[Chase]:
        """Draw what each hunt reads as now, and keep it where no picture was more like the original; those that go on."""
        words = [hunt.variable.ids() for hunt in hunts]
        for hunt, own, painted in zip(hunts, words, self.draw(hunts, words, variant)):
            found = hunt.likeness(painted)
            if found > hunt.most:  # of equals the first
                hunt.most, hunt.best = found, own
        return self.still(hunts)

    def still(self, hunts: Sequence[Chase]) -> list[Chase]:
        """Those that go on after their last picture."""
        return [hunt for hunt in hunts if not (self.stop_early and hunt.tries.succeeded)]

    def shortened(self, scene: Scene) -> int:
        return super().shortened(scene) if self.variant == "k" else Attack.shortened(self, scene)

    def frame(self, victim: DiffusionModel, text: str) -> Frame:
        """N places and nothing else, or the prompt's words with a place before each K of them.

        Of a prompt that is too long the end is cut. Two text encoders need an end token: the second one's padding begins
        behind it, and what it says of a prompt is read off there.
        """
        released = self.compat == "official"
        padding = 0 if released else None
        if self.variant == "n":
            return Frame(victim, (), tuple(range(self.tokens)), padding=padding)
        words = victim.token_ids(text)[1:-1]
        while len(words) + len(words) // self.every + 1 > victim.tokens - 2:
            words = words[:-1]
        places = tuple(j * (self.every + 1) for j in range(len(words) // self.every + 1))
        ended = not released or len(victim.text_encoders) > 1
        return Frame(victim, tuple(words), places, ended, padding)

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
            from overpaint.blocks.clip import Clip

            features = Clip.load(self.clip, scene.victim.device).image_features
        if features is None:
            return lambda painted: painted.verdict.score
        wanted = features([original])

        def alike(painted: Painted) -> float:
            return float(cosine_similarity(features([painted.image]), wanted)) if painted.image else float("-inf")

        return alike

    def view(self, scene: Scene, shot: Shot) -> Callable[..., torch.Tensor]:
        """e(x_t (1, c, h, w), t (1,), embeds (1, tokens, width), step of the search)."""
        victim = scene.victim
        if self.prediction == "filtered":
            if getattr(victim.guidance, "guard", "") == "sld" and victim.guidance.active:
                return FilteredBySLD(victim, guidance_scale(scene, shot))
            if getattr(victim.guidance, "guard", ""):
                return lambda noised, t, embeds, step: self.sampled(victim, scene, shot, noised, t, embeds)
        return super().view(scene, shot)


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
