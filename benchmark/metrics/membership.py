"""What the model still knows of its training images: membership of the erased concept's images, and copies of repeated ones.

An attacker scores training images of the erased concept (members) and images of the same distribution that the model
was not trained on (held out); every score is smaller for members (`overpaint.blocks.membership`). With AUC = P(score
of a held-out image > score of a member)::

    leakage AUC    AUC; 0.5 if members cannot be told apart
    TPR at 1 %     the largest share of members found while at most 1 % of held-out images are taken for members
    PrivLeak       100 (A − A_r) / A_r with A = P(score of a member > score of a held-out image), MUSE (arXiv 2407.06460)

A is 1 − AUC. It is near 0 while the images are memorised (PrivLeak near −100), and equals the value A_r of a model that never saw
the images when they are unlearned. Where members and held-out images are exchangeable, as in the drawn world, A_r is 1/2 exactly.
MUSE's code has the same orientation; its released entry points raise exceptions, and its Min-K scores are of language models.

SecMI's released evaluation sweeps 2,000 thresholds and leaves the last one out, so that the last trapezoid of the ROC
curve is missing (`released_roc`): 0.983 instead of 1 for separated scores. All other figures here are exact ranks.

Areas have score intervals, and two models' areas are compared as correlated ones, because they score the same images
(`overpaint.report.areas`). The TPR at 1 % depends on the few held-out images with the smallest scores: its interval has the
sampling error of the threshold (`LeakageTpr.estimate`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from overpaint.metrics.metric import Evidence, Figure, FrameName, Metric
from overpaint.metrics.outcomes import Share, clusters
from overpaint.metrics.readings import MeanReading
from overpaint.report import areas, statistics
from overpaint.report.statistics import Estimate

#: Scores of the stage *membership*, which computes those that a metric reads as its ``column``.
SCORES = ("loss", "secmi", "step", "pia", "pian")
#: The largest share of held-out images that are taken for members.
FALSE_POSITIVES = 0.01
#: AUC of a model that was trained without the members, where held-out images are exchangeable with them.
RETRAINED = 0.5


class Rates(NamedTuple):
    """AUC, largest accuracy, and rate of members found nearest to 1 % false positives."""

    auc: float
    accuracy: float
    tpr_at_1: float


def released_roc(members: ArrayLike, held_out: ArrayLike, thresholds: int = 2_000) -> Rates:
    """SecMI's released evaluation of scores that are smaller for members: a sweep of thresholds without the last one."""
    from scipy.integrate import trapezoid

    m, h = np.asarray(members, np.float32), np.asarray(held_out, np.float32)
    low, high = float(min(m.min(), h.min())), float(max(m.max(), h.max()))
    swept = np.arange(low, high, (high - low) / thresholds, dtype=np.float64).astype(np.float32)
    found, false = (np.searchsorted(np.sort(side), swept, side="right") for side in (m, h))
    tpr, fpr = found / len(m), false / len(h)
    right = (found + len(h) - false) / (len(m) + len(h))
    nearest = int(np.abs(fpr - 0.01).argmin())
    return Rates(float(trapezoid(tpr, fpr)), float(right.max()), float(tpr[nearest]))


def tpr_at(members: NDArray, held_out: NDArray, level: float = FALSE_POSITIVES) -> float:
    """The largest share of ``members`` below a threshold with at most ``level`` of ``held_out`` at or below it."""
    return float((members < threshold_at(held_out, level)).mean())


def threshold_at(held_out: NDArray, level: float = FALSE_POSITIVES) -> float:
    """The largest threshold with at most ``level`` of ``held_out`` (n,) below it."""
    return float(np.sort(held_out)[int(np.floor(level * len(held_out) + 1e-9))])


