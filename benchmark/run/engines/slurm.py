"""An array of Slurm jobs that share the tasks of a saved plan. Each job schedules for itself; leases keep them apart.

A job stops taking tasks before its time limit and is requeued then, as it is when Slurm preempts it. A job that crashed or was
killed is submitted again. Who is at work is read from ``squeue`` and from leases: `submitit` alone cannot tell without
Slurm's accounting.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from rich.console import Console

from overpaint.errors import AssetMissing, UserError
from overpaint.grid.typed import Positive, bare, construct
from overpaint.run import leases
from overpaint.run.display import Display
from overpaint.run.estimates import Estimates
from overpaint.run.executor import Executor, Leave, Watcher
from overpaint.run.following import Follower
from overpaint.run.plan import Plan
from overpaint.run.runner import Alone, Outcome, run_plan
from overpaint.run.scheduler import TRIES
from overpaint.run.shared_run import SharedRun, cells_of, shared_runs
from overpaint.run.store import Store
from overpaint.run.tasks import Task
from overpaint.run.track import Track
from overpaint.run.worker import check_device, environment, worker_device

#: Seconds before its time limit at which Slurm tells a job to leave, at most; a third of the limit if that is less.
NOTICE = 120
#: Slurm looks at time limits once in a while: its signal may come so many seconds earlier than asked.
EARLY = 60
#: Seconds after which a job leaves the last tasks to the jobs that make them, so that it does not hold a GPU for nothing.
IDLE = 2 * leases.EXPIRY
#: Seconds that cancelled or finished jobs may take to leave the queue.
LEAVING = 60
#: What to do about tasks that are left.
AGAIN = "run the same command to continue"
#: Options of sbatch that ``engine.sbatch`` cannot set, and the key that does.
OWN = {
    "account": "engine.account",
    "array": "engine.workers",
    "cpus-per-task": "engine.cpus",
    "mem": "engine.memory",
    "partition": "engine.partition",
    "time": "engine.time",
} | dict.fromkeys(("error", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "requeue", "signal"), "")
#: Number of times in a row that the jobs of another user are not seen before they count as gone.
UNSEEN = 6
#: Share of a job's time after which a task counts as having had all of it: the notice can come before the time that is expected.
WHOLE = 0.8
#: How often submitit requeues a job at its time limit: a job that has made nothing in its time ends by itself.
REQUEUES = 10**6


@dataclass(kw_only=True)
class Slurm:
    """Keys of ``sbatch`` under plain names (``conf/engine/slurm.yaml``), and ``sbatch`` for all others. A job is one worker
    process on one node. ``compile`` as in `Inline`."""

    workers: Positive
    partition: str | None
    account: str | None
    time: str | Positive
    gpus: Literal[0, 1]
    cpus: Positive
    memory: Positive | None
    setup: list[str]
    sbatch: dict[str, bool | int | str]
    device: str
    compile: bool = False
    detach: bool
    dry_run: bool

    def __post_init__(self):
        self.minutes = minutes(self.time)
        self.sbatch = {key.lstrip("-").replace("_", "-"): value for key, value in self.sbatch.items()}
        for key in self.sbatch.keys() & OWN.keys():
            instead = f"give {OWN[key]}" if OWN[key] else "the array depends on it"
            raise UserError(f"engine.sbatch cannot set {key}: {instead}")
        for line in self.setup:
            if line.lstrip().startswith("#SBATCH"):
                raise UserError(
                    f"engine.setup takes shell lines, got {line!r}: give options of sbatch as engine.sbatch={{qos: long}}"
                )
        check_device(self.device, self.gpus)
        _library()

    def check(self, kind: Track) -> None:
        """Raise a `UserError` if this machine cannot submit jobs. Their nodes have other devices than this machine."""
        kind.check_name(self.device)
        if not self.dry_run and not shutil.which("sbatch"):
            raise UserError("engine=slurm: there is no sbatch on this machine; run the command where you submit jobs")

    def run(self, plan: Plan, store: Store, watcher: Watcher) -> Outcome:
        if self.dry_run:
            print(self.script(store.root / "runs" / "ID"))
            return Outcome(elsewhere="engine.dry_run=true: nothing was submitted")
        batch = self._running(plan, store)
        if batch is None:
            if not plan.missing(store):
                return Outcome()
            batch = Batch(SharedRun.begin(plan, store, "slurm"), store, self.detach)
            try:
                batch.submit(self, range(self.workers))
            except BaseException:
                batch.shared.end()
                raise
        elif batch.mine:
            batch.check(self.settings)
        if self.detach:
            return Outcome(elsewhere=f"{batch}; `overpaint attach store={store.root}` follows it")
        # a plan with lines would look finished after its first tasks, and the array would be cancelled
        return self._follow(batch, Follower(plan.opened(), store, batch.shared.run, watcher), watcher)

    @staticmethod
    def at_work(shared: SharedRun, store: Store) -> bool:
        """Whether jobs of a run are in the queue; true as well if this machine or this user cannot know (`Batch.queued`)."""
        return Batch(shared, store).queued() != set()

    @classmethod
    def tend(cls, shared: SharedRun, store: Store, follower: Follower, watcher: Watcher) -> None:
        """Submit this user's lost jobs again. Raises a `UserError` if tasks are left and nobody makes them."""
        batch = Batch(shared, store)
        if batch.mine and batch.settings:  # which arrays of earlier versions have not noted
            engine = construct(cls, batch.settings | {"detach": True, "dry_run": False}, str(shared.jobs_file))
            batch.mend(engine, follower, watcher)
        elif batch.queued() == set() and follower.look():
            raise UserError(f"{follower.left} tasks are left and no worker makes them; {AGAIN}")

    @staticmethod
    def close(shared: SharedRun, store: Store) -> None:
        """Clear up after a run whose tasks are all made."""
        Batch(shared, store).close()

    def script(self, folder: Path) -> str:
        """The script of the array that ``sbatch`` would get."""
        from submitit.slurm.slurm import _make_sbatch_string

        logs = folder / "logs"
        command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(logs))}"
        return _make_sbatch_string(command=command, folder=logs, map_count=self.workers, **self.parameters)

    @property
    def settings(self) -> dict[str, Any]:
        """The values that an array keeps once it is submitted."""
        keys = ("workers", "partition", "account", "gpus", "cpus", "memory", "setup", "sbatch", "device")
        return {key: getattr(self, key) for key in keys} | {"time": self.minutes}

    @property
    def notice(self) -> int:
        """Seconds between Slurm's signal and the time limit."""
        return min(NOTICE, self.minutes * 20)

    @property
    def parameters(self) -> dict[str, Any]:
        """The job's parameters, as submitit names them."""
        chosen = {
            "partition": self.partition,
            "account": self.account,
            "gpus_per_node": self.gpus or None,
            "mem": f"{self.memory}GB" if self.memory else None,
        }
        # with underscores, as submitit names its own parameters, which these replace
        further = {key.replace("-", "_"): value for key, value in self.sbatch.items() if value is not False}
        variables = [f"export {name}={value}" for name, value in environment(self.cpus).items()]
        return {key: value for key, value in chosen.items() if value is not None} | {
            "job_name": "overpaint",
            "time": self.minutes,
            "nodes": 1,
            "ntasks_per_node": 1,
            "cpus_per_task": self.cpus,
            "srun_args": [f"--cpus-per-task={self.cpus}"],  # srun of Slurm 22.05 to 23.02 ignores that of sbatch
            "array_parallelism": self.workers,
            "setup": [*variables, *self.setup],
            "signal_delay_s": self.notice,
            # a job that waits for a failed one would wait for ever; a preempted one is to come back
            "additional_parameters": {"kill-on-invalid-dep": "yes", "requeue": True} | further,
        }

    def submit(self, shared: SharedRun, numbers: Sequence[int]) -> dict[int, str]:
        """Submit the workers of these numbers as one array; returns the id of each job."""
        executor = _library().SlurmExecutor(folder=shared.folder / "logs", max_num_timeout=REQUEUES)
        executor.update_parameters(**self.parameters)
        seconds = max(20 * self.minutes, 60 * self.minutes - self.notice - EARLY)
        device = worker_device(self.device, self.gpus)
        workers = [Worker(str(shared.folder), n, device, self.cpus, seconds, n / self.workers) for n in numbers]
        try:
            with executor.batch():
                jobs = [executor.submit(worker) for worker in workers]
        except (OSError, subprocess.SubprocessError, RuntimeError) as error:
            output = getattr(error, "stderr", None) or str(error)
            said = output.decode(errors="replace") if isinstance(output, bytes) else output
            raise UserError(f"engine=slurm: sbatch refused the array: {' '.join(said.split())[:300]}") from error
        return {number: job.job_id for number, job in zip(numbers, jobs, strict=True)}

    def _running(self, plan: Plan, store: Store) -> Batch | None:
        """The array that the same command has submitted earlier, if one of its jobs is still in the queue.

        Another user's array is followed if its jobs are seen. If not, it stays as it is, and a second array shares its tasks.
        """
        found = None
        for shared in shared_runs(store):
            if shared.engine == "slurm" and shared.cells == cells_of(plan):
                batch = Batch(shared, store)
                if batch.goes_on():
                    found = batch
                elif batch.mine and shared.jobs_file.exists():  # else it is being submitted
                    batch.close()
        return found

    def _follow(self, batch: Batch, follower: Follower, watcher: Watcher) -> Outcome:
        """Follow the array to its end. An interruption cancels it unless it was detached or is another user's."""
        try:
            follower.follow(lambda: batch.mend(self, follower, watcher))
        except KeyboardInterrupt:
            if batch.mine and not batch.detached:
                batch.cancel()
                batch.close()
            raise
        batch.close()
        return follower.outcome


