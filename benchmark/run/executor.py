"""One bundle of tasks at a time: claim it, work in temporary folders, publish, or record the failure.

An executor neither retries nor decides what comes next; see `overpaint.run.runner` and `overpaint.run.scheduler`.
"""

from __future__ import annotations

import os
import platform
import sys
import time
import traceback
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, Protocol

from overpaint.errors import UserError, changed, message
from overpaint.grid.source_code import source_now
from overpaint.run.leases import Leases
from overpaint.run.progress import watched
from overpaint.run.scheduler import DIED, TRIES
from overpaint.run.store import CorruptArtefact, Store
from overpaint.run.tasks import Task
from overpaint.run.track import stage, stage_together, track


class Leave(SystemExit):
    """Ends a process in the middle of a task that has not failed, because its run is gone or its job is requeued."""


class Listener(Protocol):
    """Hears from an executor about the task in hand."""

    def started(self, task: Task) -> None:
        """Work on the task begins."""

    def stepped(self, task: Task, done: int, total: int, what: str) -> None:
        """``done`` of ``total`` are done, of ``what``: ``iterations``."""

    def noted(self, task: Task, note: str) -> None:
        """A sentence about the task for the user."""


class Watcher(Listener, Protocol):
    """Follows a whole run and shows it to somebody."""

    def finished(self, task: Task, seconds: float, hardware: str) -> None:
        """The task was made; ``hardware`` is what it ran on (`overpaint.run.track.Track.hardware`)."""

    def shared(self, task: Task) -> None:
        """Another process made the task."""

    def failed(self, task: Task, reason: str) -> None:
        """The task failed; ``reason`` is the last line of the traceback."""

    def waiting(self, tasks: int) -> None:
        """The run waits for this many tasks, which other processes are making."""

    def lost(self, worker: str, how: str) -> None:
        """A worker died, and how: ``signal 9``."""


@dataclass(frozen=True)
class Run:
    """One command at work on a store: its id, and the failures that it found there (task key → `Failure.mark`).

    A failure that was not there when the run began belongs to it, whichever process recorded it.
    """

    id: str
    found: Mapping[str, tuple[str, int]]

    @classmethod
    def begin(cls, store: Store) -> Run:
        return cls(uuid.uuid4().hex[:12], {key: failure.mark for key, failure in store.failures().items()})


@dataclass(frozen=True)
class Result:
    """The result of a bundle.

    - ``made``: it is stored. ``keys`` are the tasks that this process published, ``seconds`` the time of each of them on this
      ``hardware``.
    - ``failed``: ``reason`` is one line. The failure of a single task is recorded, that of a larger bundle is not.
    - ``damaged``: a stored input was damaged (``reason``) and has been set aside.
    - ``elsewhere``: another process is making it.
    - ``lost``: its worker died.
    """

    status: Literal["made", "failed", "damaged", "elsewhere", "lost"]
    keys: tuple[str, ...] = ()
    seconds: float = 0.0
    reason: str = ""
    hardware: str = ""


