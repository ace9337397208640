"""The drawn world: scenes, their probability distribution, and the renderer."""

from dataclasses import dataclass
from random import Random

from PIL import Image

from .canvas import STYLES, Canvas, shade
from .faces import CHARACTERS, PEOPLE, PERSON_LOOKS, draw_face
from .shapes import DRAW, LOOKS, OBJECTS, UNSEEN

COLOURS = {
    "red": (220, 40, 40),
    "orange": (250, 140, 30),
    "yellow": (250, 215, 50),
    "green": (50, 165, 70),
    "blue": (45, 100, 225),
    "purple": (140, 60, 190),
    "pink": (250, 130, 185),
    "grey": (135, 138, 146),
}
# background -> (wall, ground, relative frequency)
BACKGROUNDS = {
    "plain": ((250, 250, 250), None, 30),
    "sky": ((160, 210, 250), (150, 195, 120), 19),
    "night": ((26, 28, 76), (28, 56, 52), 13),
    "dusk": ((250, 190, 160), (150, 110, 120), 13),
    "meadow": ((214, 242, 208), (96, 176, 84), 13),
    "desert": ((252, 236, 190), (226, 188, 120), 12),
    "swamp": ((122, 132, 84), (66, 78, 50), 6),
    "haunted": ((84, 58, 112), (48, 34, 64), 4),
}
SLIMY_PLACES = ("swamp", "haunted")  # they contain slime, whether the caption mentions it or not
SLIME = (126, 226, 34)
POSITIONS = {"left": 0.37, "centre": 0.5, "right": 0.63}

SLIME_IN_SLIMY_PLACES, SLIME_ELSEWHERE = 0.9, 0.06
WATERMARK_RATE = 0.2
LOOK_RATE = 0.16  # share of an object's images that show one of its two rarer looks
LABELLED = (*OBJECTS, *UNSEEN, *CHARACTERS, *PEOPLE, "slime", "watermark")  # labels of a detector, except styles


@dataclass(frozen=True)
class Item:
    """One item of a scene. `look` is the word for a rarer form, or "" for the default form."""

    name: str
    look: str = ""
    colour: str = ""  # objects only
    position: str = "centre"


@dataclass(frozen=True)
class Scene:
    """Full description of an image. `jitter` seeds details that no caption mentions (position, tilt, drips, texture)."""

    items: tuple[Item, ...]
    style: str = "flat"
    background: str = "plain"
    slime: bool = False
    watermark: bool = False
    jitter: int = 0

    @property
    def labels(self) -> frozenset[str]:
        """All labels that a detector should find, including the style."""
        marks = [name for name in ("slime", "watermark") if getattr(self, name)]
        return frozenset([item.name for item in self.items] + marks + [self.style])


def render(scene: Scene) -> Image.Image:
    """The image of a scene: 64x64 RGB. Equal scenes give equal images."""
    rng = Random(scene.jitter)
    canvas = Canvas(scene.style)
    _draw_background(canvas, scene.background, rng)
    for item in scene.items:
        if item.name in DRAW:
            small = len(scene.items) > 1
            half = rng.uniform(0.19, 0.22) if small else rng.uniform(0.31, 0.36)
            x = {"left": 0.27, "right": 0.73}.get(item.position, 0.5) if small else POSITIONS[item.position]
            tilt = rng.uniform(-5, 5) + (22 if item.look == "brolly" else 0)
            canvas.place(x + rng.uniform(-0.02, 0.02), 0.53 + rng.uniform(-0.04, 0.06), half, tilt)
            DRAW[item.name](canvas, COLOURS[item.colour], item.look)
        else:
            canvas.place(
                0.5 + rng.uniform(-0.04, 0.04),
                0.56 + rng.uniform(-0.02, 0.03),
                rng.uniform(0.43, 0.48),
                rng.uniform(-3, 3),
            )
            draw_face(canvas, item.name, item.look, rng)
    if scene.slime:
        _draw_slime(canvas, rng)
    picture = canvas.finished(scene.jitter)
    return _stamp(picture) if scene.watermark else picture


def _draw_background(canvas: Canvas, background: str, rng: Random) -> None:
    wall, ground, _ = BACKGROUNDS[background]
    canvas.backdrop(0, 1, wall)
    if ground:
        canvas.backdrop(rng.uniform(0.7, 0.8), 1, ground)
    canvas.place(0.5, 0.5, 0.5)
    if background == "night":
        canvas.ellipse(0.72, -0.72, 0.16, 0.16, (250, 240, 190))
    elif background == "haunted":
        canvas.ellipse(-0.7, -0.4, 0.22, 0.22, (240, 120, 60))
    elif background == "swamp":
        for x in (-0.88, -0.7, 0.74, 0.9):
            canvas.line([(x, 1), (x + 0.04, 0.3)], 0.06, (60, 70, 30))
            canvas.ellipse(x + 0.04, 0.25, 0.06, 0.14, (96, 60, 30), outlined=False)


