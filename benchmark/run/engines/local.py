"""Worker processes on this machine, one a GPU or one a CPU core: each takes what is left of the plan until nothing is.

All they share is the store, whose locks say who makes what. A worker that dies loses the task in hand, which another
one takes; what it has published stays.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

from overpaint.errors import UserError
from overpaint.run.executor import Outcome, Watcher, run_tasks
from overpaint.run.plan import Plan
from overpaint.run.store import Store
from overpaint.run.track import Track, track

#: Seconds that a worker has to leave its task tidily when the run is interrupted.
PATIENCE = 10
#: Seconds between two steps of one task that a worker tells of.
TELLING = 0.2


@dataclass(kw_only=True)
class Local:
    """``workers``: how many processes, ``auto`` one a GPU or, without one, one a CPU core; each loads the model.
    ``device`` as in `Inline`; GPUs are dealt out in turn, CPU cores evenly."""

    workers: int | Literal["auto"]
    device: str

    def __post_init__(self):
        if self.workers != "auto" and self.workers < 1:
            raise UserError(f"engine.workers takes auto or a number from 1 up, got {self.workers}")

    def places(self, kind: Track) -> tuple[list[str], int]:
        """The device of each worker, and how many threads they share."""
        devices, threads = kind.devices(self.device), kind.settle(None)
        count = self.workers
        if count == "auto":
            count = threads if devices == ["cpu"] else len(devices)
        return [devices[n % len(devices)] for n in range(count)], threads

    def run(self, plan: Plan, store: Store, watcher: Watcher) -> Outcome:
        devices, cores = self.places(track(plan.track))
        if len(devices) == 1 or not plan.missing(store):
            return run_tasks(plan, store, devices[0], watcher)
        share = Plan(plan.track, [(None, task) for _, task in plan.cells], plan.tasks, bundles=plan.bundles)
        threads = max(1, cores // len(devices))
        began = time.time()
        with crew([(share, store.root, began, device, threads) for device in devices]) as workers:
            outcome = follow(workers, plan, watcher)
        left = [t for t in plan.missing(store) if t.key not in outcome.failed and t.key not in outcome.blocked]
        if left:
            raise UserError(
                f"{len(left)} tasks are left and all {len(workers)} workers are gone; what is stored stays: run the same "
                "command again, with fewer engine.workers if memory is short"
            )
        return outcome


@contextmanager
def crew(places: list[tuple]) -> Iterator[dict[Connection, BaseProcess]]:
    """A started worker for each place, by the pipe that it reports through; none is left at the end."""
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, BaseProcess] = {}
    try:
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what workers start with: a terminal's Ctrl-C goes to
        try:  # all processes, and the run ends its workers itself
            for number, place in enumerate(places, start=1):
                here, there = context.Pipe(duplex=False)
                workers[here] = context.Process(target=work, args=(*place, there), name=f"worker {number}", daemon=True)
                workers[here].start()
                there.close()  # so that a dead worker's pipe ends
        finally:
            signal.signal(signal.SIGINT, handler)
        yield workers
    finally:
        for worker in workers.values():
            worker.terminate()
        for worker in workers.values():
            worker.join(PATIENCE)
            worker.kill()
            worker.join()


def follow(workers: dict[Connection, BaseProcess], plan: Plan, watcher: Watcher) -> Outcome:
    """Pass on what the workers tell until the last one is done."""
    outcome, open_pipes = Outcome(), set(workers)
    while open_pipes:
        for pipe in wait(open_pipes):
            try:
                event, *told = pipe.recv()
            except (EOFError, OSError):
                open_pipes.remove(pipe)
                workers[pipe].join()
                if workers[pipe].exitcode:
                    watcher.lost(workers[pipe].name, workers[pipe].exitcode)
                continue
            if event == "refused":
                raise UserError(*told)
            if event == "done":
                (part,) = told
                outcome.done += part.done
                outcome.failed |= part.failed
                outcome.blocked |= part.blocked
            else:
                key, *values = told
                getattr(watcher, event)(plan.tasks[key], *values)
    return outcome


def work(plan: Plan, root: Path, began: float, device: str, threads: int, pipe: Connection) -> None:
    """What a worker process does."""
    signal.signal(signal.SIGTERM, _leave)
    track(plan.track).settle(threads)
    try:
        try:
            pipe.send(("done", run_tasks(plan, Store(root), device, Messenger(pipe), began)))
        except UserError as error:
            pipe.send(("refused", str(error)))
    except (KeyboardInterrupt, BrokenPipeError):  # asked to leave, or the run itself is gone
        return


def _leave(*_) -> None:
    raise KeyboardInterrupt


class Messenger:
    """A watcher that tells the run's own what happens here."""

    def __init__(self, pipe: Connection):
        self.pipe, self.told = pipe, 0.0

    def started(self, task) -> None:
        self.pipe.send(("started", task.key))

    def stepped(self, task, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if now - self.told > TELLING:
            self.told = now
            self.pipe.send(("stepped", task.key, done, total, what))

    def finished(self, task, seconds: float) -> None:
        self.pipe.send(("finished", task.key, seconds))

    def noted(self, task, note: str) -> None:
        self.pipe.send(("noted", task.key, note))

    def failed(self, task, reason: str) -> None:
        self.pipe.send(("failed", task.key, reason))

    def waiting(self, tasks: int) -> None:
        """One worker's idleness is nothing to tell."""