class Executor:
    """Makes bundles of planned tasks in this process, on one device. ``of_track`` is the name of their track."""

    def __init__(self, of_track: str, store: Store, device: str, listener: Listener, run: Run, worker: str = ""):
        self.of_track, self.store, self.device, self.listener, self.run = of_track, store, device, listener, run
        self._leases, self._worker = Leases(store.root, run.id, worker), worker

    @cached_property
    def bench(self) -> Any:
        """What this process keeps between tasks."""
        return track(self.of_track).bench()

    def run_one(self, bundle: Sequence[Task]) -> Result:
        """Claim the bundle and make it. A bundle is made whole, so that its results do not depend on what was stored.

        Raises a `UserError` if the store cannot be written to; every other error is the task's, and becomes the result. After an
        error that has broken the device, this process ends.
        """
        first = bundle[0]
        if self._stored(bundle):
            return Result("made")
        with self.store.claim(first.key) as mine, self._leases.holding(first.key, first.label, mine) as lease:
            if not lease:
                return Result("elsewhere")
            if self._stored(bundle):
                return Result("made")
            if len(bundle) == 1 and self._failed_elsewhere(first):
                return Result("failed", reason="it failed in another process")
            if lease.tries > TRIES:
                return self._explain(UserError(DIED), bundle)
            self.listener.started(first)
            made, again = None, True
            while made is None:
                start = time.perf_counter()
                try:
                    with watched(partial(self.listener.stepped, first)):
                        made = execute(bundle, self.of_track, self.store, self.bench, self.device, self.listener)
                except (KeyboardInterrupt, GeneratorExit, Leave):
                    raise
                except BaseException as error:  # sys.exit in a component, and errors that Rust and asyncio raise
                    made_bench = "bench" in vars(self)  # else making it is what has failed
                    if again and made_bench and track(self.of_track).make_room(error, self.bench):
                        again = False
                        continue
                    self._leave_broken_device(error, first)
                    return self._explain(error, bundle)
            seconds = (time.perf_counter() - start) / len(bundle)
            hardware = track(self.of_track).hardware(self.device)
            return Result("made", tuple(task.key for task in made), seconds, hardware=hardware)

    def _stored(self, bundle: Sequence[Task]) -> bool:
        return all(self.store.has(task.stage, task.key) for task in bundle)

    def _failed_elsewhere(self, task: Task) -> bool:
        failure = self.store.failure(task.key)
        return failure is not None and failure.mark != self.run.found.get(task.key)

    def _leave_broken_device(self, error: BaseException, task: Task) -> None:
        """End a worker process whose device computes no more, before its other tasks fail as well.

        It ends as if the task had killed it: the lease stays, so that the next worker counts the tries. The user's own process
        raises a `UserError` instead.
        """
        try:
            track(self.of_track).probe(self.device)
        except Exception:
            said = f"{self.device} cannot be used by this process any more: {type(error).__name__}: {message(error)}"
            if not self._worker:
                raise UserError(f"{task.label}: {said}; run the same command again") from error
            self.listener.noted(task, said)
            sys.stdout.flush()
            time.sleep(0.3)  # in which the other thread of an actor passes the note on
            os._exit(1)

    def _explain(self, error: BaseException, bundle: Sequence[Task]) -> Result:
        """A full disk stops the run, a damaged input is made again, everything else is the task's own failure."""
        full = self.store.disk_error(error)
        if full:
            raise self.store.unwritable(full) from error
        try:
            if isinstance(error, CorruptArtefact):
                raise error
            for name, key in bundle[0].inputs.items():
                self.store.suspect(bundle[0].stages[name], key)
        except CorruptArtefact as damage:
            self.store.make_room(damage)
            return Result("damaged", reason=str(damage))
        advice = track(self.of_track).advice(error, bundle[0], self.device)
        reason = advice or message(error)
        if len(bundle) == 1:
            trace = "".join(traceback.format_exception(error))
            try:
                path = self.store.record_failure(bundle[0].key, bundle[0].label, self.run.id, trace)
            except OSError as unwritable:
                raise self.store.unwritable(unwritable) from error
            if not (advice or isinstance(error, UserError)):  # whose message says it all
                reason = f"{type(error).__name__}: {message(error)} (traceback in {path})"
        return Result("failed", reason=reason)


def execute(
    bundle: Sequence[Task], of_track: str, store: Store, bench: Any, device: str, listener: Listener
) -> list[Task]:
    """Make one task, or a bundle in one go, and publish what is not stored yet; returns the published tasks."""
    stage_name, needs = bundle[0].stage, bundle[0].inputs
    _check_sources(bundle[0])
    inputs, kind = {name: store.read(bundle[0].stages[name], key) for name, key in needs.items()}, track(of_track)
    located, start = [task.on(device) for task in bundle], time.perf_counter()
    with ExitStack() as stack:
        folders = [stack.enter_context(store.workspace()) for _ in bundle]
        if len(bundle) > 1:
            extras = stage_together(of_track, stage_name)(located, inputs, folders, bench)
        else:
            extras = [stage(of_track, stage_name)(located[0], inputs, folders[0], bench)]
        seconds, made = (time.perf_counter() - start) / len(bundle), []
        for task, folder, extra in zip(bundle, folders, extras, strict=True):
            if store.has(stage_name, task.key):
                continue
            manifest = {
                "stage": stage_name,
                "label": task.label,
                "config": task.config,
                "inputs": task.inputs,
                "versions": task.versions,
                "sources": task.sources,
                "libraries": bench.versions,
                "host": {
                    "machine": kind.machine(device),
                    "system": platform.system(),
                    "device": device,
                    "processor": kind.processor(device),
                    "hardware": kind.hardware(device),
                    "process": os.getpid(),
                },
                "seconds": round(seconds, 3),
            }
            store.publish(stage_name, task.key, folder, manifest | extra)
            made.append(task)
            if "note" in extra:
                listener.noted(task, extra["note"])
    return made


def _check_sources(task: Task) -> None:
    """Raise a `UserError` if a component's source, which this process is about to import, is not the planned one."""
    for component, source in task.foreign.items():
        if source_now(source) != source:
            raise changed(component)
