"""How long tasks take: measured on this machine and remembered in the store by kind of task; unknown before that."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from overpaint.run.plan import Work
from overpaint.run.store import Store
from overpaint.run.tasks import Task

#: Weight of the newest task in the running mean of its kind.
NEWEST = 0.4
#: The name of a CPU as hardware (`overpaint.run.track.Track.hardware`).
CPU = "cpu"
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

    def shared(self, workers: int) -> Estimate:
        """The same work divided among workers."""
        return Estimate(self.seconds / workers, self.unknown)

    def __str__(self) -> str:
        return self.text()

    def text(self, by: str = "") -> str:
        """The estimate in words; ``by`` stands behind the time."""
        if not self.unknown:
            return f"about {duration(self.seconds)}{by}"
        if not self.seconds:
            return "time not yet measured on this machine"
        kinds = "1 kind of task" if self.unknown == 1 else f"{self.unknown} kinds of task"
        return f"at least {duration(self.seconds)}{by} ({kinds} not yet measured on this machine)"


def amounts(tasks: Iterable[Task], more: Mapping[Work, int] | None = None) -> Counter[str]:
    """Units of work by kind of task (`Task.pace`)."""
    found: Counter[str] = Counter()
    for task in tasks:
        found[task.pace] += task.amount
    for work, count in (more or {}).items():
        found[work.pace] += work.amount * count
    return found


class Estimates:
    """Seconds a unit of work by kind of task (`Task.pace`), a running mean of what this machine took on one hardware.

    ``timings.json`` of the store holds them by machine, then by kind. A machine is a host name, followed by the hardware unless
    that is the CPU: ``node1, NVIDIA H100``.

    At first, the hardware is a GPU for which this host has timings, or the CPU if there is none or if ``device`` is ``cpu``.
    Later it is the hardware of the last task. An estimate therefore needs no import of torch.
    """

    def __init__(self, store: Store, device: str = "auto"):
        self._store, self._path, self._host = store, store.root / "timings.json", platform.node() or "unnamed"
        self._learned: dict[str, dict[str, float]] = {}  # by machine
        self._known = self._stored()
        others = sorted(name for name in self._known if name.startswith(self._machine("")))
        self._seconds = self._of(self._host if device == CPU or not others else others[0])

    def _machine(self, hardware: str) -> str:
        return self._host if hardware == CPU else f"{self._host}, {hardware}"

    def _of(self, machine: str) -> dict[str, float]:
        """Seconds by kind of task on a machine."""
        return self._known.setdefault(machine, {})

    def of(self, task: Task) -> float | None:
        """Seconds that the task takes, or ``None`` if no task of its kind was measured on this machine."""
        unit = self._seconds.get(task.pace)
        return None if unit is None else task.amount * unit

    def guess(self, task: Task) -> float:
        """Seconds that the task takes, or a second for each unit of work of a kind that was not measured."""
        return task.amount * self._seconds.get(task.pace, 1.0)

    def total(self, tasks: Iterable[Task], more: Mapping[Work, int] | None = None) -> Estimate:
        """The estimate for all tasks, one after another, and for ``more``: work with the number of its tasks."""
        return self.of_amounts(amounts(tasks, more))

    def of_amounts(self, amounts: Mapping[str, int]) -> Estimate:
        """The estimate for amounts of work by kind of task (`Task.pace`)."""
        seconds, unknown = 0.0, 0
        for pace, amount in amounts.items():
            unit = self._seconds.get(pace)
            if unit is not None:
                seconds += amount * unit
            elif amount:
                unknown += 1
        return Estimate(seconds, unknown)

    def learn(self, task: Task, seconds: float, hardware: str = CPU) -> None:
        """Add a measured task to the running mean of its kind on this hardware."""
        machine = self._machine(hardware)
        self._seconds = self._of(machine)
        unit, before = seconds / max(1, task.amount), self._seconds.get(task.pace)
        new = unit if before is None else (1 - NEWEST) * before + NEWEST * unit
        self._seconds[task.pace] = self._learned.setdefault(machine, {})[task.pace] = new

    def save(self) -> None:
        """Write what was learned beside what other runs have written. A store that cannot be written to keeps the old."""
        stored = self._stored()
        for machine, learned in self._learned.items():
            stored[machine] = stored.get(machine, {}) | learned
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
