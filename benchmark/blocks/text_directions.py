"""Directions of texts in the network's prediction, e(S) − e(∅), for guards that add or subtract them."""

from __future__ import annotations

from overpaint.models.lazily import torch


def largest(direction: torch.Tensor, quantile: float) -> torch.Tensor:
    """The direction (batch, c, h, w) where its magnitude reaches the ``quantile`` of its channel's pixels, else 0."""
    magnitude = direction.abs()
    least = torch.quantile(magnitude.flatten(2).float(), quantile, dim=2).to(direction)  # takes no half precision
    return torch.where(magnitude >= least[:, :, None, None], direction, 0.0)


def along(vector: torch.Tensor, axis: torch.Tensor) -> torch.Tensor:
    """The component of each image's ``vector`` (batch, c, h, w) along its ``axis``; 0 where the axis is 0."""
    product, square = ((x * axis).sum(dim=(1, 2, 3), keepdim=True) for x in (vector, axis))
    return torch.where(square > 0, product / square, 0.0) * axis


def cosines(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Cosines (batch,) of two batches of images (batch, c, h, w)."""
    return torch.cosine_similarity(one.flatten(1), other.flatten(1), dim=1)
