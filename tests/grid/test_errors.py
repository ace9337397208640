"""The name that an error suggests."""

import pytest

from overpaint.errors import nearest


@pytest.mark.parametrize(
    ("given", "allowed", "found"),
    [
        ("uxe", ["esd", "uce"], "uce"),
        ("output", ["out", "erasure"], "out"),
        ("CHURHC", ["church", "car"], "church"),
        ("seed", ["random_words", "seed_search"], "seed_search"),
        ("church", ["Richard Eurich", "Christian Rohlfs"], None),
        ("nosuch", ["sketch", "mosaic"], None),
        ("html", ["terminal", "markdown"], None),
    ],
)
def test_only_a_name_that_is_near_is_suggested(given, allowed, found):
    assert nearest(given, allowed) == (f"; did you mean {found!r}?" if found else "")
