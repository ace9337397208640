"""Erasures: the small artefact that a method leaves, alone or in sequence.

An erasure is attached to a model and detached again, bit for bit. Files are safetensors and may come from anybody:
`load_erasure` checks their structure, and attaching checks that they fit the model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from safetensors import SafetensorError, safe_open

from overpaint.errors import UserError, unknown
from overpaint.grid.paths import path_of
from overpaint.grid.registry import component
from overpaint.grid.typed import bare, shown
from overpaint.models.guidance import Guidance
from overpaint.models.lazily import torch

if TYPE_CHECKING:
    from overpaint.models.diffusion import DiffusionModel

#: Kinds of erasures (`Erasure.kind`).
KINDS = ("delta", "adapter", "guard")
#: Types of stored tensors.
WEIGHTS = ("torch.float16", "torch.bfloat16", "torch.float32", "torch.float64")
#: What becomes of a tensor of an adapter, given with its name.
TensorChange: TypeAlias = "Callable[[str, torch.Tensor], torch.Tensor]"


@dataclass(frozen=True)
class Replacement:
    """A tensor that replaces the model's."""

    tensor: torch.Tensor

    def apply(self, base: torch.Tensor) -> torch.Tensor:
        """The changed tensor, in the precision of the model's tensor ``base``."""
        return torch.empty_like(base).copy_(self.tensor)  # in the base's memory layout, which can change the last bits

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor that it changes."""
        return tuple(self.tensor.shape)

    def stored(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of an erasure's file, for a change of the tensor ``name``."""
        return {name: self.tensor}


