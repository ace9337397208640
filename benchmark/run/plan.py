"""A plan: the unique tasks of a grid, each before the tasks that need it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from overpaint.run.store import Store
from overpaint.run.tasks import Task


@dataclass
class Plan:
    """Unique tasks, inputs first, and for every cell the task that makes its records.

    ``track`` names the kind of the cells (a YAML of ``conf/track``). ``bundles`` maps a task's key to the tasks that are
    made in one go with it, itself included; they have the same inputs.
    """

    track: str
    cells: list[tuple[Any, Task]] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what the user should know before anything runs
    absent: list[str] = field(default_factory=list)  # why the grid cannot run on this machine: assets that are missing
    asked: Counter = field(default_factory=Counter)  # tasks by stage, before equal ones were merged
    bundles: dict[str, list[Task]] = field(default_factory=dict)

    def add(self, task: Task) -> Task:
        """Add a task and return it; a task with the same key that is already planned is returned instead."""
        self.asked[task.stage] += 1
        return self.tasks.setdefault(task.key, task)

    def bundle(self, tasks: Sequence[Task], size: int) -> None:
        """Make these tasks ``size`` at a time. Tasks that are already in a bundle stay there."""
        free = [task for task in tasks if task.key not in self.bundles]
        for start in range(0, len(free), size):
            part = free[start : start + size]
            self.bundles |= {task.key: part for task in part}

    def missing(self, store: Store) -> list[Task]:
        """The tasks that a run would make, inputs first.

        A stored result needs no inputs: a complete table stays complete when the images behind it are deleted.
        """
        needed = {task.key for _, task in self.cells}
        todo: set[str] = set()
        for task in reversed(self.tasks.values()):
            if task.key in needed and not store.has(task.stage, task.key):
                todo.add(task.key)
                needed.update(task.inputs.values())
        return [task for key, task in self.tasks.items() if key in todo]
