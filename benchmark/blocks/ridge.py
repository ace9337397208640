"""The closed-form edit of projections: new outputs for some text rows, unchanged outputs for others.

Gandikota et al., "Unified Concept Editing in Diffusion Models", WACV 2024, arXiv 2308.14761, eq. 7, and the methods that
followed it solve, for each projection W (o, d),

    min over W'  Σ_i w_i ‖K_i W'ᵀ − V_i‖² + λ ‖W' − W‖²           K_i (n_i, d) key rows, V_i (n_i, o) wanted outputs

With the residuals R_i = V_i − K_i Wᵀ, the solution is

    W' = W + (Σ w_i R_iᵀ K_i) A⁻¹,     A = λI + Σ w_i K_iᵀ K_i  (d, d).

Rows to keep have R = 0 and appear only in A. A is the same for every layer, so it is factored once, in float64. The rank
of the change is at most the number of edited rows; the change is stored as two factors if they are smaller than W.

If the wanted outputs are the outputs of other rows, R_i = S_i Wᵀ, the edit is one linear map of the text space,

    W' = W (I + T),     T = (Σ w_i S_iᵀ K_i) A⁻¹                                     (d, d), the same for every layer,

and more concepts add only terms to the sums.

For w → ∞ the edited rows get exactly their wanted outputs, with the smallest change of all other outputs. This is the
closed merge of Kumari et al., "Multi-Concept Customization of Text-to-Image Diffusion", CVPR 2023, arXiv 2212.04488:

    min over W'  tr (W' − W) C (W' − W)ᵀ   subject to   K W'ᵀ = V,      C = λI + Σ w_i K_iᵀ K_i over the rows to keep
    W' = W + Rᵀ D,     D = (K C⁻¹ Kᵀ)⁻¹ K C⁻¹  (n, d)

It is `Constraint`. If rows of K depend on each other, the inverse is a pseudo-inverse: the outputs are the closest possible
to V, as in the limit of the ridge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from overpaint.errors import UserError
from overpaint.models.erasure import LowRank, Replacement
from overpaint.models.lazily import torch
from overpaint.models.parameters import Projection

#: The largest condition number of A at which the float64 solution is still accurate to float32.
LARGEST_CONDITION = 1e12


@dataclass(frozen=True)
class Ridge:
    """The part of the problem that all layers share: edited rows K (n, d), their weight w, and A's Cholesky factor.

    ``condition`` is the condition number of A.
    """

    edited: torch.Tensor
    weight: float
    cholesky: torch.Tensor
    condition: float

    @cached_property
    def down(self) -> torch.Tensor:
        """w K A⁻¹ (n, d)."""
        return self.solve(self.weight * self.edited)

    def solve(self, right: torch.Tensor) -> torch.Tensor:
        """``right`` A⁻¹ (o, d), for terms that are already summed over rows: Σ w RᵀK, or a prior's w (W0 − W) B."""
        return torch.cholesky_solve(right.T, self.cholesky).T

    def change(self, residual: torch.Tensor, projection: Projection) -> LowRank | Replacement:
        """W' for residuals R (n, o) of the edited rows, as low-rank factors or, if those are larger, as a matrix."""
        return stored(LowRank(residual.T, self.down), projection.weight)

    def text_map(self, shift: torch.Tensor) -> TextMap:
        """The edit that maps each edited row k to the output of k + s: R = S Wᵀ for shifts S (n, d)."""
        if len(shift) < shift.shape[1]:
            return TextMap(shift.T, self.down)
        return TextMap(self.summed(shift))

    def summed(self, shift: torch.Tensor) -> torch.Tensor:
        """T (d, d) for shifts S (n, d)."""
        return self.solve(self.weight * (shift.T @ self.edited))


@dataclass(frozen=True)
class Constraint(Ridge):
    """The limit w → ∞ of `Ridge`: the edited rows K (n, d) get exactly their wanted outputs.

    ``cholesky`` is the factor L of C, which has no edited rows, and ``condition`` is that of C.
    """

    @cached_property
    def down(self) -> torch.Tensor:
        """D (n, d), as (K L⁻ᵀ)⁺ᵀ L⁻¹."""
        whitened = torch.linalg.solve_triangular(self.cholesky, self.edited.T, upper=False)  # L⁻¹ Kᵀ (d, n)
        return torch.linalg.solve_triangular(self.cholesky, torch.linalg.pinv(whitened), upper=False, left=False)

    def summed(self, shift: torch.Tensor) -> torch.Tensor:
        return shift.T @ self.down


