"""What worker processes of all engines have in common: what they start with, and what they tell about their tasks."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from overpaint.errors import UserError
from overpaint.grid.registry import look_in
from overpaint.run.executor import Executor, Listener, Run, Watcher
from overpaint.run.store import Store
from overpaint.run.tasks import Task
from overpaint.run.track import track

#: Environment of every worker, set before torch is imported. Workers share their machine's cores: threads that wait sleep
#: instead of spinning, and each worker is told its number of threads. Old versions of diffusers ask at import if there is a GPU;
#: torch then asks NVML, since asking CUDA initialises it, which does not survive a fork.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
#: The environment variable that says which GPUs a process sees, and in which order.
VISIBLE = "CUDA_VISIBLE_DEVICES"
#: Minimum seconds between two progress messages of a worker.
BETWEEN_MESSAGES = 0.2
#: How often in a row a worker that died before it began anything is replaced.
FALSE_STARTS = 3


@dataclass(frozen=True)
class Assignment:
    """What a worker starts with. ``worker`` is its name for people, ``conf_folders`` those that the user named."""

    track: str
    store: Path
    run: Run
    conf_folders: tuple[Path, ...]
    worker: str
    device: str
    threads: int

    def alone_on_its_gpu(self) -> Assignment:
        """This assignment after this process has hidden all other GPUs from itself; to be called before CUDA is initialised.

        No library can then use the first GPU by mistake, or take memory there.
        """
        device, variables = pinned(self.device, os.environ)
        os.environ.update(variables)
        return replace(self, device=device)

    def executor(self, listener: Listener) -> Executor:
        """An executor in this process, which takes over the folders and the number of threads."""
        look_in(*self.conf_folders)
        kind = track(self.track)
        kind.settle(self.threads)
        device = kind.devices(self.device)[0]
        return Executor(self.track, Store(self.store), device, listener, self.run, self.worker)


class Teller(ABC):
    """A listener that passes on what it hears as messages: an event, the task's key, and the details."""

    _told = 0.0

    @abstractmethod
    def tell(self, *message) -> None:
        """Send a message to the run."""

    def started(self, task: Task) -> None:
        self.tell("started", task.key)

    def stepped(self, task: Task, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if now - self._told > BETWEEN_MESSAGES:
            self._told = now
            self.tell("stepped", task.key, done, total, what)

    def noted(self, task: Task, note: str) -> None:
        self.tell("noted", task.key, note)


def pass_on(message: tuple, bundle: Sequence[Task], watcher: Watcher) -> None:
    """Give the watcher a message of a `Teller` that makes a bundle. The plan may have forgotten its tasks meanwhile."""
    event, key, *details = message
    getattr(watcher, event)(next(task for task in bundle if task.key == key), *details)


def ended(code: int | None) -> str:
    """How a process ended: ``signal 9`` or ``exit code 1``."""
    return f"signal {-code}" if code and code < 0 else f"exit code {code or 0}"


def check_device(device: str, gpus: float | str) -> None:
    """Raise a `UserError` for a device that a cluster's worker with so many GPUs cannot have. The cluster chooses its GPU."""
    if ":" in device:
        raise UserError(
            f"engine.device={device}: the cluster chooses the GPU; give engine.device={device.partition(':')[0]}"
        )
    if device == "cpu" and gpus not in (0, "auto"):
        raise UserError(f"engine.device=cpu leaves the GPU of engine.gpus={gpus} idle: add engine.gpus=0")
    if device == "cuda" and gpus == 0:
        raise UserError("engine.device=cuda needs a GPU, and engine.gpus=0 asks for none: add engine.gpus=1")


def worker_device(device: str, gpus: float) -> str:
    """The device of a cluster's worker that was given so many GPUs. ``auto`` is the GPU it was given: one that its node does not
    show is an error, and the worker does not compute on the CPU instead.

    >>> worker_device("auto", 1), worker_device("auto", 0)
    ('cuda', 'cpu')
    """
    return device if device != "auto" else "cuda" if gpus else "cpu"


def environment(threads: int) -> dict[str, str]:
    """Environment variables of a worker with so many threads."""
    return {**ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}


def pinned(device: str, environment: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The name of a GPU for a process that sees no other one, and the environment variables that make it so.

    The number in ``cuda:1`` counts the GPUs that the environment shows. Other devices stay as they are.

    >>> pinned("cuda:1", {"CUDA_VISIBLE_DEVICES": "4,6"})
    ('cuda:0', {'CUDA_VISIBLE_DEVICES': '6'})
    """
    kind, _, number = device.partition(":")
    if kind != "cuda" or not number:
        return device, {}
    shown = [name.strip() for name in environment.get(VISIBLE, "").split(",") if name.strip()]
    return "cuda:0", {VISIBLE: shown[int(number)] if shown else number}


@contextmanager
def exported(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables during the block, for processes that start in it."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
