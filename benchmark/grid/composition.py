"""From a command line to the cells of a grid.

Hydra parses the overrides, the defaults lists and the experiment. Each option of a group is read once. The cells are the
product of the axes, built as plain dicts.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from overpaint.errors import UserError, unknown
from overpaint.grid.overrides import MOST_CELLS, Setting, read_override
from overpaint.grid.registry import (
    CIRCUMSTANCES,
    DESCRIPTION,
    EXTRA_KEYS,
    components,
    conf_folders,
    file_of,
    search,
    unknown_component,
)
from overpaint.grid.shipped import shipped
from overpaint.grid.typed import bare, given_twice, shown
from overpaint.grid.yaml_files import read_mapping, refuse_resolvers

#: Groups whose options have different keys. Their keys can be addressed to one option: ``uce.lamb=0.1``.
ADDRESSED = ("method", "attack")
#: Maximum number of references (``${key}``) in one configuration.
MOST_REFERENCES = 20
#: Keys that describe an option and cannot be set.
NOT_SETTABLE = {*DESCRIPTION} - {*EXTRA_KEYS}
#: The value of a deleted key.
DELETED = object()


@dataclass(frozen=True)
class Composed:
    """The configuration of one cell, and its keys that were set by hand (``method.lamb``)."""

    config: dict[str, Any]
    explicit: frozenset[str]


@dataclass(frozen=True)
class Point:
    """One value of an axis: the options that it selects, by group, and the keys that it sets."""

    options: Mapping[str, str]
    values: tuple[tuple[str, Any], ...] = ()

    @cached_property
    def keys(self) -> frozenset[str]:
        """The keys that it sets."""
        return frozenset(key for key, _ in self.values)

    @cached_property
    def groups(self) -> frozenset[str]:
        """The groups that it sets keys of."""
        return frozenset(key.partition(".")[0] for key in self.keys)


def compose_cells(overrides: Sequence[str], own_keys: Collection[str] = ()) -> list[Composed]:
    """All cells of the grid that the overrides define. Overrides replace the axes of an experiment. ``own_keys`` are those of the
    command, which the error for an unknown key lists as well.

    Raises:
        UserError: for an override, option or YAML file that cannot be used, or a grid with too many cells.
    """
    settings = [read_override(o) for o in search(overrides)]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
            return list(Composition(settings, own_keys).cells())
    except (HydraException, OmegaConfBaseException) as error:
        text = " ".join(str(error).split()).partition(" Config search path:")[0] or bare(str(error.__cause__))
        raise UserError(f"the configuration cannot be composed: {text}") from error


class Composition:
    """The axes that the settings define, and the cells of their product."""

    def __init__(self, settings: Sequence[Setting], own_keys: Collection[str] = ()):
        self._own_keys = own_keys
        self.read: dict[tuple[str, str], dict[str, Any]] = {}
        self._parts: dict[tuple, tuple[dict[str, Any], bool]] = {}
        self._explicit: dict[tuple[frozenset[str], ...], frozenset[str]] = {}
        self.searchpath = [f"hydra.searchpath=[{','.join(map(_file, conf_folders()))}]"] if conf_folders() else []
        self.plain, self.default, _ = self._composed([])
        self.top = {key: value for key, value in self.plain.items() if key not in self.default}
        asked = [s for s in settings if s.key == "experiment"]
        refuse_repeated([s for s in settings if s not in asked])
        refuse_contradictory(settings)
        if asked:
            settings = [*self._experiment(asked, settings), *(s for s in settings if s not in asked)]
        self.axes = self._axes(settings)

    def _composed(self, choices: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Compose ``config.yaml`` with these options. Returns the configuration, the option of every group, and the axes of
        an experiment (``hydra.sweeper.params``)."""
        if self.searchpath:  # a user's files can change
            try:
                config = _container(compose("config", [*choices, *self.searchpath], return_hydra_config=True))
            except ValueError as error:  # Hydra raises it for a malformed defaults list
                raise HydraException(str(error)) from error
        else:
            config = copy.deepcopy(_shipped(tuple(choices)))
        hydra = config.pop("hydra")
        options = {group: name for group, name in hydra["runtime"]["choices"].items() if "/" not in group}
        return config, options, hydra["sweeper"].get("params") or {}

    def _experiment(self, asked: Sequence[Setting], settings: Sequence[Setting]) -> list[Setting]:
        """The axes and keys that an experiment sets, except those set by hand. Its options become the defaults."""
        names = [_option(setting, value) for setting in asked for value in setting.values]
        if len(names) > 1:
            raise UserError(f"{asked[-1].typed}: an experiment is a grid of its own; run one after the other")
        (name,) = names
        _checked_file(file_of("experiment", name), f"experiment={name}")
        config, self.default, axes = self._composed([f"experiment={name}"])
        if config.get("experiment"):
            raise UserError(
                f"experiment={name}: {components('experiment')[name]} sets keys of itself only; "
                "begin the file with the line # @package _global_"
            )
        keys: dict[str, Any] = {}
        for key, value in config.items():
            if key in self.top:
                self.top[key] = value
            else:
                option = self.default.get(key)
                keys |= _differences(value, self.option(key, option) if option else {}, key)
        by_hand = {s.key for s in settings}
        found = [read_override(f"{key}={value}") for key, value in axes.items()]
        # A group that is chosen by hand is as its file is: budget=smoke takes nothing from the experiment's budget.
        keys = {key: value for key, value in keys.items() if key.split(".")[0] not in by_hand}
        found += [Setting(f"{key} of experiment={name}", key, (value,)) for key, value in keys.items()]
        found = [s for s in found if not (s.key == "concepts.erase" and "concepts" in by_hand)]
        for_all = {_in_group(s) for s in settings if s.group in ADDRESSED}
        found = [s for s in found if s.key not in by_hand and _in_group(s) not in for_all]
        return [s for s in found if not self._of_another(s, settings)]

    def _of_another(self, setting: Setting, by_hand: Sequence[Setting]) -> bool:
        """Whether an experiment's setting addresses a component (``esd.compat``) that was replaced by hand (``method=uce``)."""
        chosen = {s.key: s.values for s in by_hand if s.key in ADDRESSED}
        owner = next((kind for kind in ADDRESSED if setting.group in components(kind)), None)
        return owner in chosen and setting.group not in self.default and setting.group not in chosen[owner]

    def _axes(self, settings: Sequence[Setting]) -> list[list[Point]]:
        """The points of each axis, in the order in which the axes first appear."""
        for s in settings:
            if s.key in self.default and s.how == "delete":
                raise UserError(f"{s.typed}: {s.key} cannot be removed; choose another with {s.key}=…")
        options = {s.key: [_option(s, value) for value in s.values] for s in settings if s.key in self.default}
        names = {group: options.get(group) or [self.default[group]] for group in ADDRESSED}
        axes: dict[str, list[Point]] = {}
        for setting in settings:
            if setting.key in self.default:
                axes[setting.key] = [Point({setting.key: name}) for name in options[setting.key]]
        for setting in settings:
            owner = next((group for group in ADDRESSED if setting.group in names[group] and setting.inner), None)
            if setting.key in self.default:
                continue
            if owner or setting.group in self.default:
                _refuse_description(setting, owner or setting.group)
            if setting.inner == "seed" and (owner or setting.group in ADDRESSED):
                value = setting.typed.partition("=")[2]
                raise UserError(f"{setting.typed}: methods and attacks share one seed; use seed={value}")
            if owner and setting.group not in self.default:
                points = axes.get(owner) or [Point({owner: name}) for name in names[owner]]
                axes[owner] = list(_addressed(points, owner, setting))
            else:
                self._check(setting, names)
                axes[setting.key] = [Point({}, ((setting.key, value),)) for value in _listed(setting)]
        order = [next((g for g in ADDRESSED if s.group in names[g] and s.key not in axes), s.key) for s in settings]
        return [axes[key] for key in dict.fromkeys(order)]

    def _check(self, setting: Setting, names: Mapping[str, Sequence[str]]) -> None:
        """Raise a `UserError` for an unknown key, and for a key that could belong to several components."""
        group, inner = setting.group, setting.inner
        if group in ADDRESSED and inner and inner.split(".")[0] not in EXTRA_KEYS and len(set(names[group])) > 1:
            own = {name: self.option(group, name) for name in dict.fromkeys(names[group])}
            having = [name for name, keys in own.items() if inner.split(".")[0] in keys]
            if not having:
                known = {key for keys in own.values() for key in keys if key not in DESCRIPTION}
                raise unknown("hyper-parameter", inner, known, f"{group}={','.join(own)}")
            value = setting.typed.partition("=")[2]
            better = " or ".join(f"{name}.{inner}={value}" for name in having)
            raise UserError(
                f"{setting.typed}: this grid has several {group}s ({', '.join(own)}); name the one you mean: {better}"
            )
        if setting.key == "model.protocol":
            raise UserError(f"{setting.typed}: set protocol=… instead, which overrides the model's own")
        if (group in self.default and inner) or setting.key in self.top:
            return
        for kind in ADDRESSED:
            if inner and group in components(kind):
                raise UserError(
                    f"{setting.typed}: this grid does not run {group} (its {kind}s: {', '.join(names[kind])})"
                )
        addressed = (name for kind in ADDRESSED for name in names[kind] if inner)
        allowed = {*self.default, *self.top, *self._own_keys, *addressed} - {"none"}
        raise unknown("key", group, allowed, "the configuration")

    def cells(self) -> Iterator[Composed]:
        """All cells: the product of the axes. Cells with the same settings of a group share the group's mapping."""
        count = math.prod(map(len, self.axes))
        if count > MOST_CELLS:
            raise UserError(f"this grid has {count} cells; one run takes at most {MOST_CELLS}, so split it")
        for points in itertools.product(*self.axes):
            yield self._cell(points)

    def _cell(self, points: Sequence[Point]) -> Composed:
        options = dict(self.default)
        for point in points:
            options |= point.options
        if options["protocol"] is None:
            options["protocol"] = self.option("model", options["model"]).get("protocol", "ddim50")
        config = {
            key: copy.deepcopy(value) if isinstance(value, dict | list) else value for key, value in self.top.items()
        }
        for key, value in (pair for point in points for pair in point.values):
            if key.partition(".")[0] not in options:
                _assign(config, key, value)
        _refuse_missing(config, "")
        refers = "${" in repr(config)
        for group, name in options.items():
            if name is not None and group != "experiment":
                config[group], refers_too = self._part(group, name, [p for p in points if group in p.groups])
                refers = refers or refers_too
        keys = tuple(point.keys for point in points)
        if keys not in self._explicit:
            self._explicit[keys] = frozenset().union(*keys)
        return Composed(_resolved(copy.deepcopy(config)) if refers else config, self._explicit[keys])

    def _part(self, group: str, name: str, points: Sequence[Point]) -> tuple[dict[str, Any], bool]:
        """The keys of a group after the points that set some of them, and whether a value refers to another key."""
        known = (group, name, *map(id, points))  # points live as long as the axes
        if known not in self._parts:
            node = copy.deepcopy(self.option(group, name))
            if group == "concepts":
                _name(node, name, points)
            specific_last = sorted(points, key=lambda point: bool(point.options))  # uce.lamb=… beats method.lamb=…
            for key, value in (pair for point in specific_last for pair in point.values):
                if key.partition(".")[0] == group:
                    _assign({group: node}, key, value)
            _refuse_missing(node, group)
            self._parts[known] = node, "${" in repr(node)
        return self._parts[known]

    def option(self, group: str, name: str) -> dict[str, Any]:
        """The keys of one option of a group, such as ``concepts=church``."""
        if (group, name) not in self.read:
            self.read[group, name] = self._read(group, name, file_of(group, str(name)))
        return self.read[group, name]

    def _read(self, group: str, name: str, path: Path) -> dict[str, Any]:
        what = f"{group}={name}"
        node = _checked_file(path, what)
        package = re.search(r"^\s*#\s*@package\s+(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        if "defaults" in node or package:
            found, _, _ = self._composed([f'{group}="{name}"'])
            others = [other for other in found if found[other] != self.plain.get(other, DELETED)]
            if package and package[1] == "_global_":  # also keys that an option of a later group replaces
                others += [other for other in node if other != "defaults"]
            for other in others:
                if other != group:
                    raise UserError(f"{what}: {path} sets {other}; it may set keys of {group} only")
            node = found.get(group) or {}
        return node if group == "concepts" else node | {"name": name}  # concepts can be named after themselves


def _refuse_description(setting: Setting, group: str) -> None:
    """Raise a `UserError` if a setting changes what describes an option of a group, such as its name."""
    inner = setting.inner
    if inner in NOT_SETTABLE and setting.key != "concepts.name":
        raise UserError(f"{setting.typed}: {inner} describes the {group} and cannot be set; choose another, {group}=…")


def refuse_repeated(settings: Sequence[Setting]) -> None:
    """Raise a `UserError` if two settings have the same key, or if one sets for all components what another sets for one."""
    for n, later in enumerate(settings):
        for earlier in settings[:n]:
            if later.key == earlier.key:
                values = [s.typed.partition("=")[2] for s in (earlier, later)]
                raise given_twice(later.key, *(() if later.group in CIRCUMSTANCES else values))
            if _in_group(later) == _in_group(earlier) and {later.group, earlier.group} & {*ADDRESSED}:
                raise UserError(f"{earlier.typed} and {later.typed} set the same value: leave out one of them")


def refuse_contradictory(settings: Sequence[Setting]) -> None:
    """Raise a `UserError` if one setting leaves another without effect in every cell. An experiment's YAML may have both."""
    given = {s.key: s for s in settings if s.how != "delete"}
    merge, sequential = given.get("concepts.merge"), given.get("concepts.sequential")
    if merge and sequential and None not in merge.values and sequential.values == (True,):
        raise UserError(
            f"{merge.typed} and {sequential.typed} exclude each other: a merge joins erasures that are made on the unedited "
            "model; leave out one of them"
        )
    detector, threshold = given.get("model.detector"), given.get("metrics.threshold")
    if detector and threshold and detector.values == (None,) and threshold.values != (None,):
        raise UserError(
            f"{threshold.typed} has no effect with {detector.typed}: there are no scores; leave out one of them"
        )


def _in_group(setting: Setting) -> tuple[str, str]:
    """The group that a setting belongs to, also if it addresses a component (``uce.lamb``), and the key in it."""
    owner = next((kind for kind in ADDRESSED if setting.inner and setting.group in components(kind)), setting.group)
    return owner, setting.inner


def _name(concepts: dict[str, Any], option: str, points: Sequence[Point]) -> None:
    """Name an unnamed concept set after its file, unless the concepts to erase are set by hand."""
    by_hand = any(key == "concepts.erase" for point in points for key, _ in point.values)
    shipped_set = components("concepts")[option].is_relative_to(shipped("conf").resolve())
    if concepts.get("name") is None and not (shipped_set and (by_hand or option == "inline")):
        concepts["name"] = option


def _option(setting: Setting, value: Any) -> str:
    """The option that an override selects. Raises a `UserError` for a list in brackets, a mapping or null."""
    if isinstance(value, list):
        raise UserError(f"{setting.typed}: {setting.key} takes one name; to sweep several, leave out the brackets")
    typed = map(str.strip, setting.typed.partition("=")[2].split(","))
    unquoted = [name for name in typed if name in components(setting.key) and name not in setting.values]
    if not isinstance(value, str) and unquoted:
        quoted = shlex.quote(f'{setting.key}="{unquoted[0]}"')
        raise UserError(
            f"{setting.typed}: {unquoted[0]} is a number, a truth value or null in Hydra's grammar; quote it: {quoted}"
        )
    if not isinstance(value, str) or value not in components(setting.key):
        raise unknown_component(setting.key, value if isinstance(value, str) else shown(value))
    return value


def _addressed(points: Sequence[Point], owner: str, setting: Setting) -> Iterator[Point]:
    """The points of an axis of components. A point that the setting addresses is repeated once per value."""
    for point in points:
        if point.options[owner] != setting.group:
            yield point
            continue
        for value in _listed(setting):
            yield replace(point, values=(*point.values, (f"{owner}.{setting.inner}", value)))


def _listed(setting: Setting) -> Sequence[Any]:
    """The values of a setting; `DELETED` for a deletion."""
    if setting.how != "delete":
        return setting.values
    if not setting.key.startswith("metrics.metrics."):
        raise UserError(f"{setting.typed}: only figures (metrics.metrics.…) can be left out")
    return [DELETED]


def _assign(config: dict[str, Any], key: str, value: Any) -> None:
    """Set ``a.b.c`` in nested mappings. A key must exist, except for metrics, sbatch options and `EXTRA_KEYS`, checked later."""
    *place, last = key.split(".")
    node: Any = config
    for depth, name in enumerate(place, start=1):
        node = node.get(name) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise UserError(f"{key}: there is no mapping {'.'.join(place[:depth])} to set {last} in")
    where = ".".join(place)
    in_list = where.startswith("concepts.prompts.")  # its keys are checked with the list
    named = where in ("metrics.metrics", "engine.sbatch") and value is not DELETED
    new = named or (where in ADDRESSED and last in EXTRA_KEYS) or in_list
    if last not in node and not new:
        what = "hyper-parameter" if where in ADDRESSED else "key"
        inside = f"{where}={node['name']}" if where in config and node.get("name") else where
        raise unknown(what, last, (k for k in node if k not in DESCRIPTION or k in EXTRA_KEYS), inside)
    if value is DELETED:
        del node[last]
    elif isinstance(value, dict) and isinstance(node.get(last), dict) and where not in (*ADDRESSED, "concepts.prompts"):
        for name, inside in value.items():
            _assign(config, f"{key}.{name}", inside)
    else:
        node[last] = copy.deepcopy(value)


def _differences(node: Any, own: Any, key: str) -> dict[str, Any]:
    """The keys of a node whose values differ from those in the option's own file."""
    if isinstance(node, dict) and isinstance(own, dict):
        found: dict[str, Any] = {}
        for name, value in node.items():
            found |= _differences(value, own.get(name, DELETED), f"{key}.{name}")
        return found
    return {} if node == own else {key: node}


def _checked_file(path: Path, what: str, before: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in an option's file. Files of the same group in its defaults list are checked as well."""
    found = read_mapping(path, what)
    refuse_resolvers(found, what)
    defaults = found.get("defaults", [])
    if not isinstance(defaults, list) or not all(isinstance(entry, str | dict) for entry in defaults):
        raise UserError(f"{what}: {path}: defaults takes a list of options, got {shown(defaults)}")
    for entry in (e for e in defaults if isinstance(e, str) and re.fullmatch(r"[\w.-]+", e)):
        sibling = path.with_name(f"{entry}.yaml")
        if sibling in (path, *before):
            raise UserError(f"{what}: {path}: defaults leads back to {entry}")
        if sibling.is_file():
            _checked_file(sibling, f"{what} ({entry})", (path, *before))
    return found


def _resolved(cell: dict[str, Any]) -> dict[str, Any]:
    """The cell with references (``${seed}``) resolved."""
    if repr(cell).count("${") > MOST_REFERENCES:
        raise UserError(f"a configuration takes at most {MOST_REFERENCES} references (${{key}})")
    refuse_resolvers(cell, "")
    try:
        return _container(OmegaConf.create(cell), resolve=True)
    except InterpolationKeyError as error:
        name = re.search(r"'(.*)'", str(error))
        raise UserError(
            f"{error.full_key} refers to {name[1] if name else 'a key'}, which is no key of the configuration; a method's keys "
            "are method.KEY and an attack's attack.KEY"
        ) from None
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key} cannot be read: {str(error).splitlines()[0].lower()}") from None


@cache
def _shipped(choices: tuple[str, ...]) -> dict[str, Any]:
    return _container(compose("config", list(choices), return_hydra_config=True))


def _container(config: Any, resolve: bool = False) -> dict[str, Any]:
    """A configuration as plain mappings and lists."""
    found = OmegaConf.to_container(config, resolve=resolve)
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def _refuse_missing(value: Any, key: str) -> None:
    """Raise a `UserError` that names the key of a missing value (``???``)."""
    if value == "???":
        raise UserError(f"{key} has no value: give it on the command line, {key}=…")
    if isinstance(value, dict):
        for name, inside in value.items():
            _refuse_missing(inside, f"{key}.{name}" if key else name)


def _file(folder: Path) -> str:
    """A folder in the notation of Hydra's search path."""
    escaped = str(folder).replace('"', '\\"')
    return f'"file://{escaped}"'
