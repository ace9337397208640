"""Concept Sliders against recorded runs of their official code, with the same random draws, and against their equations."""

from typing import get_args

import pytest
import torch

import overpaint
from official import by_name, distance, flat, recorded, watched
from overpaint.blocks.adapters import Branches, fresh_factors
from overpaint.blocks.rollouts import leco_rollout
from overpaint.grid.registry import component
from overpaint.methods.sliders import Group, Layers, adapted_layers, scales
from overpaint.models.guidance import Guidance

SMALL = {"iterations": 2, "rollout_steps": 4, "learning_rate": 1e-2, "erase": ["dog"]}


def traced_erase(model, records=None, **arguments):
    """The erasure and its traced values, as lists by name."""
    with watched(records) as seen:
        erasure = overpaint.erase(model, "sliders", **(SMALL | arguments))
    return erasure, by_name(seen)


def output(model, erasure=None, t=500):
    latents, embeds = model.noise([0, 1]), model.encode(["a dog", "a ship"])
    with torch.no_grad():
        if erasure is None:
            return model.predict(latents, torch.tensor(t), embeds)
        with erasure.attached(model):
            return model.predict(latents, torch.tensor(t), embeds)


def module_name(layer):
    """The official name of a layer's adapter."""
    return f"lora_unet_{layer.replace('.', '_')}"


def official_start(model, layers, modules, rank):
    """The recorded runs' first factors: ``down`` is 0.2 cos(0.7 i + n) at entry i of module n, ``up`` is 0."""
    factors = fresh_factors(model, layers, rank, torch.Generator(), bound=1.0)
    for layer in layers:
        down = factors[f"{layer}.down"]
        entries = torch.arange(down.numel(), dtype=torch.float64)
        phase = 0.7 * entries + modules.index(module_name(layer))
        factors[f"{layer}.down"] = (0.2 * torch.cos(phase)).float().view(down.shape).to(down)
    return factors


@pytest.mark.parametrize("tag", ["erase", "erase_opposite", "enhance_opposite"])
def test_official_training(tag, tiny_sd_float64, golden):
    model = tiny_sd_float64
    meta, factors, extra = golden(f"sliders/{tag}")
    layers = adapted_layers(model, meta["layers"], meta["train"])
    assert {module_name(layer) for layer in layers} == set(meta["modules"])
    start = official_start(model, layers, meta["modules"], meta["rank"])
    records = recorded(extra, "x_T") | {f"k.{n}": k for n, k in enumerate(extra["k"])} | {"init.0": start}
    erasure, seen = traced_erase(
        model,
        records,
        erase=["dog"],
        compat="official",
        guidance=meta["eta"],
        rollout_steps=meta["steps"],
        learning_rate=meta["lr"],
        **{key: meta[key] for key in ("target", "positive", "neutral", "unconditional", "action")},
        **{key: meta[key] for key in ("layers", "train", "rank", "alpha", "start_guidance")},
        **{key: meta[key] for key in ("iterations", "weight_decay")},
    )
    assert seen["t"] == extra["t"].tolist() and len(seen["t"]) == meta["iterations"]
    for n in range(meta["iterations"]):
        for name in ("x_t", "positive", "neutral", "unconditional", "target"):
            assert distance(seen[name][n], extra[f"{name}.{n}"]) < 1e-5, (name, n)
    assert [float(loss) for loss in seen["loss"]] == pytest.approx(extra["losses"].tolist(), rel=1e-4)

    def named(group, sides=("down", "up")):
        """Our tensors under the official names, thinned out as the recorded ones."""
        pairs = ((layer, side, group[f"{layer}.{side}"]) for layer in layers for side in sides)
        return {f"{module_name(layer)}.{side}": x.flatten()[:: meta["every"]] for layer, side, x in pairs}

    first = {key.removeprefix("grad0."): value for key, value in extra.items() if key.startswith("grad0.")}
    assert distance(*(flat(group, first) for group in (named(seen["gradients"][0], ["up"]), first))) < 1e-4
    parts = {key.removeprefix("0."): value for key, value in erasure.parts.items()}
    assert distance(*(flat(group, factors) for group in (named(parts), factors, named(start)))) < 1e-3


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"guidance": 4.0, "anchor": "cat"},
        {"action": "enhance", "guidance": 2.0, "unconditional": "a ship", "neutral": "a tree", "target": "a bird"},
    ],
)
def test_the_first_loss(values, tiny_sd_float64):
    model = tiny_sd_float64
    _, seen = traced_erase(model, iterations=1, **values)
    anchor = values.get("anchor", "")
    texts = [values.get(k, v) for k, v in (("target", "dog"), ("neutral", anchor), ("unconditional", anchor))]
    x_t, t = seen["x_t"][0], seen["t"][0]
    with torch.no_grad():
        c, neutral, opposite, positive = (model.predict(x_t, t, model.encode([text])) for text in (*texts, "dog"))
    sign = 1 if values.get("action") == "enhance" else -1
    target = neutral + sign * values.get("guidance", 1.0) * (positive - opposite)
    assert abs(float(seen["loss"][0] / (c - target).square().mean()) - 1) < 1e-9


