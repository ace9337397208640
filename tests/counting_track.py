"""A track without images: its tasks write numbers. Plans, engines and the store treat it like any other track.

As a program it runs one grid on a store: ``python -c 'import counting_track; counting_track.main(…)'``.
"""

import errno
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from overpaint.errors import UserError
from overpaint.grid.registry import component, look_in
from overpaint.run import store
from overpaint.run.plan import Plan
from overpaint.run.progress import steps
from overpaint.run.store import Store
from overpaint.run.tasks import Task
from overpaint.run.track import Track

#: The configuration folder of the track, beside this module.
CONF = Path(__file__).parent / "counting"


class Counting(Track):
    """A cell is a number."""

    def cell(self, config, explicit):
        return config["n"]

    def plan(self, cells):
        return grid(cells)

    def bench(self):
        return SimpleNamespace(versions={"counting": "1"})

    def devices(self, asked):
        if asked not in ("auto", "cpu"):
            raise UserError(f"engine.device={asked} cannot count")
        return ["cpu"]

    def probe(self, device):
        if BREAKING in os.environ and not Path(os.environ[BREAKING]).exists():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def settle(self, threads):
        if DYING in os.environ:
            os._exit(7)
        if UNFIT in os.environ:
            try:
                Path(os.environ[UNFIT]).rmdir()
            except FileNotFoundError:  # the other process's
                pass
            else:
                raise UserError("the GPU is broken")
        if LOCKS in os.environ:  # worker processes have no test that could patch them
            store.FileLock = {"idle": IdleLock, "refused": RefusedLock}[os.environ[LOCKS]]


#: Environment variable that gives worker processes a lock that does not lock: ``idle`` or ``refused``.
LOCKS = "OVERPAINT_TEST_LOCKS"
#: Environment variable with which worker processes die while they start.
DYING = "OVERPAINT_TEST_DYING"
#: Environment variable with a file. While it is not there, an error of a task has broken the device of its process.
BREAKING = "OVERPAINT_TEST_BREAKING"
#: Environment variable with a folder. The worker process that removes it cannot start.
UNFIT = "OVERPAINT_TEST_UNFIT"


class IdleLock:
    """A lock that does nothing, as on some network file systems."""

    def __init__(self, path, fallback_to_soft): ...
    def acquire(self, blocking=True, timeout=None): ...
    def release(self): ...


class RefusedLock(IdleLock):
    """A lock that the file system refuses."""

    def acquire(self, blocking=True, timeout=None):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def count(task, inputs, folder, bench):
    """Write the task's number plus those of its inputs.

    ``runtime`` can request a log of labels, a journal of processes and labels, slow steps, and errors: the stage raises while a
    file named by ``broken`` or ``refused`` exists; ``full`` simulates a full disk, ``deadly`` kills the process.
    """
    runtime = task.runtime
    for name, line in (("log", task.label), ("journal", f"{os.getpid()} {task.label}")):
        if name in runtime:
            with open(runtime[name], "a") as file:
                file.write(f"{line}\n")
    for _ in steps(runtime.get("steps", 1), "steps"):
        time.sleep(runtime.get("pause", 0))
    if runtime.get("deadly"):
        os.kill(os.getpid(), signal.SIGKILL)
    if runtime.get("full"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "n"))
    if Path(runtime.get("broken", "")).is_file():
        raise ValueError("on purpose")
    if Path(runtime.get("refused", "")).is_file():
        raise UserError("the request cannot be met")
    total = task.config["n"] + sum(int((place / "n").read_text()) for place in inputs.values())
    (folder / "n").write_text(str(total))
    return {}


def count_together(tasks, inputs, folders, bench):
    return [count(task, inputs, folder, bench) for task, folder in zip(tasks, folders, strict=True)]


def grid(numbers, **runtime) -> Plan:
    """A plan with a task ``count i`` for each number ``i``, and a task ``measure i`` that adds 100 to it."""
    plan = Plan("counting")
    runtime = {key: str(value) if isinstance(value, Path) else value for key, value in runtime.items()}
    for n in numbers:
        first = plan.add(Task("count", {"n": n}, runtime=runtime, label=f"count {n}", like="count"))
        last = plan.add(Task("measure", {"n": 100}, {"in": first.key}, runtime=runtime, label=f"measure {n}"))
        plan.cells.append((n, last))
    return plan


def results(plan, store) -> list[int]:
    """The number of every cell. All artefacts of the plan must be complete."""
    return [int((store.read("measure", task.key) / "n").read_text()) for _, task in plan.cells]


class Told:
    """A watcher that records all messages, and calls ``at_first`` when the first task starts."""

    def __init__(self, at_first=lambda: None):
        self.begun, self.done, self.reasons, self.notes, self.gone, self.theirs = [], [], [], [], [], []
        self.at_first = at_first

    def started(self, task):
        self.begun.append(task.label)
        at_first, self.at_first = self.at_first, lambda: None
        at_first()

    def finished(self, task, seconds, hardware):
        self.done.append(task.label)

    def shared(self, task):
        self.theirs.append(task.label)

    def failed(self, task, reason):
        self.reasons.append(reason)

    def noted(self, task, note):
        self.notes.append(note)

    def lost(self, worker, how):
        self.gone.append(how)

    def stepped(self, task, done, total, what): ...
    def waiting(self, tasks): ...


def main(root: str, engine: str, width: int, pause: float, journal: str | None = None, **values) -> None:
    """Run one grid like a command with an engine of these values, and exit with 1 if a task failed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    look_in(CONF)
    place = Store(root)
    place.prepare()
    place.sweep()
    values = {"workers": 2} | values if engine != "inline" else values
    plan = grid(range(width), steps=2, pause=pause, **({"journal": journal} if journal else {}))
    outcome = component("engine", engine).build(values).run(plan, place, Told())
    sys.stdout.write(f"{results(plan, place) if not outcome.failed else outcome.failed}\n")
    sys.stdout.flush()
    os._exit(1 if outcome.failed else 0)
