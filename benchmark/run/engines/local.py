"""Worker processes on this machine, one a GPU or one a CPU core; each makes the bundles of tasks that it is given.

A worker that dies loses the bundle in its hands, which is made again; what it has published stays. A new worker takes its
place. Workers never outlive the process that started them.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal

import psutil

from overpaint.errors import UserError
from overpaint.grid.registry import asked_folders
from overpaint.run.executor import Executor, Leave, Result, Run, Watcher
from overpaint.run.plan import Plan
from overpaint.run.runner import Outcome, run_here, run_plan
from overpaint.run.store import Store
from overpaint.run.tasks import Task
from overpaint.run.track import Track, track
from overpaint.run.worker import FALSE_STARTS, Assignment, Teller, ended, environment, exported, pass_on

#: Seconds that a worker has to leave its task tidily when the run is interrupted.
PATIENCE = 10
#: How workers start. A fork server imports what is slow once, and forks them from there. It is not safe on macOS, and Windows
#: has none. Measured on two cores: two workers are ready after 6 s instead of 12, each with 300 MB less of its own memory.
START = "forkserver" if sys.platform == "linux" else "spawn"
#: Linux's ``prctl`` option for the signal that a process gets when its parent dies.
PR_SET_PDEATHSIG = 1


def cpu_cores() -> int:
    """The CPU cores that this process may use. Two hardware threads of one core count once."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


