"""UnlearnCanvas' accuracies (arXiv 2402.11846): UA, IRA and CRA over a grid of objects drawn in styles.

For a label l of one axis, acc(l) is the share of the grid's images with l in their prompt that show l. With T the
erased labels::

    UA  = 1 - mean over l in T of acc(l)                                    unlearned
    IRA = mean over l not in T, on the axes that T is on, of acc(l)         retained in the domain
    CRA = mean over l on the other axis of acc(l)                           retained across domains

Every label has the same weight, regardless of its number of images. The mean is undefined if a label has no judged
image. As in the authors' script, CRA also counts images with an erased concept in their prompt, because the other label
should be kept. FID takes the combinations without an erased label.
"""

from __future__ import annotations

from operator import itemgetter

import numpy as np
import pandas as pd

from overpaint.metrics.distribution import InceptionFidReference
from overpaint.metrics.metric import Evidence, Figure, FrameName
from overpaint.metrics.outcomes import Share, asking, listed

AXES = ("object", "style")
#: The photographs among UnlearnCanvas' themes. The released code averages over them (50 others), the authors state 49.
PHOTOGRAPHS = "Seed_Images"


class GridAccuracy(Share):
    """Mean accuracy of some of the grid's labels; the base of UA, IRA and CRA."""

    facet = "specificity"
    direction = "up"
    paper = "UnlearnCanvas, arXiv 2402.11846"
    aggregation = "per label, then mean"
    roles = ("grid",)
    version = 3

    def chosen(self, axis: str, label: str, erased: set[str], inside: set[str]) -> bool:
        """Whether this label counts. ``inside`` are the axes with an erased concept."""
        raise NotImplementedError

    def judge(self, frame: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
        erased = set(evidence.targets)
        inside = {_axis(c.kind) for c in evidence.erased if c.label}
        tables = []
        for place, axis in enumerate(AXES):
            table = asking(itemgetter(slice(place, place + 1)), frame, evidence.threshold)
            chosen = [self.chosen(axis, label, erased, inside) for label in table["label"]]
            tables.append(table[np.array(chosen, dtype=bool)])
        table = pd.concat(tables, ignore_index=True)
        return table.assign(stratum=table["label"])


class UnlearningAccuracy(GridAccuracy):
    """UA: share of the images with an erased concept in their prompt that do not show it."""

    facet = "efficacy"

    def chosen(self, axis: str, label: str, erased: set[str], inside: set[str]) -> bool:
        return label in erased

    def judge(self, frame: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
        table = super().judge(frame, evidence)
        return table.assign(hit=1 - table["hit"])


class InDomainRetention(GridAccuracy):
    """IRA: accuracy on the other labels of the erased concept's axis (other styles for a style)."""

    def chosen(self, axis: str, label: str, erased: set[str], inside: set[str]) -> bool:
        return axis in inside and label not in erased


class InDomainRetentionDrawn(InDomainRetention):
    """IRA without the photographs: `PHOTOGRAPHS` are not averaged, as if they were dropped from the script's output."""

    version = 1

    def chosen(self, axis: str, label: str, erased: set[str], inside: set[str]) -> bool:
        return label != PHOTOGRAPHS and super().chosen(axis, label, erased, inside)


class CrossDomainRetention(GridAccuracy):
    """CRA: accuracy on the labels of the other axis (objects for a style); undefined if both axes have an erased one."""

    def chosen(self, axis: str, label: str, erased: set[str], inside: set[str]) -> bool:
        return axis not in inside

    def measure(self, evidence: Evidence) -> Figure:
        figure = super().measure(evidence)
        if not figure.n + figure.failed and len({_axis(c.kind) for c in evidence.erased if c.label}) == len(AXES):
            return Figure(None, why="concepts of both axes are erased: no other axis is left")
        return figure


class CrossDomainRetentionDrawn(CrossDomainRetention):
    """CRA without the photographs: `PHOTOGRAPHS` are not averaged."""

    version = 1

    def chosen(self, axis: str, label: str, erased: set[str], inside: set[str]) -> bool:
        return label != PHOTOGRAPHS and super().chosen(axis, label, erased, inside)


class RetainedGridFid(InceptionFidReference):
    """FID of the grid's images without an erased label to the reference pictures, which should be the data set's own."""

    paper = "UnlearnCanvas, arXiv 2402.11846"
    aggregation = "all images of the grid without an erased label"
    roles = ("grid",)
    version = 1

    def images(self, evidence: Evidence, frame: FrameName) -> pd.DataFrame:
        found, erased = super().images(evidence, frame), set(evidence.targets)
        return found[[erased.isdisjoint(listed(expects)) for expects in found["expects"]]] if len(found) else found


def _axis(kind: str) -> str:
    """The axis of a kind of concept: ``style``, or ``object`` for everything else."""
    return "style" if kind == "style" else "object"
