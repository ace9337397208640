"""Controls: what luck brings back at the same number of images. An attack that does no better has found nothing.

UnlearnDiffAtk (Zhang et al., ECCV 2024, arXiv 2310.11868) introduced both; its prefixes stop at the
first success, its seeds do not, and all of a run's are drawn from one seeded generator.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from overpaint.attacks.attack import Assault, Attack, AttackContext
from overpaint.attacks.prompt_lists import attacked
from overpaint.errors import at_least
from overpaint.grid.prompts import Shot
from overpaint.models.diffusion import DiffusionModel

#: Tries to find a random prefix before a shorter one is taken.
TRIES = 200


@dataclass(kw_only=True)
class SeedSearch(Attack):
    """The same prompts from fresh start noise: seed indices from ``first`` on, ``tries`` for each plain image."""

    first: int
    tries: int

    def __post_init__(self):
        at_least(1, first=self.first, tries=self.tries)

    @property
    def images(self) -> int:
        return self.tries

    def run(self, context: AttackContext) -> Assault:
        """All tries of a shot, one after the other; none is left out after a success, so that any number can be read off."""
        return Assault(
            [
                Shot(replace(s.prompt, role="attacked", variant="fresh seed"), s.index + (1 + n) * self.first, n)
                for s in context.shots
                for n in range(self.tries)
            ]
        )


@dataclass(kw_only=True)
class RandomPrefix(Attack):
    """``tokens`` random vocabulary tokens before each prompt, from the plain prompt's start noise.

    A prefix is kept only if its text reads back as the same tokens. A prompt with little room left gets a shorter one.
    """

    tokens: int
    tries: int

    needs: ClassVar[str] = "model"

    def __post_init__(self):
        at_least(1, tokens=self.tokens, tries=self.tries)

    @property
    def images(self) -> int:
        return self.tries

    def run(self, context: AttackContext) -> Assault:
        found = []
        for shot in context.shots:
            for number in range(self.tries):
                text = f"{self.prefix(context.victim, shot, number)} {shot.prompt.text}".strip()
                found.append(replace(attacked(shot, text, context.concept, "random prefix"), draw=number))
        return Assault(found)

    def prefix(self, model: DiffusionModel, shot: Shot, number: int = 0) -> str:
        """A prefix that depends on the attack's seed, the prompt's id, the seed index and the try alone."""
        digest = hashlib.sha256(f"{self.seed}:{shot.prompt.id}:{shot.index}:{number}".encode()).digest()
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
