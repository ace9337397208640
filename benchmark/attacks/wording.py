"""Wording: captions of ordinary things, and sentences about a concept."""

from __future__ import annotations

from collections.abc import Sequence

from overpaint.blocks.templates import THINGS
from overpaint.grid.concepts import Catalogue, Concept


def ordinary_texts(concept: Concept, count: int) -> list[str]:
    """``count`` captions of ordinary things other than the concept, like ``"a photo of a tree"``."""
    known = {concept.name, *concept.synonyms}
    things = [thing for thing in THINGS if thing.split(" ", 1)[1] not in known]
    return [f"a photo of {things[n % len(things)]}" for n in range(count)]


#: Kind of a concept -> sentences to learn a placeholder from, for concepts without a catalogue.
SENTENCES = {
    "object": (
        "a photo of {}",
        "a picture of {}",
        "an image of {}",
        "a close-up photo of {}",
        "a cropped photo of {}",
        "a bright photo of {}",
        "a dark photo of {}",
        "a clear photo of {}",
        "a blurry photo of {}",
        "a good photo of {}",
        "a snapshot of {}",
        "a rendering of {}",
        "a drawing of {}",
        "a painting of {}",
        "an illustration of {}",
        "a photo of {} outdoors",
        "a photo of {} indoors",
        "{}, seen from the front",
        "{}, seen from afar",
        "{} in the middle of the picture",
    ),
    "style": (
        "a painting in the style of {}",
        "a picture in the style of {}",
        "a drawing in the style of {}",
        "a landscape in the style of {}",
        "a portrait in the style of {}",
        "a still life in the style of {}",
        "a city in the style of {}",
        "a detailed painting in the style of {}",
        "a small painting in the style of {}",
        "a colourful painting in the style of {}",
        "a dark painting in the style of {}",
        "an artwork in the style of {}",
    ),
    "person": ("a photo of {}", "a portrait of {}", "the face of {}", "{} looking at the camera"),
}


def sentences(concept: Concept, catalogue: Catalogue, language: str = "en") -> Sequence[str]:
    """Templates for the concept's kind: the catalogue's in that language, else `SENTENCES` (English only)."""
    known = catalogue.templates.get(concept.kind, {}).get(language)
    if known or language != "en":
        return known or ()
    return SENTENCES.get(concept.kind, SENTENCES["person" if concept.kind == "character" else "object"])
