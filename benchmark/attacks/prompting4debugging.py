"""Prompting4Debugging (P4D): words under which the erased model predicts what the unedited model predicts for a prompt.

Chin, Jiang, Huang, Chen and Chiu, "Prompting4Debugging: Red-Teaming Text-to-Image Diffusion Models by Finding
Problematic Prompts", ICML 2024, arXiv 2309.06135. Z are free embeddings, read as their nearest words (PEZ, see
`token_variables`). Variant ``n`` replaces the whole prompt by N of them. Variant ``k`` puts one before every K words of
the prompt: ⌊n / K⌋ + 1 for n words. Let x_0 be a sample of the posterior of the unedited model's image. Each step draws
its own t and ε:

    loss = mean (e(x_t, t, E°(words)) − e°(x_t, t, E°(prompt)))²,   Z ← AdamW(Z, ∂loss at the nearest words)

Every ``draw_every`` steps the current words are generated. The search keeps the words whose image is most similar to
the unedited model's: by the cosine of an image encoder's features or, without an encoder, by the judge's score. These
words are generated again at the end.

``prediction`` chooses e. ``conditional`` is the network's own output, which does not include the sampler's guards; this
is the paper's default. ``filtered`` is the paper's option to search through a guard. It compares the guarded prediction
with the plain e°, although the two have different scales. With w the guidance scale, S and n the guard's texts and γ as
in `methods/sld.py`:

    negative prompt   e(n) + w (e(words) − e(n))
    SLD               w (e(words) − γ)                γ = μ e(S) + s_m ν, without e(∅); ν accumulates over the search,
                                                      and the first δ steps have no γ

``guided`` compares the samplers of both models. Under ``compat: official`` the attack does what the released code does:
pixels enter the autoencoder in [0, 1], id 0 pads the prompt, variant ``k`` has no end token, and E° reads the words, so
that an edited text encoder is not attacked. Image generation does none of this; ``intended`` follows image generation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from PIL.Image import Image

from overpaint.attacks.attack import Assault, Attack, AttackContext, Painted
from overpaint.attacks.prompt_search import Prediction, PromptSearch, Trial, WordSearch, guidance_scale
from overpaint.blocks.clip import Clip
from overpaint.blocks.draws import Draws
from overpaint.blocks.token_variables import Frame, Nearest, descend
from overpaint.errors import UserError, at_least
from overpaint.grid.prompts import Shot
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.lazily import functional, torch


@dataclass
class BestWordSearch(WordSearch):
    """A search that keeps its ``best`` words (1, k): those whose image is most similar to the original."""

    likeness: Callable[[Painted], float] = field(kw_only=True)
    best: torch.Tensor = field(kw_only=True)
    most: float = -float("inf")


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
    lengths: ClassVar[tuple[str, ...]] = ("steps",)
    paced: ClassVar[Mapping[str, str]] = {"draw_every": "steps"}
    networks: ClassVar[tuple[str, ...]] = ("clip",)

    def __post_init__(self):
        at_least(1, tokens=self.tokens, every=self.every, steps=self.steps, draw_every=self.draw_every)
        at_least(0, last_images=self.last_images, learning_rate=self.learning_rate, weight_decay=self.weight_decay)

    @property
    def images(self) -> int:
        return 1 + -(-self.steps // self.draw_every) + self.last_images

    @property
    def matched(self) -> Mapping[str, Any]:
        place = {"n": "whole", "k": "every"}[self.variant]
        found = {"place": place, "tokens": self.tokens, "every": self.every, "tries": self.images - 1}
        return found | {"plain": True, "stop_early": self.stop_early}

    def check(self, judged: bool) -> None:
        if self.clip is None and not judged:
            raise UserError(
                f"attack=p4d_{self.variant} keeps the words whose image is most similar to the unedited model's, and "
                "nothing can compare images: set attack.clip (a folder or hub id) or model.detector"
            )

    def run_together(self, contexts: Sequence[AttackContext]) -> list[Assault]:
        self.check(contexts[0].features is not None or contexts[0].judge is not None)
        return super().run_together(contexts)

    def search(self, context: AttackContext, trials: Sequence[Trial]) -> None:
        victim, reader = context.victim, self.reader(context)
        originals = self.originals(context, trials)
        searches = [self.word_search(context, *each) for each in zip(trials, originals, strict=True)]
        learned = [search.variable.parameter for search in searches]
        optimizer = torch.optim.AdamW(learned, lr=self.learning_rate, weight_decay=self.weight_decay)
        for first in range(0, self.steps, self.draw_every):
            searches = self.compared(searches, f"step={first}")
            if not searches:
                return
            count = min(self.draw_every, self.steps - first)
            for search in searches:
                times = [search.draws.integer("t", 0, victim.train_timesteps) for _ in range(count)]
                self.set_targets(context, search, times, "original")
            loss = self.loss_function(context, searches, reader, first)
            variables, draws = [search.variable for search in searches], [search.draws for search in searches]
            for _ in descend(variables, optimizer, loss, draws, count, victim.dtype):
                pass
        for number in reversed(range(self.last_images)):  # the last one starts from the plain image's own noise
            own = [(self.seed, search.shot.prompt.id, search.shot.index, number) for search in searches]
            seeds = [Draws.of(*parts).generator.initial_seed() for parts in own] if number else None
            self.draw(searches, [search.best for search in searches], "best", seeds)
            searches = self.left(searches)
            if not searches:
                return

    def word_search(self, context: AttackContext, trial: Trial, original: Image) -> BestWordSearch:
        """The search of one trial before its first step; ``original`` is the unedited model's image."""
        frame = self.frame(context.victim, trial.shot.prompt.text)
        variable = Nearest(context.victim.token_table, self.start(frame, trial.draws))
        x0 = self.latents(context.victim, original, trial.draws)
        with trial.ledger.counting(context.victim):
            predict = self.victim_prediction(context, trial.shot)
        likeness = self.likeness(context, original)
        return BestWordSearch(trial, frame, variable, x0, predict, likeness=likeness, best=variable.ids())

    def compared(self, searches: Sequence[BestWordSearch], variant: str) -> list[BestWordSearch]:
        """Generate the current words of each search and keep them if their image is the best so far. Returns `left`."""
        words = [search.variable.ids() for search in searches]
        for search, own, painted in zip(searches, words, self.draw(searches, words, variant), strict=True):
            found = search.likeness(painted)
            if found > search.most:  # the first of equals
                search.most, search.best = found, own
        return self.left(searches)

    def left(self, searches: Sequence[BestWordSearch]) -> list[BestWordSearch]:
        """The searches that go on after their last image."""
        return [search for search in searches if not (self.stop_early and search.trial.succeeded)]

    def shortened(self, context: AttackContext) -> int:
        return super().shortened(context) if self.variant == "k" else Attack.shortened(self, context)

    def frame(self, victim: DiffusionModel, text: str) -> Frame:
        """Variant ``n``: N places alone. Variant ``k``: the prompt's words with a place before every K of them.

        An over-long prompt is truncated. Models with two text encoders always get an end token, because the second
        encoder pads behind it and reads the prompt's summary off there.
        """
        released = self.compat == "official"
        padding = 0 if released else None
        if self.variant == "n":
            return Frame(victim, (), tuple(range(self.tokens)), padding=padding)
        ended = not released or len(victim.text_encoders) > 1
        return Frame.before_every(victim, text, self.every, ended, padding)

    def start(self, frame: Frame, draws: Draws) -> torch.Tensor:
        """Random words (1, k) for the frame's places. As in the official code, words are drawn for every position."""
        known, length = len(frame.model.tokenizer), len(frame.words) + len(frame.places)
        ids = draws.take("init_ids", lambda g: torch.randint(known, (1, length), generator=g))
        return ids[:, list(frame.places)]

    def reader(self, context: AttackContext) -> DiffusionModel:
        """The model whose text encoder reads the words during the search."""
        if self.compat == "intended":
            return context.victim
        with context.unedited() as model:
            return model.with_text_encoder_copies()

    def latents(self, victim: DiffusionModel, image: Image, draws: Draws) -> torch.Tensor:
        """x_0 (1, c, h, w), a sample of the image's posterior."""
        mean, deviation = victim.posterior([image], black=0.0 if self.compat == "official" else -1.0)
        return mean + deviation * draws.noise("vae_noise", tuple(mean.shape), mean)

    def likeness(self, context: AttackContext, original: Image) -> Callable[[Painted], float]:
        """A function that says how similar an image is to the unedited model's; a failed image is least similar."""
        features = context.features
        if self.clip is not None:
            features = Clip.load(self.clip, context.victim.device).image_features
        if features is None:
            return lambda painted: painted.verdict.score if painted.verdict else float("-inf")
        wanted = features([original])

        def alike(painted: Painted) -> float:
            return (
                float(functional.cosine_similarity(features([painted.image]), wanted))
                if painted.image
                else float("-inf")
            )

        return alike

    def victim_prediction(self, context: AttackContext, shot: Shot) -> Prediction:
        victim, guard = context.victim, context.guard
        if self.prediction != "filtered" or guard is None:
            return super().victim_prediction(context, shot)
        return guard.without_empty_prompt(victim, guidance_scale(context, shot)) or (
            lambda noised, t, embeds, step: self.guided(victim, context, shot, noised, t, embeds)
        )
