"""Components by name: every method and attack is a YAML that points at a class, found in ``conf/`` or by entry point."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from overpaint.errors import UserError, unknown
from overpaint.grid.shipped import shipped

#: Keys of a component's YAML that are set but change nothing of what it does: which preset, and what stands beside an attack.
COMPANY = ("preset", "control", "floor")
#: Keys of a component's YAML that are none of its hyper-parameters; all but `COMPANY` describe it and cannot be set.
DESCRIPTION = (*COMPANY, "name", "component", "summary", "paper", "status", "presets", "unrelated")


@dataclass(frozen=True)
class Component:
    """One method or attack: its YAML and the class behind it."""

    kind: str
    name: str
    config: Mapping[str, Any]

    def load(self) -> type:
        """Import the class (or function) that the YAML's ``component: module:attribute`` names."""
        try:
            return load_attribute(self.config["component"])
        except UserError as error:
            raise UserError(f"{self.kind}={self.name}: component {error}") from error

    @property
    def defaults(self) -> dict[str, Any]:
        return {k: v for k, v in self.config.items() if k not in DESCRIPTION}

    def build(self, values: Mapping[str, Any] | None = None, preset: str | None = None, **fixed) -> Any:
        """An instance from the YAML's defaults, a preset over them, and explicit values over both."""
        return construct(self.load(), self.settle(values or {}, preset) | fixed, f"{self.kind}={self.name}")

    def settle(self, values: Mapping[str, Any], preset: str | None = None) -> dict[str, Any]:
        """Hyper-parameters: defaults, then the preset, then ``values``; unknown names are refused."""
        presets = self.config.get("presets") or {}
        if preset and preset not in presets:
            raise unknown("preset", preset, presets, f"{self.kind}={self.name}")
        for key in values:
            if key not in self.defaults:
                raise unknown("hyper-parameter", key, self.defaults, f"{self.kind}={self.name}")
        return self.defaults | dict(presets.get(preset) or {}) | dict(values)


def load_attribute(reference: str) -> Any:
    """The object behind ``module:attribute``."""
    module, _, attribute = reference.partition(":")
    try:
        loaded = import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):  # a module of its own lacks something
            raise
        raise UserError(f"{reference!r} is no module:attribute that can be imported: {error}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{reference!r} is no module:attribute that can be imported") from error
    if not hasattr(loaded, attribute):
        raise unknown("attribute", attribute, (n for n in vars(loaded) if not n.startswith("_")), module)
    return getattr(loaded, attribute)


_asked: list[Path] = []  # folders that this process was told to look in


def look_in(folder: Path) -> None:
    """Look for components in a user's own configuration folder too (a layout like ``conf/``)."""
    if folder not in _asked:
        _asked.append(folder)


def components(kind: str) -> dict[str, Path]:
    """YAML files of a kind (a folder of ``conf/``) by name, third parties' included."""
    folders = [shipped("conf"), *conf_folders()]
    return {path.stem: path for folder in folders for path in sorted((folder / kind).glob("*.yaml"))}


def conf_folders() -> tuple[Path, ...]:
    """Configuration folders besides ``conf/``: those asked for, and those that installed packages offer."""
    return (*_asked, *_installed_folders())


def named_in_yaml(kind: str, name: str) -> Path:
    """The file that a YAML of this kind names: relative to the working directory, else beside a user's own YAML files."""
    places = (Path(name).expanduser(), *(folder / kind / name for folder in conf_folders()))
    return next((place for place in places if place.is_file()), places[0])


@cache
def _installed_folders() -> tuple[Path, ...]:
    """Folders of packages named by entry points of group ``overpaint.conf``."""
    modules = [import_module(entry.value) for entry in entry_points(group="overpaint.conf")]
    return tuple(Path(place) for module in modules for place in module.__path__)


def component(kind: str, name: str) -> Component:
    known = components(kind)
    if name not in known:
        raise unknown(kind, name, known)
    config = yaml.load(known[name].read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return Component(kind, name, config)


def construct(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """``cls(**values)`` with every value checked against the dataclass field it fills."""
    return created(cls, checked(cls, values, where), where)


def created(cls: type, settled: Mapping[str, Any], where: str) -> Any:
    """``cls(**settled)`` of checked values; what the class itself refuses says where."""
    try:
        return cls(**settled)
    except UserError as error:
        raise (error if where in str(error) else UserError(f"{where}: {error}")) from None


def checked(cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values that fill the fields of a dataclass, each as its field has it: 10 for a float is 10.0."""
    hints = get_type_hints(cls)
    names = {f.name for f in fields(cls) if f.init}
    for key, value in values.items():
        if key not in names:
            raise unknown("hyper-parameter", key, names, where)
        check_type(value, hints[key], f"{where}: {key}")
    missing = [f.name for f in fields(cls) if f.name not in values and _required(f)]
    if missing:
        raise UserError(f"{where}: no value for {', '.join(missing)}")
    return {key: _as_field(value, hints[key]) for key, value in values.items()}


def _as_field(value: Any, hint: Any) -> Any:
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and float in options and int not in options else value


def _required(f) -> bool:
    from dataclasses import MISSING

    return f.init and f.default is MISSING and f.default_factory is MISSING


def check_type(value: Any, hint: Any, where: str) -> None:
    """Raise a `UserError` naming the key, the value and what is allowed, unless ``value`` fits ``hint``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise unknown("value", str(value), map(str, arguments), where)
        return
    if not _fits(value, hint):
        options = arguments if origin in (Union, UnionType) else (hint,)
        raise UserError(f"{where} takes {' or '.join(map(_said, options))}, got {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return True
    if kind in (Union, UnionType):
        return any(_fits(value, option) for option in parts)
    if kind is Literal:
        return value in parts
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (list, tuple):
        return isinstance(value, list | tuple) and all(_fits(v, parts[0]) for v in value if parts)
    if kind is dict and parts:
        return isinstance(value, dict) and all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items())
    return isinstance(value, kind) if isinstance(kind, type) else True


def _said(hint: Any) -> str:
    """A type as an error message names it."""
    if hint is float:
        return "a finite number"
    return "null" if hint is NoneType else str(hint) if get_args(hint) else getattr(hint, "__name__", str(hint))
