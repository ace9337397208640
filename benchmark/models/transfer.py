"""Transfer: an erasure that was made on one model is put on another model of the same layout.

With the weights W_A that it was made for, W'_A after it, and W_B of the other model,

    low-rank change     W_B + up·down
    replaced tensor     W_B + W'_A − W_A, and exactly W'_A where W_B equals W_A
    text encoder        W'_A, the whole encoder with the tensors that the erasure left as they were
    adapter, guard      as it is

SPM (arXiv 2312.16145) claims this for its adapters, AdvUnlearn (arXiv 2405.15234) for its text encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from overpaint.errors import UserError
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure, LowRank, Replacement
from overpaint.models.lazily import torch


def transferred(erasure: Erasure, model: DiffusionModel, base: DiffusionModel | None) -> Erasure:
    """The erasure for another model than the one that it was made on (``base``).

    ``base`` may be ``None`` if no tensor is replaced. An erasure that was made for this very model is returned as it is.

    Raises:
        UserError: the models have other layouts, ``base`` is needed, or the erasure was not made for it.
    """
    erasure.check_layout(model)
    known = erasure.manifest.keys() & {"base", "model"}
    if known and erasure.made_for(model):
        return erasure
    replaced = {n for e in erasure.sequence for n, change in e.changes.items() if isinstance(change, Replacement)}
    if base is None:
        if not replaced:
            return _unbound(erasure)
        raise UserError(
            f"the erasure replaces {min(replaced)}, so its transfer needs the model that it was made on: "
            "checkpoint.base=MODEL, a folder, a hub id or testbed"
        )
    erasure.check_layout(base)
    if not erasure.made_for(base):
        raise UserError("the erasure was not made for the weights of checkpoint.base, or for another precision")
    a, b = _weights(base), _weights(model)
    encoder: dict[str, LowRank | Replacement] = {}
    if replaced & set(model.text_encoder_names):
        encoder = {n: Replacement(a[n]) for n in model.text_encoder_names if not torch.equal(a[n], b[n])}
    return _moved(_unbound(erasure), a, b, encoder)


def _moved(
    erasure: Erasure,
    a: dict[str, torch.Tensor],
    b: dict[str, torch.Tensor],
    first: Mapping[str, LowRank | Replacement],
) -> Erasure:
    """The sequence, after the changes ``first``, with each change of the weights ``a`` as one of ``b``."""
    moved = None if not first else Erasure(erasure.sequence[0].method, changes=first)
    b = b | {name: change.apply(b[name]) for name, change in first.items()}
    for level in erasure.sequence:
        changes: dict[str, LowRank | Replacement] = {}
        for name, change in level.changes.items():
            W_A, W_B, after = a[name], b[name], change.apply(a[name])
            if isinstance(change, Replacement):
                added = (W_B.double() + (after.double() - W_A.double())).to(W_B.dtype)
                change = Replacement(torch.where(W_A == W_B, after, added))
            a[name], b[name], changes[name] = after, change.apply(W_B), change
        below = replace(level, changes=changes, base={}, before=None)
        moved = below if moved is None else below.after(moved)
    assert moved is not None
    return moved


def _unbound(erasure: Erasure) -> Erasure:
    """The erasure without the hashes of the weights that it was made for."""
    manifest = {key: value for key, value in erasure.manifest.items() if key not in ("base", "model")}
    return replace(erasure, manifest=manifest)


def _weights(model: DiffusionModel) -> dict[str, torch.Tensor]:
    return {name: parameter.data for name, parameter in model.named_parameters().items()}
