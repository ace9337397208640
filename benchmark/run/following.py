"""Following a run that other processes make, by what they write into the store: leases, failures, artefacts."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable

from overpaint.run import leases
from overpaint.run.estimates import CPU
from overpaint.run.executor import Run, Watcher
from overpaint.run.plan import Plan
from overpaint.run.runner import Outcome
from overpaint.run.scheduler import Scheduler
from overpaint.run.store import CorruptArtefact, Store
from overpaint.run.tasks import Task

#: Minimum seconds between two looks at the store.
PAUSE = 1.0
#: Maximum share of its time that a follower spends on looking.
SHARE = 0.05
#: Minimum seconds between two checks of whether a run still has workers.
ASK = 10.0


class Follower:
    """Tells a watcher what other processes do for a plan. A failure counts if it was not there when the run began."""

    def __init__(self, plan: Plan, store: Store, run: Run, watcher: Watcher):
        self._plan, self._store, self._run, self._watcher = plan, store, run, watcher
        self._begun: set[tuple[str, str]] = set()  # tasks and the owners of their leases
        self._scheduler = Scheduler(plan, [])
        self._done, self._took = 0, 0.0
        self._take(plan.missing(store))

    @property
    def outcome(self) -> Outcome:
        """How the run ended, as of the last look."""
        return Outcome(self._done, self._scheduler.failed, self._scheduler.blocked)

    @property
    def left(self) -> int:
        """How many tasks are neither stored nor failed nor blocked, as of the last look."""
        return self._scheduler.left

    def look(self) -> int:
        """Look at the store, and tell the watcher what is new; returns how many tasks are left."""
        start = time.monotonic()
        self._see_leases()
        self._see_results()
        self._see_failures()
        if not self.left:  # an artefact that is there may have been set aside as damaged meanwhile
            self._take(self._plan.missing(self._store))
        self._took = time.monotonic() - start
        return self.left

    def follow(self, check: Callable[[], object]) -> None:
        """Look until nothing is left. ``check`` is called after the first look and then every `ASK` seconds; it may raise."""
        checked = -ASK
        while self.look():
            if time.monotonic() - checked >= ASK:
                check()
                checked = time.monotonic()
            time.sleep(max(PAUSE, self._took / SHARE))

    def _take(self, todo: list[Task]) -> None:
        self._scheduler.update(todo)
        settled = self._scheduler.failed.keys() | self._scheduler.blocked
        self._open = {task.key: task for task in todo if task.key not in settled}

    def _see_leases(self) -> None:
        for lease in leases.held(self._store.root):
            if lease.key in self._open and (lease.key, lease.owner) not in self._begun:
                self._begun.add((lease.key, lease.owner))
                self._watcher.started(self._open[lease.key])

    def _see_results(self) -> None:
        by_stage: dict[str, list[Task]] = defaultdict(list)
        for task in self._open.values():
            by_stage[task.stage].append(task)
        for stage, tasks in by_stage.items():
            stored = self._names("artefacts", stage)
            for task in tasks:
                if task.key in stored:
                    self._finish(task)

    def _finish(self, task: Task) -> None:
        try:
            manifest = self._store.manifest(task.stage, task.key)
            seconds, hardware = float(manifest["seconds"]), str(manifest.get("host", {}).get("hardware", CPU))
        except (CorruptArtefact, KeyError, TypeError, ValueError, AttributeError):
            return
        del self._open[task.key]
        self._scheduler.made([task])
        self._done += 1
        self._watcher.finished(task, seconds, hardware)

    def _see_failures(self) -> None:
        recorded = {name.removesuffix(".json") for name in self._names("failures")}
        for key in [key for key in self._open if key in recorded]:
            failure = self._store.failure(key)
            if failure and failure.mark != self._run.found.get(key):
                task = self._open.pop(key)
                self._scheduler.fail([task], failure.reason)
                self._watcher.failed(
                    task, f"{failure.reason} (traceback in {self._store.root / 'failures' / f'{key}.json'})"
                )
        for key in self._scheduler.blocked:
            self._open.pop(key, None)

    def _names(self, *folders: str) -> set[str]:
        try:
            return set(os.listdir(self._store.root.joinpath(*folders)))
        except OSError:
            return set()
