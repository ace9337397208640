"""What the commands do, once their arguments are read."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from overpaint.errors import UserError, unknown
from overpaint.grid.cells import Cell, cell_from
from overpaint.grid.composition import CIRCUMSTANCES, Composed, compose_cells
from overpaint.grid.registry import DESCRIPTION, component, components
from overpaint.report.records import stored_records
from overpaint.report.tables import FORMATS, render, show
from overpaint.run.display import Display, duration
from overpaint.run.estimates import Estimates
from overpaint.run.executor import Outcome
from overpaint.run.plan import Plan
from overpaint.run.store import CorruptArtefact, Store
from overpaint.run.track import track

ERR = Console(stderr=True, soft_wrap=True)


def prepare(composed: Sequence[Composed]) -> tuple[list[Cell], Plan, Store]:
    """Check every cell and plan the grid; nothing is written yet."""
    for key in CIRCUMSTANCES:
        if any(c.config[key] != composed[0].config[key] for c in composed):
            raise UserError(f"{key} says where and how a whole grid runs and is no axis of it: give one")
    kind = track(composed[0].config["track"]["name"])
    cells = [kind.cell(c.config, c.explicit) for c in composed]
    return cells, kind.plan(cells), Store.chosen(composed[0].config["store"])


def _circumstance(kind: str, config: Mapping[str, Any]) -> Any:
    """The engine or tracker that a configuration names."""
    return component(kind, config["name"]).build({k: v for k, v in config.items() if k not in DESCRIPTION})


def run_grid(composed: Sequence[Composed]) -> int:
    """Run or resume a grid, print its table, write its contact sheets. Returns the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    start = time.perf_counter()
    _, plan, store = prepare(composed)
    engine, tracker = (_circumstance(kind, composed[0].config[kind]) for kind in ("engine", "tracker"))
    store.prepare()
    store.sweep()
    estimates = Estimates(store, plan.track)
    todo = plan.missing(store)
    ERR.print(_summary(plan, todo, estimates), highlight=False)
    display = Display(todo, estimates, ERR)
    try:
        with display:
            outcome, records = _until_readable(lambda: engine.run(plan, store, display), store, plan)
        sheets = _sheets(plan, store)
    except KeyboardInterrupt:
        left = len(plan.missing(store))
        ERR.print(
            f"interrupted with {len(plan.tasks) - left} of {len(plan.tasks)} tasks stored in {store.root}; "
            "run the same command to go on",
            highlight=False,
        )
        return 130
    if len(records):
        show(records)
        tracker.send(records, str(store.root))
    for path in sheets:
        ERR.print(f"contact sheet: {path}", highlight=False, soft_wrap=True)
    ERR.print(
        f"{outcome.done} tasks done in {duration(time.perf_counter() - start)}, store {store.root}", highlight=False
    )
    if outcome.failed:
        ERR.print(
            f"{len(outcome.failed)} tasks failed and {len(outcome.blocked)} could not start because of them; "
            f"tracebacks in {store.root / 'failures'}; the same command tries them again",
            style="red",
            highlight=False,
        )
        return 1
    return 0


def _until_readable(run: Callable[[], Outcome], store: Store, plan: Plan) -> tuple[Outcome, pd.DataFrame]:
    """Run, and again while a stored record turns out to be damaged: it has been set aside and is made anew."""
    done = 0
    while True:
        outcome = run()
        outcome.done = done = done + outcome.done
        try:
            return outcome, stored_records(store, plan)
        except CorruptArtefact as error:
            ERR.print(str(error), highlight=False)


def _sheets(plan: Plan, store: Store) -> list[Path]:
    from overpaint.images.contact_sheets import contact_sheets

    return contact_sheets(plan, store, store.root / "sheets")


def _interrupt(*_) -> None:
    raise KeyboardInterrupt


def _summary(plan: Plan, todo: Sequence, estimates: Estimates) -> str:
    stored = len(plan.tasks) - len(todo)
    images = sum(t.amount for t in todo if t.stage == "generate")
    if not todo:
        return f"{len(plan.cells)} cells, {len(plan.tasks)} tasks, everything is stored"
    return (
        f"{len(plan.cells)} cells, {len(plan.tasks)} tasks: {stored} stored or not needed, {len(todo)} to do "
        f"({images} images), about {duration(estimates.total(todo))}"
    )


def describe_plan(composed: Sequence[Composed]) -> None:
    """Print the plan: tasks by stage, images, time, and the smallest difference that the budget can detect."""
    from overpaint.report.statistics import smallest_detectable_difference

    cells, plan, store = prepare(composed)
    todo = plan.missing(store)
    estimates = Estimates(store, plan.track)
    out = Console(soft_wrap=True)
    out.print(_summary(plan, todo, estimates), highlight=False)
    unique, missing = Counter(t.stage for t in plan.tasks.values()), Counter(t.stage for t in todo)
    for stage, asked in plan.asked.items():
        seconds = estimates.total(t for t in todo if t.stage == stage)
        out.print(
            f"  {stage:<10} {asked:>5} asked  {unique[stage]:>5} unique  {missing[stage]:>5} to do  {duration(seconds)}",
            highlight=False,
        )
    for budget in dict.fromkeys(c.budget for c in cells):
        smallest = smallest_detectable_difference(budget.target_prompts, budget.seeds)
        found = "no paired difference" if smallest is None else f"a paired difference of about {smallest:.2f}"
        out.print(
            f"budget {budget.name}: {budget.target_prompts} target prompts × {budget.seeds} images detect {found} "
            "(80 % power, 5 % level)",
            highlight=False,
        )


