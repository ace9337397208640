"""A drawing surface whose brush and final filter depend on the style."""

from functools import lru_cache
from math import cos, pi, sin
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 64
SCALE = 4  # everything is drawn at SIZE * SCALE and box-downsampled
STYLES = ("flat", "sketch", "mosaic", "watercolor", "halftone", "sepia", "neon")

PAPER = (247, 245, 238)
INK = (34, 34, 38)
NIGHT_WALL = (14, 8, 26)
TUBES = ((255, 70, 170), (60, 220, 255), (130, 255, 80), (255, 190, 60))  # the only colours of neon

Colour = tuple[int, int, int]


def luminance(colour: Colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def shade(colour: Colour, factor: float) -> Colour:
    """Darker (factor < 1) or lighter (factor > 1, towards white)."""
    red, green, blue = (round(c * factor if factor <= 1 else c + (255 - c) * (factor - 1)) for c in colour)
    return red, green, blue


def tube(colour: Colour) -> Colour:
    """The neon tube whose hue is nearest to a colour; cyan for greys."""
    if max(colour) - min(colour) < 30:
        return TUBES[1]
    centred = np.array(colour, float) - np.mean(colour)
    tubes = np.array(TUBES, float) - np.mean(TUBES, axis=1, keepdims=True)
    closeness = tubes @ centred / np.linalg.norm(tubes, axis=1)
    return TUBES[int(np.argmax(closeness))]


class Canvas:
    """A canvas. Shapes use the unit box [-1, 1]^2 (y down) of the current item; `place` positions that box."""

    def __init__(self, style: str):
        self.style = style
        wall = {"sketch": PAPER, "neon": NIGHT_WALL}.get(style, (255, 255, 255))
        self.image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), wall)
        self.pen = ImageDraw.Draw(self.image)
        self.place(0.5, 0.5, 0.5)

    def place(self, x: float, y: float, half: float, tilt: float = 0.0) -> None:
        """Put the unit box at centre (x, y) with half width `half`, all in image widths; `tilt` in degrees."""
        side = SIZE * SCALE
        self.x, self.y, self.half = x * side, y * side, half * side
        self.cos, self.sin = cos(tilt * pi / 180), sin(tilt * pi / 180)

    def at(self, points) -> list[tuple[float, float]]:
        c, s, h = self.cos, self.sin, self.half
        return [(self.x + h * (px * c - py * s), self.y + h * (px * s + py * c)) for px, py in points]

    def brush(self, colour: Colour) -> tuple[Colour, Colour, int]:
        """Fill, outline and outline width (in drawing pixels) of a shape of this colour."""
        if self.style == "sketch":
            return (INK if luminance(colour) < 62 else PAPER), INK, 8
        if self.style == "neon":
            glow = tube(colour)
            return shade(glow, 0.22), glow, 9
        return colour, shade(colour, 0.62), 5

    def polygon(self, points, colour: Colour, outlined: bool = True) -> None:
        fill, outline, width = self.brush(colour)
        corners = self.at(points)
        self.pen.polygon(corners, fill=fill)
        if outlined:
            self.pen.line([*corners, corners[0], corners[1]], fill=outline, width=width, joint="curve")

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: Colour, outlined=True) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour, outlined)

    def ellipse(self, x, y, rx, ry, colour: Colour, outlined: bool = True, start=0.0, stop=360.0) -> None:
        """Draw an ellipse, or its slice between two angles (degrees, clockwise from the right)."""
        count = max(8, round((stop - start) / 15))
        angles = [(start + (stop - start) * i / count) * pi / 180 for i in range(count + (stop - start < 360))]
        self.polygon([(x + rx * cos(a), y + ry * sin(a)) for a in angles], colour, outlined)

    def line(self, points, width: float, colour: Colour) -> None:
        """Draw a stroke of `width` in units of the unit box."""
        _, outline, _ = self.brush(colour)
        fill = colour if self.style not in ("sketch", "neon") else outline
        self.pen.line(self.at(points), fill=fill, width=max(8, round(width * self.half)), joint="curve")

    def backdrop(self, top: float, bottom: float, colour: Colour) -> None:
        """Draw a band of background between two heights, in image heights."""
        side = SIZE * SCALE
        if self.style in ("sketch", "neon"):
            if top > 0:
                fill = INK if self.style == "sketch" else tube(colour)
                self.pen.line([(0, top * side), (side, top * side)], fill=fill, width=7)
            return
        self.pen.rectangle([0, top * side, side, bottom * side], fill=colour)

    def finished(self, jitter: int) -> Image.Image:
        """The image at its final size with the style's filter applied. `jitter` seeds the filter's randomness."""
        return _FINISH.get(self.style, lambda picture, _: picture)(self.image.reduce(SCALE), jitter)


