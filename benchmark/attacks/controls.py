"""Controls: what luck brings back at the same number of images. An attack that does no better has found nothing.

UnlearnDiffAtk (Zhang et al., ECCV 2024, arXiv 2310.11868) introduced both; its code draws from an unseeded generator.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from overpaint.attacks.attack import Assault, Attack, Scene
from overpaint.attacks.prompt_lists import attacked
from overpaint.errors import at_least
from overpaint.models.diffusion import DiffusionModel
from overpaint.prompts import Shot

#: Tries to find a random prefix before a shorter one is taken.
TRIES = 200


@dataclass(kw_only=True)
class SeedSearch(Attack):
    """The same prompts from fresh start noise: seed indices from ``first`` on."""

    first: int

    def __post_init__(self):
        at_least(1, first=self.first)

    def run(self, scene: Scene) -> Assault:
        return Assault(
            [Shot(replace(s.prompt, role="attacked", variant="fresh seed"), s.index + self.first) for s in scene.shots]
        )


@dataclass(kw_only=True)
class RandomPrefix(Attack):
    """``tokens`` random vocabulary tokens before each prompt, from the plain prompt's start noise.

    A prefix is kept only if its text reads back as the same tokens. A prompt with little room left gets a shorter one.
    """

    tokens: int

    needs: ClassVar[str] = "model"

    def __post_init__(self):
        at_least(1, tokens=self.tokens)

    def run(self, scene: Scene) -> Assault:
        found = []
        for shot in scene.shots:
            text = f"{self.prefix(scene.victim, shot)} {shot.prompt.text}".strip()
            found.append(attacked(shot, text, scene.concept, "random prefix"))
        return Assault(found)

    def prefix(self, model: DiffusionModel, shot: Shot) -> str:
        """A prefix that depends on the attack's seed, the prompt's id and the seed index alone."""
        digest = hashlib.sha256(f"{self.seed}:{shot.prompt.id}:{shot.index}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        plain = model.token_ids(shot.prompt.text)[1:-1]
        for length in range(min(self.tokens, model.tokens - 2 - len(plain)), 0, -1):
            for _ in range(TRIES):
                ids = [self.token(model, generator) for _ in range(length)]
                text = model.tokenizer.decode(ids).strip()
                if model.token_ids(f"{text} {shot.prompt.text}")[1:-1] == ids + plain:
                    return text
        return ""

    def token(self, model: DiffusionModel, generator: torch.Generator) -> int:
        """An ordinary token that alone reads back as itself."""
        for _ in range(TRIES):
            drawn = int(torch.randint(0, len(model.tokenizer), (1,), generator=generator))
            if drawn not in model.tokenizer.all_special_ids and (
                model.token_ids(model.tokenizer.decode([drawn]).strip())[1:-1] == [drawn]
            ):
                break
        return drawn
