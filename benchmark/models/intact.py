"""Whether a model still has its weights: methods and attacks must leave the model itself as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from overpaint.errors import UserError
from overpaint.grid.labels import few
from overpaint.models.lazily import torch

if TYPE_CHECKING:
    from overpaint.models.diffusion import DiffusionModel


@contextmanager
def intact(model: DiffusionModel, by: str) -> Iterator[None]:
    """Context for the component ``by`` (``method=uce``), which must leave the model's weights as they are.

    If it does not, ``model.changed_by`` names it from then on, also if the block raises an error of its own.

    Raises:
        UserError: a weight has changed, now or in an earlier block.
    """
    if model.changed_by:
        raise UserError(f"{model.changed_by} has changed the weights of this model: load the model again")
    before, differing = _sums(model), []
    try:
        yield
    finally:
        after = _sums(model)
        differing = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        if differing:
            model.changed_by = by
    if differing:
        raise UserError(
            f"{by} changed the model itself ({few(differing, 1)}), so its "
            "results would not be its own; compute with copies of the weights, and leave the model as it is"
        )


def _sums(model: DiffusionModel) -> dict[str, int]:
    """A checksum of every weight by name: the sum of its elements, whose bits are read as integers. It is quick to compute."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    found = {}
    for name, parameter in model.named_parameters().items():
        bits = parameter.data.contiguous().view(-1).view(integers[parameter.element_size()])
        found[name] = int(bits.sum(dtype=torch.int64))
    return found
