"""Components by name: every method, attack, detector … is a YAML file that names a class, from ``conf/`` or from others.

Others are folders that the user names (``hydra.searchpath``) and installed packages with an entry point of group
``overpaint.conf``. A component's class comes from this package, from such a package, or from beside such a folder.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from overpaint.errors import UserError, unknown
from overpaint.grid.labels import is_file
from overpaint.grid.shipped import shipped
from overpaint.grid.typed import construct
from overpaint.grid.yaml_files import read_mapping, refuse_resolvers

#: Settable keys that are not hyper-parameters: the preset, and what is run beside an attack.
COMPANY = ("preset", "control", "floor")
#: Keys of a component's YAML that are not hyper-parameters. All but `COMPANY` describe it and cannot be set.
DESCRIPTION = (*COMPANY, "name", "component", "summary", "paper", "status", "presets", "unrelated")


@dataclass(frozen=True)
class Component:
    """One method, attack, detector …: its YAML and the class behind it."""

    kind: str
    name: str
    config: Mapping[str, Any]

    def load(self) -> Any:
        """Import the class (or function) that the YAML's ``component: module:attribute`` names."""
        reference = self.config.get("component")
        if not isinstance(reference, str):
            raise UserError(f"{self.kind}={self.name} has no component: give component: module:Class in its YAML")
        try:
            return load_attribute(reference)
        except UserError as error:
            raise UserError(f"{self.kind}={self.name}: component {error}") from error

    @property
    def defaults(self) -> dict[str, Any]:
        """Hyper-parameters with the YAML's values."""
        return {k: v for k, v in self.config.items() if k not in DESCRIPTION}

    @property
    def presets(self) -> Mapping[str, Mapping[str, Any] | None]:
        found = self.config.get("presets") or {}
        if not isinstance(found, dict) or not all(isinstance(values, dict | None) for values in found.values()):
            raise UserError(f"{self.kind}={self.name}: presets takes a mapping of mappings, got {found!r}")
        return found

    def settle(self, values: Mapping[str, Any], preset: str | None = None) -> dict[str, Any]:
        """Hyper-parameters: the YAML's, then the preset's, then ``values``. Unknown names are refused."""
        if preset is not None and preset not in self.presets:
            raise unknown("preset", preset, self.presets, f"{self.kind}={self.name}")
        for key in values:
            if key not in self.defaults:
                raise unknown("hyper-parameter", key, self.defaults, f"{self.kind}={self.name}")
        return self.defaults | dict(self.presets.get(preset or "") or {}) | dict(values)

    def build(self, values: Mapping[str, Any] | None = None, preset: str | None = None, **fixed) -> Any:
        """An instance from the YAML's values, a preset over them, and explicit values over both."""
        return construct(self.load(), self.settle(values or {}, preset) | fixed, f"{self.kind}={self.name}")


def component(kind: str, name: str) -> Component:
    """The component of that name; an unknown name or an unusable YAML file is a `UserError`."""
    found = _files(kind)
    if name not in found:
        raise UserError(" ".join([str(unknown(kind, name, found)), *broken_packages()]))
    path, *others = found[name]
    if others:
        raise UserError(f"{kind}={name} is in {path} and in {others[0]}: rename one of them")
    config = read_mapping(path, f"{kind}={name}")
    refuse_resolvers(config, f"{kind}={name}")
    return Component(kind, name, config)


def components(kind: str) -> dict[str, Path]:
    """YAML files of a kind (a folder of ``conf/``) by name, others' included."""
    return {name: paths[0] for name, paths in _files(kind).items()}


def _files(kind: str) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for folder in dict.fromkeys(place.resolve() for place in (shipped("conf"), *conf_folders())):
        for path in sorted((folder / kind).glob("*.yaml")):
            found.setdefault(path.stem, []).append(path)
    return found


def named_in_yaml(kind: str, name: str) -> Path:
    """The file that a YAML of this kind names: relative to the working directory, else beside a user's own YAML files."""
    places = (Path(name), *(folder / kind / name for folder in conf_folders()))
    return next(filter(is_file, places), places[0])


# --- where components come from ----------------------------------------------------------------------------------

_asked: list[Path] = []  # folders that the user named


def look_in(*folders: Path) -> None:
    """Look for components in these folders too (laid out like ``conf/``), and for modules in and beside them.

    They take the place of folders that were named before.
    """
    _asked[:] = folders
    for place in (str(p) for folder in folders for p in _beside(folder)):
        if place not in sys.path:
            sys.path.append(place)


def asked_folders() -> tuple[Path, ...]:
    """The folders that the user named, for worker processes to `look_in`."""
    return tuple(_asked)


def conf_folders() -> tuple[Path, ...]:
    """Configuration folders besides ``conf/``: those of installed packages, and those that the user named."""
    return (*_asked, *(folder for folders, _ in _packages().values() for folder in folders))


def broken_packages() -> list[str]:
    """One sentence for each installed package whose configuration cannot be found."""
    return [why for _, why in _packages().values() if why]


@cache
def _packages() -> dict[str, tuple[tuple[Path, ...], str]]:
    """Modules that entry points of group ``overpaint.conf`` name -> their folders, or why they have none."""
    found = {}
    for entry in entry_points(group="overpaint.conf"):
        try:
            module = import_module(entry.value)
            found[entry.value] = tuple(Path(place) for place in module.__path__), ""
        except Exception as error:  # another package's fault must not stop this one
            why = (
                f"The entry point {entry.name} = {entry.value} of group overpaint.conf cannot be used: {_first(error)}"
            )
            found[entry.value] = (), why
    return found


def load_attribute(reference: str) -> Any:
    """The object behind ``module:attribute``.

    Raises a `UserError` for a module that is not this package's, an extending package's or one of a folder that the user
    named, and for a module that cannot be imported.
    """
    module, _, attribute = reference.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise UserError(f"{reference!r} is not of the form module:attribute")
    if not _may_import(module):
        raise UserError(
            f"{reference!r}: there is no module {module.split('.')[0]!r} in overpaint, in a package that extends it "
            "(entry point overpaint.conf) or in or beside a folder of hydra.searchpath"
        )
    try:
        loaded = import_module(module)
    except Exception as error:
        if module.startswith("overpaint.") and not isinstance(error, ImportError):  # our own fault, with its traceback
            raise
        raise UserError(f"{reference!r} cannot be imported: {_first(error)}") from error
    if not hasattr(loaded, attribute):
        raise unknown("attribute", attribute, (n for n in vars(loaded) if not n.startswith("_")), module)
    return getattr(loaded, attribute)


def _may_import(module: str) -> bool:
    """Is this a module of overpaint, of a package that extends it, or of a folder that the user named?"""
    root = module.split(".")[0]
    if root in ("overpaint", *(name.split(".")[0] for name in _packages())):
        return True
    try:
        spec = find_spec(root)
    except ValueError:  # a module that runs as a script has no spec
        return False
    if not spec or (not spec.has_location and not spec.submodule_search_locations):
        return False
    place = Path(next(iter(spec.submodule_search_locations or ()), str(spec.origin))).resolve()
    return any(place.parent in _beside(folder) for folder in _asked)


def _beside(folder: Path) -> list[Path]:
    """Where modules of a user's configuration folder can be: in it, beside it, or beside the package that it is part of."""
    package = folder.parent
    while (package / "__init__.py").is_file():
        package = package.parent
    return [folder, folder.parent, package]


def _first(error: Exception) -> str:
    """An error of somebody else's code in one line."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".removesuffix(": ")