@dataclass(frozen=True)
class LowRank:
    """A change W + up·down, with up (out, r) and down (r, in), such as a closed-form edit of few rows."""

    up: torch.Tensor
    down: torch.Tensor

    def apply(self, base: torch.Tensor) -> torch.Tensor:
        """The changed weight, computed in float64, in the precision of the model's weight ``base``."""
        return (base.double() + self.up.to(base.device).double() @ self.down.to(base.device).double()).to(base.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight that it changes."""
        return (self.up.shape[0], self.down.shape[1])

    def stored(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of an erasure's file, for a change of the weight ``name``."""
        return {f"{name}:up": self.up, f"{name}:down": self.down}


@dataclass
class Erasure:
    """The result of an eraser.

    Attributes:
        method: Name of the method, which installs guards and adapters.
        kind: ``"delta"`` (changed tensors), ``"adapter"`` (added layers) or ``"guard"`` (a changed sampler).
        changes: Diffusers state-dict names with a `Replacement` or `LowRank` each.
        parts: An adapter's own tensors by name.
        settings: JSON values that a guard or adapter needs to be installed again.
        manifest: Who made it, from which weights, at what cost.
        base: The model's own tensors under the names of ``changes``, once they are known; not stored.
        before: The erasure that was on the model when this one was made. It is attached first and stored with it.
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
        """The erasures that were made on top of each other, this one last."""
        return [*(self.before.sequence if self.before else ()), self]

    @property
    def names(self) -> list[str]:
        """Every parameter that the sequence changes."""
        return list(dict.fromkeys(name for erasure in self.sequence for name in erasure.changes))

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """``{diffusers state-dict name: changed tensor}`` after the whole sequence.

        An adapter's own tensors are under their names, those of an earlier one with ``before:`` in front. A low-rank
        change that was read from a file needs its model: `attach` it first.
        """
        found: dict[str, torch.Tensor] = {}
        for erasure in self.sequence:
            for name, change in erasure.changes.items():
                start = found.get(name, self.base.get(name))
                if isinstance(change, Replacement):
                    found[name] = change.tensor
                elif start is not None:
                    found[name] = change.apply(start)
                else:
                    raise UserError(
                        "this erasure stores low-rank changes: attach it to its model to see the changed tensors"
                    )
        return found | {f"{below}{name}": t for below, erasure in self._levels() for name, t in erasure.parts.items()}

    def after(self, before: Erasure) -> Erasure:
        """This erasure on top of the one that it was made on, without the changes that it replaces as a whole."""
        if all(erasure.kind == "delta" for erasure in (*before.sequence, self)):
            before = before._without({name for name, change in self.changes.items() if isinstance(change, Replacement)})
        return replace(self, before=before)

    def _without(self, names: set[str]) -> Erasure:
        """The sequence without its changes of these parameters."""
        kept = {name: change for name, change in self.changes.items() if name not in names}
        return replace(self, changes=kept, before=self.before and self.before._without(names))

    def adapted(self, change: TensorChange) -> Erasure:
        """The sequence with ``change(name, tensor)`` in place of its adapters' own tensors. Deltas and guards stay."""
        parts = self.parts
        if self.kind == "adapter":
            parts = {name: change(name, tensor) for name, tensor in parts.items()}
        return replace(self, parts=parts, before=self.before and self.before.adapted(change))

    @property
    def artefact_bytes(self) -> int:
        """Bytes of the tensors it stores."""
        return sum(t.numel() * t.element_size() for t in self._stored().values())

    def _levels(self) -> list[tuple[str, Erasure]]:
        """The sequence from the last one down, each with the prefix of its stored names."""
        return [("before:" * depth, erasure) for depth, erasure in enumerate(reversed(self.sequence))]

    def _stored(self) -> dict[str, torch.Tensor]:
        stored: dict[str, torch.Tensor] = {}
        for below, erasure in self._levels():
            for name, change in erasure.changes.items():
                stored |= {f"{below}{key}": tensor for key, tensor in change.stored(name).items()}
            stored |= {f"{below}part:{name}": tensor for name, tensor in erasure.parts.items()}
        return stored

    def attach(self, model: DiffusionModel) -> Callable[[], None]:
        """Put the erasure on the model, after those it was made on.

        Returns:
            A function that takes all of them off and restores the model bit for bit.

        Raises:
            UserError: The erasure does not fit the model, or was made for other weights.
        """
        parameters = model.named_parameters()
        self.check_layout(model)
        if not self.made_for(model):
            raise UserError(
                "this erasure was made for other weights than this model's, or for another precision (their hashes "
                "differ), or an erasure is attached already; method=checkpoint checkpoint.transfer=true puts it on another model"
            )
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
        method = component("method", self.method).load()
        if self.kind == "guard" and model.guidance is not Guidance and not method.stacks:
            raise UserError(f"the model has a guard already, and {self.method} cannot be put on top of one")
        try:
            return method.install(model, self)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"this erasure of {self.method} cannot be put on the model: its settings or tensors are not those that "
                f"the method writes ({type(error).__name__}: {error})"
            ) from error

    def check_layout(self, model: DiffusionModel) -> None:
        """Raise a `UserError` unless the model has every changed parameter, in the same shape."""
        parameters = model.named_parameters()
        for name, change in (item for erasure in self.sequence for item in erasure.changes.items()):
            if name not in parameters:
                raise UserError(f"this erasure changes {bare(name)}, which the model does not have")
            if not isinstance(change, Replacement | LowRank):
                raise UserError(
                    f"this erasure changes {bare(name)} by a {type(change).__name__}; changes takes a Replacement or a LowRank"
                )
            shape = tuple(parameters[name].shape)
            if shape != change.shape:
                raise UserError(f"this erasure does not fit the model: {name} is {shape} there and {change.shape} here")

    def made_for(self, model: DiffusionModel) -> bool:
        """Whether the model's weights are those that the manifest names, if it names any."""
        return all(self.manifest[entry] == own for entry, own in self.base_hashes(model, self.manifest).items())

    def base_hashes(self, model: DiffusionModel, asked: Iterable[str] = ("base", "model")) -> dict[str, str]:
        """The ``asked`` entries of a manifest that tell which weights the erasure is for.

        ``base`` is a hash of the parameters that it changes. ``model``, which adapters and guards have, is a hash of one
        row of every weight: they depend on weights that they do not change.
        """
        found, parameters = {}, model.named_parameters()
        if "base" in asked and self.names:
            found["base"] = fingerprint({name: parameters[name].data for name in self.names})
        if "model" in asked and any(erasure.kind != "delta" for erasure in self.sequence):
            rows = {name: p.data[(0,) * (p.ndim - 1)] for name, p in parameters.items()}
            found["model"] = fingerprint(
                {name: row.clone(memory_format=torch.contiguous_format) for name, row in rows.items()}
            )
        return found

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: tensors under their diffusers names, the manifest as JSON in its header.

        A low-rank change W + up·down is stored as ``NAME:up`` and ``NAME:down``. Names of earlier erasures start with
        ``before:``.

        Raises:
            UserError: A tensor is non-finite, or the file cannot be written.
        """
        from safetensors.torch import save_file

        tensors: dict[str, torch.Tensor] = {}
        seen = set()  # safetensors refuses tensors that share memory
        for name, tensor in self._stored().items():
            _check_finite(name, tensor, f"the erasure of {self.method}")
            stored = tensor.detach().contiguous().cpu()
            memory = stored.untyped_storage().data_ptr()
            tensors[name] = stored.clone() if memory in seen else stored
            seen.add(memory)
        try:
            save_file(tensors, str(path), metadata={"overpaint": json.dumps(self._header(), sort_keys=True)})
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be written: {error}") from error

    def _header(self) -> dict[str, Any]:
        header = {"method": self.method, "kind": self.kind, "settings": self.settings, "manifest": self.manifest}
        return header | ({"before": self.before._header()} if self.before else {})


def load_erasure(path: str | Path) -> Erasure:
    """Read an erasure file written by `Erasure.save`.

    Raises:
        UserError: The file does not exist, or is not a well-formed erasure file with finite tensors.
    """
    found = path_of(path, "erasure")
    if not found.is_file():
        raise UserError(f"erasure file {path} {'is not a regular file' if found.exists() else 'does not exist'}")
    try:
        with safe_open(str(found), framework="pt") as file:
            header = json.loads((file.metadata() or {})["overpaint"])
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return _erasure(header, stored, f"erasure file {path}")
    except KeyError:
        raise UserError(f"{path} is not an overpaint erasure file (its header has no entry 'overpaint')") from None
    except RecursionError:
        raise UserError(f"{path} is not an overpaint erasure file (its header is nested too deeply)") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not an overpaint erasure file ({error})") from error


#: The header of an erasure file: its entries and their types.
HEADER = {
    "method": (str, "a text"),
    "kind": (str, "a text"),
    "settings": (dict, "an object"),
    "manifest": (dict, "an object"),
}


def _erasure(header: Any, stored: Mapping[str, torch.Tensor], where: str) -> Erasure:
    """The erasure of a file, from its header and tensors, which are checked."""
    if not isinstance(header, dict):
        raise UserError(f"{where}: its header is not a JSON object")
    for entry, (kind, said) in HEADER.items():
        if not isinstance(header.get(entry), kind):
            raise UserError(f"{where}: its header has no {entry} ({said})")
    if not header["method"].isprintable():
        raise UserError(f"{where}: its method {shown(header['method'])} is no name")
    if header["kind"] not in KINDS:
        raise unknown("kind", header["kind"], KINDS, where)
    below = {key.removeprefix("before:"): t for key, t in stored.items() if key.startswith("before:")}
    if below and "before" not in header:
        raise UserError(f"{where}: it has tensors of an earlier erasure (before:) that its header does not name")
    before = _erasure(header["before"], below, where) if "before" in header else None
    changes: dict[str, Replacement | LowRank] = {}
    parts: dict[str, torch.Tensor] = {}
    own = {key: tensor for key, tensor in stored.items() if not key.startswith("before:")}
    for key, tensor in own.items():
        _check_finite(key, tensor, where)
        name, _, side = key.rpartition(":")
        if key.startswith("part:"):
            parts[key.removeprefix("part:")] = tensor
        elif side not in ("up", "down"):
            changes[key] = Replacement(tensor)
        elif side == "up":
            changes[name] = _low_rank(name, tensor, own.get(f"{name}:down"), where)
        elif f"{name}:up" not in own:
            raise UserError(f"{where}: it has {name}:down without {name}:up")
    if parts and header["kind"] == "delta":
        raise UserError(f"{where}: a delta has no tensors of its own, and this one has part:{next(iter(parts))}")
    return Erasure(
        header["method"], header["kind"], changes, parts, header["settings"], header["manifest"], before=before
    )


def _low_rank(name: str, up: torch.Tensor, down: torch.Tensor | None, where: str) -> LowRank:
    if down is None:
        raise UserError(f"{where}: it has {name}:up without {name}:down")
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
        shapes = f"{tuple(up.shape)} and {tuple(down.shape)}"
        raise UserError(f"{where}: the factors of {name} are {shapes}, and (out, rank) and (rank, in) are needed")
    return LowRank(up, down)


def _check_finite(name: str, tensor: torch.Tensor, where: str) -> None:
    if str(tensor.dtype) not in WEIGHTS:
        raise UserError(
            f"{where}: {bare(name)} holds {str(tensor.dtype).removeprefix('torch.')} values, not numbers of a weight"
        )
    if not tensor.isfinite().all():
        raise UserError(f"{where}: {bare(name)} has non-finite values")


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of named tensors, which tells whether an erasure meets the weights that it was made for."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
