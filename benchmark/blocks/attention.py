"""Cross-attention maps of the denoiser: how strongly each pixel attends to each token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from overpaint.models.diffusion import DiffusionModel


@contextmanager
def attention_maps(model: DiffusionModel) -> Iterator[dict[str, torch.Tensor]]:
    """Record the attention probabilities of every cross-attention layer inside the block.

    Yields a dictionary from module name to softmax(QKᵀ/√d), (batch, heads, pixels, tokens), at least float32. Each
    forward overwrites the maps of the previous one. The maps carry gradients if the network does. The probabilities
    are computed explicitly instead of by a fused kernel, so outputs can differ from the plain network's in the last bits.
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
    """An attention processor that computes plain cross-attention and stores its probabilities."""

    def __init__(self, name: str, maps: dict[str, torch.Tensor]):
        self.name, self.maps = name, maps

    def __call__(self, layer, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **ignored):
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = layer.to_q(hidden_states), layer.to_k(text), layer.to_v(text)
        query, key, value = (part.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part in (query, key, value))
        wide = torch.promote_types(query.dtype, torch.float32)  # the products can exceed float16's maximum of 65504
        probabilities = (query.to(wide) @ key.to(wide).transpose(-1, -2) * layer.scale).softmax(dim=-1)
        self.maps[self.name] = probabilities
        attended = (probabilities.to(value.dtype) @ value).transpose(1, 2).flatten(-2)
        return layer.to_out[1](layer.to_out[0](attended))
