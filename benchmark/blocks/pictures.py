"""Sources of real images: references for distribution metrics, and examples for attacks that learn from images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from overpaint.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.grid.concepts import Concept


def read_image(path: Path, whole: bool = True) -> Image:
    """The image in a file, in RGB. With ``whole=False`` only its header is read. Raises a `UserError` if it is no image."""
    from PIL.Image import DecompressionBombError, open

    if not path.is_file():
        raise UserError(f"{path} is not a readable image: it is not a regular file")
    try:
        image = open(path)
        return image.convert("RGB") if whole else image
    except (OSError, ValueError, SyntaxError, DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable image: {error}") from None


class Pictures(ABC):
    """A source of real images: one module and one YAML in ``conf/pictures``, selected by ``model.reference``.

    ``draws`` says whether it can produce images of any concept of its catalogue, including concepts that the model was not
    trained on. If it cannot, attacks get images by the unedited model. ``trains`` says whether it knows the model's training
    images.
    """

    version: ClassVar[int] = 1
    draws: ClassVar[bool] = False
    trains: ClassVar[bool] = False

    @abstractmethod
    def identity(self, count: int) -> Mapping[str, Any]:
        """What determines the first ``count`` references, for keys: equal values mean equal images."""

    def available(self, count: int) -> int:
        """How many of ``count`` references the source has."""
        return count

    @abstractmethod
    def references(self, count: int) -> list[tuple[Image, str]]:
        """``count`` images with their captions (empty for an image without one), or all if there are fewer (`available`)."""

    def examples(self, concept: Concept, count: int, seed: int) -> Sequence[Image]:
        """``count`` different images of one concept; called only if ``draws``."""
        raise NotImplementedError

    def ordinary(self, concept: Concept, count: int, seed: int) -> Sequence[tuple[Image, str]]:
        """``count`` images that do not show the concept, with captions; called only if ``draws``."""
        raise NotImplementedError

    def training_identity(self, labels: Sequence[str], count: int) -> Mapping[str, Any]:
        """What determines `training`, for keys; called only if ``trains``."""
        raise NotImplementedError

    def training(self, labels: Sequence[str], count: int) -> list[tuple[Image, str, bool]]:
        """``count`` training images and as many of the same distribution that the model was not trained on; called only if
        ``trains``.

        All show one of these detector labels. Each comes with its caption and whether the model was trained on it.
        """
        raise NotImplementedError

    def repeated(self) -> list[tuple[Image, str]]:
        """Training images that occur many times in the training set, with their captions; called only if ``trains``."""
        raise NotImplementedError

    def ordinary_training(self, count: int) -> list[Image]:
        """``count`` training images that are not repeated; called only if ``trains``."""
        raise NotImplementedError
