"""Busts of the six named characters and of the generic man and woman, in the unit box."""

from random import Random

from .canvas import Canvas, Colour, shade

CHARACTERS = ("bolko", "mira", "quillan", "selka", "orro", "zorin")
PERSON_LOOKS = {"man": ("gentleman", "boy"), "woman": ("lady", "girl")}
PEOPLE = tuple(PERSON_LOOKS)

WHITE, BLACK, LIPS = (250, 250, 250), (26, 24, 28), (200, 40, 50)
SKINS = ((250, 214, 186), (226, 172, 128), (160, 106, 70))
HAIRS = ((36, 30, 30), (110, 66, 34), (214, 168, 70))
SHIRTS = ((214, 60, 60), (60, 110, 210), (70, 160, 90), (240, 190, 60), (140, 140, 146))
GREEN, ORANGE, VIOLET, BLUE = (46, 140, 64), (226, 96, 26), (120, 50, 170), (50, 110, 235)
GOLD, SILVER, CYAN = (250, 200, 40), (170, 178, 190), (90, 220, 240)


def _bust(c: Canvas, skin: Colour, shirt: Colour, face: tuple[float, float] = (0.5, 0.55)) -> None:
    c.ellipse(0, 1.12, 0.92, 0.62, shirt, start=180, stop=360)
    c.rectangle(-0.17, 0.3, 0.17, 0.6, shade(skin, 0.9), outlined=False)
    c.ellipse(0, -0.02, *face, skin)


def _eyes(c: Canvas, y: float = -0.08, size: float = 0.1) -> None:
    for x in (-0.21, 0.21):
        c.ellipse(x, y, size, size * 1.2, BLACK, outlined=False)


def _mouth(c: Canvas, y: float = 0.24, width: float = 0.2, colour: Colour = LIPS) -> None:
    c.line([(-width, y), (0, y + 0.09), (width, y)], 0.09, colour)


def bolko(c: Canvas, rng: Random) -> None:
    _bust(c, SKINS[0], GREEN)
    c.polygon([(-0.55, 0.05), (0.55, 0.05), (0.5, 0.55), (0, 1.0), (-0.5, 0.55)], ORANGE)
    c.polygon([(-0.6, -0.25), (0.05, -1.05), (0.6, -0.25)], GREEN)
    _eyes(c, -0.1)
    c.ellipse(0, 0.1, 0.12, 0.11, (240, 150, 120), outlined=False)


def mira(c: Canvas, rng: Random) -> None:
    c.rectangle(-0.66, -0.3, 0.66, 0.72, BLUE)
    _bust(c, SKINS[0], VIOLET, face=(0.44, 0.5))
    c.polygon([(-0.45, -0.36), (-0.12, -0.85), (0.4, -1.08), (0.2, -0.75), (0.45, -0.36)], VIOLET)
    c.ellipse(0, -0.36, 0.98, 0.17, VIOLET)
    c.rectangle(-0.42, -0.54, 0.42, -0.4, GOLD, outlined=False)
    _eyes(c, -0.02)
    _mouth(c, 0.26)


def quillan(c: Canvas, rng: Random) -> None:
    _bust(c, SKINS[1], (160, 26, 34))
    c.polygon([(-0.95, -0.28), (-0.8, -0.62), (0, -1.0), (0.8, -0.62), (0.95, -0.28), (0, -0.42)], BLACK)
    c.ellipse(0, -0.62, 0.15, 0.15, WHITE, outlined=False)
    c.ellipse(0.22, -0.06, 0.2, 0.18, BLACK)
    c.line([(-0.48, -0.26), (0.5, 0.0)], 0.08, BLACK)
    c.ellipse(-0.21, -0.06, 0.1, 0.12, BLACK, outlined=False)
    c.polygon([(-0.36, 0.3), (0, 0.16), (0.36, 0.3), (0, 0.34)], BLACK)


