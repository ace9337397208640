"""The planner of image cells. It turns all cells of a grid into unique tasks; tasks that cells share are planned once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from overpaint.attacks.attack import AttackContext
from overpaint.errors import UserError
from overpaint.grid.cells import Cell, default_attack, gold_references, merged
from overpaint.grid.choices import Choice
from overpaint.grid.concept_sets import ConceptSet, Merge
from overpaint.grid.concepts import Catalogue, Concept, load_catalogue
from overpaint.grid.lengths import shortenings
from overpaint.grid.prompts import Prompt, Shot, distinct, shots
from overpaint.grid.read_once import reading_once, remembered
from overpaint.grid.registry import component
from overpaint.grid.roles import ROLES, Role, attack_list, role, role_shots, shortfalls, stand_in_shots
from overpaint.grid.source_code import is_ours
from overpaint.images.extractions import extractions, unmeasured
from overpaint.images.measurements import (
    cell_scope,
    compare_task,
    latency_task,
    measure_task,
    membership_task,
    replicate_task,
)
from overpaint.images.pictures import pictures
from overpaint.images.returned import checked_assault, fewer_shots, where_raised
from overpaint.images.task_parts import applied_metrics
from overpaint.images.tasks import (
    Batch,
    absent_from_erasure,
    attack_task,
    build_attack,
    build_method,
    check_sides,
    erase_task,
    erasure_of,
    found_images,
    known_images,
    painted_images,
    reference_images,
    scored_labels,
)
from overpaint.metrics.membership import MembershipFigure
from overpaint.models.sources import fingerprint_model, hub_snapshot, model_family, resolve
from overpaint.run.plan import Line, Outline, Plan
from overpaint.run.tasks import Task

#: Said before a run with ``engine.compile=true``.
WARM_UP = (
    "engine.compile=true: each process compiles the network before its first images, which takes about a minute the first time "
    "on a machine; the images have keys of their own, and adapters run uncompiled"
)
#: First seed index of an attacker's example images, so that no example shares its noise with an attacked image.
EXAMPLES = 500


def make_plan(cells: Iterable[Cell]) -> Plan:
    """Plan every cell and its comparisons. Each cell is a line until its tasks are needed (`overpaint.run.plan.Line`)."""
    plan = Plan("images", expand=_expand)
    with reading_once():
        cells, merged_seeds = merged(cells)
        plan.notes += merged_seeds
        for cell in cells:
            _check_support(cell)
        plan.notes += shortenings(cells)
        if any(cell.model.compiled for cell in cells):
            plan.notes.append(WARM_UP)
        asking = {(id(c.concepts), id(c.budget), c.attack.name, c.model.detector): c for c in cells}
        plan.notes += dict.fromkeys(said for cell in asking.values() for said in shortfalls(cell, scored_labels(cell)))
        methods = {id(cell.method): cell.method for cell in cells if cell.method.name != "none"}
        plan.notes += [said for method in methods.values() for said in build_method(method, 0).advice]
        plan.notes += [note for cell in cells for note in _notes_on(cell.method, cell.model.path)]
        plan.notes += filter(None, map(_to_download, dict.fromkeys(cell.model.path for cell in cells)))
        plan.notes += filter(None, map(_from_another_world, cells))
        plan.notes += filter(None, map(_attacked_of_several, cells))
        plan.notes += filter(None, map(_on_another_guard, cells))
        outlines: dict[tuple, Outline] = {}
        for cell in cells:
            parts = (cell.model, cell.concepts, cell.attack, cell.protocol, cell.budget, cell.metrics)
            # All that its tasks depend on but the erasure. Frames of references are the cell's own if it is one.
            scene = (*map(id, parts), cell.seed, cell.method.name in ("none", cell.model.gold) and cell.method.label)
            if scene not in outlines:
                outlines[scene] = _outline(plan, cell)
            identity = cell.identified_by(fingerprint_model(cell.model.path))
            about = [identity, cell.labels, cell.seed, cell.given, cell_scope(cell)]
            plan.absent += absent_from_erasure(cell)
            plan.add_line(Line(cell, outlines[scene], erasure_of(cell)), "measure", about, f"measure {cell.label}")
        plan.notes += unmeasured(cells)
    plan.notes = list(dict.fromkeys(plan.notes))
    return plan


def _expand(plan: Plan, cell: Cell) -> Task:
    """Plan the tasks of a cell; returns the one that makes its records."""
    frames = _frames(plan, cell)
    beside = _beside(plan, cell, frames) | extractions(plan, cell, frames)
    return measure_task(plan, cell, frames, beside)


def _outline(plan: Plan, cell: Cell) -> Outline:
    """The outline of a cell. What the user should know about its tasks goes to the plan."""
    alone = Plan("images", notes=plan.notes, absent=plan.absent)
    measure, reference = _expand(alone, cell), cell.method.name == cell.model.gold
    return alone.outline(measure, erasure_of(cell), described=("cell", "scope"), reference=reference)


def _check_support(cell: Cell) -> None:
    """Raise a `UserError` if the cell's method, attack or control does not support its model or concepts, or the model has no
    images of the protocol's size. Loads no model."""
    family = model_family(cell.model.path)
    if cell.protocol.size:
        check_sides(cell, [cell.protocol.size], f"protocol.size={cell.protocol.size}")
    if cell.method.name != "none":
        _check_method(family, cell.method, cell.method_seed, cell.concepts)
        _check_reference(cell)
    _check_attack(family, cell.attack, cell.attack_seed)
    _check_victim(cell.attack, cell.attack_seed, cell.method, cell.method_seed)
    if cell.attack.control:
        _check_attack(family, default_attack(cell.attack.control, cell.model.preset, cell.concepts), cell.attack_seed)


