"""Joint embeddings of texts and images: a CLIP model, and what stands in for one where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from overpaint.blocks.token_variables import Frame
from overpaint.errors import AssetMissing, UserError
from overpaint.models.diffusion import GivenEmbeddings

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.models.diffusion import DiffusionModel


class Tower(Protocol):
    """A text encoder that says one vector of a prompt. ``table`` (words, width) are its token embeddings."""

    table: torch.Tensor

    def features(self, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Features (n, d) of prompts of words (n, k) with embeddings (n, k, width); differentiable in these."""

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Features (n, d) of texts."""

    def ids(self, text: str) -> list[int]:
        """The words of a text, without start and end."""

    def text(self, ids: Sequence[int]) -> str:
        """What words read as."""


class OwnTower:
    """A diffusion model's text encoder, of which the first end token's row is taken."""

    def __init__(self, model: DiffusionModel):
        self.model, self.table = model, model.token_table

    def features(self, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        return Frame(self.model, (), tuple(range(length))).encode(ids, rows)[:, length + 1]

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        ends = [len(self.model.token_ids(text)) - 1 for text in texts]
        return self.model.encode(texts, truncate=True)[torch.arange(len(ends)), ends]

    def ids(self, text: str) -> list[int]:
        return self.model.token_ids(text)[1:-1]

    def text(self, ids: Sequence[int]) -> str:
        return Frame(self.model, (), tuple(range(len(ids)))).text(ids)


class Clip:
    """A CLIP model in the layout of transformers; both towers end in its joint space."""

    def __init__(self, model, tokenizer, processor=None):
        self.model, self.tokenizer, self.processor = model.requires_grad_(False).eval(), tokenizer, processor
        self.table = model.text_model.get_input_embeddings().weight

    @classmethod
    @cache
    def load(cls, path: str, device: torch.device) -> Clip:
        """From a folder or, if it is in the local cache or can be had, from the hub (``owner/name``)."""
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        folder = Path(path).expanduser()
        if not folder.is_dir() and path.count("/") != 1:
            raise UserError(f"CLIP folder {path} does not exist (clip takes a folder or a hub id like owner/name)")
        source = str(folder) if folder.is_dir() else path
        try:
            model = CLIPModel.from_pretrained(source, use_safetensors=True).to(device)
            parts = AutoTokenizer.from_pretrained(source), CLIPImageProcessor.from_pretrained(source)
        except OSError as error:
            raise AssetMissing(f"cannot load the CLIP model {path}: {str(error).splitlines()[0]}") from error
        return cls(model, *parts)

    def features(self, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        known, (count, length) = self.tokenizer, ids.shape
        if length > known.model_max_length - 2:
            raise UserError(f"a prompt of {length} tokens does not fit: CLIP takes {known.model_max_length - 2}")
        begin, end = (
            ids.new_full((count, 1), special) for special in (known.bos_token_id, known.eos_token_id)
        )  # what stands behind the end token is not seen from there
        plain, padded = self.model.text_model.get_input_embeddings(), torch.cat([begin, ids, end], dim=1)
        embeddings = torch.cat([plain(begin), rows.to(plain.weight.dtype), plain(end)], dim=1)
        try:
            self.model.text_model.set_input_embeddings(GivenEmbeddings(embeddings))
            states = self.model.text_model(input_ids=padded).last_hidden_state
        finally:
            self.model.text_model.set_input_embeddings(plain)
        return self.model.text_projection(states[:, -1])

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        ids = [torch.tensor([self.ids(text)], device=self.table.device, dtype=torch.long) for text in texts]
        return torch.cat([self.features(row, self.table[row]) for row in ids])

    @torch.no_grad()
    def image_features(self, images: Sequence[Image]) -> torch.Tensor:
        pixels = self.processor(images=list(images), return_tensors="pt").pixel_values
        states = self.model.vision_model(pixels.to(self.table)).pooler_output
        return self.model.visual_projection(states)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, truncation=True).input_ids[1:-1]

    def text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode([i for i in ids if i not in self.tokenizer.all_special_ids]).strip()
