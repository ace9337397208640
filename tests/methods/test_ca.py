"""CA against recorded runs of its official diffusers code, with the same random draws, and against its closed forms."""

from functools import partial

import pytest
import torch
from PIL import Image

import overpaint
from official import by_name, distance, flat, parameters, recorded, watched
from overpaint.blocks.anchor_images import FILTERS, Placement, detached_begin, target_caption
from overpaint.blocks.anchor_images import place as placed
from overpaint.blocks.training import Student, parameter_group
from overpaint.grid.registry import component
from overpaint.methods.ca import FORMS, GROUPS, masked_error

#: Settings that are small enough for the tiny model.
SMALL = {"pictures": 4, "picture_steps": 1, "batch_size": 2, "iterations": 1, "learning_rate": 1e-3}


def traced_erase(model, records=None, **arguments):
    """The erasure and the traced values of its iterations, as lists by name."""
    with watched(records) as seen:
        erasure = overpaint.erase(model, "ca", **(SMALL | arguments))
    return erasure, by_name(seen)


@pytest.mark.parametrize("tag", ["style_noaug", "style_prior"])
def test_official_code(tag, tiny_sd_float64, golden):
    meta, weights, extra = golden(f"ca/{tag}")
    draws = recorded(extra, "z", "mask", "input_ids", "anchor_ids", "t", "noise")
    erasure, seen = traced_erase(
        tiny_sd_float64,
        draws,
        erase=[meta["target"]],
        kind="style",
        preset="style",
        batch_size=meta["batch"],
        iterations=meta["steps"],
        learning_rate=meta["lr"],
        scale_learning_rate=False,
        prior=meta["prior"],
        max_norm=meta["max_grad_norm"],
    )
    for name in (key.removeprefix("raw_grad0.") for key in extra if key.startswith("raw_grad0.")):
        assert distance(seen["gradients"][0][name], extra[f"raw_grad0.{name}"]) < 1e-4, name
    for step, norm in enumerate(seen["clip_norm"]):
        assert abs(float(norm / extra[f"clip_norm.{step}"]) - 1) < 1e-5

    assert erasure.changes.keys() == weights.keys()
    ours = {name: change.tensor for name, change in erasure.changes.items()}
    start = parameters(tiny_sd_float64, weights)
    assert distance(*(flat(group, weights) for group in (ours, weights, start))) < 2e-3


def test_official_captions(golden):
    meta, _, _ = golden("ca/captions")
    rules = {"nudity": "unsafe", "inappropriate_content": "unsafe"}
    for concept_type, table in meta["table"].items():
        anchor, _, name = table["target"].rpartition("+")
        for caption, official in table["rows"]:
            rule = rules.get(concept_type, concept_type)
            assert [target_caption(rule, name, caption, form, FORMS, anchor) for form in range(3)] == official


def test_official_attention_gradients(tiny_sd, golden):
    """The begin token's keys and values pass no gradient, and the output is bit-identical."""
    _, official, extra = golden("ca/processor")
    student = Student(tiny_sd, parameter_group(tiny_sd, GROUPS["kv"]))
    with student.active():
        plain = tiny_sd.predict(extra["x"], extra["t"], extra["emb"]).detach()
        with detached_begin(tiny_sd):
            out = tiny_sd.predict(extra["x"], extra["t"], extra["emb"])
    assert torch.equal(out, plain)
    assert distance(out.detach(), official["out"]) < 1e-5
    (out * extra["w"]).sum().backward()
    for name, master in student.masters.items():
        assert distance(master.grad, official[f"grad.{name}"]) < 1e-4, name
        assert distance(master.grad, extra[f"plain_grad.{name}"]) > 1e-3, name


def test_a_context_of_begin_tokens_teaches_nothing(tiny_sd):
    student = Student(tiny_sd, parameter_group(tiny_sd, GROUPS["kv"]))
    begin = tiny_sd.encode([""])[:, :1].detach()
    with detached_begin(tiny_sd), student.active():
        tiny_sd.predict(tiny_sd.noise([0]), 500, begin).sum().backward()
    assert all(master.grad is None or master.grad.abs().max() == 0 for master in student.masters.values())


@pytest.mark.parametrize("group, tensors", [("kv", 14), ("attn", 70), ("full", 324)])
def test_all_of_the_group_learns_and_nothing_else(tiny_sd, group, tensors):
    erasure, seen = traced_erase(tiny_sd, erase=["dog"], anchor="cat", train=group)
    assert len(erasure.changes) == tensors
    assert all(gradient is not None for gradient in seen["gradients"][0].values())


def test_embeddings_learn_in_the_rows_of_the_concepts_words_alone(tiny_sd):
    erasure, _ = traced_erase(tiny_sd, erase=["black dog"], anchor="dog", train="embedding", iterations=2)
    ((name, change),) = erasure.changes.items()
    base = tiny_sd.named_parameters()[name]
    moved = (change.tensor != base).any(dim=1).nonzero().flatten().tolist()
    assert moved == sorted(set(tiny_sd.token_ids("black")[1:-1]) - set(tiny_sd.token_ids("dog")))


