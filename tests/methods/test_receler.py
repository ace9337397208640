"""Receler against a recorded run of its official code, and the behaviour of an adversary that the code lacks."""

import pytest
import torch

import overpaint
from official import distance, flat, recorded, rollout_settings, watched
from overpaint.blocks.draws import Draws
from overpaint.grid.registry import component
from overpaint.methods.receler import Adversary, BlockAdapters, concept_masks, outside


def traced_erase(model, records=None, **arguments):
    """The erasure and the traced values of each iteration; values of inner steps are lists."""
    iterations = []
    with watched(records) as seen:
        erasure = overpaint.erase(model, "receler", **arguments)
    for values in seen:
        if "attention" in values:
            iterations.append({"adversary_loss": [], "adversary_gradient": []})
        for name, value in values.items():
            kept = iterations[-1].get(name)
            kept.append(value) if isinstance(kept, list) else iterations[-1].update({name: value})
    return erasure, iterations


def settings(meta):
    return {
        "compat": "official",
        "erase": [meta["concept"]],
        "rank": meta["rank"],
        **rollout_settings(meta),
        "mask_threshold": meta["mask_thres"],
        "regulariser": meta["concept_reg_weight"],
        "inner_steps": meta["advrs_iters"],
        "vectors": meta["num_advrs_prompts"],
    }


def draws(extra):
    """Recorded draws under our names. Every tensor has one draw, its start."""
    drawn = recorded(extra, "x_T", "k", "t")
    return drawn | {f"{key}.0": value for key, value in extra.items() if key.startswith("start.")}


@pytest.mark.parametrize("tag", ["receler_fresh"])
def test_official_code(tag, tiny_sd_float64, golden):
    meta, weights, extra = golden(f"receler/{tag}")
    erasure, iterations = traced_erase(tiny_sd_float64, draws(extra), **settings(meta))
    assert len(iterations) == meta["iterations"]
    for n, seen in enumerate(iterations):
        assert seen["t"] == int(extra[f"t.{n}"])
        for name in ("x_t", "target", "pred"):
            assert distance(seen[name], extra[f"{name}.{n}"]) < 1e-5, (name, n)
        assert abs(float(seen["erase"] / extra[f"erase_loss.{n}"]) - 1) < 1e-4
        assert torch.allclose(torch.stack(seen["adversary_loss"]), extra[f"adv_losses.{n}"], rtol=1e-4, atol=1e-12)
        if f"adv_grad.{n}" in extra:  # of fresh erasers it is rounding alone
            assert distance(seen["adversary_gradient"][-1], extra[f"adv_grad.{n}"]) < 1e-4
        for key, (block, kind) in compared(meta, n).items():
            if key in extra and kind == "masks":
                assert torch.equal(seen[kind][block], extra[key]), key
            elif key in extra:
                assert distance(seen[kind][block], extra[key]) < {"attention": 1e-4, "added": 1e-3}[kind], key

    assert erasure.parts.keys() == weights.keys()
    start = {name.removeprefix("start."): value for name, value in extra.items()}
    assert distance(*(flat(group, weights) for group in (erasure.parts, weights, start))) < 1e-3


def compared(meta, n):
    """Recorded name -> (block, our name), for one iteration."""
    kinds = {"attn": "attention", "mask": "masks", "eraser_out": "added"}
    return {f"{theirs}.{n}.{block}": (block, ours) for theirs, ours in kinds.items() for block in meta["blocks"]}


SMALL = {"erase": ["dog"], "iterations": 1, "rollout_steps": 4, "rank": 4, "inner_steps": 3, "vectors": 2}


def test_fresh_erasers_change_no_bit(tiny_sd):
    x, c = tiny_sd.noise([3]), tiny_sd.encode(["a photo of a dog"])
    fresh = BlockAdapters.drawn(tiny_sd, 8, Draws(0))
    with torch.no_grad():
        plain = tiny_sd.predict(x, 500, c)
        with fresh.active() as added:
            assert torch.equal(tiny_sd.predict(x, 500, c), plain)
        assert added.keys() == tiny_sd.cross_attention().keys()
        for master in fresh.masters.values():
            master.data += 0.1
        with fresh.active():
            assert not torch.equal(tiny_sd.predict(x, 500, c), plain)
        assert torch.equal(tiny_sd.predict(x, 500, c), plain)