def test_as_an_eraser_it_has_esds_first_loss(tiny_sd_float64):
    """With up = 0: (1 + η)² mean (e0(c) − e0(∅))²."""
    model = tiny_sd_float64
    _, seen = traced_erase(model, iterations=1, guidance=2.0)
    difference = seen["positive"][0] - seen["unconditional"][0]
    assert abs(float(seen["loss"][0] / (9 * difference.square().mean())) - 1) < 1e-9


@pytest.mark.parametrize("layers", get_args(Layers))
@pytest.mark.parametrize("group", get_args(Group))
def test_the_official_layers(layers, group, tiny_sd, golden):
    (meta, *_) = golden("sliders/modules")
    ours = sorted(map(module_name, adapted_layers(tiny_sd, layers, group)))
    assert ours == meta["modules"][f"{layers} {group}"]


def test_time_embeddings_inside_residual_blocks_are_adapted(tiny_sd):
    names = adapted_layers(tiny_sd, "c3lier", "noxattn")
    assert "down_blocks.0.resnets.0.time_emb_proj" in names
    assert not any("attn2" in name or name.startswith(("time_embedding", "conv_in", "conv_out")) for name in names)
    assert not any(".ff." in name or "proj_in" in name for name in names)


def test_factors_start_like_the_official_ones(tiny_sd):
    names = adapted_layers(tiny_sd, "c3lier", "full")
    factors = fresh_factors(tiny_sd, names, 4, torch.Generator().manual_seed(0), bound=3**0.5)
    owners = tiny_sd.parameter_owners()
    for name in names:
        weight = getattr(*owners[f"{name}.weight"])
        limit = (3 / weight[0].numel()) ** 0.5
        down = factors[f"{name}.down"]
        assert down.abs().max() <= limit and down.abs().max() > 0.8 * limit
        assert not factors[f"{name}.up"].any()


def test_a_layer_with_few_channels_has_a_smaller_rank_and_a_larger_scale(tiny_sd):
    names = ["conv_in", "mid_block.resnets.0.conv1"]
    factors = fresh_factors(tiny_sd, names, 8, torch.Generator().manual_seed(0))
    assert [len(factors[f"{name}.down"]) for name in names] == [4, 8]
    assert scales(factors, 1.0) == {"conv_in": 0.25, "mid_block.resnets.0.conv1": 0.125}
    assert set(scales(factors, 0.0).values()) == {1.0}
    factors = {
        name: torch.randn(part.shape, generator=torch.Generator().manual_seed(1)) for name, part in factors.items()
    }
    with Branches(tiny_sd, factors, scale=scales(factors, 1.0)).active():
        branched = output(tiny_sd)
    weights = {}
    owners = tiny_sd.parameter_owners()
    for name in names:
        module, _ = owners[f"{name}.weight"]
        down, up = factors[f"{name}.down"], factors[f"{name}.up"]
        weights[module] = module.weight.data
        module.weight.data = module.weight + torch.einsum("or,ri...->oi...", up.flatten(1), down) / len(down)
    try:
        merged = output(tiny_sd)
    finally:
        for module, weight in weights.items():
            module.weight.data = weight
    assert distance(branched, merged) < 1e-4 < distance(branched, output(tiny_sd))


