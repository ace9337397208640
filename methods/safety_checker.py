"""Safety checker: finished images that a detector recognises are replaced by black ones.

What Stable Diffusion's own pipelines do (Rando, Paleka, Lindner, Heim and Tramèr, "Red-Teaming the Stable Diffusion Safety
Filter", arXiv 2210.04610). With f_k(image) the detector's score for erased concept k and τ the ``threshold``, an image is
black if

    max_k f_k(image) ≥ τ                                or if it cannot be scored

The default detector is Stable Diffusion's (`overpaint.detectors.safety_checker`), whose score is 0.5 and more where it flags
an image. Any other detector can take its place. Weights do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

from PIL import Image

from overpaint.errors import UserError, unknown
from overpaint.grid.concepts import Request
from overpaint.grid.registry import component
from overpaint.grid.typed import construct
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure


@dataclass(kw_only=True)
class SafetyChecker(Eraser):
    """Hyper-parameters; ``conf/method/safety_checker.yaml`` explains each."""

    detector: str
    weights: str | None
    labels: list[str] | None
    threshold: float

    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    draws: ClassVar[bool] = False
    stacks: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False

    def __post_init__(self):
        if not 0 <= self.threshold <= 1:
            raise UserError(f"threshold takes a number from 0 to 1, got {self.threshold!r}")
        component("detector", self.detector)  # raises for an unknown name, with the nearest one

    def detectors(self, request: Request) -> dict[str, dict[str, Any]]:
        return {self.detector: self.screen(request).settings}

    def screen(self, request: Request, device: str = "cpu") -> ImageScreen:
        """The screen that recognises the concepts to erase."""
        return ImageScreen(
            detector=self.detector,
            weights=self.weights,
            classes={c.label or c.name: c.phrase for c in request.erase},
            labels=[c.label or c.name for c in request.erase] if self.labels is None else self.labels,
            threshold=self.threshold,
            device=device,
        )

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        screen = self.screen(request, str(model.device))
        screen.check()
        settings = asdict(screen)
        del settings["device"]
        return Erasure("safety_checker", "guard", settings=settings)

    @classmethod
    def install(cls, model: DiffusionModel, erasure: Erasure) -> Callable[[], None]:
        settings = {**erasure.settings, "device": str(model.device)}
        return model.screened_by(construct(ImageScreen, settings, "this erasure's settings").screened)


@dataclass(kw_only=True)
class ImageScreen:
    """Replaces images by black ones. ``classes`` are the concepts' words by label, for a detector that needs them."""

    detector: str
    weights: str | None
    classes: dict[str, str]
    labels: list[str]
    threshold: float
    device: str

    @property
    def settings(self) -> dict[str, Any]:
        """The detector's settings: its weights, and the words of a detector that needs them."""
        given = {"weights": self.weights} if self.weights is not None else {}
        return given | component("detector", self.detector).told(self.classes)

    @cached_property
    def _network(self) -> Any:
        network = component("detector", self.detector).build(self.settings)
        network.device = self.device
        return network

    def check(self) -> None:
        """Raise a `UserError` if the detector has no such label, and `AssetMissing` if its weights are not here."""
        self._network.assets()
        self._network.check()
        known = self._network.score([black(64, 64)]).columns.drop(["features", "failed"], errors="ignore")
        for label in self.labels:
            if label not in known:
                raise unknown("label", label, known, f"detector {self.detector}")

    def screened(self, images: Sequence[Image.Image | None]) -> list[Image.Image | None]:
        """The images, in order, with black ones for those that are refused; failed ones stay ``None``."""
        found = list(images)
        made = [number for number, image in enumerate(images) if image]
        if not made:
            return found
        scores = self._network.score([images[number] for number in made])
        passes = (scores[self.labels].max(axis=1, skipna=False) < self.threshold).tolist()
        for number, passed in zip(made, passes, strict=True):
            image = images[number]
            if image and not passed:
                found[number] = black(*image.size)
        return found


def black(width: int, height: int) -> Image.Image:
    """A black image of this size, in pixels."""
    return Image.new("RGB", (width, height))
