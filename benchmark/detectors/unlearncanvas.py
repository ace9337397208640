"""UnlearnCanvas's judges (Zhang et al., NeurIPS 2024): two ViT-L/16 of timm, one of 51 themes and one of 20 objects.

The themes are 50 styles and ``Seed_Images``, the photographs. The judges are valid for UnlearnCanvas's own fine-tuned model only:
they recognise less than 6 % of the styles that other models paint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from overpaint.detectors.network import NetworkDetector, Scores, class_scores, positions
from overpaint.errors import UserError
from overpaint.models.weights import weights_path

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from overpaint.detectors.vit import VisionTransformer

#: The classes, in the order of the networks' outputs.
THEMES = (
    "Abstractionism Artist_Sketch Blossom_Season Bricks Byzantine Cartoon Cold_Warm Color_Fantasy Comic_Etch Crayon Cubism "
    "Dadaism Dapple Defoliation Early_Autumn Expressionism Fauvism French Glowing_Sunset Gorgeous_Love Greenfield "
    "Impressionism Ink_Art Joy Liquid_Dreams Magic_Cube Meta_Physics Meteor_Shower Monet Mosaic Neon_Lines On_Fire Pastel "
    "Pencil_Drawing Picasso Pop_Art Red_Blue_Ink Rust Seed_Images Sketch Sponge_Dabbed Structuralism Superstring Surrealism "
    "Ukiyoe Van_Gogh Vibrant_Flow Warm_Love Warm_Smear Watercolor Winter"
).split()
OBJECTS = (
    "Architectures Bears Birds Butterfly Cats Dogs Fishes Flame Flowers Frogs Horses Human Jellyfish Rabbits Sandwiches Sea "
    "Statues Towers Trees Waterfalls"
).split()
#: The checkpoints hold their tensors below this name.
INSIDE = "model_state_dict."


@dataclass(kw_only=True)
class UnlearnCanvas(NetworkDetector):
    """Every theme and every object is a label, and so is each class of the concept set under the set's own name."""

    objects: str
    classes: dict[str, str] | None
    scores: Scores

    weights_in: ClassVar[tuple[str, ...]] = ("weights", "objects")

    def check(self) -> None:
        self._positions()

    @property
    def labels(self) -> Sequence[str]:
        known = [*THEMES, *OBJECTS]
        return [*known, *(label for label in self.classes or () if label not in known)]

    def forward(self, images: Sequence[Image]) -> tuple[torch.Tensor, None]:
        import torch

        from overpaint.blocks.pixels import Preprocessing

        half = (0.5, 0.5, 0.5)
        pixels = Preprocessing(224, None, half, half, BILINEAR)(images).to(self.device)
        found = torch.cat([class_scores(network(pixels)[0], self.scores) for network in self._networks], dim=1)
        return found[:, self._positions()], None

    def _positions(self) -> list[int]:
        return positions(self.labels, [*THEMES, *OBJECTS], "detector=unlearncanvas")

    @cached_property
    def _networks(self) -> list[VisionTransformer]:
        from safetensors.torch import load_file

        from overpaint.detectors.vit import from_timm

        networks = []
        for reference, classes in ((self.weights, THEMES), (self.objects, OBJECTS)):
            state = load_file(weights_path(reference))
            inside = {name.removeprefix(INSIDE): value for name, value in state.items() if name.startswith(INSIDE)}
            network = from_timm(inside or state, reference)
            if network.head.out_features != len(classes):
                raise UserError(f"{reference} tells {network.head.out_features} classes apart, expected {len(classes)}")
            networks.append(network.to(self.device))
        return networks


#: Pillow's filter.
BILINEAR = 2
