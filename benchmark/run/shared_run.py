"""A run that workers on other machines join. ``ROOT/runs/<id>/`` holds its plan and everything its workers start with."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from overpaint.errors import UserError
from overpaint.grid.registry import asked_folders
from overpaint.grid.typed import construct
from overpaint.run import saved_plan
from overpaint.run.executor import Run
from overpaint.run.notes import ABANDONED, file_system_time, temporary
from overpaint.run.owner import alive, owner
from overpaint.run.plan import Plan
from overpaint.run.store import Store
from overpaint.run.worker import Assignment

#: Format of the folder. It is raised when older versions of this package could not join the run.
FORMAT = 1


@dataclass(frozen=True)
class SharedRun:
    """``id`` is the run's (`Run.id`), ``cells`` a hash of what its cells need, ``found`` the failures that it found.

    ``owner``, ``host`` and ``began`` (seconds since 1970) say which process began it. The folder stays until the run has
    ended; ``jobs.json`` in it says that workers go on without that process.
    """

    format: int
    id: str
    engine: str
    track: str
    cells: str
    store: str
    found: dict[str, list]
    conf_folders: list[str]
    working_folder: str
    owner: str
    host: str
    began: float

    @classmethod
    def begin(cls, plan: Plan, store: Store, engine: str) -> SharedRun:
        """Write a plan and its run into the store."""
        sweep(store)
        run = Run.begin(store)
        found = {key: list(mark) for key, mark in run.found.items()}
        folders = [str(Path(folder).absolute()) for folder in asked_folders()]
        begun = (os.getcwd(), owner(), platform.node(), time.time())
        shared = cls(FORMAT, run.id, engine, plan.track, cells_of(plan), str(store.root), found, folders, *begun)
        try:
            with store.workspace() as whole:  # which is swept if this process is killed here
                saved_plan.save(plan, whole / "plan.parquet")
                store.write(whole / "run.json", json.dumps(asdict(shared), indent=1))
                shared.folder.parent.mkdir(exist_ok=True)
                whole.rename(shared.folder)
        except OSError as error:
            raise store.unwritable(error) from error
        return shared

    @classmethod
    def read(cls, folder: Path) -> SharedRun:
        """The run in a folder. Raises a `UserError` if there is none, or if a newer version of this package wrote it."""
        try:
            found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            written = found["format"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"there is no run in {folder}") from error
        if isinstance(written, int) and written > FORMAT:
            raise UserError(f"{folder} has format {written}, and this version of overpaint reads up to {FORMAT}")
        return construct(cls, found, str(folder / "run.json"))

    @property
    def folder(self) -> Path:
        return Path(self.store) / "runs" / self.id

    @property
    def jobs_file(self) -> Path:
        return self.folder / "jobs.json"

    @property
    def jobs(self) -> int:
        """The number of jobs that go on without the process that began the run."""
        try:
            return len(json.loads(self.jobs_file.read_text(encoding="utf-8"))["jobs"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    @property
    def living(self) -> bool:
        """Whether the process that began the run lives; on another machine, whether it gave a sign of life within a day."""
        known = alive(self.owner)
        if known is not None:
            return known
        with suppress(FileNotFoundError):
            return file_system_time(Path(self.store)) - self.folder.stat().st_mtime < ABANDONED
        return False

    @property
    def run(self) -> Run:
        return Run(self.id, {key: (run, attempt) for key, (run, attempt) in self.found.items()})

    def plan(self) -> Plan:
        return saved_plan.load(self.folder / "plan.parquet")

    def assignment(self, worker: str, device: str, threads: int) -> Assignment:
        """What a worker of this run starts with, in its process: the working folder becomes the run's."""
        with suppress(OSError):
            os.chdir(self.working_folder)
        folders = tuple(map(Path, self.conf_folders))
        return Assignment(self.track, Path(self.store), self.run, folders, worker, device, threads)

    def end(self) -> None:
        """Remove the run's folder. It leaves its place by one rename: what a killed process leaves of it is swept."""
        away = temporary(Path(self.store))
        with suppress(OSError):
            self.folder.rename(away)
        shutil.rmtree(away, ignore_errors=True)


def shared_runs(store: Store) -> Iterator[SharedRun]:
    """The runs of a store that have not ended, the oldest first. What this version cannot read is left out."""
    found = []
    for file in (store.root / "runs").glob("*/run.json"):
        with suppress(UserError):
            found.append(SharedRun.read(file.parent))
    yield from sorted(found, key=lambda shared: shared.began)


def sweep(store: Store) -> None:
    """Remove the folders of runs that have ended without doing so: their process was killed, and no jobs go on."""
    for shared in shared_runs(store):
        if not shared.living and not shared.jobs_file.exists():
            shared.end()


def cells_of(plan: Plan) -> str:
    """A hash of the results that the cells of a plan need: the same command has the same."""
    keys = sorted({task.key for _, task in plan.cells} | plan.again)
    return hashlib.sha256("\n".join([plan.track, *keys]).encode()).hexdigest()[:12]