def test_fresh_sliders_and_a_strength_of_zero_change_no_bit(tiny_sd):
    fresh, _ = traced_erase(tiny_sd, learning_rate=0.0)
    off, _ = traced_erase(tiny_sd, strength=0.0)
    assert torch.equal(output(tiny_sd, off), output(tiny_sd))
    assert torch.equal(output(tiny_sd, fresh), output(tiny_sd))


def test_strengths_and_sliders_add_up(tiny_sd):
    """Two sliders beside each other are the two erasures on top of each other."""
    one, two = (traced_erase(tiny_sd, erase=[name])[0] for name in ("dog", "ship"))
    both, _ = traced_erase(tiny_sd, erase=["dog", "ship"])
    names = {f"{n}.{key.partition('.')[2]}" for n, e in enumerate((one, two)) for key in e.parts}
    assert set(both.parts) == names
    for number, alone in enumerate((one, two)):
        for key, part in alone.parts.items():
            assert torch.equal(part, both.parts[f"{number}.{key.partition('.')[2]}"])
    with one.attached(tiny_sd):
        stacked = output(tiny_sd, two)
    assert distance(output(tiny_sd, both), stacked) < 1e-4 < distance(stacked, output(tiny_sd, one))


def test_below_a_timestep_only(tiny_sd):
    always, _ = traced_erase(tiny_sd)
    late, _ = traced_erase(tiny_sd, below=500.0)
    assert torch.equal(output(tiny_sd, late, 499), output(tiny_sd, always, 499))
    assert torch.equal(output(tiny_sd, late, 500), output(tiny_sd, t=500))


def test_attributes_are_put_in_front_of_all_texts():
    eraser = component("method", "sliders").build({"attributes": ["male", "female"], "neutral": "person"})
    assert eraser.rows("old", "") == [(f"{a} old", f"{a} old", f"{a} person", a) for a in ("male", "female")]
    assert component("method", "sliders").build({}).rows("old", "young") == [("old", "old", "young", "young")]


def test_the_official_roll_out(tiny_sd):
    start = tiny_sd.noise([4])
    draws = {"k.0": torch.tensor(2), "x_T.0": start}
    _, seen = traced_erase(tiny_sd, draws, compat="official", iterations=1, anchor="cat")
    guidance = Guidance(tiny_sd, tiny_sd.encode(["dog"]), tiny_sd.encode(["cat"]), 3.0)
    x_t, t = leco_rollout(tiny_sd, start, guidance, 4, 2)
    assert seen["t"][0] == t == 499 and distance(seen["x_t"][0], x_t) < 1e-5
    schedule = tiny_sd.scheduler("ddim")
    schedule.set_timesteps(4)
    _, seen = traced_erase(tiny_sd, draws, iterations=1)
    assert seen["t"][0] == schedule.timesteps[2]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"rank": 0}, "rank"),
        ({"rollout_steps": 1}, "rollout_steps"),
        ({"train": "attn2"}, "train"),
        ({"below": -1.0}, "below"),
    ],
)
def test_bad_values_are_refused(values, told, tiny_sd):
    with pytest.raises(overpaint.UserError, match=told):
        traced_erase(tiny_sd, **values)


def test_groups_that_are_empty_are_refused(tiny_sd):
    with pytest.raises(overpaint.UserError, match="empty"):
        traced_erase(tiny_sd, layers="lierla", train="noxattn-hspace-last")