def test_the_anchor_itself_leaves_nothing_to_learn(tiny_sd):
    caption = "a photo of a cat"
    arguments = {"erase": [caption], "anchor": "cat", "rule": "memorization", "templates": ["a photo of {}"]}
    erasure, seen = traced_erase(tiny_sd, augment=False, weight_decay=0, **arguments)
    assert float(seen["loss"][0]) == 0
    base = tiny_sd.named_parameters()
    assert all(torch.equal(change.tensor, base[name]) for name, change in erasure.changes.items())


@pytest.mark.parametrize("loss", ["model", "noise"])
@pytest.mark.parametrize("prior", [False, True])
def test_the_first_loss_follows_from_the_base_predictions(tiny_sd_float64, loss, prior):
    model = tiny_sd_float64
    arguments = {"erase": ["dog"], "anchor": "cat", "templates": ["{}"], "augment": False}
    truth = model.noise(range(4 if prior else 2))
    _, seen = traced_erase(model, {"noise.0": truth}, loss=loss, prior=prior, **arguments)
    (x_t,), (t,) = seen["x_t"], seen["t"]
    with torch.no_grad():
        named, anchored = (model.predict(x_t[:2], t[:2], model.encode([text] * 2)) for text in ("a dog", "a cat"))
        kept = model.predict(x_t[2:], t[2:], model.encode(["a cat"] * 2)) if prior else None
    square = torch.nn.functional.mse_loss
    expected = 4 * square(named, anchored if loss == "model" else truth[:2])
    if prior:
        expected = expected + square(kept, truth[2:])
    assert abs(float(seen["loss"][0]) / float(expected) - 1) < 1e-5


def test_the_teacher_is_the_student_of_the_same_iteration(tiny_sd):
    _, one = traced_erase(tiny_sd, erase=["dog"], anchor="cat", iterations=2, learning_rate=0.0)
    _, two = traced_erase(tiny_sd, erase=["dog"], anchor="cat", iterations=2, learning_rate=1e-2)
    assert torch.equal(one["x_t"][1], two["x_t"][1])
    assert not torch.equal(one["target"][1], two["target"][1])


def test_masks_of_placed_pictures():
    image = Image.new("RGB", (128, 128), "red")
    place = partial(placed, resample=FILTERS["diffusers"])
    whole, mask = place(image, Placement(128, 0, 0), 16, bordered=False)
    assert whole is image and mask.shape == (1, 16, 16) and mask.all()
    _, mask = place(image, Placement(128, 0, 0), 16, bordered=True)
    assert mask[0, 1:-1, 1:-1].all() and mask.sum() == 14 * 14
    pasted, mask = place(image, Placement(64, 8, 24), 16, bordered=False)
    assert pasted.size == (128, 128) and pasted.getpixel((0, 0)) == (128, 128, 128)
    assert pasted.getpixel((24, 8)) == (255, 0, 0) and pasted.getpixel((23, 8)) == (128, 128, 128)
    assert mask[0, 2:8, 4:10].all() and mask.sum() == 36  # the picture covers rows 1-8 and columns 3-10
    zoomed, mask = place(image, Placement(160, 3, 5), 16, bordered=True)
    assert zoomed.size == (128, 128) and mask.all()


@pytest.mark.parametrize("variant, resample", [("diffusers", "LANCZOS"), ("compvis", "BICUBIC")])
def test_pictures_are_resized_as_the_official_codes_do(tiny_sd, variant, resample):
    """For one image at zoom 1.25, the latents equal those of the image resized and cropped in the test."""
    size = tiny_sd.image_size
    scale = size * 5 // 4
    fixed = {"percent": 99, "scale": scale, "top": 0, "left": 0, "flip": 0}
    records = {f"{name}.{n}": torch.tensor(value) for name, value in fixed.items() for n in range(2)}
    encoded = []
    with pytest.MonkeyPatch.context() as patch:
        to_latents = type(tiny_sd).to_latents
        patch.setattr(
            type(tiny_sd),
            "to_latents",
            lambda self, images, g=None: encoded.append(images) or to_latents(self, images, g),
        )
        traced_erase(
            tiny_sd, records, variant=variant, erase=["dog"], anchor="cat", max_norm=1.0, picture_scheduler="ddim"
        )
    ((first, _),) = encoded
    banks = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "overpaint.blocks.anchor_images.place",
            lambda image, at, cells, *rest: banks.append(image) or (image, torch.ones(1, cells, cells)),
        )
        traced_erase(
            tiny_sd, records, variant=variant, erase=["dog"], anchor="cat", max_norm=1.0, picture_scheduler="ddim"
        )
    wanted = banks[0].resize((scale, scale), Image.Resampling[resample]).crop((0, 0, size, size))
    assert first.tobytes() == wanted.tobytes()


