"""Who owns a temporary folder: the process that made it, named so that another process can tell whether it still lives."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from pathlib import Path

import psutil


def owner() -> str:
    """This process as text without separators of paths: machine, process id and start time."""
    return f"{_machine()}-{os.getpid()}-{_started(os.getpid())}"


def alive(name: str) -> bool | None:
    """Whether the process that `owner` named still lives; ``None`` if this machine cannot know.

    Names start with what `owner` returned; anything may follow after another ``-``. Other machines, other containers and
    an earlier boot of this machine are out of sight.
    """
    try:
        machine, pid, started = name.split("-")[:3]
        process = int(pid)
    except ValueError:
        return None
    if machine != _machine():
        return None
    found = _started(process)
    return None if found is None and _hidden(process) else found == started


def _hidden(pid: int) -> bool:
    """Whether there is a process of another user of which this machine tells nothing (``/proc`` mounted with ``hidepid``)."""
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError) as error:
        return isinstance(error, PermissionError)
    return False


@cache
def _machine() -> str:
    """A short hash of the host name, the boot and the namespace that process ids belong to."""
    parts = [platform.node()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        try:
            parts.append(read())
        except OSError:  # not Linux
            parts.append("")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _started(pid: int) -> str | None:
    """When a living process started; ``None`` if there is none of this id.

    Linux counts ticks since the boot, which a corrected clock does not change.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *rest = stat.rpartition(")")[2].split()
        threads = int(rest[16])  # while a killed process still has some, it still holds its locks
        return None if state in "ZX" and threads < 2 else rest[18]
    except OSError:
        pass
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(round(process.create_time()))
    except psutil.Error:
        return None
