"""The tasks that measure a cell from its images and scores: comparisons, memberships, latency and the figures themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from overpaint.errors import unknown
from overpaint.grid.cells import Cell
from overpaint.grid.digests import canonical
from overpaint.grid.prompts import shared_noise
from overpaint.grid.registry import component
from overpaint.grid.scope import scope
from overpaint.grid.source_code import source_of
from overpaint.images.extractions import chosen_extractors
from overpaint.images.pictures import pictures
from overpaint.images.task_parts import (
    described_shots,
    entries,
    erasure_input,
    kinds_by_label,
    loads_of,
    metric_class,
    model_of,
    pictures_source,
    pictures_version,
    runtime_of,
    source_code,
)
from overpaint.images.tasks import Batch, build_attack, build_method, erase_task, score_settings
from overpaint.metrics.membership import SCORES
from overpaint.models.sources import fingerprint_model, model_family_source
from overpaint.report import statistics
from overpaint.report.records import settings_hash
from overpaint.run.plan import Plan
from overpaint.run.tasks import Task


def compare_task(plan: Plan, images: Batch, original: Batch) -> Task:
    """The task that compares a batch with the unedited model's images of the same prompts and noise."""
    inputs = {"images": images.made.key, "original": original.made.key}
    label = f"compare {images.made.label.removeprefix('generate ')}"
    return plan.add(Task("compare", {}, inputs, {"compare": 1}, {"device": None}, label, images.made.amount))


