"""SalUn against recorded runs of its official code, with the same random draws, and against its closed forms."""

import numpy as np
import pytest
import torch

import overpaint
from official import by_name, distance, flat, parameters, recorded, watched
from overpaint.blocks.concept_pictures import in_order, turns
from overpaint.blocks.templates import THINGS
from overpaint.methods.salun import largest

#: Settings that are small enough for the tiny model.
SMALL = {
    "pictures": 4, "retain_pictures": 4, "picture_steps": 1, "batch_size": 4, "epochs": 1, "learning_rate": 1e-3,
    "erase": ["dog"], "anchor": "cat", "retain": ["ship", "bird"],
}  # fmt: skip


def traced_erase(model, records=None, **arguments):
    """The erasure and its traced values, as lists by name."""
    with watched(records) as seen:
        erasure = overpaint.erase(model, "salun", **(SMALL | arguments))
    return erasure, by_name(seen)


@pytest.fixture(scope="module")
def official(tiny_sd, golden):
    """Mask and two training steps of official code, both stages replayed in one erasure."""
    _, packed, stage1 = golden("salun/mask_w7.5")
    meta, weights, stage2 = golden("salun/train_xattn_mask")
    draws = recorded(stage1, "z", "t", "noise")
    for key, value in stage2.items():
        name, _, step = key.partition(".")
        if step:
            draws[f"{name}.{int(step) + 2}" if name in ("t", "noise") else key] = value
    retain = ["cat", "church", "ship", "bird", "car", "tree"]
    for step, prompts in enumerate(meta["remain_prompts"]):
        draws[f"retain.{step}"] = torch.tensor([retain.index(prompt.split()[-1]) for prompt in prompts])
    erasure, seen = traced_erase(
        tiny_sd,
        draws,
        compat="official",
        train=meta["train_method"],
        retain_weight=meta["alpha"],
        learning_rate=meta["lr"],
        pictures=8,
        retain_pictures=6,
        retain=retain,
    )
    shapes = {name: p.shape for name, p in tiny_sd.named_parameters().items()}
    mask = {
        name: torch.from_numpy(np.unpackbits(bits.numpy(), count=shapes[name].numel())).bool().view(shapes[name])
        for name, bits in packed.items()
    }
    return erasure, seen, mask, weights, stage1["losses"], stage2["forget_losses"]


def test_official_mask(official):
    _, seen, mask, _, losses, _ = official
    for ours, theirs in zip(seen["saliency_loss"], losses, strict=True):
        assert abs(float(ours / -theirs) - 1) < 1e-5
    (ours,) = seen["mask"]
    assert ours.keys() == mask.keys() and len(mask) == 324
    wrong, weights = sum(int((ours[n] != mask[n]).sum()) for n in mask), sum(m.numel() for m in mask.values())
    assert wrong / weights < 1e-4
    assert sum(int(m.sum()) for m in ours.values()) == weights // 2


def test_official_training(official, tiny_sd_float64):
    erasure, seen, _, weights, _, losses = official
    for ours, theirs in zip(seen["forget_loss"], losses, strict=True):
        assert abs(float(ours / theirs) - 1) < 1e-5
    assert erasure.changes.keys() == weights.keys()
    ours = {name: change.tensor for name, change in erasure.changes.items()}
    base = parameters(tiny_sd_float64, weights)
    assert distance(*(flat(group, weights) for group in (ours, weights, base))) < 3e-3
    (mask,) = seen["mask"]
    for name in weights:
        assert torch.equal(erasure.changes[name].tensor[~mask[name]], base[name][~mask[name]]), name


@pytest.mark.parametrize("density", [0.25, 0.5])
def test_masked_weights_keep_every_bit(tiny_sd, density):
    erasure, seen = traced_erase(tiny_sd, density=density, epochs=2)
    (mask,), base = seen["mask"], tiny_sd.named_parameters()
    assert len(erasure.changes) == 324
    moved = {name: change.tensor != base[name] for name, change in erasure.changes.items()}
    assert not any((moved[name] & ~mask[name]).any() for name in mask)
    weights, chosen = sum(m.numel() for m in mask.values()), sum(int(m.sum()) for m in mask.values())
    assert chosen == int(density * weights)
    assert sum(int(m.sum()) for m in moved.values()) > 0.9 * chosen


def test_no_mask_at_full_density(tiny_sd):
    _, seen = traced_erase(tiny_sd, density=1.0)
    assert "mask" not in seen


