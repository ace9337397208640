"""The closed-form edit: new outputs for some text rows, old outputs for others, and little change besides.

Gandikota et al., "Unified Concept Editing in Diffusion Models", WACV 2024, arXiv 2308.14761, eq. 7, and the methods that
followed it solve, for each projection W (o, d),

    min over W'  Σ_i w_i ‖K_i W'ᵀ − V_i‖² + λ ‖W' − W‖²           K_i (n_i, d) key rows, V_i (n_i, o) wanted outputs

whose solution in terms of the residuals R_i = V_i − K_i Wᵀ is

    W' = W + (Σ w_i R_iᵀ K_i) A⁻¹,     A = λI + Σ w_i K_iᵀ K_i  (d, d).

Rows to keep have R = 0 and enter A alone. A does not depend on the layer: it is factored once, in float64, for all of
them. The change has rank of at most the number of edited rows, and is kept as factors where that is smaller.

Where the wanted outputs are those of other rows, R_i = S_i Wᵀ, the whole edit is one map of the text space,

    W' = W (I + T),     T = (Σ w_i S_iᵀ K_i) A⁻¹                                     (d, d), of every layer alike,

and all that many concepts cost more than one are the sums over their rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch

from overpaint.errors import UserError
from overpaint.models.diffusion import Projection
from overpaint.models.erasure import LowRank, Replacement

#: Above this condition number of A the float64 solution has no digits left that float32 weights would show.
LARGEST_CONDITION = 1e12


@dataclass(frozen=True)
class Ridge:
    """The part of the problem that all layers share: the edited rows K (n, d), their weight w, A's Cholesky factor and
    condition."""

    edited: torch.Tensor
    weight: float
    cholesky: torch.Tensor
    condition: float

    @cached_property
    def down(self) -> torch.Tensor:
        """w K A⁻¹ (n, d)."""
        return self.solve(self.weight * self.edited)

    def solve(self, right: torch.Tensor) -> torch.Tensor:
        """right A⁻¹ (o, d), for terms that are no few rows: Σ w RᵀK, or a prior's w (W0 − W) B, already summed."""
        return torch.cholesky_solve(right.T, self.cholesky).T

    def change(self, residual: torch.Tensor, projection: Projection) -> LowRank | Replacement:
        """W' for residuals R (n, o) of the edited rows: as factors, or whole where the factors would be larger."""
        return stored(LowRank(residual.T, self.down), projection.weight)

    def text_map(self, shift: torch.Tensor) -> TextMap:
        """The edit that gives the edited rows the outputs of others: R = S Wᵀ for a shift S (n, d)."""
        if len(shift) < shift.shape[1]:
            return TextMap(shift.T, self.down)
        return TextMap(self.solve(self.weight * (shift.T @ self.edited)))


@dataclass(frozen=True)
class TextMap:
    """An edit W' = W (I + T), the same for all layers: T = ``up`` · ``down``, (d, n) and (n, d), or ``up`` alone (d, d)."""

    up: torch.Tensor
    down: torch.Tensor | None = None

    @cached_property
    def T(self) -> torch.Tensor:
        return self.up if self.down is None else self.up @ self.down

    @property
    def matrix(self) -> torch.Tensor:
        """I + T (d, d)."""
        return torch.eye(len(self.T), dtype=self.T.dtype, device=self.T.device) + self.T

    def then(self, other: TextMap) -> TextMap:
        """Both edits, this one first."""
        up = other.up + self.T @ other.up
        if self.down is not None and other.down is not None and len(self.down) + len(other.down) < len(up):
            return TextMap(torch.cat([self.up, up], dim=1), torch.cat([self.down, other.down]))
        return TextMap(self.T + (up if other.down is None else up @ other.down))

    def changes(self, projections: Iterable[Projection]) -> dict[str, LowRank | Replacement]:
        """W' of every projection by name, multiplied in the precision that it is kept in."""
        return {p.name: self._change(p.weight) for p in projections}

    def _change(self, weight: torch.Tensor) -> LowRank | Replacement:
        W = weight.to(precision(weight))
        if self.down is not None and factors_are_smaller(weight, len(self.down)):
            return LowRank(W @ self.up.to(W), self.down.to(W))
        return Replacement((W + W @ self.T.to(W)).to(weight))


def precision(weight: torch.Tensor) -> torch.dtype:
    """What a change of a weight is kept in: float32, or float64 where the weight is."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def factors_are_smaller(weight: torch.Tensor, rank: int) -> bool:
    return rank * sum(weight.shape) < weight.numel()


def stored(change: LowRank, weight: torch.Tensor) -> LowRank | Replacement:
    """A float64 change of a weight (o, d) as an erasure keeps it."""
    if factors_are_smaller(weight, len(change.down)):
        kind = precision(weight)
        return LowRank(change.up.to(kind).contiguous(), change.down.to(kind).contiguous())
    return Replacement(change.apply(weight))


def gram(rows: Iterable[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Σ KᵀK (d, d) over blocks of rows (n_i, d), as many as there are: they are never held at once."""
    total = torch.zeros(like.shape[1], like.shape[1], dtype=like.dtype, device=like.device)
    for block in rows:
        total.addmm_(block.T, block)
    return total


def factor(
    edited: torch.Tensor, kept: torch.Tensor, ridge: float, edit_weight: float = 1.0, keep_weight: float = 1.0
) -> Ridge:
    """Factor A for edited key rows (n, d) and the Gram matrix of those to keep (d, d), both float64."""
    width = edited.shape[1]
    whole = ridge * torch.eye(width, dtype=torch.float64, device=edited.device)
    whole += edit_weight * (edited.T @ edited) + keep_weight * kept
    cholesky, condition = factored(
        whole,
        f"lamb={ridge:g} leaves the closed-form edit singular: the text rows do not "
        f"span the text space of width {width}; take lamb > 0 (0.5 is UCE's value) or keep more texts",
    )
    return Ridge(edited, edit_weight, cholesky, condition)


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
