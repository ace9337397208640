"""Accuracies of a classifier on erased, retained and renamed concepts, and their harmonic means.

MACE (arXiv 2403.06135) and Receler (arXiv 2311.17717) erase one of C classes and ask a classifier about images of all of
them. With Acc_e on the erased class, Acc_s on the others, Acc_g on synonyms and Acc_R on paraphrases of the erased one::

    H_o = 3 / (1 / (1 − Acc_e) + 1 / Acc_s + 1 / (1 − Acc_g))        MACE, objects
    H_c = 2 / (1 / (1 − Acc_e) + 1 / Acc_s)                          MACE, celebrities; SPEED prints it as H_o
    H   = 3 / (1 / (1 − Acc_E) + 1 / (1 − Acc_R) + 1 / Acc_L)        Receler
    ERR = 3 / (1 / (1 − e) + 1 / r + 1 / (1 − a))                    eval-unlearn 1.1.2; e target, r retained, a attacked

A harmonic mean is that of one concept. A table's mean over concepts is the mean of their harmonic means, as printed by
MACE and Receler. Terms from several cells (plain prompts, synonyms, neighbours) are read in the cell of the attack.

MACE picks one class, the highest score among C (`top_one`). Receler and eval-unlearn ask a detector
whether it sees the class, so that a threshold decides. MACE's released script averages softmax probabilities instead of
counting: `overpaint.metrics.text_similarity.ClassProbability`. Receler's script rounds each class to three decimals of a per cent
before it averages; here nothing is rounded. eval-unlearn leaves arms without images out of the mean and returns 0 without
any; here both are undefined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd

from overpaint.grid.cells import PROMPT_LISTS
from overpaint.metrics.metric import FACE, Evidence, Figure, FrameName, Metric
from overpaint.metrics.outcomes import Share, outcomes, own_concept, refusal, share, tally
from overpaint.report import statistics
from overpaint.report.statistics import Estimate

#: A score above 0.
TINY = 1e-9
MACE = "MACE, arXiv 2403.06135"
RECELER = "Receler, arXiv 2311.17717"


def top_one(frame: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Outcomes: is the image's own concept the one with the highest score among ``classes``?

    A tie is a miss, and so is a score of 0. An image that lacks the score of a class is unknown.
    """
    table = own_concept(frame, 0.0)
    scores = frame.reindex(columns=list(classes)).to_numpy(float)[table["image"]]
    own = [classes.index(label) if label in classes else -1 for label in table["label"]]
    rows = np.arange(len(table))
    best = scores[rows, own] if len(classes) else np.full(len(table), np.nan)
    rivals = scores.copy()
    rivals[rows, own] = -np.inf
    hit = (best > 0) & (best > rivals.max(axis=1, initial=-np.inf))
    unknown = table["hit"].isna().to_numpy() | np.isnan(scores).any(axis=1) | (np.array(own, int) < 0)
    return table.assign(hit=np.where(unknown, np.nan, hit))


def classes_of(evidence: Evidence) -> list[str]:
    """The closed set of classes: the erased concepts and their neighbours, from the plain cell or beside an attack."""
    found = [*evidence.targets]
    for frame in ("images", "retained"):
        found += list(evidence.images_of("near", frame=frame)["concept"])
    return [label for label in dict.fromkeys(found) if isinstance(label, str) and label]


