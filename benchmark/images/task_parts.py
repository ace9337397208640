"""The parts of which the configurations of image tasks are made.

Everything that affects a result is in a task's configuration, versions and inputs, and therefore in its key. Parts that many
tasks share are made once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, get_args

from overpaint.errors import UserError, changed, unknown
from overpaint.grid.assets import content_digest, referred
from overpaint.grid.cells import Cell, ModelSpec
from overpaint.grid.choices import Choice
from overpaint.grid.concepts import Catalogue, Concept
from overpaint.grid.digests import is_file
from overpaint.grid.directions import BETTER
from overpaint.grid.labels import label
from overpaint.grid.paths import content_path
from overpaint.grid.prompts import Shot
from overpaint.grid.read_once import remembered
from overpaint.grid.registry import component, components, load_attribute
from overpaint.grid.shipped import shipped
from overpaint.grid.typed import check_type, shown
from overpaint.images.pictures import pictures
from overpaint.images.stages.generate import shot_row
from overpaint.metrics.metric import IMAGE_ROLES, FrameName, Metric
from overpaint.models.sources import fingerprint_model, hub_commit, resolve, unchanged
from overpaint.run.store import file_hash
from overpaint.run.tasks import SharedDict, SharedList, Task
from overpaint.run.track import facets

#: Version of our half-precision arithmetic (scaled losses, noise levels, attention). Results of models in float32 and float64
#: do not depend on it.
HALF_PRECISION = 2
#: Number of a catalogue's templates per language that an attack can learn from. Templates beyond these are new to every attack,
#: and adding some to a catalogue changes no stored attack.
ATTACK_TEMPLATES = 24
#: Similarity to one of the facets from which a metric's own facet counts as a misspelling of it.
MISSPELT = 0.8


def model_of(model: ModelSpec) -> dict[str, Any]:
    """The model in a configuration: its fingerprint and precision."""
    return {"model": fingerprint_model(model.path), "precision": model.precision}


def arithmetic_of(model: ModelSpec) -> dict[str, int]:
    """The version of half-precision arithmetic; empty for models in float32 and float64."""
    return {"half": HALF_PRECISION} if model.precision in ("float16", "bfloat16") else {}


def runtime_of(model: ModelSpec, batch_size: int) -> dict[str, Any]:
    """Where and how a task runs the model; not part of its key."""
    return {"path": resolve(model.path), "device": None, "batch_size": batch_size}


def loads_of(config: Mapping[str, Any], erasure: Task | None = None) -> str:
    """`Task.loads`: the model in its precision, and the erasure on it."""
    return f"{config['model']}/{config['precision']}/{erasure.key if erasure else ''}"


def erasure_input(task: Task | None) -> dict[str, str]:
    """The erasure as an input; none for the unedited model."""
    return {"erasure": task.key} if task else {}


def kind_of(choice: Choice, config: Mapping[str, Any]) -> str:
    """The kind of a method's or attack's task for estimates: the same model, and the same lengths."""
    return f"{config['model']}/{label(choice.name, choice.lengths)}"


@remembered
def values_of(choice: Choice) -> SharedDict:
    """The hyper-parameters that can change the component's results."""
    return SharedDict(choice.identifying)


@remembered
def rows_of(shots: Sequence[Shot], size: int | None) -> SharedList:
    """`shot_row` of every shot."""
    return SharedList(shot_row(shot, size) for shot in shots)


@remembered
def described_shots(shots: Sequence[Shot]) -> SharedList:
    """`Shot.as_dict` of every shot."""
    return SharedList(shot.as_dict() for shot in shots)


@remembered
def entries(concepts: Sequence[Concept]) -> SharedList:
    """`entry` of every concept."""
    return SharedList(map(entry, concepts))


@remembered
def entry(concept: Concept) -> SharedDict:
    """All fields of a concept."""
    return SharedDict(asdict(concept))


@remembered
def kinds_by_label(catalogue: Catalogue) -> dict[str, str]:
    """Kind by detector label."""
    return {c.label: c.kind for c in catalogue.concepts.values() if c.label}


@remembered
def known_templates(catalogue: Catalogue, kind: str) -> SharedDict:
    """The templates that an attack can learn from."""
    known = catalogue.templates.get(kind, {})
    return SharedDict({kind: {language: lines[:ATTACK_TEMPLATES] for language, lines in known.items()}})


@remembered
def named_content(choice: Choice, networks: tuple[str, ...]) -> dict[str, str]:
    """Hashes of the files, folders and assets that hyper-parameters name, because their content affects the result.

    A hyper-parameter in ``networks`` may also name a network of the hub, which has its commit instead.

    Raises:
        UserError: for a hyper-parameter in ``networks`` that names a file or folder by a bare word.
    """
    found = {}
    for key, value in choice.values.items():
        if isinstance(value, str) and value:
            content = _content_of(value)
            commit = None
            if not content and key in networks:
                content_path(value, f"{choice.name}.{key}")
                commit = hub_commit(value)
            if content or commit:
                found[key] = content or f"hub:{commit}"
    return found


