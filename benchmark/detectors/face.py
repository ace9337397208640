"""Identity by the cosine similarity of a face to reference photographs (FaceNet, Schroff et al., CVPR 2015).

For people that no classifier knows: a folder holds a few photographs of each person. The score of an image is the highest cosine
similarity of its face to the person's faces, and 0 below 0 and without a face.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from overpaint.detectors.network import NetworkDetector
from overpaint.errors import UserError
from overpaint.grid.digests import IMAGE_SUFFIXES
from overpaint.models.weights import load_state, weights_hashes, weights_path

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from overpaint.detectors.faces import FaceFinder, InceptionResnetV1

#: Side of the network's input.
SIDE = 160
#: The network reads (x − 127.5) / 128.
MEAN, STD = (127.5 / 255,) * 3, (128 / 255,) * 3
#: Pillow's filter.
BILINEAR = 2


@dataclass(kw_only=True)
class Face(NetworkDetector):
    """One label for each class, without classes for each folder of photographs; and ``face``, the confidence of the face."""

    faces: str
    references: str | None
    classes: dict[str, str] | None

    weights_in: ClassVar[tuple[str, ...]] = ("weights", "faces")

    def assets(self) -> dict[str, str]:
        pictures = [file for person in self.people for file in self._files(person)]
        return super().assets() | {
            f"{file.parent.name}/{file.name}": digest
            for file in pictures
            for digest in weights_hashes(str(file)).values()
        }

    @property
    def people(self) -> list[str]:
        """The people whose photographs the folder holds, restricted to the classes."""
        if self.references is None:
            raise UserError("detector=face needs references: a folder with one folder of photographs for each person")
        folder = weights_path(self.references)
        return (
            list(self.classes) if self.classes else sorted(place.name for place in folder.iterdir() if place.is_dir())
        )

    @property
    def labels(self) -> Sequence[str]:
        return [*self.people, "face"]

    def forward(self, images: Sequence[Image]) -> tuple[torch.Tensor, None]:
        import torch

        found = self._finder.faces(images)
        scores = torch.zeros(len(images), len(self.labels), device=self.device)
        shown = [number for number, face in enumerate(found) if face]
        if shown:
            faces = [face for face in found if face]
            features = self._embed([crop for crop, _ in faces])
            near = [(features @ known.T).amax(dim=1) for known in self._known]
            scores[shown, :-1] = torch.stack(near, dim=1).clamp(0, 1)
            scores[shown, -1] = torch.tensor([confidence for _, confidence in faces], device=self.device)
        return scores, None

    def _files(self, person: str) -> list[Path]:
        folder = weights_path(str(self.references)) / person
        files = sorted(file for file in folder.glob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise UserError(f"references={self.references} has no photographs in the folder {person}")
        return files

    @cached_property
    def _known(self) -> list[torch.Tensor]:
        """Unit embeddings (photographs, 512) of each person."""
        from PIL import Image

        known = []
        for person in self.people:
            photographs = [Image.open(file).convert("RGB") for file in self._files(person)]
            crops = [face[0] for face in self._finder.faces(photographs) if face]
            if not crops:
                raise UserError(f"references={self.references}: no photograph of {person} shows a face")
            known.append(self._embed(crops))
        return known

    def _embed(self, crops: Sequence[Image]) -> torch.Tensor:
        from overpaint.blocks.pixels import Preprocessing

        return self._network(Preprocessing(SIDE, None, MEAN, STD, BILINEAR)(crops).to(self.device))

    @cached_property
    def _finder(self) -> FaceFinder:
        from overpaint.detectors.faces import FaceFinder

        return FaceFinder(self.faces, self.device, margin=0.0)

    @cached_property
    def _network(self) -> InceptionResnetV1:
        from safetensors.torch import load_file

        from overpaint.detectors.faces import InceptionResnetV1

        state = load_file(weights_path(self.weights))
        inside = {name: value for name, value in state.items() if not name.startswith("logits.")}
        return load_state(InceptionResnetV1, inside, self.weights).to(self.device)
