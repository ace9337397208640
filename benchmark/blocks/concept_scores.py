"""Scores of a request's concepts by a detector, for methods that look at images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from overpaint.errors import unknown
from overpaint.grid.concepts import Concept
from overpaint.grid.registry import component

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

#: Scores (n,) in [0, 1] of a concept in n images; NaN for an image that the detector failed on.
Scores = Callable[[Concept, Sequence["Image"]], "np.ndarray"]


def told(name: str, concepts: Sequence[Concept]) -> dict[str, Any]:
    """The settings that tell the detector ``name`` to look for these concepts; empty if it has classes of its own."""
    return component("detector", name).told({c.label or c.name: f"a photo of {c.phrase}" for c in concepts})


def concept_scores(setting: str, name: str, concepts: Sequence[Concept], device: torch.device) -> Scores:
    """Scores of these concepts by the detector ``name``, which the hyper-parameter ``setting`` selects.

    Calling the result raises a `UserError` for a concept whose label the detector does not have.
    """
    detector = component("detector", name).build(told(name, concepts))
    detector.device = str(device)

    def scores(concept: Concept, images: Sequence[Image]) -> np.ndarray:
        table, label = detector.score(images), concept.label or concept.name
        if label not in table:
            raise unknown("label", label, table.columns.difference(["features", "failed"]), f"{setting}={name}")
        return table[label].where(~table["failed"]).to_numpy(float)

    return scores
