"""The attention probe sees what the network computes, and changes nothing."""

import torch

from overpaint.methods.attention import attention_maps


def test_maps_are_probabilities_and_the_prediction_is_the_networks_own(tiny_sd):
    latents, text = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), tiny_sd.encode(["a dog", ""])
    with torch.no_grad():
        plain = tiny_sd.predict(latents, 500, text)
        with attention_maps(tiny_sd) as maps:
            probed = tiny_sd.predict(latents, 500, text)
        after = tiny_sd.predict(latents, 500, text)
    assert torch.allclose(probed, plain, atol=1e-5) and torch.equal(after, plain)
    assert len(maps) == len(tiny_sd.projections("key"))
    for found in maps.values():
        assert found.shape[0] == 2 and found.shape[-1] == tiny_sd.tokens
        assert torch.allclose(found.sum(-1), torch.ones(()), atol=1e-5)
