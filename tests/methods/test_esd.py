"""ESD against recorded runs of its three official codes, with the same random draws, and against its closed forms."""

import pytest
import torch

import overpaint
from official import distance, flat, parameters, recorded, rollout_settings, watched
from overpaint.blocks.training import parameter_group
from overpaint.grid.registry import component
from overpaint.methods.esd import CURRENT_GROUPS, GROUPS, SDXL_GROUPS

RUNS = {
    "esdnew_x": {"variant": "current", "train": "x", "erase": ["van gogh"]},
    "esdnew_strict": {"variant": "current", "train": "strict", "erase": ["snoopy"]},
    "esdold_x": {"variant": "legacy", "compat": "official", "train": "x", "erase": ["van gogh"]},
    "esdalt_x": {"variant": "alt", "compat": "official", "train": "x", "erase": ["van gogh"]},
}


def traced_erase(model, records=None, **arguments):
    """The erasure and the traced values of each iteration."""
    with watched(records) as seen:
        erasure = overpaint.erase(model, "esd", **arguments)
    return erasure, [predictions | step for predictions, step in zip(seen[::2], seen[1::2], strict=True)]


@pytest.mark.parametrize("tag", RUNS)
def test_official_code(tag, tiny_sd_float64, golden):
    meta, weights, extra = golden(f"esd/{tag}")
    erasure, iterations = traced_erase(
        tiny_sd_float64,
        recorded(extra, "x_T", "k", "t"),
        **rollout_settings(meta),
        **RUNS[tag],
    )
    for n, seen in enumerate(iterations):
        assert seen["t"] == int(extra[f"t.{n}"])
        for name in ("x_t", "pred", "target"):
            assert distance(seen[name], extra[f"{name}.{n}"]) < 1e-5, (name, n)
        assert abs(float(seen["loss"] / extra["losses"][n]) - 1) < 1e-4
    for name in (key.removeprefix("grad0.") for key in extra if key.startswith("grad0.")):
        assert distance(iterations[0]["gradients"][name], extra[f"grad0.{name}"]) < 1e-4, name

    assert erasure.changes.keys() == weights.keys()
    ours = {name: change.tensor for name, change in erasure.changes.items()}
    start = parameters(tiny_sd_float64, weights)
    assert distance(*(flat(group, weights) for group in (ours, weights, start))) < 2e-3


@pytest.mark.parametrize(
    "groups, name, tensors",
    [
        (GROUPS, "x", 35), (GROUPS, "u", 281), (GROUPS, "selfattn", 35), (GROUPS, "full", 324),
        (CURRENT_GROUPS, "x", 35), (CURRENT_GROUPS, "u", 187), (CURRENT_GROUPS, "strict", 14),
        (CURRENT_GROUPS, "full", 222),
    ],
)  # fmt: skip
def test_groups_have_the_official_number_of_tensors(tiny_sd, groups, name, tensors):
    assert len(parameter_group(tiny_sd, groups[name])) == tensors


@pytest.mark.parametrize("group, tensors", [("x", 40), ("strict", 16), ("selfattn", 40), ("u", 134), ("full", 174)])
def test_groups_of_the_sdxl_script(tiny_sdxl, group, tensors):
    """The script's rule by layer name: layers inside a block, without embeddings; ``u`` also excludes cross-attention."""
    found = parameter_group(tiny_sdxl, SDXL_GROUPS[group])
    assert len(found) == tensors
    if group in ("u", "full"):
        owners = tiny_sdxl.parameter_owners()
        layers = {name: name.rpartition(".")[0] for name in tiny_sdxl.denoiser_names}
        linear = [n for n in layers if type(owners[n][0]).__name__ in ("Linear", "Conv2d", "LoRACompatibleLinear")]
        wanted = [n for n in linear if "emb" not in layers[n] and "block" in layers[n]]
        assert found == [n for n in wanted if group == "full" or "attn2" not in layers[n]]


@pytest.mark.parametrize("group", ["x", "strict", "selfattn", "u", "full"])
def test_the_sdxl_script_moves_all_of_its_group(tiny_sdxl, group):
    """With the preset's η = 1, the first loss is MSE(e0(c), e0(∅)), and every tensor has a gradient."""
    erasure, (seen,) = traced_erase(tiny_sdxl, preset="sdxl", train=group, **SMALL)
    with torch.no_grad():
        named, nothing = (tiny_sdxl.predict(seen["x_t"], seen["t"], tiny_sdxl.encode([text])) for text in ("dog", ""))
    assert float(seen["loss"]) == pytest.approx(float(torch.nn.functional.mse_loss(named, nothing)), rel=1e-4)
    assert list(erasure.changes) == parameter_group(tiny_sdxl, SDXL_GROUPS[group])
    for name, gradient in seen["gradients"].items():
        assert gradient is not None and gradient.abs().sum() > 0, name


def test_the_guidance_of_the_sdxl_script_comes_with_its_preset():
    method = component("method", "esd")
    assert method.build(method.settle({}, "sdxl")).start_guidance == 2
    assert method.build({"variant": "sdxl"}).start_guidance == 3
    rates = {
        train: method.build({"variant": "sdxl", "train": train}).learning_rate for train in ("x", "strict", "u", "full")
    }
    assert rates == {"x": 2e-4, "strict": 2e-4, "u": 1e-5, "full": 1e-5}


