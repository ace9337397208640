"""Components by name. Every method, attack, detector … is a YAML file that names a class.

The YAML files are in ``conf/``, in folders that the user names (``hydra.searchpath``) and in installed packages with an entry
point of group ``overpaint.conf``. The class is in this package, in such a package, or in or beside such a folder.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from overpaint.errors import UserError, nearest, unknown
from overpaint.grid.concepts import OF_CONCEPTS
from overpaint.grid.digests import is_file
from overpaint.grid.paths import path_of
from overpaint.grid.read_once import forget, remembered
from overpaint.grid.shipped import shipped
from overpaint.grid.source_code import source_of
from overpaint.grid.typed import construct, shown
from overpaint.grid.yaml_files import read_mapping, refuse_resolvers

#: Keys that control where and how a grid runs; they do not affect its cells.
CIRCUMSTANCES = ("store", "engine", "tracker", "track", "images_per_second")
#: Settable keys that are not hyper-parameters: the preset, and the comparisons that are run with an attack.
EXTRA_KEYS = ("preset", "control", "floor")
#: Keys of a component's YAML that are not hyper-parameters. All except `EXTRA_KEYS` describe the component and cannot be set.
DESCRIPTION = (
    *EXTRA_KEYS, "name", "component", "summary", "paper", "status", "presets", "unrelated", "recommended_threshold", "probe"
)  # fmt: skip
#: Values of a component's ``status``.
STATUS = ("verified", "experimental", "paper only", "defined here")
#: The base class of the components of a group.
BASES = {
    "method": "overpaint.methods.eraser:Eraser",
    "attack": "overpaint.attacks.attack:Attack",
    "detector": "overpaint.detectors.detector:Detector",
    "extractor": "overpaint.extractors.extractor:Extractor",
    "pictures": "overpaint.blocks.pictures:Pictures",
    "track": "overpaint.run.track:Track",
}
#: Names of presets for a kind of concept, or for one unsafe concept.
_OF_KIND = re.compile(rf"({OF_CONCEPTS})(_\d+)?")


@dataclass(frozen=True)
class Component:
    """One method, attack, detector …: its YAML and its class."""

    kind: str
    name: str
    config: Mapping[str, Any]

    def load(self) -> Any:
        """Import the class that the YAML's ``component: module:Class`` names.

        Raises:
            UserError: there is no such class, or it is that of another group.
        """
        reference = self.config.get("component")
        if not isinstance(reference, str):
            raise UserError(f"{self.kind}={self.name} has no component: give component: module:Class in its YAML")
        try:
            loaded = load_attribute(reference)
        except UserError as error:
            raise UserError(f"{self.kind}={self.name}: component {error}") from error
        base = BASES.get(self.kind)
        if base and not (isinstance(loaded, type) and issubclass(loaded, load_attribute(base))):
            raise UserError(f"{self.kind}={self.name}: {reference} is not a subclass of {base.replace(':', '.')}")
        return loaded

    @property
    def source(self) -> dict[str, str]:
        """``{"method=mine": source}`` of the class's code, for `Task.sources`; empty if its source is not followed."""
        source = source_of(str(self.config.get("component")))
        return {f"{self.kind}={self.name}": source} if source else {}

    @property
    def defaults(self) -> dict[str, Any]:
        """The hyper-parameters with their values in the YAML."""
        return {k: v for k, v in self.config.items() if k not in DESCRIPTION}

    @cached_property
    def presets(self) -> Mapping[str, Mapping[str, Any] | None]:
        """The hyper-parameters that each preset sets, by name.

        A method also has the preset ``paper``, which selects the official code (``compat=official``, if the method has that
        key), and for each preset of a kind of concept a preset like ``paper_style``, with the values of ``style`` in addition.

        Raises:
            UserError: if the YAML has something else there.
        """
        found = self.config.get("presets") or {}
        if not isinstance(found, dict) or not all(isinstance(values, dict | None) for values in found.values()):
            raise UserError(
                f"{self.kind}={self.name}: presets takes a mapping of names to mappings, got {shown(found)}"
            )
        if self.kind != "method":
            return found
        official = {"compat": "official"} if "compat" in self.defaults else {}
        of_kinds = {f"paper_{name}": (found[name] or {}) | official for name in found if _OF_KIND.fullmatch(str(name))}
        return {"paper": official, **of_kinds, **found}

    def settle(self, values: Mapping[str, Any], preset: str | None = None) -> dict[str, Any]:
        """The hyper-parameters: ``values`` override the preset, which overrides the YAML.

        Raises:
            UserError: for an unknown preset or hyper-parameter.
        """
        if preset is not None and preset not in self.presets:
            raise unknown("preset", preset, self.presets, f"{self.kind}={self.name}")
        for key in values:
            if key not in self.defaults:
                raise unknown("hyper-parameter", key, self.defaults, f"{self.kind}={self.name}")
        return self.defaults | dict(self.presets.get(preset or "") or {}) | dict(values)

    def told(self, classes: Mapping[str, str] | None) -> dict[str, Any]:
        """The setting that tells a detector what to look for, a sentence by label; empty unless it has ``classes: null``."""
        return {"classes": dict(classes)} if classes and self.defaults.get("classes", "") is None else {}

    def build(self, values: Mapping[str, Any] | None = None, preset: str | None = None, **fixed) -> Any:
        """An instance with the hyper-parameters of `settle`, and the ``fixed`` arguments in addition."""
        return construct(self.load(), self.settle(values or {}, preset) | fixed, f"{self.kind}={self.name}")