@pytest.mark.parametrize("eta", [0.5, 2.0])
def test_the_first_loss_follows_from_the_base_predictions(tiny_sd_float64, eta):
    """(1 + η)² MSE(e0(c), e0(∅)), because new erasers add nothing and no token is inserted."""
    arguments = SMALL | {"compat": "official", "negative_guidance": eta}
    _, (seen,) = traced_erase(tiny_sd_float64, **arguments)
    with torch.no_grad():
        named, nothing = (
            tiny_sd_float64.predict(seen["x_t"], seen["t"], tiny_sd_float64.encode([p])) for p in ("dog", "")
        )
    expected = (1 + eta) ** 2 * torch.nn.functional.mse_loss(named, nothing)
    assert float(seen["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_the_adversary_reaches_the_network_as_intended_and_does_not_as_released(tiny_sd_float64):
    arguments = SMALL | {"iterations": 2, "learning_rate": 1e-2, "inner_steps": 6, "vector_weight_decay": 0.0}
    _, (_, seen) = traced_erase(tiny_sd_float64, **arguments)
    losses = torch.stack(seen["adversary_loss"])
    assert losses[0] > 0 and losses[-1] < losses[0]
    _, (_, seen) = traced_erase(tiny_sd_float64, compat="official", **arguments)
    losses = torch.stack(seen["adversary_loss"])
    assert losses[0] > 0 and torch.equal(losses, losses[:1].expand(6))
    assert seen["adversary_gradient"][-1].abs().sum() > 0


def test_as_released_the_number_of_inner_steps_does_not_matter(tiny_sd):
    one, many = (traced_erase(tiny_sd, **(SMALL | {"compat": "official", "inner_steps": n}))[0] for n in (1, 3))
    assert all(torch.equal(one.parts[name], many.parts[name]) for name in one.parts)


def test_vectors_stand_right_behind_the_concepts_tokens(tiny_sd):
    eraser = component("method", "receler").build({"vectors": 3, "compat": "intended"}, seed=0)
    adversary = Adversary(eraser, tiny_sd, "snoopy", Draws(0))
    c, written = tiny_sd.encode(["snoopy"]), adversary.prompt()
    assert adversary.words == slice(1, 7)
    assert torch.equal(written[:, 7:10], adversary.v) and (adversary.v >= 0).all() and (adversary.v < 1).all()
    assert torch.equal(written[:, :7], c[:, :7]) and torch.equal(written[:, 10:], c[:, 10:])


def test_no_vectors_is_no_adversary(tiny_sd):
    with_none, (seen,) = traced_erase(tiny_sd, **(SMALL | {"vectors": 0}))
    assert with_none.parts and torch.equal(*torch.stack(seen["adversary_loss"])[[0, -1]])


def test_each_concept_has_its_own_adversary(tiny_sd):
    draws = {f"concept.{n}": torch.tensor([i]) for n, i in enumerate((0, 1, 0))}
    draws |= {f"k.{n}": torch.tensor([1]) for n in range(3)} | {f"x_T.{n}": tiny_sd.noise([5]) for n in range(3)}
    arguments = SMALL | {"iterations": 3, "learning_rate": 0.0, "inner_steps": 1}
    _, seen = traced_erase(tiny_sd, draws, **(arguments | {"erase": ["dog", "ship"]}))
    first, other, again = (s["adversary_loss"][0] for s in seen)
    assert first != other and first != again  # v has moved once between the first and the third
    _, alone = traced_erase(tiny_sd, draws | {f"concept.{n}": torch.tensor([0]) for n in range(3)}, **arguments)
    assert torch.equal(alone[1]["adversary_loss"][0], again)


def test_the_mask_is_of_the_side_nearest_to_16():
    tokens = slice(1, 3)
    maps = {"a": torch.zeros(1, 2, 24 * 24, 5), "b": torch.zeros(1, 2, 12 * 12, 5), "c": torch.zeros(1, 2, 6 * 6, 5)}
    maps["b"][:, :, :12, 1] = 1.0  # the first row of the middle map, on one of the two tokens
    maps["b"][:, :, 12, 1:3] = 0.04
    masks = concept_masks(maps, tokens, 0.1)
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == {
        n: (1, s, s) for n, s in zip("abc", (24, 12, 6), strict=True)
    }
    assert masks["b"][0, 0].eq(1).all() and masks["b"][0, 1:].eq(0).all()  # 0.04 is 8 % of the greatest mean, 0.5
    assert masks["a"][0, :2].eq(1).all() and masks["a"].sum() == 48 and masks["c"].sum() == 6
    assert concept_masks(maps, tokens, 0.08)["b"].sum() == 13, "a pixel at the threshold is the concept's"


def test_the_regulariser_is_the_mean_square_outside():
    added = {"a": torch.tensor([[[1.0, 3.0], [2.0, 2.0], [5.0, 5.0], [7.0, 7.0]]]), "b": torch.ones(1, 1, 3)}
    masks = {"a": torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]), "b": torch.zeros(1, 1, 1)}
    assert outside(added, masks).item() == pytest.approx(((5 + 4) / 2 + 1) / 2)
    assert outside(added, {name: torch.ones_like(mask) for name, mask in masks.items()}) == 0


def test_erasers_alone_learn_and_all_of_them(tiny_sd):
    erasure, (_, seen) = traced_erase(tiny_sd, **(SMALL | {"iterations": 2}))
    assert erasure.kind == "adapter" and not erasure.changes
    assert seen["gradients"].keys() == erasure.parts.keys()
    for name, gradient in seen["gradients"].items():
        assert gradient.abs().sum() > 0, name


def test_half_precision_models_have_float32_masters(goldens):
    model = overpaint.load_model(str(goldens / "tiny_sd"), dtype="bfloat16")
    erasure, (seen,) = traced_erase(model, **SMALL)
    assert {g.dtype for g in seen["gradients"].values()} == {torch.float32}
    assert {part.dtype for part in erasure.parts.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "values",
    [{"vectors": 76}, {"inner_steps": 0}, {"rank": 0}, {"rollout_steps": 1}, {"iterations": 0}, {"vectors": -1}],
)
def test_settings_that_mean_nothing_are_refused(tiny_sd, values):
    with pytest.raises(overpaint.UserError, match=next(iter(values))):
        overpaint.erase(tiny_sd, "receler", **(SMALL | values))


def test_erasers_of_another_network_are_refused(tiny_sd):
    erasure, _ = traced_erase(tiny_sd, **SMALL)
    erasure.parts = {name: part[..., :1] for name, part in erasure.parts.items()}
    with pytest.raises(overpaint.UserError, match="do not fit"):
        erasure.attach(tiny_sd)
