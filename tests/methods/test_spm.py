"""SPM against recorded runs of its official code, with the same random draws, and against its identities."""

import copy
import math

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

import overpaint
from official import distance, flat, recorded, watched
from overpaint.blocks.adapters import Branches, fresh_factors, side_by_side, transformer_layers
from overpaint.blocks.draws import Draws
from overpaint.commands.export import export_pipeline
from overpaint.grid.registry import component
from overpaint.methods.spm import anchors, permeability, resolutions
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.guidance import Guidance

SMALL = {
    "iterations": 1, "rollout_steps": 4, "learning_rate": 1e-2, "warmup_steps": 0, "dynamic_resolution": False,
}  # fmt: skip


def factors_of(tensors, prefix, model):
    """Official factors under our names: ``lora_unet_A_B.lora_down.weight`` is ``A.B.down``."""
    ours = {}
    for layer in transformer_layers(model):
        for side in ("down", "up"):
            ours[f"{layer}.{side}"] = tensors[f"{prefix}lora_unet_{layer.replace('.', '_')}.lora_{side}.weight"]
    return ours


def random_factors(model, seed=0, spread=0.2):
    generator = torch.Generator().manual_seed(seed)
    factors = fresh_factors(model, transformer_layers(model), 1, generator)
    return {name: spread * torch.randn(f.shape, generator=generator).to(f) for name, f in factors.items()}


def traced_erase(model, records=None, **arguments):
    """The erasure and the traced values of each iteration."""
    with watched(records) as seen:
        erasure = overpaint.erase(model, "spm", **arguments)
    return erasure, [
        predictions | losses | step for predictions, losses, step in zip(seen[::3], seen[1::3], seen[2::3], strict=True)
    ]


def installed(model, names, adapters, **settings):
    """An erasure made of given factors."""
    erasure = overpaint.erase(model, "spm", erase=names, **SMALL, **settings)
    erasure.parts = {f"{n}.{name}": t for n, factors in enumerate(adapters) for name, t in factors.items()}
    return erasure


def predicted(model, prompts=("dog", "a cat on the ground")):
    with torch.no_grad():
        return model.predict(model.noise(range(len(prompts))), torch.tensor(500), model.encode(list(prompts)))


@pytest.mark.parametrize("tag", ["spm_train_fresh", "spm_train_step0"])
def test_official_training(tag, tiny_sd_float64, golden):
    meta, weights, extra = golden(f"spm/{tag}")
    start = factors_of(extra, "init.", tiny_sd_float64)
    drawn = recorded(extra, "x_T", "k", "anchors")
    erasure, iterations = traced_erase(
        tiny_sd_float64,
        drawn | {"init.0": start},
        erase=[meta["target"]],
        anchor=meta["neutral"],
        compat="official",
        rank=meta["rank"],
        alpha=meta["alpha"],
        negative_guidance=meta["eta"],
        anchor_strength=meta["la_strength"],
        rollout_steps=meta["max_denoising_steps"],
        iterations=meta["iterations"],
        learning_rate=meta["lr"],
        dynamic_resolution=meta["dynamic"],
        warmup_steps=0,
    )
    assert len(iterations) == meta["iterations"]
    for n, seen in enumerate(iterations):
        assert seen["t"] == int(extra[f"t.{n}"])
        for ours, theirs in (("x_t", "x_t"), ("pred", "target"), ("neutral", "neutral"), ("positive", "positive")):
            assert distance(seen[ours], extra[f"{theirs}.{n}"]) < 1e-5, (ours, n)
        for ours, theirs in (("loss", "losses"), ("loss_erase", "loss_erase"), ("loss_anchor", "loss_anchor")):
            assert float(seen[ours]) == pytest.approx(float(extra[theirs][n]), rel=1e-4, abs=1e-10), (ours, n)
    first = factors_of(extra, "grad0.", tiny_sd_float64)
    assert distance(flat(iterations[0]["gradients"], first), flat(first, first)) < 3e-4

    wanted = factors_of(weights, "", tiny_sd_float64)
    ours = {name.removeprefix("0."): tensor for name, tensor in erasure.parts.items()}
    assert ours.keys() == wanted.keys()
    assert distance(*(flat(group, wanted) for group in (ours, wanted, start))) < 2e-3


