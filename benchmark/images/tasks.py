"""The tasks of image cells, one function per stage.

Everything that affects a result is in a task's configuration, versions and inputs. Paths and batch sizes are in its runtime.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from overpaint.attacks.attack import Attack
from overpaint.detectors import detector_identity, detector_labels
from overpaint.errors import AssetMissing, UserError, unknown
from overpaint.extractors import extractor_identity
from overpaint.grid.assets import referred
from overpaint.grid.cells import Cell, ModelSpec
from overpaint.grid.choices import Choice, build
from overpaint.grid.concept_sets import ConceptSet
from overpaint.grid.concepts import Concept
from overpaint.grid.labels import canonical
from overpaint.grid.prompts import Shot
from overpaint.grid.read_once import remembered
from overpaint.grid.registry import component, components, load_attribute
from overpaint.grid.roles import TEMPLATES
from overpaint.grid.scope import scope
from overpaint.grid.source_code import source_of
from overpaint.grid.typed import shown
from overpaint.images.pictures import pictures
from overpaint.images.task_parts import (
    arithmetic_of,
    described_shots,
    entries,
    entry,
    erasure_input,
    extractor_source,
    kind_of,
    kinds_by_label,
    known_templates,
    loads_of,
    model_of,
    named_content,
    named_models,
    pictures_source,
    pictures_version,
    rows_of,
    runtime_of,
    source_code,
    values_of,
)
from overpaint.methods.eraser import Eraser
from overpaint.metrics.membership import SCORES
from overpaint.metrics.metric import Metric
from overpaint.models.sources import fingerprint_model, model_family_source, pixels_per_latent, resolve
from overpaint.report import statistics
from overpaint.report.records import settings_hash
from overpaint.run.plan import Plan
from overpaint.run.tasks import SharedDict, Task

#: Version of what ``engine.compile`` does to the network. Compiled images have keys of their own.
COMPILED = 2
#: Version of the rules of ``concepts.merge``.
MERGING = 1


@dataclass(frozen=True)
class Batch:
    """Images that are generated and scored together. ``shots`` is ``None`` if an attack chooses them while it runs."""

    shots: list[Shot] | None
    made: Task
    scored: Task


def cell_assets(cell: Cell) -> list[str]:
    """The names of the assets that a cell's detectors, method, attack and prompt files refer to.

    A model that cannot be used is reported first, so that no weights are fetched for it. So is a list that no asset has.
    """
    resolve(cell.model.path)
    for listed in cell.concepts.lists.values():
        listed.check()
    detectors = [_detector_assets(name) for name in (cell.model.detector, cell.model.judge) if name]
    detectors += [
        referred({**component("detector", name).defaults, **settings})
        for name, settings in _looking(cell.method, cell.concepts).items()
    ]
    merge = cell.concepts.merge and cell.concepts.merge.captions
    values = (cell.method.values, cell.attack.values, cell.concepts.prompts, cell.model.reference, merge)
    return list(dict.fromkeys(name for found in (*detectors, *map(_referred, values)) for name in found))


_referred = remembered(referred)  # cells share their parts


@remembered
def _detector_assets(name: str) -> list[str]:
    return referred(component("detector", name).defaults)


@remembered
def build_attack(choice: Choice, seed: int) -> Attack:
    """An instance of the chosen attack with this seed."""
    return build("attack", choice, seed)


@remembered
def build_method(choice: Choice, seed: int) -> Eraser:
    """An instance of the chosen method with this seed."""
    return build("method", choice, seed)


def erase_task(plan: Plan, cell: Cell) -> Task | None:
    """The planned task of the cell's erasure; ``None`` for the unedited model."""
    erasure = erasure_of(cell)
    return plan.add(erasure) if erasure else None


def erasure_of(cell: Cell) -> Task | None:
    """The task of the cell's erasure; ``None`` for the unedited model."""
    if cell.method.name == "none":
        return None
    return _erasure_of(cell.model, cell.concepts, cell.method, cell.method_seed, cell.protocol.batch_size)


