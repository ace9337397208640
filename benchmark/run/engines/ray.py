"""Ray actors that keep models warm, each with its share of the GPUs, on this machine or on a cluster.

Ray starts and places the actors; which bundle an actor makes is decided here. An actor that dies loses the bundle in its hands,
and a new actor takes its place. The store must be on a path that all nodes see.
"""

from __future__ import annotations

import os
import platform
import queue
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from overpaint.errors import AssetMissing, UserError
from overpaint.grid.typed import Positive
from overpaint.run import leases
from overpaint.run.executor import Executor, Result, Watcher
from overpaint.run.following import Follower
from overpaint.run.notes import beating
from overpaint.run.owner import alive, owner
from overpaint.run.plan import Plan
from overpaint.run.runner import Outcome, run_plan
from overpaint.run.shared_run import SharedRun
from overpaint.run.store import Store
from overpaint.run.tasks import Task
from overpaint.run.track import Track, track
from overpaint.run.worker import FALSE_STARTS, Teller, check_device, environment, pass_on, worker_device

#: Seconds that a killed actor's process may take to go.
PATIENCE = 10
#: Settings of Ray, read when it is imported: no reports to its makers, and no word about a default that will change.
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@dataclass(kw_only=True)
class Ray:
    """``address``: ``None`` starts Ray for the run; ``auto`` or ``HOST:PORT`` joins a cluster. An actor has ``gpus`` GPUs and
    ``cpus`` CPU cores; ``workers`` is the number of actors. ``device`` and ``compile`` as in `Inline`, on the actor's machine."""

    address: str | None
    workers: Positive | Literal["auto"]
    gpus: float | Literal["auto"]
    cpus: Positive
    device: str
    compile: bool = False

    def __post_init__(self):
        if self.gpus != "auto" and not 0 <= self.gpus <= 1:
            raise UserError(
                f"engine.gpus takes auto or a number from 0 to 1 (a worker computes on one GPU), got {self.gpus:g}"
            )
        check_device(self.device, self.gpus)
        _library()

    def check(self, kind: Track) -> None:
        """Raise a `UserError` if the device cannot be that of an actor. A cluster's machines have other devices than this."""
        kind.check_name(self.device)
        if self.address is None:
            kind.check(self.device, self.compile)

    def run(self, plan: Plan, store: Store, watcher: Watcher) -> Outcome:
        self.check(track(plan.track))
        if not plan.missing(store):
            return Outcome()
        with self._connected() as resources:
            wanted = 0.0 if self.device == "cpu" else min(1.0, resources.get("GPU", 0))
            gpus = wanted if self.gpus == "auto" else self.gpus
            size = self._size(resources, gpus)
            shared = SharedRun.begin(plan, store, "ray")
            try:
                device = worker_device(self.device, gpus)
                actors = Actors(store, shared, size, gpus, self.cpus, device, watcher)
                with beating(shared.folder), actors:
                    return run_plan(plan, store, actors, watcher)
            finally:
                shared.end()

    @staticmethod
    def at_work(shared: SharedRun, store: Store) -> bool:
        """Whether the process of a run lives, whose actors end with it."""
        return shared.living

    @classmethod
    def tend(cls, shared: SharedRun, store: Store, follower: Follower, watcher: Watcher) -> None:
        """Raise a `UserError` if tasks are left and nobody makes them."""
        if not cls.at_work(shared, store) and follower.look():
            raise UserError(f"{follower.left} tasks are left and no worker makes them; run the same command again")

    @staticmethod
    def close(shared: SharedRun, store: Store) -> None:
        """Nothing: the process of the run clears up."""

    def _size(self, resources: dict[str, float], gpus: float) -> int:
        """The number of actors. Raises a `UserError` if Ray has no room for one of them."""
        room = int(resources.get("CPU", 0) // self.cpus)
        if room < 1:
            raise UserError(f"engine.cpus={self.cpus}: Ray has {resources.get('CPU', 0):g} CPU cores")
        if gpus:
            room = min(room, int(resources.get("GPU", 0) / gpus))
        if room < 1:
            raise UserError(f"engine.gpus={gpus:g}: Ray has {resources.get('GPU', 0):g} GPUs")
        return room if self.workers == "auto" else min(room, self.workers)

    @contextmanager
    def _connected(self) -> Iterator[dict[str, float]]:
        """Ray's resources, while it is started or joined. What was started here ends here."""
        ray = _library()
        quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
        sweep()
        with (
            tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temporary,
            redirect_stdout(sys.stderr),  # Ray writes of dead workers to stdout, where results go
        ):
            (Path(temporary) / "owner").write_text(owner(), encoding="utf-8")
            try:
                if self.address is None:
                    ray.init("local", include_dashboard=False, _temp_dir=temporary, **quiet)
                else:
                    ray.init(self.address, **quiet)
            except (ConnectionError, ValueError, RuntimeError) as error:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                how = "cannot be started" if self.address is None else f"engine.address={self.address} cannot be joined"
                raise UserError(f"engine=ray: {how}: {reason}") from error
            try:
                yield ray.cluster_resources()
            finally:
                ray.shutdown()


def sweep() -> None:
    """Remove the temporary folders of runs that were killed after they had started Ray on this machine."""
    for file in Path(tempfile.gettempdir()).glob("ray-*/owner"):
        with suppress(OSError):
            if alive(file.read_text(encoding="utf-8")) is False:
                shutil.rmtree(file.parent, ignore_errors=True)


def _library() -> Any:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise AssetMissing("engine=ray needs the extra: pip install 'overpaint[ray]'") from error
    return ray


class Actor(Teller):
    """The process of one actor. It makes bundles in one thread, and hands over messages meanwhile."""

    def __init__(self, folder: Path, worker: str, device: str, threads: int):
        # before torch is imported; Ray's own way (runtime_env) starts slower, with a process for each actor
        os.environ.update(environment(threads))
        self._start = folder, worker, device, threads
        self._messages: queue.Queue[tuple] = queue.Queue()
        self._thread = ThreadPoolExecutor(1)
        self._executor: Executor | None = None

    def begin(self) -> str:
        """Read the run and get ready; returns the name of this process (`overpaint.run.owner`)."""
        folder, worker, device, threads = self._start
        if not (folder / "run.json").is_file():
            raise UserError(
                f"{worker} on {platform.node()} does not see the store {folder.parent.parent}: "
                "put it on a path that all nodes of the Ray cluster share"
            )
        assignment = SharedRun.read(folder).assignment(worker, device, threads)
        self._executor = assignment.executor(self)
        return owner()

    def run_one(self, bundle: Sequence[Task]) -> Iterator[tuple]:
        """Make a bundle. Yields messages about it, and at last ``("result", result)``."""
        assert self._executor
        making = self._thread.submit(self._executor.run_one, bundle)
        making.add_done_callback(lambda _: self.tell("result"))
        while (message := self._messages.get()) != ("result",):
            yield message
        yield "result", making.result()

    def tell(self, *message) -> None:
        self._messages.put(message)


@dataclass(eq=False)
class Member:
    """An actor of the crew, as the run sees it. ``owner`` names its process once it is ready.

    ``call`` is what the run waits for: the answer to ``begin``, or the stream of a bundle's messages; ``None`` if idle.
    """

    name: str
    handle: Any
    call: Any
    owner: str = ""
    bundle: Sequence[Task] = ()


class Actors:
    """The actors of one run; a context manager that leaves none behind."""

    def __init__(
        self,
        store: Store,
        shared: SharedRun,
        size: int,
        gpus: float,
        cpus: int,
        device: str,
        watcher: Watcher,
    ):
        self._ray = _library()
        self._store, self._shared, self._watcher, self.size = store, shared, watcher, size
        self.run, self._device, self._cpus, self._false_starts = shared.id, device, cpus, 0
        self._class = self._ray.remote(num_gpus=gpus, num_cpus=cpus, max_restarts=0)(Actor)
        self._members: list[Member] = []

    def __enter__(self) -> Actors:
        try:
            for number in range(1, self.size + 1):
                self._hire(f"ray {number}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for member in self._members:
            self._ray.kill(member.handle)
        for member in self._members:
            self._clean(member)
        self._members = []
        self._store.sweep()

    @property
    def _ready(self) -> list[Member]:
        return [member for member in self._members if member.owner]

    @property
    def living(self) -> int:
        """Actors that are ready. The run does not wait for actors that still start, or wait for room in the cluster."""
        return max(len(self._ready), min(1, len(self._members)))

    @property
    def idle(self) -> list[str]:
        return [member.name for member in self._ready if member.call is None]

    def give(self, worker: str, bundle: Sequence[Task]) -> None:
        member = next(member for member in self._ready if member.name == worker)
        member.bundle = bundle
        member.call = member.handle.run_one.options(num_returns="streaming").remote(list(bundle))

    def results(self, timeout: float | None) -> list[tuple[Sequence[Task], Result]]:
        """Results up to now. Returns early if an actor has become ready, and passes messages to the watcher meanwhile."""
        found: list[tuple[Sequence[Task], Result]] = []
        until, ready = None if timeout is None else time.monotonic() + timeout, self._ready
        while not found and self._ready == ready:
            remaining = None if until is None else max(0.0, until - time.monotonic())
            calls = {member.call: member for member in self._members if member.call is not None}
            if not calls:  # what is left is being made elsewhere, and `ray.wait` would return at once
                time.sleep(remaining or 0.0)
                break
            answered, _ = self._ray.wait(list(calls), num_returns=1, timeout=remaining)
            if not answered:
                break
            for call in answered:
                found += self._answer(calls[call])
        return found

    def _hire(self, name: str) -> None:
        handle = self._class.remote(self._shared.folder, name, self._device, self._cpus)
        self._members.append(Member(name, handle, handle.begin.remote()))

    def _answer(self, member: Member) -> list[tuple[Sequence[Task], Result]]:
        """Take the answer to a call, or one message of it. Returns a result if it was one."""
        try:
            answer = self._ray.get(next(member.call) if member.owner else member.call)
        except self._ray.exceptions.RayTaskError as error:
            # A broken disk stops every worker; an actor that starts can only say that it sees no store.
            gone = self._store.disk_error(error)
            if gone:
                raise self._store.unwritable(gone) from None
            if not member.owner and len(self._members) > 1:  # its node does not see the store, or its GPU is broken
                self._dismiss(member)
                self._watcher.lost(member.name, " ".join(str(error.cause).split())[:300])
                return []
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise
        except self._ray.exceptions.RayError as error:  # the actor died, was killed to free memory, or its node is gone
            return self._replace(member, error)
        if not member.owner:
            member.owner, member.call = answer, None
        elif answer[0] == "result":
            bundle, member.bundle, member.call, self._false_starts = member.bundle, (), None, 0
            return [(bundle, answer[1])]
        else:
            pass_on(answer, member.bundle, self._watcher)
        return []

    def _replace(self, member: Member, error: Exception) -> list[tuple[Sequence[Task], Result]]:
        """A new actor instead of one that has died. Raises a `UserError` if actors die as soon as they start."""
        self._dismiss(member)
        self._false_starts += not member.owner
        if self._false_starts > FALSE_STARTS:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"engine=ray: actors die as soon as they start: {reason}") from error
        self._watcher.lost(member.name, "its actor died")
        self._hire(member.name)
        return [(member.bundle, Result("lost"))] if member.bundle else []

    def _dismiss(self, member: Member) -> None:
        self._members.remove(member)
        self._ray.kill(member.handle)
        self._clean(member)

    def _clean(self, member: Member) -> None:
        """Remove what a killed actor has left in the store, from whichever machine, once its process is gone."""
        until = time.monotonic() + PATIENCE
        while member.owner and alive(member.owner) and time.monotonic() < until:
            time.sleep(0.02)
        leases.clear(self._store.root, self._shared.id, member.name)
