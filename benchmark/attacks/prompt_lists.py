"""Prompt lists: other words for the same concept, as a user without access to the model would try them.

MACE (Lu et al., CVPR 2024) measures an eraser's generality on synonyms, Receler (Huang et al., ECCV 2024) on
paraphrases, HUB (arXiv 2410.05664) on translations. Each attack generates as many images as there are plain ones,
spread evenly over its variants, from the same start noise. A concept without such words has no shots; its figure is
then undefined, not zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from overpaint.attacks.attack import Assault, Attack, AttackContext
from overpaint.attacks.wording import sentences
from overpaint.blocks.templates import renamed
from overpaint.errors import UserError, unknown
from overpaint.grid.concepts import Concept
from overpaint.grid.prompts import Shot


def attacked(shot: Shot, text: str, concept: Concept, variant: str) -> Shot:
    """The plain shot with another text and the role ``attacked``, from the same start noise."""
    plain = shot.prompt
    label = concept.label or concept.name
    prompt = replace(plain, text=text, role="attacked", concept=label, variant=variant, id="", noise=plain.noise)
    return Shot(prompt, shot.index)


def spread(context: AttackContext, variants: Sequence[str], whole: bool = False) -> list[Shot]:
    """The shots with the concept's name replaced by the variants in turn; shots that do not name it are left out."""
    named = [shot for shot in context.shots if renamed(shot.prompt.text, context.concept, "") is not None]
    found = []
    for number, shot in enumerate(named if variants else ()):
        words = variants[number % len(variants)]
        text = renamed(shot.prompt.text, context.concept, words, whole)
        if text is not None:
            found.append(attacked(shot, text, context.concept, words))
    return found


def told_apart(shots: Sequence[Shot]) -> list[Shot]:
    """The shots with a number appended to the prompt id of every repeated text and seed index.

    A list with fewer sentences than there are plain prompts repeats them from other start noises. These are different images,
    and each is paired with the unedited model's image of the same noise. Images of one text still form one cluster.
    """
    seen: dict[tuple[str, int], int] = {}
    found = []
    for shot in shots:
        key = shot.prompt.id, shot.index
        count = seen[key] = seen.get(key, 0) + 1
        prompt = shot.prompt if count == 1 else replace(shot.prompt, id=f"{shot.prompt.id}-{count}")
        found.append(replace(shot, prompt=prompt))
    return found


@dataclass(kw_only=True)
class Synonym(Attack):
    """The concept's synonyms in place of its name."""

    draws: ClassVar[bool] = False

    def run(self, context: AttackContext) -> Assault:
        return Assault(spread(context, context.concept.synonyms))


@dataclass(kw_only=True)
class Paraphrase(Attack):
    """Descriptions of the concept in place of its name and article."""

    draws: ClassVar[bool] = False

    def run(self, context: AttackContext) -> Assault:
        return Assault(spread(context, context.concept.paraphrases, whole=True))


@dataclass(kw_only=True)
class Multilingual(Attack):
    """Prompts in other languages: the catalogue's sentences in that language, or else the translated word in the
    English one.

    ``languages`` selects some of the concept's translations; ``None`` takes all of them.
    """

    languages: list[str] | None

    draws: ClassVar[bool] = False

    def __post_init__(self):
        if self.languages == []:
            raise UserError("languages takes at least one language code, or null for all, got []")

    def run(self, context: AttackContext) -> Assault:
        concept = context.concept
        known = {language for other in context.catalogue.concepts.values() for language in other.translations}
        for language in self.languages or ():
            if known and language not in known:
                raise unknown("language", language, known, "attack=multilingual")
        chosen = [c for c in concept.translations if self.languages is None or c in self.languages]
        found = []
        for number, shot in enumerate(context.shots if chosen else ()):
            language, turn = chosen[number % len(chosen)], number // len(chosen)
            words, lines = concept.translations[language], sentences(concept, context.catalogue, language)
            word = words[turn % len(words)]
            text = (
                lines[turn % len(lines)].format(word) if lines else renamed(shot.prompt.text, concept, word, whole=True)
            )
            if text is not None:
                found.append(attacked(shot, text, concept, language))
        return Assault(told_apart(found))


@dataclass(kw_only=True)
class Implicit(Attack):
    """Prompts that never name the concept although the unedited model shows it, as in I2P (arXiv 2211.05105).

    Unsafe content uses the catalogue's implicit prompts. Marks, which appear unasked, use ordinary prompts. Other kinds
    have no implicit prompts.
    """

    draws: ClassVar[bool] = False

    def run(self, context: AttackContext) -> Assault:
        ordinary = [row["prompt"] for row in context.catalogue.utility]
        lines = {"unsafe": context.catalogue.implicit, "mark": ordinary}.get(context.concept.kind, ())
        found = [
            attacked(shot, lines[number % len(lines)], context.concept, "implicit")
            for number, shot in enumerate(context.shots if lines else ())
        ]
        return Assault(told_apart(found))
