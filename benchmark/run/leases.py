"""Leases: which process is making which task, as files that everybody who sees the store can read.

A lease is ``ROOT/leases/<key>.json``. Its owner counts up ``beats`` every `BEAT` seconds. Another process takes a lease over
when its owner is known to be dead, or when it has watched the lease for `EXPIRY` seconds of its own clock without a new beat.
No two clocks are compared: a clock that jumps, or a lease that two processes hold for a moment, costs repeated work only.
Results depend on the rename of `Store.publish` alone.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from overpaint.errors import UserError
from overpaint.grid.typed import construct
from overpaint.run.notes import ABANDONED, file_system_time
from overpaint.run.owner import alive, owner

#: Seconds between two beats.
BEAT = 10.0
#: Seconds without a beat after which a lease of an unknown machine is taken over.
EXPIRY = 60.0


@dataclass(frozen=True)
class Lease:
    """``label`` is the task's label, ``run`` the id of the command, ``worker`` who works for it (``worker 2``).

    ``since`` and ``beat`` (the last sign of life) are seconds since 1970 by the owner's clock, for people. ``tries`` counts
    the processes of this run that took the task and vanished, including the present one. ``ended`` says that the owner is
    known to be gone (`end`), which its machine alone could tell otherwise.
    """

    key: str
    label: str
    run: str
    worker: str
    host: str
    owner: str
    since: float
    beat: float
    beats: int = 0
    tries: int = 1
    ended: bool = False

    @property
    def alive(self) -> bool | None:
        """Whether the owner still runs; ``None`` if this machine cannot know."""
        return False if self.ended else alive(self.owner)


class Leases:
    """The leases of one process on a store. It remembers when it first saw the beats of others."""

    def __init__(self, root: str | Path, run: str = "", worker: str = "", clock: Callable[[], float] = time.monotonic):
        self._folder, self._run, self._worker, self._clock = folder(root), run, worker, clock
        self._seen: dict[str, tuple[tuple[str, int], float]] = {}

    @contextmanager
    def holding(self, key: str, label: str = "", wanted: bool = True) -> Iterator[Lease | None]:
        """Hold the lease of a task during the block, beating. ``None`` if it is not ``wanted`` or another process has it."""
        lease, done = self.take(key, label) if wanted else None, threading.Event()
        if lease is None:
            yield None
            return
        beating = threading.Thread(target=self._beat, args=(lease, done), daemon=True)
        beating.start()
        try:
            yield lease
        finally:
            done.set()
            beating.join()
            self.release(key)

    def take(self, key: str, label: str = "") -> Lease | None:
        """Take the lease of a task; ``None`` if another process holds it. If leases cannot be written, every process gets it."""
        now = round(time.time(), 3)
        mine = Lease(key, label, self._run, self._worker, platform.node(), owner(), now, now)
        for _ in range(3):
            try:
                file = _create(self._path(key))
            except FileNotFoundError:
                try:
                    self._folder.mkdir(exist_ok=True)
                except OSError:  # the store itself is gone
                    return mine
            except FileExistsError:
                theirs = read(self._path(key))
                if theirs and theirs.owner == mine.owner:
                    return theirs
                if not self._expired(key, theirs):
                    return None
                if theirs and theirs.run == mine.run:
                    mine = replace(mine, tries=theirs.tries + 1)
                if not self._remove(key, theirs):
                    return None
            except OSError:
                return mine
            else:
                try:
                    with file:
                        file.write(_text(mine))
                except OSError:  # a full disk; an empty file would keep others waiting for its owner
                    with suppress(OSError):
                        self._path(key).unlink()
                return mine
        return None

    def renew(self, lease: Lease) -> Lease | None:
        """The lease with one more beat, written to its file; ``None`` if another process has taken it over.

        The lease stays as it is if its file cannot be read: a network file system fails at times, and a process that
        takes over expired leases moves a file away for a moment.
        """
        found = read(self._path(lease.key))
        if found is None:
            return lease
        if found.owner != lease.owner:
            return None
        new = replace(lease, beat=round(time.time(), 3), beats=lease.beats + 1)
        with suppress(OSError):
            _overwrite(self._path(lease.key), new)
        return new

    def release(self, key: str) -> None:
        """Give up a lease, if it is still this process's."""
        found = read(self._path(key))
        if found and found.owner == owner():
            self._path(key).unlink(missing_ok=True)

    def _expired(self, key: str, lease: Lease | None) -> bool:
        """Whether a lease has no living owner. An unreadable file is a lease that is being written, or damaged."""
        living = lease.alive if lease else None
        if living is not None:
            return not living
        beat = (lease.owner, lease.beats) if lease else ("", 0)
        now = self._clock()
        before, since = self._seen.get(key, (None, now))
        if before != beat:
            self._seen[key] = beat, now
            return False
        return now - since > EXPIRY

    def _remove(self, key: str, expired: Lease | None) -> bool:
        """Remove an expired lease; False if it was another one, which somebody took at this moment."""
        aside = self._folder / f"{key}.{owner()}"
        try:
            self._path(key).rename(aside)
        except OSError:
            return True
        found = read(aside)
        same = (found and found.owner) == (expired and expired.owner)
        with suppress(OSError):
            aside.unlink() if same else aside.rename(self._path(key))
        self._seen.pop(key, None)
        return same

    def _beat(self, lease: Lease, done: threading.Event) -> None:
        current: Lease | None = lease
        while current and not done.wait(BEAT):
            with suppress(OSError):
                current = self.renew(current)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"