@dataclass(kw_only=True)
class Local:
    """``workers``: how many processes; ``auto`` is one a GPU or, without a GPU, one a CPU core. Each loads the model.
    ``device`` and ``compile`` as in `Inline`. Workers are spread over the GPUs, see only their own one, and share the CPU cores
    evenly."""

    workers: int | Literal["auto"]
    device: str
    compile: bool = False

    def __post_init__(self):
        if self.workers != "auto" and self.workers < 1:
            raise UserError(f"engine.workers takes auto or a number from 1 up, got {self.workers}")

    def places(self, kind: Track) -> tuple[list[str], int]:
        """The device of each worker, and how many CPU cores they share."""
        devices, cores = kind.devices(self.device), cpu_cores()
        count = self.workers
        if count == "auto":
            count = cores if devices == ["cpu"] else len(devices)
        return [devices[n % len(devices)] for n in range(count)], cores

    def check(self, kind: Track) -> None:
        """Raise a `UserError` if this machine lacks the device, or the compiler for ``compile``."""
        kind.check(self.device, self.compile)

    def run(self, plan: Plan, store: Store, watcher: Watcher) -> Outcome:
        devices, cores = self.places(track(plan.track))
        if len(devices) == 1 or not plan.missing(store):
            return run_here(plan, store, devices[0], watcher)
        with Workers(plan, store, devices, max(1, cores // len(devices)), watcher) as workers:
            return run_plan(plan, store, workers, watcher)


class Workers:
    """The worker processes of one run, each at the other end of a pipe; a context manager that leaves none behind."""

    def __init__(self, plan: Plan, store: Store, devices: Sequence[str], threads: int, watcher: Watcher):
        self._plan, self._store, self._watcher, self.size = plan, store, watcher, len(devices)
        names = (f"worker {number}" for number in range(1, len(devices) + 1))
        run = Run.begin(store)
        self.run, common = run.id, (plan.track, store.root, run, asked_folders())
        places = zip(names, devices, strict=True)
        self._assignments = {name: Assignment(*common, name, device, threads) for name, device in places}
        self._false_starts = Counter[str]()
        self._processes: dict[Connection, BaseProcess] = {}
        self._open: list[Connection] = []
        self._begun: set[Connection] = set()  # those whose worker has said something
        self._in_hand: dict[Connection, Sequence[Task]] = {}

    def __enter__(self) -> Workers:
        try:
            for name in self._assignments:
                self._start(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        started = [process for process in self._processes.values() if process.pid]
        for process in started:
            process.terminate()
        for process in started:
            process.join(PATIENCE)
            process.kill()
            process.join()
        for pipe in self._processes:
            pipe.close()  # ends a worker whose start was interrupted
        if START == "forkserver":
            server: Any = forkserver._forkserver  # it would stay until this process ends
            if server._forkserver_pid:
                os.kill(server._forkserver_pid, signal.SIGKILL)  # it can be at its imports
            server._stop()
        self._store.sweep()  # of those that were killed

    def _start(self, name: str) -> None:
        assignment = self._assignments[name]
        context: Any = multiprocessing.get_context(START)
        with exported(environment(assignment.threads)):
            if START == "forkserver":
                kind = track(self._plan.track)
                context.set_forkserver_preload(["__main__", __name__, type(kind).__module__, *kind.slow_modules])
                with sigint_blocked():
                    forkserver.ensure_running()  # returns before its imports, which can be interrupted
            here, there = context.Pipe()
            process = context.Process(target=work, args=(assignment, there), name=name, daemon=True)
            self._processes[here] = process
            with nullcontext() if START == "forkserver" else sigint_blocked():
                process.start()
            self._open.append(here)
            there.close()  # so that a dead worker's pipe ends

    @property
    def living(self) -> int:
        return len(self._open)

    @property
    def idle(self) -> list[str]:
        return [self._processes[pipe].name for pipe in self._open if pipe not in self._in_hand]

    def give(self, worker: str, bundle: Sequence[Task]) -> None:
        pipe = next(pipe for pipe in self._open if self._processes[pipe].name == worker)
        self._in_hand[pipe] = bundle
        with suppress(OSError):  # a worker that has died is found by `results`
            pipe.send(list(bundle))

    def results(self, timeout: float | None) -> list[tuple[Sequence[Task], Result]]:
        """Results since the last call; the progress of workers goes to the watcher meanwhile."""
        found: list[tuple[Sequence[Task], Result]] = []
        until = None if timeout is None else time.monotonic() + timeout
        while not found:
            remaining = None if until is None else until - time.monotonic()
            if remaining is not None and remaining <= 0:
                break
            ready = wait(self._open, remaining)
            for pipe in [pipe for pipe in self._open if pipe in ready]:
                try:
                    message = pipe.recv()
                except (EOFError, OSError):
                    found += self._bury(pipe)
                    continue
                if message[0] == "unfit" and len(self._open) > 1:
                    found += self._bury(pipe, message[1])
                    continue
                if message[0] in ("refused", "unfit"):
                    raise UserError(message[1])
                self._begun.add(pipe)
                if message[0] == "result":
                    found.append((self._in_hand.pop(pipe), message[1]))
                else:
                    pass_on(message, self._in_hand[pipe], self._watcher)
            if not self._open:
                break
        return found

    def _bury(self, pipe: Connection, unfit: str = "") -> list[tuple[Sequence[Task], Result]]:
        """Start a new worker instead of a dead one, unless workers in its place die as soon as they start.

        ``unfit`` says why a worker cannot start, such as a broken GPU. The others go on without it.
        """
        self._open.remove(pipe)
        process, bundle, begun = self._processes[pipe], self._in_hand.pop(pipe, None), pipe in self._begun
        process.join()
        pipe.close()
        del self._processes[pipe]
        name = process.name
        self._watcher.lost(name, unfit or ended(process.exitcode))
        if unfit:
            return [(bundle, Result("elsewhere"))] if bundle else []  # which does not count as a try of the bundle
        self._false_starts[name] = 0 if begun else self._false_starts[name] + 1
        if self._false_starts[name] <= FALSE_STARTS:
            self._start(name)
            if bundle and not begun:  # which is no fault of the bundle
                self.give(name, bundle)
                return []
        return [(bundle, Result("lost"))] if bundle else []


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Block SIGINT for processes that start meanwhile; this process receives it afterwards.

    A terminal sends Ctrl-C to all processes, and the run ends its workers itself.
    """
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    resource_tracker.ensure_running()  # unblocks SIGINT if it starts later
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def work(assignment: Assignment, pipe: Connection) -> None:
    """The main function of a worker process: make bundles until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_the_run()
    messenger = Messenger(pipe)
    try:
        with suppress(KeyboardInterrupt):
            _make(assignment, messenger)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # libraries clean up after this, and must not be interrupted


def _make(assignment: Assignment, messenger: Messenger) -> None:
    signal.signal(signal.SIGTERM, _leave)
    try:
        executor = _executor(assignment, messenger)
    except UserError as error:
        messenger.tell("unfit", str(error))
        return
    try:
        while True:
            messenger.tell("result", executor.run_one(messenger.hear()))
    except UserError as error:
        messenger.tell("refused", str(error))


def _executor(assignment: Assignment, messenger: Messenger) -> Executor:
    """The executor of a process that sees only its own GPU. Errors name that GPU as the run does."""
    alone = assignment.alone_on_its_gpu()
    try:
        return alone.executor(messenger)
    except UserError as error:
        raise UserError(
            str(error).replace(f"engine.device={alone.device} ", f"engine.device={assignment.device} ")
        ) from None


def _die_with_the_run() -> None:
    """End this process as soon as the run's process is gone, even if it was killed.

    Linux does so by itself, by way of the fork server. Elsewhere a thread waits for the run's process; code that holds
    Python's lock can delay it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_wait_for_the_run, daemon=True).start()


def _wait_for_the_run() -> None:
    run = multiprocessing.parent_process()
    if run:
        run.join()
        os._exit(1)


def _leave(*_) -> None:
    raise KeyboardInterrupt


class Messenger(Teller):
    """A worker's end of its pipe. A run that is gone ends the process."""

    def __init__(self, pipe: Connection):
        self._pipe = pipe

    def tell(self, *message) -> None:
        try:
            self._pipe.send(message)
        except OSError as error:
            raise Leave(1) from error

    def hear(self) -> list[Task]:
        """The next bundle."""
        try:
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            raise Leave(0) from error
