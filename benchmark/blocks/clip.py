"""CLIP embeddings of texts and images, and a replacement that uses only the diffusion model's own text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from overpaint.blocks.pixels import CONFIGURATIONS, Preprocessing
from overpaint.blocks.token_variables import Frame
from overpaint.errors import AssetMissing, UserError
from overpaint.grid.assets import located
from overpaint.grid.paths import path_of
from overpaint.models.lazily import torch
from overpaint.models.sources import WORDS, has_words
from overpaint.models.weights import load_folder

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.models.diffusion import DiffusionModel


class Tower(Protocol):
    """An encoder that returns one vector per prompt or image. ``table`` (vocabulary, width) holds its token embeddings."""

    table: torch.Tensor

    def features(self, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Features (n, d) of prompts with token ids (n, k) and embeddings (n, k, width); differentiable in ``rows``."""

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Features (n, d) of texts."""

    def image_features(self, images: Sequence[Image]) -> torch.Tensor:
        """Features (n, d) of images."""

    def ids(self, text: str) -> list[int]:
        """The token ids of a text, without the start and end tokens."""

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids."""


class OwnTower:
    """The diffusion model's own text encoder; the features are its output at the first end token."""

    def __init__(self, model: DiffusionModel):
        self.model, self.table = model, model.token_table

    def features(self, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        return Frame(self.model, (), tuple(range(length))).encode(ids, rows)[:, length + 1]

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        with torch.no_grad():
            ends = [len(self.model.token_ids(text)) - 1 for text in texts]
            return self.model.encode(texts, truncate=True)[torch.arange(len(ends)), ends]

    def image_features(self, images: Sequence[Image]) -> torch.Tensor:
        raise TypeError("a diffusion model's own text encoder has no features of images")

    def ids(self, text: str) -> list[int]:
        return self.model.token_ids(text)[1:-1]

    def text(self, ids: Sequence[int]) -> str:
        return Frame(self.model, (), tuple(range(len(ids)))).text(ids)


class Clip:
    """A transformers CLIP model; text and image features are in its joint space. Without a tokenizer it reads images only."""

    def __init__(self, model, tokenizer, processor=None):
        self.model, self._tokenizer, self.processor = model.requires_grad_(False).eval(), tokenizer, processor
        self.table = model.text_model.embeddings.token_embedding.weight

    @property
    def tokenizer(self):
        if self._tokenizer is None:
            raise AssetMissing(
                f"this CLIP model reads no texts: its folder has no tokenizer ({' or '.join(map(' with '.join, WORDS))})"
            )
        return self._tokenizer

    @classmethod
    @cache
    def load(cls, path: str, device: torch.device) -> Clip:
        """Load from an asset (``asset:NAME``), a folder, or the hub (``owner/name``) if the model is cached or can be
        downloaded."""
        from transformers import AutoTokenizer, CLIPModel
        from transformers.utils import cached_file  # type: ignore[attr-defined]

        folder = located(path) or path_of(path, "clip")
        if not folder.is_dir() and path.count("/") != 1:
            raise UserError(f"CLIP folder {path} does not exist (clip takes a folder or a hub id like owner/name)")
        source = str(folder) if folder.is_dir() else path
        try:
            model = load_folder(CLIPModel, source, path).float().to(device)
            tokenizer = AutoTokenizer.from_pretrained(source)
            found = (cached_file(source, name, _raise_exceptions_for_missing_entries=False) for name in CONFIGURATIONS)
            place = Path(str(next(filter(None, found), Path(source, CONFIGURATIONS[0])))).parent
            processor = Preprocessing.read(place)
        except OSError as error:
            raise AssetMissing(f"cannot load the CLIP model {path}: {str(error).splitlines()[0]}") from error
        return cls(model, tokenizer if has_words(place) else None, processor)

    def features(self, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        from overpaint.models.token_tables import GivenEmbeddings

        known, (count, length) = self.tokenizer, ids.shape
        if length > known.model_max_length - 2:
            raise UserError(f"a prompt of {length} tokens is too long: CLIP takes at most {known.model_max_length - 2}")
        # Attention is causal, so positions after the end token do not matter.
        begin, end = (ids.new_full((count, 1), special) for special in (known.bos_token_id, known.eos_token_id))
        tables, padded = self.model.text_model.embeddings, torch.cat([begin, ids, end], dim=1)
        plain = tables.token_embedding
        embeddings = torch.cat([plain(begin), rows.to(plain.weight.dtype), plain(end)], dim=1)
        try:
            tables.token_embedding = GivenEmbeddings(embeddings)
            states = self.model.text_model(input_ids=padded).last_hidden_state
        finally:
            tables.token_embedding = plain
        return self.model.text_projection(states[:, -1])

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        with torch.no_grad():
            ids = [torch.tensor([self.ids(text)], device=self.table.device, dtype=torch.long) for text in texts]
            return torch.cat([self.features(row, self.table[row]) for row in ids])

    def image_features(self, images: Sequence[Image]) -> torch.Tensor:
        with torch.no_grad():
            pixels = self.processor(images)
            states = self.model.vision_model(pixels.to(self.table)).pooler_output
            return self.model.visual_projection(states)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, truncation=True).input_ids[1:-1]

    def text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode([i for i in ids if i not in self.tokenizer.all_special_ids]).strip()