@remembered
def _erasure_of(model: ModelSpec, concepts: ConceptSet, method: Choice, seed: int, batch_size: int) -> Task:
    config = model_of(model) | {
        "method": method.name,
        "hyperparameters": values_of(method),
        "erase": entries(concepts.request.erase),
        "retain": entries(concepts.request.retain),
        "seed": seed,
    }
    if concepts.sequential:
        config["sequential"] = True
    eraser = build_method(method, seed)
    files = named_content(method, eraser.networks) | named_models(eraser.models, method.values)
    if concepts.merge:
        config["merge"] = concepts.merge.settings
        files |= {"merge.captions": concepts.merge.content} if concepts.merge.content else {}
    if files:
        config["files"] = files
    looking = _looking(method, concepts)
    if looking:
        config["detectors"] = {name: _identity_or_absence(name, settings)[0] for name, settings in looking.items()}
    versions = {"method": eraser.version} | arithmetic_of(model) | ({"merging": MERGING} if concepts.merge else {})
    sources = source_code("method", method.name) | model_family_source(model.path)
    for name in looking:
        sources |= source_code("detector", name)
    label = f"erase {concepts.name} with {method.label}"
    like, runtime = kind_of(method, config), runtime_of(model, batch_size)
    return Task("erase", config, {}, versions, runtime, label, like=like, loads=loads_of(config), sources=sources)


@remembered
def _looking(method: Choice, concepts: ConceptSet) -> dict[str, Mapping[str, Any]]:
    """The detectors that the method's erasures of these concepts ask, by name, with the settings they get."""
    return {} if method.name == "none" else dict(build_method(method, 0).detectors(concepts.request))


