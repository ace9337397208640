"""New words of a model, whose rows of the token table are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from overpaint.blocks.training import Student
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.lazily import torch


class LearnedWords:
    """The rows (width,) of new words and, if there is one, a student beside them (`overpaint.blocks.training.Trainable`)."""

    def __init__(self, model: DiffusionModel, rows: Mapping[str, torch.Tensor], student: Student | None = None):
        self.model, self.student = model, student
        self.rows = {word: torch.nn.Parameter(row.clone()) for word, row in rows.items()}

    @property
    def masters(self) -> Mapping[str, torch.Tensor]:
        return {**self.rows, **(self.student.masters if self.student else {})}

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside the block the model knows the new words and computes with the student."""
        with ExitStack() as stack:
            stack.enter_context(self.model.learned_tokens(self.rows))
            if self.student:
                stack.enter_context(self.student.active())
            yield


def mean_row(model: DiffusionModel, texts: Sequence[str]) -> torch.Tensor:
    """The mean row (width,) of the tokens of some texts, in at least float32: a start for a new word."""
    ids = [i for text in texts for i in model.token_ids(text)[1:-1]]
    rows = model.token_embeddings(torch.tensor([ids], device=model.device))[0].detach()
    return rows.to(torch.promote_types(rows.dtype, torch.float32)).mean(dim=0)