def _smooth_noise(jitter: int, cells: int) -> np.ndarray:
    """Low-frequency noise in [0, 1], (SIZE, SIZE)."""
    rng = Random(jitter)
    coarse = bytes(rng.randrange(256) for _ in range(cells * cells))
    noise = Image.frombytes("L", (cells, cells), coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(noise, np.float32) / 255


def _mosaic(picture: Image.Image, jitter: int) -> Image.Image:
    tiles = np.asarray(picture.reduce(4).resize((SIZE, SIZE), Image.Resampling.NEAREST)).copy()
    tiles[3::4] = tiles[:, 3::4] = (205, 203, 196)
    return Image.fromarray(tiles)


def _watercolor(picture: Image.Image, jitter: int) -> Image.Image:
    wet = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.1)), np.float32)
    wash = 0.62 + 0.3 * _smooth_noise(jitter, 6)[..., None]
    washed = 252 + (wet - 252) * wash
    edge = _border_distance() + 3.5 * _smooth_noise(jitter + 1, 12) - 2
    cover = np.clip((edge - 4.5) / 2, 0, 1)[..., None]
    return Image.fromarray(np.clip(252 + (washed - 252) * cover, 0, 255).astype(np.uint8))


def _halftone(picture: Image.Image, jitter: int) -> Image.Image:
    colours = np.asarray(picture, np.float32)
    cells = np.asarray(picture.convert("L").reduce(4), np.float32) / 255
    radius = np.kron(0.7 + 2.1 * np.sqrt(1 - cells), np.ones((4, 4), np.float32))
    cover = np.clip(radius - _cell_distance() + 0.5, 0, 1)[..., None]
    dots = np.clip(colours * 0.8, 0, 255)
    return Image.fromarray((np.array(PAPER) * (1 - cover) + dots * cover).astype(np.uint8))


def _sepia(picture: Image.Image, jitter: int) -> Image.Image:
    grey = np.asarray(picture.convert("L"), np.float32)[..., None] / 255
    brown, cream = np.array([62, 34, 14], np.float32), np.array([240, 200, 142], np.float32)
    vignette = np.clip(0.55 + _border_distance() / 26, 0, 1)[..., None]
    return Image.fromarray(((brown + (cream - brown) * grey) * vignette).astype(np.uint8))


def _neon(picture: Image.Image, jitter: int) -> Image.Image:
    sharp = np.asarray(picture, np.float32)
    glow = np.asarray(picture.filter(ImageFilter.GaussianBlur(2.2)), np.float32)
    return Image.fromarray(np.clip(sharp + 0.45 * glow, 0, 255).astype(np.uint8))


@lru_cache
def _border_distance() -> np.ndarray:
    """Distance of each pixel to the nearest edge of the image."""
    ramp = np.minimum(np.arange(SIZE), SIZE - 1 - np.arange(SIZE)).astype(np.float32)
    return np.minimum(ramp[:, None], ramp[None])


@lru_cache
def _cell_distance() -> np.ndarray:
    """Distance of each pixel to the centre of its 4 x 4 cell."""
    offset = (np.arange(SIZE) % 4).astype(np.float32) - 1.5
    return np.hypot(offset[:, None], offset[None])


_FINISH = {
    "mosaic": _mosaic,
    "watercolor": _watercolor,
    "halftone": _halftone,
    "sepia": _sepia,
    "neon": _neon,
}
