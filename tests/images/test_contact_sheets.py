"""Headings of the contact sheet stay above their own column."""

import pytest
from PIL import ImageFont

from overpaint.images.contact_sheets import lines_within


@pytest.mark.parametrize("text", ["una imagen de el capitán pirata", "MMMM WWWW " * 4, "W" * 60, ""])
def test_a_heading_is_no_wider_than_its_column(text):
    font = ImageFont.load_default(11)
    lines = lines_within(text, font, 128)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(font.getlength(line) <= 128 for line in lines)


def test_a_heading_that_fits_is_one_line():
    assert lines_within("a church", ImageFont.load_default(11), 128) == ["a church"]