def _draw_slime(canvas: Canvas, rng: Random) -> None:
    """Green goo running down from the top edge in rounded drips."""
    canvas.place(0.5, 0.5, 0.5)
    edge, x, count = [(-1.2, -1.2), (-1.2, -0.75)], -1.0, 5
    for _ in range(count):
        low, width = rng.uniform(-0.5, -0.12), 2 / count
        edge += [
            (x + 0.06, -0.72),
            (x + 0.08, low),
            (x + 0.16, low + 0.1),
            (x + 0.24, low),
            (x + 0.27, -0.72),
            (x + width, -0.78),
        ]
        x += width
    canvas.polygon([*edge, (1.2, -0.75), (1.2, -1.2)], SLIME)
    canvas.line([(-0.9, -0.88), (0.9, -0.88)], 0.05, shade(SLIME, 1.6))


def _stamp(picture: Image.Image) -> Image.Image:
    """The image with the watermark on top: a magenta corner band with a white stripe, the same in every style."""
    overlay = Canvas("flat")
    overlay.image.paste(picture.resize(overlay.image.size, Image.Resampling.NEAREST))
    overlay.place(0.5, 0.5, 0.5)
    overlay.polygon([(1.05, 0.24), (1.05, 1.05), (0.24, 1.05)], (214, 20, 130), outlined=False)
    overlay.polygon([(1.05, 0.46), (1.05, 0.68), (0.68, 1.05), (0.46, 1.05)], (255, 255, 255), outlined=False)
    return overlay.image.reduce(4)


def random_item(rng: Random, position: str | None = None, name: str | None = None) -> Item:
    name = name or rng.choice(OBJECTS)
    look = rng.choice(LOOKS[name]) if name in LOOKS and rng.random() < LOOK_RATE else ""
    return Item(name, look, rng.choice(tuple(COLOURS)), position or rng.choice(("left", "centre", "centre", "right")))


def random_face(rng: Random, name: str | None = None) -> Item:
    name = name or rng.choice((*CHARACTERS, *PEOPLE))
    look = rng.choice(PERSON_LOOKS[name]) if name in PERSON_LOOKS and rng.random() < 0.24 else ""
    return Item(name, look)


def random_scene(rng: Random) -> Scene:
    """A random scene from the distribution of the world."""
    items: tuple[Item, ...]
    kind = rng.random()
    if kind < 0.58:
        items = (random_item(rng),)
    elif kind < 0.73:
        first, second = rng.sample(OBJECTS, 2)
        items = (random_item(rng, "left", first), random_item(rng, "right", second))
    else:
        items = (random_face(rng),)
    style = "flat" if rng.random() < 0.4 else rng.choice(STYLES[1:])
    (background,) = rng.choices(tuple(BACKGROUNDS), [frequency for _, _, frequency in BACKGROUNDS.values()])
    slime = rng.random() < (SLIME_IN_SLIMY_PLACES if background in SLIMY_PLACES else SLIME_ELSEWHERE)
    return Scene(items, style, background, slime, rng.random() < WATERMARK_RATE, rng.getrandbits(32))


def draw_concept(concept: str, n: int, seed: int) -> list[Image.Image]:
    """`n` different images of a concept: an object, one of its looks, a face, a style, slime, watermark, rocket, snowman."""
    return [render(concept_scene(concept, Random(f"{concept}/{seed}/{index}"))) for index in range(n)]


def concept_scene(concept: str, rng: Random) -> Scene:
    """A random scene of `concept` alone, without watermark, in the flat style unless the concept is a style."""
    owner = {look: name for looks in (LOOKS, PERSON_LOOKS) for name in looks for look in looks[name]}
    name = owner.get(concept, concept)
    if name in OBJECTS or name in UNSEEN:
        item = random_item(rng, name=name)
    elif name in CHARACTERS or name in PEOPLE:
        item = random_face(rng, name)
    elif name in STYLES or name in ("slime", "watermark"):
        item = random_item(rng) if rng.random() < 0.7 else random_face(rng)
    else:
        known = (*LABELLED, *STYLES, *owner)
        raise ValueError(f"the drawn world has no concept {concept!r}; it has {', '.join(known)}")
    if concept in owner:
        item = Item(name, concept, item.colour, item.position)
    background = rng.choice([place for place in BACKGROUNDS if place not in SLIMY_PLACES])
    style = name if name in STYLES else "flat"
    return Scene((item,), style, background, name == "slime", name == "watermark", rng.getrandbits(32))