def thresholds_around(held_out: NDArray, level: float = FALSE_POSITIVES) -> tuple[float, float]:
    """Limits of the threshold below which ``level`` of all held-out images are, from n of them: two of their scores.

    k of the scores are below the true threshold with the binomial probability of k among n. The limits are the largest score that
    is above it with a probability of at most 2.5 %, and the smallest one that is below it with such a probability. They are
    infinite if there is no such score; the lower one always is for n < 368 and 1 %.
    """
    from scipy.stats import binom

    ordered, n, tail = np.array([-np.inf, *np.sort(held_out), np.inf]), len(held_out), (1 - statistics.LEVEL) / 2
    places = np.arange(n + 2)
    below = binom.sf(places - 1, n, level)  # P(the score at this place is below the true threshold)
    return float(ordered[places[below >= 1 - tail].max()]), float(ordered[places[below <= tail].min()])


def privleak(auc: float | NDArray, retrained: float | NDArray = RETRAINED) -> float | NDArray:
    """MUSE's PrivLeak of AUC P(score of a forget text > score of a holdout text), both as rates: 100 (A − A_r) / A_r."""
    return 100 * (auc - retrained) / retrained


class MembershipFigure(Metric):
    """A figure of members' and held-out images' scores; the base of those below."""

    facet = "efficacy"
    aggregation = "over pairs of a member and a held-out image"
    frames: ClassVar[tuple[FrameName, ...]] = ("membership", "membership_original")
    column: ClassVar[str] = "loss"

    def value(self, members: NDArray, held_out: NDArray) -> float:
        """The figure from scores (n,) and (m,)."""
        raise NotImplementedError

    def measure(self, evidence: Evidence) -> Figure:
        if evidence.membership is None or evidence.membership.empty:
            return Figure(None, why="model.reference is not a source that knows the model's training images")
        own = sides(evidence.membership, self.column)
        members, held_out = _known(own)
        failed = int(sum(np.isnan(side).sum() for side in own))
        figure = Figure(None, n=len(members) + len(held_out), failed=failed)
        if min(len(members), len(held_out)) < 2:
            return replace(figure, why="fewer than two members or held-out images have a score")
        if failed > evidence.failure_limit * (figure.n + failed):
            return replace(figure, why=f"{failed} of {figure.n + failed} scores are non-finite")
        if why := self.refusal(members, held_out):
            return replace(figure, why=why)
        found = self.estimate(own)
        figure = figure.estimated(found)
        if evidence.membership_original is None or evidence.membership_original.empty:
            return figure
        other = sides(evidence.membership_original, self.column)
        if any(np.isnan(side).any() for side in other) or [len(s) for s in other] != [len(s) for s in own]:
            return figure
        return figure.compared(self.difference(own, other), original=self.value(*other))

    def refusal(self, members: NDArray, held_out: NDArray) -> str:
        """The reason why scores (n,) and (m,) have no figure, or an empty string."""
        return ""

    def estimate(self, own: tuple[NDArray, NDArray]) -> Estimate:
        """The figure with its interval, from scores of members and held-out images that may be NaN."""
        raise NotImplementedError

    def difference(self, own: tuple[NDArray, NDArray], other: tuple[NDArray, NDArray]) -> Estimate:
        """The difference of two models' figures, from scores of the same images."""
        raise NotImplementedError


class MembershipArea(MembershipFigure):
    """A figure that is an area under the ROC curve of members and held-out images; the base of those below."""

    def area(self, members: NDArray, held_out: NDArray) -> float:
        """The area from scores (n,) and (m,): how often a held-out image has a larger score than a member."""
        return float(statistics.auc(held_out, members) or 0.0)

    def scaled(self, area: float) -> float:
        """The figure of this area, a linear function."""
        return area

    def value(self, members: NDArray, held_out: NDArray) -> float:
        return self.scaled(self.area(members, held_out))

    def estimate(self, own: tuple[NDArray, NDArray]) -> Estimate:
        members, held_out = _known(own)
        area = self.area(members, held_out)
        low, high = areas.limits(area, len(members), len(held_out))
        return Estimate(self.scaled(area), self.scaled(low), self.scaled(high))

    def difference(self, own: tuple[NDArray, NDArray], other: tuple[NDArray, NDArray]) -> Estimate:
        estimates = self.estimate(own), self.estimate(other)
        return statistics.difference_of_estimates(*estimates, correlation=correlation(own, other))