def membership_task(plan: Plan, cell: Cell, scores: Iterable[str]) -> Task:
    """The task that scores training images of the cell's erased concepts, and images that the model was not trained on.

    ``scores`` names the scores that are computed (`overpaint.metrics.membership.SCORES`).
    """
    erasure = erase_task(plan, cell)
    name, count = str(cell.model.reference), max(2, cell.budget.reference_images // 2)
    labels = sorted({concept.label or concept.name for concept in cell.concepts.request.erase})
    config = model_of(cell.model) | {
        "concepts": labels,
        "count": count,
        "training": pictures(name).training_identity(labels, count),
    }
    columns = sorted(scores)
    for column in columns:
        if column not in SCORES:
            raise unknown("column of a membership metric", column, SCORES)
    if columns != sorted(SCORES):  # a list of all would change the keys of older results
        config["scores"] = columns
    runtime = runtime_of(cell.model, cell.protocol.batch_size) | {"pictures": name}
    label = f"membership of {', '.join(labels)}, {cell.method.label}"
    inputs, versions = erasure_input(erasure), {"membership": 1} | pictures_version(name)
    sources = pictures_source(name) | model_family_source(cell.model.path)
    loads = loads_of(config, erasure)
    return plan.add(
        Task("membership", config, inputs, versions, runtime, label, 2 * count, loads=loads, sources=sources)
    )


def replicate_task(plan: Plan, cell: Cell, images: Batch) -> Task:
    """The task that compares images of repeated training captions with training images."""
    name = str(cell.model.reference)
    config, runtime = {"training": pictures(name).training_identity([], 0)}, {"device": None, "pictures": name}
    label = f"replication {images.made.label.removeprefix('generate ')}"
    inputs = {"images": images.made.key}
    versions, sources = {"replicate": 1} | pictures_version(name), pictures_source(name)
    return plan.add(Task("replicate", config, inputs, versions, runtime, label, images.made.amount, sources=sources))


def latency_task(plan: Plan, cell: Cell) -> Task | None:
    """The task that measures the cell's latency relative to the unedited model; ``None`` for the unedited model."""
    erasure = erase_task(plan, cell)
    if erasure is None:
        return None
    config = model_of(cell.model) | {"protocol": cell.protocol.settings}
    label = f"latency of {cell.method.label}"
    like = f"{config['model']}/{cell.protocol.steps}"
    inputs, versions, sources = erasure_input(erasure), {"latency": 1}, model_family_source(cell.model.path)
    runtime = runtime_of(cell.model, cell.protocol.batch_size)
    loads = loads_of(config, erasure)
    return plan.add(Task("latency", config, inputs, versions, runtime, label, like=like, loads=loads, sources=sources))


def measure_task(
    plan: Plan, cell: Cell, frames: Mapping[str, Sequence[Batch]], beside: Mapping[str, Task], given: bool = False
) -> Task:
    """The task that computes the cell's figures from the scores of all frames and the results of the tasks ``beside``.

    ``given`` says that other code made the images: the cell's model and method are names only.
    """
    scored = [(f"{name}/{index}", b) for name, batches in frames.items() for index, b in enumerate(batches)]
    inputs = {place: batch.scored.key for place, batch in scored}
    inputs |= {name: task.key for name, task in beside.items()}
    shots = {
        name: [None if b.shots is None else described_shots(b.shots) for b in batches]
        for name, batches in frames.items()
    }
    metrics = cell.metrics.metrics
    config: dict[str, Any] = {
        "cell": described(cell, "" if given else fingerprint_model(cell.model.path))
        | {"versions": canonical(_versions(plan, inputs.values()))},
        "scope": "" if given else cell_scope(cell),
        "erased": entries(cell.concepts.request.erase),
        "kinds": kinds_by_label(cell.concepts.catalogue),
        "shots": shots,
        "metrics": metrics,
        "threshold": cell.metrics.threshold,
        "failure_limit": cell.metrics.failure_limit,
        "judged_by_itself": cell.model.judge in (None, cell.model.detector),
        "detector": score_settings(plan, cell),
    }
    if cell.concepts.attributes:
        config["desired"] = dict(cell.concepts.attributes)
    if cell.model.detector and (counted := component("detector", cell.model.detector).load().counted):
        config["counted"] = list(counted)
    extractors = chosen_extractors(cell)
    if extractors:
        config["extractors"] = extractors
    versions = {name: metric_class(name, reference).version for name, reference in metrics.items()}
    versions["statistics"] = statistics.VERSION
    if any(shared_noise(shot for b in batches for shot in b.shots or ()) for batches in frames.values()):
        versions["translations"] = 2
    sources = {f"metrics.metrics.{name}": source_of(reference) for name, reference in metrics.items()}
    for attack in filter(None, (cell.attack.name, cell.attack.control)):  # some run in the planner and have no task
        sources |= source_code("attack", attack)
    sources = {name: source for name, source in sources.items() if source}
    return plan.add(Task("measure", config, inputs, versions, {}, f"measure {cell.label}", sources=sources))


def described(cell: Cell, model: str) -> dict[str, Any]:
    """The columns that assign a record to its cell: labels for people, and hashes that identify it."""
    return {
        **cell.labels,
        "seed": cell.seed,
        "kind": cell.concepts.kind,
        "method_name": cell.method.name,
        "attack_name": cell.attack.name,
        "settings": settings_hash(cell.settings_text(model)),
        "given": canonical(cell.given),
    }


def _versions(plan: Plan, inputs: Iterable[str]) -> dict[str, int]:
    """The version of every component that these tasks depend on, by name; by kind and name where kinds share a name
    (``method=safety_checker`` and ``detector=safety_checker``)."""
    found: dict[tuple[str, str], int] = {}
    waiting, seen = list(inputs), set()
    while waiting:
        task = plan.tasks[waiting.pop()]
        if task.key not in seen:
            seen.add(task.key)
            waiting += task.inputs.values()
            for name, version in task.versions.items():
                found[name, str(task.config.get(name, name))] = version
            found |= {("detector", name): own["version"] for name, own in task.config.get("detectors", {}).items()}
            for named in ("detector", "extractor"):
                if task.config.get(named):
                    settings = task.config["settings"]
                    kind = "detector" if settings.get("detector") else named  # some extractors are detectors
                    found[kind, task.config[named]] = settings["version"]
    kinds = Counter(name for _, name in found)
    return {f"{kind}={name}" if kinds[name] > 1 else name: version for (kind, name), version in found.items()}


def cell_scope(cell: Cell) -> str:
    """`overpaint.grid.scope.scope` of the cell's attack and method; empty for the unedited model."""
    if cell.method.name == "none":
        return ""
    return scope(
        build_method(cell.method, cell.method_seed).acts_on, build_attack(cell.attack, cell.attack_seed).enters_by
    )
