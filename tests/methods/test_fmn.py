"""FMN against recorded runs of its official code: attention, clipping, added tokens, and the inversion."""

import numpy as np
import pytest
import torch

import overpaint
from official import by_name, distance, flat, parameters, recorded, watched
from overpaint.blocks.image_bank import ImageBank
from overpaint.grid.concepts import Concept
from overpaint.grid.registry import component
from overpaint.methods.fmn import FMN

SMALL = {
    "pictures": 1, "picture_steps": 1, "batch_size": 1, "iterations": 1, "learning_rate": 1e-3, "train": "xattn",
    "inversion_tokens": 0, "inversion_steps": 2, "pooler": False, "erase": ["dog"],
}  # fmt: skip


def traced_erase(model, records=None, **arguments):
    """The erasure and its traced values, as lists by name."""
    with watched(records) as seen:
        erasure = overpaint.erase(model, "fmn", **(SMALL | arguments))
    return erasure, by_name(seen)


@pytest.mark.parametrize("tag", ["object_ca", "style_pooler_ca", "added_tokens"])
def test_official_code(tag, tiny_sd_float64, golden, monkeypatch):
    meta, weights, extra = golden(f"fmn/{tag}")
    model, concepts = tiny_sd_float64, [Concept(n.replace("-", " "), kind=kind) for n, kind in meta["concepts"]]
    if meta["added_tokens"]:
        rows = [extra[f"added_embeddings.{name}"] for name, _ in meta["concepts"]]
        names = iter(f"<s{n}>" for n in range(1, 10))
        words = [{next(names): row for row in own} for own in rows]
        monkeypatch.setattr(FMN, "words", lambda *_: words)
    erasure, seen = traced_erase(
        model,
        recorded(extra, "z", "t", "noise") | {"pictures.0": torch.arange(len(concepts))},
        erase=concepts,
        pictures=len(concepts),
        pooler=meta["use_pooler"],
        max_norm=meta["max_grad_norm"],
        iterations=meta["steps"],
        learning_rate=meta["lr"],
        weight_decay=meta["weight_decay"],
    )
    every, base = meta["every"], parameters(model, weights)
    for step in range(meta["steps"]):
        assert torch.equal(seen["input_ids"][step], extra[f"input_ids.{step}"].long())
        assert torch.equal(seen["positions"][step], extra[f"positions.{step}"].bool())
        norms = torch.stack([found.norm() for found in seen["attention"][step].values()])
        assert distance(norms, extra["layer_norms"][step]) < 1e-5
        assert abs(float(seen["loss"][step] / extra["losses"][step]) - 1) < 1e-5
        assert abs(float(seen["clip_norm"][step]) / meta["clip_calls"][step][1] - 1) < 1e-5
    for layer, found in seen["attention"][0].items():
        if (theirs := extra.get(f"attn0.{layer}.attn2")) is not None:
            ours = found[0][..., seen["positions"][0][0]].flatten(0, 1)
            assert distance(ours, theirs) < 1e-5, layer
    first = {name.removeprefix("grad0."): value for name, value in extra.items() if name.startswith("grad0.")}
    gradient = {name: seen["gradients"][0][name].flatten()[::every] for name in first}  # clipped in place since
    assert distance(flat(gradient, first), flat(first, first)) < 1e-4
    ours = {name: erasure.changes[name].tensor for name in weights}
    moved, start = ({name: t[name].flatten()[::every] for name in weights} for t in (ours, base))
    assert distance(*(flat(group, weights) for group in (moved, weights, start))) < 5e-4
    still = erasure.changes.keys() - weights.keys()
    assert still == set(meta["without_gradient"])
    for name in still:
        assert torch.equal(erasure.changes[name].tensor, model.named_parameters()[name])


def clipped(seen):
    return "clip_norm" in seen


