"""Running tasks: claim, work in a temporary folder, publish; what fails is recorded and the rest goes on."""

from __future__ import annotations

import errno
import os
import platform
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from overpaint.errors import UserError
from overpaint.run.plan import Plan
from overpaint.run.progress import watched
from overpaint.run.store import CorruptArtefact, Store
from overpaint.run.tasks import Task
from overpaint.run.track import stage, stage_together, track


class Watcher(Protocol):
    """Whoever follows a run."""

    def started(self, task: Task) -> None: ...
    def stepped(self, task: Task, done: int, total: int, what: str) -> None: ...
    def finished(self, task: Task, seconds: float) -> None: ...
    def noted(self, task: Task, note: str) -> None: ...
    def failed(self, task: Task, reason: str) -> None: ...
    def waiting(self, tasks: int) -> None: ...
    def lost(self, worker: str, code: int) -> None: ...


@dataclass
class Outcome:
    """What became of a run: failed tasks with their reason, and tasks that could not be tried because of them."""

    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    blocked: set[str] = field(default_factory=set)
    apart: set[str] = field(default_factory=set)  # whose bundle failed, so that they are tried one by one


def run_tasks(plan: Plan, store: Store, device: str, watcher: Watcher, began: float | None = None) -> Outcome:
    """Run what is missing, inputs first, until everything is there or has failed.

    Several processes may run one plan on one store: each task is claimed by one of them, the others go on elsewhere
    and wait for it only when nothing else is left. What has failed since ``began`` (seconds since 1970; now) is not
    tried again, whichever process tried it.
    """
    outcome, bench, began = Outcome(), track(plan.track).bench(), time.time() if began is None else began
    while True:
        pending = [t for t in plan.missing(store) if t.key not in outcome.failed]
        for task in pending:
            if any(key in outcome.failed or key in outcome.blocked for key in task.inputs.values()):
                outcome.blocked.add(task.key)
        pending = [t for t in pending if t.key not in outcome.blocked]
        if not pending:
            return outcome
        before = outcome.done + len(outcome.failed)
        elsewhere = sum(_attempt(task, plan, store, bench, device, watcher, outcome, began) for task in pending)
        if outcome.done + len(outcome.failed) == before and elsewhere:
            watcher.waiting(elsewhere)
            time.sleep(0.3)


def _attempt(
    task: Task, plan: Plan, store: Store, bench: Any, device: str, watcher, outcome: Outcome, began: float
) -> bool:
    """Run one task if its inputs are there and nobody else is at it. True if it has to be waited for.

    Its bundle is made with it, always whole: what is made does not depend on what a run before left behind.
    """
    if task.key in outcome.failed:
        return False
    bundle = [task] if task.key in outcome.apart else plan.bundles.get(task.key, [task])
    if not all(store.has(plan.tasks[key].stage, key) for key in task.inputs.values()):
        return not any(key in outcome.failed or key in outcome.blocked for key in task.inputs.values())
    with store.claim(bundle[0].key) as mine:
        if not mine:
            return True
        if store.has(task.stage, task.key):
            return False
        if store.failed_since(task.key, began):
            outcome.failed[task.key] = "it failed in another process"
            return False
        watcher.started(task)
        start = time.perf_counter()
        try:
            with watched(partial(watcher.stepped, task)):
                made = execute(bundle, plan, store, bench, device, watcher)
        except CorruptArtefact as error:
            watcher.failed(task, str(error))
            return False
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
                raise UserError(f"cannot write to the store {store.root}: {error.strerror}") from error
            if len(bundle) > 1:
                outcome.apart.update(other.key for other in bundle)
                return False
            path = store.record_failure(task.key, task.label, traceback.format_exc())
            outcome.failed[task.key] = reason = str(error)
            if not isinstance(error, UserError):  # which says it all in its message
                reason = f"{type(error).__name__}: {error} (traceback in {path})"
            watcher.failed(task, reason)
            return False
        outcome.done += len(made)
        for other in made:
            watcher.finished(other, (time.perf_counter() - start) / len(made))
        return False


def execute(bundle: Sequence[Task], plan: Plan, store: Store, bench: Any, device: str, watcher: Watcher) -> list[Task]:
    """Do one task, or a bundle at once, and publish what is not stored yet; returns the tasks of which that is."""
    stage_name, needs = bundle[0].stage, bundle[0].inputs
    inputs = {name: store.read(plan.tasks[key].stage, key) for name, key in needs.items()}
    located, start = [task.on(device) for task in bundle], time.perf_counter()
    with ExitStack() as stack:
        folders = [stack.enter_context(store.workspace()) for _ in bundle]
        if len(bundle) > 1:
            extras = stage_together(plan.track, stage_name)(located, inputs, folders, bench)
        else:
            extras = [stage(plan.track, stage_name)(located[0], inputs, folders[0], bench)]
        seconds, made = (time.perf_counter() - start) / len(bundle), []
        for task, folder, extra in zip(bundle, folders, extras):
            if store.has(stage_name, task.key):
                continue
            manifest = {
                "stage": stage_name,
                "label": task.label,
                "config": task.config,
                "inputs": task.inputs,
                "versions": task.versions,
                "libraries": bench.versions,
                "host": {
                    "machine": platform.machine(),
                    "system": platform.system(),
                    "device": device,
                    "process": os.getpid(),
                },
                "seconds": round(seconds, 3),
            }
            store.publish(stage_name, task.key, folder, manifest | extra)
            made.append(task)
            if "note" in extra:
                watcher.noted(task, extra["note"])
    return made