def _content_of(value: str) -> str | None:
    """The hash of the file, folder or asset that a text names; `None` if it names none."""
    ours = shipped("datasets") / f"{value}.csv"
    return file_hash(ours) if not referred(value) and is_file(ours) else content_digest(value)


def check_content(kind: str, config: Mapping[str, Any]) -> None:
    """Raise a `UserError` if content that hyper-parameters name is not what the task's key stands for.

    ``config`` is that of a task. The commit of a hub network (``hub:…``) does not change.
    """
    for key, planned in config.get("files", {}).items():
        value = config["hyperparameters"].get(key)
        if value is None or planned.startswith("hub:") or _content_of(value) == planned:
            continue
        place = Path(value)
        model = (place / "model_index.json").is_file()
        if place.exists() and not (model and unchanged(value, planned)):
            raise changed(f"{kind}.{key}={value}")


def named_models(keys: Sequence[str], values: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the models that these hyper-parameters name."""
    found = {}
    for key in keys:
        if values.get(key):
            try:
                found[key] = fingerprint_model(values[key])
            except UserError as error:
                raise UserError(str(error).replace("model.path=", f"method.{key}=")) from None
    return found


@cache
def source_code(kind: str, name: str) -> dict[str, str]:
    """The source code of a component, for `Task.sources`; empty if it is not followed (`Component.source`)."""
    return component(kind, name).source


def kind_of_extractor(name: str) -> str:
    """``"extractor"``, or ``"detector"`` if a detector of that name serves as one."""
    return "extractor" if name in components("extractor") else "detector"


def extractor_source(name: str) -> dict[str, str]:
    """`source_code` of an extractor, or of a detector that serves as one."""
    return source_code(kind_of_extractor(name), name)


def pictures_version(name: str) -> dict[str, int]:
    """The version of a source of pictures; empty for version 1, which keys do not contain."""
    version = pictures(name).version
    return {"pictures": version} if version != 1 else {}


def pictures_source(name: str | None) -> dict[str, str]:
    """`source_code` of a source of pictures."""
    return source_code("pictures", name) if name and name in components("pictures") else {}


def applied_metrics(cell: Cell) -> dict[str, type[Metric]]:
    """The metrics that are measured in cells of the cell's attack, by name."""
    found = {name: metric_class(name, reference) for name, reference in cell.metrics.metrics.items()}
    return {name: metric for name, metric in found.items() if metric.applies_to(cell.attack.name)}


@cache
def metric_class(name: str, reference: str) -> type[Metric]:
    """The class ``module:Class`` of a metric. Raises a `UserError` if there is none, or if it is not a metric."""
    try:
        metric = load_attribute(reference)
    except UserError as error:
        raise UserError(f"metrics.metrics.{name}: {error}") from error
    where = f"metrics.metrics.{name}"
    if not isinstance(metric, type) or not issubclass(metric, Metric):
        raise UserError(f"{where}: {reference} is not a metric (overpaint.metrics.metric:Metric)")
    _check_description(metric, f"{where}: {metric.__name__}")
    return metric


def _check_description(metric: type[Metric], where: str) -> None:
    """Raise a `UserError` for a class attribute with a value that tables or plans cannot use.

    A facet of the user's own is allowed unless it is nearly one of the tracks'.
    """
    for attribute in ("facet", "direction", "unit", "aggregation", "paper"):
        value = getattr(metric, attribute, None)
        if not isinstance(value, str) or (not value and attribute in ("facet", "unit")):
            raise UserError(f"{where}.{attribute} takes a text, got {shown(value)} (docs/extending.md)")
    if metric.direction not in BETTER:
        raise unknown("direction", metric.direction, BETTER, where)
    if metric.facet not in facets() and get_close_matches(metric.facet.casefold(), facets(), 1, MISSPELT):
        raise unknown("facet", metric.facet, facets(), where)
    check_type(metric.version, int, f"{where}.version")
    for attribute, (word, allowed) in _ALLOWED.items():
        values = getattr(metric, attribute)
        if not isinstance(values, tuple | list):
            raise UserError(
                f"{where}.{attribute} takes a tuple of texts, such as ({shown(allowed[0])},), got {shown(values)}"
            )
        for value in values:
            if value not in allowed:
                raise unknown(word, str(value), allowed, where)


#: Class attributes of metrics that take several words: what one is called, and the allowed ones.
_ALLOWED = {
    "roles": ("role", IMAGE_ROLES),
    "also": ("role", IMAGE_ROLES),
    "frames": ("frame", get_args(FrameName)),
    "extracted": ("frame", get_args(FrameName)),
    "tasks": ("task", ("similarity", "latency")),
}