def test_official_layers_and_their_order(tiny_sd, golden):
    meta, _, _ = golden("spm/spm_forward")
    layers = transformer_layers(tiny_sd)
    assert [f"lora_unet_{layer.replace('.', '_')}" for layer in layers] == meta["module_names"]
    factors = fresh_factors(tiny_sd, layers, 1, torch.Generator().manual_seed(0))
    assert sum(f.numel() for f in factors.values()) == meta["n_params"]


def test_official_forward_and_released_transport(tiny_sd, golden):
    meta, results, extra = golden("spm/spm_forward")
    one, two = (factors_of(extra, prefix, tiny_sd) for prefix in ("spm0.", "spm1."))
    single, both = Branches(tiny_sd, one), Branches(tiny_sd, side_by_side([one, two]), adapters=2)
    gamma = torch.tensor(meta["gammas"])

    def with_branches(branches, mixing):
        with branches.active(mixing), torch.no_grad():
            return tiny_sd.predict(extra["x"], extra["t"][0], extra["emb"])

    for strength in (0.0, 0.25, 1.0):
        assert distance(with_branches(single, strength), results[f"forward_m{strength}"]) < 1e-5
    assert distance(with_branches(single, float(gamma[0]) ** 2), results["released_single"]) < 1e-5
    assert distance(with_branches(both, gamma[:, None] * gamma), results["released_mix"]) < 1e-5
    assert distance(with_branches(both, gamma.diag()), results["released_mix"]) > 0.1, "the paper's sum is another one"


@pytest.mark.parametrize("matching", ["clipcos", "tokenuni", "clipcos_tokenuni"])
def test_official_permeability(matching, tiny_sd_float64, golden):
    meta, results, _ = golden("spm/spm_forward")
    with torch.no_grad():
        embeds = tiny_sd_float64.encode(meta["prompts"])
    scores = permeability(tiny_sd_float64, meta["prompts"], embeds, meta["erased"], matching)
    for prompt, score in zip(meta["prompts"], scores, strict=True):
        assert torch.allclose(score.float(), results[f"score.{matching}.{prompt}"], rtol=0, atol=1e-5), prompt


def test_the_official_number_of_layers_and_parameters_on_stable_diffusion():
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    model = DiffusionModel.__new__(DiffusionModel)
    model.denoiser, model.text_encoder = unet, torch.nn.Module()
    layers = transformer_layers(model)
    shapes = [model.parameter_owners()[f"{layer}.weight"][0].weight.shape for layer in layers]
    assert len(layers) == 192
    assert sum(shape[0] + shape[1:].numel() for shape in shapes) == 423_936


def test_branches_that_are_off_or_fresh_change_no_bit(tiny_sd):
    plain = predicted(tiny_sd)
    fresh = fresh_factors(tiny_sd, transformer_layers(tiny_sd), 1, torch.Generator().manual_seed(0))
    broken = {name: torch.full_like(f, torch.inf) for name, f in fresh.items()}
    for factors, strength in ((fresh, 1.0), (broken, 0.0)):
        with Branches(tiny_sd, factors).active(strength):
            assert torch.equal(predicted(tiny_sd), plain)
    with Branches(tiny_sd, broken).active(torch.tensor([0.0, 1.0])[:, None, None]):
        half = predicted(tiny_sd)
    assert torch.equal(half[0], plain[0]) and not half[1].isfinite().any(), "each image has its own strength"


