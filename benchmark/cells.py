"""A cell of the grid as checked values: the bridge between composed configuration and the planner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from overpaint.concepts import Catalogue, Concept, Request, load_catalogue
from overpaint.errors import UserError, unknown
from overpaint.registry import check_type, checked, component, construct


@dataclass(frozen=True)
class ModelSpec:
    """Which model, from where, and who judges its images: ``detector`` for figures, ``judge`` for attacks that search
    with one (another than the detector, so that an attack cannot fit what it is measured by)."""

    name: str
    path: str
    precision: str
    preset: str | None
    detector: str | None
    judge: str | None
    reference: str | None
    catalogue: str | None


@dataclass(frozen=True)
class Protocol:
    """How images are made. ``batch_size`` changes speed only."""

    name: str
    scheduler: str
    steps: int
    guidance_scale: float
    size: int | None
    batch_size: int

    def __post_init__(self):
        for key in ("steps", "batch_size"):
            if getattr(self, key) < 1:
                raise UserError(f"protocol.{key} takes a positive number, got {getattr(self, key)}")


@dataclass(frozen=True)
class Budget:
    """How much is measured: prompts a role, seeds a prompt, images a task."""

    name: str
    target_prompts: int
    near_prompts: int
    grid: int
    in_prompt: int
    utility_prompts: int
    seeds: int
    reference_images: int
    shard: int

    def __post_init__(self):
        for key in ("seeds", "shard", "target_prompts"):
            if getattr(self, key) < 1:
                raise UserError(f"budget.{key} takes a positive number, got {getattr(self, key)}")


@dataclass(frozen=True)
class MetricSpec:
    """Which figures, and how a score becomes present, absent or failed."""

    metrics: dict[str, str]
    threshold: float
    failure_limit: float


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
    """A method or an attack with its settled hyper-parameters; ``given`` is what was set by hand, which its label shows."""

    name: str
    preset: str | None
    values: Mapping[str, Any]
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """``uce``, or ``uce lamb=1.0`` where a value was set by hand, so that the points of a sweep stay apart."""
        return " ".join([self.name, *(f"{key}={value}" for key, value in sorted(self.given.items()))])


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


def cell_from(config: Mapping[str, Any], explicit: frozenset[str]) -> Cell:
    """Check a composed configuration and settle presets."""
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


def choose(
    kind: str, config: Mapping[str, Any], explicit: frozenset[str], family: str | None, concept_kind: str
) -> Choice:
    """Settle a component: YAML defaults, then its preset, then what the command line set.

    ``preset: auto`` takes the first that exists of ``<model preset>_<concept kind>``, ``<model preset>``,
    ``<concept kind>``, and none of them leaves the defaults.
    """
    chosen = component(kind, config["name"])
    presets = chosen.config.get("presets") or {}
    preset = config.get("preset", "auto")
    if preset == "auto":
        wanted = [f"{family}_{concept_kind}", family, concept_kind]
        preset = next((name for name in wanted if name in presets), None)
    given = {k.split(".", 1)[1] for k in explicit if k.startswith(f"{kind}.")}
    values = {k: config[k] for k in given if k in chosen.defaults and k in config}
    settled = checked(chosen.load(), chosen.settle(values, preset), f"{kind}={chosen.name}")
    chosen.load()(**settled)  # a wrong value is told before anything runs
    if "preset" in given and preset:
        values = {"preset": preset, **values}
    return Choice(chosen.name, preset, settled, values)


SET_KEYS = ("name", "catalogue", "erase", "sequential", "retain", "near", "anchor", "kind", "templates", "prompts")


def concept_set(config: Mapping[str, Any], catalogue_of_model: str | None) -> ConceptSet:
    """A concept set from the ``concepts`` group; names the catalogue knows come with kind, label and synonyms."""
    for key in config:
        if key not in SET_KEYS:
            raise unknown("key", key, SET_KEYS, "concepts")
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
    check_type(config["sequential"], bool, "concepts: sequential")
    sequential = config["sequential"] and len(erase) > 1  # one concept is the same request either way
    name = config["name"] or "+".join(c.name for c in erase)
    templates = config["templates"]
    for template in templates or ():
        if "{}" not in template:
            raise UserError(f"concepts.templates: {template!r} has no {{}} to put the concept in")
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
