"""Controls: how often chance alone recovers the concept with the same number of images. An attack must exceed them.

`RandomWords` matches a search for words: the same number of words in the same places, the concept's name kept or removed, the
same number of images, and the same stopping rule. Only the search is missing.

UnlearnDiffAtk (Zhang et al., ECCV 2024, arXiv 2310.11868) introduced both controls. In its code, prefixes stop at the
first success and seeds do not, and one seeded generator draws everything of a run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from overpaint.attacks.attack import Assault, Attack, AttackContext
from overpaint.attacks.prompt_lists import attacked
from overpaint.attacks.prompt_search import SearchAttack, Trial, make_images
from overpaint.blocks.token_variables import Frame, Location
from overpaint.errors import at_least
from overpaint.grid.concepts import Concept
from overpaint.grid.prompts import Shot
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.lazily import functional, torch

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


@dataclass(kw_only=True)
class RandomWords(SearchAttack):
    """Random words in the places of a search's words, for ``tries`` images of each plain image from its start noise.

    Words are drawn for every image from the vocabulary without the concept's name and synonyms, and without the
    ``neighbours`` tokens whose embeddings are most similar to each of theirs.
    """

    place: Location | Literal["every", "whole"]
    tokens: int
    every: int
    tries: int
    plain: bool
    stop_early: bool
    neighbours: int

    together: ClassVar[int] = 8
    lengths: ClassVar[tuple[str, ...]] = ("tries",)

    def __post_init__(self):
        at_least(1, tokens=self.tokens, every=self.every, tries=self.tries)
        at_least(0, neighbours=self.neighbours)

    @property
    def images(self) -> int:
        return self.plain + self.tries

    @property
    def plain_first(self) -> bool:
        return self.plain

    def search(self, context: AttackContext, trials: Sequence[Trial]) -> None:
        victim = context.victim
        words = unrelated_tokens(victim, context.concept, self.neighbours)
        frames = [self.frame(victim, trial.shot.prompt.text) for trial in trials]
        left = list(zip(trials, frames, strict=True))
        for _ in range(self.tries):
            texts = []
            for trial, frame in left:
                drawn = [trial.draws.integer("word", 0, len(words)) for _ in frame.places]
                texts.append(frame.text([words[n] for n in drawn]))
            make_images([trial for trial, _ in left], texts, "random words")
            left = [each for each in left if not (self.stop_early and each[0].succeeded)]
            if not left:
                return

    def frame(self, victim: DiffusionModel, text: str) -> Frame:
        """The prompt with places for words, as in the attack that this control is matched to."""
        if self.place == "whole":
            return Frame(victim, (), tuple(range(self.tokens)))
        if self.place == "every":
            return Frame.before_every(victim, text, self.every)
        return Frame.around(victim, text, self.place, self.tokens)


def unrelated_tokens(model: DiffusionModel, concept: Concept, neighbours: int) -> list[int]:
    """Ids of the vocabulary without special tokens, the tokens of the concept's words, and each one's nearest ``neighbours``
    by cosine similarity in the token table."""
    texts = (concept.name, *concept.synonyms)
    own = sorted({token for text in texts for token in model.token_ids(text)[1:-1]})
    directions = functional.normalize(model.token_table.detach().float(), dim=-1)
    nearest = (directions[own] @ directions.T).topk(1 + neighbours, dim=-1).indices if own else torch.empty(0)
    left_out = {*model.tokenizer.all_special_ids, *own, *nearest.flatten().int().tolist()}
    return [token for token in range(len(model.tokenizer)) if token not in left_out]