@remembered
def _check_method(family: str | None, method: Choice, seed: int, concepts: ConceptSet) -> None:
    made, merge = build_method(method, seed), concepts.merge
    made.check(family, concepts.request, method.name, concepts.singly)
    if merge and merge != Merge("sum") and not (made.mergeable and made.changes_weights):
        raise UserError(
            f"concepts.merge={merge.label} merges changed weights, and method={method.name} makes none; use concepts.merge=sum"
        )


@remembered
def _notes_on(method: Choice, model: str) -> Sequence[str]:
    return () if method.name == "none" else build_method(method, 0).notes_on(model)


def _check_reference(cell: Cell) -> None:
    """Raise a `UserError` if the method is the gold reference of other models."""
    owners = gold_references().get(cell.method.name)
    if owners and cell.method.name != cell.model.gold:
        raise UserError(
            f"method={cell.method.name} is the gold reference of model={' or '.join(owners)}, got model={cell.model.name}"
        )


@remembered
def _check_attack(family: str | None, attack: Choice, seed: int) -> None:
    build_attack(attack, seed).check_family(family, attack.name)


@remembered
def _check_victim(attack: Choice, attack_seed: int, method: Choice, method_seed: int) -> None:
    """Refuse an attack that merges weights on a method whose erasures cannot be scaled."""
    merges = method.name != "none" and build_attack(attack, attack_seed).merges
    if merges and not build_method(method, method_seed).mergeable:
        raise UserError(
            f"attack={attack.name} merges weights, and method={method.name} makes no change of weights that could be scaled"
        )


def _from_another_world(cell: Cell) -> str:
    """A sentence about concepts of another catalogue than the model's; empty for other cells."""
    known, asked = load_catalogue(cell.model.catalogue).identity, cell.concepts.catalogue.identity
    if not known or not asked or asked == known or asked.endswith(f" on {known}"):  # the last extends the model's
        return ""
    return (
        f"concepts={cell.concepts.name} has catalogue {asked}, and model={cell.model.name} has {known}: "
        f"the model may not know the concepts; select another one with model=…"
    )


def _to_download(path: str) -> str:
    """A sentence about a model of the hub that is not on this machine; empty for other models."""
    path = resolve(path)
    if Path(path).is_dir() or hub_snapshot(path):
        return ""
    return f"model.path={path} is not on this machine: the run downloads it, and so does overpaint fetch with these overrides"


def _attacked_of_several(cell: Cell) -> str:
    """A sentence about which concept of several is attacked; empty for a cell without an attack or with one concept."""
    first, *others = cell.concepts.request.erase
    if not others or cell.attack.name == "none":
        return ""
    several = f"{len(others) + 1} concepts of {cell.concepts.name}"
    return f"attack={cell.attack.name} is measured on {first.name}, the first of {several}"


