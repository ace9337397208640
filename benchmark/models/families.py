"""Which class speaks for which diffusers pipeline. Imports no torch: a class is imported when it is asked for."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from overpaint.errors import unknown
from overpaint.grid.registry import load_attribute

if TYPE_CHECKING:
    from overpaint.models.diffusion import DiffusionModel

#: Class name of a diffusers pipeline -> its family's `DiffusionModel`, as ``module:class``.
FAMILIES = {
    "StableDiffusionPipeline": "overpaint.models.diffusion:DiffusionModel",
    "StableDiffusionXLPipeline": "overpaint.models.sdxl:SDXLModel",
}


@cache
def families() -> dict[str, str]:
    """`FAMILIES` and those of other packages: entry points of group ``overpaint.families`` named like the pipeline."""
    return FAMILIES | {entry.name: entry.value for entry in entry_points(group="overpaint.families")}


def check_pipeline(name: str, where: str) -> None:
    """Raise a `UserError` if no family reads this pipeline class; ``where`` says who named it."""
    if name not in families():
        raise unknown("pipeline class", name, families(), where)


def family(name: str, where: str) -> type[DiffusionModel]:
    """The class that reads pipelines of this class name."""
    check_pipeline(name, where)
    return load_attribute(families()[name])
