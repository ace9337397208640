"""Drawings of all objects, in the unit box, standing on y = 1. A *look* is a rarer form with a word of its own."""

from collections.abc import Callable
from math import cos, pi, sin

from .canvas import Canvas, Colour, shade

WHITE, BLACK, BROWN, GOLD = (250, 250, 250), (30, 28, 32), (122, 74, 40), (246, 190, 40)
STEEL, LEAF, GLASS = (120, 124, 134), (60, 150, 60), (200, 228, 246)

# object -> its rarer looks; the default look is the object's own name
LOOKS = {
    "house": ("cabin", "cottage"),
    "church": ("chapel", "cathedral"),
    "tree": ("pine", "oak"),
    "car": ("jeep", "van"),
    "fish": ("goldfish", "shark"),
    "star": ("starfish", "comet"),
    "cup": ("mug", "teacup"),
    "sun": ("sunrise", "sunshine"),
    "flower": ("daisy", "tulip"),
    "boat": ("ship", "yacht"),
    "umbrella": ("parasol", "brolly"),
    "cat": ("kitten", "tomcat"),
    "key": ("latchkey", "passkey"),
    "mushroom": ("toadstool", "fungus"),
}
OBJECTS = tuple(LOOKS)
UNSEEN = ("rocket", "snowman")


def house(c: Canvas, col: Colour, look: str) -> None:
    if look == "cabin":
        c.rectangle(-0.75, -0.95, -0.4, 0.0, STEEL)
        c.rectangle(-0.95, 0.0, 0.95, 1, BROWN)
        for y in (0.3, 0.6):
            c.line([(-0.95, y), (0.95, y)], 0.07, shade(BROWN, 0.5))
        c.polygon([(-1, 0.05), (-0.6, -0.6), (0.6, -0.6), (1, 0.05)], col)
        c.rectangle(0.1, 0.35, 0.5, 1, shade(BROWN, 0.45))
        return
    roof = (222, 180, 70) if look == "cottage" else shade(col, 0.55)
    c.rectangle(-0.75, -0.1, 0.75, 1, col)
    if look == "cottage":
        c.ellipse(0, 0.0, 0.98, 0.95, roof, start=180, stop=360)
        c.rectangle(-0.55, 0.3, -0.2, 0.65, GLASS)
        c.rectangle(0.2, 0.3, 0.55, 0.65, GLASS)
        return
    c.polygon([(-1, 0), (0, -1), (1, 0)], roof)
    c.rectangle(-0.5, 0.25, -0.1, 0.6, GLASS)
    c.rectangle(0.15, 0.3, 0.55, 1, shade(col, 0.4))


def _cross(c: Canvas, x: float, top: float, col: Colour) -> None:
    c.line([(x, top), (x, top + 0.45)], 0.13, col)
    c.line([(x - 0.17, top + 0.15), (x + 0.17, top + 0.15)], 0.13, col)


def _tower(c: Canvas, x: float, half: float, top: float, col: Colour) -> None:
    dark = shade(col, 0.5)
    _cross(c, x, top - 0.75, dark)
    c.rectangle(x - half, top, x + half, 1, col)
    c.polygon([(x - half - 0.08, top), (x, top - 0.45), (x + half + 0.08, top)], dark)


def church(c: Canvas, col: Colour, look: str) -> None:
    dark = shade(col, 0.45)
    if look == "chapel":
        c.ellipse(0, 1, 1, 0.3, LEAF, start=180, stop=360)
        _tower(c, 0, 0.45, 0.05, col)
        c.ellipse(0, 0.75, 0.18, 0.32, dark)
        return
    if look == "cathedral":
        c.rectangle(-0.4, 0.0, 0.4, 1, shade(col, 1.3))
        c.ellipse(0, 0.3, 0.2, 0.2, GLASS)
        _tower(c, -0.65, 0.3, -0.25, col)
        _tower(c, 0.65, 0.3, -0.25, col)
        c.ellipse(0, 0.85, 0.17, 0.28, dark)
        return
    c.rectangle(-0.2, 0.15, 1, 1, col)
    c.polygon([(-0.2, 0.15), (0, -0.2), (0.85, -0.2), (1, 0.15)], dark)
    _tower(c, -0.5, 0.36, -0.25, col)
    c.ellipse(-0.5, 0.75, 0.17, 0.3, dark)
    for x in (0.2, 0.65):
        c.ellipse(x, 0.58, 0.12, 0.24, GLASS)


