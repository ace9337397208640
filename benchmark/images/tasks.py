"""The tasks of image cells, one function per stage.

Everything that affects a result is in a task's configuration, versions and inputs. Paths and batch sizes are in its runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from overpaint.attacks.attack import Attack
from overpaint.detectors import detector_identity
from overpaint.errors import AssetMissing, UserError
from overpaint.grid.cells import Cell
from overpaint.grid.choices import Choice, build
from overpaint.grid.concepts import Concept
from overpaint.grid.labels import file_digest, is_file
from overpaint.grid.prompt_files import ASSET, PromptList
from overpaint.grid.prompts import Shot
from overpaint.grid.registry import component, load_attribute
from overpaint.grid.scope import scope
from overpaint.grid.shipped import shipped
from overpaint.images.pictures import pictures
from overpaint.images.stages.generate import shot_row
from overpaint.metrics.metric import Metric
from overpaint.models.sources import fingerprint_model, resolve
from overpaint.report import statistics
from overpaint.report.records import settings_hash
from overpaint.run.plan import Plan
from overpaint.run.store import file_hash
from overpaint.run.tasks import Task, canonical

#: Version of our half-precision arithmetic (scaled losses, noise levels, attention). Results of models in float32 and float64
#: do not depend on it.
HALF_PRECISION = 2


@dataclass(frozen=True)
class Batch:
    """Images that are generated and scored together. ``shots`` is ``None`` if an attack chooses them while it runs."""

    shots: list[Shot] | None
    made: Task
    scored: Task


def absent_assets(cell: Cell) -> list[str]:
    """A sentence for each detector, prompt list and file of a method or attack that a cell needs and that is not on this machine,
    with the way to get it."""
    said = [listed.absent for listed in cell.concepts.lists.values()]
    values = [*cell.method.values.values(), *cell.attack.values.values()]
    said += [PromptList(value).absent for value in values if isinstance(value, str) and ASSET.fullmatch(value)]
    for name in filter(None, (cell.model.detector, cell.model.judge)):
        try:
            detector_identity(name)
        except AssetMissing as error:
            said.append(str(error))
    return list(filter(None, said))


def _detector_identity(name: str) -> dict[str, Any]:
    """`detector_identity`; of a detector whose files are missing, its name: such a plan cannot run (`absent_assets`)."""
    try:
        return detector_identity(name)
    except AssetMissing:
        return {"absent": name, "version": 0}


def build_attack(choice: Choice, seed: int) -> Attack:
    """An instance of the chosen attack with this seed."""
    return build("attack", choice, seed)


def erase_task(plan: Plan, cell: Cell) -> Task | None:
    """The task of the cell's erasure; ``None`` for the unedited model."""
    if cell.method.name == "none":
        return None
    request = cell.concepts.request
    config = _model(cell) | {
        "method": cell.method.name,
        "hyperparameters": dict(cell.method.values),
        "erase": [asdict(c) for c in request.erase],
        "retain": [asdict(c) for c in request.retain],
        "seed": cell.method_seed,
    }
    if cell.concepts.sequential:
        config["sequential"] = True
    files = _named_files(cell.method.values)
    if files:
        config["files"] = files
    versions = {"method": component("method", cell.method.name).load().version} | _arithmetic(cell)
    label = f"erase {cell.concepts.name} with {cell.method.label}"
    return plan.add(Task("erase", config, {}, versions, _runtime(cell), label, like=cell.method.name))


def attack_task(
    plan: Plan,
    cell: Cell,
    attack: Attack,
    concept: Concept,
    plain: Sequence[Shot],
    examples: Sequence[Task],
    erasure: Task | None,
) -> Task:
    """The task of one attack run, on a whole concept or on one of its prompts.

    ``examples`` are tasks that generate the attacker's example images. The list is empty if the model's picture source draws
    them.
    """
    config = _model(cell) | {
        "attack": cell.attack.name,
        "hyperparameters": dict(cell.attack.values),
        "concept": asdict(concept),
        "shots": [shot.as_dict() for shot in plain],
        "templates": {concept.kind: cell.concepts.catalogue.templates.get(concept.kind, {})},
        "seed": cell.attack_seed,
    }
    inputs = _erasure(erasure) if attack.needs == "victim" else {}
    if attack.shown and not examples:
        config["examples"] = cell.model.reference
    inputs |= {f"examples{index}": made.key for index, made in enumerate(examples)}
    if attack.paints:
        config["protocol"] = _protocol(cell)
        judge = cell.model.judge or cell.model.detector
        attack.check(bool(judge))
        if judge:
            identity = _detector_identity(judge)
            config["judge"] = {"detector": judge, "settings": identity, "threshold": cell.metrics.threshold}
    whose = f"{cell.concepts.name}, {cell.method.label}, " if attack.needs == "victim" else ""
    which = f", {plain[0].prompt.text!r}" if attack.unit == "prompt" else ""
    label = f"{whose}{cell.attack.label} for {concept.name}{which}"
    amount = len(plain) * attack.images_for(concept, plain)
    versions = {"attack": attack.version} | _arithmetic(cell)
    return plan.add(Task("attack", config, inputs, versions, _runtime(cell), label, amount, cell.attack.name))


