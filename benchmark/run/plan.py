"""A plan: the unique tasks of a grid, each before the tasks that need it.

A cell can be one line of the plan until its tasks are needed: a grid of 100,000 cells has millions of tasks, and a cell
whose records are stored needs none of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from overpaint.grid.read_once import reading_once
from overpaint.grid.registry import component
from overpaint.grid.source_code import is_ours, source_of
from overpaint.run.store import Store
from overpaint.run.tasks import Task, hashed

#: Number of tasks from which further cells stay lines until the tasks before them are done.
HORIZON = 20_000


class Work(NamedTuple):
    """What counts and estimates need of a task: its stage, its pace (`Task.pace`) and its amount of work."""

    stage: str
    pace: str
    amount: int

    @classmethod
    def of(cls, task: Task) -> Work:
        """The work of a task."""
        return cls(task.stage, task.pace, task.amount)


@dataclass(frozen=True)
class Outline:
    """The tasks of a cell, apart from its erasure: cells that differ in their method only have the same outline.

    Attributes:
        digest: a hash of all tasks, without the erasure's key and without what only describes the cell.
        shared: tasks that do not depend on the erasure, by key; all tasks of an outline of one erasure only.
        own: tasks that depend on it, by a hash in which the erasure's key is left out.
        asked: number of tasks by stage, before equal ones are merged.
        sources: sources of components (`Task.sources`), except the erasure's.
    """

    digest: str
    shared: Mapping[str, Work]
    own: Mapping[str, Work]
    asked: Mapping[str, int]
    sources: Mapping[str, str]


@dataclass(frozen=True)
class Line:
    """A cell whose tasks are not planned yet: its outline and its erasure (``None`` for an unedited model).

    Its key is a hash of the outline, the erasure's key and what describes the cell. So it changes whenever a task does.
    """

    cell: Any
    outline: Outline
    erasure: Task | None


@dataclass
class Plan:
    """Unique tasks, inputs first, and for every cell the task that makes its records.

    ``track`` names the kind of the cells (a YAML of ``conf/track``). ``bundles`` maps a task's key to the tasks that are
    made in one go with it, itself included; they have the same inputs. ``expand(plan, cell)`` plans the tasks of a cell that
    was added as a line, and returns the task that makes its records. ``again`` are the keys of tasks that are made if they are
    not stored, even where every result that needs them is.
    """

    track: str
    cells: list[tuple[Any, Task]] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what the user should know before anything runs
    absent: list[str] = field(default_factory=list)  # which files are not on this machine; such a plan cannot run
    asked: Counter = field(default_factory=Counter)  # tasks by stage, before equal ones were merged
    bundles: dict[str, list[Task]] = field(default_factory=dict)
    again: set[str] = field(default_factory=set)
    expand: Callable[[Plan, Any], Task] | None = None
    lines: dict[str, Line] = field(default_factory=dict)  # by the key of the task that makes the records

    def add(self, task: Task) -> Task:
        """Add a task, with the sources that its inputs depend on, and return it.

        A task with the same key that is already planned is returned instead.
        """
        self.asked[task.stage] += 1
        sources: dict[str, str] = {}
        stages = {name: self.tasks[key].stage for name, key in task.inputs.items()}
        for key in task.inputs.values():
            sources |= self.tasks[key].sources
        sources |= {**task.sources, **self._track_source}
        task = task.planned(sources, stages)
        return self.tasks.setdefault(task.key, task)

    def outline(
        self, measure: Task, erasure: Task | None, described: Iterable[str] = (), reference: bool = False
    ) -> Outline:
        """The outline of a cell; this plan must hold all of its tasks.

        ``measure`` makes its records; ``described`` are the keys of its configuration that only describe the cell. A
        ``reference`` is a cell with whose images other cells compare theirs, so that they share the tasks of its erasure.
        """
        by_method = erasure.sources if erasure else {}
        names: dict[str, str] = {erasure.key: "erasure"} if erasure else {}
        shared: dict[str, Work] = {}
        own: dict[str, Work] = {}
        for key, task in self.tasks.items():
            if key == measure.key:
                continue
            name = names[key] if key in names else names.setdefault(key, _name(task, names, by_method))
            if reference or name == key:
                shared[key] = Work.of(task)
            elif name != "erasure":
                own[name] = Work.of(task)
        plain = replace(measure, config={k: v for k, v in measure.config.items() if k not in described})
        sources = {component: source for component, source in measure.sources.items() if component not in by_method}
        return Outline(_name(plain, names, by_method), shared, own, dict(self.asked), sources)

    def add_line(self, line: Line, stage: str, described: Any, label: str) -> None:
        """Add a cell as a line. ``stage`` makes its records, ``described`` is what describes the cell in them."""
        erasure = line.erasure.key if line.erasure else None
        sources = {**line.outline.sources, **(line.erasure.sources if line.erasure else {})}
        name = hashed([line.outline.digest, erasure, described])
        self.cells.append((line.cell, Task(stage, {}, label=label, sources=sources, name=name)))
        self.lines[name] = line
        self.asked.update(line.outline.asked)

    def bundle(self, tasks: Sequence[Task], size: int) -> None:
        """Make these tasks ``size`` at a time. Tasks that are already in a bundle stay there."""
        free = [task for task in tasks if task.key not in self.bundles]
        for start in range(0, len(free), size):
            part = free[start : start + size]
            self.bundles |= {task.key: part for task in part}

    def open(self, key: str) -> Task:
        """The task that makes a cell's records, with all tasks that it needs in the plan."""
        if key in self.tasks:
            return self.tasks[key]
        assert self.expand
        known = self.asked.copy(), self.notes.copy(), self.absent.copy()  # what the outline has counted and said
        with reading_once():
            measure = self.expand(self, self.lines[key].cell)
        self.asked, self.notes, self.absent = known
        self.tasks[key] = replace(self.tasks.pop(measure.key), name=key)
        return self.tasks[key]

    def opened(self) -> Plan:
        """This plan with the tasks of all cells."""
        with reading_once():
            self.cells = [(cell, self.open(task.key)) for cell, task in self.cells]
        return self

    def _closed(self, store: Store) -> list[str]:
        """The keys of the cells that are still lines and whose records are not stored."""
        waiting = [key for key in self.lines if key not in self.tasks]
        stored = store.stored(self._measures, waiting) if waiting else set()
        return [key for key in waiting if key not in stored]

    def advance(self, store: Store, most: int = HORIZON) -> bool:
        """Plan the tasks of further cells, up to about ``most`` unfinished tasks. Returns whether there are new ones.

        Tasks that no unfinished cell needs are forgotten, so that memory does not grow with the grid.
        """
        waiting = self._closed(store)
        if not waiting:
            return False
        if len(self.tasks) >= most:
            self._forget(store)
        before = len(self.tasks)
        with reading_once():  # so that cells share what their tasks have in common
            for key in waiting:
                if len(self.tasks) >= max(most, before + 1):
                    break
                self.open(key)
        return len(self.tasks) > before

    def _forget(self, store: Store) -> None:
        """Forget the tasks that no unfinished cell needs, directly or indirectly."""
        opened = {task.key for _, task in self.cells if task.key in self.tasks}
        needed = opened - store.stored(self._measures, opened)
        for task in reversed(self.tasks.values()):
            if task.key in needed:
                needed.update(task.inputs.values())
        for key in self.tasks.keys() - needed:
            del self.tasks[key]
            self.bundles.pop(key, None)

    def sources_stored(self, store: Store) -> dict[str, str]:
        """The sources of components from outside this package that the cells' stored records were made with."""
        stored = store.stored(self._measures, [task.key for _, task in self.cells])
        made = (task.sources for _, task in self.cells if task.key in stored)
        return {component: source for sources in made for component, source in sources.items() if not is_ours(source)}

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

    def unique(self) -> Counter[str]:
        """The number of unique tasks by stage, those of lines included."""
        if not self.lines:
            return Counter(task.stage for task in self.tasks.values())
        return by_stage((), self._works(self.lines.values()))

    def unopened(self, store: Store) -> Counter[Work]:
        """The work of the cells that are still lines, without the tasks that they share with opened cells.

        How much of it is stored is unknown until they are opened.
        """
        closed = [self.lines[key] for key in self._closed(store)]
        if not closed:
            return Counter()
        opened = [line for key, line in self.lines.items() if key in self.tasks]
        return self._works([*opened, *closed]) - self._works(opened)

    def _works(self, lines: Collection[Line]) -> Counter[Work]:
        """The unique work of lines: shared tasks once, those that depend on an erasure once for each."""
        outlines: dict[Task | None, dict[int, Outline]] = {}  # by erasure
        for line in lines:
            outlines.setdefault(line.erasure, {})[id(line.outline)] = line.outline
        shared = {key: work for of in outlines.values() for o in of.values() for key, work in o.shared.items()}
        found = Counter(shared.values())
        together: dict[frozenset[int], Counter[Work]] = {}  # most erasures have the same outlines
        for erasure, of in outlines.items():
            group = frozenset(of)
            if group not in together:
                together[group] = Counter({k: work for o in of.values() for k, work in o.own.items()}.values())
            found.update(together[group])
            if erasure and erasure.key not in shared:
                found[Work.of(erasure)] += 1
        if lines:
            found[Work(self._measures, f"{self._measures}/", 1)] += len(lines)
        return found

    @property
    def _measures(self) -> str:
        """The stage that makes the records of cells."""
        return self.cells[0][1].stage if self.cells else ""

    def missing(self, store: Store) -> list[Task]:
        """The tasks that a run would make, inputs first; of a large grid those of the first cells (`advance`).

        A stored result needs no inputs: a complete table stays complete when the images behind it are deleted. Those that
        ``again`` names are made all the same.
        """
        if self.lines and len(self.tasks) < HORIZON:
            self.advance(store)
        return self._needed(store)[0]

    def kept(self, store: Store) -> list[Task]:
        """The stored tasks whose results the cells' records and the missing tasks use."""
        lines = {task.key: task for _, task in self.cells if task.key not in self.tasks}
        return [*self._needed(store)[1], *map(lines.__getitem__, sorted(store.stored(self._measures, lines)))]

    def _needed(self, store: Store) -> tuple[list[Task], list[Task]]:
        """The tasks that the cells need: those that are missing, and those that are stored."""
        needed = {task.key for _, task in self.cells} | self.again
        by_stage: dict[str, list[str]] = {}
        for key, task in self.tasks.items():
            by_stage.setdefault(task.stage, []).append(key)
        there: dict[str, set[str]] = {}  # looked up stage by stage, when the first task of a stage is needed
        missing: list[Task] = []
        stored: list[Task] = []
        for task in reversed(self.tasks.values()):
            if task.key not in needed:
                continue
            if task.stage not in there:
                there[task.stage] = store.stored(task.stage, by_stage[task.stage])
            if task.key in there[task.stage]:
                stored.append(task)
            else:
                missing.append(task)
                needed.update(task.inputs.values())
        return missing[::-1], stored[::-1]


def by_stage(tasks: Iterable[Task], more: Mapping[Work, int]) -> Counter[str]:
    """The number of tasks by stage, with ``more`` work of tasks that are not planned yet (`Plan.unopened`)."""
    found = Counter(task.stage for task in tasks)
    for work, count in more.items():
        found[work.stage] += count
    return found


def _name(task: Task, names: Mapping[str, str], by_method: Mapping[str, str]) -> str:
    """The task's key if none of its inputs has another name; else a hash with these names in the place of keys."""
    inputs = {name: names[key] for name, key in task.inputs.items()}
    if inputs == task.inputs:
        return task.key
    return task.key_with(inputs, {k: v for k, v in task.foreign.items() if k not in by_method})