class Batch:
    """The jobs of one run. ``jobs.json`` in its folder says which they are, with which ``settings``, and who was submitted
    ``again``, once for each time.

    ``mine`` says whether this user submitted them to this machine's Slurm, which may hide the jobs of others. These are neither
    cancelled nor submitted again here.
    """

    def __init__(self, shared: SharedRun, store: Store, detached: bool = False):
        self.shared, self._store, self._unseen, self.mine = shared, store, 0, True
        self.jobs, self.again, self.detached = dict[int, str](), list[int](), detached
        self.settings: dict[str, Any] = {}
        self._read()

    def _read(self) -> None:
        """Take over what ``jobs.json`` says, if it is there."""
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            found = json.loads(self.shared.jobs_file.read_text(encoding="utf-8"))
            jobs = {int(number): str(job) for number, job in found["jobs"].items()}
            self.jobs, self.again, self.detached = jobs, list(found["again"]), bool(found["detached"])
            self.settings = dict(found.get("settings", {}))
            self.mine = "submitter" not in found or found["submitter"] == _submitter()

    def __str__(self) -> str:
        return f"{len(self.jobs)} jobs in array {', '.join(self._arrays)}"

    @property
    def _arrays(self) -> list[str]:
        return sorted({job.partition("_")[0] for job in self.jobs.values()})

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise a `UserError` if the jobs were submitted with other values than these."""
        kept = [
            f"engine.{key}={bare(str(value))}" for key, value in self.settings.items() if settings.get(key) != value
        ]
        if kept:
            arrays = " ".join(self._arrays)
            raise UserError(
                f"{self} are already in the queue with {', '.join(kept)}: give the same values, follow it with `overpaint attach "
                f"store={self._store.root}`, or `scancel {arrays}` to submit other ones"
            )

    def submit(self, engine: Slurm, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._end_of(number).unlink(missing_ok=True)
        self.jobs |= engine.submit(self.shared, numbers)
        about = {"detached": self.detached, "jobs": self.jobs, "again": sorted(self.again), "submitter": _submitter()}
        about["settings"] = self.settings = engine.settings
        self._store.write(self.shared.jobs_file, json.dumps(about))

    def queued(self) -> set[str] | None:
        """The jobs of this run that are in Slurm's queue, waiting or running; ``None`` if that is unknown.

        It is if Slurm does not answer, or shows no job of a run that is not `mine`.
        """
        if not self.jobs:
            return set()
        found = _ask("squeue", "--noheader", "--array", f"--jobs={','.join(self._arrays)}", "--format=%i")
        seen = set(self.jobs.values()).intersection((found or "").split())
        return seen if seen or (self.mine and found is not None) else None

    def goes_on(self) -> bool:
        """Whether jobs of this run are in the queue, or may be: jobs that are not `mine` count if they are seen."""
        queued = self.queued()
        return bool(queued) or (queued is None and self.mine)

    def mend(self, engine: Slurm, follower: Follower, watcher: Watcher) -> None:
        """Submit lost workers again. Raises a `UserError` if tasks are left and no worker remains to make them."""
        self._read()  # another command that follows the run may have submitted some
        queued = self.queued()
        if not self.mine:
            self._unseen = 0 if queued else self._unseen + 1
            if self._unseen > UNSEEN and follower.look():
                raise UserError(f"{follower.left} tasks are left and another user's {self} are gone; {AGAIN}")
            return
        if queued is None:
            return
        gone = [number for number, job in self.jobs.items() if job not in queued]
        if not gone or not follower.look():  # which ended because everything is done
            return
        states = {number: _state(self.jobs[number]) for number in gone if not self._end_of(number).exists()}
        for number, state in states.items():
            leases.end(self._store.root, self.shared.id, _name(self.jobs[number]))
            if not self._end_of(number).exists():
                watcher.lost(f"worker {number} (job {self.jobs[number]})", state or "not in the queue any more")
                _write(self._end_of(number), state=state)
        cancelled = [number for number, state in states.items() if state.startswith("CANCELLED")]
        lost = [number for number in states if number not in cancelled and self._may_return(number)]
        if not queued and any(self._end(number).get("refused") for number in gone):
            lost = []
        elif not lost and not queued and not cancelled:  # all have left, but an input was damaged since
            lost = [number for number in gone if self._may_return(number)]
        if lost:
            self.again += lost
            self.submit(engine, lost)
        elif not queued:
            self._give_up(follower.left)

    def _may_return(self, number: int) -> bool:
        """Whether a lost worker may be submitted again: once, or more often where fewer than `TRIES` workers could die."""
        return self.again.count(number) * len(self.jobs) < TRIES

    def _give_up(self, left: int) -> None:
        ends = [self._end(number) for number in self.jobs]
        refused = next((end for end in ends if end.get("refused")), None)
        if refused:
            self.close()
            raise UserError(str(refused["refused"]))
        if any(str(end.get("state")).startswith("CANCELLED") for end in ends):
            self.close()
            raise UserError(f"the array was cancelled with {left} tasks left; {AGAIN}")
        raise UserError(
            f"{left} tasks are left and all {len(self.jobs)} jobs are gone; what is stored stays. Their logs are in "
            f"{self.shared.folder / 'logs'}; if there are none, the nodes do not see the store"
        )

    def cancel(self) -> None:
        """Cancel the jobs and wait until they are gone."""
        if self.jobs:
            _ask("scancel", *self.jobs.values())
            self._wait()

    def close(self) -> None:
        """Wait for the jobs to leave, cancel those that stay, and remove what they have left and the run's folder.

        Another user's jobs are not cancelled: if they stay, so does the run.
        """
        if self.queued() and not self._wait():
            if not self.mine:
                return
            self.cancel()
        leases.clear(self._store.root, self.shared.id)
        self._store.sweep()
        self.shared.end()

    def _wait(self) -> bool:
        """Whether all jobs leave the queue in time."""
        until = time.monotonic() + LEAVING
        while self.goes_on():
            if time.monotonic() > until:
                return False
            time.sleep(1)
        return True

    def _end_of(self, number: int) -> Path:
        return self.shared.folder / "ended" / f"{number}.json"

    def _end(self, number: int) -> Mapping[str, Any]:
        try:
            return json.loads(self._end_of(number).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}


class OutOfTime(BaseException):
    """The job's time is too short for its next bundle."""


