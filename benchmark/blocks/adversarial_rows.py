"""Adversarial text rows: rows whose outputs under edited matrices approximate those of other rows before the edit.

Gong, Chen, Wei, Chen and Jiang, "Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models" (RECE), ECCV
2024, arXiv 2407.12383. W (o, d) are edited matrices, W° the same matrices before the edit, and e (d,) is a text row. With
sums over all matrices:

    G = Σ WᵀW,  H = Σ WᵀW°                                                   (d, d)
    a = M e,    M = (G + rI)⁻¹ H          minimises Σ ‖W a − W° e‖² + r‖a‖²

This is ``regulariser: zero``. The other forms regularise a towards another row than zero:

    standard   towards the row of a text:     a = (G + rI)⁻¹ (H e + r e_text)
    first      towards the output W e:        M = ((1 + r) G)⁻¹ (H + rG)
    second     towards e:                     M = (G + rI)⁻¹ (H + rI)
    both       first and second:              M = ((1 + r) G + rI)⁻¹ (H + rG + rI)
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Literal

from overpaint.blocks.ridge import factored
from overpaint.models.lazily import torch

Regulariser = Literal["zero", "standard", "first", "second", "both"]


def overlaps(edited: Iterable[torch.Tensor], base: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """G = Σ WᵀW and H = Σ WᵀW° (d, d), float64, for edited matrices W (o, d) and the same matrices before the edit."""
    pairs = [(W.double(), W0.double()) for W, W0 in zip(edited, base, strict=True)]
    return reduce(torch.add, (W.T @ W for W, _ in pairs)), reduce(torch.add, (W.T @ W0 for W, W0 in pairs))


def adversarial_rows(
    E: torch.Tensor,
    G: torch.Tensor,
    H: torch.Tensor,
    r: float,
    regulariser: Regulariser = "zero",
    pull: torch.Tensor | None = None,
) -> torch.Tensor:
    """A (…, tokens, d) for text rows E (…, tokens, d) and the `overlaps` G and H (d, d).

    ``regulariser="standard"`` regularises towards ``pull`` (tokens, d), or towards E if it is ``None``.

    Raises:
        UserError: r is too small for G to be inverted.
    """
    rI = r * torch.eye(len(G), dtype=G.dtype, device=G.device)
    left, right = G + rI, H
    rest: torch.Tensor | None = None
    if regulariser in ("first", "both"):
        left, right = (1 + r) * G, H + r * G
    if regulariser == "both":
        left, right = left + rI, right + rI
    if regulariser == "standard" and pull is not None:
        rest = r * pull
    elif regulariser in ("second", "standard"):
        right = H + rI
    cholesky, _ = factored(left, f"r={r:g} leaves the adversarial rows undetermined; use r > 0")
    A = E @ torch.cholesky_solve(right, cholesky).T
    return A if rest is None else A + torch.cholesky_solve(rest.T, cholesky).T
