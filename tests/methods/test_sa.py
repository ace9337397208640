"""SA against recorded runs of its official code: the Fisher estimate, training with and without the penalty, and its average."""

import copy

import pytest
import torch

import overpaint
from official import by_name, distance, flat, parameters, recorded, watched
from overpaint.grid.registry import component
from overpaint.methods.sa import penalty

REPLAYED = [
    "a photo of a dog",
    "a painting by monet of a church",
    "a man wearing black clothes",
    "a ship on a ground",
    "a tree",
]
SMALL = {
    "pictures": 2, "replay_pictures": 2, "fisher_pictures": 1, "fisher_timesteps": 4, "picture_steps": 1, "batch_size": 2,
    "iterations": 2, "learning_rate": 1e-3, "train": "xattn", "warmup_steps": 0, "erase": ["dog"], "anchor": "cat",
}  # fmt: skip


def traced_erase(model, records=None, **arguments):
    """The erasure and its traced values, as lists by name."""
    with watched(records) as seen:
        erasure = overpaint.erase(model, "sa", **(SMALL | arguments))
    return erasure, by_name(seen)


def thin(tensors, every):
    """Every n-th entry of each tensor, as recordings keep them."""
    return {name: tensor.flatten()[::every] for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def short_schedule(tiny_sd_float64):
    """The tiny model with 20 training timesteps."""
    model = copy.copy(tiny_sd_float64)
    model.__dict__.pop("_alphas", None)
    model.pipeline, scheduler = copy.copy(model.pipeline), model.pipeline.scheduler
    model.pipeline.scheduler = type(scheduler).from_config(scheduler.config, num_train_timesteps=20)
    return model


@pytest.fixture(scope="module")
def fisher(short_schedule, golden):
    """Our estimate for the recorded draws, and the recording."""
    meta, values, extra = golden("sa/fim")
    _, seen = traced_erase(
        short_schedule,
        recorded(extra, "z", "noise"),
        replay_captions=meta["prompts"],
        fisher_pictures=meta["n_fim"],
        fisher_timesteps=None,
        fisher_batch=meta["timesteps"] // meta["n_chunks"],
        iterations=1,
    )
    return seen["fisher"][0], values, meta["every"]


def test_official_fisher(fisher):
    ours, theirs, every = fisher
    assert ours.keys() == theirs.keys()
    assert distance(*(flat(values, theirs) for values in (thin(ours, every), theirs))) < 1e-5


@pytest.mark.parametrize("tag", ["no_penalty", "xattn_fim"])
def test_official_training(tag, tiny_sd_float64, golden, fisher, monkeypatch):
    meta, weights, extra = golden(f"sa/{tag}")
    monkeypatch.setattr("overpaint.methods.sa.SA.fisher", lambda *_: fisher[0])
    monkeypatch.setattr("overpaint.methods.sa.CHECKPOINT_UPDATES", 0)  # the recorded run has no checkpoint
    captions = [text.strip() for text in meta["forget_prompt"].split(",")]
    draws = recorded(extra, "z_f", "t_f", "noise_f", "z_r", "t_r", "noise_r")
    said = [text for step in meta["prompts"] for text in step["forget"]]
    draws |= {f"caption.{n}": torch.tensor(captions.index(text)) for n, text in enumerate(said)}
    order = [REPLAYED.index(text) for step in meta["prompts"] for text in step["replay"]]
    order += [row for row in range(3) if row not in order[3:]] if len(order) > 3 else []
    draws |= {f"pictures.{n}": torch.tensor(order[3 * n : 3 * n + 3]) for n in range(len(order) // 3)}
    arguments = {
        "compat": "official",
        "forget_captions": captions,
        "pictures": meta["n_forget"],
        "replay_captions": REPLAYED,
        "replay_pictures": len(REPLAYED),
        "replay_weight": float(meta["gamma"]),
        "fisher_weight": float(meta["lmbda"]),
        "warmup_steps": int(meta["warm_up"]),
        "iterations": meta["steps"],
        "learning_rate": meta["lr"],
        "batch_size": meta["batch_size"],
    }
    erasure, seen = traced_erase(tiny_sd_float64, draws, **arguments)
    for name in ("loss", "loss_forget", "loss_replay"):
        for ours, theirs in zip(seen[name], extra[name], strict=True):
            assert abs(float(ours / theirs) - 1) < 1e-5, name
    # after a step at 1e-6 of the learning rate, the penalty of float32 weights is rounding noise: 1e-14 next to 4e-2
    assert torch.allclose(torch.stack(seen["loss_ewc"]), extra["loss_ewc"].double(), rtol=1e-4, atol=1e-12)
    every, base = meta["every"], thin(parameters(tiny_sd_float64, weights), meta["every"])
    last = f"grad{meta['steps'] - 1}."
    gradient = {name.removeprefix(last): value for name, value in extra.items() if name.startswith(last)}
    ours = thin(seen["gradients"][-1], every)
    assert distance(flat(ours, gradient), flat(gradient, gradient)) < 3e-4
    average = {name.removeprefix("ema."): value for name, value in extra.items() if name.startswith("ema.")}
    student, kept = seen["weights"][0], {name: change.tensor for name, change in erasure.changes.items()}
    for ours, theirs in ((student, weights), (kept, average)):
        assert ours.keys() == theirs.keys()
        assert distance(*(flat(values, weights) for values in (thin(ours, every), theirs, base))) < 5e-4
    only, _ = traced_erase(tiny_sd_float64, draws, **(arguments | {"ema": 0.0}))
    assert all(torch.equal(only.changes[name].tensor, student[name]) for name in student)


def test_the_penalty_holds_important_weights():
    start = {"w": torch.tensor([1.0, 2.0, 3.0])}
    moved, importance = {"w": torch.tensor([2.0, 2.0, 1.0])}, {"w": torch.tensor([1.0, 5.0, 0.5])}
    assert float(penalty(importance, moved, start)) == 1 * 1 + 0.5 * 4
    assert float(penalty(importance, start, start)) == 0
    assert float(penalty({}, moved, start)) == 0


def test_a_heavy_penalty_leaves_fewer_changes(tiny_sd):
    def moved(weight):
        erasure, _ = traced_erase(
            tiny_sd, fisher_weight=weight, iterations=6, ema=0.0, weight_decay=0.0, fisher_timesteps=20
        )
        base = tiny_sd.named_parameters()
        return sum(float((change.tensor - base[name]).square().sum()) for name, change in erasure.changes.items())

    assert moved(1e8) < 0.8 * moved(0.0)


def test_the_estimate_is_not_negative_and_does_not_depend_on_the_batch(tiny_sd_float64):
    one, two = (traced_erase(tiny_sd_float64, fisher_batch=batch)[1]["fisher"][0] for batch in (1, 3))
    for name, value in one.items():
        assert (value >= 0).all() and value.any()
        torch.testing.assert_close(value, two[name], rtol=1e-8, atol=1e-12)


def test_the_first_loss_is_that_of_the_surrogate_with_the_concepts_caption(tiny_sd_float64):
    model = tiny_sd_float64
    z, noise, t = model.noise(range(2)), model.noise([5, 6]), torch.tensor([200, 700])
    _, seen = traced_erase(model, {"z_f.0": z, "noise_f.0": noise, "t_f.0": t}, fisher_weight=0.0, iterations=1)
    with torch.no_grad():
        predicted = model.predict(model.add_noise(z, noise, t), t, model.encode(["dog", "dog"]))
    expected = float((predicted - noise).square().mean())
    assert abs(float(seen["loss_forget"][0]) / expected - 1) < 1e-9


def test_released_pairs_and_all_replayed_images(tiny_sd):
    """Official: the replayed image has the surrogate's number. Intended: the replayed images have an order of their own."""
    losses = {}
    for compat in ("official", "intended"):
        for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
            draws = {"replay.0": torch.tensor(order), "pictures.0": torch.tensor([0, 1])}
            _, seen = traced_erase(tiny_sd, draws, compat=compat, replay_pictures=4, iterations=1, fisher_weight=0.0)
            losses[compat, order[0]] = float(seen["loss_replay"][0])
    assert losses["official", 0] == losses["official", 3]
    assert losses["intended", 0] != losses["intended", 3]


@pytest.mark.parametrize(
    ("compat", "updates", "largest", "decay"),
    [
        ("intended", 0, 0.9999, 2 / 11),
        ("intended", 8, 0.9999, 10 / 19),
        ("intended", 8, 0.5, 0.5),
        ("official", 0, 0.9999, 0.9999),
        ("official", 8, 0.9999, 0.9999),
        ("official", 0, 0.5, 0.5),
    ],
)
def test_the_averages_first_decay(compat, updates, largest, decay, tiny_sd_float64):
    values = {"fisher_weight": 0.0, "iterations": 1, "warmup_steps": 0, "learning_rate": 1e-2}
    erasure, seen = traced_erase(
        tiny_sd_float64, compat=compat, ema_updates=updates, ema=largest, weight_decay=0.0, **values
    )
    for name, trained in seen["weights"][0].items():
        base = tiny_sd_float64.named_parameters()[name]
        torch.testing.assert_close(erasure.tensors[name], decay * base + (1 - decay) * trained, rtol=0, atol=1e-12)


def test_the_learning_rate_rises_linearly_in_the_warm_up():
    eraser = component("method", "sa").build({"warmup_steps": 2})
    assert [round(eraser.warming(step), 7) for step in range(4)] == [1e-6, 0.5000005, 1.0, 1.0]
    assert component("method", "sa").build({"warmup_steps": 0}).warming(0) == 1.0


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"ema": 1.0}, "ema takes a number from 0 to below 1"),
        ({"fisher_timesteps": 0}, "fisher_timesteps"),
        ({"forget_captions": []}, "forget_captions"),
        ({"surrogate_template": "no place"}, "surrogate_template"),
        ({"erase": ["dog", "bird"], "anchor": None, "pictures": 1}, "pictures=1 is too few for 2 concepts"),
    ],
)
def test_bad_values_are_refused(values, told, tiny_sd):
    with pytest.raises(overpaint.UserError, match=told):
        traced_erase(tiny_sd, **values)
