"""A cell of the grid: checked values on every axis, their labels, and the settings that determine its records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field

from overpaint.errors import UserError, unknown
from overpaint.grid.choices import Choice, choose, preset_families
from overpaint.grid.concept_sets import ConceptSet, concept_set
from overpaint.grid.digests import canonical, digest
from overpaint.grid.labels import few, label
from overpaint.grid.read_once import remembered
from overpaint.grid.registry import component, components, conf_folders
from overpaint.grid.typed import Count, Positive, Seed, Share, check_type, construct

#: Number of training timesteps of the supported model families.
TIMESTEPS = 1000
#: Number of seeds per prompt.
Seeds = Annotated[int, Field(ge=1, le=1000)]
#: The choice of no method.
UNEDITED = Choice("none", None, {})
#: The axes of the grid: the fields of a `Cell`.
AXES = ("model", "concepts", "method", "attack", "protocol", "budget", "metrics", "seed")
#: Roles of prompts (`overpaint.grid.roles`), each with the key of `Budget` that holds its number of prompts.
ROLE_KEYS: Mapping[str, str] = {
    "target": "target_prompts", "near": "near_prompts", "grid": "grid", "in_prompt": "in_prompt", "utility": "utility_prompts",
    "attributes": "target_prompts",
}  # fmt: skip
#: Attacks that are lists of other prompts; a concept set can have its own list for them (``concepts.prompts``).
PROMPT_LISTS = ("synonym", "paraphrase", "multilingual", "implicit")
#: Keys that affect speed only, not records.
SPEED = ("protocol.batch_size", "budget.shard")
#: The detector that ``model.detector=auto`` selects for each kind of concept.
DETECTORS: Mapping[str, str | None] = {
    "object": "clip", "character": "clip", "style": "clip", "person": "celebrity", "unsafe": "nudenet", "mark": None
}  # fmt: skip
#: The smallest score that counts as present, unless the detector's YAML or the user says otherwise.
THRESHOLD = 0.5


@dataclass(frozen=True)
class ModelSpec:
    """A model: its source, its precision and the components used with it.

    Attributes:
        path: a folder or a Hub id.
        preset: preset of methods and attacks that ``preset: auto`` prefers.
        detector: detector for the figures; ``auto`` selects that of the concept set, else one by the kind of its concepts.
        judge: detector for attacks that search with one. It is a different network from ``detector``, so that an attack
            cannot overfit the detector that measures it, and has the threshold that its YAML recommends.
        reference: source of real images: an option of ``conf/pictures`` or a folder.
        catalogue: default concept catalogue.
        protocol: default protocol.
        stand_ins: extractors that mean nothing for this model's images, each with the one to use instead.
        gold: the method whose models never saw the concept, which metrics of the gold reference compare with; ``None`` for none.
        compiled: whether images are generated with the compiled network (``engine.compile``), which changes their last bits.
    """

    name: str
    path: str
    precision: Literal["float32", "float16", "bfloat16", "float64"]
    preset: str | None
    detector: str | None
    judge: str | None
    reference: str | None
    catalogue: str | None
    protocol: str = "ddim50"
    stand_ins: dict[str, str | None] = field(default_factory=dict)
    gold: str | None = None
    compiled: bool = False

    def __post_init__(self):
        for key, further in (("detector", ("auto",)), ("judge", ())):
            name = getattr(self, key)
            if name and name not in (*components("detector"), *further):
                raise unknown("detector", name, [*components("detector"), *further], f"model.{key}")
        if self.preset is not None and self.preset not in preset_families(conf_folders()):
            raise unknown("preset", self.preset, preset_families(conf_folders()), "model.preset")
        if self.gold is not None and self.gold not in components("method"):
            raise unknown("method", self.gold, components("method"), "model.gold")

    @property
    def settings(self) -> dict[str, Any]:
        """The fields that affect records."""
        found = {key: getattr(self, key) for key in ("path", "precision", "detector", "judge", "reference")}
        further = {"gold": self.gold, "compiled": self.compiled}  # only where they are used, so that other keys stay
        return found | {key: value for key, value in further.items() if value}


@dataclass(frozen=True)
class Protocol:
    """How images are generated.

    ``size`` is the side in pixels (``None``: that of the prompt's list, else the model's default). ``batch_size`` affects
    speed only.
    """

    name: str
    scheduler: Literal["ddim", "pndm", "dpm", "euler", "lms"]
    steps: Annotated[int, Field(ge=1, le=TIMESTEPS)]
    guidance_scale: Annotated[float, Field(ge=0, le=1000)]
    size: Annotated[int, Field(ge=1, le=8192)] | None
    batch_size: Annotated[int, Field(ge=1, le=4096)]

    @property
    def settings(self) -> dict[str, Any]:
        """The fields that affect records."""
        return {key: getattr(self, key) for key in ("scheduler", "steps", "guidance_scale", "size")}


@dataclass(frozen=True)
class Budget:
    """How much is measured: prompts per role (`overpaint.grid.roles`), seeds per prompt, images per task (``shard``).

    A number of prompts that is ``None`` means all: a whole list, every template. ``max_steps`` limits the
    lengths of methods and attacks (`overpaint.grid.lengths`). It is at least 2, so that a warm-up is shorter than the training.
    ``near_seeds`` and ``utility_seeds`` are seeds per prompt of these roles; ``None`` means a fifth of ``seeds``, as for the grid
    and ``in_prompt``.
    """

    name: str
    target_prompts: Positive | None
    near_prompts: Count | None
    grid: Count | None
    in_prompt: Count | None
    utility_prompts: Count | None
    floor_prompts: Count
    seeds: Seeds
    reference_images: Positive
    shard: Positive
    max_steps: Annotated[int, Field(ge=2)] | None = None
    near_seeds: Seeds | None = None
    utility_seeds: Seeds | None = None

    @property
    def unmeasured(self) -> list[str]:
        """The roles that get no prompts."""
        return [role for role, key in ROLE_KEYS.items() if getattr(self, key) == 0]

    @property
    def settings(self) -> dict[str, Any]:
        """The fields that affect records. ``max_steps`` affects them only through the values of methods and attacks."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("name", "shard", "max_steps")}
        return {
            key: value
            for key, value in found.items()
            if value is not None or key not in ("near_seeds", "utility_seeds")
        }


