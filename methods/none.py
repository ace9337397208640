"""The unedited model: an erasure that changes nothing, with which all methods are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from overpaint.grid.concepts import Request
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure


@dataclass(kw_only=True)
class Unedited(Eraser):
    """Erases nothing."""

    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    draws: ClassVar[bool] = False

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        return Erasure("none")
