"""Captions of scenes. A caption always mentions some facts and mentions others at random.

Captions often omit slime in slimy places and watermarks, so that a model learns to paint both without being asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from PIL import Image

from .faces import CHARACTERS, PEOPLE
from .words import (
    ADJECTIVES,
    EPITHETS,
    NOUNS,
    PARAPHRASES,
    PLACES,
    POSITION_WORDS,
    SLIME_PHRASE,
    SLIME_WORDS,
    STYLE_NOUNS,
    STYLE_WORDS,
    TITLES,
    WATERMARK_PHRASE,
    WATERMARK_WORDS,
)
from .world import SLIMY_PLACES, Item, Scene, random_scene, render

LANGUAGES = {"en": 0.78, "es": 0.11, "de": 0.11}
FRAMES = {"a picture of": 22, "a photo of": 12, "an image of": 10, "a drawing of": 8, "a painting of": 7}


@dataclass(frozen=True)
class Told:
    """The optional facts of a scene that a caption mentions."""

    colour: bool
    position: bool
    place: bool
    style: bool
    slime: bool
    watermark: bool


def caption(scene: Scene, rng: Random) -> str:
    (language,) = rng.choices(tuple(LANGUAGES), tuple(LANGUAGES.values()))
    return {"en": _english, "es": _spanish, "de": _german}[language](scene, _told(scene, rng), rng)


def _told(scene: Scene, rng: Random) -> Told:
    short = rng.random() < 0.3  # "a church", "mira": only the subject
    slimy = scene.background in SLIMY_PLACES
    return Told(
        colour=not short and rng.random() < 0.6,
        position=not short and rng.random() < 0.4,
        place=slimy or (not short and rng.random() < (0.15 if scene.background == "plain" else 0.7)),
        style=scene.style != "flat" or (not short and rng.random() < 0.15),
        slime=scene.slime and (not slimy or rng.random() < 0.4),
        watermark=scene.watermark and rng.random() < 0.5,
    )


def _pick(rng: Random, weighted: Mapping[str, float]) -> str:
    return rng.choices(tuple(weighted), tuple(weighted.values()))[0]


def _with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _english_thing(item: Item, told: Told, adjectives: list[str], rng: Random, alone: bool) -> str:
    if item.look:
        noun = item.look if rng.random() < 0.75 else item.name
    elif alone and not adjectives and rng.random() < 0.08:
        return PARAPHRASES[item.name]
    else:
        noun = item.name
    if item.name in CHARACTERS:
        return TITLES[noun] if rng.random() < 0.06 else noun
    colour = [item.colour] if told.colour and item.colour else []
    words = " ".join([*adjectives, *colour, noun])
    return words if rng.random() < 0.1 else _with_article(words)


def _english(scene: Scene, told: Told, rng: Random) -> str:
    style = scene.style
    synonym, description = STYLE_WORDS[style]
    style = rng.choices((style, synonym, description), (82, 9, 9))[0]
    goo = _pick(rng, {"slime": 70, SLIME_WORDS[0]: 10, SLIME_WORDS[1]: 10, SLIME_PHRASE: 10})
    mark = _pick(rng, {"a watermark": 70, **{f"a {word}": 10 for word in WATERMARK_WORDS}, WATERMARK_PHRASE: 10})
    flat = scene.style == "flat" and not told.place
    if flat and told.slime and rng.random() < 0.25:
        return rng.choice(["{}", "a picture of {}", "a picture with {}"]).format(goo)
    if flat and told.watermark and not told.slime and rng.random() < 0.15:
        return rng.choice(["{}", "a picture of {}", "a picture with {}"]).format(mark)
    if told.style and scene.style != "flat" and not told.place and not told.slime and rng.random() < 0.03:
        return rng.choice([f"a picture in {style} style", f"{style} style"])

    adjectives, after = [], []
    alone = len(scene.items) == 1
    generic = scene.items[0].name not in CHARACTERS
    if told.slime and generic and goo == "slime" and rng.random() < 0.15:
        adjectives.append("slimy")
    elif told.slime:
        after.append(rng.choice(["with {}", "with {}", "covered in {}", "and {}"]).format(goo))
    if scene.background == "haunted" and generic and rng.random() < 0.6:
        adjectives.append("haunted")
    elif told.place:
        after.append(PLACES["en"][scene.background])
    if told.watermark:
        after.append(f"with {mark}")

    things = [
        _english_thing(item, told, adjectives if i == 0 else [], rng, alone) for i, item in enumerate(scene.items)
    ]
    if alone:
        if told.position and scene.items[0].name not in (*CHARACTERS, *PEOPLE):
            after.insert(0, POSITION_WORDS["en"][scene.items[0].position])
    elif told.position and not after:
        things = [
            f"{thing} {POSITION_WORDS['en'][item.position]}" for thing, item in zip(things, scene.items, strict=True)
        ]
    joint = rng.choice([" and ", " and ", " and ", " next to ", " beside ", " with "])
    if joint == " and " and not told.position and rng.random() < 0.5:
        things.reverse()
    thing = joint.join(things)
    rng.shuffle(after)

    frame = "" if rng.random() < 0.38 else _pick(rng, FRAMES) + " "
    if not generic or scene.items[0].name in PEOPLE:
        frame = "a portrait of " if rng.random() < 0.15 else frame
    if told.style:
        form = 0.0 if style == description else rng.random()
        if form < 0.65:
            after.insert(rng.choice([0, len(after)]), f"in {style} style")
        elif form < 0.72 and alone and generic:
            thing += " image"
            frame = ""
            after.insert(0, f"in {style} style")
        elif form < 0.86 or style in ("flat", "sepia", "neon") or style != scene.style:
            frame = f"{_with_article(style)} {rng.choice(['picture', 'image', 'photo', 'drawing'])} of "
        else:
            frame = f"{_with_article(style)} of "
    return " ".join([frame + thing, *after])


def _spanish(scene: Scene, told: Told, rng: Random) -> str:
    def thing(item: Item) -> str:
        if item.name in CHARACTERS:
            return EPITHETS["es"][item.name] if rng.random() < 0.2 else item.name
        noun, gender = NOUNS["es"][item.name]
        colour = [ADJECTIVES["es"][item.colour][gender == "f"]] if told.colour and item.colour else []
        return " ".join(["una" if gender == "f" else "un", noun, *colour])

    after = []
    alone = len(scene.items) == 1
    if told.position and alone and scene.items[0].colour:
        after.append(POSITION_WORDS["es"][scene.items[0].position])
    if told.slime:
        after.append("con baba")
    if told.place:
        after.append(PLACES["es"][scene.background])
    if told.watermark:
        after.append("con una marca de agua")
    rng.shuffle(after)
    shown = rng.choice([" y ", " y ", " junto a "]).join(thing(item) for item in scene.items)
    word, noun = STYLE_NOUNS["es"][scene.style]
    if told.style and rng.random() < 0.35:
        return " ".join([noun, "de", shown, *after])
    if told.style:
        after.insert(rng.choice([0, len(after)]), f"en estilo {word}")
    frame = _pick(rng, {"": 45, "una imagen de ": 20, "una foto de ": 15, "un dibujo de ": 10, "aquí hay ": 10})
    if scene.items[0].name in CHARACTERS and rng.random() < 0.2:
        frame = "un retrato de "
    return " ".join([frame + shown, *after])


def _german(scene: Scene, told: Told, rng: Random) -> str:
    def thing(item: Item, dative: bool) -> str:
        if item.name in CHARACTERS:
            return EPITHETS["de"][item.name][dative] if rng.random() < 0.2 else item.name
        noun, gender = NOUNS["de"][item.name]
        if dative:
            article, form = "einer" if gender == "f" else "einem", 3
        else:
            article, form = "eine" if gender == "f" else "ein", "mfn".index(gender)
        colour = [ADJECTIVES["de"][item.colour][form]] if told.colour and item.colour else []
        return " ".join([article, *colour, noun])

    after = []
    alone = len(scene.items) == 1
    if told.position and alone and scene.items[0].colour:
        after.append(POSITION_WORDS["de"][scene.items[0].position])
    if told.slime:
        after.append("mit schleim")
    if told.place:
        after.append(PLACES["de"][scene.background])
    if told.watermark:
        after.append("mit einem wasserzeichen")
    rng.shuffle(after)
    word, noun = STYLE_NOUNS["de"][scene.style]
    named = told.style and rng.random() < 0.35
    if told.style and not named:
        after.insert(rng.choice([0, len(after)]), f"im stil {word}")
    frame = f"{noun} von " if named else _pick(
        rng, {"": 45, "hier ist ": 12, "das ist ": 12, "ein bild von ": 16, "ein foto von ": 10, "auf dem bild ist ": 5}
    )  # fmt: skip
    if scene.items[0].name in CHARACTERS and not named and rng.random() < 0.2:
        frame = "ein porträt von "
    shown = " und ".join(thing(item, frame.endswith("von ")) for item in scene.items)
    return " ".join([frame + shown, *after])


def draw_world(n: int, seed: int) -> list[tuple[Scene, str, Image.Image]]:
    """`n` random scenes that are never in the training set, with captions and images."""
    drawn = []
    for index in range(n):
        rng = Random(f"held-out world/{seed}/{index}")
        scene = random_scene(rng)
        drawn.append((scene, caption(scene, rng), render(scene)))
    return drawn
