"""Notes: which commands work on a store now, as files that everybody who sees the store can read.

A note lies in the store's temporary folder under the name of its process (`overpaint.run.owner`), so it goes with it
(`overpaint.run.store.Store.sweep`). Tasks in hand have leases (`overpaint.run.leases`).
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from overpaint.run.owner import alive, owner

#: Ending of the files.
NOTE = ".note"
#: Seconds between two signs of life of a note or a workspace.
HEARTBEAT = 60
#: Seconds without a sign of life after which a process of another machine counts as gone.
ABANDONED = 86400


class Note(NamedTuple):
    """What a process does: ``what`` for people, since when (seconds since 1970, by its own clock), and where it runs."""

    what: str
    host: str
    process: int
    since: float


def temporary(root: Path) -> Path:
    """A new path in a store's temporary folder; its name says that this process owns it."""
    return root / "tmp" / f"{owner()}-{uuid.uuid4().hex[:12]}"


@contextmanager
def noting(root: Path, what: str) -> Iterator[None]:
    """Tell others what this process does to a store during the block. Where nothing can be written, there is no note."""
    file = temporary(root).with_suffix(NOTE)
    try:
        note = Note(what, platform.node(), os.getpid(), time.time())
        with suppress(OSError):
            file.write_text(json.dumps(note._asdict()), encoding="utf-8")
        with beating(file):
            yield
    finally:
        with suppress(OSError):
            file.unlink()


def notes(root: Path) -> list[Note]:
    """The notes of living processes, oldest first."""
    found, now = [], file_system_time(root)
    unreadable = OSError, ValueError, KeyError, TypeError, RecursionError  # being removed or written, or damaged
    for file in (root / "tmp").glob(f"*{NOTE}"):
        with suppress(*unreadable):
            if living(file, now):
                content = json.loads(file.read_text(encoding="utf-8"))
                process, since = int(content["process"]), float(content["since"])
                found.append(Note(str(content["what"]), str(content["host"]), process, since))
    return sorted(found, key=lambda note: note.since)


def living(place: Path, now: float) -> bool:
    """Whether the owner of a temporary file or folder still lives, at a `file_system_time`.

    An owner on this machine is gone when its process is, one on another machine after a day of silence.
    """
    known = alive(place.name)
    return now - place.stat().st_mtime < ABANDONED if known is None else known


def file_system_time(root: Path) -> float:
    """The time of a store's file system in seconds, which gives files their times; else that of this machine.

    The clock of one machine can jump, and must not make the work of others look abandoned.
    """
    probe = temporary(root)
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            probe.unlink()


@contextmanager
def beating(place: Path) -> Iterator[None]:
    """Give a temporary file or folder a new time every `HEARTBEAT` seconds during the block, for other machines."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT):
            with suppress(OSError):
                os.utime(place)

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        done.set()
