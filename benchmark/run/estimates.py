"""How long tasks take: measured on this machine and remembered in the store by kind of task; unknown before that."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from overpaint.run.store import Store
from overpaint.run.tasks import Task

#: Weight of the newest task in the running mean of its kind.
NEWEST = 0.4
#: Most seconds that a unit of work can take; larger values in a file are ignored.
LONGEST = 1e9


def duration(seconds: float) -> str:
    """``75`` → ``1m 15s``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes}m {seconds:02d}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02d}m"


@dataclass(frozen=True)
class Estimate:
    """``seconds`` of the kinds of task that were measured on this machine; ``unknown`` counts the kinds that were not."""

    seconds: float
    unknown: int

    def __str__(self) -> str:
        if not self.unknown:
            return f"about {duration(self.seconds)}"
        if not self.seconds:
            return "unknown on this machine"
        kinds = "1 kind of task" if self.unknown == 1 else f"{self.unknown} kinds of task"
        return f"at least {duration(self.seconds)} ({kinds} not yet measured on this machine)"


class Estimates:
    """Seconds a unit of work by kind of task (`Task.pace`), a running mean of what this machine took.

    ``timings.json`` of the store holds them by machine (host name), then by kind.
    """

    def __init__(self, store: Store):
        self._store, self._path, self._machine = store, store.root / "timings.json", platform.node() or "unnamed"
        self._seconds = self._stored().get(self._machine, {})
        self._learned: dict[str, float] = {}

    def of(self, task: Task) -> float | None:
        """Seconds that the task takes, or ``None`` if no task of its kind was measured on this machine."""
        unit = self._seconds.get(task.pace)
        return None if unit is None else task.amount * unit

    def total(self, tasks: Iterable[Task]) -> Estimate:
        """The estimate for all tasks, one after another."""
        seconds, unknown = 0.0, set()
        for task in tasks:
            known = self.of(task)
            if known is None:
                unknown.add(task.pace)
            else:
                seconds += known
        return Estimate(seconds, len(unknown))

    def learn(self, task: Task, seconds: float) -> None:
        """Take a measured task into the running mean of its kind."""
        unit, before = seconds / max(1, task.amount), self._seconds.get(task.pace)
        new = unit if before is None else (1 - NEWEST) * before + NEWEST * unit
        self._seconds[task.pace] = self._learned[task.pace] = new

    def save(self) -> None:
        """Write what was learned beside what other runs have written. A store that cannot be written to keeps the old."""
        stored = self._stored()
        stored[self._machine] = stored.get(self._machine, {}) | self._learned
        with suppress(OSError):
            self._store.write(self._path, json.dumps(stored, indent=1, sort_keys=True))

    def _stored(self) -> dict[str, dict[str, float]]:
        """Timings by machine and kind; entries of any other layout are left out."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        machines = found.items() if isinstance(found, dict) else ()
        return {
            machine: {kind: value for kind, value in kinds.items() if _is_duration(value)}
            for machine, kinds in machines
            if isinstance(kinds, dict)
        }


def _is_duration(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= LONGEST