def test_official_inversion(tiny_sd_float64, golden):
    meta, embeddings, extra = golden("fmn/ti_decay")
    _, seen = traced_erase(
        tiny_sd_float64,
        recorded(extra, "z", "t", "noise") | {"start.0": extra["start"]},
        inversion_tokens=len(meta["placeholders"]),
        initialisers=meta["initialisers"],
        inversion_steps=meta["steps"],
        inversion_learning_rate=meta["lr"],
        inversion_weight_decay=meta["weight_decay"],
        inversion_accumulation=meta["accumulation"],
        pull=meta["clip_ti_decay"],
    )
    for step in range(meta["steps"]):
        assert torch.equal(seen["inversion_ids"][step], extra[f"input_ids.{step}"].long())
        assert abs(float(seen["inversion_loss"][step] / extra["losses"][step]) - 1) < 1e-5
        assert distance(seen["rows"][step], extra[f"rows.{step}"]) < 1e-5
    assert distance(seen["inversion_gradient"][0], extra["grad0"]) < 1e-4
    assert distance(seen["rows"][-1], embeddings["embeddings"], extra["start"]) < 1e-3


def test_the_inversion_starts_at_words_at_zero_or_at_noise(tiny_sd):
    table, dog = tiny_sd.token_table, tiny_sd.token_ids("dog")[1]

    def starts(name="dog", **values):
        eraser = component("method", "fmn").build({"inversion_tokens": 2} | values)
        return eraser.starts(tiny_sd, Concept(name), torch.Generator().manual_seed(0))

    assert torch.equal(starts(initialisers=["dog", "<zero>"]), torch.stack([table[dog], torch.zeros_like(table[0])]))
    assert torch.equal(starts(initialisers=["5", str(dog)]), table[[5, dog]])
    noise = [starts(initialisers=[f"<rand-{sigma}>", "dog"])[0] for sigma in (1, 0.5)]
    torch.testing.assert_close(noise[0], 2 * noise[1])
    assert torch.equal(starts()[0], table[dog]) and not torch.equal(starts()[1], table[dog])
    assert torch.equal(starts("snoopy"), table[tiny_sd.token_ids("snoopy")[1:3]])
    with pytest.raises(overpaint.UserError, match="'snoopy' of 6 tokens"):
        starts(initialisers=["snoopy", "dog"])


def test_the_official_inversion_mirrors_the_images_that_are_drawn(tiny_sd, monkeypatch):
    taken, latents = [], ImageBank.latents

    def record(bank, rows, draws, name):
        taken.extend(bank.images[row] for row in rows)
        return latents(bank, rows, draws, name)

    monkeypatch.setattr(ImageBank, "latents", record)
    values = {"inversion_tokens": 1, "inversion_steps": 2, "iterations": 1, "pictures": 1}
    flips = {"flip.0": torch.tensor(0), "flip.1": torch.tensor(1)}
    traced_erase(tiny_sd, flips, compat="official", **values)
    plain, mirrored, last = (np.asarray(image) for image in taken)
    assert np.array_equal(mirrored, plain[:, ::-1]) and not np.array_equal(mirrored, plain)
    assert np.array_equal(last, plain), "the second stage does not mirror"
    taken.clear()
    traced_erase(tiny_sd, **values)
    assert all(np.array_equal(np.asarray(image), plain) for image in taken)


def test_accumulated_steps_follow_the_first_batch_and_then_every_second(tiny_sd):
    _, seen = traced_erase(tiny_sd, inversion_tokens=1, inversion_steps=5, inversion_accumulation=2)
    assert len(seen["inversion_loss"]) == 5 and len(seen["rows"]) == 3
    _, plain = traced_erase(tiny_sd, inversion_tokens=1, inversion_steps=5)
    assert len(plain["rows"]) == 5
    assert abs(float(plain["inversion_loss"][0] / seen["inversion_loss"][0]) - 2) < 1e-5


def test_the_norms_of_new_words_are_pulled_to_a_words(tiny_sd):
    _, seen = traced_erase(
        tiny_sd, inversion_tokens=1, initialisers=["<rand-1>"], inversion_steps=8, inversion_learning_rate=1e-2
    )
    assert all(abs(float(row.norm()) - 0.4) < 1e-4 for row in seen["rows"])
    _, free = traced_erase(tiny_sd, inversion_tokens=1, initialisers=["<rand-1>"], inversion_steps=2, pull=False)
    assert float(free["rows"][-1].norm()) > 2


