"""The stages. Each takes a task, the folders of its inputs and an empty folder to fill, and returns what its manifest
shall say besides; none knows of stores, grids or other tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from overpaint.grid.registry import load_attribute

if TYPE_CHECKING:
    from overpaint.images.workbench import Workbench
    from overpaint.run.tasks import Task

Stage = Callable[["Task", Mapping[str, Path], Path, "Workbench"], dict]

STAGES = {
    "erase": "overpaint.images.stages.erase:run",
    "attack": "overpaint.images.stages.attack:run",
    "generate": "overpaint.images.stages.generate:run",
    "reference": "overpaint.images.stages.reference:run",
    "score": "overpaint.images.stages.score:run",
    "measure": "overpaint.images.stages.measure:run",
}
#: Stages that can do several tasks at once: the tasks, their common inputs, a folder each → what each manifest says.
TOGETHER = {"attack": "overpaint.images.stages.attack:run_together"}


def stage(name: str) -> Stage:
    return load_attribute(STAGES[name])


def stage_together(name: str) -> Callable[..., list[dict]]:
    return load_attribute(TOGETHER[name])
