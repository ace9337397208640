"""Erasures: the small artefact a method leaves, attachable to a model and detachable bit for bit; alone or in sequence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
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
    ``before`` is the erasure that was on the model when this one was made: it is attached first, and stored with it.
    """

    method: str
    kind: str = "delta"
    changes: Mapping[str, Replacement | LowRank] = field(default_factory=dict, repr=False)
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    base: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    before: Erasure | None = None

    @property
    def sequence(self) -> list[Erasure]:
        """The erasures that were made one on top of the other, this one last."""
        return [*(self.before.sequence if self.before else ()), self]

    @property
    def names(self) -> list[str]:
        """Every parameter that the sequence changes."""
        return list(dict.fromkeys(name for erasure in self.sequence for name in erasure.changes))

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """``{diffusers state-dict name: changed tensor}`` after the whole sequence; an adapter's own tensors under their
        names, those of an earlier one behind ``before:``.

        A low-rank change of an erasure read from a file needs the model it belongs to: `attach` it first.
        """
        found: dict[str, torch.Tensor] = {}
        for erasure in self.sequence:
            for name, change in erasure.changes.items():
                start = found.get(name, self.base.get(name))
                if start is None and isinstance(change, LowRank):
                    raise UserError(
                        "this erasure stores low-rank changes: attach it to its model to see the changed tensors"
                    )
                found[name] = change.tensor if isinstance(change, Replacement) else change.apply(start)
        return found | {f"{below}{name}": t for below, erasure in self._levels() for name, t in erasure.parts.items()}

    def after(self, before: Erasure) -> Erasure:
        """This erasure on top of the one that it was made on; nothing is kept twice of what it replaces whole."""
        if all(erasure.kind == "delta" for erasure in (*before.sequence, self)):
            before = before._without({name for name, change in self.changes.items() if isinstance(change, Replacement)})
        return replace(self, before=before)

    def _without(self, names: set[str]) -> Erasure:
        """The sequence without its changes of these parameters."""
        kept = {name: change for name, change in self.changes.items() if name not in names}
        return replace(self, changes=kept, before=self.before and self.before._without(names))

    @property
    def artefact_bytes(self) -> int:
        """Bytes of the tensors it stores."""
        return sum(t.numel() * t.element_size() for t in self._stored().values())

    def _levels(self) -> list[tuple[str, Erasure]]:
        """The sequence from the last one down, each with what its stored names begin with."""
        return [("before:" * depth, erasure) for depth, erasure in enumerate(reversed(self.sequence))]

    def _stored(self) -> dict[str, torch.Tensor]:
        stored = {}
        for below, erasure in self._levels():
            for name, change in erasure.changes.items():
                stored |= {f"{below}{key}": tensor for key, tensor in change.stored(name).items()}
            stored |= {f"{below}part:{name}": tensor for name, tensor in erasure.parts.items()}
        return stored

    # --- attach and detach -------------------------------------------------------------------------------------

    def attach(self, model: DiffusionModel) -> Callable[[], None]:
        """Put the erasure on the model, after those it was made on; the returned function takes all off, bit for bit."""
        parameters = model.named_parameters()
        for name in self.names:
            if name not in parameters:
                raise UserError(f"this erasure changes {name}, which the model does not have")
        self._check_base(parameters)
        self.base = plain = {name: parameters[name].data for name in self.names}

        def restore() -> None:
            for name, tensor in plain.items():
                parameters[name].data = tensor

        with ExitStack() as undo:
            undo.callback(restore)
            for erasure in self.sequence:
                for name, change in erasure.changes.items():
                    parameters[name].data = change.apply(parameters[name].data)
                if erasure.kind != "delta":
                    undo.callback(erasure._install(model))
            return undo.pop_all().close

    @contextmanager
    def attached(self, model: DiffusionModel) -> Iterator[DiffusionModel]:
        """``with erasure.attached(model): …``"""
        detach = self.attach(model)
        try:
            yield model
        finally:
            detach()

    def _install(self, model: DiffusionModel) -> Callable[[], None]:
        from overpaint.grid.registry import component
        from overpaint.models.guidance import Guidance

        method = component("method", self.method).load()
        if self.kind == "guard" and model.guidance is not Guidance and not method.stacks:
            raise UserError(f"the model has a guard already, and {self.method} cannot be put on top of one")
        return method.install(model, self)

    def _check_base(self, parameters: Mapping[str, torch.Tensor]) -> None:
        for name, change in (item for erasure in self.sequence for item in erasure.changes.items()):
            shape = tuple(parameters[name].shape)
            wanted = (
                (change.up.shape[0], change.down.shape[1])
                if isinstance(change, LowRank)
                else tuple(change.tensor.shape)
            )
            if shape != wanted:
                raise UserError(f"this erasure does not fit the model: {name} is {shape} there and {wanted} here")
        expected = self.manifest.get("base")
        if expected and expected != fingerprint({name: parameters[name].data for name in self.names}):
            raise UserError("this erasure was made for other weights than this model's (their hashes differ)")

    # --- files -------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: tensors under their diffusers names, the manifest as JSON in its header.

        A low-rank change W + up·down is stored as ``NAME:up`` and ``NAME:down``, what lies below behind ``before:``.
        """
        tensors = {k: v.detach().contiguous().cpu() for k, v in self._stored().items()}
        save_file(tensors, str(path), metadata={"overpaint": json.dumps(self._header(), sort_keys=True)})

    def _header(self) -> dict[str, Any]:
        header = {"method": self.method, "kind": self.kind, "settings": self.settings, "manifest": self.manifest}
        return header | ({"before": self.before._header()} if self.before else {})


def load_erasure(path: str | Path) -> Erasure:
    """Read an erasure file written by `Erasure.save`."""
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {})["overpaint"])
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"erasure file {path} does not exist") from None
    except KeyError:
        raise UserError(f"{path} is not an overpaint erasure file (its header has no entry 'overpaint')") from None
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not an overpaint erasure file ({error})") from error
    return _erasure(header, stored)


def _erasure(header: Mapping[str, Any], stored: Mapping[str, torch.Tensor]) -> Erasure:
    below = {key.removeprefix("before:"): t for key, t in stored.items() if key.startswith("before:")}
    stored = {key: tensor for key, tensor in stored.items() if not key.startswith("before:")}
    changes: dict[str, Replacement | LowRank] = {}
    for key, tensor in stored.items():
        if key.endswith(":up"):
            changes[key[:-3]] = LowRank(tensor, stored[f"{key[:-3]}:down"])
        elif not key.startswith("part:") and not key.endswith(":down"):
            changes[key] = Replacement(tensor)
    parts = {key[5:]: tensor for key, tensor in stored.items() if key.startswith("part:")}
    before = _erasure(header["before"], below) if "before" in header else None
    return Erasure(
        header["method"], header["kind"], changes, parts, header["settings"], header["manifest"], before=before
    )


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of named tensors, to tell whether an erasure meets the weights it was made for."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
