"""Tasks of extractors: which images and texts the metrics of a cell need read, and by which network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from overpaint.detectors import detector_identity
from overpaint.errors import AssetMissing, unknown
from overpaint.extractors import extractor_identity
from overpaint.extractors.extractor import Extractor
from overpaint.grid.cells import Cell, recommended_threshold
from overpaint.grid.registry import component, components
from overpaint.images.task_parts import applied_metrics, extractor_source, kind_of_extractor
from overpaint.images.tasks import Batch
from overpaint.metrics.metric import SECOND, Metric
from overpaint.run.plan import Plan
from overpaint.run.tasks import Task

Metrics = Sequence[type[Metric]]


def extractions(plan: Plan, cell: Cell, frames: Mapping[str, Sequence[Batch]]) -> dict[str, Task]:
    """Tasks of all extractors that the cell's metrics name, by the name of the measurement's input.

    Figures whose extractor is missing are undefined, and the plan notes it. Without reference images, nothing is read for
    distances to them.
    """
    tasks: dict[str, Task] = {}
    for purpose, described in chosen_extractors(cell).items():
        metrics = {name: metric for name, metric in applied_metrics(cell).items() if metric.extractor == purpose}
        if "absent" in described:
            needed = [name for name, metric in metrics.items() if not metric.optional]
            said = f"undefined: {', '.join(needed)}" if needed else f"without metrics.extractors.{purpose}"
            plan.notes.append(f"{said} ({described['absent']})")
        else:
            usable = [m for m in metrics.values() if "reference" not in m.extracted or frames.get("reference")]
            tasks |= _tasks(plan, cell, frames, described["name"], purpose, usable)
    return tasks


def _tasks(
    plan: Plan, cell: Cell, frames: Mapping[str, Sequence[Batch]], chosen: str, purpose: str, metrics: Metrics
) -> dict[str, Task]:
    """The tasks of one extractor, by the name of the measurement's input."""
    found: dict[str, Task] = {}
    paired = _paired(chosen)
    for frame in dict.fromkeys(frame for metric in metrics for frame in metric.extracted):
        if paired and (frame != "images" or cell.method.name == "none"):
            continue
        roles = {role for metric in metrics if frame in metric.extracted for role in (*metric.roles, *metric.also)}
        for index, batch in enumerate(frames.get(frame, ())):
            if frame == "reference" or _roles(batch) & roles:
                original = frames["original"][index] if paired else None
                found[f"extracted/{purpose}/{frame}/{index}"] = extract_task(plan, chosen, batch, original)
    texts = [
        text for metric in metrics for text in metric().texts(_prompts(frames, metric), cell.concepts.request.erase)
    ]
    if texts:
        found[f"texts/{purpose}"] = embed_task(plan, chosen, texts)
    return found


def _paired(name: str) -> bool:
    """Whether an extractor compares images with the unedited model's. Detectors do not."""
    if name not in components("extractor"):
        return False
    extractor: type[Extractor] = component("extractor", name).load()
    return extractor.paired


def _roles(batch: Batch) -> set[str]:
    """The roles of a batch's images. An attack that chooses its shots makes attacked images."""
    return {"attacked"} if batch.shots is None else {shot.prompt.role for shot in batch.shots}


def _prompts(frames: Mapping[str, Sequence[Batch]], metric: type[Metric]) -> pd.DataFrame:
    """The prompts, known before anything runs, of a metric's roles in all its frames."""
    shots = [
        shot.prompt
        for frame in ("images", "retained")
        for batch in frames.get(frame, ())
        for shot in batch.shots or ()
        if shot.prompt.role in (*metric.roles, *metric.also, *(("near",) if frame == "retained" else ()))
    ]
    rows = [(prompt.text, prompt.concept, prompt.role) for prompt in shots]
    return pd.DataFrame(rows, columns=["prompt", "concept", "role"])


def unmeasured(cells: Sequence[Cell]) -> list[str]:
    """A sentence for each metric set that also measures attacks which the grid does not have."""
    said = []
    for name in dict.fromkeys(cell.metrics.name for cell in cells):
        chosen = [cell for cell in cells if cell.metrics.name == name]
        missing = [
            attack for attack in chosen[0].metrics.attacks if attack not in {cell.attack.name for cell in chosen}
        ]
        if missing:
            said.append(
                f"metrics={name} also has figures of attack={','.join(missing)}; add them to the grid to see them"
            )
    return said


def extract_task(plan: Plan, name: str, images: Batch, original: Batch | None) -> Task:
    """The task in which an extractor reads a batch, beside the unedited model's batch if it is paired."""
    inputs = {"images": images.made.key} | ({"original": original.made.key} if original else {})
    label = f"extract {name}, {images.made.label.removeprefix('generate ')}"
    config = {"extractor": name, "settings": identity_of(name)}
    runtime, amount = {"device": None}, images.made.amount
    return plan.add(
        Task("extract", config, inputs, {"extract": 1}, runtime, label, amount, name, sources=extractor_source(name))
    )


def embed_task(plan: Plan, name: str, texts: Sequence[str]) -> Task:
    """The task in which an extractor embeds texts."""
    config = {"extractor": name, "settings": identity_of(name), "texts": sorted(set(texts))}
    label = f"extract {name}, {len(config['texts'])} texts"
    versions, like, sources = {"extract": 1}, f"{name} texts", extractor_source(name)
    return plan.add(Task("extract", config, {}, versions, {"device": None}, label, like=like, sources=sources))


def chosen_extractors(cell: Cell) -> dict[str, dict[str, Any]]:
    """The extractor for each purpose that the cell's metrics name: its ``name`` and ``settings``, or why it is ``absent``.

    The second detector has the ``threshold`` that its YAML recommends: ``metrics.threshold`` belongs to the model's detector.
    """
    return {purpose: _extractor(purpose, chosen) for purpose, chosen in extractor_names(cell).items()}


def extractor_names(cell: Cell) -> dict[str, str | None]:
    """The name of the extractor, or of a detector, for each purpose that the cell's metrics name; ``None`` if none is set."""
    found: dict[str, str | None] = {}
    known = {**components("detector"), **components("extractor")}
    for metric in applied_metrics(cell).values():
        purpose, chosen = metric.extractor, cell.extractor(metric.extractor)
        if purpose and not (chosen is None and metric.optional):
            found[purpose] = chosen
            if chosen and chosen not in known:
                raise unknown("extractor", chosen, known, f"metrics.extractors.{purpose}")
    return found


def extractor_settings(name: str) -> Mapping[str, Any]:
    """The settings in the YAML of an extractor, or of a detector that serves as one."""
    return component(kind_of_extractor(name), name).defaults


def _extractor(purpose: str, chosen: str | None) -> dict[str, Any]:
    if chosen is None:
        return {"absent": f"no extractor: set metrics.extractors.{purpose}"}
    try:
        found = {"name": chosen, "settings": identity_of(chosen)}
    except AssetMissing as error:
        return {"absent": str(error)}
    return found | ({"threshold": recommended_threshold(chosen)} if purpose == SECOND else {})


def identity_of(extractor: str) -> dict[str, Any]:
    """Everything that determines the output of an extractor, or of a detector that serves as one."""
    if kind_of_extractor(extractor) == "detector":
        return {"detector": True, **detector_identity(extractor)}
    return extractor_identity(extractor)
