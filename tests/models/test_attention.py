"""The attention probe returns what the network computes and does not change the output."""

import torch

import overpaint
from official import distance


def test_maps_are_probabilities_and_the_prediction_is_the_networks_own(tiny_sd):
    latents, text = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), tiny_sd.encode(["a dog", ""])
    with torch.no_grad():
        plain = tiny_sd.predict(latents, 500, text)
        with tiny_sd.attention_maps() as maps:
            probed = tiny_sd.predict(latents, 500, text)
        after = tiny_sd.predict(latents, 500, text)
    assert torch.allclose(probed, plain, atol=1e-5) and torch.equal(after, plain)
    assert len(maps) == len(tiny_sd.projections("key"))
    for found in maps.values():
        assert found.shape[0] == 2 and found.shape[-1] == tiny_sd.tokens
        assert torch.allclose(found.sum(-1), torch.ones(()), atol=1e-5)


def test_products_beyond_half_precision_do_not_overflow(goldens):
    """Large queries and keys fit in float16, but their products exceed its maximum of 65504."""
    with torch.no_grad():
        for dtype in ("float32", "float16"):
            model = overpaint.load_model(str(goldens / "tiny_sd"), dtype=dtype)
            for projection in model.projections("query", "key"):
                projection.weight.mul_(1e5**0.5)
            latents, text = model.noise([0]), model.encode(["a dog"])
            if dtype == "float32":
                exact = model.predict(latents, 500, text)
        plain = model.predict(latents, 500, text)
        with model.attention_maps() as maps:
            probed = model.predict(latents, 500, text)
    # How far half precision is from single precision depends on the processor.
    assert probed.isfinite().all() and distance(probed, exact) < 1.5 * distance(plain, exact) < 0.3
    for found in maps.values():
        assert found.dtype == torch.float32 and torch.allclose(found.sum(-1), torch.ones(()), atol=1e-5)


def test_single_precision_maps_are_the_plain_formula_bit_for_bit(tiny_sd):
    projections = {p.name.removesuffix(".weight"): p.module for p in tiny_sd.projections("query", "key")}
    seen = {}
    hooks = [m.register_forward_hook(lambda *a, n=n: seen.__setitem__(n, a[2])) for n, m in projections.items()]
    with torch.no_grad(), tiny_sd.attention_maps() as maps:
        tiny_sd.predict(tiny_sd.noise([0]), 500, tiny_sd.encode(["a dog"]))
    for hook in hooks:
        hook.remove()
    for name, found in maps.items():
        layer = tiny_sd.denoiser.get_submodule(f"{name}.attn2")
        query, key = (
            seen[f"{name}.attn2.{p}"].unflatten(-1, (layer.heads, -1)).transpose(1, 2) for p in ("to_q", "to_k")
        )
        assert torch.equal(found, (query @ key.transpose(-1, -2) * layer.scale).softmax(dim=-1))
