"""Cross-attention maps while the network computes: what a word's tokens look at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from overpaint.models.diffusion import DiffusionModel


@contextmanager
def attention_maps(model: DiffusionModel) -> Iterator[dict[str, torch.Tensor]]:
    """Collects softmax(QKᵀ/√d), (batch, heads, pixels, tokens), of every cross-attention layer by its module's name, at
    least in float32.

    A forward inside the block overwrites what the last one left; maps carry gradients where the network does. Softmax is
    computed in the open instead of inside a fused kernel, so outputs can differ from the plain network's in last bits.
    """
    maps: dict[str, torch.Tensor] = {}
    layers = {name: module for name, module in model.unet.named_modules() if name.endswith("attn2")}
    plain = {name: layer.processor for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.processor = _Recorder(name, maps)
        yield maps
    finally:
        for name, layer in layers.items():
            layer.processor = plain[name]


class _Recorder:
    """Plain cross-attention that leaves its probabilities behind."""

    def __init__(self, name: str, maps: dict[str, torch.Tensor]):
        self.name, self.maps = name, maps

    def __call__(self, layer, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **ignored):
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = layer.to_q(hidden_states), layer.to_k(text), layer.to_v(text)
        query, key, value = (part.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part in (query, key, value))
        wide = torch.promote_types(query.dtype, torch.float32)  # products may be beyond float16's 65504
        probabilities = (query.to(wide) @ key.to(wide).transpose(-1, -2) * layer.scale).softmax(dim=-1)
        self.maps[self.name] = probabilities
        attended = (probabilities.to(value.dtype) @ value).transpose(1, 2).flatten(-2)
        return layer.to_out[1](layer.to_out[0](attended))