@remembered
def component(kind: str, name: str) -> Component:
    """The component of that name. Raises a `UserError` for an unknown name or an unusable YAML file."""
    path = file_of(kind, name)
    config = read_mapping(path, f"{kind}={name}")
    refuse_resolvers(config, f"{kind}={name}")
    status = config.get("status")
    if "component" in config and status is not None and status not in STATUS:
        raise unknown("status", str(status), STATUS, f"{kind}={name}")
    return Component(kind, name, config)


def file_of(kind: str, name: str) -> Path:
    """The YAML file of that name. Raises a `UserError` for an unknown name, and for a name that two files have."""
    found = _files(kind)
    if name not in found:
        raise unknown_component(kind, name)
    path, *others = found[name]
    if others:
        raise UserError(f"{kind}={name} is in {path} and in {others[0]}: rename one of them")
    return path


def unknown_component(kind: str, name: str) -> UserError:
    """The error for a name that no YAML file of a kind has. It tells how a component of the user's own is found."""
    found = _files(kind)
    own = () if _asked or nearest(name, found) else ("if it is your own, add 'hydra.searchpath=[file://DIR]'",)
    return UserError("; ".join([str(unknown(kind, name, found)), *own, *broken_packages()]))


def components(kind: str) -> dict[str, Path]:
    """YAML files of a kind (a folder of ``conf/``) by name, including those of the user and of other packages."""
    return {name: paths[0] for name, paths in _files(kind).items()}


@remembered
def _files(kind: str) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for folder in dict.fromkeys(place.resolve() for place in (shipped("conf"), *conf_folders())):
        for path in sorted((folder / kind).glob("*.yaml")):
            found.setdefault(path.stem, []).append(path)
    return found


def named_in_yaml(kind: str, name: str) -> Path:
    """The file that a YAML of this kind names, relative to the working directory, to a user's YAML files, or to the data of
    this package (``testbed/captions.csv``)."""
    places = (Path(name), *(folder / kind / name for folder in conf_folders()), shipped("datasets") / name)
    return next(filter(is_file, places), places[0])


_asked: list[Path] = []  # folders of hydra.searchpath


def search(overrides: Sequence[str]) -> list[str]:
    """Search the folders of ``hydra.searchpath=[file:///folder,…]`` for components; return the other overrides."""
    asked = [o for o in overrides if o.partition("=")[0].lstrip("+") == "hydra.searchpath"]
    places = [place for override in asked for place in _values(override)]
    for place in places:
        if place is None or isinstance(place, bool | list | dict):
            raise UserError(f"hydra.searchpath takes a list of folders, got {shown(place)}")
    folders = [path_of(str(place).removeprefix("file://"), "hydra.searchpath") for place in places]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"hydra.searchpath: {folder} is not a folder")
    look_in(*(folder.resolve() for folder in folders))
    return [o for o in overrides if o not in asked]


def _values(override: str) -> Sequence[Any]:
    """The values of an override, or the elements of a single list."""
    from overpaint.grid.overrides import read_override

    values = read_override(override).values
    return values[0] if isinstance(values[0], list) else values


def look_in(*folders: Path) -> None:
    """Search these folders, laid out like ``conf/``, for components as well, and for modules in and beside them.

    They replace the folders of an earlier call.
    """
    _asked[:] = folders
    forget()
    for place in (str(p) for folder in folders for p in _beside(folder)):
        if place not in sys.path:
            sys.path.append(place)


def asked_folders() -> tuple[Path, ...]:
    """The folders that the user named. Worker processes pass them to `look_in`."""
    return tuple(_asked)


def conf_folders() -> tuple[Path, ...]:
    """Configuration folders besides ``conf/``: those of installed packages and those that the user named."""
    return (*_asked, *(folder for folders, _ in _packages().values() for folder in folders))


def broken_packages() -> list[str]:
    """What is wrong with each installed package whose configuration cannot be found."""
    return [why for _, why in _packages().values() if why]


@cache
def _packages() -> dict[str, tuple[tuple[Path, ...], str]]:
    """Modules named by entry points of group ``overpaint.conf`` -> their folders, and a sentence if there are none."""
    found = {}
    for entry in entry_points(group="overpaint.conf"):
        try:
            module = import_module(entry.value)
            found[entry.value] = tuple(Path(place) for place in module.__path__), ""
        except Exception as error:  # an error in another package must not stop this one
            why = (
                f"the entry point {entry.name} = {entry.value} of group overpaint.conf cannot be used: {_first(error)}"
            )
            found[entry.value] = (), why
    return found


def load_attribute(reference: str) -> Any:
    """The object behind ``module:attribute``.

    Raises:
        UserError: if the module cannot be imported, or if it belongs neither to this package, nor to a package that extends
            it, nor to a folder that the user named.
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
        if module.startswith("overpaint.") and not isinstance(error, ImportError):  # our own error: show the traceback
            raise
        raise UserError(f"{reference!r} cannot be imported: {_first(error)}") from error
    if not hasattr(loaded, attribute):
        names = (name for name in vars(loaded) if not name.startswith("_"))
        raise UserError(f"{reference!r}: {unknown('attribute', attribute, names, module)}")
    return getattr(loaded, attribute)


def _may_import(module: str) -> bool:
    """Whether this is a module of overpaint, of a package that extends it, or of a folder that the user named."""
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
    """Folders searched for the modules of a configuration folder: itself, its parent, and the parent of its package."""
    package = folder.parent
    while (package / "__init__.py").is_file():
        package = package.parent
    return [folder, folder.parent, package]


def _first(error: Exception) -> str:
    """An exception as one line: its type and the first line of its message."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".removesuffix(": ")
