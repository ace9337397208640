"""Detectors that are one torch network: batches on the run's device, and scores of classes that exclude each other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from overpaint.detectors.detector import Detector
from overpaint.errors import UserError, nearest, unknown
from overpaint.models.weights import single_precision

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

#: An unknown class is answered with a list of all classes if there are at most this many.
LISTED = 100
#: Images in one forward pass.
BATCH = 32
#: ``top1``: at least 0.5 where a class has the highest probability. ``probability``: the softmax over the classes.
Scores = Literal["top1", "probability"]


@dataclass(kw_only=True)
class NetworkDetector(Detector):
    """A detector with a network in single precision. A subclass returns the scores of one batch."""

    weights: str

    @property
    @abstractmethod
    def labels(self) -> Sequence[str]:
        """The labels, in the order of the columns of scores."""

    @abstractmethod
    def forward(self, images: Sequence[Image]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scores (n, labels) in [0, 1] of one batch, and features (n, width) if the network has an embedding."""

    def score(self, images: Sequence[Image]) -> pd.DataFrame:
        parts: list[np.ndarray] = []
        embeddings: list[list[float]] = []
        with single_precision():
            for start in range(0, len(images), BATCH):
                scores, features = self.forward(images[start : start + BATCH])
                parts.append(scores.float().cpu().numpy())
                embeddings += [] if features is None else features.float().cpu().numpy().tolist()
        return score_frame(np.concatenate(parts) if parts else None, self.labels, embeddings)


def score_frame(scores: np.ndarray | None, labels: Sequence[str], features: Sequence[Sequence[float]]) -> pd.DataFrame:
    """The frame of `Detector.score` from an array (n, labels). Rows with a non-finite score have failed."""
    array = np.zeros((0, len(labels)), np.float32) if scores is None else np.asarray(scores, np.float32)
    failed = np.asarray(~np.isfinite(array).all(axis=1))
    array[failed] = np.nan
    frame = pd.DataFrame(array, columns=list(labels))
    if features:
        frame["features"] = pd.Series(list(features), dtype=object)
    frame["failed"] = failed
    return frame


def class_scores(logits: torch.Tensor, how: Scores) -> torch.Tensor:
    """Scores (n, classes) of logits of classes that exclude each other.

    ``top1`` is p / (p + q) with q the highest probability of another class: the class is the most probable one if and only if
    its score is at least 0.5 for any number of classes. Probabilities follow from it.
    """
    import torch

    if how == "probability":
        return logits.softmax(dim=1)
    first, second = logits.topk(2, dim=1).values.split(1, dim=1)
    return torch.sigmoid(logits - torch.where(logits == first, second, first))


def read_as_name(name: str) -> str:
    """A name without the differences between spellings: ``Van_Gogh`` and ``van gogh`` are the same."""
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())


def positions(
    wanted: Iterable[str], known: Sequence[str], where: str, given: Mapping[str, int] | None = None
) -> list[int]:
    """The positions of wanted names in a network's own list. Raises a `UserError` for a name that is not in it.

    A name in the exact spelling comes first. ``given`` maps further names to positions.
    """
    further = (given or {}).items()
    spelled = {name: place for place, name in enumerate(known)} | dict(further)
    alike = {read_as_name(name): place for place, name in reversed(list(enumerate(known)))}
    alike |= {read_as_name(name): place for name, place in further}
    found = []
    for name in wanted:
        place = spelled.get(name, alike.get(read_as_name(name)))
        if place is None:
            if len(known) <= LISTED:
                raise unknown("class", name, known, where)
            similar = ", ".join(get_close_matches(name, known, n=5, cutoff=0.4)) or "none"
            hint = nearest(name, known)
            raise UserError(
                f"unknown class {name!r} in {where}{hint} (similar ones of its {len(known):,} classes: {similar})"
            )
        found.append(place)
    return found
