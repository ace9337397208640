"""Stand-ins for a text encoder's token table: given embeddings, and learned words behind the known ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, Protocol

import torch

from overpaint.errors import UserError


class TokenTable(Protocol):
    """The input embeddings of a text encoder: ``weight`` (words, width), read for ids (batch, tokens)."""

    weight: torch.Tensor

    def __call__(self, ids: torch.Tensor) -> torch.Tensor: ...


class TextEncoder(Protocol):
    """What a model uses of a text encoder of the transformers library."""

    config: Any

    def __call__(self, ids: torch.Tensor, **options: Any) -> Any: ...

    def get_input_embeddings(self) -> TokenTable: ...

    def set_input_embeddings(self, table: Any) -> None: ...

    def modules(self) -> Iterator[Any]: ...


class GivenEmbeddings(torch.nn.Module):
    """Answers every lookup with the given embeddings (batch, tokens, width)."""

    def __init__(self, embeddings: torch.Tensor):
        super().__init__()
        self.embeddings = embeddings

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.embeddings


class ExtendedTable(torch.nn.Module):
    """A token table with extra rows behind the ``known`` ids. Only the extra rows, cut to ``columns``, can be learned.

    The table below may be extended itself. Its words keep their ids.
    """

    def __init__(self, table: TokenTable, known: int, rows: Sequence[torch.Tensor], columns: slice):
        super().__init__()
        self.weight, self.known, self.rows, self.columns = table.weight, known, list(rows), columns
        self.lookup = table.__call__  # a method, so that the table is not a part of this module

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings (batch, tokens, width) of ids (batch, tokens)."""
        found = self.lookup(ids.clamp(max=self.known - 1))
        for offset, row in enumerate(self.rows):
            found = torch.where((ids == self.known + offset)[..., None], row[self.columns].to(found), found)
        return found


def extended_tokenizer(tokenizer, words: list[str]):
    """A copy of the tokenizer in which each of ``words`` is one new token."""
    extended = deepcopy(tokenizer)
    extended.add_tokens(words)
    if extended.convert_tokens_to_ids(words) != list(range(len(tokenizer), len(tokenizer) + len(words))):
        raise UserError(f"placeholder words must be new to the tokenizer, got {words}")
    return extended