def print_table(arguments: Sequence[str], form: str, view: str) -> None:
    """Print stored records: of the grid that the arguments span, or of the whole store."""
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    only_store = all(a.startswith("store=") for a in arguments)
    if only_store:
        store, plan = Store.chosen(arguments[-1].split("=", 1)[1] if arguments else None), None
    else:
        _, plan, store = prepare(compose_cells(arguments))
    if not store.root.is_dir():
        raise UserError(f"there is no store at {store.root}: run something first (overpaint run)")
    records = stored_records(store, plan)
    if form == "terminal":
        show(records, view)
        return
    sys.stdout.write(render(records, form, view))


def erase_to_file(composed: Sequence[Composed], out: str) -> None:
    """Make one erasure and write it to a file, without a store."""
    from overpaint.methods.eraser import erase
    from overpaint.models import load_model
    from overpaint.run.progress import watched

    if len(composed) != 1:
        raise UserError(f"erase makes one erasure, these overrides span {len(composed)}")
    cell = cell_from(composed[0].config, composed[0].explicit)
    if cell.method.name == "none":
        raise UserError("method=none erases nothing: say which method does, method=…")
    path = _target(out, ".safetensors")
    model = load_model(cell.model.path, cell.model.precision)
    status = ERR.status(f"{cell.method.label} …") if ERR.is_terminal else None
    if status:
        status.start()
    try:
        with watched(lambda done, total, what: status and status.update(f"{cell.method.label}: {done}/{total} {what}")):
            how = {"request": cell.concepts.request, "sequential": cell.concepts.sequential, "seed": cell.seed}
            erasure = erase(model, cell.method.name, **how, **cell.method.values)
    finally:
        if status:
            status.stop()
    partial = path.with_suffix(".partial")
    erasure.save(partial)
    partial.rename(path)
    cost = erasure.manifest
    ERR.print(
        f"{path}: {erasure.kind}, {len(erasure.names) + len(erasure.parts)} tensors, "
        f"{cost['artefact_bytes'] / 1e6:.3g} MB, {cost['seconds']} s, peak {cost['peak_bytes'] / 1e9:.2f} GB",
        highlight=False,
        soft_wrap=True,
    )


def export_pipeline(composed: Sequence[Composed], file: str, out: str) -> None:
    """Write the model with a delta erasure applied as a diffusers folder."""
    from overpaint.models import load_model
    from overpaint.models.erasure import load_erasure

    target = _target(out)
    if target.exists():
        raise UserError(f"out={out} exists already")
    erasure = load_erasure(file)
    for part in erasure.sequence:
        if part.kind != "delta":
            raise UserError(
                f"{file} holds a {part.method} {part.kind}, which acts while sampling: no weights can hold it"
            )
    cell = cell_from(composed[0].config, composed[0].explicit)
    model = load_model(cell.model.path, cell.model.precision)
    with erasure.attached(model):
        partial = target.with_name(target.name + ".partial")
        model.pipeline.save_pretrained(partial, safe_serialization=True)
        partial.rename(target)
    ERR.print(f"{target}: {asdict(cell.model)['name']} with {erasure.method} applied", highlight=False, soft_wrap=True)


def _target(out: str, suffix: str = "") -> Path:
    """A place to write to, checked before any work."""
    path = Path(out).expanduser()
    if suffix and path.suffix != suffix:
        raise UserError(f"out={out} must end in {suffix}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"out={out}: the folder {path.parent} does not exist")
    if not os.access(path.absolute().parent, os.W_OK):
        raise UserError(f"out={out}: the folder {path.parent} cannot be written to")
    return path


def export_prompts(overrides: Sequence[str], out: str) -> None:
    """Write what a stored attack settled on as a CSV that ``attack=replay`` and other harnesses read.

    ``attack=`` is the key of a stored attack task (the start of it will do) or an attack's name; then the overrides say
    the cells, whose attacks must be stored.
    """
    from overpaint.attacks.prompt_file import write_prompts

    target = _target(out, ".csv")
    store = Store.chosen(next((o.split("=", 1)[1] for o in overrides if o.startswith("store=")), None))
    wanted = next(o.split("=", 1)[1] for o in overrides if o.startswith("attack="))
    if set(wanted.split(",")) <= set(components("attack")):
        _, plan, store = prepare(compose_cells(overrides))
        keys = [
            key
            for _, task in plan.cells
            for name, key in task.inputs.items()
            if name.startswith("images/") and "/assault/" in name
        ]
        missing = [key for key in keys if not store.has("attack", key)]
        if not keys:
            raise UserError(
                f"attack={wanted} finds nothing that a list could hold: its prompts are known without a run"
            )
        if missing:
            raise UserError(
                f"attack={wanted} has {len(missing)} of {len(keys)} attacks not stored in {store.root}: run them first"
            )
    else:
        keys = [key for key in store.keys("attack") if key.startswith(wanted)]
        if not keys:
            raise UserError(f"attack={wanted} is neither an attack's name nor the key of one in {store.root}")
        if len(keys) > 1:
            raise UserError(f"attack={wanted} is the start of {len(keys)} keys in {store.root}: give more of it")
    rows = write_prompts(target, [store.read("attack", key) for key in dict.fromkeys(keys)])
    ERR.print(f"{target}: {rows} prompts", highlight=False, soft_wrap=True)
