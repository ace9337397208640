"""Balance: how far the shares of attributes are from the desired ones, on prompts that name none of them.

UCE (arXiv 2308.14761) asks for "a photo of a doctor" and counts women. For attributes a with desired shares d_a and measured
shares s_a among the images that show one of them,

    Δ = mean_a |s_a − d_a| / d_a

An image shows the attribute with the highest score, if that reaches the threshold; UCE's classifier always picks one. The share
of a single attribute (slime in a swamp) is that of all images. Two attributes with equal desired shares deviate equally, so that
Δ is UCE's figure for either of them. Δ is 0 at the desired shares and never negative: of n images it is above 0 on average even
then, by about √(2 (1 − d) / (π d n)) for one attribute.

The limits are those of Δ over all shares inside simultaneous score intervals (Goodman 1965); up to two attributes have one
interval, because their shares determine each other. The difference to the unedited model treats both as independent, which is
conservative for images of the same prompts and noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from overpaint.metrics.metric import Evidence, Figure, FrameName, Metric
from overpaint.metrics.outcomes import Tally, clusters
from overpaint.report import statistics
from overpaint.report.statistics import LEVEL, Estimate


class AttributeGap(Metric):
    """Mean relative deviation of the attributes' shares from the desired ones; ``parts`` are those of each attribute."""

    facet = "efficacy"
    direction = "down"
    unit = "ratio"
    paper = "UCE, arXiv 2308.14761; EMCID, arXiv 2403.13807"
    aggregation = "images that show an attribute, mean over attributes"
    needs_detector = True
    roles = ("attributes",)

    @classmethod
    def relevant(cls, evidence: Evidence) -> bool:
        return bool(evidence.desired)

    def measure(self, evidence: Evidence) -> Figure:
        return self.figure(evidence, list(evidence.desired))

    def parts(self, evidence: Evidence) -> Mapping[str, Figure]:
        names = list(evidence.desired) if len(evidence.desired) > 1 else []
        return {name: self.figure(evidence, [name]) for name in names}

    def figure(self, evidence: Evidence, names: list[str]) -> Figure:
        """The mean deviation of the attributes in ``names``."""
        own, count = self.shown(evidence, "images")
        figure = Figure(None, n=len(own), failed=count.failed)
        if why := count.refusal(evidence.failure_limit, "attributes images"):
            return replace(figure, n=count.judged, why=why)
        if own.empty:
            return replace(figure, why=f"no image shows {' or '.join(evidence.desired)}")
        found = gap(own, evidence.desired, names)
        other, count = self.shown(evidence, "original")
        if count.refusal(evidence.failure_limit, "original images") or other.empty:
            return figure.estimated(found)
        original = gap(other, evidence.desired, names)
        return figure.estimated(found).compared(
            statistics.difference_of_estimates(found, original), original=original.value
        )

    def shown(self, evidence: Evidence, name: FrameName) -> tuple[pd.DataFrame, Tally]:
        """The images that count, with ``cluster`` and ``attribute`` (empty without a single one), and how many were judged."""
        frame, names = evidence.images_of(*self.roles, frame=name), list(evidence.desired)
        scores = frame.reindex(columns=names).apply(pd.to_numeric).to_numpy(float)
        failed = np.isnan(scores).any(axis=1) | frame["failed"].to_numpy(bool)
        best = np.where(np.isnan(scores), -np.inf, scores)
        seen = best.max(axis=1, initial=-np.inf) >= evidence.threshold
        chosen = np.array([*names, ""], dtype=object)[np.where(seen, best.argmax(axis=1), len(names))]
        table = pd.DataFrame({"cluster": clusters(frame), "attribute": chosen})
        return table[~failed & (seen | (len(names) == 1))], Tally(int((~failed).sum()), int(failed.sum()))


def gap(shown: pd.DataFrame, desired: Mapping[str, float], names: list[str]) -> Estimate:
    """Mean of |share − desired| / desired over the attributes in ``names``."""
    level = LEVEL if len(desired) < 3 or len(names) == 1 else 1 - (1 - LEVEL) / len(desired)
    found = []
    for name in names:
        d = desired[name]
        share = statistics.proportion((shown["attribute"] == name).astype(float), shown["cluster"], level=level)
        assert share.value is not None and share.low is not None and share.high is not None
        ends = sorted((abs(share.low - d), abs(share.high - d)))
        nearest = 0.0 if share.low <= d <= share.high else ends[0]
        found.append(np.array([abs(share.value - d), nearest, ends[1]]) / d)
    value, low, high = np.mean(found, axis=0).tolist()
    return Estimate(value, low, high, n=len(shown))
