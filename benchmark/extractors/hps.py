"""HPS v2 (Wu et al., arXiv 2306.09341): how much people prefer an image for a prompt, by a CLIP ViT-H/14 that learned it.

The checkpoints are published in open_clip's layout, which names and shapes tensors differently from transformers' CLIP::

    visual.conv1, visual.proj                 vision_model.embeddings.patch_embedding, visual_projection (transposed)
    …resblocks.3.attn.in_proj_weight (3w, w)  …encoder.layers.3.self_attn.{q,k,v}_proj.weight, three of (w, w)

The score of an image v and its prompt t is 100 v·t / (|v| |t|), as the paper prints it; the released function returns the cosine.
The released code computes with half-precision autocast, here it is single precision. It resizes an image in floating point, with
or without antialiasing by the version of torchvision; here Pillow resizes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image

from overpaint.blocks.clip import Clip
from overpaint.blocks.pixels import Preprocessing
from overpaint.errors import UserError
from overpaint.extractors.clip import ClipFeatures, cosines
from overpaint.extractors.extractor import hashes, named_path
from overpaint.models.weights import load_pretrained

if TYPE_CHECKING:
    import torch

#: Mean and deviation of CLIP's channels.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
#: Attention heads of both encoders of ViT-H/14.
HEADS = 16
#: Beginnings of open_clip's names -> transformers' names.
BEGINNINGS = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",  # spelled so in transformers
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.proj": "visual_projection.weight",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.": "text_model.final_layer_norm.",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
#: Names inside a block of open_clip -> transformers' names.
INSIDE = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}


@dataclass(kw_only=True)
class Hps(ClipFeatures):
    """``value`` is 100 × the cosine of an image and its prompt. ``path`` is the folder of CLIP's tokenizer."""

    weights: str  # a safetensors file in open_clip's layout, or asset:NAME/FILE

    def assets(self) -> dict[str, str]:
        return hashes(self.weights) | hashes(self.path)

    def extract(
        self, images: Sequence[Image.Image], prompts: Sequence[str], originals: Sequence[Image.Image] | None = None
    ) -> pd.DataFrame:
        if not images:
            return pd.DataFrame({"value": pd.Series(dtype=float)})
        padded = [square(image) for image in images]
        return pd.DataFrame({"value": 100 * cosines(self.embedded(padded), self.texts(prompts))})

    @cached_property
    def _clip(self) -> Clip:
        from safetensors.torch import load_file
        from transformers import AutoTokenizer

        model = clip_model(load_file(named_path(self.weights)), self.weights).to(self.device)
        side = model.config.vision_config.image_size
        tokenizer = AutoTokenizer.from_pretrained(named_path(self.path))
        return Clip(model, tokenizer, Preprocessing(side, None, MEAN, STD))


def square(image: Image.Image) -> Image.Image:
    """The image on a black square with the length of its longer side."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    padded = Image.new("RGB", (side, side))
    padded.paste(image.convert("RGB"), ((side - image.width) // 2, (side - image.height) // 2))
    return padded


def clip_model(state: Mapping[str, torch.Tensor], where: str) -> Any:
    """transformers' CLIP in single precision with the tensors of an open_clip checkpoint, whose shapes say its sizes.

    Raises a `UserError`, which names ``where``, if the tensors are not those of such a network.
    """
    from transformers import CLIPConfig, CLIPModel

    state = {name.removeprefix("state_dict.").removeprefix("module."): tensor for name, tensor in state.items()}
    try:
        width, _, patch, _ = state["visual.conv1.weight"].shape
        words, text_width = state["token_embedding.weight"].shape
        cells = len(state["visual.positional_embedding"]) - 1
        vision = encoder_config(state, "visual.transformer.", width)
        text = encoder_config(state, "transformer.", text_width)
        length, projection = len(state["positional_embedding"]), state["text_projection"].shape[1]
    except (KeyError, ValueError) as error:
        raise UserError(f"{where} is not a CLIP in open_clip's layout: {error}") from error
    config = CLIPConfig(
        text_config=text | {"vocab_size": words, "max_position_embeddings": length, "eos_token_id": words - 1},
        vision_config=vision | {"patch_size": patch, "image_size": round(cells**0.5) * patch},
        projection_dim=projection,
    )
    renamed = dict(named for name, tensor in state.items() for named in as_transformers(name, tensor))
    return load_pretrained(CLIPModel, config, renamed, where)


def encoder_config(state: Mapping[str, torch.Tensor], prefix: str, width: int) -> dict[str, Any]:
    """transformers' settings of the encoder whose blocks start with ``prefix``."""
    numbers = {int(name.removeprefix(f"{prefix}resblocks.").split(".")[0]) for name in state if name.startswith(prefix)}
    return {
        "hidden_size": width,
        "intermediate_size": len(state[f"{prefix}resblocks.0.mlp.c_fc.weight"]),
        "num_hidden_layers": len(numbers),
        "num_attention_heads": HEADS,
        "hidden_act": "gelu",
    }


def as_transformers(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of transformers' CLIP that a tensor of open_clip's holds, by name; none for buffers."""
    beginning = next((known for known in BEGINNINGS if name.startswith(known)), None)
    if beginning is None:
        if not name.endswith(("attn_mask", "position_ids")):
            yield name, tensor  # is reported as unexpected
        return
    place = BEGINNINGS[beginning] + name.removeprefix(beginning)
    for inside, other in INSIDE.items():
        place = place.replace(inside, other)
    if ".attn.in_proj_" in place:
        block, leaf = place.split(".attn.in_proj_")
        for letter, part in zip("qkv", tensor.chunk(3), strict=True):
            yield f"{block}.self_attn.{letter}_proj.{leaf}", part
    else:
        yield place, tensor.T.contiguous() if name in ("visual.proj", "text_projection") else tensor
