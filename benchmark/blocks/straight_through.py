"""A gradient that passes a choice between tokens as if there were none (Bengio, Léonard and Courville 2013, arXiv 1308.3432)."""

from __future__ import annotations

import torch


class StraightThrough(torch.autograd.Function):
    """Returns ``read`` and passes its gradient, clamped to ±``bound``, to the variable."""

    @staticmethod
    def forward(ctx, variable: torch.Tensor, read: torch.Tensor, bound: float | None) -> torch.Tensor:
        ctx.bound = bound
        return read.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient if ctx.bound is None else gradient.clamp(-ctx.bound, ctx.bound), None, None
