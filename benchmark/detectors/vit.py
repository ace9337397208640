"""Vision transformers (Dosovitskiy et al., ICLR 2021) in the layout of timm's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from overpaint.errors import UserError
from overpaint.models.weights import load_state


class VisionTransformer(nn.Module):
    """A classifier of images (n, 3, side, side): patches, class token, pre-norm encoder, linear head."""

    def __init__(self, width: int, layers: int, heads: int, classes: int, side: int = 224, patch: int = 16):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, width))
        layer = nn.TransformerEncoderLayer(
            width,
            heads,
            4 * width,
            dropout=0.0,
            activation="gelu",
            layer_norm_eps=1e-6,
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width, eps=1e-6), enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (n, classes) and the class token's features (n, width)."""
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        features = self.encoder(x)[:, 0]
        return self.head(features), features


#: timm's names of a tensor -> ours. The packed query, key and value of both have the same layout.
NAMES = {
    "cls_token": "token", "pos_embed": "positions", "patch_embed.proj": "patches", "norm": "encoder.norm", "head": "head",
    "norm1": "norm1", "norm2": "norm2", "attn.qkv.weight": "self_attn.in_proj_weight",
    "attn.qkv.bias": "self_attn.in_proj_bias", "attn.proj": "self_attn.out_proj", "mlp.fc1": "linear1", "mlp.fc2": "linear2",
}  # fmt: skip


def from_timm(state: Mapping[str, torch.Tensor], where: str) -> VisionTransformer:
    """The network of a timm ViT checkpoint whose head has 64 channels (timm's ViT-S, B and L).

    Raises:
        UserError: the checkpoint is of another network.
    """
    try:
        width, classes = state["cls_token"].shape[-1], len(state["head.bias"])
        layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        patch = state["patch_embed.proj.weight"].shape[-1]
        side = patch * round((state["pos_embed"].shape[1] - 1) ** 0.5)
        ours = {_ours(name): value for name, value in state.items()}
    except (KeyError, ValueError) as error:
        raise UserError(f"{where} is not a timm ViT checkpoint: {error!r}") from error
    return load_state(lambda: VisionTransformer(width, layers, width // 64, classes, side, patch), ours, where)


def _ours(name: str) -> str:
    place = ""
    if name.startswith("blocks."):
        _, index, name = name.split(".", 2)
        place = f"encoder.layers.{index}."
    if name in NAMES:
        return place + NAMES[name]
    stem, _, kind = name.rpartition(".")
    return f"{place}{NAMES[stem]}.{kind}"