def _on_another_guard(cell: Cell) -> str:
    """A sentence about a cell that will fail because its method's guard cannot be put on another one; empty for other cells."""
    if cell.method.name == "none" or not cell.concepts.singly:
        return ""
    if build_method(cell.method, cell.method_seed).stacks is not False:
        return ""
    return f"method={cell.method.name} cannot be put on another guard: its cells with {cell.concepts.name} will fail"


def _frames(plan: Plan, cell: Cell) -> dict[str, list[Batch]]:
    """The images from which the cell's figures are computed, keyed by the frames of `Evidence`."""
    unedited = cell.unedited()
    if cell.attack.name == "none":
        frames = {"images": _plain(plan, cell), "original": _plain(plan, unedited)}
        if cell.model.reference and cell.model.detector:
            frames["reference"] = [reference_images(plan, cell)]
        return frames | _copies(plan, cell) | _gold(plan, cell)
    return {
        "images": _attacked(plan, cell),
        "original": _attacked(plan, unedited),
        "plain": _targets(plan, cell),
        "plain_original": _targets(plan, unedited),
        **_controls(plan, cell),
        **_floors(plan, cell),
        **_matched(plan, cell),
        **_retained(plan, cell),
        **_gold(plan, cell),
    }


def _gold(plan: Plan, cell: Cell) -> dict[str, list[Batch]]:
    """The images of the model that never saw the concepts, for the same prompts or under the same attack."""
    gold = cell.gold() if _asked(cell, "gold") else None
    if gold is None:
        return {}
    return {"gold": _plain(plan, gold) if cell.attack.name == "none" else _attacked(plan, gold)}


def _retained(plan: Plan, cell: Cell) -> dict[str, list[Batch]]:
    """The images of the neighbours' prompts, for metrics that read them in a cell with an attack."""
    whose = {"retained": cell, "retained_original": cell.unedited()}
    return {frame: _of_role(plan, edited, role("near")) for frame, edited in whose.items() if _asked(cell, frame)}


def _beside(plan: Plan, cell: Cell, frames: Mapping[str, Sequence[Batch]]) -> dict[str, Task]:
    """Tasks beside a cell's images: membership, replication, and those that its metrics name (`Metric.tasks`)."""
    beside = _training(plan, cell) | {
        f"replication/{frame}/{index}": replicate_task(plan, cell, batch)
        for frame in ("copies", "copies_original")
        for index, batch in enumerate(frames.get(frame, ()))
    }
    if cell.attack.name != "none" or erasure_of(cell) is None:
        return beside
    if _asked(cell, "similarity"):
        pairs = zip(frames["images"], frames["original"], strict=True)
        beside |= {f"similarity/{index}": compare_task(plan, *pair) for index, pair in enumerate(pairs)}
    if _asked(cell, "latency") and (latency := latency_task(plan, cell)):
        beside["latency"] = latency
    return beside


def _training(plan: Plan, cell: Cell) -> dict[str, Task]:
    """Tasks that score training images and others, for metrics of membership."""
    if not (_asked(cell, "membership") and _trains(cell)):
        return {}
    whose: dict[str, Cell | None] = {"membership": cell, "membership_original": cell.unedited()}
    if _asked(cell, "membership_gold"):
        whose["membership_gold"] = cell.gold()
    scores = {m.column for m in applied_metrics(cell).values() if issubclass(m, MembershipFigure)}
    return {name: membership_task(plan, edited, scores) for name, edited in whose.items() if edited is not None}


def _copies(plan: Plan, cell: Cell) -> dict[str, list[Batch]]:
    """Images of the repeated training captions, for metrics of replication."""
    if not (_asked(cell, "copies") and cell.model.reference and _trains(cell)):
        return {}
    captions = [caption for _, caption in pictures(cell.model.reference).repeated()]
    asked = shots(distinct(Prompt(caption, "repeated") for caption in captions), cell.budget.seeds)
    whose = {"copies": cell, "copies_original": cell.unedited()}
    return {
        name: known_images(plan, edited, asked, f"{_subject(edited)}, repeated captions")
        for name, edited in whose.items()
    }


def _asked(cell: Cell, name: str) -> bool:
    """Whether a metric of the cell names this frame or task."""
    return any(name in (*metric.frames, *metric.tasks) for metric in applied_metrics(cell).values())


def _trains(cell: Cell) -> bool:
    """Whether the model's picture source knows the training images."""
    return bool(cell.model.reference) and pictures(cell.model.reference).trains