def known_images(plan: Plan, cell: Cell, shots: Sequence[Shot], what: str) -> list[Batch]:
    """Tasks for the images of shots that are known at planning time, in shards of ``budget.shard``."""
    batches, erasure = [], erase_task(plan, cell)
    for shard in shards(shots, cell.budget.shard):
        rows = [shot_row(shot, cell.protocol.size) for shot in shard]
        made = _generate_task(plan, cell, erasure, rows, {}, what, len(shard))
        batches.append(Batch(shard, made, _score_task(plan, cell, made, {})))
    return batches


def found_images(plan: Plan, cell: Cell, attacks: Sequence[Task], what: str, amount: int) -> Batch:
    """Tasks for the images of the shots that attacks choose. ``amount`` is the expected number of images."""
    found = {f"assault/{index:05}": task.key for index, task in enumerate(attacks)}
    made = _generate_task(plan, cell, erase_task(plan, cell), None, found, what, amount)
    return Batch(None, made, _score_task(plan, cell, made, found))


def painted_images(plan: Plan, cell: Cell, attack: Task) -> Batch:
    """Scoring of the images that an attack generates itself."""
    return Batch(None, attack, _score_task(plan, cell, attack, {}))


def reference_images(plan: Plan, cell: Cell) -> Batch:
    """Tasks for real pictures from the source in ``model.reference``."""
    name, count = cell.model.reference, cell.budget.reference_images
    runtime = {"pictures": name, "count": count}
    source = pictures(name)
    versions = {"reference": source.version}
    made = plan.add(Task("reference", source.identity(count), {}, versions, runtime, "reference pictures", count))
    return Batch([], made, _score_task(plan, cell, made, {}))


def compare_task(plan: Plan, images: Batch, original: Batch) -> Task:
    """The task that compares a batch with the unedited model's images of the same prompts and noise."""
    inputs = {"images": images.made.key, "original": original.made.key}
    label = f"compare {images.made.label.removeprefix('generate ')}"
    return plan.add(Task("compare", {}, inputs, {"compare": 1}, {"device": None}, label, images.made.amount))


def latency_task(plan: Plan, cell: Cell) -> Task | None:
    """The task that measures the cell's latency relative to the unedited model; ``None`` for the unedited model."""
    erasure = erase_task(plan, cell)
    if erasure is None:
        return None
    config = _model(cell) | {"protocol": _protocol(cell)}
    label = f"latency of {cell.method.label}"
    return plan.add(Task("latency", config, _erasure(erasure), {"latency": 1}, _runtime(cell), label))


def measure_task(plan: Plan, cell: Cell, frames: Mapping[str, Sequence[Batch]], beside: Mapping[str, Task]) -> Task:
    """The task that computes the cell's figures from the scores of all frames and the results of the tasks ``beside``."""
    scored = [(f"{name}/{index}", b) for name, batches in frames.items() for index, b in enumerate(batches)]
    inputs = {place: batch.scored.key for place, batch in scored}
    inputs |= {name: task.key for name, task in beside.items()}
    shots = {
        name: [None if b.shots is None else [shot.as_dict() for shot in b.shots] for b in batches]
        for name, batches in frames.items()
    }
    metrics = cell.metrics.metrics
    config = {
        "cell": _described(plan, cell, inputs.values()),
        "scope": _scope(cell),
        "erased": [asdict(c) for c in cell.concepts.request.erase],
        "kinds": {c.label: c.kind for c in cell.concepts.catalogue.concepts.values() if c.label},
        "shots": shots,
        "metrics": metrics,
        "threshold": cell.metrics.threshold,
        "failure_limit": cell.metrics.failure_limit,
        "judged_by_itself": cell.model.judge in (None, cell.model.detector),
        "detector": _score_settings(cell),
    }
    versions = {name: _metric(name, reference).version for name, reference in metrics.items()}
    versions["statistics"] = statistics.VERSION
    return plan.add(Task("measure", config, inputs, versions, {}, f"measure {cell.label}"))


