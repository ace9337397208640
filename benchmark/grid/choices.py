"""The method or attack of a cell: its hyper-parameters are resolved and checked here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from overpaint.errors import UserError, unknown
from overpaint.grid.assets import content_digest
from overpaint.grid.concept_sets import ConceptSet
from overpaint.grid.concepts import OF_CONCEPTS, UNSAFE, for_concepts
from overpaint.grid.labels import label
from overpaint.grid.lengths import lengths, shortened
from overpaint.grid.registry import DESCRIPTION, EXTRA_KEYS, Component, component, components
from overpaint.grid.typed import check_type, checked, construct, created


@dataclass(frozen=True)
class Choice:
    """A method or an attack with its resolved hyper-parameters.

    Attributes:
        values: the hyper-parameters.
        given: the values that were set by hand.
        control: for an attack, the attack that serves as its control at the same number of images. ``None`` means no
            control and no random prefixes.
        floor: for an attack, whether it is also run for an unseen and an unrelated concept.
        draws: whether the result depends on the seed.
        added: hyper-parameters that are newer than stored results, with the value that changes nothing.
        lengths: how long it trains or searches: its declared lengths with their values.
        shortened: the hyper-parameters that the budget shortened, with their values before and after.
    """

    name: str
    preset: str | None
    values: Mapping[str, Any]
    given: Mapping[str, Any] = field(default_factory=dict)
    control: str | None = None
    floor: bool = False
    draws: bool = False
    added: Mapping[str, Any] = field(default_factory=dict)
    lengths: Mapping[str, Any] = field(default_factory=dict)
    shortened: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    @cached_property
    def label(self) -> str:
        """``uce``, or ``uce lamb=1.0`` if a value was set by hand, so that the points of a sweep have different labels."""
        return label(self.name, self.given)

    @property
    def identifying(self) -> dict[str, Any]:
        """The hyper-parameters that are part of keys: all but those of ``added`` that change nothing."""
        return {key: value for key, value in self.values.items() if self.added.get(key, ...) != value}

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that determines its results. Files and assets named by values are given by a hash of their content."""
        files = {key: content_digest(value) for key, value in self.values.items() if isinstance(value, str)}
        found = {"name": self.name, "values": self.identifying, "files": {k: v for k, v in files.items() if v}}
        return found | {"control": self.control, "floor": self.floor}


def choose(
    kind: str,
    config: Mapping[str, Any],
    explicit: frozenset[str],
    family: str | None,
    concepts: ConceptSet,
    max_steps: int | None = None,
) -> Choice:
    """The method or attack of a composed configuration.

    Keys set by hand (``explicit``) override the preset, which overrides the component's YAML. Lengths that are not set by hand
    are at most ``max_steps``. ``family`` is the model's ``preset`` (`ModelSpec.preset`). The values are checked and the
    component is built, so that a wrong value is reported before anything runs.

    Raises:
        UserError: for an unknown key, a wrong value, an unknown preset, or a key that only describes the component.
    """
    chosen = component(kind, config["name"])
    where = f"{kind}={chosen.name}"
    settable = {*chosen.defaults, *(EXTRA_KEYS if kind == "attack" else ("preset",))}
    given = {key: config[key] for key in _by_hand(kind, config, explicit)}
    for key in config:
        if key not in settable and key not in DESCRIPTION:
            raise unknown("hyper-parameter", key, chosen.defaults, where)
    for key in given:
        if key not in settable and key in EXTRA_KEYS:
            raise unknown("hyper-parameter", key, chosen.defaults, where)
        if key not in settable:
            raise UserError(f"{where}: {key} describes the component and cannot be set; choose another, {kind}=…")
    erased = [concept.name for concept in concepts.request.erase]
    preset = preset_for(chosen, config.get("preset", "auto"), family, concepts.kind, erased)
    values = chosen.settle({key: value for key, value in given.items() if key in chosen.defaults}, preset)
    values = for_concepts(values, concepts.request)
    values = checked(chosen.load(), values, where)
    built = created(chosen.load(), values, where)
    cut = {} if max_steps is None else shortened(built, max_steps, given, concepts.request)
    if cut:
        values |= {key: new for key, (_, new) in cut.items()}
        built = created(chosen.load(), values, where)
    compared = {key: config.get(key, chosen.config[key]) for key in ("control", "floor") if key in chosen.config}
    shown = {key: values.get(key, value) for key, value in given.items() if key not in EXTRA_KEYS or key in compared}
    if "preset" in given and preset:
        shown["preset"] = preset if given["preset"] == "auto" else given["preset"]
    compared = _comparisons(compared, where)
    draws, added = getattr(built, "draws", True), getattr(built, "added", {})
    return Choice(
        chosen.name, preset, values, shown, draws=draws, added=added, lengths=lengths(built), shortened=cut, **compared
    )


