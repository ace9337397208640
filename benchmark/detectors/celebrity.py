"""GIPHY's celebrity detector (2018): a ResNet-50 of 2,306 people on the crop of a face, as MACE, SPEED and HUB use it.

The official code finds faces with MTCNN. Here they are NudeNet's classes FACE_FEMALE and FACE_MALE, whose weights a package
ships; the crop, its margin of 0.2 and the classifier are the official ones. The most confident face counts. An image without a
face shows nobody: its scores are 0, and ``face`` is the confidence of the face, so that both denominators can be had, all images
and images with a face.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from overpaint.detectors.imagenet import BILINEAR, resnet50
from overpaint.detectors.network import NetworkDetector, Scores, class_scores, positions
from overpaint.models.weights import load_state, weights_path

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from overpaint.detectors.faces import FaceFinder

#: Share of a face's box that is added to its width and height.
MARGIN = 0.2
#: Side of the classifier's input.
SIDE = 224
#: The checkpoint holds its tensors below this name.
INSIDE = "model_state.model."


@dataclass(kw_only=True)
class Celebrity(NetworkDetector):
    """One label for each class of the concept set, without classes all people; and ``face``."""

    names: str
    faces: str
    classes: dict[str, str] | None
    scores: Scores

    weights_in: ClassVar[tuple[str, ...]] = ("weights", "names", "faces")

    def check(self) -> None:
        self._positions()

    @property
    def labels(self) -> Sequence[str]:
        return [*(self.classes or self.people), "face"]

    def forward(self, images: Sequence[Image]) -> tuple[torch.Tensor, None]:
        import torch

        found = self._finder.faces(images)
        scores = torch.zeros(len(images), len(self.labels), device=self.device)
        shown = [number for number, face in enumerate(found) if face]
        if shown:
            faces = [face for face in found if face]
            scores[shown, :-1] = class_scores(self._logits([crop for crop, _ in faces]), self.scores)[
                :, self._positions()
            ]
            scores[shown, -1] = torch.tensor([confidence for _, confidence in faces], device=self.device)
        return scores, None

    @cached_property
    def people(self) -> list[str]:
        """The classifier's people, in the order of its output: sorted by the names in the file."""
        with weights_path(self.names).open(encoding="utf-8", newline="") as file:
            rows = sorted(row[0] for row in list(csv.reader(file))[1:])
        return [row.split("_[", 1)[0].replace("_", " ") for row in rows]

    def _positions(self) -> list[int]:
        return positions(self.classes or self.people, self.people, "detector=celebrity")

    @cached_property
    def _finder(self) -> FaceFinder:
        from overpaint.detectors.faces import FaceFinder

        return FaceFinder(self.faces, self.device, MARGIN)

    def _logits(self, crops: Sequence[Image]) -> torch.Tensor:
        from overpaint.blocks.pixels import Preprocessing

        pixels = Preprocessing(SIDE, None, (0.0,) * 3, (1.0,) * 3, BILINEAR)(crops).to(self.device)
        return self._network(pixels)

    @cached_property
    def _network(self) -> Any:
        """The ResNet-50 with a bottleneck of 256 before the people."""
        import torch
        from safetensors.torch import load_file

        state = {
            n.removeprefix(INSIDE): v for n, v in load_file(weights_path(self.weights)).items() if n.startswith(INSIDE)
        }
        width = len(state.get("fc1.bias", ()))

        def build() -> Any:
            network = resnet50(len(self.people))
            network.fc = torch.nn.Sequential(torch.nn.Linear(2048, width), torch.nn.Linear(width, len(self.people)))
            return network

        ours = {_torchvision(name): value for name, value in state.items()}
        return load_state(build, ours, self.weights).to(self.device)


def _torchvision(name: str) -> str:
    """The name that torchvision gives a tensor of GIPHY's network, whose trunk is a numbered sequence."""
    stem, _, rest = name.partition(".")
    if stem != "stem":
        return {"fc1": "fc.0.", "fc2": "fc.1."}.get(stem, f"{stem}.") + rest
    number, _, rest = rest.partition(".")
    return {"0": "conv1.", "1": "bn1."}.get(number, f"layer{int(number) - 3}.") + rest
