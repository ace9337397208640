"""A plan: the unique tasks of a grid, each before the tasks that need it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from overpaint.grid.registry import component
from overpaint.grid.source_code import is_ours, source_of
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
    absent: list[str] = field(default_factory=list)  # which files are not on this machine; such a plan cannot run
    asked: Counter = field(default_factory=Counter)  # tasks by stage, before equal ones were merged
    bundles: dict[str, list[Task]] = field(default_factory=dict)

    def add(self, task: Task) -> Task:
        """Add a task, with the sources that its inputs depend on, and return it.

        A task with the same key that is already planned is returned instead.
        """
        self.asked[task.stage] += 1
        sources: dict[str, str] = {}
        for key in task.inputs.values():
            sources |= self.tasks[key].sources
        sources |= {**task.sources, **self._track_source}
        task = replace(task, sources=sources) if sources else task
        return self.tasks.setdefault(task.key, task)

    @property
    def sources(self) -> dict[str, str]:
        """The source of every component that the cells' records depend on (`Task.sources`)."""
        return {component: source for _, task in self.cells for component, source in task.sources.items()}

    @cached_property
    def _track_source(self) -> dict[str, str]:
        """The source of the track and its stages; empty for a track of this package."""
        config = component("track", self.track).config
        stages = (reference for stage in config["stages"].values() for reference in stage.values())
        references = [config["component"], *stages]
        return {} if all(map(is_ours, references)) else {f"track={self.track}": source_of(*references)}

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
        return self._needed(store)[0]

    def kept(self, store: Store) -> list[Task]:
        """The stored tasks whose results the cells' records and the missing tasks use."""
        return self._needed(store)[1]

    def _needed(self, store: Store) -> tuple[list[Task], list[Task]]:
        """The tasks that the cells need: those that are missing, and those that are stored."""
        needed = {task.key for _, task in self.cells}
        missing: list[Task] = []
        stored: list[Task] = []
        for task in reversed(self.tasks.values()):
            if task.key not in needed:
                continue
            if store.has(task.stage, task.key):
                stored.append(task)
            else:
                missing.append(task)
                needed.update(task.inputs.values())
        return missing[::-1], stored[::-1]
