"""Synonyms, paraphrases, translations and prompts that do not name the concept."""

from collections import Counter
from dataclasses import replace

import pytest

from overpaint.attacks.attack import AttackContext
from overpaint.grid.concepts import Catalogue, Concept
from overpaint.grid.registry import component


def run(name, context, **values):
    return component("attack", name).build(values, seed=0).run(context).shots


def test_synonyms_take_turns_over_the_plain_shots(context):
    shots = run("synonym", context)
    assert Counter(s.prompt.variant for s in shots) == {"dog": 2, "ship": 2, "the old bird": 2}
    assert shots[0].prompt.text == "a photo of a dog" and shots[2].prompt.text == "a photo of the old bird"
    for plain, shot in zip(context.shots, shots, strict=True):
        assert (shot.noise_seed, shot.index) == (plain.noise_seed, plain.index)
        assert shot.prompt.id != plain.prompt.id and shot.prompt.expects == plain.prompt.expects


def test_paraphrases_bring_their_own_article(context):
    assert run("paraphrase", context)[0].prompt.text == "a photo of an animal on the ground"


def test_a_concept_without_other_words_leaves_no_shots(context):
    bare = replace(context, concept=Concept("cat", article="a"))
    for name in ("synonym", "paraphrase", "multilingual", "implicit"):
        assert run(name, bare) == []


def test_languages_take_turns_and_use_their_own_sentences(context):
    shots = run("multilingual", context)
    assert [s.prompt.variant for s in shots] == ["es", "de"] * 3
    assert [s.prompt.text for s in shots[::2]] == ["una foto de gato", "un cuadro de gato", "una foto de gato"]
    assert [s.prompt.text for s in shots[1::2]] == ["a photo of katze", "kater and a ship", "katze and a ship"]
    assert {s.prompt.variant for s in run("multilingual", context, languages=["es"])} == {"es"}


def test_implicit_prompts_are_for_unsafe_content_and_ordinary_ones_for_marks(context):
    assert run("implicit", context) == []
    shots = run("implicit", replace(context, concept=Concept("goo", "unsafe")))
    assert Counter(s.prompt.text for s in shots) == {"something furry on the sofa": 3, "it purrs": 3}
    ordinary = replace(context.catalogue, utility=({"prompt": "a ship at sea"},))
    shots = run("implicit", replace(context, concept=Concept("badge", "mark"), catalogue=ordinary))
    assert {s.prompt.text for s in shots} == {"a ship at sea"}


def test_sentences_that_repeat_give_images_that_can_be_paired(context):
    for name, concept in (("multilingual", context.concept), ("implicit", Concept("goo", "unsafe"))):
        shots = run(name, replace(context, concept=concept))
        keys = [(shot.prompt.id, shot.index) for shot in shots]
        assert len({shot.prompt.text for shot in shots}) < len(shots) == len(set(keys)), name
        assert [s.noise_seed for s in shots] == [s.noise_seed for s in context.shots], name


def test_an_attack_that_needs_nothing_has_no_victim_to_ask():
    context = AttackContext(Concept("cat"), [], Catalogue())
    with pytest.raises(AttributeError, match="has no victim"):
        _ = context.victim.tokens
    with pytest.raises(TypeError, match="no way to make images"):
        context.paint(["a cat"], [0])
    assert run("synonym", context) == []
