"""Erasures: the small artefact a method leaves, attachable to a model and detachable bit for bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from overpaint.errors import UserError

if TYPE_CHECKING:
    from overpaint.models.diffusion import DiffusionModel

KINDS = ("delta", "adapter", "guard")


@dataclass(frozen=True)
class Replacement:
    """A tensor that takes the place of the model's."""

    tensor: torch.Tensor

    def apply(self, base: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(base).copy_(self.tensor)  # in the base's memory layout, which can change last bits

    def stored(self, name: str) -> dict[str, torch.Tensor]:
        return {name: self.tensor}


@dataclass(frozen=True)
class LowRank:
    """A change W + up·down, with up (out, r) and down (r, in): what a closed-form edit of few rows amounts to."""

    up: torch.Tensor
    down: torch.Tensor

    def apply(self, base: torch.Tensor) -> torch.Tensor:
        return (base.double() + self.up.to(base.device).double() @ self.down.to(base.device).double()).to(base.dtype)

    def stored(self, name: str) -> dict[str, torch.Tensor]:
        return {f"{name}:up": self.up, f"{name}:down": self.down}


@dataclass
class Erasure:
    """What an eraser leaves behind.

    ``changes`` maps diffusers state-dict names to `Replacement` or `LowRank`; ``parts`` holds an adapter's own tensors;
    ``settings`` what a guard or adapter needs to be installed again; ``manifest`` who made it, from what, at what cost.
    """

    method: str
    kind: str = "delta"
    changes: Mapping[str, Replacement | LowRank] = field(default_factory=dict)
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    base: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """``{diffusers state-dict name: changed tensor}``; an adapter's own tensors under their names.

        A low-rank change of an erasure read from a file needs the model it belongs to: `attach` it first.
        """
        missing = [n for n, c in self.changes.items() if isinstance(c, LowRank) and n not in self.base]
        if missing:
            raise UserError("this erasure stores low-rank changes: attach it to its model to see the changed tensors")
        changed = {name: change.apply(self.base.get(name, torch.empty(0))) if isinstance(change, LowRank) else
                   change.tensor for name, change in self.changes.items()}  # fmt: skip
        return changed | dict(self.parts)

    @property
    def artefact_bytes(self) -> int:
        """Bytes of the tensors it stores."""
        return sum(t.numel() * t.element_size() for t in self._stored().values())

    def _stored(self) -> dict[str, torch.Tensor]:
        stored = {k: v for name, change in self.changes.items() for k, v in change.stored(name).items()}
        return stored | {f"part:{name}": tensor for name, tensor in self.parts.items()}

    # --- attach and detach -------------------------------------------------------------------------------------

    def attach(self, model: DiffusionModel) -> Callable[[], None]:
        """Put the erasure on the model; the returned function takes it off, bit for bit."""
        parameters = model.named_parameters()
        for name in self.changes:
            if name not in parameters:
                raise UserError(f"this erasure changes {name}, which the model does not have")
        self._check_base(parameters)
        plain = {name: parameters[name].data for name in self.changes}
        self.base = plain
        for name, change in self.changes.items():
            parameters[name].data = change.apply(plain[name])
        undo_parts = self._install(model) if self.kind != "delta" else None

        def detach() -> None:
            if undo_parts:
                undo_parts()
            for name, tensor in plain.items():
                parameters[name].data = tensor

        return detach

    @contextmanager
    def attached(self, model: DiffusionModel) -> Iterator[DiffusionModel]:
        """``with erasure.attached(model): …``"""
        detach = self.attach(model)
        try:
            yield model
        finally:
            detach()

    def _install(self, model: DiffusionModel) -> Callable[[], None]:
        from overpaint.registry import component

        return component("method", self.method).load().install(model, self)

    def _check_base(self, parameters: Mapping[str, torch.Tensor]) -> None:
        for name, change in self.changes.items():
            shape = tuple(parameters[name].shape)
            wanted = (
                (change.up.shape[0], change.down.shape[1])
                if isinstance(change, LowRank)
                else tuple(change.tensor.shape)
            )
            if shape != wanted:
                raise UserError(f"this erasure does not fit the model: {name} is {shape} there and {wanted} here")
        expected = self.manifest.get("base")
        if expected and expected != fingerprint({name: parameters[name].data for name in self.changes}):
            raise UserError("this erasure was made for other weights than this model's (their hashes differ)")

    # --- files -------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: tensors under their diffusers names, the manifest as JSON in its header.

        A low-rank change W + up·down is stored as ``NAME:up`` and ``NAME:down``.
        """
        header = {"method": self.method, "kind": self.kind, "settings": self.settings, "manifest": self.manifest}
        tensors = {k: v.detach().contiguous().cpu() for k, v in self._stored().items()}
        save_file(tensors, str(path), metadata={"overpaint": json.dumps(header, sort_keys=True)})


def load_erasure(path: str | Path) -> Erasure:
    """Read an erasure file written by `Erasure.save`."""
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {})["overpaint"])
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"erasure file {path} does not exist") from None
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not an overpaint erasure file ({error})") from error
    changes: dict[str, Replacement | LowRank] = {}
    for key, tensor in stored.items():
        if key.endswith(":up"):
            changes[key[:-3]] = LowRank(tensor, stored[f"{key[:-3]}:down"])
        elif not key.startswith("part:") and not key.endswith(":down"):
            changes[key] = Replacement(tensor)
    parts = {key[5:]: tensor for key, tensor in stored.items() if key.startswith("part:")}
    return Erasure(header["method"], header["kind"], changes, parts, header["settings"], header["manifest"])


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of named tensors, to tell whether an erasure meets the weights it was made for."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