def _plain(plan: Plan, cell: Cell) -> list[Batch]:
    """The images of every role of prompts."""
    return [batch for role in ROLES for batch in _of_role(plan, cell, role)]


def _of_role(plan: Plan, cell: Cell, role: Role) -> list[Batch]:
    """The images of one role of prompts."""
    return known_images(plan, cell, role.shots(cell.concepts, cell.budget), f"{_subject(cell)}, {role.name} prompts")


def _targets(plan: Plan, cell: Cell) -> list[Batch]:
    """The images of the plain prompts that an attack starts from."""
    return known_images(plan, cell, _target_shots(cell), f"{_subject(cell)}, target prompts")


def _controls(plan: Plan, cell: Cell) -> dict[str, list[Batch]]:
    """The attack's controls at the same number of images: the named control, such as fresh seeds, and random prefixes."""
    if not cell.attack.control:
        return {}
    tries = max(1, _images_for(cell, cell.concepts.request.erase[0]))
    frames = {"control": _attacked(plan, cell.with_attack(cell.attack.control, tries=tries))}
    if _asked(cell, "random_prefix"):
        frames["random_prefix"] = _attacked(plan, cell.with_attack("random_prefix", tries=tries))
    return frames


def _matched(plan: Plan, cell: Cell) -> dict[str, list[Batch]]:
    """The images of random words in the places of the attack's words, under the attack's rules (`Attack.matched`)."""
    settings = build_attack(cell.attack, cell.attack_seed).matched if _asked(cell, "matched") else None
    if settings is None:
        return {}
    return {"matched": _attacked(plan, cell.with_attack("random_words", **settings))}


def _floors(plan: Plan, cell: Cell) -> dict[str, list[Batch]]:
    """The same attack for a concept that the model never saw, and for an unrelated concept."""
    if not cell.attack.floor:
        return {}
    frames = {}
    never = _never_seen(cell) if _asked(cell, "floor") else None
    if never and _images_for(cell, never):
        frames["floor"] = _attacked(plan, cell, never)
    if not _asked(cell, "unrelated"):
        return frames
    # An attack can name settings for its unrelated run: relearning then trains on ordinary images.
    settings = component("attack", cell.attack.name).config.get("unrelated")
    other = _unrelated(cell)
    if settings:
        frames["unrelated"] = _attacked(plan, cell.with_values(**settings))
    elif other and _images_for(cell, other):
        frames["unrelated"] = _attacked(plan, cell, other)
    return frames