def tree(c: Canvas, col: Colour, look: str) -> None:
    if look == "pine":
        c.rectangle(-0.13, 0.5, 0.13, 1, BROWN)
        for top, half in ((0.0, 0.75), (-0.5, 0.6), (-1.0, 0.42)):
            c.polygon([(-half, top + 0.65), (0, top), (half, top + 0.65)], col)
        return
    if look == "oak":
        c.rectangle(-0.26, 0.0, 0.26, 1, BROWN)
        c.ellipse(0, -0.3, 1, 0.62, col)
        return
    c.rectangle(-0.15, 0.1, 0.15, 1, BROWN)
    for x, y in ((-0.38, -0.1), (0.38, -0.1), (0, -0.52)):
        c.ellipse(x, y, 0.46, 0.44, col, outlined=c.style in ("sketch", "neon"))
    c.ellipse(0, -0.2, 0.4, 0.34, col, outlined=False)


def car(c: Canvas, col: Colour, look: str) -> None:
    if look == "van":
        c.polygon([(-1, 0.6), (-1, -0.55), (0.55, -0.55), (1, 0.05), (1, 0.6)], col)
        c.polygon([(0.2, -0.35), (0.48, -0.35), (0.78, 0.08), (0.2, 0.08)], GLASS)
    elif look == "jeep":
        c.rectangle(-1, -0.1, 1, 0.55, col)
        c.rectangle(-0.75, -0.65, 0.4, -0.1, col)
        c.rectangle(-0.55, -0.5, -0.2, -0.12, GLASS)
        c.rectangle(-0.05, -0.5, 0.3, -0.12, GLASS)
        c.ellipse(-1.0, 0.0, 0.2, 0.34, BLACK)
    else:
        c.polygon([(-0.6, 0.1), (-0.35, -0.45), (0.3, -0.45), (0.62, 0.1)], col)
        c.polygon([(-0.42, 0.08), (-0.25, -0.3), (0.22, -0.3), (0.42, 0.08)], GLASS)
        c.polygon([(-1, 0.6), (-1, 0.15), (-0.7, 0.05), (0.75, 0.05), (1, 0.25), (1, 0.6)], col)
    for x in (-0.55, 0.55):
        c.ellipse(x, 0.62, 0.3, 0.3, BLACK)
        c.ellipse(x, 0.62, 0.11, 0.11, WHITE, outlined=False)


def fish(c: Canvas, col: Colour, look: str) -> None:
    dark = shade(col, 0.65)
    if look == "shark":
        c.polygon([(0.45, 0), (1, -0.55), (0.85, 0), (1, 0.5)], col)
        c.polygon([(-0.2, -0.25), (0.2, -0.85), (0.3, -0.2)], col)
        c.ellipse(-0.2, 0, 0.8, 0.33, col)
        c.polygon([(-0.85, 0.14), (-0.3, 0.1), (-0.45, 0.28)], WHITE)
    elif look == "goldfish":
        c.polygon([(0.2, 0), (1, -0.75), (0.75, 0), (1, 0.75)], shade(col, 1.35))
        c.ellipse(-0.3, 0, 0.6, 0.52, col)
    else:
        c.polygon([(0.45, 0), (1, -0.45), (1, 0.45)], dark)
        c.polygon([(-0.25, -0.35), (0.25, -0.7), (0.3, -0.2)], dark)
        c.ellipse(-0.2, 0, 0.78, 0.47, col)
        for x in (-0.1, 0.22):
            c.line([(x, -0.34), (x + 0.1, 0), (x, 0.34)], 0.09, dark)
    c.ellipse(-0.6, -0.1, 0.12, 0.12, WHITE, outlined=False)
    c.ellipse(-0.62, -0.1, 0.07, 0.07, BLACK, outlined=False)