def test_running_with_branches_is_running_with_merged_weights(tiny_sd_float64):
    model, strength = tiny_sd_float64, 0.7
    one, two = random_factors(model, 0), random_factors(model, 1)
    with Branches(model, side_by_side([one, two]), 2, scale=0.5).active(strength):
        ours = predicted(model)
    owners, plain = model.parameter_owners(), {}
    try:
        for layer in transformer_layers(model):
            module, _ = owners[f"{layer}.weight"]
            plain[module] = module.weight.data
            change = sum(f[f"{layer}.up"].flatten(1) @ f[f"{layer}.down"].flatten(1) for f in (one, two))
            module.weight.data = plain[module] + 0.5 * strength * change.view_as(module.weight)
        merged = predicted(model)
    finally:
        for module, weight in plain.items():
            module.weight.data = weight
    assert distance(ours, merged) < 1e-10


def test_a_convolution_with_a_kernel_has_a_branch_with_its_kernel(tiny_sd):
    factors = fresh_factors(tiny_sd, ["down_blocks.0.downsamplers.0.conv"], 2, torch.Generator().manual_seed(0))
    module = tiny_sd.parameter_owners()["down_blocks.0.downsamplers.0.conv.weight"][0]
    down, up = factors.values()
    up.normal_(generator=torch.Generator().manual_seed(1))
    x = torch.randn(3, 32, 8, 8, generator=torch.Generator().manual_seed(2))
    change = (up.flatten(1) @ down.flatten(1)).view_as(module.weight)
    with torch.no_grad():
        expected = torch.nn.functional.conv2d(x, module.weight + change, module.bias, module.stride, module.padding)
        with Branches(tiny_sd, factors).active():
            torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)


def test_branches_of_another_model_are_refused(tiny_sd):
    factors = random_factors(tiny_sd)
    layer = transformer_layers(tiny_sd)[0]
    with pytest.raises(overpaint.UserError, match="does not fit"):
        Branches(tiny_sd, factors | {f"{layer}.up": factors[f"{layer}.up"][:-1]})
    with pytest.raises(overpaint.UserError, match="nowhere"):
        Branches(tiny_sd, {"nowhere.down": torch.zeros(1, 2), "nowhere.up": torch.zeros(2, 1)})


@pytest.mark.parametrize("eta", [0.5, 2.0])
def test_the_first_loss_follows_from_the_base_predictions(tiny_sd_float64, eta):
    """(1+η)² MSE(e0(c), e0(∅)), because a new membrane has no effect, so its anchoring loss is zero."""
    model = tiny_sd_float64
    _, (seen,) = traced_erase(model, erase=["dog"], negative_guidance=eta, **SMALL)
    with torch.no_grad():
        named, nothing = (model.predict(seen["x_t"], seen["t"], model.encode([text])) for text in ("dog", ""))
    expected = (1 + eta) ** 2 * torch.nn.functional.mse_loss(named, nothing)
    assert abs(float(seen["loss"]) / float(expected) - 1) < 1e-5
    assert float(seen["loss_anchor"]) < 1e-20


