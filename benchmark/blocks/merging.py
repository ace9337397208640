"""Merging: erasures of one concept each, made separately on the same model, become one erasure of all concepts.

With the model's weights W₀ and the changes Δ_i = W_i − W₀ of n erasures, the rules are

    sum      W = W₀ + s Σ_i Δ_i             task arithmetic: Ilharco et al., ICLR 2023, arXiv 2212.04089
    mean     W = W₀ + s/n Σ_i Δ_i
    ties     of each Δ_i the share ``keep`` of largest |values|, over all weights together, else 0; for each value of W the
             sign of Σ_i Δ_i; W = W₀ + s times the mean of the Δ_i with that sign
             TIES: Yadav et al., NeurIPS 2023, arXiv 2306.01708
    closed   W = W₀ + s Rᵀ D with K W'ᵀ = K_i W_iᵀ for the rows K_i of every concept, and the least change of the outputs of
             other texts: Kumari et al., CVPR 2023, arXiv 2212.04488 (`overpaint.blocks.ridge.Constraint`), R_i = K_i Δ_iᵀ

with s ``scale``. K_i are the rows of the concept's tokens and of the end token. Other texts are ``captions``, or the retained
concepts and the empty text. ``closed`` is defined for matrices that read the text.

Adapters and guards are put on the model together, which is the sum of adapters that add to the same layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from overpaint.blocks.prior import caption_statistics, read_captions
from overpaint.blocks.ridge import factor, stored
from overpaint.blocks.text_rows import TextRows
from overpaint.errors import UserError
from overpaint.grid.concept_sets import Merge
from overpaint.grid.concepts import Request
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure, LowRank, Replacement
from overpaint.models.lazily import torch

Change = LowRank | Replacement

#: λ of the metric λI + Σ EᵀE of ``closed``, which makes it regular where the other texts have no row; UCE's ridge.
RIDGE = 0.5


def merged(model: DiffusionModel, parts: Sequence[Erasure], request: Request, merge: Merge) -> Erasure:
    """One erasure of all concepts of ``request``, from one erasure of each (``parts``, in the same order).

    Raises:
        UserError: the rule is not defined for these erasures.
    """
    first = parts[0]
    deltas = all(part.kind == "delta" for part in parts)
    if not deltas and merge != Merge("sum"):
        raise UserError(
            f"merge={merge.label} merges changed weights, and method={first.method} makes {first.kind}s; use merge=sum"
        )
    changes = RULES[merge.rule](model, parts, request, merge)
    if deltas:
        return Erasure(first.method, changes=changes)
    chain = replace(first, changes=changes)
    for part in parts[1:]:
        chain = replace(part, changes={}, before=chain)
    return replace(chain, manifest={})


def summed(model: DiffusionModel, parts: Sequence[Erasure], request: Request, merge: Merge) -> dict[str, Change]:
    """s Σ_i Δ_i; low-rank changes stay low-rank where that is smaller."""
    return _scaled(model, parts, merge.scale)


def averaged(model: DiffusionModel, parts: Sequence[Erasure], request: Request, merge: Merge) -> dict[str, Change]:
    """s/n Σ_i Δ_i."""
    return _scaled(model, parts, merge.scale / len(parts))


def _scaled(model: DiffusionModel, parts: Sequence[Erasure], scale: float) -> dict[str, Change]:
    weights = model.named_parameters()
    found: dict[str, Change] = {}
    for name in _names(parts):
        own, W = [part.changes[name] for part in parts if name in part.changes], weights[name].data
        low = [change for change in own if isinstance(change, LowRank)]
        if len(low) == len(own):
            up, down = torch.cat([c.up.double() for c in low], dim=1), torch.cat([c.down.double() for c in low])
            found[name] = stored(LowRank(scale * up, down), W)
        else:
            found[name] = _changed(W, scale * torch.stack([delta(change, W) for change in own]).sum(0))
    return found


def ties(model: DiffusionModel, parts: Sequence[Erasure], request: Request, merge: Merge) -> dict[str, Change]:
    """s times the mean of the large changes that have the elected sign."""
    weights = model.named_parameters()
    least = [_threshold([delta(c, weights[n].data) for n, c in part.changes.items()], merge.keep) for part in parts]
    found: dict[str, Change] = {}
    for name in _names(parts):
        W = weights[name].data
        own = [(delta(p.changes[name], W), t) for p, t in zip(parts, least, strict=True) if name in p.changes]
        large = torch.stack([torch.where(change.abs() >= t, change, 0.0) for change, t in own])
        agreeing = (large.sign() == large.sum(0).sign()) & (large != 0)
        mean = torch.where(agreeing, large, 0.0).sum(0) / agreeing.sum(0).clamp(min=1)
        found[name] = _changed(W, merge.scale * mean)
    return found


def _threshold(changes: Sequence[torch.Tensor], keep: float) -> float:
    """The smallest |value| of the share ``keep`` of largest ones, over all tensors together."""
    values = torch.cat([change.abs().flatten() for change in changes])
    return float(values.kthvalue(len(values) - max(1, round(keep * len(values))) + 1).values)


def closed(model: DiffusionModel, parts: Sequence[Erasure], request: Request, merge: Merge) -> dict[str, Change]:
    """The least change with which each concept's rows have the outputs of its own erasure."""
    projections = {p.name: p for p in model.projections("key", "value", stream="text")}
    others = [name for name in _names(parts) if name not in projections]
    if others:
        raise UserError(
            f"merge=closed merges the projections that read the text, and method={parts[0].method} changes {others[0]}"
        )
    kept = read_captions(merge.captions) if merge.captions else ["", *(c.name for c in request.retain)]
    K = list(concept_rows(model, [c.name for c in request.erase]))
    shared = factor(torch.cat(K), caption_statistics(model, kept)[0], RIDGE, math.inf)
    found: dict[str, Change] = {}
    for name in _names(parts):
        W = projections[name].weight
        residual = torch.cat(
            [
                rows @ delta(part.changes[name], W).T if name in part.changes else rows.new_zeros(len(rows), len(W))
                for rows, part in zip(K, parts, strict=True)
            ]
        )
        found[name] = stored(LowRank(merge.scale * residual.T, shared.down), W)
    return found


def concept_rows(model: DiffusionModel, names: Sequence[str]) -> Iterator[torch.Tensor]:
    """K_i (n_i, d) of every concept: the rows of its tokens and of the end token."""
    rows = TextRows(model, names)
    for name in names:
        yield rows.all(name)[1 : len(model.token_ids(name))]


def delta(change: Change, weight: torch.Tensor) -> torch.Tensor:
    """Δ, in float64 and the shape of the weight."""
    if isinstance(change, LowRank):
        return change.up.to(weight.device).double() @ change.down.to(weight.device).double()
    return change.tensor.to(weight.device).double() - weight.double()


def _changed(weight: torch.Tensor, change: torch.Tensor) -> Replacement:
    return Replacement((weight.double() + change).to(weight.dtype))


def _names(parts: Sequence[Erasure]) -> list[str]:
    return list(dict.fromkeys(name for part in parts for name in part.changes))


RULES = {"sum": summed, "mean": averaged, "ties": ties, "closed": closed}