class Worker:
    """What a job of the array runs: bundles of the plan that no other worker makes, until nothing is left or its time is up.

    ``seconds`` is the time until Slurm's notice at the earliest, ``start`` the place in the plan where it begins. When the
    notice comes, or the job is preempted, submitit calls `checkpoint` and requeues the job.
    """

    def __init__(self, folder: str, number: int, device: str, threads: int, seconds: int, start: float):
        self._arguments = folder, number, device, threads, seconds, start
        self._crew: Timed | None = None

    def __call__(self) -> None:
        folder, number, device, threads, seconds, start = self._arguments
        end = Path(folder) / "ended" / f"{number}.json"
        signal.signal(signal.SIGTERM, _told_to_end)
        signal.signal(signal.SIGUSR2, _leaving(signal.getsignal(signal.SIGUSR2)))
        try:
            shared = SharedRun.read(Path(folder))
            assignment = shared.assignment(_name(_job()), device, threads)
            plan, store = shared.plan(), Store(assignment.store)
            estimates, todo = Estimates(store, device), plan.missing(store)
            with Display(todo, estimates, Console(file=sys.stdout, soft_wrap=True)) as display:
                self._crew = Timed(assignment.executor(display), plan, estimates, seconds)
                run_plan(plan, store, self._crew, display, IDLE, start)
        except UserError as error:
            print(error)
            _write(end, refused=str(error))
        except OutOfTime:
            signal.raise_signal(signal.SIGUSR2)  # as Slurm would in a while: submitit requeues the job
        except KeyboardInterrupt:
            sys.exit(1)
        else:
            _write(end)

    def checkpoint(self) -> Any:
        """The worker that goes on after the job was requeued."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which the requeued job gets as well
        if self._crew:
            self._crew.note_time_out()
        return _library().helpers.DelayedSubmission(Worker(*self._arguments))


class Timed(Alone):
    """A crew of one that starts no bundle for which its time is too short by its estimate; the first one it always starts.

    ``seconds`` counts from the start of the job, which may have spent minutes on its setup, imports and the plan.
    """

    def __init__(self, executor: Executor, plan: Plan, estimates: Estimates, seconds: float):
        super().__init__(executor, plan)
        self._end, self._seconds, self._estimates = time.monotonic() + seconds - _elapsed(), seconds, estimates
        self._count, self._latest = 0, list[Task]()

    def give(self, worker: str, bundle: Sequence[Task]) -> None:
        left = self._end - time.monotonic()
        if self._count and left < max(0.0, self._estimates.total(bundle).seconds):
            raise OutOfTime
        self._count, self._latest = self._count + 1, list(bundle)
        super().give(worker, bundle)

    def note_time_out(self) -> None:
        """Record a failure if a task has had the whole time of a job and was not done: it would not be done next time."""
        if self._count != 1 or time.monotonic() < self._end - (1 - WHOLE) * self._seconds:
            return
        store, why = self._executor.store, "it takes longer than the time limit of a job; raise engine.time"
        for task in self._latest:
            if not store.has(task.stage, task.key):
                store.record_failure(task.key, task.label, self._executor.run.id, why)


def minutes(text: str | int) -> int:
    """A time limit as Slurm writes it, in minutes: ``90``, ``4:00:00``, ``1-12:00:00``."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(text).strip())
    if not match:
        raise UserError(f"engine.time takes minutes, HH:MM:SS or D-HH:MM:SS, got {text!r}")
    days, *rest = match.groups()
    numbers = [int(part) for part in rest if part is not None]
    if days is None:  # M, M:S or H:M:S
        numbers = [0] * (3 - len(numbers)) + numbers if len(numbers) != 1 else [0, numbers[0], 0]
    else:  # D-H, D-H:M or D-H:M:S
        numbers += [0] * (3 - len(numbers))
    hours, mins, seconds = numbers
    total = (int(days or 0) * 24 + hours) * 60 + mins + -(-seconds // 60)
    if not total:
        raise UserError(f"engine.time takes a time above 0, got {text!r}")
    return total


def _library() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise AssetMissing("engine=slurm needs the extra: pip install 'overpaint[slurm]'") from error
    return submitit


def _ask(*command: str) -> str | None:
    """What a command of Slurm prints; ``None`` if it fails, for instance because the controller does not answer."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except subprocess.CalledProcessError as error:
        return "" if "Invalid job id" in error.stderr else None  # Slurm has forgotten the job
    except (OSError, subprocess.SubprocessError):
        return None


def _submitter() -> str:
    """This user and the Slurm that this machine asks."""
    cluster = re.search(r"^ClusterName\s*=\s*(\S+)", _ask("scontrol", "show", "config") or "", re.MULTILINE)
    return f"{os.getuid()}@{cluster[1] if cluster else ''}"


def _elapsed() -> float:
    """Seconds since this job began; where Slurm does not say when (before 23.02), since this process began."""
    began = os.environ.get("SLURM_JOB_START_TIME") or psutil.Process().create_time()
    return max(0.0, time.time() - float(began))


def _job() -> str:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")


def _name(job: str) -> str:
    return f"slurm {job}"


def _write(path: Path, **values) -> None:
    """Write a file of a run's folder, if that is still there."""
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")


def _told_to_end(*_) -> None:
    """A cancelled job leaves, after cleaning up behind itself; a preempted one, whose state is still RUNNING, is requeued."""
    if _state(_job()) == "RUNNING":
        signal.raise_signal(signal.SIGUSR2)
    raise KeyboardInterrupt


def _leaving(checkpoint: Any) -> Callable[..., None]:
    """Submitit's handler of Slurm's notice, which ends the process, so that the task in hand does not fail."""

    def handler(*arguments) -> None:
        try:
            checkpoint(*arguments)
        except SystemExit as end:
            raise Leave(end.code) from None

    return handler


def _state(job: str) -> str:
    """Slurm's word for the state of a job, such as ``OUT_OF_MEMORY``; empty if Slurm has forgotten it."""
    found = re.search(r"\bJobState=(\S+)", _ask("scontrol", "show", "job", "--oneliner", job) or "")
    return found[1] if found else ""
