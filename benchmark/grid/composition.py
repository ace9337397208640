"""From a command line to the cells of a grid: Hydra composes each axis value once, the cells are crossed as plain dicts."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from overpaint.errors import UserError, unknown
from overpaint.grid.registry import components, conf_folders, look_in
from overpaint.grid.shipped import shipped

#: Groups whose keys a preset may set, so that keys given on the command line must be known to win over it.
PRESET_GROUPS = ("method", "attack")
#: Keys that say where and how a grid runs, not what it is.
CIRCUMSTANCES = ("store", "engine", "tracker", "track")


@dataclass(frozen=True)
class Composed:
    """One cell's configuration and the keys of it that were given explicitly (``method.lamb``)."""

    config: dict[str, Any]
    explicit: frozenset[str]


def compose_cells(overrides: Sequence[str]) -> list[Composed]:
    """Every cell of the grid that the overrides span; an experiment brings axes of its own, which overrides replace."""
    options = [o for o in overrides if o.startswith("-")]
    if options:
        raise UserError(f"there is no option {options[0]} here; overrides are key=value")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        given = _with_searchpath(list(overrides))
        try:
            _check_choices(given)
            return list(_expand(_with_experiment(given)))
        except OverrideParseException as error:
            raise UserError(f"cannot read the override {error.override!r}: {str(error).splitlines()[0]}") from error
        except (HydraException, OmegaConfBaseException) as error:
            raise _explained(error, overrides) from error


def _with_searchpath(overrides: list[str]) -> list[str]:
    """Let Hydra and the registry look in the folders of ``hydra.searchpath=[file://…]`` and of installed packages."""
    asked = [o for o in overrides if o.startswith("hydra.searchpath=")]
    for override in asked:
        value = _parser().parse_override(override).value()
        for place in value if isinstance(value, list) else [value]:
            folder = Path(str(place).removeprefix("file://")).expanduser()
            if not folder.is_dir():
                raise UserError(f"hydra.searchpath: {folder} is not a folder")
            look_in(folder)
    places = ",".join(f"file://{folder}" for folder in conf_folders())
    return [o for o in overrides if o not in asked] + ([f"hydra.searchpath=[{places}]"] if places else [])


def _check_choices(overrides: list[str]) -> None:
    """Refuse what is no choice of an option: lists in brackets (Hydra takes the last option of one), null, ``~method``."""
    loader = GlobalHydra.instance().config_loader()
    for o in _parser().parse_overrides(overrides):
        group = o.key_or_group
        if not group:
            raise UserError(f"cannot read the override {o.input_line!r}: there is no key before the =")
        if group == "hydra" or not loader.get_group_options(group):
            continue
        if o.is_delete():
            raise UserError(f"{o.input_line}: a run needs one option of {group}; choose another, {group}=…")
        if o.is_sweep_override() and group == "experiment":
            raise UserError(f"{o.input_line}: an experiment is a grid of its own; run one after the other")
        values = list(o.sweep_string_iterator()) if o.is_sweep_override() else [o.value()]
        for value in values:
            if isinstance(value, list):
                raise UserError(f"{o.input_line}: {group} takes one option; several without brackets are an axis")
            if not isinstance(value, str) or value == "null":
                raise unknown(group, str(value), components(group))


def _with_experiment(overrides: list[str]) -> list[str]:
    """Put the experiment's axes (``hydra.sweeper.params``) before the overrides given by hand."""
    if not any(o.split("=")[0].lstrip("+") == "experiment" for o in overrides):
        return overrides
    parsed = _parser().parse_overrides(overrides)
    fixed = [o.input_line for o in parsed if not o.is_sweep_override()]
    config = compose("config", fixed, return_hydra_config=True)
    params = OmegaConf.to_container(config.hydra.sweeper.params or {})
    by_hand = {o.get_key_element() for o in parsed}
    return [f"{key}={value}" for key, value in params.items() if key not in by_hand] + overrides