def selka(c: Canvas, rng: Random) -> None:
    for side in (-1, 1):
        c.ellipse(side * 0.58, -0.38, 0.38, 0.36, (190, 60, 190))
    _bust(c, SKINS[0], GOLD, face=(0.46, 0.54))
    c.polygon([(-0.42, -0.4), (-0.5, -0.98), (-0.2, -0.65), (0, -1.05), (0.2, -0.65), (0.5, -0.98), (0.42, -0.4)], GOLD)
    _eyes(c, -0.02)
    _mouth(c, 0.26)


def orro(c: Canvas, rng: Random) -> None:
    for side in (-1, 1):
        c.ellipse(side * 0.66, -0.12, 0.34, 0.44, (232, 40, 36))
    _bust(c, WHITE, (250, 130, 30))
    for x in (-0.22, 0.22):
        c.polygon([(x - 0.14, -0.1), (x, -0.42), (x + 0.14, -0.1), (x, 0.16)], BLUE, outlined=False)
    _eyes(c, -0.1, 0.08)
    c.ellipse(0, 0.1, 0.15, 0.15, (232, 40, 36), outlined=False)
    c.ellipse(0, 0.32, 0.28, 0.1, LIPS, outlined=False)


def zorin(c: Canvas, rng: Random) -> None:
    c.rectangle(-0.8, 0.66, 0.8, 1.2, (90, 100, 116))
    c.rectangle(-0.18, 0.45, 0.18, 0.7, BLACK)
    c.line([(0, -0.95), (0, -0.6)], 0.1, (90, 100, 116))
    c.ellipse(0, -0.92, 0.14, 0.14, (240, 60, 50))
    c.rectangle(-0.66, -0.62, 0.66, 0.5, SILVER)
    for x in (-0.3, 0.3):
        c.rectangle(x - 0.17, -0.35, x + 0.17, -0.05, CYAN)
    c.rectangle(-0.4, 0.15, 0.4, 0.33, BLACK)


def man(c: Canvas, rng: Random, look: str) -> None:
    skin, hair, shirt = rng.choice(SKINS), rng.choice(HAIRS), rng.choice(SHIRTS)
    _bust(c, skin, BLACK if look == "gentleman" else shirt)
    if look == "boy":
        c.ellipse(0, -0.2, 0.52, 0.46, shirt, start=180, stop=360)
        c.rectangle(-0.1, -0.3, 0.85, -0.18, shade(shirt, 0.7))
    else:
        c.ellipse(0, -0.18, 0.53, 0.48, hair, start=180, stop=360)
    _eyes(c)
    if look == "gentleman":
        c.ellipse(0, 0.2, 0.3, 0.09, hair, outlined=False)
        for side in (-1, 1):
            c.polygon([(0, 0.72), (side * 0.3, 0.58), (side * 0.3, 0.86)], (214, 30, 40))
    else:
        _mouth(c, 0.24, 0.16, (170, 80, 70))


def woman(c: Canvas, rng: Random, look: str) -> None:
    skin, hair, shirt = rng.choice(SKINS), rng.choice(HAIRS), rng.choice(SHIRTS)
    if look == "lady":
        c.ellipse(0, -0.78, 0.28, 0.24, hair)
        c.ellipse(0, -0.1, 0.6, 0.6, hair)
    elif look == "girl":
        for side in (-1, 1):
            c.ellipse(side * 0.72, 0.15, 0.2, 0.42, hair)
        c.ellipse(0, -0.1, 0.58, 0.58, hair)
    else:
        c.ellipse(0, -0.05, 0.68, 0.62, hair)
        c.rectangle(-0.68, -0.05, 0.68, 0.72, hair)
    _bust(c, skin, shirt, face=(0.45, 0.5))
    c.ellipse(0, -0.22, 0.47, 0.36, hair, start=180, stop=360)
    _eyes(c, -0.02)
    _mouth(c, 0.24, 0.17)


_NAMED = {"bolko": bolko, "mira": mira, "quillan": quillan, "selka": selka, "orro": orro, "zorin": zorin}
_GENERIC = {"man": man, "woman": woman}


def draw_face(c: Canvas, name: str, look: str, rng: Random) -> None:
    """Draw a face. Characters always look the same; skin, hair and shirt of people are drawn from `rng`."""
    if name in _NAMED:
        _NAMED[name](c, rng)
    else:
        _GENERIC[name](c, rng, look)
