"""How far a model is from the gold reference, a model that was trained in the same way without the concept.

The gold reference is what erasing should give. Let p_l be the share of images that show label l (``L`` labels), and f (n, d) the
detector's features of n images. The images of both models start from the same prompts and noise:

    label distance       ½ Σ_l |p_l − p_l^gold|: the number of labels that appear or disappear, half of it
    kernel distance      KID of f and f^gold in pairs (`overpaint.metrics.distribution.paired_kid`)
    beyond gold          attack success minus the gold reference's under the same attack
    relearning ratio     steps to half of the rate, over the gold reference's
    PrivLeak             100 (A − A_gold) / A_gold, with A = P(score of a training image > score of another image), MUSE

The first two are measured on prompts that name the concept (efficacy), on synonyms and paraphrases (generality), and on prompts
that do not (specificity). A model that learned the same with other seeds is not at distance 0: compare with the distance of two
gold references. The label distance of finitely many images is also too large on average, because a label's difference d with
standard error s counts by its absolute value. For a true difference δ, the bias is that of a folded normal variable:

    E|d| − |δ| = s (2/π)^½ exp(−δ²/2s²) − 2 |δ| Φ(−|δ|/s)

The values are not corrected. The lower limits of the intervals are reduced by half the sum of the labels' biases (`folding`), so
that the interval of two equal models contains 0. A jackknife cannot correct the bias, since |d| is linear except at 0.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from overpaint.metrics.attack_success import AttackSuccessAny
from overpaint.metrics.distribution import FeatureDistance, FeatureRows, feature_rows, paired_kid
from overpaint.metrics.membership import PrivLeak, correlation, privleak
from overpaint.metrics.metric import Evidence, Figure, FrameName
from overpaint.metrics.outcomes import Tally
from overpaint.metrics.relearning import RelearnStepsToHalf
from overpaint.report import statistics
from overpaint.report.statistics import Estimate

#: Standard errors that are taken off a label's difference before its bias is computed: the one-sided 95 % quantile.
CAUTION = 1.645
NO_GOLD = "no gold reference: model.gold names none, or it has none for these concepts"


def label_distance(x: NDArray, y: NDArray) -> float:
    """½ Σ_l |mean x_l − mean y_l| of indicators (n, labels) and (m, labels). It is the total variation distance if every image
    shows one label."""
    return float(np.abs(x.mean(axis=0) - y.mean(axis=0)).sum() / 2)


def folding(x: NDArray, y: NDArray, prompts: NDArray) -> float:
    """The bias of the `label_distance` of pairs of indicators (n, labels), which is positive, or an upper limit of it.

    ``prompts`` (n,) are the clusters. The bias of a label decreases with its true difference, which is uncertain. It is therefore
    computed for the measured difference minus `CAUTION` standard errors.
    """
    from scipy.special import ndtr

    gaps, member = x - y, np.unique(prompts, return_inverse=True)[1]
    means, count = gaps.mean(axis=0), member.max() + 1
    parts = np.zeros((count, gaps.shape[1]))
    np.add.at(parts, member, (gaps - means) / len(gaps))
    errors = np.sqrt(count / max(count - 1, 1) * (parts**2).sum(axis=0))
    means, errors = np.abs(means[errors > 0]), errors[errors > 0]
    away = np.maximum(means / errors - CAUTION, 0.0)
    return float((errors * (math.sqrt(2 / math.pi) * np.exp(-(away**2) / 2) - 2 * away * ndtr(-away))).sum() / 2)


class GoldDistance(FeatureDistance):
    """A distance to the gold reference's images of the same prompts and noise, beside the unedited model's; the base below."""

    facet = "efficacy"
    paper = "overpaint"
    version = 1
    aggregation = "all images"
    frames = ("gold",)
    roles: ClassVar[tuple[str, ...]] = ("target",)

    def images(self, evidence: Evidence, frame: FrameName) -> pd.DataFrame:
        """The images of the metric's roles. An image of a prompt that serves several roles is there once."""
        found = super().images(evidence, frame)
        again = found.duplicated(["prompt_id", "seed"]) & ~found.duplicated(["role", "prompt_id", "seed"])
        return found[~again].reset_index(drop=True)

    def measure(self, evidence: Evidence) -> Figure:
        if evidence.gold is None:
            return Figure(None, why=NO_GOLD)
        frames: tuple[FrameName, ...] = ("images", "gold", "original")
        own, gold, original = (self.rows(evidence, frame) for frame in frames)
        count = Tally(len(own.vectors), own.failed)
        shared = own.keys.intersection(gold.keys)
        why = count.refusal(evidence.failure_limit, f"{'/'.join(self.roles)} images")
        why = why or Tally(len(gold.vectors), gold.failed).refusal(
            evidence.failure_limit, "images of the gold reference"
        )
        if not why and not all(rows.keys.is_unique for rows in (own, gold, original)):
            why = "several images of one prompt and seed"
        if not why and len(shared) < 2:
            why = "fewer than two images have one of the gold reference with the same prompt and seed"
        if why:
            return Figure(None, n=count.judged, failed=count.failed, why=why)
        here, there = own.at(shared), gold.at(shared)
        found = self.whole(here, there)
        figure = Figure(found.value, found.low, found.high, n=len(shared), failed=count.failed)
        if not shared.isin(original.keys).all():
            return figure
        base = original.at(shared)
        gap = self.gap(here, base, there)
        return figure.compared(gap, original=self.distance(base.vectors, there.vectors))

    def whole(self, own: FeatureRows, gold: FeatureRows) -> Estimate:
        """The distance of the rows of both models, which are in pairs."""
        return self.estimate(lambda p: self.distance(own.of(p), gold.of(p)), own.prompts, self.floor)

    def gap(self, own: FeatureRows, base: FeatureRows, gold: FeatureRows, bias: float = 0.0) -> Estimate:
        """The distance of ``own`` minus that of ``base``, minus ``bias``. All rows are in one order."""
        return self.estimate(
            lambda p: self.distance(own.of(p), gold.of(p)) - self.distance(base.of(p), gold.of(p)) - bias,
            own.prompts,
            -math.inf,
        )