@dataclass(frozen=True)
class TextMap:
    """An edit W' = W (I + T), with the same T for all layers.

    T is ``up`` (d, n) times ``down`` (n, d), or ``up`` (d, d) if ``down`` is ``None``.
    """

    up: torch.Tensor
    down: torch.Tensor | None = None

    @cached_property
    def T(self) -> torch.Tensor:
        """T (d, d)."""
        return self.up if self.down is None else self.up @ self.down

    @property
    def matrix(self) -> torch.Tensor:
        """I + T (d, d)."""
        return torch.eye(len(self.T), dtype=self.T.dtype, device=self.T.device) + self.T

    def then(self, other: TextMap) -> TextMap:
        """This edit followed by another one."""
        up = other.up + self.T @ other.up
        if self.down is not None and other.down is not None and len(self.down) + len(other.down) < len(up):
            return TextMap(torch.cat([self.up, up], dim=1), torch.cat([self.down, other.down]))
        return TextMap(self.T + (up if other.down is None else up @ other.down))

    def changes(self, projections: Iterable[Projection]) -> dict[str, LowRank | Replacement]:
        """W' of every projection by name."""
        return {p.name: self._change(p.weight) for p in projections}

    def _change(self, weight: torch.Tensor) -> LowRank | Replacement:
        W = weight.to(precision(weight))
        if self.down is not None and factors_are_smaller(weight, len(self.down)):
            return LowRank(W @ self.up.to(W), self.down.to(W))
        return Replacement((W + W @ self.T.to(W)).to(weight))


def precision(weight: torch.Tensor) -> torch.dtype:
    """The dtype of a weight's change: float64 for float64 weights, else float32."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def factors_are_smaller(weight: torch.Tensor, rank: int) -> bool:
    """Whether two factors of this rank have fewer elements than the weight (o, d)."""
    return rank * sum(weight.shape) < weight.numel()


def stored(change: LowRank, weight: torch.Tensor) -> LowRank | Replacement:
    """A float64 change of a weight (o, d), in the form and precision that an erasure stores."""
    if factors_are_smaller(weight, len(change.down)):
        kind = precision(weight)
        return LowRank(change.up.to(kind).contiguous(), change.down.to(kind).contiguous())
    return Replacement(change.apply(weight))


def gram(rows: Iterable[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Σ KᵀK (d, d) over blocks of rows (n_i, d), consumed one at a time. ``like`` gives d, dtype and device."""
    total = torch.zeros(like.shape[1], like.shape[1], dtype=like.dtype, device=like.device)
    for block in rows:
        total.addmm_(block.T, block)
    return total


def factor(
    edited: torch.Tensor, kept: torch.Tensor, ridge: float, edit_weight: float = 1.0, keep_weight: float = 1.0
) -> Ridge:
    """Factor A for edited key rows (n, d) and the Gram matrix (d, d) of the rows to keep, both float64.

    ``edit_weight`` may be infinite: the result is a `Constraint`.

    Raises:
        UserError: A is singular, which can happen only with ``ridge`` (``lamb``) near 0.
    """
    width, exact = edited.shape[1], math.isinf(edit_weight)
    whole = ridge * torch.eye(width, dtype=torch.float64, device=edited.device)
    whole += keep_weight * kept if exact else edit_weight * (edited.T @ edited) + keep_weight * kept
    cholesky, condition = factored(
        whole,
        f"lamb={ridge:g} makes the closed-form edit singular: the text rows do not "
        f"span the text space of width {width}; use lamb > 0 (UCE uses 0.5) or retain more texts",
    )
    return (Constraint if exact else Ridge)(edited, edit_weight, cholesky, condition)


def factored(A: torch.Tensor, singular: str) -> tuple[torch.Tensor, float]:
    """Cholesky factor and condition number of a symmetric A (d, d).

    Raises:
        UserError: the condition number exceeds `LARGEST_CONDITION`; ``singular`` is the message.
    """
    eigenvalues = torch.linalg.eigvalsh(A)
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    if smallest <= largest / LARGEST_CONDITION:
        raise UserError(singular)
    return torch.linalg.cholesky(A), largest / smallest


def edit(
    projections: list[Projection], shared: Ridge, residual: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, LowRank | Replacement]:
    """The change of every projection by name. ``residual(W)`` returns R (n, o) for the float64 weight W (o, d)."""
    return {p.name: shared.change(residual(p.weight.double()), p) for p in projections}
