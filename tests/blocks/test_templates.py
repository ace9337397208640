"""Prompts with other words in place of a concept."""

import pytest

from overpaint.blocks.templates import renamed
from overpaint.grid.concepts import Concept

CHURCH, MIRA = Concept("church", article="a"), Concept("mira", kind="character")


@pytest.mark.parametrize(
    "text, concept, words, expected",
    [
        ("a red church", CHURCH, "chapel", "a red chapel"),
        ("a church and a tree", CHURCH, "abbey", "an abbey and a tree"),
        ("A Church at night", CHURCH, "abbey", "an abbey at night"),
        ("the church", CHURCH, "abbey", "the abbey"),
        ("a church", CHURCH, "the house of god", "the house of god"),
        ("a church", CHURCH, "a building with a tower", "a building with a tower"),
        ("churches", CHURCH, "chapel", None),
        ("mira in a hat", MIRA, "the witch", "the witch in a hat"),
        ("admiral", MIRA, "x", None),
        ("a photo of a church", CHURCH, "<concept>", "a photo of a <concept>"),
        (r"a church", CHURCH, r"\1 chapel", r"a \1 chapel"),
    ],
)
def test_words_take_the_place_of_the_name_with_the_article_that_fits(text, concept, words, expected):
    assert renamed(text, concept, words) == expected


def test_a_whole_phrase_takes_the_article_with_it():
    assert renamed("a photo of a church", CHURCH, "una iglesia", whole=True) == "a photo of una iglesia"
