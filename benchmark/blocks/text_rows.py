"""Rows of text embeddings: the positions of a prompt's encoding that closed-form edits use."""

from __future__ import annotations

from collections.abc import Sequence

from overpaint.models.diffusion import DiffusionModel
from overpaint.models.lazily import torch

#: Prompts per forward of the text encoder.
TEXTS_AT_ONCE = 32


class TextRows:
    """Encodings (tokens, width) of texts in float64. Texts with the same ids share one, so their rows are equal bit for bit.

    With ``padding=False``, a causal text encoder reads a batch only up to the end of its longest text, which is enough
    for `last_subject` and faster.
    """

    def __init__(self, model: DiffusionModel, texts: Sequence[str], padding: bool = True):
        self.model, self.padding = model, padding or not model.causal
        self._ids = {text: tuple(model.padded_ids([text])[0].tolist()) for text in texts}
        lengths = {self._ids[text]: model.tokens if self.padding else len(model.token_ids(text)) for text in texts}
        distinct = list(lengths)
        self._encoded: dict[tuple[int, ...], torch.Tensor] = {}
        for start in range(0, len(distinct), TEXTS_AT_ONCE):
            ids = distinct[start : start + TEXTS_AT_ONCE]
            with torch.no_grad():
                cut = torch.tensor(ids, device=model.device)[:, : max(lengths[own] for own in ids)]
                self._encoded |= dict(zip(ids, model.encode_ids(cut), strict=True))

    def all(self, text: str) -> torch.Tensor:
        """All positions including padding (tokens, width), without the pooled vector that SDXL appends."""
        if not self.padding:
            raise ValueError("all() needs TextRows(..., padding=True)")
        return self.model.parts(self._encoded[self._ids[text]])["clip"].double()

    def last_subject(self, text: str) -> torch.Tensor:
        """The row (1, width) of the last token of the text; for the empty text, the BOS row."""
        position = self.model.last_subject_token(text)
        return self._encoded[self._ids[text]][position : position + 1].double()

    def tails(self, old: str, new: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows from the last token of each text to the end, both truncated to the shorter length n: (n, width).

        This aligns the last tokens (or BOS) of both texts, their end tokens, and their padding.
        """
        i, j = self.model.last_subject_token(old), self.model.last_subject_token(new)
        length = self.model.tokens - max(i, j)
        return self.all(old)[i : i + length], self.all(new)[j : j + length]
