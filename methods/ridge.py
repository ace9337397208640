"""The closed-form edit: new outputs for some text rows, old outputs for others, and little change besides.

Gandikota et al., "Unified Concept Editing in Diffusion Models", WACV 2024, arXiv 2308.14761, eq. 7, and the methods that
followed it solve, for each projection W (o, d),

    min over W'  Σ_i w_i ‖K_i W'ᵀ − V_i‖² + λ ‖W' − W‖²           K_i (n_i, d) key rows, V_i (n_i, o) wanted outputs

whose solution in terms of the residuals R_i = V_i − K_i Wᵀ is

    W' = W + (Σ w_i R_iᵀ K_i) A⁻¹,     A = λI + Σ w_i K_iᵀ K_i  (d, d).

Rows to keep have R = 0 and enter A alone. A does not depend on the layer: it is factored once, in float64, for all of
them. The change has rank of at most the number of edited rows, and is kept as factors where that is smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from overpaint.erasure import LowRank, Replacement
from overpaint.errors import UserError
from overpaint.models.diffusion import Projection

#: Above this condition number of A the float64 solution has no digits left that float32 weights would show.
LARGEST_CONDITION = 1e12


@dataclass(frozen=True)
class Ridge:
    """The part of the problem that all layers share: ``down`` = w K A⁻¹ (n, d), A's Cholesky factor and condition."""

    down: torch.Tensor
    cholesky: torch.Tensor
    condition: float

    def solve(self, right: torch.Tensor) -> torch.Tensor:
        """right A⁻¹ (o, d), for terms that are no few rows: Σ w RᵀK, or a prior's w (W0 − W) B, already summed."""
        return torch.cholesky_solve(right.T, self.cholesky).T

    def change(self, residual: torch.Tensor, projection: Projection) -> LowRank | Replacement:
        """W' for residuals R (n, o) of the edited rows: as factors, or whole where the factors would be larger."""
        return stored(LowRank(residual.T, self.down), projection.weight)


def stored(change: LowRank, weight: torch.Tensor) -> LowRank | Replacement:
    """A float64 change of a weight (o, d) as an erasure keeps it: in float32 (float64 where the weight is)."""
    kind = torch.float64 if weight.dtype == torch.float64 else torch.float32
    (outputs, width), rows = weight.shape, change.up.shape[1]
    if rows * (outputs + width) < outputs * width:
        return LowRank(change.up.to(kind).contiguous(), change.down.to(kind).contiguous())
    return Replacement(change.apply(weight))


def gram(rows: Iterable[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Σ KᵀK (d, d) over blocks of rows (n_i, d), as many as there are: they are never held at once."""
    total = torch.zeros(like.shape[1], like.shape[1], dtype=like.dtype, device=like.device)
    for block in rows:
        total += block.T @ block
    return total


def factor(
    edited: torch.Tensor, kept: torch.Tensor, ridge: float, edit_weight: float = 1.0, keep_weight: float = 1.0
) -> Ridge:
    """Factor A for edited key rows (n, d) and the Gram matrix of those to keep (d, d), both float64."""
    width = edited.shape[1]
    whole = ridge * torch.eye(width, dtype=torch.float64, device=edited.device)
    whole += edit_weight * edited.T @ edited + keep_weight * kept
    cholesky, condition = factored(
        whole,
        f"lamb={ridge:g} leaves the closed-form edit singular: the text rows do not "
        f"span the text space of width {width}; take lamb > 0 (0.5 is UCE's value) or keep more texts",
    )
    down = edit_weight * torch.cholesky_solve(edited.T, cholesky).T
    return Ridge(down, cholesky, condition)


def factored(A: torch.Tensor, singular: str) -> tuple[torch.Tensor, float]:
    """Cholesky factor and condition number of a symmetric A (d, d); what to say to the user if it is ``singular``."""
    eigenvalues = torch.linalg.eigvalsh(A)
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    if smallest <= largest / LARGEST_CONDITION:
        raise UserError(singular)
    return torch.linalg.cholesky(A), largest / smallest


def edit(
    projections: list[Projection], shared: Ridge, residual: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, LowRank | Replacement]:
    """The change of every projection; ``residual(W)`` gives R (n, o) for its weight W (o, d) in float64."""
    return {p.name: shared.change(residual(p.weight.double()), p) for p in projections}


def edit_rows(projections: list[Projection], shared: Ridge, shift: torch.Tensor) -> dict[str, LowRank | Replacement]:
    """`edit` where the wanted outputs are those of other rows, R = S Wᵀ for a shift S (n, d) of the edited ones."""
    shift, down = reduced(shift, shared.down)
    return {p.name: stored(LowRank(p.weight.double() @ shift.T, down), p.weight) for p in projections}


def reduced(shift: torch.Tensor, down: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Another S and ``down`` with the same Sᵀ·down (d, d) and at most d rows: a hundred concepts cost no more than ten."""
    if len(shift) <= shift.shape[1]:
        return shift, down
    return torch.eye(shift.shape[1], dtype=shift.dtype, device=shift.device), shift.T @ down
