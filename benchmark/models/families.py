"""Which class speaks for which diffusers pipeline. Imports no torch: a class is imported when it is asked for."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from overpaint.errors import unknown
from overpaint.grid.registry import load_attribute
from overpaint.grid.source_code import is_ours, source_of

if TYPE_CHECKING:
    from overpaint.models.diffusion import DiffusionModel

#: Class name of a diffusers pipeline -> its family's `DiffusionModel`, as ``module:class``.
FAMILIES = {
    "StableDiffusionPipeline": "overpaint.models.diffusion:DiffusionModel",
    "StableDiffusionXLPipeline": "overpaint.models.sdxl:SDXLModel",
}


#: The family of each pipeline in `FAMILIES`, so that planning need not import its class.
NAMES = {"StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl"}


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


def family_name(pipeline: str, where: str) -> str:
    """The family of pipelines of this class name. Imports a family's class only if it belongs to another package."""
    return NAMES.get(pipeline) or family(pipeline, where).family


def family_source(pipeline: str) -> dict[str, str]:
    """The source of a family of another package, for `Task.sources`; empty for our own, whose users have versions."""
    reference = families()[pipeline]
    return {} if is_ours(reference) else {f"model family {pipeline}": source_of(reference)}