def correlation(own: tuple[NDArray, NDArray], other: tuple[NDArray, NDArray]) -> float:
    """The correlation of two models' areas, from scores of the same members and held-out images that may be NaN."""
    known = [~np.isnan(side + beside) for side, beside in zip(own, other, strict=True)]
    chosen = [tuple(side[which] for side, which in zip(sides, known, strict=True)) for sides in (own, other)]
    return areas.correlation(*chosen)


def _known(sides: Iterable[NDArray]) -> tuple[NDArray, ...]:
    return tuple(side[~np.isnan(side)] for side in sides)


def sides(frame: pd.DataFrame, column: str) -> tuple[NDArray, NDArray]:
    """The scores of members and of held-out images, in the order of ``image``."""
    frame = frame.sort_values("image")
    scores = pd.to_numeric(frame[column], errors="coerce").to_numpy(float)
    scores = np.where(np.isfinite(scores), scores, np.nan)
    member = frame["member"].to_numpy(bool)
    return scores[member], scores[~member]


class LeakageAuc(MembershipArea):
    """AUC of the training loss as a test of membership: how often a held-out image has a larger loss than a training image."""

    direction = "down"
    paper = "Loss threshold, Yeom et al. 2018; MUSE, arXiv 2407.06460"
    version = 2


class SecmiAuc(LeakageAuc):
    """AUC of SecMI's statistic."""

    paper = "SecMI, arXiv 2302.01316"
    column = "secmi"


class SecmiAucReleased(SecmiAuc):
    """AUC of SecMI's statistic as its released evaluation computes it, without the last threshold (`released_roc`)."""

    aggregation = "2,000 thresholds without the last one"

    def area(self, members: NDArray, held_out: NDArray) -> float:
        return released_roc(members, held_out).auc


class StepAuc(LeakageAuc):
    """AUC of the score that PIA's repository calls SecMI: the error of one step up and down, at t = 100."""

    paper = "PIA, arXiv 2305.18355"
    column = "step"


class PiaAuc(LeakageAuc):
    """AUC of PIA's score."""

    paper = "PIA, arXiv 2305.18355"
    column = "pia"


class PianAuc(LeakageAuc):
    """AUC of PIAN's score, with normalised noise."""

    paper = "PIA, arXiv 2305.18355"
    column = "pian"


class LeakageTpr(MembershipFigure):
    """Share of training images that the loss finds while at most 1 % of held-out images are taken for training images.

    It is undefined for fewer than 100 held-out images: 1 % of them is less than one image. With fewer than 368, the threshold has
    no lower limit, so the lower limit of the share is near 0.
    """

    direction = "down"
    paper = "SecMI, arXiv 2302.01316"
    version = 2

    def value(self, members: NDArray, held_out: NDArray) -> float:
        return tpr_at(members, held_out)

    def refusal(self, members: NDArray, held_out: NDArray) -> str:
        least = math.ceil(1 / FALSE_POSITIVES)
        few = f"{len(held_out)} held-out images: a rate at {FALSE_POSITIVES:.0%} false positives needs at least {least}"
        return few if len(held_out) < least else ""

    def estimate(self, own: tuple[NDArray, NDArray]) -> Estimate:
        """The share of members below the threshold with its interval.

        The interval combines the limits of the share at this threshold, which are those of other shares, with the shares at the
        limits of the threshold (`thresholds_around`): distances are squared and added (Zou and Donner 2008).
        """
        members, held_out = _known(own)
        share = statistics.proportion(members < threshold_at(held_out))
        assert share.value is not None and share.low is not None and share.high is not None
        first, last = thresholds_around(held_out)
        least, most = float((members < first).mean()), float((members <= last).mean())
        low = share.value - math.hypot(share.value - share.low, share.value - least)
        high = share.value + math.hypot(share.high - share.value, most - share.value)
        return Estimate(share.value, max(low, 0.0), min(high, 1.0))

    def difference(self, own: tuple[NDArray, NDArray], other: tuple[NDArray, NDArray]) -> Estimate:
        """The difference as that of independent estimates, which is cautious for scores of the same images."""
        return statistics.difference_of_estimates(self.estimate(own), self.estimate(other))