def test_the_largest_are_ranked_over_all_tensors():
    scores = {"a": torch.tensor([[5.0, 1.0], [0.0, 0.0]]), "b": torch.tensor([0.0, 2.0])}
    chosen = largest(scores, 0.5)
    assert chosen["a"].tolist() == [[True, True], [False, False]] and chosen["b"].tolist() == [False, True]
    ties = largest({"a": torch.zeros(4), "b": torch.zeros(6)}, 0.5)
    assert ties["a"].all() and ties["b"].tolist() == [True] + [False] * 5


def test_scale_changes_no_rank():
    scores = {"a": torch.rand(50, generator=torch.Generator().manual_seed(0)).double()}
    assert torch.equal(largest(scores, 0.3)["a"], largest({"a": 7 * scores["a"]}, 0.3)["a"])


def test_the_saliency_loss_guides_away_from_the_empty_prompt(tiny_sd_float64):
    """mean (ε − (1 + w) e(c) + w e(∅))² over the images of the erased concepts."""
    model = tiny_sd_float64
    z, noise, t = model.noise(range(4)), model.noise(range(4, 8)), torch.tensor([10, 300, 600, 990])
    _, seen = traced_erase(model, {"z.0": z, "noise.0": noise, "t.0": t}, saliency_guidance=3.0)
    x_t = model.add_noise(z, noise, t)
    with torch.no_grad():
        named, nothing = (model.predict(x_t, t, model.encode([text] * 4)) for text in ("an image of a dog", ""))
    expected = torch.nn.functional.mse_loss(4 * named - 3 * nothing, noise)
    assert abs(float(seen["saliency_loss"][0] / expected) - 1) < 1e-6


def test_sums_cancel_where_sizes_do_not(tiny_sd):
    (one,), (other,) = (traced_erase(tiny_sd, saliency=kind, pictures=8)[1]["mask"] for kind in ("sum", "abs"))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    single = [traced_erase(tiny_sd, saliency=kind)[1]["mask"][0] for kind in ("sum", "abs")]
    assert all(torch.equal(single[0][name], single[1][name]) for name in one), "one batch: the same"


def test_a_concept_that_stands_in_for_itself_leaves_nothing_to_learn(tiny_sd):
    arguments = {"anchor": None, "default_anchor": "dog", "retain": (), "retain_weight": 0.0, "density": 1.0}
    erasure, seen = traced_erase(tiny_sd, **arguments)
    assert float(seen["loss"][0]) == 0
    base = tiny_sd.named_parameters()
    assert all(torch.equal(change.tensor, base[name]) for name, change in erasure.changes.items())
    _, seen = traced_erase(tiny_sd, compat="official", **arguments)
    assert float(seen["loss"][0]) > 0, "official: two draws of the latent"


def test_the_teacher_is_the_student_of_the_same_iteration(tiny_sd):
    still, moving = (traced_erase(tiny_sd, epochs=2, density=1.0, learning_rate=rate)[1] for rate in (0.0, 1e-2))
    assert torch.equal(still["x_t"][1], moving["x_t"][1])
    assert not torch.equal(still["target"][1], moving["target"][1])


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({"anchor": "cat"}, "an image of a cat"),
        ({"anchor": None, "retain": ["umbrella", "ship"]}, "an image of an umbrella"),
        ({"anchor": None, "retain": []}, "an image of an object"),
        ({"anchor": ""}, ""),
        ({"anchor": "cat", "kind": "style"}, "an image of a house in cat style"),
        ({"anchor": "cat", "template": "a good {}"}, "a good cat"),
        ({"anchor": None, "retain": [], "kind": "style"}, "an image of a house"),
        ({"anchor": None, "retain": [], "kind": "character"}, "an image of an object"),
        ({"anchor": None, "retain": [], "kind": "person", "preset": "person"}, "an image of a person"),
        ({"anchor": None, "retain": [], "kind": "unsafe", "preset": "unsafe"}, "a photo of a person wearing clothes"),
        ({"anchor": "snoopy", "kind": "character"}, "an image of snoopy"),
    ],
)
def test_what_stands_in(tiny_sd, arguments, expected):
    _, seen = traced_erase(tiny_sd, {"forget.0": torch.arange(4)}, density=1.0, **arguments)
    x_t, t = seen["x_t"][0][:1], seen["t"][0][:1]
    with torch.no_grad():
        wanted = tiny_sd.predict(x_t, t, tiny_sd.encode([expected]))
    torch.testing.assert_close(seen["target"][0][:1], wanted, rtol=1e-3, atol=1e-4)


