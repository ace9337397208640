"""UnlearnDiffAtk: words inserted into a prompt by gradient search, so that the erased model generates the concept.

Zhang, Jia, Chen, Chen, Zhang, Liu, Ding and Liu, "To Generate or Not? Safety-Driven Unlearned Diffusion Models Are
Still Easy To Generate Unsafe Images … For Now", ECCV 2024, arXiv 2310.11868. The erased model itself serves as the
classifier: if its network predicts the noise in an image of the concept well under some words, it generates the concept
under these words. Let x_0 be the latents of the unedited model's image of the prompt, w the k inserted words and P (k,
vocabulary) a point of the simplex in each row:

    for t in t_1 < … < t_n:                    evenly spaced
        repeat: w ~ P,  loss = mean (ε − e(x_t, t, E_v(prompt with w)))²,  P ← project(Adam(P, ∂loss))
        generate the prompt with w = argmax P; stop if the judge sees the concept

The official repository also has a ``P4D``, named after Prompting4Debugging (`prompting4debugging`). It is the same
search with ``variable: nearest`` (free embeddings read as their nearest words) and ``target: original`` (e°(x_t, t,
E°(prompt)) in place of ε). "P4D" in the tables of later papers often means this variant.

The official projection on the simplex is a bisection that stops early: its rows sum to 0.97 … 1.03 for SD's vocabulary.
The default here is exact. Adam's weight decay is L2 regularisation here: it is added to the gradient. The loss does not
include guidance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from PIL.Image import Image

from overpaint.attacks.attack import AttackContext
from overpaint.attacks.prompt_search import PromptSearch, Trial, WordSearch
from overpaint.blocks.draws import Draws
from overpaint.blocks.token_variables import Frame, Location, Nearest, Simplex, TokenVariable, descend
from overpaint.errors import UserError, at_least
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.lazily import torch


@dataclass(kw_only=True)
class UnlearnDiffAtk(PromptSearch):
    """Hyper-parameters; ``conf/attack/uda.yaml`` says what each means."""

    prediction: Literal["conditional", "guided"]
    variable: Literal["simplex", "nearest"]
    target: Literal["noise", "original"]
    tokens: int
    location: Location
    timesteps: int | list[int]
    iterations: int
    learning_rate: float
    weight_decay: float
    projection: Literal["exact", "bisection"]

    version: ClassVar[int] = 2

    def __post_init__(self):
        at_least(1, tokens=self.tokens, iterations=self.iterations)
        at_least(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        if isinstance(self.timesteps, int):
            at_least(1, timesteps=self.timesteps)
        elif not self.timesteps:
            raise UserError("timesteps takes a number of timesteps or a list of at least one timestep, got []")

    @property
    def images(self) -> int:
        return 1 + (self.timesteps if isinstance(self.timesteps, int) else len(self.timesteps))

    @property
    def matched(self) -> Mapping[str, Any]:
        found = {"place": self.location, "tokens": self.tokens, "tries": self.images - 1}
        return found | {"plain": True, "stop_early": True}

    @property
    def lengths(self) -> tuple[str, ...]:
        return ("timesteps", "iterations") if isinstance(self.timesteps, int) else ("iterations",)

    def search(self, context: AttackContext, trials: Sequence[Trial]) -> None:
        victim, originals = context.victim, self.originals(context, trials)
        searches = [self.word_search(context, *each) for each in zip(trials, originals, strict=True)]
        learned = [search.variable.parameter for search in searches]
        optimizer = torch.optim.Adam(learned, lr=self.learning_rate, weight_decay=self.weight_decay)
        for t in self.schedule(victim.train_timesteps):
            for search in searches:
                self.set_targets(context, search, [t] * self.iterations, self.target)
            loss = self.loss_function(context, searches)
            variables, draws = [search.variable for search in searches], [search.draws for search in searches]
            for _ in descend(variables, optimizer, loss, draws, self.iterations, victim.dtype):
                pass
            self.draw(searches, [variable.ids() for variable in variables], f"t={t}")
            searches = [search for search in searches if not search.trial.succeeded]
            if not searches:
                return

    def frame(self, victim: DiffusionModel, text: str) -> Frame:
        """The prompt with the places of the searched tokens."""
        return Frame.around(victim, text, self.location, self.tokens)

    def word_search(self, context: AttackContext, trial: Trial, original: Image) -> WordSearch:
        """The search of one trial before its first step; ``original`` is the unedited model's image."""
        victim = context.victim
        frame = self.frame(victim, trial.shot.prompt.text)
        variable = self.start(victim.token_table, trial.draws)
        x0 = trial.draws.take("x0", lambda g: victim.to_latents([original])).to(victim.device)
        return WordSearch(trial, frame, variable, x0, self.victim_prediction(context, trial.shot))

    def start(self, table: torch.Tensor, draws: Draws) -> TokenVariable:
        """The centre of the simplex, or random words."""
        if self.variable == "simplex":
            return Simplex(table, self.tokens, self.projection)
        return Nearest(
            table, draws.take("init_ids", lambda g: torch.randint(len(table), (1, self.tokens), generator=g))
        )

    def schedule(self, T: int) -> list[int]:
        """Timesteps out of 0 … T − 1, in the order of the search."""
        if isinstance(self.timesteps, list):
            if not all(0 <= t < T for t in self.timesteps):
                raise UserError(f"timesteps takes numbers from 0 to {T - 1}, got {self.timesteps}")
            return self.timesteps
        if self.timesteps > T:
            raise UserError(f"timesteps takes at most {T}, the model's number of timesteps, got {self.timesteps}")
        apart = T // self.timesteps
        return list(range(apart // 2, T, apart))[: self.timesteps]