def shards(shots: Sequence[Shot], size: int) -> list[list[Shot]]:
    """The shots in consecutive lists of at most ``size``."""
    return [list(shots[start : start + size]) for start in range(0, len(shots), size)]


def _generate_task(
    plan: Plan, cell: Cell, erasure: Task | None, shots: list | None, attacks: Mapping[str, str], what: str, amount: int
) -> Task:
    config = _model(cell) | {"protocol": _protocol(cell), "shots": shots}
    inputs = _erasure(erasure) | dict(attacks)
    label, like = f"generate {what}", f"{config['model']}/{cell.protocol.steps}"
    return plan.add(Task("generate", config, inputs, {"generate": 1}, _runtime(cell), label, amount, like))


def _score_task(plan: Plan, cell: Cell, made: Task, attacks: Mapping[str, str]) -> Task:
    """The task that extracts from a batch what measurements need: scores, cost, and the shots that attacks chose."""
    inputs = {"images": made.key, **attacks}
    label = f"score {made.label.removeprefix('generate ')}"
    versions, runtime = {"score": 2}, {"device": None}
    return plan.add(
        Task("score", _score_settings(cell), inputs, versions, runtime, label, made.amount, cell.model.detector or "")
    )


def _score_settings(cell: Cell) -> dict[str, Any]:
    name = cell.model.detector
    return {"detector": name, "settings": _detector_identity(name) if name else None}


def _erasure(task: Task | None) -> dict[str, str]:
    return {"erasure": task.key} if task else {}


def _described(plan: Plan, cell: Cell, inputs: Iterable[str]) -> dict[str, Any]:
    """The columns that assign a record to its cell: labels for people, and hashes that identify it."""
    settings = cell.settings
    settings["model"]["path"] = fingerprint_model(cell.model.path)
    return {
        **cell.labels,
        "seed": cell.seed,
        "kind": cell.concepts.kind,
        "method_name": cell.method.name,
        "attack_name": cell.attack.name,
        "settings": settings_hash(settings),
        "given": canonical(cell.given),
        "versions": canonical(_versions(plan, inputs)),
    }


def _versions(plan: Plan, inputs: Iterable[str]) -> dict[str, int]:
    """The version of every component that these tasks depend on, by name."""
    found: dict[str, int] = {}
    waiting, seen = list(inputs), set()
    while waiting:
        task = plan.tasks[waiting.pop()]
        if task.key not in seen:
            seen.add(task.key)
            waiting += task.inputs.values()
            found |= {str(task.config.get(name, name)): version for name, version in task.versions.items()}
            if task.config.get("detector"):
                found[task.config["detector"]] = task.config["settings"]["version"]
    return found


def _scope(cell: Cell) -> str:
    """`overpaint.grid.scope.scope` of the cell's attack and method; empty for the unedited model."""
    if cell.method.name == "none":
        return ""
    eraser = build("method", cell.method, cell.method_seed)
    return scope(eraser.acts_on, build_attack(cell.attack, cell.attack_seed).enters_by)


def _metric(name: str, reference: str) -> type[Metric]:
    try:
        metric = load_attribute(reference)
    except UserError as error:
        raise UserError(f"metrics.metrics.{name}: {error}") from error
    if not isinstance(metric, type) or not issubclass(metric, Metric):
        raise UserError(f"metrics.metrics.{name}: {reference} is not a metric (overpaint.metrics.metric:Metric)")
    return metric


def _protocol(cell: Cell) -> dict[str, Any]:
    """The settings of the protocol that affect images."""
    return {key: getattr(cell.protocol, key) for key in ("scheduler", "steps", "guidance_scale", "size")}


def _model(cell: Cell) -> dict[str, Any]:
    return {"model": fingerprint_model(cell.model.path), "precision": cell.model.precision}


def _arithmetic(cell: Cell) -> dict[str, int]:
    """The version of half-precision arithmetic; empty for models in float32 and float64."""
    return {"half": HALF_PRECISION} if cell.model.precision in ("float16", "bfloat16") else {}


def _runtime(cell: Cell) -> dict[str, Any]:
    return {"path": resolve(cell.model.path), "device": None, "batch_size": cell.protocol.batch_size}


def _named_files(values: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the files and folders that hyper-parameters name, such as a caption file: their content affects the result."""
    found = {}
    for key, value in values.items():
        if isinstance(value, str) and ASSET.fullmatch(value):
            found[key] = PromptList(value).identity
        elif isinstance(value, str) and value:
            ours = shipped("datasets") / f"{value}.csv"
            if content := file_hash(ours) if is_file(ours) else file_digest(value):
                found[key] = content
    return found
