"""Attacks on victims with a guard or an adapter that acts during sampling."""

import pytest
import torch

import overpaint
from overpaint.grid.registry import component

VICTIMS = {
    "sld": {"warmup_steps": 0},
    "geom": {"iterations": 1, "pictures": 2, "picture_steps": 2, "regions": "all", "bins": 2, "train": "tokens"},
    "spm": {"iterations": 1, "rollout_steps": 4, "warmup_steps": 0, "learning_rate": 1e-2},
}


@pytest.mark.parametrize("method", VICTIMS)
@pytest.mark.parametrize("branch", ["plain", "guided"])
def test_concept_inversion_runs_and_restores(method, branch, context, tiny_sd):
    """The plain branch optimises through the network with its adapters, the other through the sampler's guidance."""
    erasure = overpaint.erase(tiny_sd, method, erase=["cat"], **VICTIMS[method])
    attack = component("attack", "cce").build({"steps": 2, "batch_size": 2, "pictures": 2, "branch": branch}, seed=1)
    before = {name: p.data.clone() for name, p in tiny_sd.named_parameters().items()}
    unguarded, tokenizer = tiny_sd.guidance, tiny_sd.tokenizer
    alone = attack.run(context)
    with erasure.attached(tiny_sd):
        guard = tiny_sd.guidance
        assault = attack.run(context)
        assert tiny_sd.guidance is guard
        with tiny_sd.learned_tokens(assault.tokens):
            shot = assault.shots[0]
            (image,) = tiny_sd.sample([shot.prompt.text], [shot.noise_seed], steps=2)
    assert image.size == (32, 32)
    assert tiny_sd.guidance is unguarded and tiny_sd.tokenizer is tokenizer
    assert not any(module._forward_hooks for module in tiny_sd.denoiser.modules())
    for name, p in tiny_sd.named_parameters().items():
        assert torch.equal(p.data, before[name]) and p.grad is None, name
    word = attack.placeholder
    reached = not torch.equal(assault.tokens[word], alone.tokens[word])
    assert reached == (method == "spm" or branch == "guided"), "a guard is no part of the plain network"
