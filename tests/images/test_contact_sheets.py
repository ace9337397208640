"""Contact sheets: their images, the layout, and blurring."""

import time

import numpy as np
import pytest
from PIL import Image, ImageChops

from overpaint.images.contact_sheets import GAP, HEAD, LEFT, SIDE, Sheet, _file_name, draw, font, lines_within

SMALL = font("DejaVuSans", 10)


def plain(colour):
    return Image.new("RGB", (64, 64), colour)


def box(row, column):
    x, y = LEFT + column * (SIDE + GAP), HEAD + row * (SIDE + GAP)
    return x, y, x + SIDE, y + SIDE


def sheet_of(*rows, unsafe=False):
    sheet = Sheet(unsafe=unsafe)
    for method, *pictures in rows:
        for group, caption, image in pictures:
            sheet.add(method, group, caption, image)
    return sheet


def test_every_picture_stands_in_the_row_of_its_method_and_the_column_of_its_prompt():
    sheet = sheet_of(
        ("none", ("target", "a church", plain("red")), ("target", "the church", plain("green"))),
        ("uce", ("target", "a church", plain("blue")), ("cce", "a <v>", plain("white"))),
    )
    drawn = draw(sheet, blurred=False)
    for place, colour in (((0, 0), "red"), ((0, 1), "green"), ((1, 0), "blue"), ((1, 2), "white")):
        assert ImageChops.difference(drawn.crop(box(*place)), Image.new("RGB", (SIDE, SIDE), colour)).getbbox() is None
    missing = np.asarray(drawn.crop(box(0, 2)))
    assert (missing[0, 0] == 204).all() and (missing[20, 20] == 255).all()  # an empty frame


def test_a_failed_image_is_a_red_frame():
    drawn = draw(sheet_of(("none", ("target", "a church", None))), blurred=False)
    assert drawn.getpixel(box(0, 0)[:2]) == (204, 0, 0)


def test_blurring_hides_what_a_picture_shows():
    stripes = Image.fromarray(np.tile(np.array([[0] * 4 + [255] * 4], dtype=np.uint8), (64, 8)))
    sheet = sheet_of(("none", ("target", "x", stripes.convert("RGB"))), unsafe=True)
    sharp, blurred = (
        np.asarray(draw(sheet, b).crop(box(0, 0)).convert("L"), float)[30:98, 30:98] for b in (False, True)
    )
    assert sharp.std() > 80 and blurred.std() < 5


def test_sheets_of_sweep_points_have_names_of_their_own():
    keys = [("testbed", "church", "testbed", f"smoke target_prompts={n}", "0") for n in (4, 8)]
    names = {_file_name(key, dict.fromkeys(keys)) for key in keys}
    assert names == {"testbed-church-smoke target_prompts=4", "testbed-church-smoke target_prompts=8"}
    slashes = [("testbed", name, "p", "b", "0") for name in ("a/b", "a?b")]
    assert len({_file_name(key, dict.fromkeys(slashes)) for key in slashes}) == 2


@pytest.mark.parametrize("text", ["una imagen de el capitán pirata", "MMMM WWWW " * 4, "W" * 60, "", "é" * 9])
def test_a_heading_is_no_wider_than_its_column_and_loses_nothing_that_fits(text):
    lines = lines_within(text, SMALL, SIDE, 99)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(SMALL.getlength(line) <= SIDE for line in lines)


def test_what_does_not_fit_ends_in_an_ellipsis():
    lines = lines_within("a church by the sea at night in winter " * 3, SMALL, SIDE, 2)
    assert len(lines) == 2 and lines[-1].endswith("…") and SMALL.getlength(lines[-1]) <= SIDE
    assert lines_within("a church", SMALL, SIDE, 3) == ["a church"]


def test_a_very_long_caption_is_laid_out_at_once():
    start = time.perf_counter()
    lines = lines_within("word " * 2000, SMALL, SIDE, 3)
    assert time.perf_counter() - start < 1 and lines[-1].endswith("…")


def test_accents_are_drawn():
    missing = SMALL.getmask("\uffff").getbbox(), bytes(SMALL.getmask("\uffff"))
    for letter in "éüñßłşЖ":
        assert (SMALL.getmask(letter).getbbox(), bytes(SMALL.getmask(letter))) != missing
