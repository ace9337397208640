"""Geom-Erasing against the paper's equations: captions with places, weights of cells, what learns, and the negative prompt."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import overpaint
from official import by_name, watched
from overpaint.blocks.learned_words import mean_row
from overpaint.grid.registry import component
from overpaint.methods.geom import cell_weights, hidden, in_bins, location_words, placed
from overpaint.models.guidance import Guidance

SMALL = {
    "pictures": 4,
    "picture_steps": 1,
    "iterations": 1,
    "batch_size": 4,
    "captions": ["a cat", "a ship"],
    "bins": 2,
}


def traced_erase(model, records=None, **arguments):
    with watched(records) as seen:
        erasure = overpaint.erase(model, "geom", **({"erase": ["dog"]} | SMALL | arguments))
    return erasure, by_name(seen)


def bins(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def test_captions_get_the_name_and_the_words_of_covered_bins():
    assert location_words(2) == ["<l0-0>", "<l0-1>", "<l1-0>", "<l1-1>"]
    assert placed("a house", [("mark", bins([0, 1], [0, 1]))]) == "a house, mark, <l0-1> <l1-1>"
    assert placed("a house", [("mark", bins([0, 0], [0, 0]))]) == "a house"
    both = [("mark", bins([1, 0], [0, 0])), ("slime", bins([0, 0], [0, 1]))]
    assert placed("a house", both) == "a house, mark, <l0-0>, slime, <l1-1>"


@pytest.mark.parametrize("outside", [0.5, 2.0, 10.0])
def test_weights_average_one(outside):
    covered = torch.stack([bins([0, 0], [0, 1]), bins([0, 0], [0, 0]), bins([1, 1], [1, 1])])
    weights = cell_weights(covered, 8, outside)
    assert weights.shape == (3, 1, 8, 8)
    torch.testing.assert_close(weights.mean(dim=(1, 2, 3)), torch.ones(3))
    assert torch.equal(weights[1], torch.ones(1, 8, 8)), "nothing detected: an ordinary loss"
    total, inside = 64, 16
    assert float(weights[0, 0, 7, 7]) == pytest.approx(total / (inside + outside * (total - inside)))
    assert float(weights[0, 0, 0, 0]) == pytest.approx(outside * float(weights[0, 0, 7, 7]))


def test_the_loss_is_the_weighted_error_of_the_extended_caption(tiny_sd):
    records = {"t.0": torch.tensor([100, 200, 300, 400]), "noise.0": tiny_sd.noise(range(4))}
    _, seen = traced_erase(tiny_sd, records, regions="all")
    squares = (seen["pred"][0] - records["noise.0"]).square()
    assert float(seen["loss"][0]) == pytest.approx(float((seen["weights"][0] * squares).mean()), rel=1e-5)
    told = sorted(seen["captions"][0])
    assert sum(", dog, <l0-0> <l0-1> <l1-0> <l1-1>" in caption for caption in told) == 2
    assert sum(caption in SMALL["captions"] for caption in told) == 2, "the other half does not show it"


@pytest.mark.parametrize(("train", "tensors"), [("tokens", 0), ("kv", 14), ("full", 324)])
def test_new_words_learn_and_the_chosen_parameters(tiny_sd, train, tensors):
    erasure, seen = traced_erase(tiny_sd, train=train, regions="all")
    assert len(erasure.changes) == tensors and len(erasure.parts) == 4 and erasure.kind == "guard"
    start = mean_row(tiny_sd, ["dog"])
    assert all(not torch.equal(row, start) for row in erasure.parts.values())
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in seen["gradients"][0].values())
    assert erasure.manifest["pictures_with_concept"] == [2]


def test_truncated_captions_are_counted(tiny_sd):
    long = "a cat " * (tiny_sd.tokens // 2 - 2)  # fits without the words of its bins
    erasure, _ = traced_erase(tiny_sd, regions="all", captions=[long, "a ship"])
    assert tiny_sd.too_long([long]) == 0
    assert erasure.manifest["captions_truncated"] == 1
    assert traced_erase(tiny_sd, regions="all")[0].manifest["captions_truncated"] == 0


def test_sampling_moves_away_from_the_name_and_all_places(tiny_sd):
    erasure, _ = traced_erase(tiny_sd, regions="all")
    words = location_words(2)
    noise, t = tiny_sd.noise([0]), torch.tensor(500)
    positive = tiny_sd.encode(["a cat"])
    with torch.no_grad():
        rows = {word: erasure.parts[f"row.{n}"] for n, word in enumerate(words)}
        with tiny_sd.learned_tokens(rows):
            unwanted = tiny_sd.encode(["dog, " + " ".join(words)])
        wanted = Guidance(tiny_sd, positive, unwanted, 5.0)(noise, t, 0)
        with erasure.attached(tiny_sd):
            guidance = tiny_sd.guidance(tiny_sd, positive, tiny_sd.encode([""]), 5.0, ["a cat"])
            assert torch.equal(guidance(noise, t, 0), wanted)
    assert tiny_sd.guidance is Guidance


def test_a_negative_prompt_that_is_too_long_is_refused(tiny_sd):
    """Two requests have twice the location words. Truncated, the second request would erase nothing."""
    first, second = (traced_erase(tiny_sd, erase=[name], regions="all", bins=6)[0] for name in ("dog", "cat"))
    refused = pytest.raises(overpaint.UserError, match="for 2 requests has 79 tokens, the model takes 77")
    with first.attached(tiny_sd), refused, second.attached(tiny_sd):
        pass
    assert tiny_sd.guidance is Guidance


def test_two_requests_share_one_negative_prompt(tiny_sd):
    first, second = (traced_erase(tiny_sd, erase=[name], regions="all")[0] for name in ("dog", "cat"))
    with first.attached(tiny_sd), second.attached(tiny_sd):
        assert tiny_sd.guidance.text.startswith("dog, <0l0-0> <0l0-1>") and ", cat, <1l0-0>" in tiny_sd.guidance.text
        assert len(tiny_sd.guidance.rows) == 8
    assert tiny_sd.guidance is Guidance


def test_a_detector_finds_the_bins_whose_hiding_costs_most(tiny_sd, monkeypatch):
    """The detector of this test scores how red the lower right quarter of an image is."""

    class Corner:
        def score(self, images):
            red = [
                np.asarray(image, float)[64:, 64:, 0].mean() - np.asarray(image, float)[64:, 64:, 1].mean()
                for image in images
            ]
            return pd.DataFrame({"dog": np.clip(np.array(red) / 255, 0, 1), "failed": False})

    marked = Image.new("RGB", (128, 128), "white")
    marked.paste((255, 0, 0), (64, 64, 128, 128))
    eraser = component("method", "geom").build(SMALL | {"regions": "detector", "detector": "oracle", "threshold": 0.5})
    monkeypatch.setattr("overpaint.grid.registry.Component.build", lambda *a, **k: Corner())

    class Bank:
        images = (marked, Image.new("RGB", (128, 128), "white"))
        model = tiny_sd

    one, none = eraser.detected(Bank, overpaint.Concept("dog"))
    assert one.tolist() == [[False, False], [False, True]] and not none.any()


def test_hidden_copies_differ_from_the_image_in_one_bin():
    image = Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3))
    copies = [np.asarray(copy) for copy in hidden(image, 2)]
    changed = (copies[1] != np.asarray(image)).any(axis=2)
    assert len(copies) == 4 and changed[:4, 4:].mean() > 0.9 and changed.sum() == changed[:4, 4:].sum()


def test_masks_become_bins():
    mask = torch.zeros(8, 8)
    mask[4:, 4:6] = 1
    assert in_bins(mask, 2).tolist() == [[False, False], [False, True]]
    assert not in_bins(torch.zeros(8, 8), 2).any()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"outside": 0.0}, "outside takes a number above 0"),
        ({"regions": "detector"}, "regions=detector needs a detector"),
        ({"bins": 0}, "bins"),
        ({"bins": 9}, "negative prompt for 1 concept has"),
        ({"regions": "detector", "detector": "oracle"}, "label"),
        ({"captions": "nowhere"}, "nowhere"),
    ],
)
def test_bad_values_are_refused(values, told, tiny_sd):
    with pytest.raises(overpaint.UserError, match=told):
        traced_erase(tiny_sd, **values)
