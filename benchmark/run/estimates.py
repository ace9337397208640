"""How long tasks take: remembered per kind of task in the store, guessed before anything was run."""

from __future__ import annotations

import json
from collections.abc import Iterable

from overpaint.run.store import Store
from overpaint.run.tasks import Task

#: Seconds a unit of work before the first run, on a small machine.
GUESSES = {"erase": 10.0, "attack": 0.8, "generate": 0.2, "score": 0.005, "reference": 0.005, "measure": 0.5}


def kind_of(task: Task) -> str:
    """What tasks of like duration have in common: the stage, and the method, attack or model and step count."""
    c = task.config
    detail = c.get("method") or c.get("attack") or c.get("detector") or ""
    if task.stage == "generate":
        detail = f"{c['model']}/{c['protocol']['steps']}"
    return f"{task.stage}/{detail}"


class Estimates:
    """Seconds a unit by kind of task; a running mean that follows the machine it is on."""

    def __init__(self, store: Store):
        self.path = store.root / "timings.json"
        try:
            self.seconds: dict[str, float] = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.seconds = {}

    def of(self, task: Task) -> float:
        return task.amount * self.seconds.get(kind_of(task), GUESSES[task.stage])

    def total(self, tasks: Iterable[Task]) -> float:
        return sum(map(self.of, tasks))

    def learn(self, task: Task, seconds: float) -> None:
        kind, unit = kind_of(task), seconds / max(1, task.amount)
        self.seconds[kind] = unit if kind not in self.seconds else 0.6 * self.seconds[kind] + 0.4 * unit

    def save(self) -> None:
        self.path.write_text(json.dumps(self.seconds, indent=1, sort_keys=True), encoding="utf-8")
