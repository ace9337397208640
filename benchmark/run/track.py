"""Tracks: kinds of cells, such as images of text-to-image models. ``run`` and ``report`` ask the track for the rest."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from overpaint.errors import UserError
from overpaint.grid.registry import component, components, load_attribute
from overpaint.run.plan import Plan
from overpaint.run.store import Store
from overpaint.run.tasks import Task

#: A stage takes a task, the folders of its inputs by name, an empty folder to fill and the bench. It returns further
#: entries for the manifest; ``note`` is shown to the user.
Stage = Callable[[Task, Mapping[str, Path], Path, Any], dict]


class Track(ABC):
    """A kind of cell: how it is planned, which stages make it, and what they run on.

    A track is one YAML of ``conf/track``. ``component`` names its class, ``facets`` the facets of its figures in the
    order of tables, ``stages`` the functions of each stage as ``module:function``: ``run`` makes one task, ``together``
    several at once.
    """

    #: Modules that every worker needs and that load slowly: workers of one machine import them once. They must not
    #: initialise CUDA or start threads.
    slow_modules: Sequence[str] = ()

    @abstractmethod
    def cell(self, config: Mapping[str, Any], explicit: frozenset[str]) -> Any:
        """A checked cell from a composed configuration. ``explicit`` holds the keys that the user set by hand."""

    @abstractmethod
    def plan(self, cells: Iterable[Any]) -> Plan:
        """The unique tasks of all cells, and for each cell the task that makes its records."""

    @abstractmethod
    def bench(self) -> Any:
        """What one process keeps between tasks, such as a loaded model; every stage receives it.

        Its ``versions`` are the versions of libraries by name, for manifests.
        """

    @abstractmethod
    def devices(self, asked: str) -> list[str]:
        """The devices meant by ``auto``, ``cpu``, ``cuda`` or ``cuda:0``; a `UserError` if this machine lacks it."""

    def check_name(self, device: str) -> None:
        """Raise a `UserError` if no machine has a device of that name."""
        return

    def check(self, device: str, compiled: bool) -> None:
        """Raise a `UserError` if this machine lacks the device, or with ``compiled`` what ``engine.compile`` needs."""
        self.devices(device)
        if compiled:
            self.check_compiler()

    def check_compiler(self) -> None:
        """Raise a `UserError` if this machine lacks what ``engine.compile`` needs."""
        raise UserError(f"engine.compile=true: nothing of {type(self).__name__} can be compiled")

    def probe(self, device: str) -> None:
        """Raise an exception if this process cannot compute on the device any more. Called after a task has failed."""
        return

    def make_room(self, error: BaseException, bench: Any) -> bool:
        """If the error says that memory ran out, free what the bench keeps for other tasks. Whether to try the task again."""
        return False

    def advice(self, error: BaseException, task: Task, device: str) -> str | None:
        """One sentence for an error of a task that is not a bug, such as too little memory, and what can be done."""
        return None

    def processor(self, device: str) -> str:
        """The name of a device for people: ``cuda:0 (NVIDIA H100)``."""
        hardware = self.hardware(device)
        return device if device.startswith(hardware) else f"{device} ({hardware})"

    def hardware(self, device: str) -> str:
        """What computes on a device, such as the name of the graphics card. Devices of one name are equally fast."""
        return device.partition(":")[0]

    def machine(self, device: str) -> str:
        """The kind of processor behind a device. Between two kinds, sums may be rounded differently."""
        return platform.machine()

    def assets(self, cells: Iterable[Any]) -> list[str]:
        """The names of the assets (``conf/asset``) that the cells need."""
        return []

    def optional_assets(self, cells: Iterable[Any]) -> list[str]:
        """The names of the assets without which some figures of the cells are undefined."""
        return []

    def models(self, cells: Iterable[Any]) -> Mapping[str, Callable[[], Path]]:
        """The models of the cells that are not on this machine, by name, with a function that downloads each."""
        return {}

    def power(self, cells: Sequence[Any]) -> list[str]:
        """What the cells' budgets can detect, in sentences for `overpaint plan`."""
        return []

    def standard_images(self, tasks: Iterable[Task]) -> float:
        """How many images of 512² pixels in 50 steps take as much work as the images of these tasks."""
        return 0.0

    def images(self, plan: Plan) -> list[Task]:
        """The tasks that made the cells' images. `overpaint run --images` makes them again if they are gone."""
        return []

    def sheets(self, plan: Plan, store: Store, folder: Path) -> list[Path]:
        """Write files that show results beside the table, such as contact sheets, and return their paths."""
        return []

    @abstractmethod
    def settle(self, threads: int) -> None:
        """Set the number of threads that this process computes with."""


def track(name: str) -> Track:
    """The track of that name."""
    return component("track", name).load()()


def stage(name: str, stage_name: str) -> Stage:
    """The function of one stage of a track."""
    return load_attribute(_stages(name)[stage_name]["run"])


def stage_together(name: str, stage_name: str) -> Callable[..., list[dict]]:
    """The function that makes several tasks of a stage at once from tasks, common inputs, a folder each, and the bench."""
    return load_attribute(_stages(name)[stage_name]["together"])


def _stages(name: str) -> Mapping[str, Mapping[str, Any]]:
    return component("track", name).config["stages"]


def facets() -> Sequence[str]:
    """The facets of every track, in the order of tables."""
    known = (component("track", name).config["facets"] for name in components("track"))
    return list(dict.fromkeys(facet for of_track in known for facet in of_track))
