"""Sentences and words of which captions are made: templates that name a concept, captions of ordinary things, other words for a
concept's name.

Official code comes with its own lists of templates; this one list replaces them, so that all methods use the same sentences.
Each method uses the first few: MACE 30, TRCE 15, EMCID 3. The hyper-parameter ``templates`` sets another list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from overpaint.errors import UserError
from overpaint.grid.concepts import Concept

#: Subjects of the images where a method asks only for a style, or for nothing in particular.
THINGS = ("a house", "a tree", "a boat", "a cat", "a flower", "a car", "a woman", "a man", "a fish", "a cup")
#: Ends of captions that say where or when.
PLACES = ("", " at night", " in the meadow", " at dusk", " under a blue sky", " in the desert")
#: Captions of every thing in every place.
SCENES = tuple(f"{thing}{place}" for place in PLACES for thing in THINGS)

#: Templates for a concept of any kind but a style.
OBJECT = (
    "a photo of {}",
    "an image of {}",
    "{}",
    "a picture of {} outdoors",
    "a drawing of {}",
    "{} in the morning light",
    "a close-up of {}",
    "an oil painting of {} on canvas",
    "{} at night",
    "a black and white photo of {}",
    "a sketch of {} in pencil",
    "{} in front of a white wall",
    "a blurred snapshot of {}",
    "a print of {} on a poster",
    "{} seen from far away",
    "a sculpture of {}",
    "a cartoon of {}",
    "{} in the middle of the picture",
    "a watercolor of {} on paper",
    "a detailed rendering of {}",
    "{} under a cloudy sky",
    "an old photograph of {}",
    "a film still with {}",
    "{} in a quiet room",
    "a mosaic that shows {}",
    "a magazine cover with {}",
    "{} on a rainy day",
    "a studio shot of {}",
    "a small figure of {} made of clay",
    "{} on a stamp",
    "a mural of {} in the street",
    "a child's drawing of {}",
)

#: Templates for a style.
STYLE = (
    "a picture in the style of {}",
    "a painting by {}",
    "{} style",
    "an artwork by {}",
    "a landscape in the style of {}",
    "{} style artwork",
    "a portrait by {}",
    "the well known works of {}",
    "a still life in the style of {}",
    "a scene as {} would paint it",
    "a drawing by {}",
    "a city street in the style of {}",
    "an exhibition of {}",
    "a print after {}",
    "trees and a river by {}",
    "a canvas by {} in a museum",
    "an interior in the style of {}",
    "a study by {}",
    "the colours of {}",
    "a house in the style of {}",
    "a mural inspired by {}",
    "a poster in {} style",
    "a sketch by {}",
    "a night sky by {}",
    "an animal in the style of {}",
    "a bowl of fruit by {}",
    "a reproduction of a work by {}",
    "people in the style of {}",
    "the brush of {}",
    "a harbour by {}",
    "a catalogue of pictures by {}",
    "a garden in the style of {}",
)


def phrase_templates(kind: str, count: int, own: Sequence[str] | None = None) -> list[str]:
    """The first ``count`` templates for a concept's kind, or of ``own`` (the hyper-parameter ``templates``)."""
    chosen = list(own if own is not None else STYLE if kind == "style" else OBJECT)
    if not chosen or not all(isinstance(t, str) and t.count("{}") == 1 for t in chosen):
        raise UserError(f"templates takes sentences with one {{}} each, got {chosen!r}")
    return chosen[:count]


def article(noun: str) -> str:
    """``a`` or ``an``, by the first letter."""
    return "an" if noun[:1].lower() in "aeiou" else "a"


def with_article(noun: str) -> str:
    """``"house"`` -> ``"a house"``; a noun that already has an article is unchanged."""
    return noun if noun.split(" ")[0].lower() in ("a", "an", "the") else f"{article(noun)} {noun}"


def renamed(text: str, concept: Concept, words: str, whole: bool = False) -> str | None:
    """The text with ``words`` in place of the concept's name, or ``None`` if the text does not contain the name.

    The article before the name is adapted to the words. Words that bring their own article replace it, and so do
    ``whole`` phrases.
    """
    whole = whole or words.startswith(("a ", "an ", "the "))
    before = r"(\b(?:an?|the)\s+)?" if concept.article else "()"

    def replace(match: re.Match) -> str:
        found = (match.group(1) or "").strip()
        if whole or not found:
            return words
        return f"{found if found.lower() == 'the' else article(words)} {words}"

    changed, count = re.subn(rf"{before}(?<!\w){re.escape(concept.name)}(?!\w)", replace, text, flags=re.IGNORECASE)
    return changed if count else None
