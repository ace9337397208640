"""Cross-attention maps, recorded while the network computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from overpaint.models.lazily import torch

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention


@contextmanager
def recorded_maps(layers: Mapping[str, Attention]) -> Iterator[dict[str, torch.Tensor]]:
    """Collect softmax(QKᵀ/√d), (batch, heads, pixels, tokens) in at least float32, of diffusers attention layers by name.

    Each forward inside the block overwrites the maps of the last one. The maps carry gradients where the network does.
    The softmax is computed outside a fused kernel, so the outputs can differ from the plain network's in the last bits.
    """
    maps: dict[str, torch.Tensor] = {}
    plain = {name: layer.processor for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.processor = _Recorder(name, maps)
        yield maps
    finally:
        for name, layer in layers.items():
            layer.processor = plain[name]


class _Recorder:
    """A diffusers attention processor: plain attention that keeps its probabilities in ``maps``."""

    def __init__(self, name: str, maps: dict[str, torch.Tensor]):
        self.name, self.maps = name, maps

    def __call__(self, layer, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **ignored):
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = layer.to_q(hidden_states), layer.to_k(text), layer.to_v(text)
        query, key, value = (part.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part in (query, key, value))
        wide = torch.promote_types(query.dtype, torch.float32)  # products can exceed float16's largest number, 65504
        probabilities = (query.to(wide) @ key.to(wide).transpose(-1, -2) * layer.scale).softmax(dim=-1)
        self.maps[self.name] = probabilities
        attended = (probabilities.to(value.dtype) @ value).transpose(1, 2).flatten(-2)
        return layer.to_out[1](layer.to_out[0](attended))
