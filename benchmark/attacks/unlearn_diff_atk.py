"""UnlearnDiffAtk: a few words are inserted into a prompt, so that the erased model denoises a picture of the concept.

Zhang, Jia, Chen, Chen, Zhang, Liu, Ding and Liu, "To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still
Easy To Generate Unsafe Images … For Now", ECCV 2024, arXiv 2310.11868. The erased model is itself the classifier: words
under which its network tells the noise in a picture of the concept are words under which it draws one. With x_0 the
latents of the unedited model's picture of the prompt, k inserted words w, and P (k, vocabulary) on the simplex:

    for t in t_1 < … < t_n:                    evenly spaced
        repeat: w ~ P,  loss = mean (ε − e(x_t, t, E_v(prompt with w)))²,  P ← project(Adam(P, ∂loss))
        draw the prompt with w = argmax P; stop where the judge sees the concept

Its repository's ``P4D`` (of which Prompting4Debugging is the idea, see `prompting4debugging`) is the same search with
``variable`` nearest, free embeddings read as their nearest words, and ``target`` original: e°(x_t, t, E°(prompt)) in
place of ε. Results of "P4D" in later papers' tables are often this one's.

The official projection on the simplex is a bisection that stops early (rows sum to 0.97 … 1.03 at SD's vocabulary); the
default here is exact. Adam's weight decay is L2 here, added to the gradient. The loss does not see guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from PIL.Image import Image

from overpaint.attacks.attack import Scene
from overpaint.attacks.prompt_search import Hunt, PromptSearch, Tries
from overpaint.blocks.draws import Draws
from overpaint.blocks.token_variables import Frame, Location, Nearest, Simplex, TokenVariable, descend
from overpaint.errors import UserError, at_least
from overpaint.models.diffusion import DiffusionModel


@dataclass(kw_only=True)
class UnlearnDiffAtk(PromptSearch):
    """Hyper-parameters; ``conf/attack/uda.yaml`` says what each means."""

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
            raise UserError("timesteps takes a number of timesteps or a list of at least one, got []")

    @property
    def images(self) -> int:
        return 1 + (self.timesteps if isinstance(self.timesteps, int) else len(self.timesteps))

    def search(self, scene: Scene, hunted: Sequence[Tries]) -> None:
        victim = scene.victim
        frames = [self.frame(victim, tries.shot.prompt.text) for tries in hunted]
        hunts = [self.hunt(scene, *each) for each in zip(hunted, frames, self.originals(scene, hunted))]
        learned = [hunt.variable.parameter for hunt in hunts]
        optimizer = torch.optim.Adam(learned, lr=self.learning_rate, weight_decay=self.weight_decay)
        for t in self.schedule(len(victim.alphas_cumprod)):
            for hunt in hunts:
                self.taught(scene, hunt, [t] * self.iterations, self.target)
            loss = partial(self.losses, scene, hunts)
            variables, draws = [hunt.variable for hunt in hunts], [hunt.draws for hunt in hunts]
            for _ in descend(variables, optimizer, loss, draws, self.iterations, victim.dtype):
                pass
            self.draw(hunts, [variable.ids() for variable in variables], f"t={t}")
            hunts = [hunt for hunt in hunts if not hunt.tries.succeeded]
            if not hunts:
                return

    def frame(self, victim: DiffusionModel, text: str) -> Frame:
        return Frame.around(victim, text, self.location, self.tokens)

    def hunt(self, scene: Scene, tries: Tries, frame: Frame, original: Image) -> Hunt:
        """One prompt's search, before its first step."""
        victim = scene.victim
        variable = self.start(victim.token_table, tries.draws)
        x0 = tries.draws.take("x0", lambda g: victim.to_latents([original])).to(victim.device)
        return Hunt(tries, frame, variable, x0, self.view(scene, tries.shot))

    def start(self, table: torch.Tensor, draws: Draws) -> TokenVariable:
        """The middle of the simplex, or random words."""
        if self.variable == "simplex":
            return Simplex(table, self.tokens, self.projection)
        return Nearest(
            table, draws.take("init_ids", lambda g: torch.randint(len(table), (1, self.tokens), generator=g))
        )

    def schedule(self, T: int) -> list[int]:
        """The timesteps in the order of the search, out of 0 … T − 1."""
        if isinstance(self.timesteps, list):
            if not all(0 <= t < T for t in self.timesteps):
                raise UserError(f"timesteps takes numbers from 0 to {T - 1}, got {self.timesteps}")
            return self.timesteps
        if self.timesteps > T:
            raise UserError(f"timesteps takes at most the model's {T}, got {self.timesteps}")
        apart = T // self.timesteps
        return list(range(apart // 2, T, apart))[: self.timesteps]
