"""SPEED: a closed-form edit restricted to the null space of the retained rows, so that retained outputs cannot change.

Li, Wang, Hu, Jiang, Liang, Hao, Ma and Feng, "SPEED: Scalable, Precise, and Efficient Concept Erasure for Diffusion
Models", ICLR 2026, arXiv 2503.07392. X (n, d) are text rows of the concepts and A (n, d) those of their anchors, both
divided by the square root of the number of concepts; S (m, d) are rows to retain. For each cross-attention value matrix
W (o, d):

    min over Δ  ‖(A − X) Wᵀ − X Δᵀ‖² + ρ ‖Δ‖²   subject to  Δ = ΔP and Δ Eᵀ = 0

    P (d, d)  projection onto the eigenvectors of SᵀS/m with eigenvalues below ``threshold``; ρ is ``retain_scale``
    E (4, d)  the BOS row and three cluster centers of the other rows of the empty prompt; λ (``lamb``) relaxes Δ Eᵀ = 0

With X̃ = XP, Ẽ = EP and H⁻¹ = (X̃ᵀX̃ + ρI)⁻¹, which only needs a linear system of size n, the solution is

    Δ = W (A − X)ᵀ · X̃ [H⁻¹ − H⁻¹ Ẽᵀ (Ẽ H⁻¹ Ẽᵀ + λI)⁻¹ Ẽ H⁻¹]               of rank n, stored as factors

S depends on the layer. The influence of the edit on a row r is ‖Δ₀ r‖, with the unconstrained edit
Δ₀ = W (A − X)ᵀ X (I + XᵀX)⁻¹:

    filter      keep the retained rows whose influence is at least the mean; the others are *not* protected
    augment     add ``aug_num`` rows r + s v per row, with s ~ N(0, 1) and v the right singular vector of W with the
                smallest singular value of its thin SVD; keep those with at least mean influence (in blocks of 128 rows)

Official code inverts d × d matrices in float32. Its ``threshold`` has the unit ‖row‖², so it does not transfer to text
encoders of another scale; the manifest therefore reports the null space of each layer. As in official code, retained
texts that contain a concept as a whole word are dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from overpaint.blocks.draws import Draws
from overpaint.blocks.ridge import stored
from overpaint.blocks.text_rows import TEXTS_AT_ONCE, TextRows
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Request
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure, LowRank
from overpaint.models.lazily import torch
from overpaint.run.progress import steps

#: ``params`` -> the projections to edit.
ROLES = {"V": ("value",), "K": ("key",), "KV": ("key", "value")}
#: Retained rows that are augmented together. Augmented rows are compared with the mean influence of their block.
BLOCK = 128
#: Cluster centers of the empty prompt's rows, besides the BOS row.
CENTRES = 3


@dataclass(kw_only=True)
class SPEED(Eraser):
    """Hyper-parameters of SPEED; ``conf/method/speed.yaml`` explains each."""

    params: Literal["V", "K", "KV"]
    tokens: Literal["auto", "last", "all"]
    threshold: float
    retain_scale: float
    lamb: float
    aug_num: int
    disable_filter: bool
    default_anchor: str

    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    acts_on: ClassVar[str] = "conditioning"

    def __post_init__(self):
        at_least(0, lamb=self.lamb, aug_num=self.aug_num)
        if self.retain_scale <= 0 or self.threshold <= 0:
            raise UserError(
                f"retain_scale and threshold take numbers above 0, got {self.retain_scale:g} and {self.threshold:g}"
            )

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        draws = Draws(self.seed)
        X, A = self.pairs(model, request)
        E = invariant_rows(model, draws)
        retained = self.retained_rows(model, request)
        retained = retained[draws.take("retain_perm", lambda g: torch.randperm(len(retained), generator=g))]

        changes, spaces = {}, {}
        projections = model.projections(*ROLES[self.params], stream="text")
        for index in steps(len(projections), "layers"):
            projection = projections[index]
            W = projection.weight.double()
            U, spaces[projection.name] = occupied(self.protected(W, X, A, retained, draws), self.threshold)
            free_X, free_E = (rows - rows @ U @ U.T for rows in (X, E))
            down = constrained(free_X, free_E, self.retain_scale, self.lamb)
            changes[projection.name] = stored(LowRank(W @ (A - X).T, down), projection.weight)
        return Erasure("speed", changes=changes, manifest={"retained": len(retained), "null_spaces": spaces})

    def pairs(self, model: DiffusionModel, request: Request) -> tuple[torch.Tensor, torch.Tensor]:
        """X and A (n, d): the last token's row of each concept or all rows except BOS, divided by √(number of concepts)."""
        names, anchors = [c.name for c in request.erase], request.anchors(self.default_anchor)
        every = self.tokens == "all" or (self.tokens == "auto" and names == ["nudity"])
        rows = TextRows(model, [*names, *anchors], padding=every)
        chosen = (lambda text: rows.all(text)[1:]) if every else rows.last_subject
        X, A = (torch.cat([chosen(text) for text in texts]) / len(names) ** 0.5 for texts in (names, anchors))
        return X, A

    def retained_rows(self, model: DiffusionModel, request: Request) -> torch.Tensor:
        """The last token's row of each retained text (m, d); without retained texts, all rows of "" except BOS."""
        erased = re.compile("|".join(rf"\b{re.escape(c.name)}\b" for c in request.erase), re.IGNORECASE)
        texts = [c.name for c in request.retain if not erased.search(c.name)]
        if not texts:
            return TextRows(model, [""]).all("")[1:]
        blocks = [texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE)]
        encoded = (TextRows(model, block, padding=False) for block in blocks)
        return torch.cat(
            [rows.last_subject(text) for rows, block in zip(encoded, blocks, strict=True) for text in block]
        )

    def protected(
        self, W: torch.Tensor, X: torch.Tensor, A: torch.Tensor, retained: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """S (m, d) of one layer: the filtered retained rows and their augmentations."""
        if not self.aug_num:
            return retained
        influence = Influence(W, X, A)
        if not self.disable_filter:
            retained = retained[above_mean(influence(retained))]
        v = directions(W)[1][:, 0]

        def augmentations(block: torch.Tensor) -> torch.Tensor:
            def draw(generator: torch.Generator) -> torch.Tensor:
                s = torch.randn(len(block), self.aug_num, 1, generator=generator, dtype=torch.float64).to(v.device)
                candidates = (block[:, None] + s * v).flatten(0, 1)
                return candidates[above_mean(influence(candidates))]

            return draws.take("aug", draw).to(block).flatten(0, -2)

        return torch.cat([part for block in retained.split(BLOCK) for part in (block, augmentations(block))])


class Influence:
    """‖Δ₀ r‖ of rows (m, d): the change of each row's output under the unconstrained edit Δ₀ = W (A − X)ᵀ X (I + XᵀX)⁻¹."""

    def __init__(self, W: torch.Tensor, X: torch.Tensor, A: torch.Tensor):
        # X (I + XᵀX)⁻¹ = (I + XXᵀ)⁻¹ X, a linear system of size n instead of d
        self.down = torch.linalg.solve(identity(len(X), X) + X @ X.T, X)
        self.up = W @ (A - X).T

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return (rows @ self.down.T @ self.up.T).norm(dim=1)


def above_mean(scores: torch.Tensor) -> torch.Tensor:
    """A mask of the scores that are at least their mean; equal scores are all kept."""
    return scores >= scores.mean()


def invariant_rows(model: DiffusionModel, draws: Draws) -> torch.Tensor:
    """E (4, d), whose outputs must not change: the BOS row and k-means centers of the other rows of the empty prompt."""
    from scipy.cluster.vq import kmeans2

    rows = TextRows(model, [""]).all("")

    def centres(generator: torch.Generator) -> torch.Tensor:
        points = rows[1:].cpu().numpy()
        start = points[torch.randperm(len(points), generator=generator)[:CENTRES].numpy()]
        return torch.from_numpy(kmeans2(points, start, iter=100, minit="matrix")[0])

    return torch.cat([rows[:1], draws.take("kmeans_centres", centres).to(rows)])


def directions(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared singular values (r,) of rows (m, d) in ascending order and right singular vectors (d, r); r = min(m, d)."""
    if len(rows) >= rows.shape[1]:
        return torch.linalg.eigh(rows.T @ rows)
    values, left = torch.linalg.eigh(rows @ rows.T)
    return values, torch.nn.functional.normalize(rows.T @ left, dim=0)


def occupied(S: torch.Tensor, threshold: float) -> tuple[torch.Tensor, dict]:
    """U (d, r), the eigenvectors of SᵀS/m outside the null space, and the null space's dimension and adjacent eigenvalues."""
    values, vectors = directions(S / len(S) ** 0.5)
    taken = values >= threshold
    free = S.shape[1] - int(taken.sum())
    if not free:
        raise UserError(
            f"threshold={threshold:g} leaves no null space: {len(S)} retained rows span the text space; "
            "use a larger threshold or retain fewer concepts"
        )
    edges = {"below": values[~taken][-1:], "above": values[taken][:1]}
    return vectors[:, taken], {"dimension": free} | {name: float(edge) for name, edge in edges.items() if len(edge)}


def constrained(X: torch.Tensor, E: torch.Tensor, ridge: float, relax: float) -> torch.Tensor:
    """X [H⁻¹ − H⁻¹Eᵀ (E H⁻¹ Eᵀ + λI)⁻¹ E H⁻¹] (n, d) with H = XᵀX + ρI, for X (n, d) and E (4, d)."""
    # X H⁻¹ = (XXᵀ + ρI)⁻¹ X, and E H⁻¹ = (E − E Xᵀ · X H⁻¹)/ρ
    XH = torch.linalg.solve(X @ X.T + ridge * identity(len(X), X), X)
    EH = (E - E @ X.T @ XH) / ridge
    # a constraint that already holds in the null space gives a row of zeros, which the pseudo-inverse ignores
    inner = torch.linalg.pinv(E @ EH.T + relax * identity(len(E), E), hermitian=True)
    return XH - X @ EH.T @ inner @ EH


def identity(size: int, like: torch.Tensor) -> torch.Tensor:
    """I (size, size) in the precision and on the device of ``like``."""
    return torch.eye(size, dtype=like.dtype, device=like.device)
