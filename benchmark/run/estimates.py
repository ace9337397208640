"""How long tasks take: measured and remembered in the store by machine and kind of task; unknown before that."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from overpaint.grid.labels import counted
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
    """``seconds`` of the kinds of task that were measured. ``unknown`` counts the kinds that were not, and ``borrowed`` those
    that were measured on other machines only."""

    seconds: float
    unknown: int
    borrowed: int = 0

    def shared(self, workers: int) -> Estimate:
        """The same work divided among workers."""
        return replace(self, seconds=self.seconds / workers)

    def __str__(self) -> str:
        return self.text()

    def text(self, by: str = "") -> str:
        """The estimate in words; ``by`` stands behind the time."""
        if self.unknown and not round(self.seconds):
            return "time not yet measured on this machine"
        found = "at least" if self.unknown else "about"
        kinds = {"not yet measured on this machine": self.unknown, "measured on other machines": self.borrowed}
        said = ", ".join(f"{counted(count, 'kind')} of task {what}" for what, count in kinds.items() if count)
        return f"{found} {duration(self.seconds)}{by}" + (f" ({said})" if said else "")


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

    A kind of task that this machine has not measured takes the median of the other machines with the same hardware. On a host
    without any timings, such as a cluster's login node, these are all machines with a GPU, if there are any.
    """

    def __init__(self, store: Store, device: str = "auto"):
        self._store, self._path, self._host = store, store.root / "timings.json", platform.node() or "unnamed"
        self._learned: dict[str, dict[str, float]] = {}  # by machine
        self._known = self._stored()
        cards = sorted(name for name in self._known if name.startswith(self._machine("")))
        elsewhere = {_hardware(name) for name in self._known} - {""}
        if device == CPU or cards or self._host in self._known or not elsewhere:
            self._use(self._host if device == CPU or not cards else cards[0])
        else:
            self._use(self._host, elsewhere)

    def _machine(self, hardware: str) -> str:
        return self._host if hardware == CPU else f"{self._host}, {hardware}"

    def _use(self, machine: str, hardware: Collection[str] = ()) -> None:
        """Estimate by the timings of a machine, and by those of others with the same hardware, or with this one."""
        like = hardware or {_hardware(machine)}
        units: dict[str, list[float]] = {}
        for other, kinds in self._known.items():
            if other != machine and _hardware(other) in like:
                for kind, unit in kinds.items():
                    units.setdefault(kind, []).append(unit)
        self._current, self._seconds = machine, self._known.setdefault(machine, {})
        self._borrowed = {kind: median(found) for kind, found in units.items()}

    def _unit(self, pace: str) -> float | None:
        """Seconds of a unit of work, or ``None`` if no machine has measured it."""
        return self._seconds.get(pace, self._borrowed.get(pace))

    def of(self, task: Task) -> float | None:
        """Seconds that the task takes, or ``None`` if no task of its kind was measured."""
        unit = self._unit(task.pace)
        return None if unit is None else task.amount * unit

    def guess(self, task: Task) -> float:
        """Seconds that the task takes, or a second for each unit of work of a kind that was not measured."""
        unit = self._unit(task.pace)
        return task.amount * (1.0 if unit is None else unit)

    def total(self, tasks: Iterable[Task], more: Mapping[Work, int] | None = None) -> Estimate:
        """The estimate for all tasks, one after another, and for ``more``: work with the number of its tasks."""
        return self.of_amounts(amounts(tasks, more))

    def of_amounts(self, amounts: Mapping[str, int]) -> Estimate:
        """The estimate for amounts of work by kind of task (`Task.pace`)."""
        seconds, unknown, borrowed = 0.0, 0, 0
        for pace, amount in amounts.items():
            unit = self._unit(pace)
            if unit is not None:
                seconds += amount * unit
                borrowed += bool(amount) and pace not in self._seconds
            elif amount:
                unknown += 1
        return Estimate(seconds, unknown, borrowed)

    def learn(self, task: Task, seconds: float, hardware: str = CPU) -> None:
        """Add a measured task to the running mean of its kind on this hardware."""
        machine = self._machine(hardware)
        if machine != self._current:
            self._use(machine)
        unit, before = seconds / max(1, task.amount), self._seconds.get(task.pace)
        new = unit if before is None else (1 - NEWEST) * before + NEWEST * unit
        self._seconds[task.pace] = self._learned.setdefault(machine, {})[task.pace] = new

    def save(self) -> None:
        """Write what was learned beside what other runs have written. A store that cannot be written to keeps the old."""
        with suppress(OSError), self._store.alone(self._path):
            stored = self._stored()
            for machine, learned in self._learned.items():
                stored[machine] = stored.get(machine, {}) | learned
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


def _hardware(machine: str) -> str:
    """The hardware in the name of a machine; empty for a CPU."""
    return machine.partition(", ")[2]


def _is_duration(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= LONGEST