def _rays(count: int, outer: float, inner: float, turn: float = -90.0) -> list[tuple[float, float]]:
    return [
        ((outer, inner)[i % 2] * cos(a), (outer, inner)[i % 2] * sin(a))
        for i in range(2 * count)
        for a in [(turn + 180 * i / count) * pi / 180]
    ]


def star(c: Canvas, col: Colour, look: str) -> None:
    if look == "starfish":
        for i in range(5):
            a = (-90 + 72 * i) * pi / 180
            c.line([(0, 0.05), (0.75 * cos(a), 0.05 + 0.75 * sin(a))], 0.44, col)
            c.ellipse(0.78 * cos(a), 0.05 + 0.78 * sin(a), 0.2, 0.2, col, outlined=False)
            c.ellipse(0.4 * cos(a), 0.05 + 0.4 * sin(a), 0.1, 0.1, WHITE, outlined=False)
        return
    if look == "comet":
        c.polygon([(-1, -0.95), (0.5, -0.15), (0.1, 0.5)], shade(col, 1.55))
        c.polygon([(0.38 + 0.62 * x, 0.35 + 0.62 * y) for x, y in _rays(5, 1, 0.42)], col)
        return
    c.polygon(_rays(5, 1, 0.42), col)


def cup(c: Canvas, col: Colour, look: str) -> None:
    dark = shade(col, 0.55)
    if look == "teacup":
        c.ellipse(0, 0.85, 1, 0.16, WHITE)
        c.line([(0.55, -0.05), (0.9, 0), (0.8, 0.35), (0.5, 0.4)], 0.13, dark)
        c.ellipse(-0.05, -0.1, 0.7, 0.9, col, start=0, stop=180)
        c.ellipse(-0.05, -0.1, 0.7, 0.13, BROWN)
        return
    c.line([(0.5, -0.15), (0.9, -0.1), (0.92, 0.5), (0.5, 0.6)], 0.17, dark)
    if look == "mug":
        c.rectangle(-0.75, -0.75, 0.55, 1, col)
        c.rectangle(-0.75, -0.1, 0.55, 0.35, WHITE)
        return
    c.polygon([(-0.75, -0.4), (0.6, -0.4), (0.45, 1), (-0.6, 1)], col)
    c.ellipse(-0.08, -0.4, 0.68, 0.15, BROWN)
    for x in (-0.35, 0.15):
        c.line([(x, -0.65), (x + 0.1, -0.78), (x, -0.95)], 0.1, STEEL)


def sun(c: Canvas, col: Colour, look: str) -> None:
    dark = shade(col, 0.45)
    if look == "sunrise":
        for i in range(7):
            a = pi + pi * i / 6
            c.line([(0.6 * cos(a), 0.7 + 0.75 * sin(a)), (cos(a), 0.7 + 1.3 * sin(a))], 0.15, col)
        c.ellipse(0, 0.7, 0.55, 0.65, col, start=180, stop=360)
        c.line([(-1, 0.75), (1, 0.75)], 0.12, dark)
        return
    if look == "sunshine":
        c.polygon(_rays(8, 1, 0.62), shade(col, 1.3))
        c.ellipse(0, 0, 0.42, 0.42, shade(col, 0.8))
        return
    c.polygon(_rays(12, 1, 0.62), shade(col, 0.75))
    c.ellipse(0, 0, 0.62, 0.62, col)
    for x in (-0.22, 0.22):
        c.ellipse(x, -0.14, 0.1, 0.12, BLACK, outlined=False)
    c.line([(-0.26, 0.18), (0, 0.34), (0.26, 0.18)], 0.11, dark)


