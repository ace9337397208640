"""Controls: what chance brings back with the same number of images. An attack has to do better.

UnlearnDiffAtk (Zhang et al., ECCV 2024, arXiv 2310.11868) introduced both controls. In its code, prefixes stop at the
first success and seeds do not, and one seeded generator draws everything of a run.
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

#: Attempts to draw a random prefix, or a token, that reads back as itself.
TRIES = 200


@dataclass(kw_only=True)
class SeedSearch(Attack):
    """The same prompts from new start noise: ``tries`` seed indices, from ``first`` on, for each plain image."""

    first: int
    tries: int

    draws: ClassVar[bool] = False
    lengths: ClassVar[tuple[str, ...]] = ("tries",)

    def __post_init__(self):
        at_least(1, first=self.first, tries=self.tries)

    @property
    def images(self) -> int:
        return self.tries

    def run(self, context: AttackContext) -> Assault:
        """All tries of each shot in order. They do not stop at a success: any smaller budget can be read off."""
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

    Only prefixes whose text is tokenized to the same tokens are used. A long prompt gets a shorter prefix.
    """

    tokens: int
    tries: int

    needs: ClassVar[str] = "model"
    lengths: ClassVar[tuple[str, ...]] = ("tries",)

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
        """A prefix that depends only on the attack's seed, the prompt's id, the seed index and the try's number."""
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
        """A random ordinary token whose text is tokenized to itself."""
        for _ in range(TRIES):
            drawn = int(torch.randint(0, len(model.tokenizer), (1,), generator=generator))
            if drawn not in model.tokenizer.all_special_ids and (
                model.token_ids(model.tokenizer.decode([drawn]).strip())[1:-1] == [drawn]
            ):
                break
        return drawn