def folder(root: str | Path) -> Path:
    """The folder of a store's leases."""
    return Path(root) / "leases"


def keys(root: str | Path) -> list[str]:
    """The keys of all leases of a store, including those of dead owners: one look at a folder, and no file is opened."""
    try:
        return [name.removesuffix(".json") for name in os.listdir(folder(root)) if name.endswith(".json")]
    except OSError:
        return []


def held(root: str | Path) -> list[Lease]:
    """Every lease of a store, the oldest first, including those of dead owners (`Lease.alive`)."""
    found = (read(path) for path in folder(root).glob("*.json"))
    return sorted((lease for lease in found if lease), key=lambda lease: lease.since)


def clear(root: str | Path, run: str, worker: str | None = None) -> None:
    """Remove the leases of a run, or of one of its workers, that is known to be gone, and its temporary folders."""
    for lease in held(root):
        if lease.run == run and worker in (None, lease.worker):
            _clear_temporary(root, lease)
            (folder(root) / f"{lease.key}.json").unlink(missing_ok=True)


def end(root: str | Path, run: str, worker: str) -> None:
    """Mark the leases of a worker that is known to be gone, and remove its temporary folders.

    The next worker takes such a lease at once, and counts on from its ``tries``.
    """
    for lease in held(root):
        if lease.run == run and lease.worker == worker:
            _clear_temporary(root, lease)
            with suppress(OSError):
                _overwrite(folder(root) / f"{lease.key}.json", replace(lease, ended=True))


def _clear_temporary(root: str | Path, lease: Lease) -> None:
    for place in (Path(root) / "tmp").glob(f"{lease.owner}-*"):
        shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)


def sweep(root: str | Path) -> None:
    """Remove the leases of dead processes: of this machine at once, of other machines and ended ones after a day of silence."""
    left = list(folder(root).glob("*"))
    now = file_system_time(Path(root)) if left else 0.0
    for path in left:
        with suppress(OSError):
            lease = read(path)
            living = lease.alive if lease and not lease.ended else None  # an ended one counts the tries of its task
            if living is None:
                living = now - path.stat().st_mtime < ABANDONED
            if not living:
                path.unlink()


def read(path: Path) -> Lease | None:
    """The lease in a file; ``None`` if there is none or it cannot be read. Keys of newer versions are ignored."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name: found[field.name] for field in fields(Lease) if field.name in found}
        return construct(Lease, known, "lease")
    except (OSError, ValueError, TypeError, RecursionError, UserError):
        return None


def _create(path: Path):
    return path.open("x", encoding="utf-8")


def _overwrite(path: Path, lease: Lease) -> None:
    """Write a lease into its file, which exists."""
    # in place: over NFS, a reader that opens the file again sees this, but may still see a file that was renamed over
    with path.open("r+", encoding="utf-8") as file:
        file.write(_text(lease))
        file.truncate()


def _text(lease: Lease) -> str:
    """The lease as JSON that does not get shorter, so that a reader never sees the rest of an older one behind it."""
    text = json.dumps(asdict(lease))
    return text.ljust(-(-len(text) // 256) * 256) + "\n"
