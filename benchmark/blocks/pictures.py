"""Where real pictures come from: references for distances, and examples for attacks that learn from pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.grid.concepts import Concept


class Pictures(ABC):
    """A source of real pictures: one module and one YAML of ``conf/pictures``, named by ``model.reference``.

    ``draws`` says that it can picture any concept of its catalogue, concepts that the model never saw included. Where a
    source cannot, an attack is shown pictures that the unedited model makes.
    """

    version: ClassVar[int] = 1
    draws: ClassVar[bool] = False

    @abstractmethod
    def identity(self, count: int) -> Mapping[str, Any]:
        """What decides the first ``count`` references; equal values mean equal pictures."""

    @abstractmethod
    def references(self, count: int) -> list[tuple[Image, str]]:
        """``count`` pictures with their captions (empty where a picture has none)."""

    def examples(self, concept: Concept, count: int, seed: int) -> Sequence[Image]:
        """``count`` varied pictures of one concept. Only asked of a source that ``draws``."""
        raise NotImplementedError

    def ordinary(self, concept: Concept, count: int, seed: int) -> Sequence[tuple[Image, str]]:
        """``count`` pictures that do not show the concept, with captions. Only asked of a source that ``draws``."""
        raise NotImplementedError