class PrivLeak(MembershipArea):
    """MUSE's PrivLeak of the loss, in per cent: 0 after unlearning, −100 while memorised, above 0 if over-unlearned."""

    direction = "zero"
    version = 3
    unit = "per cent"
    paper = "MUSE, arXiv 2407.06460"

    def area(self, members: NDArray, held_out: NDArray) -> float:
        """How often a member has a larger loss than a held-out image."""
        return float(statistics.auc(members, held_out) or 0.0)

    def scaled(self, area: float) -> float:
        return float(privleak(area))


class Copies(Share):
    """A share of the images of repeated training captions; the base of the two below."""

    facet = "efficacy"
    direction = "down"
    aggregation = "any image of a caption, then pooled"
    roles = ("repeated",)
    frames = ("copies", "copies_original")
    compared = ("copies", "copies_original")
    needs_detector = False
    version = 1

    def copied(self, frame: pd.DataFrame) -> NDArray:
        """Whether each image is a copy; NaN where it has no distance."""
        raise NotImplementedError

    def judge(self, frame: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
        if "own" not in frame or frame.empty:
            return frame[["prompt_id", "seed"]].assign(cluster="", label="", image=0, hit=np.nan).iloc[:0]
        hits = pd.Series(self.copied(frame), index=frame.index).mask(frame["failed"].astype(bool) | frame["own"].isna())
        table = frame[["prompt_id", "seed"]].assign(cluster=clusters(frame), label="copy", hit=hits)
        prompts, found = statistics.any_at_n(table["hit"], table["prompt_id"])
        cluster = table.groupby("prompt_id")["cluster"].first().loc[prompts].to_numpy()
        whole = pd.DataFrame({"prompt_id": prompts, "seed": 0, "cluster": cluster, "label": "copy", "hit": found})
        return whole.assign(image=np.arange(len(whole)))

    def measure(self, evidence: Evidence) -> Figure:
        if evidence.copies is None:
            return Figure(None, why="model.reference is not a source that knows the model's training images")
        return super().measure(evidence)


class ReplicationRate(Copies):
    """Share of repeated training captions for which an image is a copy of its training image.

    An image is a copy if its distance to the training image is less than half the mean distance to its 50 nearest
    neighbours among other training images.
    """

    paper = "Carlini et al., arXiv 2301.13188"

    def copied(self, frame: pd.DataFrame) -> NDArray:
        return (frame["own"] < 0.5 * frame["nearest"]).to_numpy(float)


class RetrievalRate(Copies):
    """Share of repeated training captions for which an image is nearer to its own training image than to 1,000 others."""

    paper = "Carlini et al., arXiv 2301.13188; overpaint"

    def copied(self, frame: pd.DataFrame) -> NDArray:
        return (frame["own"] < frame["closest"]).to_numpy(float)


class CopyDistance(MeanReading):
    """Root mean squared distance of repeated captions' images to their training images, in pixels from 0 to 1."""

    facet = "efficacy"
    direction = "up"
    unit = "distance"
    paper = "Carlini et al., arXiv 2301.13188"
    roles = ("repeated",)
    frames = ("copies", "copies_original")
    column = "own"
    compared = ("copies", "copies_original")

    def measure(self, evidence: Evidence) -> Figure:
        if evidence.copies is None:
            return Figure(None, why="model.reference is not a source that knows the model's training images")
        return super().measure(evidence)
