"""Concept arithmetic: identities of a sum of guided predictions that hold for every model."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch

import overpaint
from official import by_variant
from overpaint.attacks.concept_arithmetic import OTHERS, Composition, placed, words_for
from overpaint.grid.concepts import Concept
from overpaint.grid.prompts import Prompt, Shot
from overpaint.grid.registry import component


def arithmetic(**values):
    return component("attack", "concept_arithmetic").build(values, seed=0)


@pytest.fixture(scope="module")
def predictions(tiny_sd_float64):
    """``predictions(recipe)`` -> the composed prediction of one noisy latent; "" is the empty prompt."""
    model = tiny_sd_float64
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def guided(text, guidance=None, scale=7.5):
        embeds = model.encode([text] * 2)
        nothing = model.unconditional().expand_as(embeds)
        return (guidance or model.guidance)(model, embeds, nothing, scale, [text] * 2)

    def predict(*terms):
        parts = [(guided(text), weight) for text, weight in terms]
        return Composition(model, parts)(latents, 500, 3)

    predict.alone = lambda text, scale=7.5: guided(text, scale=scale)(latents, 500, 3)
    predict.plain = lambda text: model.predict(latents, 500, model.encode([text] * 2))
    with torch.no_grad():
        yield predict


def test_one_prompt_of_weight_one_is_the_victims_own_guidance(predictions):
    assert torch.equal(predictions(("a cat", 1.0)), predictions.alone("a cat"))


def test_a_weight_is_a_share_of_the_guidance_scale(predictions):
    """Weight r at scale w is classifier-free guidance at r w."""
    torch.testing.assert_close(predictions(("a cat", 0.4)), predictions.alone("a cat", 0.4 * 7.5), rtol=1e-9, atol=1e-9)


def test_it_is_the_sum_of_differences_from_the_empty_prompt(predictions):
    found = predictions(("a cat", 1.5), ("a dog", -1.0), ("a ship", 0.25))
    nothing = predictions.plain("")
    wanted = nothing + 7.5 * sum(
        r * (predictions.plain(text) - nothing) for text, r in (("a cat", 1.5), ("a dog", -1.0), ("a ship", 0.25))
    )
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_order_changes_nothing_and_the_empty_prompt_adds_nothing(predictions):
    one = predictions(("a cat", 1.0), ("a dog", -0.5), ("a ship", 0.5))
    other = predictions(("a ship", 0.5), ("a cat", 1.0), ("a dog", -0.5))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        predictions(("a cat", 1.0), ("", 0.7)), predictions(("a cat", 1.0)), rtol=1e-9, atol=1e-9
    )


def test_equal_prompts_cancel(predictions):
    """e(a) + e(b) − e(b) is e(a)."""
    found = predictions(("a cat", 1.0), ("a dog", 1.0), ("a dog", -1.0))
    torch.testing.assert_close(found, predictions.alone("a cat"), rtol=1e-9, atol=1e-9)


def test_the_name_alone_draws_the_plain_pictures_and_a_weight_of_zero_is_no_term(context, tiny_sd):
    context = replace(context, protocol=context.protocol | {"steps": 2, "scheduler": "pndm"})
    recipes = {"plain": {"name": 1.0}, "zero": {"name": 1.0, "synonym": 0.0}, "more": {"name": 1.0, "synonym": 0.5}}
    found = by_variant(arithmetic(recipes=recipes).run(context))
    texts, seeds = [s.prompt.text for s in context.shots], [s.noise_seed for s in context.shots]
    plain = [image.tobytes() for image in tiny_sd.sample(texts, seeds, **context.protocol)]
    assert found["plain"] == plain == found["zero"] != found["more"]


@pytest.mark.parametrize("method", ["negative_prompt", "sld"])
def test_every_prompt_passes_the_guard(method, context, tiny_sd):
    context = replace(context, protocol=context.protocol | {"steps": 3})
    attack = arithmetic(recipes={"plain": {"name": 1.0}, "sum": {"synonym": 1.0, "name": 0.5, "other": -0.5}})
    settings = {"warmup_steps": 0} if method == "sld" else {}
    free = by_variant(attack.run(context))
    with overpaint.erase(tiny_sd, method, erase=["cat"], **settings).attached(tiny_sd):
        texts, seeds = [s.prompt.text for s in context.shots], [s.noise_seed for s in context.shots]
        guarded = [image.tobytes() for image in tiny_sd.sample(texts, seeds, **context.protocol)]
        found = by_variant(attack.run(context))
    assert found["plain"] == guarded and found["sum"] != free["sum"]


def test_prompts_of_a_recipe(cat):
    shot = Shot(Prompt("a photo of a cat", "target"), 0)
    known = replace(cat, anchor="dog", neighbours=("dog", "ship"))
    texts = {place: placed(shot, known, place, words).prompt.text for place, words in words_for(known).items()}
    assert texts == {
        "name": "a photo of a cat",
        "other": "a photo of a ship",
        "beside": "a photo of a cat and ship",
        "nothing": "",
        "synonym": "a photo of a dog",
        "paraphrase": "a photo of an animal on the ground",
        "translation": "a photo of gato",
        "anchor": "a photo of a dog",
    }
    unnamed = Shot(Prompt("something furry", "target"), 0)
    assert placed(unnamed, cat, "synonym", "dog").prompt.text == "something furry, dog"
    assert placed(shot, cat, "synonym", "dog").noise_seed == shot.noise_seed, "from the plain picture's noise"


@pytest.mark.parametrize("kind", OTHERS)
def test_there_is_always_something_else(kind):
    """This also holds if one of the ordinary things is erased and another is its anchor."""
    for name, anchor in permutations(OTHERS[kind], 2):
        assert words_for(Concept(name, kind=kind, anchor=anchor))["other"] in {*OTHERS[kind]} - {name, anchor}


def test_recipes_that_cannot_be_told_are_left_out(context):
    bare = replace(context, concept=Concept("cat", article="a", label="cat"))
    found = by_variant(arithmetic().run(bare))
    assert set(found) == {"beside"} and len(found["beside"]) == len(context.shots)
    with pytest.raises(overpaint.UserError, match=r"no recipe of attack.recipes applies to 'cat', which only has name"):
        arithmetic(recipes={"a": {"synonym": 1.0}}).run(bare)


def test_what_is_drawn_is_judged_and_counted(context, judge):
    judge.fires = (0,)
    assault = arithmetic(recipes={"a": {"name": 1.0}}).run(context)
    assert [p.verdict.success for p in assault.painted] == [True] + [False] * 5
    assert assault.ledger.images == 6 and assault.ledger.forwards == 6 * 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"recipes": {}}, "at least one recipe"),
        ({"recipes": {"a": {"nmae": 1.0}}}, "did you mean 'name'"),
        ({"recipes": {"a": {"name": "much"}}}, "numbers as weights, got 'much' for a.name"),
        ({"recipes": {"a": []}}, r"got \[\] for a"),
        ({"steps": 0}, "steps takes a number from 1"),
    ],
)
def test_bad_input_is_refused(values, said):
    with pytest.raises(overpaint.UserError, match=said):
        arithmetic(**values)