def test_captions_are_cut_where_the_model_stops_reading(tiny_sd):
    """The official tokenizer calls do the same. By then all images are generated."""
    caption = "a photo of a cat " + "on the ground " * 40
    ids = {}
    with pytest.MonkeyPatch.context() as patch:
        encode_ids = type(tiny_sd).encode_ids
        patch.setattr(
            type(tiny_sd),
            "encode_ids",
            lambda self, i, *a: (
                ids.setdefault(len(ids), i if torch.is_tensor(i) else i[0]) is None or encode_ids(self, i, *a)
            ),
        )
        _, seen = traced_erase(tiny_sd, erase=["dog"], anchor="cat", captions=[caption], augment=False, prior=True)
    assert float(seen["loss"][0]) > 0
    wanted = tiny_sd.padded_ids(seen["captions"][0], truncate=True)
    assert any(torch.equal(i, wanted) for i in ids.values()) and wanted.shape[1] == tiny_sd.tokens


def test_the_masked_error_is_four_times_the_mean_where_everything_counts():
    one, other = (torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    everything = masked_error(one, other, torch.ones(3, 1, 8, 8))
    torch.testing.assert_close(everything, 4 * torch.nn.functional.mse_loss(one, other))
    mask = torch.zeros(3, 1, 8, 8)
    mask[:, :, 2:5] = 1
    torch.testing.assert_close(
        masked_error(one, other, mask), masked_error(one[:, :, 2:5], other[:, :, 2:5], mask[:, :, 2:5])
    )


@pytest.mark.parametrize(
    "percent, scale, prefixes",
    [(0, 0.5, ("a far away ", "very small ")), (0, 0.8, ("",)), (99, 1.3, ("zoomed in ", "close up "))],
)
def test_sizes_are_said_of_the_concept_alone(tiny_sd, percent, scale, prefixes):
    draws = {"percent.0": torch.tensor(percent), "scale.0": torch.tensor(int(scale * tiny_sd.image_size))}
    _, seen = traced_erase(tiny_sd, draws, erase=["dog"], anchor="cat", templates=["a photo of {}"])
    captions, anchors = seen["captions"][0], seen["anchor_captions"][0]
    assert captions[0] in [f"{prefix}a photo of a dog" for prefix in prefixes]
    assert anchors == ["a photo of a cat"] * 2


def test_concepts_take_turns(tiny_sd):
    arguments = {"erase": ["dog", "ship"], "anchor": ["cat", "church"], "templates": ["{}"], "augment": False}
    _, seen = traced_erase(tiny_sd, {"pictures.0": torch.arange(4)}, batch_size=4, **arguments)
    assert seen["captions"][0] == ["a dog", "a ship"] * 2
    assert seen["anchor_captions"][0] == ["a cat", "a church"] * 2


def test_captions_from_a_file(tiny_sd, tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text("prompt\nthe cats of a city\nsomething else\n")
    _, seen = traced_erase(tiny_sd, erase=["dog"], anchor="cat", captions=str(path), augment=False)
    assert seen["captions"][0] == ["the dogs of a city"] * 2, "captions without the anchor's word are left out"


@pytest.mark.parametrize("kind, anchor", [("style", "painting"), ("unsafe", "man, ship")])
def test_captions_by_kind(tiny_sd, kind, anchor):
    _, seen = traced_erase(tiny_sd, erase=["dog"], kind=kind, anchor=anchor, augment=False)
    forms = [[target_caption(kind, "dog", c, form, FORMS) for form in range(3)] for c in seen["anchor_captions"][0]]
    assert all(caption in allowed for caption, allowed in zip(seen["captions"][0], forms, strict=True))


def test_the_learning_rate_is_scaled_as_the_official_commands_do():
    build = component("method", "ca").build
    assert build({}).rate == pytest.approx(1.6e-5)
    assert build({"prior": True}).rate == pytest.approx(3.2e-5)
    assert build({"prior": True, "variant": "compvis"}).rate == pytest.approx(1.6e-5)
    assert build({"scale_learning_rate": False, "prior": True}).rate == 2e-6


@pytest.mark.parametrize(
    "values, named",
    [
        ({"pictures": 0}, "pictures"), ({"batch_size": 0}, "batch_size"), ({"max_norm": -1.0}, "max_norm"),
        ({"train": "x"}, "train"), ({"rule": "verse"}, "rule"), ({"anchor": ""}, "anchor"),
        ({"templates": ["no place"]}, "templates"), ({"train": "embedding", "anchor": "black dog"}, "embedding"),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(tiny_sd, values, named):
    with pytest.raises(overpaint.UserError, match=named):
        traced_erase(tiny_sd, **({"erase": ["dog"], "anchor": "cat"} | values))
