"""The tasks that make a cell's erasures, attacks, images and scores. What is measured from them is in
`overpaint.images.measurements`.

Everything that affects a result is in a task's configuration, versions and inputs. Paths and batch sizes are in its runtime.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overpaint.attacks.attack import Attack
from overpaint.detectors import detector_identity, detector_labels
from overpaint.errors import AssetMissing, UserError
from overpaint.grid.assets import referred
from overpaint.grid.cells import Cell, ModelSpec, recommended_threshold
from overpaint.grid.choices import Choice, build
from overpaint.grid.concept_sets import ConceptSet
from overpaint.grid.concepts import Concept
from overpaint.grid.prompts import Shot
from overpaint.grid.read_once import remembered
from overpaint.grid.registry import component
from overpaint.grid.roles import TEMPLATES
from overpaint.grid.typed import shown
from overpaint.images.pictures import pictures
from overpaint.images.task_parts import (
    arithmetic_of,
    described_shots,
    entries,
    entry,
    erasure_input,
    kind_of,
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
from overpaint.models.sources import HUB_NAME, model_family_source, pixels_per_latent, resolve
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
    detectors = [_detector_assets(name) for name in cell_detectors(cell)]
    detectors += [
        referred({**component("detector", name).defaults, **settings})
        for name, settings in _looking(cell.method, cell.concepts).items()
    ]
    merge = cell.concepts.merge and cell.concepts.merge.captions
    values = (cell.method.values, cell.attack.values, cell.concepts.prompts, cell.model.reference, merge)
    return list(dict.fromkeys(name for found in (*detectors, *map(_referred, values)) for name in found))


def cell_detectors(cell: Cell) -> list[str]:
    """The detector and the judge of a cell's model."""
    return [name for name in (cell.model.detector, cell.model.judge) if name]


def cell_networks(cell: Cell) -> list[str]:
    """The repositories of the hub that a cell's detectors, method and attack load, besides the model to erase from."""
    found = hub_names(component("detector", name).defaults.get("weights") for name in cell_detectors(cell))
    found += _hub_networks("attack", cell.attack, cell.attack_seed)
    return found if cell.method.name == "none" else [*_hub_networks("method", cell.method, cell.method_seed), *found]


@remembered
def _hub_networks(kind: str, choice: Choice, seed: int) -> list[str]:
    made: Any = build(kind, choice, seed)
    return hub_names(choice.values.get(key) for key in (*made.networks, *getattr(made, "models", ())))


def hub_names(values: Iterable[Any]) -> list[str]:
    """Those of the values that name a repository of the hub."""
    return [text for text in values if isinstance(text, str) and HUB_NAME.fullmatch(text) and not Path(text).exists()]


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
        config["detectors"] = {
            name: _identity_or_absence(name, settings=settings)[0] for name, settings in looking.items()
        }
    versions = {"method": eraser.version} | arithmetic_of(model) | ({"merging": MERGING} if concepts.merge else {})
    sources = source_code("method", method.name) | model_family_source(model.path)
    for name in looking:
        sources |= source_code("detector", name)
    label = f"erase {concepts.name} with {method.label}"
    like, runtime = kind_of(method, config) + _several(concepts), runtime_of(model, batch_size)
    return Task("erase", config, {}, versions, runtime, label, like=like, loads=loads_of(config), sources=sources)


def _several(concepts: ConceptSet) -> str:
    """How many concepts are erased, and whether in turn, for the estimate of an erasure's time; empty for one concept."""
    count = len(concepts.request.erase)
    return f"/{count} concepts{' in turn' if concepts.sequential else ''}" if count > 1 else ""


@remembered
def _looking(method: Choice, concepts: ConceptSet) -> dict[str, Mapping[str, Any]]:
    """The detectors that the method's erasures of these concepts ask, by name, with the settings they get."""
    return {} if method.name == "none" else dict(build_method(method, 0).detectors(concepts.request))


def _identity_or_absence(name: str, **told: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """`detector_identity`, or its name and a sentence if a file of the detector is not on this machine."""
    try:
        return detector_identity(name, **told), ""
    except AssetMissing as error:
        return {"absent": name, "version": 0}, str(error)


def absent_from_erasure(cell: Cell) -> list[str]:
    """A sentence for each detector that the cell's method asks and that is not on this machine."""
    looking = _looking(cell.method, cell.concepts)
    return [said for name, settings in looking.items() if (said := _identity_or_absence(name, settings=settings)[1])]


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
    if attack.enters_by == "embedding" and component("method", cell.method.name).load().reads_prompts:
        versions["unworded"] = 2
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
                # metrics.threshold belongs to the detector that measures
                "threshold": cell.metrics.threshold if judge == cell.model.detector else recommended_threshold(judge),
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
    sources, found = pictures_source(name), source.available(count)
    if found < count:
        plan.notes.append(f"model.reference={name} has {found} of budget.reference_images={count} images")
    made = plan.add(
        Task("reference", source.identity(count), {}, versions, runtime, "reference pictures", found, sources=sources)
    )
    return Batch([], made, _score_task(plan, cell, made, {}))


def given_images(plan: Plan, cell: Cell, shots: list[Shot], files: Sequence[tuple[Path, str]], method: str) -> Batch:
    """Tasks for pictures that other code made. ``files`` are their paths and hashes, one for each shot."""
    config = {"files": [content for _, content in files], "prompts": [shot.prompt.text for shot in shots]}
    runtime = {"files": [str(path) for path, _ in files]}
    made = plan.add(Task("given", config, {}, {"given": 2}, runtime, f"read pictures of {method}", len(files)))
    return Batch(shots, made, _score_task(plan, cell, made, {}))


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
            score_settings(plan, cell),
            inputs,
            versions,
            runtime,
            label,
            made.amount,
            detector,
            sources=sources,
        )
    )


def score_settings(plan: Plan, cell: Cell) -> dict[str, Any]:
    """The detector of a cell's scores and what determines its output; without its files, the plan says what is absent."""
    name = cell.model.detector
    return {"detector": name, "settings": _detector_settings(plan, cell.concepts, name) if name else None}


def _detector_settings(plan: Plan, concepts: ConceptSet, name: str) -> dict[str, Any]:
    """`detector_identity`; without the detector's files, its name, and the plan says what is absent."""
    settings, absence = _told_identity(name, concepts)
    if absence and absence not in plan.absent:
        plan.absent.append(absence)
    return settings


@remembered
def _told_identity(detector: str, concepts: ConceptSet) -> tuple[SharedDict, str]:
    """`_identity_or_absence` of a detector that is told the words of a concept set."""
    settings, absence = _identity_or_absence(detector, classes=words(concepts))
    return SharedDict(settings), absence


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