def _identity_or_absence(name: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """`detector_identity`, or its name and a sentence if a file of the detector is not on this machine."""
    try:
        return detector_identity(name, settings=settings), ""
    except AssetMissing as error:
        return {"absent": name, "version": 0}, str(error)


def absent_from_erasure(cell: Cell) -> list[str]:
    """A sentence for each detector that the cell's method asks and that is not on this machine."""
    looking = _looking(cell.method, cell.concepts)
    return [said for name, settings in looking.items() if (said := _identity_or_absence(name, settings)[1])]


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
    config = model_of(cell.model) | {
        "attack": cell.attack.name,
        "hyperparameters": values_of(cell.attack),
        "concept": entry(concept),
        "shots": described_shots(plain),
        "templates": known_templates(cell.concepts.catalogue, concept.kind),
        "seed": cell.attack_seed,
    }
    files = named_content(cell.attack, attack.networks)
    if files:
        config["files"] = files
    sources = source_code("attack", cell.attack.name) | model_family_source(cell.model.path)
    inputs = erasure_input(erasure) if attack.needs == "victim" else {}
    versions = {"attack": attack.version} | arithmetic_of(cell.model)
    if attack.shown and not examples:
        config["examples"] = cell.model.reference
        versions |= pictures_version(str(cell.model.reference))
        sources |= pictures_source(cell.model.reference)
    inputs |= {f"examples{index}": made.key for index, made in enumerate(examples)}
    if attack.paints:
        config["protocol"] = cell.protocol.settings
        judge = cell.model.judge or cell.model.detector
        attack.check(bool(judge))
        if judge:
            config["judge"] = {
                "detector": judge,
                "settings": _detector_settings(plan, cell.concepts, judge),
                "threshold": cell.metrics.threshold,
            }
            sources |= source_code("detector", judge)
    whose = f"{cell.concepts.name}, {cell.method.label}, " if attack.needs == "victim" else ""
    which = f", {plain[0].prompt.text!r}" if attack.unit == "prompt" else ""
    label = f"{whose}{cell.attack.label} for {concept.name}{which}"
    amount = len(plain) * attack.images_for(concept, plain)
    like = kind_of(cell.attack, config) + (f"/{cell.protocol.steps}" if attack.paints else "")
    runtime = runtime_of(cell.model, cell.protocol.batch_size)
    loads = loads_of(config, erasure)
    return plan.add(
        Task("attack", config, inputs, versions, runtime, label, amount, like, loads=loads, sources=sources)
    )


def known_images(plan: Plan, cell: Cell, shots: Sequence[Shot], what: str) -> list[Batch]:
    """Tasks for the images of shots that are known at planning time, in shards of ``budget.shard``."""
    for prompt in {shot.prompt.size: shot.prompt for shot in shots}.values():
        if prompt.size and not cell.protocol.size:
            check_sides(cell, prompt.size, f"prompt {shown(prompt.text)} of {' × '.join(map(str, prompt.size))} pixels")
    batches, erasure = [], erase_task(plan, cell)
    for shard in shards(shots, cell.budget.shard):
        made = _generate_task(plan, cell, erasure, rows_of(shard, cell.protocol.size), {}, what, len(shard))
        batches.append(Batch(shard, made, _score_task(plan, cell, made, {})))
    return batches


def check_sides(cell: Cell, sides: Sequence[int], what: str) -> None:
    """Raise a `UserError` that begins with ``what`` if the cell's model cannot make images with such sides, in pixels."""
    unit = pixels_per_latent(cell.model.path) or 1
    for side in sides:
        if side % unit:
            near = sorted({max(unit, side - side % unit), side + unit - side % unit})
            raise UserError(
                f"{what}: sides of images of model={cell.model.name} are multiples of {unit} pixels; "
                f"near {side} are {' and '.join(map(str, near))}"
            )


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
    sources = pictures_source(name)
    made = plan.add(
        Task("reference", source.identity(count), {}, versions, runtime, "reference pictures", count, sources=sources)
    )
    return Batch([], made, _score_task(plan, cell, made, {}))


def given_images(plan: Plan, cell: Cell, shots: list[Shot], files: Sequence[tuple[Path, str]], method: str) -> Batch:
    """Tasks for pictures that other code made. ``files`` are their paths and hashes, one for each shot."""
    config = {"files": [content for _, content in files], "prompts": [shot.prompt.text for shot in shots]}
    runtime = {"files": [str(path) for path, _ in files]}
    made = plan.add(Task("given", config, {}, {"given": 2}, runtime, f"read pictures of {method}", len(files)))
    return Batch(shots, made, _score_task(plan, cell, made, {}))


def compare_task(plan: Plan, images: Batch, original: Batch) -> Task:
    """The task that compares a batch with the unedited model's images of the same prompts and noise."""
    inputs = {"images": images.made.key, "original": original.made.key}
    label = f"compare {images.made.label.removeprefix('generate ')}"
    return plan.add(Task("compare", {}, inputs, {"compare": 1}, {"device": None}, label, images.made.amount))


def applied_metrics(cell: Cell) -> dict[str, type[Metric]]:
    """The metrics that are measured in cells of the cell's attack, by name."""
    found = {name: _metric(name, reference) for name, reference in cell.metrics.metrics.items()}
    return {name: metric for name, metric in found.items() if metric.applies_to(cell.attack.name)}


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
    """The extractor for each purpose that the cell's metrics name: its ``name`` and ``settings``, or why it is ``absent``."""
    found: dict[str, dict[str, Any]] = {}
    for metric in applied_metrics(cell).values():
        purpose, chosen = metric.extractor, cell.extractor(metric.extractor)
        if purpose and not (chosen is None and metric.optional):
            found[purpose] = _extractor(purpose, chosen)
    return found


def _extractor(purpose: str, chosen: str | None) -> dict[str, Any]:
    if chosen is None:
        return {"absent": f"no extractor: set metrics.extractors.{purpose}"}
    known = {**components("detector"), **components("extractor")}
    if chosen not in known:
        raise unknown("extractor", chosen, known, f"metrics.extractors.{purpose}")
    try:
        return {"name": chosen, "settings": identity_of(chosen)}
    except AssetMissing as error:
        return {"absent": str(error)}


def identity_of(extractor: str) -> dict[str, Any]:
    """Everything that determines the output of an extractor, or of a detector that serves as one."""
    if extractor in components("detector") and extractor not in components("extractor"):
        return {"detector": True, **detector_identity(extractor)}
    return extractor_identity(extractor)


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
        "detector": _score_settings(plan, cell),
    }
    if cell.concepts.attributes:
        config["desired"] = dict(cell.concepts.attributes)
    if cell.model.detector and (counted := component("detector", cell.model.detector).load().counted):
        config["counted"] = list(counted)
    extractors = chosen_extractors(cell)
    if extractors:
        config["extractors"] = extractors
    versions = {name: _metric(name, reference).version for name, reference in metrics.items()}
    versions["statistics"] = statistics.VERSION
    sources = {f"metrics.metrics.{name}": source_of(reference) for name, reference in metrics.items()}
    for attack in filter(None, (cell.attack.name, cell.attack.control)):  # some run in the planner and have no task
        sources |= source_code("attack", attack)
    sources = {name: source for name, source in sources.items() if source}
    return plan.add(Task("measure", config, inputs, versions, {}, f"measure {cell.label}", sources=sources))


