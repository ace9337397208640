"""SDD against recorded runs of its official code, with the same random draws, and against its equations."""

import pytest
import torch

import overpaint
from official import by_name, distance, flat, parameters, recorded, watched
from overpaint.blocks.rollouts import rollout
from overpaint.blocks.training import parameter_group
from overpaint.grid.registry import component
from overpaint.methods.sdd import GROUPS
from overpaint.models.guidance import Guidance

SMALL = {"iterations": 2, "rollout_steps": 4, "learning_rate": 1e-3}


def traced(model, **values):
    with watched(None) as seen:
        erasure = overpaint.erase(model, "sdd", erase=["dog"], **(SMALL | values))
    return erasure, seen


@pytest.fixture
def sdd():
    return lambda **values: component("method", "sdd").build(values)


@pytest.mark.parametrize("tag", ["iterative", "composite_k0", "noguide_noxattn"])
def test_official_training(tag, tiny_sd_float64, golden):
    model = tiny_sd_float64
    meta, weights, extra = golden(f"sdd/{tag}")
    records = recorded(extra, "x_T") | {f"{n}.{i}": int(v) for n in "kt" for i, v in enumerate(extra[n])}
    start = parameters(model, weights)
    with watched(records) as seen:
        erasure = overpaint.erase(
            model,
            "sdd",
            erase=meta["concepts"],
            compat="official",
            mode=meta["mode"],
            train=meta["train"],
            start_guidance=meta["start_guidance"],
            rollout_steps=meta["steps"],
            iterations=meta["iterations"],
            learning_rate=meta["lr"],
            weight_decay=meta["weight_decay"],
            clip=meta["max_norm"],
            ema=meta["ema"],
        )
    values, every = by_name(seen), meta["every"]
    assert len(values["x_t"]) == meta["iterations"] and values["t"] == extra["t"].tolist()
    for i, x_t in enumerate(values["x_t"]):
        assert distance(x_t, extra[f"x_t.{i}"]) < 1e-4
    for name in ("loss", "clip_norm"):
        assert [float(value) for value in values[name]] == pytest.approx(extra[name].tolist(), rel=1e-4)
    assert set(erasure.tensors) == set(weights)
    ours, base = ({name: t[name].flatten()[::every] for name in weights} for t in (erasure.tensors, start))
    assert distance(*(flat(tensors, weights) for tensors in (ours, weights, base))) < 1e-3


def test_the_target_is_the_students_own_prediction_without_a_prompt(tiny_sd_float64):
    model = tiny_sd_float64
    _, seen = traced(model, iterations=1)
    first = seen[0]
    latents, t = first["x_t"], first["t"]
    empty, named = (model.predict(latents, t, model.encode([text])) for text in ("", "dog"))
    torch.testing.assert_close(first["target"], empty, rtol=0, atol=1e-10)
    torch.testing.assert_close(first["pred"], named, rtol=0, atol=1e-10)
    loss = next(step["loss"] for step in seen if "loss" in step)
    torch.testing.assert_close(loss.double(), (named - empty).float().pow(2).mean().double(), rtol=1e-5, atol=0)


def test_without_averaging_the_erasure_is_the_student_and_with_it_between_base_and_student(tiny_sd_float64):
    model = tiny_sd_float64
    name = next(n for n in model.named_parameters() if n.endswith("attn2.to_v.weight"))
    base = model.named_parameters()[name].data
    one = {ema: traced(model, iterations=1, ema=ema)[0].tensors[name] for ema in (0.0, 0.9)}
    assert not torch.equal(one[0.0], base)
    torch.testing.assert_close(one[0.9], 0.9 * base + 0.1 * one[0.0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("group", "attention"), [("xattn", "cross"), ("selfattn", "self")])
def test_groups_hold_one_kind_of_attention(tiny_sd, group, attention):
    chosen = set(parameter_group(tiny_sd, GROUPS[group]))
    assert chosen == {p.name for p in tiny_sd.parameters(tiny_sd.denoiser_names) if p.attention == attention}


def test_the_official_number_of_tensors_without_cross_attention(tiny_sd):
    assert len(parameter_group(tiny_sd, GROUPS["noxattn"])) == 283


def test_notime_leaves_out_the_time_embedding_and_the_last_convolution(tiny_sd):
    left_out = {p.name for p in tiny_sd.parameters(tiny_sd.denoiser_names)} - set(
        parameter_group(tiny_sd, GROUPS["notime"])
    )
    assert {name.split(".")[0] for name in left_out} == {"time_embedding", "conv_out"}
    assert len(left_out) == 6


@pytest.mark.parametrize(
    ("mode", "compat", "turns"),
    [
        ("iterative", "intended", "ababab"),
        ("sequential", "intended", "aaabbb"),
        ("sequential", "official", "aaaaaa"),
    ],
)
def test_turns_of_the_concepts(mode, compat, turns, sdd):
    eraser = sdd(iterations=6, mode=mode, compat=compat)
    assert "".join(eraser.concept(["a", "b"], i, None) for i in range(6)) == turns
    assert sdd(mode="composite").concept(["a", "b"], 3, None) == "a, b"


@pytest.mark.parametrize("k", [0, 1, 3])
def test_timesteps_of_both_codes(k, tiny_sd):
    schedule = tiny_sd.scheduler("ddim")
    schedule.set_timesteps(4)
    aligned, official = rolled(tiny_sd, k, "intended"), rolled(tiny_sd, k, "official")
    assert aligned["t"] == schedule.timesteps[k]
    assert 1000 - 250 * (k + 1) <= official["t"] < 1000 - 250 * k
    if k:
        assert torch.equal(official["x_t"], aligned["x_t"])
    else:  # all steps are taken: a finished image
        assert torch.equal(aligned["x_t"], START)
        guidance = Guidance(tiny_sd, tiny_sd.encode(["dog"]), tiny_sd.encode([""]), 3.0)
        assert torch.equal(official["x_t"], tiny_sd.denoise(START, guidance, "ddim", 4))


START = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))


def rolled(model, k, compat, **values):
    """The values of one iteration with this k."""
    with watched({"k.0": torch.tensor(k), "x_T.0": START}) as seen, torch.no_grad():
        overpaint.erase(model, "sdd", erase=["dog"], **(SMALL | {"iterations": 1, "compat": compat} | values))
    return seen[0]


@pytest.mark.parametrize(("compat", "prompt"), [("intended", "dog"), ("official", "")])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_without_guidance_the_official_roll_out_has_no_prompt(compat, prompt, scale, tiny_sd):
    guidance = Guidance(tiny_sd, tiny_sd.encode([prompt]), tiny_sd.encode([""]), 1.0)
    expected, _ = rollout(tiny_sd, START, guidance, "ddim", 4, 2)
    assert torch.equal(rolled(tiny_sd, 2, compat, start_guidance=scale)["x_t"], expected)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"ema": 1.0}, "ema takes a number from 0 to below 1"),
        ({"iterations": 0}, "iterations"),
        ({"clip": -1.0}, "clip"),
    ],
)
def test_bad_values_are_refused(values, told, sdd):
    with pytest.raises(overpaint.UserError, match=told):
        sdd(**values)
