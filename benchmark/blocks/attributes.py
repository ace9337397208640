"""Classify images by a list of attributes, for methods that balance attributes (debiasing)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from overpaint.errors import UserError, unknown
from overpaint.grid.paths import content_path
from overpaint.grid.registry import component, components

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

#: Maps images to the index of the attribute that each one shows.
Classifier = Callable[[Sequence["Image"]], list[int]]

#: The text that CLIP compares an image with: the template of transformers' zero-shot classification, which UCE uses.
SENTENCE = "This is a photo of {}."


def attribute_classifier(name: str, attributes: Sequence[str], device: torch.device) -> Classifier:
    """A classifier of images by attribute: a detector that has the attributes as labels, or CLIP (a folder or hub id)."""
    by = _by_detector if name in components("detector") else _by_clip
    return by(name, attributes, device)


def attribute_detector(name: str, attributes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The detector of that name with the settings it gets; empty if ``name`` is a CLIP model.

    Raises a `UserError` for a CLIP model's folder that is given as a bare word.
    """
    if name not in components("detector"):
        content_path(name, "classifier")
        return {}
    sentences = {attribute: SENTENCE.format(attribute) for attribute in attributes}
    return {name: component("detector", name).told(sentences)}


def _by_detector(name: str, attributes: Sequence[str], device: torch.device) -> Classifier:
    detector = component("detector", name).build(attribute_detector(name, attributes)[name])
    detector.device = str(device)

    def classify(images: Sequence[Image]) -> list[int]:
        scores = detector.score(images)
        for attribute in attributes:
            if attribute not in scores:
                raise unknown(
                    "attribute", attribute, scores.columns.difference(["features", "failed"]), f"detector {name}"
                )
        if scores["failed"].any():
            raise UserError(f"detector {name} failed on {int(scores['failed'].sum())} of {len(scores)} pictures")
        return scores[list(attributes)].to_numpy().argmax(axis=1).tolist()

    return classify


def _by_clip(path: str, attributes: Sequence[str], device: torch.device) -> Classifier:
    from torch.nn.functional import normalize

    from overpaint.blocks.clip import Clip

    clip = Clip.load(path, device)
    wanted = normalize(clip.text_features([SENTENCE.format(attribute) for attribute in attributes]), dim=1)

    def classify(images: Sequence[Image]) -> list[int]:
        return (normalize(clip.image_features(images), dim=1) @ wanted.T).argmax(dim=1).tolist()

    return classify