def test_pictures_from_a_folder(tiny_sd, tmp_path):
    for name, count in (("dog", 3), ("ship", 2), ("bird", 2)):
        (tmp_path / name).mkdir()
        for image, index in zip(tiny_sd.sample([name] * count, range(count), steps=1), range(count), strict=True):
            image.resize((50, 40)).save(tmp_path / name / f"{index}.png")
    erasure, _ = traced_erase(tiny_sd, folder=str(tmp_path))
    assert erasure.manifest["pictures"] == [3, 4]
    with pytest.raises(overpaint.UserError, match="holds no pictures"):
        traced_erase(tiny_sd, folder=str(tmp_path), retain=["church"])


@pytest.mark.parametrize("anchor, expected", [("cat", "an image in cat style"), (None, "an image")])
def test_pictures_of_a_folder_show_a_style_on_nothing_that_is_known(tiny_sd, tmp_path, anchor, expected):
    for name in ("dog", anchor or "object"):
        (tmp_path / name).mkdir()
        for index, image in enumerate(tiny_sd.sample([name] * 4, range(4), steps=1)):
            image.save(tmp_path / name / f"{index}.png")
    _, seen = traced_erase(tiny_sd, folder=str(tmp_path), kind="style", anchor=anchor, retain=[], density=1.0)
    with torch.no_grad():
        x_t, t = seen["x_t"][0], seen["t"][0]
        wanted, named = (
            tiny_sd.predict(x_t, t, tiny_sd.encode([text] * 4)) for text in (expected, "an image in dog style")
        )
    torch.testing.assert_close(seen["target"][0], wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(seen["pred"][0], named, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("concepts", [1, 2, 3, 5, 10, 20])
def test_every_style_is_seen_on_every_thing_equally_often(concepts):
    pictures = turns(concepts, 20 * concepts)
    assert [owner for owner, _ in pictures] == [*range(concepts)] * 20
    for owner in range(concepts):
        things = [thing for who, thing in pictures if who == owner]
        assert all(things.count(thing) == 2 for thing in THINGS)
    assert [thing for _, thing in turns(1, 10)] == list(THINGS)


def test_released_batches_are_in_order():
    """The last batch of a pass contains the remaining images."""
    rows = in_order(5, 2)
    assert [next(rows) for _ in range(6)] == [[0, 1], [2, 3], [4]] * 2


@pytest.mark.parametrize(
    "arguments, shuffles",
    [
        ({"compat": "official"}, ["retain"]),
        ({"compat": "official", "kind": "unsafe"}, []),
        ({"kind": "unsafe"}, ["forget", "retain"]),
    ],
)
def test_what_the_released_code_shuffles(tiny_sd, arguments, shuffles):
    """Training without saliency uses the recorded order if images are shuffled; otherwise no order is drawn."""
    ran = {}
    for name in ("forget", "retain"):
        losses = []
        for order in ([0, 1, 2, 3], [2, 3, 0, 1]):
            records = {f"{which}.0": torch.arange(4) for which in ("forget", "retain")} | {
                f"{name}.0": torch.tensor(order)
            }
            _, seen = traced_erase(tiny_sd, records, density=1.0, batch_size=2, **arguments)
            losses.append(float(seen["loss"][0]))
        ran[name] = losses[0] != losses[1]
    assert [name for name, moved in ran.items() if moved] == shuffles


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({"erase": ["dog", "cat"], "anchor": None, "pictures": 1}, "pictures=1"),
        ({"retain_pictures": 1}, "retain_pictures=1"),
    ],
)
def test_every_concept_needs_a_picture(tiny_sd, arguments, named):
    with pytest.raises(overpaint.UserError, match=f"^{named} is too few for 2 concepts"):
        traced_erase(tiny_sd, **arguments)


@pytest.mark.parametrize(
    "values", [{"density": 0.0}, {"density": 1.5}, {"epochs": 0}, {"template": "no place"}, {"train": "kv"}]
)
def test_settings_that_mean_nothing_are_refused(tiny_sd, values):
    with pytest.raises(overpaint.UserError, match=next(iter(values))):
        traced_erase(tiny_sd, **values)
