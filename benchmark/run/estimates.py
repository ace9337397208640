"""How long tasks take: remembered per kind of task in the store, guessed before anything was run."""

from __future__ import annotations

import json
from collections.abc import Iterable

from overpaint.run.store import Store
from overpaint.run.tasks import Task
from overpaint.run.track import seconds_per_unit


class Estimates:
    """Seconds a unit by kind of task; a running mean that follows the machine it is on."""

    def __init__(self, store: Store, track: str):
        self.track = track
        self.path = store.root / "timings.json"
        try:
            self.seconds: dict[str, float] = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.seconds = {}

    def of(self, task: Task) -> float:
        return task.amount * self.seconds.get(task.pace, seconds_per_unit(self.track, task.stage))

    def total(self, tasks: Iterable[Task]) -> float:
        return sum(map(self.of, tasks))

    def learn(self, task: Task, seconds: float) -> None:
        kind, unit = task.pace, seconds / max(1, task.amount)
        self.seconds[kind] = unit if kind not in self.seconds else 0.6 * self.seconds[kind] + 0.4 * unit

    def save(self) -> None:
        self.path.write_text(json.dumps(self.seconds, indent=1, sort_keys=True), encoding="utf-8")
