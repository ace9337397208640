"""ImageReward v1.0 (Xu et al., arXiv 2304.05977): how much people prefer an image for a prompt, about −2 to 2.

BLIP's text encoder reads the prompt (35 tokens) and attends to the image that BLIP's ViT-L/16 has read. Linear layers without
activations turn the state h of the first token into a number, which is standardised::

    reward = (W_5 (… (W_1 h + b_1) …) + b_5 − m) / s        m = 0.1672, s = 1.0333

The checkpoint has the names of Salesforce's BLIP. The networks are transformers' BLIP with the same tensors. Dropout is off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from overpaint.blocks.pixels import Preprocessing
from overpaint.errors import UserError
from overpaint.extractors.extractor import Extractor, batched, hashes, named_path
from overpaint.extractors.hps import MEAN, STD
from overpaint.models.weights import load_pretrained, single_precision

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

#: Mean and standard deviation of the rewards that standardise them.
CENTRE, SPREAD = 0.16717362830052426, 1.0333394966054072
#: Tokens that a prompt is padded or truncated to, and the side of images in pixels.
TOKENS, SIDE = 35, 224
#: Width of an attention head of both encoders.
HEAD = 64
#: Names of Salesforce's vision encoder -> transformers' names.
VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "blocks.": "encoder.layers.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
}
#: Tensors of the checkpoint that the reward does not use.
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")


@dataclass(kw_only=True)
class ImageReward(Extractor):
    """``value`` is the reward of an image and its prompt."""

    weights: str  # a safetensors file with the checkpoint's tensors, or asset:NAME/FILE
    tokenizer: str  # the folder of BERT's uncased tokenizer, or asset:NAME

    def assets(self) -> dict[str, str]:
        return hashes(self.weights) | hashes(self.tokenizer)

    def extract(
        self, images: Sequence[Image], prompts: Sequence[str], originals: Sequence[Image] | None = None
    ) -> pd.DataFrame:
        found: list[float] = []
        with single_precision():
            for part in batched(len(images)):
                found += self.rewards(images[part], prompts[part]).cpu().tolist()
        return pd.DataFrame({"value": pd.Series(found, dtype=float)})

    def rewards(self, images: Sequence[Image], prompts: Sequence[str]) -> torch.Tensor:
        """Rewards (n,) of one batch."""
        pixels = Preprocessing(SIDE, SIDE, MEAN, STD)(images).to(self.device)
        read = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(self.device)
        vision, text, layers = self._networks
        seen = vision(pixel_values=pixels).last_hidden_state
        states = text(
            input_ids=read.input_ids,
            attention_mask=read.attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=read.attention_mask.new_ones(seen.shape[:-1]),
            is_decoder=False,
        ).last_hidden_state
        found = states[:, 0]
        for weight, bias in layers:
            found = found @ weight.T + bias
        return (found[:, 0] - CENTRE) / SPREAD

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(named_path(self.tokenizer))

    @cached_property
    def _networks(self) -> tuple[Any, Any, list[tuple[torch.Tensor, torch.Tensor]]]:
        from safetensors.torch import load_file

        vision, text, layers = networks(load_file(named_path(self.weights)), self.weights)
        moved = [(weight.to(self.device), bias.to(self.device)) for weight, bias in layers]
        return vision.to(self.device), text.to(self.device), moved


def networks(state: Mapping[str, torch.Tensor], where: str) -> tuple[Any, Any, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Vision encoder, text encoder and linear layers of a checkpoint, whose shapes say their sizes, in single precision.

    Raises a `UserError`, which names ``where``, if the tensors are not those of such networks.
    """
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    parts: dict[str, dict[str, torch.Tensor]] = {
        "blip.visual_encoder.": {},
        "blip.text_encoder.": {},
        "mlp.layers.": {},
    }
    for name, tensor in state.items():
        prefix = next((prefix for prefix in parts if name.startswith(prefix)), None)
        if prefix and name not in UNUSED:
            parts[prefix][name.removeprefix(prefix)] = tensor.float()
        elif not name.startswith(UNUSED):
            raise UserError(f"{where} is not ImageReward's checkpoint: it holds {name}")
    eyes, words, head = parts.values()
    try:
        width, _, patch, _ = eyes["patch_embed.proj.weight"].shape
        vision = BlipVisionConfig(
            hidden_size=width,
            intermediate_size=len(eyes["blocks.0.mlp.fc1.weight"]),
            num_hidden_layers=blocks(eyes, "blocks."),
            num_attention_heads=width // HEAD,
            image_size=round((eyes["pos_embed"].shape[1] - 1) ** 0.5) * patch,
            patch_size=patch,
            layer_norm_eps=1e-6,
        )
        vocabulary, text_width = words["embeddings.word_embeddings.weight"].shape
        text = BlipTextConfig(
            vocab_size=vocabulary,
            hidden_size=text_width,
            encoder_hidden_size=width,
            intermediate_size=len(words["encoder.layer.0.intermediate.dense.weight"]),
            num_hidden_layers=blocks(words, "encoder.layer."),
            num_attention_heads=text_width // HEAD,
            max_position_embeddings=len(words["embeddings.position_embeddings.weight"]),
            is_decoder=True,  # layers with cross-attention; `rewards` turns the causal mask off
        )
        places = sorted({int(name.split(".")[0]) for name in head})
        layers = [(head[f"{place}.weight"], head[f"{place}.bias"]) for place in places]
    except (KeyError, ValueError) as error:
        raise UserError(f"{where} is not ImageReward's checkpoint: it lacks {error}") from error
    seen = {as_transformers(name): tensor for name, tensor in eyes.items()}
    sees = load_pretrained(BlipVisionModel, vision, seen, where)
    return sees, load_pretrained(BlipTextModel, text, words, where, add_pooling_layer=False), layers


def blocks(state: Mapping[str, Any], prefix: str) -> int:
    """The number of blocks whose tensors' names start with ``prefix`` and a number."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def as_transformers(name: str) -> str:
    """transformers' name of a tensor of the vision encoder."""
    if name.startswith("norm."):
        return name.replace("norm.", "post_layernorm.")
    for known, other in VISION.items():
        name = name.replace(known, other)
    return name