class GoldLabelDistance(GoldDistance):
    """Distance of the labels that the detector finds, on prompts that name the concept.

    Its interval and that of its difference allow for the bias of finitely many images (`folding`). If all prompts agree, the
    limits allow for the largest share of images that could have another label (`overpaint.report.statistics.where_one_differs`).
    """

    unit = "labels"
    version = 3
    floor = 0.0
    distance = staticmethod(label_distance)

    def rows(self, evidence: Evidence, frame: FrameName) -> FeatureRows:
        """Indicators of the labels of the concepts that the detector knows."""
        images = self.images(evidence, frame)
        scores = images[[label for label in evidence.kinds if label in images]].to_numpy(float)
        shown = np.where(np.isnan(scores), np.nan, scores >= evidence.threshold)
        return feature_rows(images.assign(features=list(shown)))  # an image with an unknown label counts as failed

    def whole(self, own: FeatureRows, gold: FeatureRows) -> Estimate:
        found = statistics.where_one_differs(super().whole(own, gold), own.prompts)
        if found.low is None:
            return found
        return found._replace(low=max(found.low - folding(own.vectors, gold.vectors, own.prompts), self.floor))

    def gap(self, own: FeatureRows, base: FeatureRows, gold: FeatureRows, bias: float = 0.0) -> Estimate:
        """The difference of two distances. Its interval and test also hold if both biases are removed."""
        biases = (folding(side.vectors, gold.vectors, own.prompts) for side in (own, base))
        found, unbiased = (
            statistics.where_one_differs(super(GoldLabelDistance, self).gap(own, base, gold, bias=removed), own.prompts)
            for removed in (0.0, next(biases) - next(biases))
        )
        if found.value is None or found.p_value is None or unbiased.value is None or unbiased.p_value is None:
            return found
        lower, upper = (found, unbiased) if found.value < unbiased.value else (unbiased, found)
        p_value = 1.0 if found.value * unbiased.value <= 0 else max(found.p_value, unbiased.p_value)
        return found._replace(low=lower.low, high=upper.high, p_value=p_value)


class GoldKernelDistance(GoldDistance):
    """Kernel distance of the detector's features, on prompts that name the concept."""

    distance = staticmethod(paired_kid)


class GoldLabelDistanceWorded(GoldLabelDistance):
    """Distance of labels on prompts that say the concept in other words."""

    facet = "generality"
    roles = ("attacked",)
    attacks = ("synonym", "paraphrase")


