"""A plan: the unique tasks of a grid, each in front of the tasks that need it. What a task does is its track's affair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from overpaint.run.store import Store
from overpaint.run.tasks import Task


@dataclass
class Plan:
    """Unique tasks, inputs first, and for every cell the task whose result is its records.

    ``track`` names the kind of the cells (a YAML of ``conf/track``).
    """

    track: str
    cells: list[tuple[Any, Task]] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)
    asked: Counter = field(default_factory=Counter)  # tasks by stage, before equal ones were merged
    bundles: dict[str, list[Task]] = field(
        default_factory=dict
    )  # task key -> the tasks made in one go, itself included

    def add(self, task: Task) -> Task:
        """Plan a task; an equal one that is planned already is returned instead."""
        self.asked[task.stage] += 1
        return self.tasks.setdefault(task.key, task)

    def bundle(self, tasks: Sequence[Task], size: int) -> None:
        """Make these tasks ``size`` at a time, those that are in a bundle already excepted."""
        free = [task for task in tasks if task.key not in self.bundles]
        for start in range(0, len(free), size):
            part = free[start : start + size]
            self.bundles |= {task.key: part for task in part}

    def missing(self, store: Store) -> list[Task]:
        """The tasks that a run would do, inputs first.

        A stored result makes its inputs unnecessary: nothing is made again for a table that is complete.
        """
        needed = {task.key for _, task in self.cells}
        todo: set[str] = set()
        for task in reversed(self.tasks.values()):
            if task.key in needed and not store.has(task.stage, task.key):
                todo.add(task.key)
                needed.update(task.inputs.values())
        return [task for key, task in self.tasks.items() if key in todo]