def _expand(overrides: list[str]):
    """Cross the axes: one compose a value of a group, none a cell."""
    loader = GlobalHydra.instance().config_loader()
    parsed = _parser().parse_overrides(overrides)
    fixed = [o.input_line for o in parsed if not o.is_sweep_override()]
    axes = {o.get_key_element(): list(o.sweep_string_iterator()) for o in parsed if o.is_sweep_override()}
    explicit = frozenset(_key(o) for o in parsed if _key(o).split(".")[0] in PRESET_GROUPS and "." in _key(o))
    first = {key: values[0] for key, values in axes.items()}
    groups = {key for key in axes if loader.get_group_options(key)}

    def composed(**changed) -> dict[str, Any]:
        chosen = [f"{key}={value}" for key, value in {**first, **changed}.items()]
        return OmegaConf.to_container(compose("config", fixed + chosen), resolve=False)

    base = composed()
    parts = {}
    for key, values in axes.items():
        path = key.lstrip("+").replace("/", ".").split(".")
        for value in values:
            node = composed(**{key: value})  # also checks that the key exists
            for name in path:
                node = node[name]
            parts[key, value] = path, node
    for combination in itertools.product(*[[(key, value) for value in values] for key, values in axes.items()]):
        cell = copy.deepcopy(base)
        for choice in sorted(combination, key=lambda c: c[0] not in groups):  # groups first, then keys inside them
            path, node = parts[choice]
            place = cell
            for name in path[:-1]:
                place = place[name]
            place[path[-1]] = copy.deepcopy(node)
        yield Composed(_resolved(cell), explicit)


def _resolved(cell: dict[str, Any]) -> dict[str, Any]:
    """The cell with interpolations filled in; one that has none (nor a missing value) is taken as it is."""
    text = repr(cell)
    if "${" not in text and "???" not in text:
        return cell
    return OmegaConf.to_container(OmegaConf.create(cell), resolve=True, throw_on_missing=True)


def _key(override: Override) -> str:
    return override.get_key_element().lstrip("+~").replace("/", ".")


def _parser() -> OverridesParser:
    return OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())


def _explained(error: Exception, overrides: Sequence[str]) -> UserError:
    """Hydra's message as one sentence that names the key, the choices and the nearest match."""
    text = " ".join(str(error).split()).partition(" Config search path:")[0]
    option = re.search(r"Could not find '([^']+)/([^'/]*)' Available options in '[^']+': (.*)", text)
    if option:
        return unknown(option[1], option[2], option[3].split())
    override = re.search(r"Could not override '([^']+)'", text)
    missing = re.search(r"Missing mandatory value: \S+ full_key: (\S+)", text)
    if missing:
        return UserError(f"{missing[1]} has no value: give it on the command line, {missing[1]}=…")
    if override:
        *place, key = override[1].split(".")
        node: Any = OmegaConf.to_container(compose("config", _groups_only(overrides)), resolve=False)
        for name in place:
            node = node.get(name) if isinstance(node, dict) else None
        if isinstance(node, dict):
            return unknown("key", key, (k for k in node if k != "hydra"), ".".join(place) or "the configuration")
        return UserError(f"cannot set {override[1]}: there is no {'.'.join(place)} in the configuration")
    return UserError(text)


def _groups_only(overrides: Sequence[str]) -> list[str]:
    """The overrides that choose one option of a group: enough to see which keys a node has."""
    loader = GlobalHydra.instance().config_loader()
    chosen = []
    for o in _parser().parse_overrides(list(overrides)):
        if not o.is_sweep_override() and loader.get_group_options(o.get_key_element()):
            chosen.append(o.input_line)
        elif o.is_sweep_override() and loader.get_group_options(o.get_key_element()):
            chosen.append(f"{o.get_key_element()}={next(iter(o.sweep_string_iterator()))}")
    return chosen