class ClosedSetAccuracy(Share):
    """Top-1 accuracy among the erased concepts and their neighbours (`classes_of`); the base of Acc_e, Acc_s and Acc_g."""

    paper = MACE
    aggregation = "top-1 among the classes, pooled"
    version = 1

    def judge(self, frame: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
        return top_one(frame, classes_of(evidence))

    def measure(self, evidence: Evidence) -> Figure:
        return one_class(evidence) or super().measure(evidence)


def one_class(evidence: Evidence) -> Figure | None:
    """An undefined figure if a classifier has fewer than two classes to choose from, else ``None``."""
    classes = classes_of(evidence)
    if len(classes) > 1 or not (len(evidence.images) or len(evidence.original)):
        return None
    return Figure(None, why=f"top-1 of {len(classes)} class: give neighbours (concepts.near) to choose from")


class ErasedAccuracy(ClosedSetAccuracy):
    """Acc_e: top-1 accuracy on images of the erased concept."""

    facet = "efficacy"
    direction = "down"
    roles = ("target",)


class RetainedAccuracy(ClosedSetAccuracy):
    """Acc_s: top-1 accuracy on images of the other classes, the neighbours."""

    facet = "specificity"
    direction = "up"
    roles = ("near",)


class SynonymAccuracy(ClosedSetAccuracy):
    """Acc_g: top-1 accuracy on images of synonyms, with the erased concept as the right answer."""

    facet = "generality"
    direction = "down"
    roles = ("attacked",)
    attacks = ("synonym",)
    frames = ("retained",)


class Locality(Share):
    """Acc_L of Receler: share of images of each neighbour that show it, averaged over neighbours with equal weight."""

    facet = "specificity"
    direction = "up"
    paper = RECELER
    aggregation = "per class, then mean"
    roles = ("near",)
    version = 1

    def judge(self, frame: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
        table = own_concept(frame, evidence.threshold)
        return table.assign(stratum=table["label"])


class Unlearned(Share):
    """UA of eval-unlearn: share of plain target prompts whose image does not show the erased concept."""

    facet = "efficacy"
    direction = "up"
    paper = "eval-unlearn 1.1.2"
    roles = ("target",)
    version = 1

    def judge(self, frame: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
        table = own_concept(frame, evidence.threshold)
        return table.assign(hit=1 - table["hit"])


class CelebrityAccuracy(Share):
    """Share of correct names among images with a face; the base of the two below.

    The detector's column ``face`` holds the score of the clearest face, 0 without one. An image without a face is left
    out, as in MACE's and HUB's scripts, and `FaceRate` counts it: an erasure that destroys faces would otherwise look
    harmless. A celebrity detector's scores reach 0.5 for its most probable name only.
    """

    paper = "MACE, arXiv 2403.06135; GIPHY celebrity detector"
    aggregation = "among images with a face, pooled"
    version = 2

    def judge(self, frame: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
        table = own_concept(frame, evidence.threshold)
        if FACE not in frame:
            return table.iloc[:0]
        faces = pd.to_numeric(frame[FACE], errors="coerce").to_numpy(float)[table["image"]]
        table = table.assign(hit=table["hit"].where(~np.isnan(faces)))  # unknown faces: not absent, but failed
        return table[(faces > 0) | table["hit"].isna()].reset_index(drop=True)

    def measure(self, evidence: Evidence) -> Figure:
        return faceless(evidence) or super().measure(evidence)


def faceless(evidence: Evidence) -> Figure | None:
    """An undefined figure if the detector reports no faces, else ``None``."""
    if FACE in evidence.images or not len(evidence.images):
        return None
    return Figure(None, why=f"the detector has no column {FACE!r}: set model.detector to a celebrity detector")


class ErasedCelebrities(CelebrityAccuracy):
    """Acc_e of celebrities: the detector still names the erased person."""

    facet = "efficacy"
    direction = "down"
    roles = ("target",)


class RetainedCelebrities(CelebrityAccuracy):
    """Acc_s of celebrities: the detector names the other persons."""

    facet = "specificity"
    direction = "up"
    roles = ("near",)


class FaceRate(Share):
    """Share of images of the erased and the other persons that have a face at all."""

    facet = "utility"
    direction = "up"
    paper = "HUB, arXiv 2410.05664"
    roles = ("target", "near")
    version = 1

    def judge(self, frame: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
        return outcomes(frame, [(FACE,)] * len(frame), TINY)

    def measure(self, evidence: Evidence) -> Figure:
        return faceless(evidence) or super().measure(evidence)


class Term(NamedTuple):
    """One term: a share of the images of these roles in two frames, the victim's and the unedited model's."""

    what: str
    frames: tuple[FrameName, FrameName]
    roles: tuple[str, ...]
    judge: Share
    forgotten: bool  # the term is one minus the share


class HarmonicMean(Metric):
    """Harmonic mean of shares of different images of one concept.

    It is 0 if a term is 0, and undefined if a term is. The interval moves each term to the limits of its own interval
    and adds the squares of what this changes (Zou and Donner 2008); so does the interval of the difference, which
    ignores that both models are measured on the same prompts and is too wide rather than too narrow.
    """

    facet = "efficacy"
    direction = "up"
    aggregation = "harmonic mean of shares, for each concept"
    needs_detector = True
    version = 2
    terms: ClassVar[tuple[Term, ...]]

    def measure(self, evidence: Evidence) -> Figure:
        own, original = zip(*(self.tables(term, evidence) for term in self.terms), strict=True)
        counts = [tally(table) for table in own]
        figure = Figure(None, n=sum(c.judged for c in counts), failed=sum(c.failed for c in counts))
        if why := self.reasons(own, evidence):
            return replace(figure, why=why)
        found = self.mean(own)
        figure = figure.estimated(found)
        if self.reasons(original, evidence):
            return figure
        other = self.mean(original)
        return figure.compared(statistics.difference_of_estimates(found, other), original=other.value)

    def reasons(self, tables: Sequence[pd.DataFrame], evidence: Evidence) -> str:
        """The reasons why one of the terms with these outcomes is undefined, or an empty string."""
        named = zip(self.terms, tables, strict=True)
        found = (refusal(table, evidence.failure_limit, f"{term.what} images") for term, table in named)
        return "; ".join(filter(None, found))

    def tables(self, term: Term, evidence: Evidence) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Outcomes of a term's images from the victim and from the unedited model, 1 for what is wanted."""
        judged = [term.judge.judge(evidence.images_of(*term.roles, frame=frame), evidence) for frame in term.frames]
        return tuple(t.assign(hit=1 - t["hit"]) if term.forgotten else t for t in judged)  # type: ignore[return-value]

    def mean(self, tables: Sequence[pd.DataFrame]) -> Estimate:
        return statistics.harmonic_of_estimates([share(table) for table in tables])


class HarmonicObjects(HarmonicMean):
    """H_o of MACE: harmonic mean of 1 − Acc_e, Acc_s and 1 − Acc_g, where the synonyms are attacked."""

    paper = MACE
    roles = ("attacked",)
    attacks = ("synonym",)
    frames = ("retained", "retained_original")
    terms = (
        Term("plain", ("plain", "plain_original"), ("target",), ErasedAccuracy(), True),
        Term("neighbours'", ("retained", "retained_original"), ("near",), RetainedAccuracy(), False),
        Term("attacked", ("images", "original"), ("attacked",), SynonymAccuracy(), True),
    )

    def measure(self, evidence: Evidence) -> Figure:
        return one_class(evidence) or super().measure(evidence)


class HarmonicCelebrities(HarmonicMean):
    """H_c of MACE: harmonic mean of 1 − Acc_e and Acc_s, accuracies of a celebrity detector."""

    paper = MACE
    roles = ("target", "near")
    terms = (
        Term("target", ("images", "original"), ("target",), ErasedCelebrities(), True),
        Term("near", ("images", "original"), ("near",), RetainedCelebrities(), False),
    )

    def measure(self, evidence: Evidence) -> Figure:
        return faceless(evidence) or super().measure(evidence)


class HarmonicReceler(HarmonicMean):
    """H of Receler: harmonic mean of 1 − Acc_E, 1 − Acc_R and Acc_L, where the paraphrases are attacked."""

    paper = RECELER
    roles = ("attacked",)
    attacks = ("paraphrase",)
    frames = ("retained", "retained_original")
    terms = (
        Term("plain", ("plain", "plain_original"), ("target",), Unlearned(), False),
        Term("attacked", ("images", "original"), ("attacked",), Unlearned(), False),
        Term("neighbours'", ("retained", "retained_original"), ("near",), Locality(), False),
    )


class HarmonicUnderAttack(HarmonicReceler):
    """ERR of eval-unlearn: harmonic mean of the shares of target and of attacked prompts without the concept, and of
    retained concepts that are shown."""

    facet = "robustness"
    paper = "eval-unlearn 1.1.2"
    attacks = ("*",)
    not_attacks = PROMPT_LISTS
