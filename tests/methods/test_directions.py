"""Directions against recordings of the official code, and their identities."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

import overpaint
from official import by_name, distance, recorded, watched
from overpaint.blocks.draws import Draws
from overpaint.blocks.image_bank import ImageBank
from overpaint.grid.concepts import Concept
from overpaint.grid.registry import component
from overpaint.methods.directions import Directions, h_space, shortest_ids
from overpaint.models.erasure import Erasure

SMALL = {"pictures": 2, "picture_steps": 2, "epochs": 1, "batch_size": 2}


@pytest.fixture
def directions():
    return lambda **values: component("method", "directions").build(SMALL | values, seed=0)


@contextmanager
def steered(model, v, strength=1.0):
    """The model with the given vector."""
    erasure = Erasure("directions", "guard", parts={"0": v}, settings={"strength": strength})
    remove = Directions.install(model, erasure)
    try:
        yield
    finally:
        remove()


def test_training_is_the_official_one(tiny_sd, golden, directions):
    meta, result, extra = golden("directions/train_single")
    eraser = directions(epochs=meta["steps"], batch_size=meta["batch"], learning_rate=meta["lr"])
    captions = [("a person", 0)] * meta["batch"]
    draws = recorded(extra, "z", "noise", "t", "input_ids", "condition") | {"start.0": extra["start"]}
    with watched(draws) as seen:
        trained = eraser.trained(tiny_sd, ImageBank(tiny_sd, [], []), captions, 1, Draws(0))
    traced = by_name(seen)
    for step in range(meta["steps"]):
        torch.testing.assert_close(traced["loss"][step], extra["losses"][step], rtol=1e-5, atol=0)
        assert distance(traced["gradients"][step]["directions"], extra[f"grad.{step}"]) < 1e-4
    assert distance(trained.matrix.detach(), result["fc1.weight"], extra["start"]) < 1e-3
    assert tuple(trained.vectors()[0].shape) == (meta["channels"], meta["resolution"], meta["resolution"])


def test_captions_are_padded_as_in_the_official_code(tiny_sd, golden):
    _, _, extra = golden("directions/train_single")
    assert torch.equal(shortest_ids(tiny_sd, ["a person"] * 2), extra["input_ids.0"])
    assert shortest_ids(tiny_sd, ["dog", "a photo of a dog"]).shape[1] == len(tiny_sd.token_ids("a photo of a dog"))


def test_images_are_the_official_ones(tiny_sd, golden):
    meta, result, extra = golden("directions/gen_woman")
    v = extra["fc1.weight"][:, 0].unflatten(0, h_space(tiny_sd))
    with steered(tiny_sd, v), torch.no_grad():
        embeds = tiny_sd.encode([meta["prompt"]]), tiny_sd.unconditional()
        guidance = tiny_sd.guidance(tiny_sd, *embeds, meta["guidance_scale"], [meta["prompt"]])
        final = tiny_sd.denoise(extra["x_T"], guidance, meta["scheduler"], meta["steps"])
        schedule = tiny_sd.scheduler(meta["scheduler"])
        schedule.set_timesteps(meta["steps"])
        guided = guidance(extra["x_T"], schedule.timesteps[0], 0)
    nothing, named = extra["raw.0"].split(1)
    assert distance(guided, nothing + meta["guidance_scale"] * (named - nothing)) < 1e-4
    assert distance(final, result["final"]) < 1e-3


@pytest.mark.parametrize(
    ("learn", "prompt", "negative", "caption"),
    [
        ("negative", "a photo of a dog", "dog", "a photo of a dog"),
        ("anchor", "a photo of cat", "", "a photo of a dog"),
        ("concept", "a photo of a dog", "", "a photo of cat"),
    ],
)
def test_pictures_and_captions(learn, prompt, negative, caption, directions):
    examples = directions(learn=learn, pictures=40).examples(Concept("dog", article="a"), "cat", 3)
    assert len(examples) == 40 and examples[0] == (prompt, negative, caption, 3)


def test_only_the_vector_learns_and_each_concept_has_its_own(tiny_sd, directions):
    erasure = overpaint.erase(tiny_sd, "directions", erase=["dog", "ship"], learning_rate=0.1, **SMALL)
    assert not erasure.changes and len(erasure.parts) == 2
    assert not torch.equal(erasure.parts["0"], erasure.parts["1"])
    still = overpaint.erase(tiny_sd, "directions", erase=["dog", "ship"], learning_rate=0.0, **SMALL)
    assert max(part.abs().max() for part in still.parts.values()) <= 0.1
    assert all(not torch.equal(erasure.parts[key], still.parts[key]) for key in erasure.parts)


def test_training_lowers_the_loss(tiny_sd, directions):
    eraser = directions(learn="anchor", pictures=2, epochs=30, learning_rate=0.1)
    examples = eraser.examples(Concept("dog"), "cat", 0)
    bank = eraser.bank(tiny_sd, examples, Draws(0))
    z, fixed = bank.latents([0, 1], Draws(1), "z"), Draws(2)
    noise = fixed.noise("noise", tuple(z.shape), z)
    batch = {"t": torch.tensor([500, 500]), "noise": noise, "z": z}
    same = {f"{name}.{step}": value for step in range(30) for name, value in batch.items()}
    with watched(same) as seen:
        eraser.trained(tiny_sd, bank, [(example.caption, 0) for example in examples], 1, Draws(0))
    losses = by_name(seen)["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_no_strength_is_plain_guidance_bit_for_bit(tiny_sd, scale):
    erasure = overpaint.erase(tiny_sd, "directions", erase=["dog"], strength=0.0, **SMALL)
    plain = tiny_sd.sample(["a dog"], [3], steps=3, guidance_scale=scale)
    with erasure.attached(tiny_sd):
        guarded = tiny_sd.sample(["a dog"], [3], steps=3, guidance_scale=scale)
    assert np.array_equal(np.asarray(plain[0]), np.asarray(guarded[0]))


def test_only_the_prompts_prediction_changes(tiny_sd):
    """The guided prediction is e(∅) + w (e(p; v) − e(∅)), and e(p; v) without guidance and outside of it."""
    v, x = torch.randn(h_space(tiny_sd), generator=torch.Generator().manual_seed(0)), tiny_sd.noise([0, 1])
    positive, negative = tiny_sd.encode(["a dog", "a cat"]), tiny_sd.encode(["", ""])
    with torch.no_grad():
        nothing = tiny_sd.predict(x, 500, negative)
        with steered(tiny_sd, v, 2.0):
            named = tiny_sd.predict(x, 500, positive)
            guided, unguided = (tiny_sd.guidance(tiny_sd, positive, negative, w)(x, 500, 0) for w in (3.0, 1.0))
    torch.testing.assert_close(guided, nothing + 3 * (named - nothing), rtol=1e-4, atol=1e-4)
    assert torch.equal(unguided, named)
    handle = tiny_sd.denoiser.mid_block.register_forward_hook(lambda module, inputs, output: output + 2 * v)
    with torch.no_grad():
        by_hand = tiny_sd.predict(x, 500, positive)
    handle.remove()
    torch.testing.assert_close(by_hand, named, rtol=1e-5, atol=1e-5)


def test_vectors_of_several_erasures_are_summed(tiny_sd):
    one, two = (overpaint.erase(tiny_sd, "directions", erase=[name], **SMALL) for name in ("dog", "ship"))
    x, embeds = tiny_sd.noise([0]), (tiny_sd.encode(["a cat"]), tiny_sd.encode([""]))

    def guided():
        with torch.no_grad():
            return tiny_sd.guidance(tiny_sd, *embeds, 5.0)(x, 500, 0)

    with one.attached(tiny_sd), two.attached(tiny_sd):
        stacked = guided()
    with steered(tiny_sd, one.parts["0"] + two.parts["0"]):
        torch.testing.assert_close(guided(), stacked, rtol=1e-4, atol=1e-4)


def test_it_does_not_go_on_another_guard(tiny_sd):
    erasure = overpaint.erase(tiny_sd, "directions", erase=["dog"], **SMALL)
    other = overpaint.erase(tiny_sd, "sld", erase=["ship"])
    with (
        pytest.raises(overpaint.UserError, match="only with other directions"),
        other.attached(tiny_sd),
        erasure.attached(tiny_sd),
    ):
        pass


def test_images_of_another_size_are_refused(tiny_sd):
    erasure = overpaint.erase(tiny_sd, "directions", erase=["dog"], **SMALL)
    size = 2 * tiny_sd.image_size
    with erasure.attached(tiny_sd), pytest.raises(overpaint.UserError, match="images of one size only"):
        tiny_sd.sample(["a dog"], [0], steps=1, size=size)


@pytest.mark.parametrize("values", [{"pictures": 0}, {"epochs": 0}, {"learning_rate": -1.0}, {"batch_size": 0}])
def test_bad_values_are_refused(values, directions):
    with pytest.raises(overpaint.UserError, match=next(iter(values))):
        directions(**values)
