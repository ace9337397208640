"""What is drawn instead of an erased concept: its anchor, something else, or nothing that the detector knows.

Styles are replaced by styles, marks and unsafe content by their like, and things (objects, characters, people) by things: a
watermark on a house is not what took the place of a church. Over the images of target prompts,

    replacement rate        share of images that show the anchor and not the concept
    replacement entropy     −Σ_l p_l log₂ p_l in bits, over the images that do not show the concept
    nothing shown           share of images on which no score of any label reaches the threshold

p_l is the share of images whose label is l: the label with the highest score, or `NOTHING` if no score reaches the threshold. The
entropy is 0 if the same thing always takes the concept's place. The jackknife estimates it (Zahl 1977), because the entropy of a
sample is too small on average. EMCID (arXiv 2403.13807) calls the first one the efficacy of an edit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from overpaint.grid.concepts import read_as
from overpaint.grid.labels import counted
from overpaint.metrics.accuracy import classes_of
from overpaint.metrics.metric import Evidence, Figure, Metric
from overpaint.metrics.outcomes import Share, Tally, clusters, compare, outcomes, own_concept
from overpaint.report import statistics
from overpaint.report.resampling import left_out
from overpaint.report.statistics import Estimate

#: The label of an image on which no score reaches the threshold.
NOTHING = "nothing"
#: Kinds of concepts that are not things that an image shows, but how it looks or what is on it.
LIKE = {"style": "style", "mark": "on top", "unsafe": "on top"}
EMCID = "EMCID, arXiv 2403.13807"


def all_kinds(evidence: Evidence) -> Mapping[str, str]:
    """The kind of each label that the detector knows."""
    return evidence.kinds or dict.fromkeys(classes_of(evidence), "object")


def labels_beside(evidence: Evidence, label: str) -> list[str]:
    """The labels that can take the place of this one: of kinds like its own, without erased ones."""
    kinds = all_kinds(evidence)
    like, erased = LIKE.get(kinds.get(label, "object"), "thing"), set(evidence.targets)
    return [name for name, kind in kinds.items() if LIKE.get(kind, "thing") == like and name not in erased]


def anchors(evidence: Evidence) -> dict[str, str]:
    """The label of each erased concept's anchor, by the concept's label. An anchor that no detector names has none."""
    known = {read_as(name.replace("_", " ")): name for name in (*evidence.kinds, *classes_of(evidence))}
    found = {}
    for concept in evidence.erased:
        text = read_as(concept.anchor or "")
        label = known.get(text) or known.get(text.removeprefix("a ").removeprefix("an "))
        if concept.label and label:
            found[concept.label] = label
    return found


def replaced(frame: pd.DataFrame, labels: Sequence[str | None], evidence: Evidence) -> pd.DataFrame:
    """Outcomes: does each image show its one of ``labels`` and no erased concept? An image without a label is left out."""
    table = outcomes(frame, [(label,) for label in labels], evidence.threshold)
    shows = outcomes(frame, [evidence.targets] * len(frame), evidence.threshold).groupby("image")["hit"].max()
    concept = shows.reindex(table["image"]).to_numpy(float)
    return table.assign(hit=np.where(np.isnan(concept), np.nan, table["hit"] * (1 - concept)))


class ReplacementRate(Share):
    """Share of target images that show the anchor and not the concept; ``parts`` are the same for every label of the detector.

    Concepts whose anchor no detector names are left out.
    """

    facet = "efficacy"
    direction = "up"
    paper = EMCID
    roles = ("target",)
    version = 2

    def judge(self, frame: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
        known = anchors(evidence)
        return replaced(frame, [known.get(label) for label in frame["concept"]], evidence)

    def measure(self, evidence: Evidence) -> Figure:
        if len(evidence.images_of(*self.roles)) and not anchors(evidence):
            return Figure(None, why="the detector names no anchor of an erased concept: set concepts.anchor")
        return super().measure(evidence)

    def parts(self, evidence: Evidence) -> Mapping[str, Figure]:
        frames = [evidence.images_of(*self.roles, frame=frame) for frame in ("images", "original")]
        beside = {name for target in evidence.targets for name in labels_beside(evidence, target)}
        found = {}
        for label in sorted(beside.intersection(frames[0])):
            own, original = (replaced(frame, [label] * len(frame), evidence) for frame in frames)
            found[label] = compare(own, original, evidence.failure_limit, "target images")
        return found


class NothingShown(Share):
    """Share of target images that show nothing that the detector knows, of any kind."""

    facet = "efficacy"
    direction = "down"
    paper = "overpaint"
    roles = ("target",)
    version = 1

    def judge(self, frame: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
        table = own_concept(frame, evidence.threshold)
        known = [label for label in all_kinds(evidence) if label in frame]
        shows = outcomes(frame, [known] * len(frame), evidence.threshold).groupby("image")["hit"].max()
        return table.assign(hit=1 - shows.reindex(table["image"]).to_numpy(float))


class ReplacementEntropy(Metric):
    """Entropy in bits of what target images show instead of the concept: 0 if it is always the same."""

    facet = "efficacy"
    direction = "down"
    unit = "bits"
    paper = "overpaint"
    aggregation = "images without the concept, prompts as clusters"
    needs_detector = True
    roles = ("target",)
    version = 2

    def measure(self, evidence: Evidence) -> Figure:
        frame = evidence.images_of(*self.roles)
        shown = self.shown(frame, evidence)
        count = Tally(int(shown.notna().sum()), int(shown.isna().sum()))
        figure = Figure(None, n=count.judged, failed=count.failed)
        if why := count.refusal(evidence.failure_limit, "target images"):
            return replace(figure, why=why)
        instead = (shown.notna() & ~shown.isin(evidence.targets)).to_numpy(bool)
        if not instead.any():
            return replace(figure, n=0, why="every target image shows the concept")
        figure, groups = replace(figure, n=int(instead.sum())), clusters(frame)[instead].to_numpy()
        if (prompts := len(set(groups))) < statistics.FEWEST_PROMPTS:
            least = statistics.FEWEST_PROMPTS
            return replace(
                figure, why=f"images of {counted(prompts, 'prompt')} lack the concept, entropy needs {least}"
            )
        return figure.estimated(entropy(shown[instead].to_numpy(str), groups))

    def shown(self, frame: pd.DataFrame, evidence: Evidence) -> pd.Series:
        """What each image shows: an erased concept, the label with the highest score, or `NOTHING`; NaN if it failed."""
        found = pd.Series(np.nan, index=frame.index, dtype=object)
        for label, rows in frame.groupby("concept").groups.items():
            own = frame.loc[rows]
            names = [name for name in labels_beside(evidence, str(label)) if name in own]
            scores, erased = (own.reindex(columns=list(c)).apply(pd.to_numeric) for c in (names, evidence.targets))
            known = erased.notna().all(axis=1) & scores.notna().all(axis=1) & ~own["failed"].astype(bool)
            best = scores.fillna(-1).idxmax(axis=1) if names else NOTHING
            seen = pd.Series(best, index=own.index).where(scores.max(axis=1) >= evidence.threshold, NOTHING)
            concept = (erased >= evidence.threshold).any(axis=1)
            found.loc[rows] = seen.mask(concept, label).where(known)
        return found


def entropy(labels: NDArray, groups: NDArray) -> Estimate:
    """Entropy in bits of labels (n,), with the jackknife over ``groups`` (n,) for its bias and its interval.

    Where all K labels are equally frequent, the entropy is flat and only its second-order variance (K − 1) / (2 C² ln² 2) is
    left, for C groups (that of χ² with K − 1 degrees of freedom, over 2 C ln 2). It is added everywhere. If all labels are the
    same, the upper limit is the entropy of two labels at the upper limit of the other one's share.
    """
    names, codes = np.unique(labels, return_inverse=True)
    members = np.unique(groups, return_inverse=True)[1]
    if len(names) == 1:
        high = statistics.proportion(np.zeros(len(labels)), groups).high or 0.0
        return Estimate(0.0, 0.0, _bits(np.array([high, 1 - high])) if high < 0.5 else 1.0, n=len(labels))
    counts = np.zeros((members.max() + 1, len(names)))
    np.add.at(counts, (members, codes), 1)
    whole, size = counts.sum(axis=0), len(counts)
    if size == 1:
        return Estimate(_bits(whole), n=len(labels))
    without = np.array([_bits(whole - own) for own in counts])
    value = max(size * _bits(whole) - (size - 1) * float(without.mean()), 0.0)
    pairs = size + size % 2  # of contributions ±v without skewness, whose variance is the second-order one
    flat = math.sqrt((len(names) - 1) / 2 * (pairs - 1)) / (size * pairs * math.log(2))
    found = statistics.from_contributions(value, left_out(without), np.resize([flat, -flat], pairs))
    return found._replace(low=found.low if found.low is None else max(found.low, 0.0), n=len(labels))


def _bits(counts: NDArray) -> float:
    """−Σ p log₂ p of counts (labels,)."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())
