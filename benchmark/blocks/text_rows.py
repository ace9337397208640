"""Rows of text embeddings by rule: which positions of a prompt's encoding an edit reads and writes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from overpaint.models.diffusion import DiffusionModel

#: Prompts encoded in one forward.
TEXTS_AT_ONCE = 32


class TextRows:
    """Encodings (tokens, width) of texts, read in float64. Texts with equal ids share one, so that equal rows are equal bits.

    Text encoders are causal: a row does not depend on what comes behind it. Without ``padding`` texts are encoded to the
    end of the longest of each batch only, which `last_subject` needs no more than.
    """

    def __init__(self, model: DiffusionModel, texts: Sequence[str], padding: bool = True):
        self.model, self.padding = model, padding
        self._ids = {text: tuple(model.padded_ids([text])[0].tolist()) for text in texts}
        lengths = {self._ids[text]: model.tokens if padding else len(model.token_ids(text)) for text in texts}
        distinct = list(lengths)
        self._encoded = {}
        for start in range(0, len(distinct), TEXTS_AT_ONCE):
            ids = distinct[start : start + TEXTS_AT_ONCE]
            with torch.no_grad():
                cut = torch.tensor(ids, device=model.device)[:, : max(lengths[own] for own in ids)]
                self._encoded |= dict(zip(ids, model.encode_ids(cut)))

    def all(self, text: str) -> torch.Tensor:
        """Every position, padding included: (tokens, width). A pooled vector behind them is no row of the text."""
        if not self.padding:
            raise ValueError("these texts were encoded without their padding")
        return self._encoded[self._ids[text]][: self.model.tokens].double()

    def last_subject(self, text: str) -> torch.Tensor:
        """The row of the last word piece, (1, width); of the empty text, the BOS row."""
        position = self.model.last_subject_token(text)
        return self._encoded[self._ids[text]][position : position + 1].double()

    def tails(self, old: str, new: str) -> tuple[torch.Tensor, torch.Tensor]:
        """From the last word piece to the end, both cut to the shorter one: (n, width) each.

        So the last word meets the last word (or BOS), the first end token the first end token, padding padding.
        """
        i, j = self.model.last_subject_token(old), self.model.last_subject_token(new)
        length = self.model.tokens - max(i, j)
        return self.all(old)[i : i + length], self.all(new)[j : j + length]