SMALL = {"erase": ["dog"], "iterations": 1, "rollout_steps": 4, "learning_rate": 1e-3}


@pytest.mark.parametrize("variant, factor", [("legacy", lambda eta: 1 + eta), ("current", lambda eta: eta)])
@pytest.mark.parametrize("eta", [0.5, 2.0])
def test_the_first_loss_follows_from_the_base_predictions(tiny_sd_float64, variant, factor, eta):
    """(1+η)² MSE(e0(c), e0(∅)) in the paper's form, η² MSE(…) in the current one, since the student is still e0."""
    model = tiny_sd_float64
    _, (seen,) = traced_erase(model, variant=variant, negative_guidance=eta, **SMALL)
    with torch.no_grad():
        named, nothing = (model.predict(seen["x_t"], seen["t"], model.encode([text])) for text in ("dog", ""))
    expected = factor(eta) ** 2 * torch.nn.functional.mse_loss(named, nothing)
    assert abs(float(seen["loss"]) / float(expected) - 1) < 1e-5


@pytest.mark.parametrize("variant", ["current", "alt"])
def test_erasing_from_another_prompt_starts_at_its_own_prediction(tiny_sd_float64, variant):
    model, texts = tiny_sd_float64, ("dog", "a photo of a dog", "")
    _, (seen,) = traced_erase(model, variant=variant, erase_from=texts[1], negative_guidance=2.0, **SMALL)
    with torch.no_grad():
        named, source, nothing = (model.predict(seen["x_t"], seen["t"], model.encode([text])) for text in texts)
    torch.testing.assert_close(seen["pred"], source)
    torch.testing.assert_close(seen["target"], source - 2 * (named - nothing))


@pytest.mark.parametrize(
    "values", [{"erase_from": "a dog"}, {"iterations": 0}, {"rollout_steps": 1}, {"batch_size": 0}, {"train": "y"}]
)
def test_settings_that_mean_nothing_are_refused(tiny_sd, values):
    with pytest.raises(overpaint.UserError, match=next(iter(values))):
        overpaint.erase(tiny_sd, "esd", **({"erase": ["dog"]} | values))


def test_half_precision_weights_are_trained_in_float32(goldens):
    model = overpaint.load_model(str(goldens / "tiny_sd"), dtype="bfloat16")
    erasure, (seen,) = traced_erase(model, **SMALL)
    assert {g.dtype for g in seen["gradients"].values()} == {torch.float32}
    assert {c.tensor.dtype for c in erasure.changes.values()} == {torch.bfloat16}


@pytest.mark.parametrize("variant, eta", [("current", 0.0), ("legacy", -1.0)])
def test_the_neutral_strength_leaves_nothing_to_learn(tiny_sd_float64, variant, eta):
    _, (seen,) = traced_erase(tiny_sd_float64, variant=variant, negative_guidance=eta, **SMALL)
    assert float(seen["loss"]) < 1e-12


def test_the_current_strength_is_the_papers_plus_one(tiny_sd):
    """With the same x_t, both targets are equal."""
    targets = {}
    for variant, eta in (("alt", 1.0), ("legacy", 1.0)):
        draws = {"k.0": torch.tensor([2])}
        _, (seen,) = traced_erase(tiny_sd, draws, variant=variant, negative_guidance=eta, **SMALL)
        targets[variant] = seen["target"]
    assert torch.equal(targets["alt"], targets["legacy"])
    model, x_t, t = tiny_sd, seen["x_t"], seen["t"]
    with torch.no_grad():
        named, nothing = (model.predict(x_t, t, model.encode([text])) for text in ("dog", ""))
    torch.testing.assert_close(named - 2 * (named - nothing), targets["legacy"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant, group", [("legacy", "u"), ("current", "u"), ("legacy", "selfattn")])
def test_all_of_the_group_learns_and_nothing_else(tiny_sd, variant, group):
    before = {name: p.data.clone() for name, p in tiny_sd.named_parameters().items()}
    erasure, (seen,) = traced_erase(tiny_sd, variant=variant, train=group, **SMALL)
    groups = CURRENT_GROUPS if variant == "current" else GROUPS
    assert list(erasure.changes) == parameter_group(tiny_sd, groups[group])
    for name, gradient in seen["gradients"].items():
        assert gradient is not None and gradient.abs().sum() > 0, name
    for name, p in tiny_sd.named_parameters().items():
        assert torch.equal(p.data, before[name]) and not p.requires_grad


def test_concepts_are_drawn_in_turn(tiny_sd):
    draws = {"concept.0": torch.tensor([1]), "k.0": torch.tensor([1]), "x_T.0": tiny_sd.noise([5])}
    _, (joint,) = traced_erase(tiny_sd, draws, **(SMALL | {"erase": ["dog", "ship"]}))
    _, (alone,) = traced_erase(tiny_sd, draws | {"concept.0": torch.tensor([0])}, **(SMALL | {"erase": ["ship"]}))
    assert torch.equal(joint["target"], alone["target"])


def test_an_official_batch_of_four_is_trained_at_one_timestep(tiny_sd):
    _, (seen,) = traced_erase(tiny_sd, batch_size=4, **SMALL)
    assert seen["x_t"].shape == (4, 4, 16, 16) and isinstance(seen["t"], int)
