"""The unedited model: an erasure that changes nothing, the reference that every method is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from overpaint.concepts import Request
from overpaint.erasing import Eraser
from overpaint.erasure import Erasure
from overpaint.models.diffusion import DiffusionModel


@dataclass(kw_only=True)
class Unedited(Eraser):
    """Erases nothing."""

    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        return Erasure("none")
