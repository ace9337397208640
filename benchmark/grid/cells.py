"""A cell of the grid as checked values: the bridge between composed configuration and the planner."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from overpaint.errors import UserError, unknown
from overpaint.grid.concepts import KINDS, Catalogue, Concept, Request, load_catalogue
from overpaint.grid.registry import (
    COMPANY,
    DESCRIPTION,
    check_type,
    checked,
    component,
    components,
    conf_folders,
    construct,
    created,
)


@dataclass(frozen=True)
class ModelSpec:
    """Which model, from where, and who judges its images: ``detector`` for figures, ``judge`` for attacks that search
    with one (another than the detector, so that an attack cannot fit what it is measured by)."""

    name: str
    path: str
    precision: Literal["float32", "float16", "bfloat16", "float64"]
    preset: str | None
    detector: str | None
    judge: str | None
    reference: str | None
    catalogue: str | None

    def __post_init__(self):
        for key in ("detector", "judge"):
            name = getattr(self, key)
            if name and name not in components("detector"):
                raise unknown("detector", name, components("detector"), f"model.{key}")
        if self.preset is not None and self.preset not in preset_families(conf_folders()):
            raise unknown("preset", self.preset, preset_families(conf_folders()), "model.preset")


@cache
def preset_families(folders: tuple[Path, ...]) -> frozenset[str]:
    """What presets of methods and attacks are called, those for one kind of concept by their first part; of the shipped
    configuration and of these folders."""
    found = (component(kind, name).config.get("presets") for kind in ("method", "attack") for name in components(kind))
    kinds = "|".join(KINDS)
    return frozenset(re.sub(rf"_({kinds})$", "", str(name)) for presets in found for name in presets or ())


#: What the models of these families were trained with.
TIMESTEPS = 1000


@dataclass(frozen=True)
class Protocol:
    """How images are made. ``batch_size`` changes speed only."""

    name: str
    scheduler: Literal["ddim", "pndm", "dpm", "euler", "lms"]
    steps: int
    guidance_scale: float
    size: int | None
    batch_size: int

    def __post_init__(self):
        for key in ("steps", "size", "batch_size"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise UserError(f"protocol.{key} takes a positive number, got {getattr(self, key)}")
        if self.steps > TIMESTEPS:
            raise UserError(f"protocol.steps takes at most the model's {TIMESTEPS} timesteps, got {self.steps}")


@dataclass(frozen=True)
class Budget:
    """How much is measured: prompts a role, seeds a prompt, images a task."""

    name: str
    target_prompts: int
    near_prompts: int
    grid: int
    in_prompt: int
    utility_prompts: int
    floor_prompts: int
    seeds: int
    reference_images: int
    shard: int

    def __post_init__(self):
        for key in ("seeds", "shard", "target_prompts", "reference_images"):
            if getattr(self, key) < 1:
                raise UserError(f"budget.{key} takes a positive number, got {getattr(self, key)}")
        for key in ("near_prompts", "grid", "in_prompt", "utility_prompts", "floor_prompts"):
            if getattr(self, key) < 0:
                raise UserError(f"budget.{key} takes a number from 0 up, got {getattr(self, key)}")


@dataclass(frozen=True)
class MetricSpec:
    """Which figures, and how a score becomes present, absent or failed."""

    metrics: dict
    threshold: float
    failure_limit: float

    def __post_init__(self):
        for name, reference in self.metrics.items():
            check_type(reference, str, f"metrics.metrics.{name}")
        for key in ("threshold", "failure_limit"):
            if not 0 <= getattr(self, key) <= 1:
                raise UserError(f"metrics.{key} takes a number from 0 to 1, got {getattr(self, key)}")


@dataclass(frozen=True)
class ConceptSet:
    """Concepts to erase (``sequential``: one request after the other) and to keep, and the sentences that show them."""

    name: str
    request: Request
    sequential: bool
    near: tuple[Concept, ...]
    catalogue: Catalogue
    templates: tuple[str, ...] | None
    prompts: Mapping[str, str]

    @property
    def kind(self) -> str:
        """Kind of the first concept to erase: what presets are chosen by."""
        return self.request.erase[0].kind


@dataclass(frozen=True)
class Choice:
    """A method or an attack with its settled hyper-parameters; ``given`` is what was set by hand, which its label shows.

    An attack has a ``control`` (another attack, with as many images; none: random prefixes neither) and a ``floor`` (whether it
    is run for concepts it was not made for).
    """

    name: str
    preset: str | None
    values: Mapping[str, Any]
    given: Mapping[str, Any] = field(default_factory=dict)
    control: str | None = None
    floor: bool = False

    def __post_init__(self):
        check_type(self.floor, bool, f"attack={self.name}: floor")
        if self.control is not None and not _is_control(self.control):
            known = [*filter(_is_control, components("attack")), "null"]
            raise unknown("control", str(self.control), known, f"attack={self.name}")

    @property
    def label(self) -> str:
        """``uce``, or ``uce lamb=1.0`` where a value was set by hand, so that the points of a sweep stay apart."""
        return " ".join([self.name, *(f"{key}={value}" for key, value in sorted(self.given.items()))])


def _is_control(name: str) -> bool:
    """Can this attack stand beside another: does it draw as many images as it is told to?"""
    return name in components("attack") and "tries" in component("attack", name).defaults


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    model: ModelSpec
    concepts: ConceptSet
    method: Choice
    attack: Choice
    protocol: Protocol
    budget: Budget
    metrics: MetricSpec
    seed: int

    @cached_property
    def label(self) -> str:
        return f"{self.concepts.name} / {self.method.label} / {self.attack.label}"

    def with_attack(self, name: str, **values: Any) -> Cell:
        """The same cell under another attack at its default setting (a control, say) but for ``values``."""
        chosen = choose("attack", {"name": name}, frozenset(), self.model.preset, self.concepts.kind)
        return replace(self, attack=replace(chosen, values={**chosen.values, **values}))

    def unedited(self) -> Cell:
        """The same cell on the unedited model."""
        return replace(self, method=Choice("none", None, {}))


#: The whole of a configuration: the groups of ``conf/config.yaml``, and what stands beside them.
KEYS = (
    "track",
    "model",
    "concepts",
    "method",
    "attack",
    "metrics",
    "protocol",
    "budget",
    "engine",
    "tracker",
    "seed",
    "store",
)


def cell_from(config: Mapping[str, Any], explicit: frozenset[str]) -> Cell:
    """Check a composed configuration and settle presets."""
    for key in config:
        if key not in KEYS:
            raise unknown("key", key, KEYS, "the configuration")
    model = construct(ModelSpec, config["model"], "model")
    concepts = concept_set(config["concepts"], model.catalogue)
    metrics = {k: v for k, v in config["metrics"].items() if k != "name"}
    return Cell(
        model,
        concepts,
        choose("method", config["method"], explicit, model.preset, concepts.kind),
        choose("attack", config["attack"], explicit, model.preset, concepts.kind),
        construct(Protocol, config["protocol"], "protocol"),
        construct(Budget, config["budget"], "budget"),
        construct(MetricSpec, metrics, "metrics"),
        construct(_Seed, {"seed": config["seed"]}, "configuration").seed,
    )


@dataclass(frozen=True)
class _Seed:
    seed: int

    def __post_init__(self):
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed takes a number from 0 to 2**63 - 1, got {self.seed}")


def choose(
    kind: str, config: Mapping[str, Any], explicit: frozenset[str], family: str | None, concept_kind: str
) -> Choice:
    """Settle a component: YAML defaults, then its preset, then what the command line set.

    A preset for the concept's kind comes before one for all: ``paper`` is ``paper_style`` for a style, where there is one.
    ``preset: auto`` takes the model's preset, else one named as the kind, else none, which leaves the defaults.
    """
    chosen = component(kind, config["name"])
    for key in config:
        if key not in chosen.config:
            raise unknown("hyper-parameter", key, chosen.defaults, f"{kind}={chosen.name}")
    presets = chosen.config.get("presets") or {}
    asked = config.get("preset", "auto")
    wanted = [f"{family}_{concept_kind}", family, concept_kind] if asked == "auto" else [f"{asked}_{concept_kind}"]
    preset = next((name for name in wanted if name in presets), None if asked == "auto" else asked)
    given = {k.split(".", 1)[1] for k in explicit if k.startswith(f"{kind}.")}
    values = {k: config[k] for k in given if k in chosen.defaults and k in config}
    where = f"{kind}={chosen.name}"
    described = sorted(key for key in given if key in DESCRIPTION and key not in COMPANY)
    if described:
        raise UserError(f"{where}: {described[0]} says what it is and cannot be set; choose another, {kind}=…")
    settled = checked(chosen.load(), chosen.settle(values, preset), where)
    created(chosen.load(), settled, where)  # a wrong value is told before anything runs
    if "preset" in given and preset:
        values = {"preset": asked if asked != "auto" else preset, **values}
    company = {key: config.get(key, chosen.config[key]) for key in ("control", "floor") if key in chosen.config}
    return Choice(chosen.name, preset, settled, values, **company)


SET_KEYS = ("name", "catalogue", "erase", "sequential", "retain", "near", "anchor", "kind", "templates", "prompts")
SET_TYPES = {
    "name": str | None,
    "catalogue": str | None,
    "sequential": bool,
    "near": str | list[str] | None,
    "anchor": str | list[str] | None,
    "kind": str,
    "templates": list[str] | None,
    "prompts": dict | None,
}


def concept_set(config: Mapping[str, Any], catalogue_of_model: str | None) -> ConceptSet:
    """A concept set from the ``concepts`` group; names the catalogue knows come with kind, label and synonyms."""
    for key in config:
        if key not in SET_KEYS:
            raise unknown("key", key, SET_KEYS, "concepts")
    for key, hint in SET_TYPES.items():
        check_type(config[key], hint, f"concepts.{key}")
    if config["kind"] not in KINDS:
        raise unknown("kind", config["kind"], KINDS, "concepts.kind")
    for role, path in (config["prompts"] or {}).items():
        check_type(path, str | None, f"concepts.prompts.{role}")
    catalogue = load_catalogue(catalogue_of_model if config["catalogue"] == "auto" else config["catalogue"])
    erase = _concepts(config["erase"], catalogue, config["kind"], "concepts.erase")
    names = {c.name for c in erase}
    retain = config["retain"]
    if retain == "all":
        retain = [name for name in catalogue.concepts if name not in names]
    near = config["near"]
    if near is None:
        near = [name for c in erase for name in c.neighbours if name not in names]
    near = list(dict.fromkeys([near] if isinstance(near, str) else near))
    anchors = config["anchor"]
    request = Request.of(erase, anchors, _concepts(retain, catalogue, config["kind"], "concepts.retain"))
    sequential = config["sequential"] and len(erase) > 1  # one concept is the same request either way
    name = config["name"] or "+".join(c.name for c in erase)
    templates = config["templates"]
    for template in templates or ():
        if "{}" not in template:
            raise UserError(f"concepts.templates: {template!r} has no {{}} to put the concept in")
        if re.search(r"[{}]", template.replace("{}", "", 1)):
            raise UserError(f"concepts.templates: {template!r} has braces besides one {{}} for the concept")
    return ConceptSet(
        f"{name} in turn" if sequential else name,
        request,
        sequential,
        tuple(_concepts(near, catalogue, config["kind"], "concepts.near")),
        catalogue,
        tuple(templates) if templates else None,
        dict(config["prompts"] or {}),
    )


def _concepts(names: Any, catalogue: Catalogue, kind: str, where: str) -> list[Concept]:
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
        raise UserError(f"{where} takes a list of names, got {names!r}")
    if catalogue.concepts:
        for name in names:
            if name not in catalogue.concepts:
                raise unknown("concept", name, catalogue.concepts, where)
        return [catalogue.concepts[name] for name in names]
    return [Concept(name, kind=kind) for name in names]