def test_the_anchor_and_the_negated_prompt_are_in_the_target(tiny_sd):
    _, (seen,) = traced_erase(tiny_sd, erase=["dog"], anchor="cat", negated="a dog on the ground", **SMALL)
    with torch.no_grad():
        texts = ("dog", "cat", "a dog on the ground")
        named, neutral, negated = (tiny_sd.predict(seen["x_t"], seen["t"], tiny_sd.encode([x])) for x in texts)
    for ours, theirs in (("pred", named), ("neutral", neutral), ("positive", negated)):
        assert distance(seen[ours], theirs) < 1e-5
    expected = torch.nn.functional.mse_loss(named, neutral - (negated - neutral))
    assert float(seen["loss_erase"]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("compat", ["intended", "official"])
def test_which_embeddings_are_anchored(compat, tiny_sd):
    """All sampled embeddings; in the released form the second half of them, with the empty prompt in between."""
    start = random_factors(tiny_sd)
    with torch.no_grad():
        nothing, named = tiny_sd.encode(["", "dog"])
    drawn = anchors(named, 4, torch.Generator().manual_seed(3)).float()
    records = {"init.0": start, "anchors.0": drawn}
    _, (seen,) = traced_erase(tiny_sd, records, erase=["dog"], compat=compat, **SMALL)
    shown = drawn if compat == "intended" else torch.stack([nothing, drawn[2], nothing, drawn[3]])
    with torch.no_grad():
        rows = seen["x_t"].expand(4, -1, -1, -1), seen["t"], shown
        plain = tiny_sd.predict(*rows)
        with Branches(tiny_sd, start).active():
            opened = tiny_sd.predict(*rows)
    expected = torch.nn.functional.mse_loss(opened, plain)
    assert float(seen["loss_anchor"]) == pytest.approx(float(expected), rel=1e-3)


def test_the_intended_roll_out_is_at_the_level_of_its_timestep(tiny_sd):
    times = {}
    for compat in ("intended", "official"):
        _, (seen,) = traced_erase(tiny_sd, {"k.0": torch.tensor([3])}, erase=["dog"], compat=compat, **SMALL)
        times[compat] = seen["t"]
    schedule = tiny_sd.scheduler("ddim")
    schedule.set_timesteps(4)
    assert times == {"intended": int(schedule.timesteps[3]), "official": 999 - 750}


def test_anchors_are_as_long_as_the_concept_and_not_near_it():
    embedding = torch.randn(77, 48, generator=torch.Generator().manual_seed(0))
    drawn = anchors(embedding, 64, torch.Generator().manual_seed(1))
    lengths = drawn.flatten(1).norm(dim=1) / embedding.norm()
    assert 0.8 <= lengths.min() < 0.85 and 1.15 < lengths.max() <= 1.2
    line = torch.ones(1, 1)  # in one dimension a direction is ±1, and +1 is never kept
    assert (anchors(line, 16, torch.Generator().manual_seed(2)) < 0).all()


def test_sdxls_anchors_have_tokens_and_a_pooled_vector_of_their_own_lengths(tiny_sdxl):
    _, (seen, *_) = traced_erase(tiny_sdxl, erase=["dog"], **SMALL)
    assert float(seen["loss_anchor"]) < 1e-9 < float(seen["loss_erase"]), "a new membrane changes nothing"
    eraser = component("method", "spm").build({"anchors": 64})
    with torch.no_grad():
        nothing, named = tiny_sdxl.encode(["", "dog"])[:, None]
    drawn, concept = (tiny_sdxl.parts(e) for e in (eraser.anchored(tiny_sdxl, named, nothing, Draws(0)), named))
    for name, part in drawn.items():
        lengths = part.flatten(1).norm(dim=1) / concept[name].norm()
        assert 0.8 <= lengths.min() < 0.85 and 1.15 < lengths.max() <= 1.2001, name
    assert eraser.anchored(tiny_sdxl, named, nothing, Draws(0)).shape[1:] == named.shape[1:]


def test_without_anchoring_only_the_concept_is_computed(tiny_sd):
    _, (seen,) = traced_erase(tiny_sd, erase=["dog"], anchor_strength=0, **SMALL)
    assert float(seen["loss"]) == float(seen["loss_erase"]) and float(seen["loss_anchor"]) == 0


def test_roll_outs_have_random_sides(tiny_sd):
    assert list(resolutions(64)) == [32, 40, 48, 56], "256 to 448 pixels of Stable Diffusion"
    assert list(resolutions(96)) == [48, 56, 64, 72, 80, 88]
    sizes = SMALL | {"dynamic_resolution": True, "iterations": 3}
    _, iterations = traced_erase(tiny_sd, erase=["dog"], **sizes)
    shapes = {tuple(seen["x_t"].shape[2:]) for seen in iterations}
    assert all(side in resolutions(16) for shape in shapes for side in shape) and len(shapes) > 1


@pytest.mark.parametrize("warmup, restarts", [(0, 1), (3, 1), (2, 3)])
def test_the_rate_rises_and_descends_along_cosines(tiny_sd, warmup, restarts):
    """n/warmup of the peak, then ½ (1 + cos π φ) with φ from 0 to 1 in each cycle."""
    rates, total, highest = [], 14, 1e-2
    with pytest.MonkeyPatch.context() as patch:
        step = torch.optim.AdamW.step
        patch.setattr(torch.optim.AdamW, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
        values = SMALL | {"iterations": total, "warmup_steps": warmup, "restarts": restarts, "learning_rate": highest}
        traced_erase(tiny_sd, erase=["dog"], **values)
    phases = [restarts * (n - warmup) / (total - warmup) % 1 for n in range(warmup, total)]
    wanted = [n / warmup for n in range(warmup)] + [(1 + math.cos(math.pi * phase)) / 2 for phase in phases]
    assert rates == pytest.approx([highest * share for share in wanted])
    assert sum(rate == pytest.approx(highest) for rate in rates) == restarts


def test_every_factor_learns_and_none_without_a_rate(tiny_sd):
    values = SMALL | {"iterations": 4, "warmup_steps": 2}
    start = random_factors(tiny_sd)
    _, iterations = traced_erase(tiny_sd, {"init.0": start}, erase=["dog"], **values)
    for name, gradient in iterations[0]["gradients"].items():
        assert gradient is not None and gradient.abs().sum() > 0, name
    first, _ = traced_erase(tiny_sd, {"init.0": start}, erase=["dog"], **(values | {"weight_decay": 0.0}))
    still, _ = traced_erase(tiny_sd, {"init.0": start}, erase=["dog"], **(values | {"learning_rate": 0.0}))
    assert all(torch.equal(still.parts[f"0.{name}"], start[name]) for name in start)
    assert not any(torch.equal(first.parts[f"0.{name}"], start[name]) for name in start)


def test_half_precision_models_train_float32_factors(goldens):
    model = overpaint.load_model(str(goldens / "tiny_sd"), dtype="bfloat16")
    erasure, (seen,) = traced_erase(model, erase=["dog"], **SMALL)
    assert {g.dtype for g in seen["gradients"].values()} == {torch.float32}
    assert {part.dtype for part in erasure.parts.values()} == {torch.float32}
    with erasure.attached(model):
        assert predicted(model).dtype == torch.bfloat16


def test_each_concept_has_the_membrane_it_would_have_alone(tiny_sd):
    both = overpaint.erase(tiny_sd, "spm", erase=["dog", "ship"], anchor=["cat", ""], **SMALL)
    alone = overpaint.erase(tiny_sd, "spm", erase=["ship"], **SMALL)
    for name, part in alone.parts.items():
        assert torch.equal(both.parts[name.replace("0.", "1.", 1)], part)


def test_a_prompt_opens_a_membrane_by_its_closeness(tiny_sd):
    def score(prompt, concept, matching="clipcos_tokenuni"):
        with torch.no_grad():
            return float(permeability(tiny_sd, [prompt], tiny_sd.encode([prompt]), [concept], matching))

    assert score("dog", "dog") == pytest.approx(1, abs=1e-12)
    assert score("a dog on the ground", "dog") == 1.0
    assert score("a cat", "dog") < 1
    assert score("a cat", "dog", "tokenuni") == 0
    assert score("a cat", "dog", "allone") == 1
    assert score("van is a man", "van gogh", "tokenuni") == 0.5


def test_strength_depends_on_the_image_not_on_its_batch(tiny_sd):
    erasure = installed(tiny_sd, ["dog", "ship"], [random_factors(tiny_sd, n, 0.1) for n in range(2)])
    prompts, seeds = ["a dog", "a cat", "a ship", ""], [0, 1, 2, 3]
    with erasure.attached(tiny_sd):
        together = tiny_sd.sample(prompts, seeds, steps=3)
        apart = [tiny_sd.sample([p], [s], steps=3)[0] for p, s in zip(prompts, seeds, strict=True)]
    for one, two in zip(together, apart, strict=True):
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(two, dtype=int)).max() <= 1


@pytest.mark.parametrize("transport", ["linear", "released"])
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_both_halves_of_guidance_are_mixed_by_the_images_prompt(transport, scale, tiny_sd):
    """Two images in one batch equal each image alone with branches mixed in the test."""
    names, prompts = ["dog", "ship"], ["a dog", "a cat and a ship"]
    adapters = [random_factors(tiny_sd, n) for n in range(2)]
    erasure = installed(tiny_sd, names, adapters, transport=transport)
    noise, t = tiny_sd.noise([0, 1]), torch.tensor(500)
    with torch.no_grad():
        embeds, nothing = tiny_sd.encode(prompts), tiny_sd.encode([""])
        gamma = permeability(tiny_sd, prompts, embeds, names, "clipcos_tokenuni")
        with erasure.attached(tiny_sd):
            guidance = tiny_sd.guidance(tiny_sd, embeds, nothing.expand_as(embeds), scale, prompts)
            ours = guidance(noise, t, 0)
        branches = Branches(tiny_sd, side_by_side(adapters), 2)
        for n in range(2):
            mixing = torch.outer(gamma[n], gamma[n]) if transport == "released" else gamma[n].diag()
            with branches.active(mixing):
                alone = Guidance(tiny_sd, embeds[n : n + 1], nothing, scale)(noise[n : n + 1], t, 0)
            assert distance(ours[n : n + 1], alone) < 1e-4


def test_without_prompts_the_membranes_are_fully_on(tiny_sd):
    factors = random_factors(tiny_sd)
    erasure = installed(tiny_sd, ["dog"], [factors])
    with Branches(tiny_sd, factors).active(1.0):
        full = predicted(tiny_sd)
    noise, t = tiny_sd.noise([0, 1]), torch.tensor(500)
    with erasure.attached(tiny_sd), torch.no_grad():
        assert torch.equal(predicted(tiny_sd), full)
        embeds = tiny_sd.encode(["dog", "a cat on the ground"])
        assert torch.equal(tiny_sd.guidance(tiny_sd, embeds, embeds, 1.0)(noise, t, 0), full)


def test_it_leaves_no_hook_and_keeps_the_guard_before_it(tiny_sd):
    factors = random_factors(tiny_sd)
    erasure, guard = installed(tiny_sd, ["dog"], [factors]), overpaint.erase(tiny_sd, "sld", erase=["ship"])
    with guard.attached(tiny_sd), erasure.attached(tiny_sd):
        assert tiny_sd.guidance.guard.stateful
        assert any(module._forward_hooks for module in tiny_sd.denoiser.modules())
    assert not any(module._forward_hooks for module in tiny_sd.denoiser.modules())


def test_attacks_can_ask_the_guard_behind_it(tiny_sd):
    erasure, guard = (
        installed(tiny_sd, ["dog"], [random_factors(tiny_sd)]),
        overpaint.erase(tiny_sd, "sld", erase=["ship"]),
    )
    with guard.attached(tiny_sd):
        plain = tiny_sd.guidance
        with erasure.attached(tiny_sd):
            gate = tiny_sd.guidance
            assert gate.guard is plain.guard is plain and copy.copy(gate).guard is plain
            filtered = gate.guard.without_empty_prompt(tiny_sd, 7.5)
            with torch.no_grad():
                seen = filtered(tiny_sd.noise([0]), torch.tensor(500), tiny_sd.encode(["a dog"]), 0)
            assert seen.isfinite().all()
    with erasure.attached(tiny_sd):
        assert tiny_sd.guidance.guard is None


def test_it_is_not_exported_as_weights(tiny_sd, tmp_path):
    installed(tiny_sd, ["dog"], [random_factors(tiny_sd)]).save(tmp_path / "spm.safetensors")
    with pytest.raises(overpaint.UserError, match="weights cannot hold it"):
        export_pipeline([], str(tmp_path / "spm.safetensors"), str(tmp_path / "out"))


@pytest.mark.parametrize(
    "values",
    [{"rank": 0}, {"iterations": 0}, {"rollout_steps": 1}, {"warmup_steps": 5, "iterations": 5}, {"anchors": 0},
     {"restarts": 0}, {"batch_size": 0}, {"anchor_strength": -1.0}, {"matching": "all"}],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(tiny_sd, values):
    with pytest.raises(overpaint.UserError, match=next(iter(values))):
        overpaint.erase(tiny_sd, "spm", **({"erase": ["dog"]} | SMALL | values))