class GoldKernelDistanceWorded(GoldKernelDistance):
    """Kernel distance of features on prompts that say the concept in other words."""

    facet = "generality"
    roles = ("attacked",)
    attacks = ("synonym", "paraphrase")


class GoldLabelDistanceRetained(GoldLabelDistance):
    """Distance of labels on prompts for other concepts: neighbours, the style × object grid and general prompts."""

    facet = "specificity"
    version = 4
    roles = ("near", "grid", "utility")


class GoldKernelDistanceRetained(GoldKernelDistance):
    """Kernel distance of features on prompts for other concepts: neighbours, the style × object grid and general prompts."""

    facet = "specificity"
    version = 2
    roles = ("near", "grid", "utility")


class AttackBeyondGold(AttackSuccessAny):
    """`AttackSuccessAny` against the same attack on the gold reference: what the attack finds that erasing has left.

    ``control`` is the gold reference's success.
    """

    paper = "overpaint"
    version = 1
    frames = ("gold",)
    control_frame: ClassVar[FrameName] = "gold"

    def measure(self, evidence: Evidence) -> Figure:
        return Figure(None, why=NO_GOLD) if evidence.gold is None else super().measure(evidence)


class RelearnRatioToGold(RelearnStepsToHalf):
    """Training steps until half of the unedited model's rate is reached, over the gold reference's: 1 if nothing is left.

    Limits combine those of both logarithms (Zou and Donner 2008). There is no upper limit if this curve's steps have none, or if
    the gold reference may reach half at once.
    """

    unit = "ratio"
    paper = "overpaint"
    version = 2
    frames = ("gold",)

    def measure(self, evidence: Evidence) -> Figure:
        if evidence.gold is None:
            return Figure(None, why=NO_GOLD)
        own = super().measure(evidence)
        gold = super().measure(replace(evidence, images=evidence.gold, original=evidence.images))
        figure = Figure(None, n=own.n, failed=own.failed)
        if own.value is None or gold.why or not gold.value:
            said = gold.why or "it shows the concept before training"
            return replace(figure, why=own.why if own.value is None else f"gold reference: {said}")
        ratio = own.value / gold.value
        figure = replace(figure, value=ratio, why=own.why, control=gold.value, against="control")
        if not own.value or own.low is None or gold.low is None:
            return figure
        own_high, gold_high = (math.inf if one.high is None else one.high for one in (own, gold))
        below = math.hypot(_log_ratio(own.value, own.low), _log_ratio(gold_high, gold.value))
        above = math.hypot(_log_ratio(own_high, own.value), _log_ratio(gold.value, gold.low))
        high = ratio * math.exp(above)
        return replace(figure, low=ratio * math.exp(-below), high=high if math.isfinite(high) else None)


def _log_ratio(larger: float, smaller: float) -> float:
    """log(larger / smaller); infinite for a smaller value of 0."""
    return math.log(larger / smaller) if smaller else math.inf


class PrivLeakGold(PrivLeak):
    """MUSE's PrivLeak of the loss with the AUC of the gold reference, in per cent: 0 after unlearning, below while memorised."""

    frames = ("membership", "membership_original", "membership_gold")

    def scaled(self, area: float) -> float:
        return area  # it is compared with the gold's area, not with ½

    def difference(self, own: tuple[NDArray, NDArray], other: tuple[NDArray, NDArray]) -> Estimate:
        """The relative difference of two models' areas, in per cent."""
        estimates = self.estimate(own), self.estimate(other)
        ratio = statistics.ratio_of_estimates(*estimates, correlation=correlation(own, other))
        value, low, high = (None if at is None else float(privleak(at, 1.0)) for at in ratio[:3])
        return Estimate(value, low, high)

    def measure(self, evidence: Evidence) -> Figure:
        if evidence.membership_gold is None:
            return Figure(None, why=NO_GOLD)
        found = super().measure(replace(evidence, membership_original=evidence.membership_gold))
        if found.value is None or not found.original:
            return replace(found, why=found.why or "the gold reference's scores are non-finite, or of other images")
        return Figure(found.difference, found.difference_low, found.difference_high, n=found.n, failed=found.failed)
