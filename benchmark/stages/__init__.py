"""The stages. Each takes a task, the folders of its inputs and an empty folder to fill, and returns what its manifest
shall say besides; none knows of stores, grids or other tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from overpaint.registry import load_attribute

if TYPE_CHECKING:
    from overpaint.tasks import Task
    from overpaint.workbench import Workbench

Stage = Callable[["Task", Mapping[str, Path], Path, "Workbench"], dict]

STAGES = {
    "erase": "overpaint.stages.erase:run",
    "attack": "overpaint.stages.attack:run",
    "generate": "overpaint.stages.generate:run",
    "reference": "overpaint.stages.reference:run",
    "score": "overpaint.stages.score:run",
    "measure": "overpaint.stages.measure:run",
}
#: Stages that can do several tasks at once: the tasks, their common inputs, a folder each → what each manifest says.
TOGETHER = {"attack": "overpaint.stages.attack:run_together"}


def stage(name: str) -> Stage:
    return load_attribute(STAGES[name])


def stage_together(name: str) -> Callable[..., list[dict]]:
    return load_attribute(TOGETHER[name])