def flower(c: Canvas, col: Colour, look: str) -> None:
    c.line([(0, 0.0), (0, 1)], 0.15, LEAF)
    c.ellipse(0.28, 0.68, 0.26, 0.13, LEAF)
    if look == "tulip":
        c.polygon(
            [(-0.5, -0.95), (-0.22, -0.5), (0, -1), (0.22, -0.5), (0.5, -0.95), (0.42, 0.0), (0, 0.25), (-0.42, 0.0)],
            col,
        )
        return
    count, petal = (9, WHITE) if look == "daisy" else (5, col)
    for i in range(count):
        a = (2 * pi * i / count) - pi / 2
        c.ellipse(0.4 * cos(a), -0.35 + 0.4 * sin(a), 0.7 / count + 0.14, 0.7 / count + 0.14, petal)
    c.ellipse(0, -0.35, 0.26, 0.26, col if look == "daisy" else GOLD)


def boat(c: Canvas, col: Colour, look: str) -> None:
    if look == "ship":
        c.rectangle(-0.15, -0.85, 0.2, 0.0, BLACK)
        c.rectangle(-0.6, -0.15, 0.6, 0.4, WHITE)
        for x in (-0.35, 0.0, 0.35):
            c.ellipse(x, 0.12, 0.1, 0.1, BLACK, outlined=False)
        c.polygon([(-1, 0.35), (1, 0.35), (0.8, 1), (-0.75, 1)], col)
        return
    c.line([(0, -1), (0, 0.5)], 0.13, BROWN)
    if look == "yacht":
        c.polygon([(0.08, -1), (0.95, 0.35), (0.08, 0.35)], WHITE)
        c.polygon([(-1, 0.55), (1, 0.55), (0.5, 0.9), (-0.8, 0.9)], col)
        return
    c.polygon([(0.1, -0.9), (0.75, 0.3), (0.1, 0.3)], WHITE)
    c.polygon([(-0.1, -0.75), (-0.7, 0.3), (-0.1, 0.3)], shade(col, 1.5))
    c.polygon([(-1, 0.45), (1, 0.45), (0.62, 1), (-0.62, 1)], col)


def umbrella(c: Canvas, col: Colour, look: str) -> None:
    if look == "parasol":
        c.line([(0, -0.2), (0, 1)], 0.12, WHITE)
        for i in range(4):
            part = (col, WHITE)[i % 2]
            c.polygon([(0, -0.9), (-1 + 0.5 * i, 0.0), (-0.5 + 0.5 * i, 0.0)], part)
        return
    if look == "brolly":
        c.line([(0, -0.2), (0, 0.9)], 0.14, BLACK)
        c.ellipse(0, 0.0, 0.85, 1, shade(col, 0.7), start=180, stop=360)
        c.line([(0, -1), (0, -0.02)], 0.1, WHITE)
        return
    c.line([(0, -0.2), (0, 0.8), (0.14, 0.93), (0.3, 0.8)], 0.13, BROWN)
    c.ellipse(0, 0.05, 1, 0.92, col, start=180, stop=360)
    for x in (-0.66, 0, 0.66):
        c.ellipse(x, 0.08, 0.3, 0.13, shade(col, 0.55), start=180, stop=360)


def cat(c: Canvas, col: Colour, look: str) -> None:
    dark = shade(col, 0.55)
    if look == "kitten":
        c.ellipse(0.1, 0.75, 0.4, 0.26, col)
        x, y, r = 0, 0.1, 0.58
    else:
        c.line([(0.4, 0.85), (0.85, 0.7), (0.85, 0.15)], 0.18, dark)
        c.ellipse(0, 0.5, 0.5, 0.5, col)
        x, y, r = 0, -0.3, 0.5
    for side in (-1, 1):
        c.polygon(
            [
                (x + side * r * 0.95, y - r * 0.3),
                (x + side * r * 0.85, y - r * 1.4),
                (x + side * r * 0.15, y - r * 0.8),
            ],
            col,
        )
    c.ellipse(x, y, r, r * 0.86, col)
    if look == "tomcat":
        for height in (0.35, 0.6):
            c.line([(-0.4, height), (0.4, height)], 0.13, dark)
        c.line([(x, y - 0.4), (x, y - 0.15)], 0.12, dark)
    for side in (-1, 1):
        c.ellipse(x + side * r * 0.42, y - r * 0.1, 0.11, 0.13, BLACK, outlined=False)
        c.line([(x + side * r * 0.5, y + r * 0.4), (x + side * r * 1.25, y + r * 0.35)], 0.05, BLACK)
    c.ellipse(x, y + r * 0.35, 0.09, 0.07, (240, 120, 140), outlined=False)


