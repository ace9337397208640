"""The planner: all cells of a grid in, unique tasks out. What cells share is planned once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from overpaint.attacks.attack import Attack, Scene
from overpaint.detectors import detector_identity
from overpaint.errors import UserError
from overpaint.grid.cells import Cell, Choice
from overpaint.grid.concepts import Concept
from overpaint.grid.prompts import Shot
from overpaint.grid.registry import component, construct, load_attribute
from overpaint.grid.roles import ROLES, role_shots, stand_in_shots
from overpaint.grid.scope import scope
from overpaint.grid.shipped import shipped
from overpaint.metrics.metric import Metric
from overpaint.models.sources import fingerprint_model, resolve
from overpaint.report import statistics
from overpaint.run.plan import Plan
from overpaint.run.store import file_hash
from overpaint.run.tasks import Task

#: Seed index, counted from the plain images', at which an attacker's pictures of a concept begin.
EXAMPLES = 500
#: How half-precision arithmetic is done (scaled losses, noise levels, attention) decides what is trained with it: the
#: version goes up with every change to it, and models in float32 and float64 keep their results.
HALF_PRECISION = 2


@dataclass(frozen=True)
class Batch:
    """Images that are made and scored together. ``shots`` is ``None`` where attacks decide them: the ``assaults``."""

    shots: list[Shot] | None
    made: Task
    scored: Task | None
    assaults: tuple[Task, ...] = ()


def make_plan(cells: Iterable[Cell]) -> Plan:
    """Plan every cell with what it is compared to: the unedited model, the attack's control and floor."""
    plan = Plan("images")
    for cell in cells:
        _plan_cell(plan, cell)
    return plan


def _plan_cell(plan: Plan, cell: Cell) -> None:
    attack = component("attack", cell.attack.name)
    frames = {"images": _batches(plan, cell), "original": _batches(plan, cell.unedited())}
    if cell.attack.name != "none":
        frames["plain"] = _target_batches(plan, cell)
        frames["plain_original"] = _target_batches(plan, cell.unedited())
        if cell.attack.control:
            budget = max(1, _images_for(cell, cell.concepts.request.erase[0]))
            frames["control"] = _batches(plan, cell.with_attack(cell.attack.control, tries=budget))
            frames["random_prefix"] = _batches(plan, cell.with_attack("random_prefix", tries=budget))
        if cell.attack.floor:
            frames |= _floors(plan, cell, attack.config.get("unrelated"))
    reference = _reference(plan, cell)
    if reference:
        frames["reference"] = [reference]
    erasure = _erase_task(plan, cell)
    plan.cells.append((cell, plan.add(_measure_task(cell, frames, erasure))))


def _floors(plan: Plan, cell: Cell, unrelated: Mapping[str, Any] | None) -> dict[str, list[Batch]]:
    """The same attack for a concept that the model never saw, and for an unrelated one; an attack that learns from pictures
    whatever it is aimed at says with which values it is ``unrelated``."""
    frames = {}
    if (never := _unseen(cell)) and _images_for(cell, never):
        frames["floor"] = _batches(plan, cell, never)
    if unrelated:
        other = replace(cell.attack, values={**cell.attack.values, **unrelated})
        frames["unrelated"] = _batches(plan, replace(cell, attack=other))
    elif (known := _unrelated(cell)) and _images_for(cell, known):
        frames["unrelated"] = _batches(plan, cell, known)
    return frames


def _images_for(cell: Cell, concept: Concept) -> int:
    """The most images that the cell's attack makes for one plain image of a concept; 0 where it can make none."""
    return build_attack(cell.attack, cell.seed).images_for(concept, _attacked(cell))


# --- erase -----------------------------------------------------------------------------------------------------


def _erase_task(plan: Plan, cell: Cell) -> Task | None:
    if cell.method.name == "none":
        return None
    request = cell.concepts.request
    config = _model_config(cell) | {
        "method": cell.method.name,
        "hyperparameters": dict(cell.method.values),
        "erase": [asdict(c) for c in request.erase],
        "retain": [asdict(c) for c in request.retain],
        "seed": cell.seed,
    }
    if cell.concepts.sequential:
        config["sequential"] = True
    files = _named_files(cell.method.values)
    if files:
        config["files"] = files
    version = component("method", cell.method.name).load().version
    label = f"erase {cell.concepts.name} with {cell.method.label}"
    return plan.add(
        Task("erase", config, {}, {"method": version} | _arithmetic(cell), _runtime(cell), label, like=cell.method.name)
    )


