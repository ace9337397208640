"""Perturbation: what rounding and pruning do to a weight, and which weights they reach."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

import overpaint
from overpaint.attacks.perturbation import is_layer_weight, pruned, quantised
from overpaint.blocks.training import parameter_group
from overpaint.grid.registry import component
from overpaint.models.erasure import Erasure, Replacement


def perturb(**values):
    return component("attack", "perturb").build({"bits": None} | values)


def plain(context):
    images = context.paint([s.prompt.text for s in context.shots], [s.noise_seed for s in context.shots])
    return [image.tobytes() for image in images]


def painted(attack, context):
    return [p.image.tobytes() for p in attack.run(context).painted]


@pytest.fixture
def weight():
    return torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_channel_is_rounded_to_its_own_symmetric_grid(bits, weight):
    weight[2] = 0
    found, levels = quantised(weight, bits), 2 ** (bits - 1) - 1
    step = weight.abs().flatten(1).amax(dim=1) / levels
    assert ((found - weight).abs().flatten(1).amax(dim=1) <= step / 2 + 1e-6).all()
    assert all(len(channel.unique()) <= 2 * levels + 1 for channel in found)
    assert not found[2].any() and torch.equal(quantised(-weight, bits), -found)
    scale = 2.0 ** torch.arange(6).view(6, 1, 1, 1)  # one factor a channel
    assert torch.equal(quantised(scale * weight, bits), scale * found)
    assert torch.allclose(quantised(found, bits), found, atol=1e-6), "a grid is its own nearest grid"


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_the_smallest_entries_of_a_tensor_are_pruned(share, weight):
    found = pruned(weight, share)
    gone = found == 0
    assert int(gone.sum()) == round(share * weight.numel())
    assert weight[gone].abs().max() <= weight[~gone].abs().min()
    assert torch.equal(found[~gone], weight[~gone])
    last = weight.to(memory_format=torch.channels_last)
    assert torch.equal(pruned(last, share), found) and pruned(last, share).stride() == last.stride()


def test_half_precision_is_rounded_as_single_precision_is(weight):
    found = quantised(weight.half(), 8)
    assert found.dtype == torch.float16 and torch.equal(found, quantised(weight.half().float(), 8).half())


def test_pruning_nothing_is_the_victim(context, tiny_sd):
    with overpaint.erase(tiny_sd, "negative_prompt", erase=["cat"]).attached(tiny_sd):
        assert painted(perturb(prune=1e-9), context) == plain(context)


@pytest.mark.parametrize("values", [{"bits": 4}, {"prune": 0.5}, {"bits": 4, "prune": 0.5}])
def test_images_are_those_of_a_model_with_these_weights(values, context, tiny_sd):
    context, attack = replace(context, shots=context.shots[:2]), perturb(**values)
    names = parameter_group(tiny_sd, is_layer_weight, list(tiny_sd.named_parameters()))
    assert any(n.startswith("text_model.") for n in names) and any("conv_in" in n for n in names)
    assert not any("bias" in n or "norm" in n or "embedding.weight" in n for n in names)
    parameters, changes = tiny_sd.named_parameters(), {}
    for name in names:
        kept = pruned(parameters[name].data, attack.prune) if attack.prune else parameters[name].data
        changes[name] = Replacement(quantised(kept, attack.bits) if attack.bits else kept)
    with Erasure("none", changes=changes).attached(tiny_sd):
        wanted = plain(context)
    assert painted(attack, context) == wanted != plain(context)


def test_an_edit_that_is_smaller_than_a_step_is_rounded_away(context, tiny_sd):
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    weight = tiny_sd.named_parameters()[name].data
    small = quantised(weight, 2)  # on the grid already: half a step lies between it and the next value
    moved = small + 0.1 * (small.abs().amax(dim=1, keepdim=True) - small.abs())
    images = []
    for tensor in (small, moved):
        with Erasure("none", changes={name: Replacement(tensor)}).attached(tiny_sd):
            images.append((plain(context), painted(perturb(bits=2), context)))
    (one, rounded), (other, rounded_too) = images
    assert one != other and rounded == rounded_too


def test_weights_of_adapters_are_perturbed_and_their_other_tensors_are_not(erased, tiny_sd):
    strong = {"iterations": 2, "rollout_steps": 4, "warmup_steps": 0, "learning_rate": 1e-1}
    erasure = overpaint.erase(tiny_sd, "spm", erase=["cat"], **strong)
    attack = perturb(bits=2)
    changed = erasure.adapted(attack.of_adapter)
    assert changed.parts.keys() == erasure.parts.keys() and erasure.adapted(lambda name, tensor: tensor) == erasure
    for name, tensor in erasure.parts.items():
        wanted = quantised(tensor, 2) if tensor.ndim > 1 else tensor
        assert torch.equal(changed.parts[name], wanted), name
    assert torch.equal(attack.of_adapter("interventions", torch.ones(3, 4) / 3), torch.ones(3, 4) / 3)
    before = {name: p.data.clone() for name, p in tiny_sd.named_parameters().items()}
    with erased(erasure) as context:
        context = replace(context, shots=context.shots[:2])
        found, own = painted(attack, context), plain(context)
    with erased(changed) as context:
        wanted = painted(attack, replace(context, shots=context.shots[:2], adapted=lambda _: nullcontext(tiny_sd)))
    assert found == wanted != own
    assert all(torch.equal(p.data, before[name]) for name, p in tiny_sd.named_parameters().items())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bits": 1}, "bits takes 2 to 16"),
        ({"prune": 1.0}, "prune takes a share"),
        ({"prune": 0.0}, "set one of them"),
    ],
)
def test_bad_input_is_refused(values, said):
    with pytest.raises(overpaint.UserError, match=said):
        perturb(**values)
