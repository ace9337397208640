"""The drawn world as a source of pictures."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL.Image import Image

from overpaint.blocks.pictures import Pictures
from overpaint.grid.concepts import Concept
from overpaint.testbed import membership
from overpaint.testbed.captions import draw_world
from overpaint.testbed.world import draw_concept, render

#: Seed of the reference pictures.
SEED = 1


@dataclass
class World(Pictures):
    """Scenes that are never in the training set, drawn by the renderer that made the training set."""

    draws: ClassVar[bool] = True
    trains: ClassVar[bool] = True

    def identity(self, count: int) -> Mapping[str, Any]:
        return {"source": "world", "n": count, "seed": SEED}

    def references(self, count: int) -> list[tuple[Image, str]]:
        return [(image, caption) for _, caption, image in draw_world(count, SEED)]

    def examples(self, concept: Concept, count: int, seed: int) -> Sequence[Image]:
        return draw_concept(concept.label or concept.name, count, seed=seed + 1)

    def ordinary(self, concept: Concept, count: int, seed: int) -> Sequence[tuple[Image, str]]:
        shown = concept.label or concept.name
        scenes = draw_world(4 * count, seed=seed + 2)
        return [(image, text) for scene, text, image in scenes if shown not in scene.labels][:count]

    def training_identity(self, labels: Sequence[str], count: int) -> Mapping[str, Any]:
        return {"source": "world", "n": count, "seed": membership.SEED, "labels": list(labels)}

    def training(self, labels: Sequence[str], count: int) -> list[tuple[Image, str, bool]]:
        end = membership.TRAINING_SIZE
        sides = {True: range(membership.REPEATED, membership.FIRST_REPEAT), False: range(end, 2 * end)}
        found = []
        for member, indices in sides.items():
            shown = (index for index in indices if membership.scene(index).labels & set(labels))
            for index in itertools.islice(shown, count):
                scene, caption = membership.example(index)
                found.append((render(scene), caption, member))
        return found

    def repeated(self) -> list[tuple[Image, str]]:
        examples = [membership.example(index) for index in membership.duplicates()]
        return [(render(scene), caption) for scene, caption in examples]

    def ordinary_training(self, count: int) -> list[Image]:
        return [render(membership.scene(membership.REPEATED + n)) for n in range(count)]