def _by_hand(kind: str, config: Mapping[str, Any], explicit: frozenset[str]) -> list[str]:
    """The keys of a component that were set by hand, without the group: ``lamb``."""
    keys = (key.split(".")[1] for key in sorted(explicit) if key.startswith(f"{kind}."))
    return [key for key in dict.fromkeys(keys) if key in config]


def preset_for(chosen: Component, asked: Any, family: str | None, kind: str, erased: Sequence[str]) -> str | None:
    """The preset to use for the names of ``erased`` concepts of a kind.

    ``auto`` selects the model's preset, else the most specific one for the concepts, else none. From the most specific, presets
    are named after a single unsafe concept (`UNSAFE`), after the kind and the number of concepts (``person_10``), and after the
    kind. A variant for the concepts has priority over a preset: ``paper_style`` over ``paper``.
    """
    check_type(asked, str | None, f"{chosen.kind}={chosen.name}: preset")
    if asked is None:
        return None
    specific = [f"{kind}_{len(erased)}", kind]
    if kind == "unsafe" and len(erased) == 1 and erased[0].lower() in UNSAFE:
        specific.insert(0, erased[0].lower())
    if asked == "auto":
        wanted = [f"{family}_{kind}", family, *specific]
        return next((name for name in wanted if name in chosen.presets), None)
    return next((name for name in (f"{asked}_{suffix}" for suffix in specific) if name in chosen.presets), asked)


@dataclass(frozen=True)
class _Comparisons:
    """The comparisons that are run with an attack; see `Choice`."""

    control: str | None = None
    floor: bool = False


def _comparisons(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values, checked: a ``control`` must be an attack that can serve as one."""
    settled = checked(_Comparisons, values, where)
    control = settled.get("control")
    if control is not None and not _is_control(control):
        raise unknown("control", control, [*filter(_is_control, components("attack")), "null"], where)
    return settled


def _is_control(name: str) -> bool:
    """Whether an attack can serve as a control: it must have the hyper-parameter ``tries`` (number of images)."""
    return name in components("attack") and "tries" in component("attack", name).defaults


@cache
def preset_families(folders: tuple[Path, ...]) -> frozenset[str]:
    """Names of the presets of all methods and attacks, without the suffix for the kind of concept.

    ``folders`` are the configuration folders besides ``conf/``; they are the key of the cache. Unusable files are skipped.
    """
    return frozenset(
        re.sub(rf"_({OF_CONCEPTS})$", "", name)
        for kind in ("method", "attack")
        for other in components(kind)
        for name in _presets(kind, other)
    )


def _presets(kind: str, name: str) -> list[str]:
    try:
        return list(map(str, component(kind, name).presets))
    except UserError:  # reported when this component is chosen
        return []


def build(kind: str, choice: Choice, seed: int) -> Any:
    """An instance of the method or attack, with the seed of a cell."""
    chosen = component(kind, choice.name)
    return construct(chosen.load(), {**choice.values, "seed": seed}, f"{kind}={choice.name}")