def _named_files(values: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the files that hyper-parameters name (a caption collection, say): their content decides the result."""
    found = {}
    for key, value in values.items():
        if isinstance(value, str) and value:
            path = next(filter(_is_file, (shipped("datasets") / f"{value}.csv", Path(value))), None)
            if path:
                found[key] = file_hash(path.expanduser())
    return found


def _is_file(path: Path) -> bool:
    """Any text may be asked about: one that is too long for a path, or ``~nobody``, names none."""
    try:
        return path.expanduser().is_file()
    except (OSError, RuntimeError):
        return False


# --- attack, generate, score -----------------------------------------------------------------------------------


def _batches(plan: Plan, cell: Cell, concept: Concept | None = None) -> list[Batch]:
    """The images of one cell: its roles without an attack, else what the attack makes of the target prompts."""
    erase = _erase_task(plan, cell)
    subject = f"{cell.concepts.name}, {cell.method.label}"
    if cell.attack.name == "none":
        roles = [(role, role_shots(role, cell.concepts, cell.budget)) for role in ROLES]
        return [
            _batch(plan, cell, erase, part, f"{subject}, {role} prompts")
            for role, found in roles
            for part in _shards(found, cell.budget.shard)
        ]
    attack = build_attack(cell.attack, cell.seed)
    plain = _attacked(cell)
    if concept:
        prompts = cell.budget.floor_prompts if attack.unit == "prompt" else cell.budget.target_prompts
        plain = stand_in_shots(concept, cell.concepts, cell.budget, prompts)
    concept = concept or cell.concepts.request.erase[0]
    if attack.needs == "nothing":
        assault = attack.run(Scene(concept, plain, cell.concepts.catalogue))
        label = f"{subject}, {cell.attack.label}"
        return [_batch(plan, cell, erase, part, label) for part in _shards(assault.shots, cell.budget.shard)]
    units = [plain] if attack.unit == "concept" else [list(part) for _, part in groupby(plain, lambda s: s.prompt)]
    tasks = [_attack_task(plan, cell, attack, concept, unit, erase) for unit in units]
    if attack.together > 1:
        plan.bundle(tasks, max(1, min(attack.together, cell.protocol.batch_size) // max(map(len, units), default=1)))
    if attack.paints:
        return [Batch(None, task, _score_task(plan, cell, task), (task,)) for task in tasks]
    label = f"{subject}, {cell.attack.label} for {concept.name}"
    return [_batch(plan, cell, erase, None, label, tasks, len(plain))]


def _batch(plan, cell: Cell, erase: Task | None, found, label: str, assaults: Sequence[Task] = (), amount=0) -> Batch:
    config = _model_config(cell) | {
        "protocol": _protocol(cell),
        "shots": None if found is None else [[s.prompt.text, s.noise_seed, s.prompt.guidance] for s in found],
    }
    inputs = {"erasure": erase.key} if erase else {}
    inputs |= {f"assault/{index:05}": task.key for index, task in enumerate(assaults)}
    made = plan.add(
        Task(
            "generate",
            config,
            inputs,
            {"generate": 1},
            _runtime(cell),
            f"generate {label}",
            amount or len(found),
            f"{config['model']}/{cell.protocol.steps}",
        )
    )
    return Batch(found, made, _score_task(plan, cell, made), tuple(assaults))


def _attack_task(plan: Plan, cell: Cell, attack: Attack, concept: Concept, plain: Sequence[Shot], erase) -> Task:
    """One run of an attack: for a whole concept, or for one prompt of it."""
    config = _model_config(cell) | {
        "attack": cell.attack.name,
        "hyperparameters": dict(cell.attack.values),
        "concept": asdict(concept),
        "shots": [shot.as_dict() for shot in plain],
        "templates": {concept.kind: cell.concepts.catalogue.templates.get(concept.kind, {})},
        "seed": cell.seed,
    }
    inputs = {}
    if attack.needs == "victim" and erase:
        inputs["erasure"] = erase.key
    if attack.shown and cell.model.reference == "world":
        config["examples"] = "world"
    elif attack.shown:
        inputs |= {f"examples{index}": made.key for index, made in enumerate(_examples(plan, cell, concept))}
    if attack.paints:
        config["protocol"] = _protocol(cell)
        judge = cell.model.judge or cell.model.detector
        attack.check(bool(judge))
        if judge:
            identity = detector_identity(judge)
            config["judge"] = {"detector": judge, "settings": identity, "threshold": cell.metrics.threshold}
    whose = f"{cell.concepts.name}, {cell.method.label}, " if attack.needs == "victim" else ""
    which = f", {plain[0].prompt.text!r}" if attack.unit == "prompt" else ""
    label = f"{whose}{cell.attack.label} for {concept.name}{which}"
    amount = len(plain) * attack.images_for(concept, plain)
    versions = {"attack": attack.version} | _arithmetic(cell)
    return plan.add(Task("attack", config, inputs, versions, _runtime(cell), label, amount, cell.attack.name))


def _target_batches(plan: Plan, cell: Cell) -> list[Batch]:
    """The cell's images of plain target prompts."""
    erase = _erase_task(plan, cell)
    label = f"{cell.concepts.name}, {cell.method.label}, target prompts"
    return [_batch(plan, cell, erase, part, label) for part in _shards(_attacked(cell), cell.budget.shard)]


def _examples(plan: Plan, cell: Cell, concept: Concept) -> list[Task]:
    """An attacker's pictures of a concept: what the unedited model makes of the target prompts, from other start noise than
    any that is attacked or drawn by a control."""
    prompts, unedited = cell.budget.target_prompts, cell.unedited()
    stands_in = concept != cell.concepts.request.erase[0]
    plain = stand_in_shots(concept, cell.concepts, cell.budget, prompts) if stands_in else _attacked(cell)
    found = [replace(shot, index=shot.index + EXAMPLES) for shot in plain]
    label = f"{cell.concepts.name}, {unedited.method.label}, examples of {concept.name}"
    return [_batch(plan, unedited, None, part, label).made for part in _shards(found, cell.budget.shard)]


def _attacked(cell: Cell) -> list[Shot]:
    """Target shots of the first concept to erase: attacks try to bring back that one, whatever else is erased."""
    first = cell.concepts.request.erase[0]
    found = role_shots("target", cell.concepts, cell.budget)
    return [shot for shot in found if shot.prompt.concept == (first.label or first.name)]


def _protocol(cell: Cell) -> dict[str, Any]:
    """What of the protocol decides pictures."""
    return {k: v for k, v in asdict(cell.protocol).items() if k in ("scheduler", "steps", "guidance_scale", "size")}


def _score_task(plan: Plan, cell: Cell, made: Task) -> Task | None:
    name = cell.model.detector
    if not name:
        return None
    identity = detector_identity(name)
    runtime = {"device": None}
    label = made.label.replace("generate", "score", 1)
    config = {"detector": name, "settings": identity}
    return plan.add(Task("score", config, {"images": made.key}, {}, runtime, label, made.amount, name))


def _reference(plan: Plan, cell: Cell) -> Batch | None:
    source = cell.model.reference
    if not source or not cell.model.detector or cell.attack.name != "none":
        return None
    made = _reference_task(plan, source, cell.budget.reference_images)
    return Batch([], made, _score_task(plan, cell, made))


def _reference_task(plan: Plan, source: str, count: int) -> Task:
    config = {"source": "world", "n": count, "seed": 1} if source == "world" else {"files": _image_files(source, count)}
    return plan.add(Task("reference", config, {}, {"reference": 1}, {"folder": source}, "reference pictures", count))


@cache
def _image_files(folder: str, count: int) -> list[str]:
    from overpaint.images.stages.reference import image_files

    return [sha for _, sha in image_files(folder, count)]


def _unseen(cell: Cell) -> Concept | None:
    """A concept that the model never saw, if its world has one and pictures of it can be had."""
    return next(iter(cell.concepts.catalogue.unseen.values()), None) if cell.model.reference == "world" else None


def _unrelated(cell: Cell) -> Concept | None:
    """The first concept of the catalogue that has nothing to do with the erased ones: of the first one's kind if there is
    such a one, no neighbour, and nobody's anchor."""
    request, catalogue = cell.concepts.request, cell.concepts.catalogue
    related = {c.name for c in (*request.erase, *cell.concepts.near)}
    related |= {name for c in request.erase for name in (*c.neighbours, c.anchor)}
    found = [c for c in catalogue.concepts.values() if c.name not in related and related.isdisjoint(c.neighbours)]
    found.sort(key=lambda c: c.kind != cell.concepts.kind)
    return found[0] if found else None


def build_attack(choice: Choice, seed: int) -> Attack:
    return construct(component("attack", choice.name).load(), {**choice.values, "seed": seed}, f"attack={choice.name}")


def _shards(found: list, size: int) -> list[list]:
    return [found[start : start + size] for start in range(0, len(found), size)]


# --- measure ---------------------------------------------------------------------------------------------------


def _measure_task(cell: Cell, frames: Mapping[str, list[Batch]], erase: Task | None) -> Task:
    """The cell's figures: pure functions of the scores of every frame."""
    inputs, plain = {}, {}
    for name, batches in frames.items():
        plain[name] = []
        for index, batch in enumerate(batches):
            place = f"{name}/{index}"
            if batch.scored:
                inputs[f"{place}/scores"] = batch.scored.key
            inputs[f"{place}/images"] = batch.made.key
            for number, task in enumerate(batch.assaults):
                inputs[f"{place}/assault/{number:05}"] = task.key
            plain[name].append(None if batch.shots is None else [shot.as_dict() for shot in batch.shots])
    if erase:
        inputs["erasure"] = erase.key
    metrics = cell.metrics.metrics
    config = {
        "cell": {
            "model": cell.model.name,
            "concepts": cell.concepts.name,
            "kind": cell.concepts.kind,
            "method": cell.method.label,
            "attack": cell.attack.label,
            "protocol": cell.protocol.name,
            "budget": cell.budget.name,
            "seed": cell.seed,
        },
        "presets": {"method": cell.method.preset, "attack": cell.attack.preset},
        "scope": _scope(cell),
        "erased": [asdict(c) for c in cell.concepts.request.erase],
        "kinds": {c.label: c.kind for c in cell.concepts.catalogue.concepts.values() if c.label},
        "shots": plain,
        "metrics": metrics,
        "threshold": cell.metrics.threshold,
        "failure_limit": cell.metrics.failure_limit,
        "judged_by_itself": cell.model.judge in (None, cell.model.detector),
    }
    versions = {name: _metric(name, reference).version for name, reference in metrics.items()}
    versions["statistics"] = statistics.VERSION
    return Task("measure", config, inputs, versions, {}, f"measure {cell.label}")


def _metric(name: str, reference: str) -> type[Metric]:
    try:
        metric = load_attribute(reference)
    except UserError as error:
        raise UserError(f"metrics.metrics.{name}: {error}") from error
    if not isinstance(metric, type) or not issubclass(metric, Metric):
        raise UserError(f"metrics.metrics.{name}: {reference} is no metric (overpaint.metrics.metric:Metric)")
    return metric


def _scope(cell: Cell) -> str:
    """Whether the cell's attack goes round its defence; the unedited model has none."""
    if cell.method.name == "none":
        return ""
    method = component("method", cell.method.name).load()
    eraser = construct(method, {**cell.method.values, "seed": cell.seed}, f"method={cell.method.name}")
    return scope(eraser.acts_on, build_attack(cell.attack, cell.seed).enters_by)


def _model_config(cell: Cell) -> dict[str, Any]:
    return {"model": fingerprint_model(cell.model.path), "precision": cell.model.precision}


def _arithmetic(cell: Cell) -> dict[str, int]:
    """The version of half-precision arithmetic, where a model computes in it."""
    return {"half": HALF_PRECISION} if cell.model.precision in ("float16", "bfloat16") else {}


def _runtime(cell: Cell) -> dict[str, Any]:
    return {"path": resolve(cell.model.path), "device": None, "batch_size": cell.protocol.batch_size}
