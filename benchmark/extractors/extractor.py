"""The contract of an extractor, and the files that its settings name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from overpaint.errors import AssetMissing
from overpaint.grid.assets import located
from overpaint.models.weights import weights_hashes

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from PIL.Image import Image

#: Images in one batch of a network.
BATCH = 32


class Extractor(ABC):
    """Reads images with a network: embeddings, ratings, or distances to the unedited model's images.

    Metrics name a purpose (``text_image``, ``inception``, …); ``metrics.extractors`` maps purposes to extractors. A detector
    can serve as an extractor too, with the columns of its scores.

    - ``version`` is raised when the output can change.
    - ``paired`` says that it compares each image with the unedited model's image of the same prompt and noise.
    - ``device`` is where its network runs; it is set after construction.
    """

    version: ClassVar[int] = 1
    paired: ClassVar[bool] = False
    device: str = "cpu"

    @abstractmethod
    def assets(self) -> dict[str, str]:
        """The name of every file that the extractor needs, with its sha256.

        Raises `AssetMissing`, with the way to get the file, if one is missing.
        """

    @abstractmethod
    def extract(
        self, images: Sequence[Image], prompts: Sequence[str], originals: Sequence[Image] | None = None
    ) -> pd.DataFrame:
        """One row per image, in order: ``features`` (a list of floats), or ``value`` (a number).

        Args:
            prompts: the prompt of each image.
            originals: the unedited model's image of each prompt and noise; given if ``paired``.
        """

    def texts(self, texts: Sequence[str]) -> NDArray:
        """Features (n, d) of texts in the space of the images' ``features``. Only some extractors have them."""
        raise NotImplementedError


def named_path(setting: str) -> Path:
    """The file or folder that a setting names: a path, ``asset:NAME`` or ``asset:NAME/FILE``.

    Raises `AssetMissing` if it is not on this machine.
    """
    found = located(setting)
    if found:
        return found
    path = Path(setting).expanduser()
    if not path.exists():
        raise AssetMissing(
            f"{setting} does not exist: give a file or folder, or asset:NAME (overpaint fetch asset=NAME)"
        )
    return path


def hashes(*settings: str) -> dict[str, str]:
    """The sha256 of every file that these settings name, by name. Raises `AssetMissing`."""
    for setting in settings:
        named_path(setting)
    return {name: value for setting in settings for name, value in weights_hashes(setting).items()}


def alike(images: Sequence[Image], most: int = BATCH) -> Iterator[list[int]]:
    """Positions of images of one size in pixels, at most ``most`` at a time; together they cover all images."""
    sizes: dict[tuple[int, int], list[int]] = {}
    for place, image in enumerate(images):
        sizes.setdefault(image.size, []).append(place)
    return (places[part] for places in sizes.values() for part in batched(len(places), most))


def batched(count: int, size: int = BATCH) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``count`` rows."""
    return (slice(start, start + size) for start in range(0, count, size))