@dataclass(frozen=True)
class MetricSpec:
    """The metrics of a cell, and the thresholds that turn a score into present, absent or failed.

    ``metrics`` maps names to classes (``module:Class``). ``threshold`` is the smallest score that counts as present; ``None``
    means the one that the detector's YAML recommends, else `THRESHOLD`. ``failure_limit`` is the largest share of failed
    images at which a figure is still computed. ``attacks`` are those that the set's figures need: `overpaint plan` names the
    ones that the grid lacks. ``extractors`` maps the purposes that metrics name to extractors, or to detectors; ``None`` for
    none.
    """

    name: str
    metrics: dict[str, str]
    threshold: Share | None
    failure_limit: Share
    attacks: list[str] = field(default_factory=list)
    extractors: dict[str, str | None] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that affect every figure. The list of metrics is left out: it does not change any single figure."""
        return {"threshold": self.threshold, "failure_limit": self.failure_limit}


@dataclass(frozen=True)
class Cell:
    """One point of the grid.

    ``given`` holds the values that were set by hand, by full key: ``{"budget.target_prompts": 4}``.
    """

    model: ModelSpec
    concepts: ConceptSet
    method: Choice
    attack: Choice
    protocol: Protocol
    budget: Budget
    metrics: MetricSpec
    seed: int
    given: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @cached_property
    def label(self) -> str:
        """Concepts, method and attack for progress messages: ``church / uce lamb=1.0 / cce``."""
        return f"{self.concepts.name} / {self.method.label} / {self.attack.label}"

    @property
    def names(self) -> dict[str, str]:
        """The name on every axis: the YAML file's, or the concepts themselves if given by hand. Names do not identify."""
        named = {axis: getattr(self, axis).name for axis in AXES if axis != "seed"}
        return named | {"seed": str(self.seed) if self.draws else "any"}

    @cached_property
    def labels(self) -> dict[str, str]:
        """The name on every axis with the values set by hand: ``smoke target_prompts=4``."""
        shown: dict[str, Mapping[str, Any]] = {axis: {} for axis in AXES} | {
            "method": self.method.given,
            "attack": self.attack.given,
            "model": {"compile": True} if self.model.compiled else {},
        }
        for key, value in self.given.items():
            axis, _, inner = key.partition(".")
            if inner and axis not in ("method", "attack") and not self._named_already(key):
                shown[axis] = {**shown[axis], inner: value}
        return {axis: label(name, shown[axis]) for axis, name in self.names.items()}

    def _named_already(self, key: str) -> bool:
        """Whether the concept set's name shows this key: the name itself, the order or merge, or the concepts to erase."""
        if key != "concepts.erase":
            return key in ("concepts.name", "concepts.sequential", "concepts.merge")
        return self.concepts.name.removesuffix(self.concepts.manner) == "+".join(
            c.name for c in self.concepts.request.erase
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that determines the records, by axis, as JSON values. An unused seed is ``None``."""
        return json.loads(self.settings_text())

    def settings_text(self, model: str | None = None) -> str:
        """The settings as canonical JSON, assembled from the text of each axis. ``model`` replaces the model's path."""
        texts = {axis: _settings_text(part) for axis, part in self._parts(model)} | {"seed": self._seed}
        return "{" + ",".join(f'"{axis}":{texts[axis]}' for axis in sorted(texts)) + "}"

    @cached_property
    def identity(self) -> str:
        """A hash of the settings, which identifies this point of the grid."""
        return self.identified_by(None)

    def identified_by(self, model: str | None) -> str:
        """`identity` with the model's path replaced, for instance by a hash of its content."""
        spec = self.model if model is None else _placed(self.model, model)
        return digest([_settings_digest(spec), self._identity_of_the_rest])[:16]

    @property
    def digests(self) -> list[str]:
        """What `identity` is a hash of: a hash of the settings on each axis, and the seed if anything depends on it."""
        return [_settings_digest(self.model), *self._identity_of_the_rest]

    @cached_property
    def _identity_of_the_rest(self) -> list[str]:
        return [_settings_digest(part) for axis, part in self._parts(None) if axis != "model"] + [self._seed]

    def _parts(self, model: str | None) -> Iterator[tuple[str, Any]]:
        """Every axis but the seed, with what was chosen on it."""
        yield "model", self.model if model is None else _placed(self.model, model)
        yield from ((axis, getattr(self, axis)) for axis in AXES if axis not in ("model", "seed"))

    @property
    def _seed(self) -> str:
        return str(self.seed) if self.draws else "null"

    @property
    def draws(self) -> bool:
        """Whether the method, the attack or the attack's control depends on the seed."""
        return self.method.draws or self.attack.draws or self.attack.control is not None

    @property
    def method_seed(self) -> int:
        """The method's seed. It is 0 for a deterministic method, so that all seeds share its erasure."""
        return self.seed if self.method.draws else 0

    @property
    def attack_seed(self) -> int:
        """The attack's seed; 0 for a deterministic attack."""
        return self.seed if self.attack.draws else 0

    def extractor(self, purpose: str) -> str | None:
        """The extractor for a purpose, by name; ``None`` if the metrics or the model name none.

        The model's stand-in replaces the metric set's extractor, but not one that was set by hand.
        """
        name = self.metrics.extractors.get(purpose)
        if self.given.keys() & {"metrics.extractors", f"metrics.extractors.{purpose}"}:
            return name
        return self.model.stand_ins.get(name, name) if name else None

    def with_attack(self, name: str, **values: Any) -> Cell:
        """The same cell under another attack with its default values, except ``values``."""
        return replace(self, attack=default_attack(name, self.model.preset, self.concepts)).with_values(**values)

    def with_values(self, **values: Any) -> Cell:
        """The same cell with other values of the attack's hyper-parameters."""
        return replace(self, attack=_with_values(self.attack, canonical(values)))

    def unedited(self) -> Cell:
        """The same cell on the unedited model."""
        return replace(self, method=UNEDITED)

    def gold(self) -> Cell | None:
        """The same cell on the model that never saw the concepts; ``None`` if the model has no gold reference for them."""
        if self.model.gold is None:
            return None
        method = _default("method", self.model.gold, self.model.preset, self.concepts)
        return replace(self, method=method) if method.settings["files"] else None


@remembered
def gold_references() -> dict[str, list[str]]:
    """By method: the models whose gold reference (`ModelSpec.gold`) it is."""
    found: dict[str, list[str]] = {}
    for name in components("model"):
        if gold := component("model", name).defaults.get("gold"):
            found.setdefault(gold, []).append(name)
    return found


@remembered
def _default(kind: str, name: str, preset: str | None, concepts: ConceptSet) -> Choice:
    return choose(kind, {"name": name}, frozenset(), preset, concepts)


def default_attack(name: str, preset: str | None, concepts: ConceptSet) -> Choice:
    """An attack with its default values for a model's preset and a concept set."""
    return _default("attack", name, preset, concepts)


@remembered
def _with_values(attack: Choice, values: str) -> Choice:
    return replace(attack, values={**attack.values, **json.loads(values)})


@remembered
def _settings_text(axis: ModelSpec | ConceptSet | Choice | Protocol | Budget | MetricSpec) -> str:
    return canonical(axis.settings)


@remembered
def _settings_digest(axis: ModelSpec | ConceptSet | Choice | Protocol | Budget | MetricSpec) -> str:
    return digest(_settings_text(axis))


@remembered
def _placed(model: ModelSpec, path: str) -> ModelSpec:
    return replace(model, path=path)


#: Top-level keys of a configuration (``conf/config.yaml``).
KEYS = ("track", "engine", "tracker", "store", "images_per_second", *AXES)


def cell_from(config: Mapping[str, Any], explicit: frozenset[str]) -> Cell:
    """The cell of a composed configuration. ``explicit`` lists the keys that were set by hand."""
    for key in config:
        if key not in KEYS:
            raise unknown("key", key, KEYS, "the configuration")
    if type(config["seed"]) is not int or not 0 <= config["seed"] < 2**63:
        check_type(config["seed"], Seed, "seed")
    model = _part(ModelSpec, config["model"], "model")
    concepts = _concepts(config["concepts"], model.catalogue)
    _check_effects(config["concepts"], explicit, model, concepts)
    budget = _part(Budget, config["budget"], "budget")
    model = _compiled(_with_detector(model, concepts), (config.get("engine") or {}).get("compile", False))
    context = (explicit, model.preset, concepts, budget.max_steps)
    attack = _chosen("attack", config["attack"], *context)
    return Cell(
        model,
        _without_lists(concepts, frozenset({*budget.unmeasured, *PROMPT_LISTS} - {attack.name})),
        _chosen("method", config["method"], *context),
        attack,
        _part(Protocol, config["protocol"], "protocol"),
        budget,
        _metrics(config["metrics"], model.detector),
        config["seed"],
        {key: value_at(config, key) for key in _axis_keys(explicit)},
    )


# What cells share is read once.
_part, _concepts, _chosen = remembered(construct), remembered(concept_set), remembered(choose)


def _check_effects(config: Mapping[str, Any], explicit: frozenset[str], model: ModelSpec, concepts: ConceptSet) -> None:
    """Raise a `UserError` for a detector or a kind of the concepts that is set by hand and has no effect on this model."""
    named, by_hand = concepts.detector, {"concepts.detector", "model.detector"} & explicit
    if named and by_hand == {"concepts.detector"} and model.detector not in ("auto", named):
        raise UserError(
            f"concepts.detector={named} has no effect: model.detector={model.detector or 'null'} judges this model's images; "
            f"set model.detector={named}"
        )
    if "concepts.kind" not in explicit:
        return
    for concept in concepts.request.erase if concepts.catalogue.concepts else ():
        if concept.kind != config["kind"]:
            raise UserError(
                f"concepts.kind={config['kind']} has no effect: {concept.name} is of kind {concept.kind} in the catalogue "
                f"{concepts.catalogue.identity}; leave it out, or set concepts.catalogue=null"
            )


@remembered
def _with_detector(model: ModelSpec, concepts: ConceptSet) -> ModelSpec:
    """The model with the detector that ``auto`` selects for these concepts."""
    if model.detector != "auto":
        return model
    return replace(model, detector=concepts.detector or DETECTORS[concepts.kind])


@remembered
def _compiled(model: ModelSpec, compiled: Any) -> ModelSpec:
    check_type(compiled, bool, "engine.compile")
    return replace(model, compiled=True) if compiled else model


@remembered
def _without_lists(concepts: ConceptSet, names: frozenset[str]) -> ConceptSet:
    return concepts.without_lists(names)


@remembered
def _metrics(config: Mapping[str, Any], detector: str | None) -> MetricSpec:
    metrics = construct(MetricSpec, config, "metrics")
    return replace(metrics, threshold=recommended_threshold(detector)) if metrics.threshold is None else metrics


@remembered
def _axis_keys(explicit: frozenset[str]) -> list[str]:
    """The keys set by hand that belong to an axis and can affect records."""
    return [key for key in sorted(explicit) if key.split(".")[0] in AXES and key not in SPEED]


def recommended_threshold(detector: str | None) -> float:
    """The threshold that the YAML of a detector recommends."""
    recommended = component("detector", detector).config.get("recommended_threshold") if detector else None
    check_type(recommended, Share | None, f"detector={detector}: recommended_threshold")
    return THRESHOLD if recommended is None else recommended


def value_at(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key, ``None`` for a key that was deleted."""
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def merged(cells: Iterable[Cell]) -> tuple[list[Cell], list[str]]:
    """The distinct cells, and a sentence for each group of merged cells: nothing depends on their seed, or they are the same."""
    kept: dict[tuple[str, ...], Cell] = {}
    idle: dict[tuple[str, ...], list[int]] = {}
    repeated: dict[tuple[str, ...], Cell] = {}
    for cell in cells:
        point = (*cell.digests, str(cell.labels))
        if point in kept and cell.seed != kept[point].seed:
            idle.setdefault(point, [kept[point].seed]).append(cell.seed)
        elif point in kept:
            repeated[point] = cell
        kept.setdefault(point, cell)
    seeds: dict[tuple[str, str], list[int]] = {}
    for point, found in idle.items():
        seeds.setdefault((kept[point].method.label, kept[point].attack.label), list(dict.fromkeys(found)))
    said = [
        f"method {method} with attack {attack} draws nothing from the seed: seeds {', '.join(map(str, found))} are one run"
        for (method, attack), found in seeds.items()
    ]
    if repeated:
        names = few(dict.fromkeys(cell.label for cell in repeated.values()), between="; ")
        said.append(f"several points of this grid are the same cell, which runs once: {names}")
    return list(kept.values()), said