def key(c: Canvas, col: Colour, look: str) -> None:
    hole = shade(col, 0.35)
    c.rectangle(-0.3, -0.11, 1, 0.11, col)
    c.rectangle(0.5, 0.05, 0.66, 0.45, col)
    c.rectangle(0.82, 0.05, 0.98, 0.36, col)
    if look == "latchkey":
        c.rectangle(-1, -0.45, -0.15, 0.45, col)
        c.rectangle(-0.75, -0.18, -0.4, 0.18, hole)
    elif look == "passkey":
        c.polygon([(-1, -0.55), (-0.05, 0), (-1, 0.55)], col)
        c.ellipse(-0.72, 0, 0.14, 0.14, hole)
    else:
        c.ellipse(-0.55, 0, 0.45, 0.45, col)
        c.ellipse(-0.55, 0, 0.19, 0.19, hole)


def mushroom(c: Canvas, col: Colour, look: str) -> None:
    stem = (240, 228, 206)
    spots: tuple[tuple[float, float], ...]
    if look == "fungus":
        c.polygon([(-0.28, -0.1), (0.28, -0.1), (0.4, 1), (-0.4, 1)], stem)
        c.ellipse(0, -0.1, 1, 0.36, col)
        return
    if look == "toadstool":
        c.polygon([(-0.16, -0.1), (0.16, -0.1), (0.24, 1), (-0.24, 1)], stem)
        c.polygon([(-0.75, 0.0), (-0.4, -0.7), (0, -1), (0.4, -0.7), (0.75, 0.0)], (215, 40, 40))
        spots = ((-0.3, -0.35), (0.3, -0.35), (0, -0.65))
    else:
        c.polygon([(-0.26, 0), (0.26, 0), (0.36, 1), (-0.36, 1)], stem)
        c.ellipse(0, 0.08, 0.98, 0.95, col, start=180, stop=360)
        spots = ((-0.5, -0.25), (0.05, -0.5), (0.52, -0.22))
    for x, y in spots:
        c.ellipse(x, y, 0.17, 0.15, WHITE, outlined=False)


def rocket(c: Canvas, col: Colour, look: str) -> None:
    c.polygon([(-0.25, 0.6), (0, 1), (0.25, 0.6)], (255, 140, 20))
    for side in (-1, 1):
        c.polygon([(side * 0.25, 0.15), (side * 0.65, 0.75), (side * 0.25, 0.6)], shade(col, 0.6))
    c.polygon([(0, -1), (0.35, -0.45), (0.35, 0.6), (-0.35, 0.6), (-0.35, -0.45)], col)
    c.ellipse(0, -0.2, 0.18, 0.18, GLASS)


def snowman(c: Canvas, col: Colour, look: str) -> None:
    for y, r in ((0.58, 0.45), (-0.02, 0.34), (-0.5, 0.26)):
        c.ellipse(0, y, r, r, WHITE)
    c.rectangle(-0.35, -0.75, 0.35, -0.66, BLACK)
    c.rectangle(-0.2, -1, 0.2, -0.7, BLACK)
    c.line([(-0.3, -0.27), (0.3, -0.27)], 0.12, col)
    c.polygon([(0, -0.5), (0.35, -0.42), (0, -0.38)], (255, 140, 20))


DRAW: dict[str, Callable[[Canvas, Colour, str], None]] = {
    "house": house, "church": church, "tree": tree, "car": car, "fish": fish, "star": star, "cup": cup, "sun": sun,
    "flower": flower, "boat": boat, "umbrella": umbrella, "cat": cat, "key": key, "mushroom": mushroom,
    "rocket": rocket, "snowman": snowman,
}  # fmt: skip
