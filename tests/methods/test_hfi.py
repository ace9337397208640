"""HFI against its equations: rewards, the words' first loss, what SDD erases afterwards, and its timesteps."""

from collections import Counter

import numpy as np
import pytest
import torch

import overpaint
from official import by_name, watched
from overpaint.blocks.draws import Draws
from overpaint.blocks.learned_words import mean_row
from overpaint.grid.concepts import Request
from overpaint.grid.registry import component

SMALL = {
    "pictures": 2, "picture_steps": 1, "inversion_steps": 1, "inversion_batch_size": 2, "iterations": 1,
    "rollout_steps": 4, "learning_rate": 1e-3,
}  # fmt: skip


def traced_erase(model, records=None, **arguments):
    with watched(records) as seen:
        erasure = overpaint.erase(model, "hfi", **({"erase": ["dog"]} | SMALL | arguments))
    return erasure, by_name(seen)


def test_without_a_judge_it_is_textual_inversion(tiny_sd_float64):
    model = tiny_sd_float64
    z, noise, t = model.noise([0, 1]), model.noise([2, 3]), torch.tensor([100, 600])
    _, seen = traced_erase(model, {"z.0": z, "noise.0": noise, "t.0": t})
    (sentences,) = seen["sentences"]
    assert all("<hfi0-0>" in sentence for sentence in sentences)
    with torch.no_grad(), model.learned_tokens({"<hfi0-0>": mean_row(model, ["dog"])}):
        predicted = model.predict(model.add_noise(z, noise, t), t, model.encode(sentences))
    assert float(seen["loss"][0]) == pytest.approx(float((predicted - noise).square().mean()), rel=1e-5)


def test_rewards_weigh_the_images(tiny_sd, monkeypatch):
    shown = np.array([0.2, 0.6])
    monkeypatch.setattr("overpaint.methods.hfi.concept_scores", lambda *a: lambda concept, images: shown[: len(images)])
    _, seen = traced_erase(tiny_sd, reward="oracle_b")
    assert sorted(seen["weights"][0].tolist()) == pytest.approx([0.5, 1.5])
    assert float(seen["loss"][0]) == pytest.approx(float((seen["weights"][0] * seen["errors"][0]).mean()), rel=1e-5)
    shown[:] = 0
    with pytest.raises(overpaint.UserError, match="reward=oracle_b sees 'dog' in none of 2 images"):
        traced_erase(tiny_sd, reward="oracle_b")


def test_self_distillation_erases_the_inverted_words(tiny_sd):
    """Without learning, the word's row is the mean row of the concept's name: one token stands for it exactly."""
    words, seen = traced_erase(tiny_sd, inversion_learning_rate=0.0)
    named = overpaint.erase(tiny_sd, "sdd", erase=["dog"], iterations=1, rollout_steps=4)
    assert words.changes.keys() == named.changes.keys()
    x_t, t = seen["x_t"][-1], seen["t"][-1]
    with torch.no_grad():
        wanted = tiny_sd.predict(x_t, t, tiny_sd.encode(["dog"]))
    torch.testing.assert_close(seen["pred"][-1], wanted, rtol=1e-4, atol=1e-5)


def test_several_concepts_have_their_own_words(tiny_sd):
    eraser = component("method", "hfi").build(SMALL | {"words": 2})
    request = Request.of(["dog", "ship"])
    found = eraser.embeddings(tiny_sd, request, Draws(0))
    assert list(found) == ["", "dog", "ship", "dog, ship"]
    assert torch.equal(found[""], tiny_sd.encode([""]))
    assert not torch.equal(found["dog"], found["ship"])


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_timesteps_prefer_the_middle(beta):
    eraser, draws = component("method", "hfi").build({"beta": beta, "rollout_steps": 4}), Draws(0)
    counts = Counter(eraser.steps_taken(draws) for _ in range(400))
    middle = (counts[1] + counts[2]) / 400
    assert set(counts) == {0, 1, 2, 3}
    assert (middle > 0.7) == (beta == 3.0) and middle > 0.4


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"beta": 0.0}, "beta takes a number above 0"),
        ({"words": 0}, "words"),
        ({"reward": "oracle"}, "reward=oracle"),
        ({"ema": 1.0}, "ema"),
    ],
)
def test_bad_values_are_refused(values, told, tiny_sd):
    with pytest.raises(overpaint.UserError, match=told):
        traced_erase(tiny_sd, **values)