def _attacked(plan: Plan, cell: Cell, stand_in: Concept | None = None) -> list[Batch]:
    """The images of the cell's attack on the first erased concept, or on the concept ``stand_in``."""
    attack = build_attack(cell.attack, cell.attack_seed)
    concept = stand_in or cell.concepts.request.erase[0]
    plain = _target_shots(cell, stand_in, few=attack.unit == "prompt")
    what = f"{_subject(cell)}, {cell.attack.label}"
    own = None if stand_in else attack_list(cell.attack.name, cell.concepts, cell.budget)
    if own is not None:
        return known_images(plan, cell, own, what)
    if attack.needs == "nothing":
        fixed = _fixed_shots(cell.attack, cell.attack_seed, concept, plain, cell.concepts.catalogue)
        if not stand_in and fewer_shots(fixed, plain):
            plan.notes.append(f"attack={cell.attack.label} on {concept.name}: {fewer_shots(fixed, plain)}")
        return known_images(plan, cell, fixed, what)
    if attack.paints or attack.shown:
        _check_one_size(cell, plain)
    units = _by_prompt(plain) if attack.unit == "prompt" else [plain]
    examples = _examples(plan, cell, concept, stand_in) if attack.shown and not _drawn(cell) else []
    erasure = erase_task(plan, cell)
    tasks = [attack_task(plan, cell, attack, concept, unit, examples, erasure) for unit in units]
    if attack.together > 1:
        most = max(map(len, units), default=1)
        plan.bundle(tasks, max(1, min(attack.together, cell.protocol.batch_size) // most))
    if attack.paints:
        return [painted_images(plan, cell, task) for task in tasks]
    return [found_images(plan, cell, tasks, f"{what} for {concept.name}", len(plain))]


def _check_one_size(cell: Cell, shots: Sequence[Shot]) -> None:
    """Raise a `UserError` if prompts have sizes of their own and the cell's attack makes or learns from images of one size."""
    sizes = sorted({shot.prompt.size for shot in shots if shot.prompt.size})
    if sizes and cell.protocol.size is None:
        width, height = sizes[0]
        raise UserError(
            f"attack={cell.attack.name} works on images of one size, and prompts of concepts={cell.concepts.name} have sizes of "
            f"their own ({width}×{height} and others): set protocol.size={min(width, height)}"
        )


def _examples(plan: Plan, cell: Cell, concept: Concept, stand_in: Concept | None) -> list[Task]:
    """Tasks for an attacker's example images, generated by the unedited model from the target prompts."""
    unedited = cell.unedited()
    what = f"{_subject(unedited)}, examples of {concept.name}"
    shots = _example_shots(_target_shots(cell, stand_in))
    return [batch.made for batch in known_images(plan, unedited, shots, what)]


def _target_shots(cell: Cell, stand_in: Concept | None = None, few: bool = False) -> list[Shot]:
    """The plain shots that attacks start from: those of the first erased concept, or of the concept ``stand_in``.

    With ``few``, a stand-in gets fewer prompts, because every prompt is a search of its own.
    """
    if stand_in:
        prompts = cell.budget.floor_prompts if few else cell.budget.target_prompts
        return stand_in_shots(stand_in, cell.concepts, cell.budget, prompts)
    first = cell.concepts.request.erase[0]
    return _about(role_shots("target", cell.concepts, cell.budget), first.label or first.name)


@remembered
def _about(shots: Sequence[Shot], label: str) -> list[Shot]:
    """The shots whose prompts are about the concept with this label."""
    return [shot for shot in shots if shot.prompt.concept == label]


@remembered
def _fixed_shots(
    attack: Choice, seed: int, concept: Concept, plain: Sequence[Shot], catalogue: Catalogue
) -> Sequence[Shot]:
    """The shots of an attack that needs no model.

    Raises `UserError` if it returns something else, or if the code of a user's own attack raises an error.
    """
    made, who = build_attack(attack, seed), f"attack={attack.name}"
    try:
        found = made.run(AttackContext(concept, plain, catalogue))
    except UserError:
        raise
    except Exception as error:
        if is_ours(type(made).__module__):  # our own error: show the traceback
            raise
        raise UserError(f"{who}: run raised {where_raised(error)}") from error
    return checked_assault(found, who).shots


@remembered
def _by_prompt(shots: Sequence[Shot]) -> list[list[Shot]]:
    """Consecutive shots of one prompt, in one list each."""
    return [list(of_prompt) for _, of_prompt in groupby(shots, lambda shot: shot.prompt)]


@remembered
def _example_shots(shots: Sequence[Shot]) -> list[Shot]:
    return [replace(shot, index=shot.index + EXAMPLES) for shot in shots]


def _images_for(cell: Cell, concept: Concept) -> int:
    """The maximum number of images per plain image that the cell's attack makes for a concept; 0 if it cannot attack it."""
    return build_attack(cell.attack, cell.attack_seed).images_for(concept, _target_shots(cell))


def _drawn(cell: Cell) -> bool:
    """Whether the model has a picture source that can draw any concept."""
    return bool(cell.model.reference) and pictures(cell.model.reference).draws


def _never_seen(cell: Cell) -> Concept | None:
    """A concept that the model never saw; ``None`` unless the picture source can draw it."""
    return next(iter(cell.concepts.catalogue.unseen.values()), None) if _drawn(cell) else None


def _unrelated(cell: Cell) -> Concept | None:
    """The first concept of the catalogue that is neither a neighbour nor an anchor of an erased concept. Concepts of the
    erased concept's kind are preferred."""
    request, catalogue = cell.concepts.request, cell.concepts.catalogue
    related: set[str | None] = {c.name for c in (*request.erase, *cell.concepts.near)}
    related |= {name for c in request.erase for name in (*c.neighbours, c.anchor)}
    found = [c for c in catalogue.concepts.values() if c.name not in related and related.isdisjoint(c.neighbours)]
    found.sort(key=lambda c: c.kind != cell.concepts.kind)
    return found[0] if found else None


def _subject(cell: Cell) -> str:
    return f"{cell.concepts.name}, {cell.method.label}"
