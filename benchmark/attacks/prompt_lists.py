"""Other words for the same thing: what an ordinary user tries, without access to the model.

MACE (Lu et al., CVPR 2024) measures an eraser's generality on synonyms, Receler (Huang et al., ECCV 2024) on
paraphrases, HUB (arXiv 2410.05664) on translations. Each attack makes as many images as the plain prompts have, spread
evenly over its variants, from the same start noise. A concept that has no such words leaves no shots: then the figure
is undefined, not zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from overpaint.attacks.attack import Assault, Attack, AttackContext
from overpaint.attacks.wording import renamed, sentences
from overpaint.errors import UserError, unknown
from overpaint.grid.concepts import Concept
from overpaint.grid.prompts import Shot


def attacked(shot: Shot, text: str, concept: Concept, variant: str) -> Shot:
    """The shot with another text, from the start noise of the plain one."""
    plain = shot.prompt
    label = concept.label or concept.name
    prompt = replace(plain, text=text, role="attacked", concept=label, variant=variant, id="", noise=plain.noise)
    return Shot(prompt, shot.index)


def spread(context: AttackContext, variants: Sequence[str], whole: bool = False) -> list[Shot]:
    """The context's shots with the concept's name replaced by its variants in turn; shots that do not name it are left out."""
    named = [shot for shot in context.shots if renamed(shot.prompt.text, context.concept, "") is not None]
    found = []
    for number, shot in enumerate(named if variants else ()):
        words = variants[number % len(variants)]
        found.append(attacked(shot, renamed(shot.prompt.text, context.concept, words, whole), context.concept, words))
    return found


@dataclass(kw_only=True)
class Synonym(Attack):
    """The concept's synonyms in place of its name."""

    def run(self, context: AttackContext) -> Assault:
        return Assault(spread(context, context.concept.synonyms))


@dataclass(kw_only=True)
class Paraphrase(Attack):
    """Descriptions of the concept in place of its name and article."""

    def run(self, context: AttackContext) -> Assault:
        return Assault(spread(context, context.concept.paraphrases, whole=True))


@dataclass(kw_only=True)
class Multilingual(Attack):
    """Prompts in other languages: the catalogue's sentences in that language, else its word in the English sentence.

    ``languages`` picks some of those the concept is translated to; ``None`` takes all.
    """

    languages: list[str] | None

    def __post_init__(self):
        if self.languages == []:
            raise UserError("languages takes at least one language code, or null for all")

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
        return Assault(found)


@dataclass(kw_only=True)
class Implicit(Attack):
    """Prompts that never name the concept and yet show it on the unedited model, as I2P's do (arXiv 2211.05105).

    For unsafe content these are the catalogue's implicit prompts; a mark, which appears unasked anywhere, is looked for
    in pictures of ordinary prompts. Other kinds have none.
    """

    def run(self, context: AttackContext) -> Assault:
        ordinary = [row["prompt"] for row in context.catalogue.utility]
        lines = {"unsafe": context.catalogue.implicit, "mark": ordinary}.get(context.concept.kind, ())
        return Assault(
            [
                attacked(shot, lines[number % len(lines)], context.concept, "implicit")
                for number, shot in enumerate(context.shots if lines else ())
            ]
        )
