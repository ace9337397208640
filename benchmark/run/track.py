"""A track is a kind of cell: images of text-to-image models today. Everything in ``run`` and ``report`` asks the track."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from overpaint.grid.registry import component, components, load_attribute
from overpaint.run.plan import Plan
from overpaint.run.tasks import Task

#: What a stage does: a task, the folders of its inputs by name, an empty folder to fill, and the bench -> what the
#: manifest says besides.
Stage = Callable[[Task, Mapping[str, Path], Path, Any], dict]


class Track(ABC):
    """A kind of cell: how it is planned, which stages make it, and what they run on.

    A track is one YAML of ``conf/track``: ``component`` names its class, ``facets`` the facets of its figures in the order
    of tables, ``stages`` its stages by name (``module:function``, and ``seconds``, a first guess for one unit of work).
    """

    @abstractmethod
    def cell(self, config: Mapping[str, Any], explicit: frozenset[str]) -> Any:
        """A checked cell from a composed configuration; ``explicit`` are the keys that the user set by hand."""

    @abstractmethod
    def plan(self, cells: Iterable[Any]) -> Plan:
        """The unique tasks of all cells and one task of records a cell."""

    @abstractmethod
    def bench(self) -> Any:
        """What one process keeps between tasks (a loaded model, say); every stage is given it."""

    @abstractmethod
    def devices(self, asked: str) -> list[str]:
        """The devices meant by ``auto``, ``cpu``, ``cuda`` or ``cuda:0``; a `UserError` if this machine lacks it."""

    @abstractmethod
    def settle(self, threads: int | None) -> int:
        """Give this process that many threads (``None``: leave it as it is); returns how many it has."""


def track(name: str) -> Track:
    """The track of that name."""
    return component("track", name).load()()


def stage(name: str, stage_name: str) -> Stage:
    """The function of one stage of a track."""
    return load_attribute(_stages(name)[stage_name]["run"])


def stage_together(name: str, stage_name: str) -> Callable[..., list[dict]]:
    """The function that does several tasks of a stage at once: tasks, common inputs, a folder each, bench."""
    return load_attribute(_stages(name)[stage_name]["together"])


def seconds_per_unit(name: str, stage_name: str) -> float:
    """A first guess of what one unit of work takes, on a small machine."""
    return _stages(name)[stage_name]["seconds"]


def _stages(name: str) -> Mapping[str, Mapping[str, Any]]:
    return component("track", name).config["stages"]


def facets() -> Sequence[str]:
    """The facets of every track, in the order of tables."""
    known = (component("track", name).config["facets"] for name in components("track"))
    return list(dict.fromkeys(facet for of_track in known for facet in of_track))