@remembered
def shards(shots: Sequence[Shot], size: int) -> list[list[Shot]]:
    """The shots in consecutive lists of at most ``size``."""
    return [list(shots[start : start + size]) for start in range(0, len(shots), size)]


def _generate_task(
    plan: Plan, cell: Cell, erasure: Task | None, shots: list | None, attacks: Mapping[str, str], what: str, amount: int
) -> Task:
    config = model_of(cell.model) | {"protocol": cell.protocol.settings, "shots": shots}
    label, like = f"generate {what}", f"{config['model']}/{cell.protocol.steps}"
    if cell.model.compiled:
        config, like = config | {"compiled": COMPILED}, f"{like}/compiled"
    inputs = erasure_input(erasure) | dict(attacks)
    versions, sources = {"generate": 1}, model_family_source(cell.model.path)
    runtime = runtime_of(cell.model, cell.protocol.batch_size)
    loads = loads_of(config, erasure)
    return plan.add(
        Task("generate", config, inputs, versions, runtime, label, amount, like, loads=loads, sources=sources)
    )


def _score_task(plan: Plan, cell: Cell, made: Task, attacks: Mapping[str, str]) -> Task:
    """The task that extracts from a batch what measurements need: scores, cost, and the shots that attacks chose."""
    inputs = {"images": made.key, **attacks}
    label = f"score {made.label.removeprefix('generate ')}"
    versions, runtime, detector = {"score": 2}, {"device": None}, cell.model.detector or ""
    sources = source_code("detector", detector) if detector else {}
    return plan.add(
        Task(
            "score",
            _score_settings(plan, cell),
            inputs,
            versions,
            runtime,
            label,
            made.amount,
            detector,
            sources=sources,
        )
    )


def _score_settings(plan: Plan, cell: Cell) -> dict[str, Any]:
    name = cell.model.detector
    return {"detector": name, "settings": _detector_settings(plan, cell.concepts, name) if name else None}


def _detector_settings(plan: Plan, concepts: ConceptSet, name: str) -> dict[str, Any]:
    """`detector_identity`; without the detector's files, its name, and the plan says what is absent."""
    try:
        return _identity(name, concepts)
    except AssetMissing as error:
        plan.absent.append(str(error))
        return {"absent": name, "version": 0}


@remembered
def _identity(detector: str, concepts: ConceptSet) -> SharedDict:
    return SharedDict(detector_identity(detector, words(concepts)))


def scored_labels(cell: Cell) -> Collection[str] | None:
    """The labels that the cell's detector scores; ``None`` without a detector, or if it does not list them."""
    return _scored_labels(cell.model.detector, cell.concepts) if cell.model.detector else None


@remembered
def _scored_labels(detector: str, concepts: ConceptSet) -> Collection[str] | None:
    try:
        return detector_labels(detector, words(concepts))
    except AssetMissing:  # the plan says so
        return None


def words(concepts: ConceptSet) -> dict[str, str]:
    """The concepts of a set that are of its kind, as a sentence for each label: what a detector can tell apart."""
    request = concepts.request
    sentence = TEMPLATES.get(concepts.kind, TEMPLATES["object"])[0]
    named = [c for c in (*request.erase, *concepts.near, *request.retain) if c.kind == concepts.kind]
    return {c.label or c.name: sentence.format(c.phrase) for c in named} | {
        label: sentence.format(label) for label in concepts.attributes
    }


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


@cache
def _metric(name: str, reference: str) -> type[Metric]:
    try:
        metric = load_attribute(reference)
    except UserError as error:
        raise UserError(f"metrics.metrics.{name}: {error}") from error
    if not isinstance(metric, type) or not issubclass(metric, Metric):
        raise UserError(f"metrics.metrics.{name}: {reference} is not a metric (overpaint.metrics.metric:Metric)")
    return metric