def test_positions_are_those_of_the_name_and_with_the_pooler_of_the_end(tiny_sd):
    eraser, pooled = (component("method", "fmn").build({"pooler": pooler}) for pooler in (False, True))
    ids = tiny_sd.padded_ids(["a snoopy dog and snoopy"])[0]
    first, length = len(tiny_sd.token_ids("a")) - 1, len(tiny_sd.token_ids("snoopy")) - 2
    second = len(tiny_sd.token_ids("a snoopy dog and")) - 1
    expected = torch.zeros(77, dtype=torch.bool)
    expected[first : first + length] = expected[second : second + length] = True
    assert torch.equal(eraser.positions(tiny_sd, ids, "snoopy"), expected)
    ends = ids == tiny_sd.tokenizer.eos_token_id
    assert torch.equal(pooled.positions(tiny_sd, ids, "snoopy"), expected | ends) and ends.sum() > 50


def test_positions_in_batches(tiny_sd):
    maps = torch.rand(2, 4, 9, 5, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[0, 1, 0, 0, 0], [0, 0, 1, 1, 0]]).bool()
    intended, official = (
        component("method", "fmn").build({"compat": compat}).paid(maps, places) for compat in ("intended", "official")
    )
    for image in range(2):
        for head in range(4):
            own, theirs = places[image], places[(4 * image + head) % 2]
            assert torch.equal(intended[image, head], maps[image, head] * own)
            assert torch.equal(official[image, head], maps[image, head] * theirs)


def test_what_is_clipped(tiny_sd):
    seen = {
        (compat, group): clipped(traced_erase(tiny_sd, compat=compat, train=group)[1])
        for compat in ("intended", "official")
        for group in ("full", "xattn", "text_encoder")
    }
    assert [key for key, value in seen.items() if not value] == [("official", "full"), ("official", "text_encoder")]


def test_the_text_encoder_is_trained_too(tiny_sd):
    erasure, _ = traced_erase(tiny_sd, train="text_encoder", inversion_tokens=1)
    base = tiny_sd.named_parameters()
    moved = {name for name, change in erasure.changes.items() if not torch.equal(change.tensor, base[name])}
    assert moved & set(tiny_sd.text_encoder_names) and moved & set(tiny_sd.denoiser_names)
    assert any(name.endswith("token_embedding.weight") for name in moved)


def test_without_images_latents_are_pure_noise(tiny_sd_float64):
    model, z = tiny_sd_float64, tiny_sd_float64.noise([3])
    draws = {"z.0": z, "noise.0": model.noise([4]), "t.0": torch.tensor([300])}
    _, seen = traced_erase(model, draws, real_images=False)
    with torch.no_grad(), model.attention_maps() as maps:
        x_t = model.add_noise(torch.zeros_like(z), draws["noise.0"], draws["t.0"])
        model.predict(x_t, draws["t.0"], model.encode(["a photo of dog"]))
        paid = torch.cat([found[..., 4].flatten() for found in maps.values()])
    assert abs(float(seen["loss"][0] / paid.norm()) - 1) < 1e-6


def test_training_lowers_the_attention(tiny_sd):
    draws = {
        f"{name}.{n}": value
        for n in range(6)
        for name, value in (("t", torch.tensor([500])), ("noise", tiny_sd.noise([1])))
    }
    _, seen = traced_erase(tiny_sd, draws, iterations=6)
    assert seen["loss"][-1] < 0.9 * seen["loss"][0]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"inversion_tokens": 2, "initialisers": ["dog"]}, "one entry for each of inversion_tokens=2, got 1"),
        ({"iterations": 0}, "iterations"),
        ({"erase": ["dog", "cat"]}, "pictures=1 is too few for 2 concepts"),
    ],
)
def test_bad_values_are_refused(values, told, tiny_sd):
    with pytest.raises(overpaint.UserError, match=told):
        traced_erase(tiny_sd, **values)
