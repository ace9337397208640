"""How soon training brings the concept back: two figures of the curve that ``attack=relearn`` measures.

Let p_s be the share of images that show the concept after s steps of training (p_0: the victim itself), interpolated
linearly between the measured steps, and p° the unedited model's share on the plain prompts:

    relearn_steps_to_half    the least s with p_s ≥ p°/2
    relearn_area             ∫ p_s ds / (last step − first step), which is the mean of p_s while training

If half is not reached at the last step, that step is the figure; it is a lower bound, and the record says so. It has no
difference to another curve whose figure is a bound. A curve without p_0 has no steps to half, because it may have been reached
from the start. The original's value is the unedited model under the same training.

The area is a mean of shares, one a step, with the weights of the trapezoid rule. It has the interval and tests of other shares,
with prompts as clusters and steps as strata. The interval of the steps to half contains the steps at which "p_s = p°/2" is not
rejected (as Brookmeyer and Crowley 1982 do for medians): it begins where the upper limit of p_s − p°/2 reaches 0, and ends
where the lower limit does. If the lower limit does not reach 0 by the last step, half may be back at any later step, so the
interval has no upper limit (``high`` is ``None``). Limits of differences combine those of both sides (Zou and Donner 2008).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from overpaint.metrics.metric import AttackMetric, Evidence, Figure, FrameName
from overpaint.metrics.outcomes import KEYS, has_readings, own_concept, tally
from overpaint.report import statistics
from overpaint.report.statistics import LEVEL, Estimate

#: Normal quantiles between which a p-value is sought.
NEAREST, FARTHEST = 0.01, 6.0
#: A limit that is no farther from zero is zero: steps cannot be negative, so limits stop there.
TOUCHING = 1e-9


def steps_to_half(shares: NDArray, steps: NDArray, known: NDArray) -> NDArray:
    """The least steps (n,) at which curves ``shares`` (n, points) over ``steps`` (points,) reach half of ``known``
    (n,).

    It is the last step for curves that do not reach it, and NaN if ``known`` is 0 or NaN or a share is missing.
    """
    reached = shares >= known[:, None] / 2
    after = reached.argmax(axis=1)
    row, before = np.arange(len(shares)), np.maximum(after - 1, 0)
    low, high = shares[row, before], shares[row, after]
    part = np.divide(known / 2 - low, high - low, out=np.zeros(len(shares)), where=after > 0)
    found = np.where(reached.any(axis=1), steps[before] + part * (steps[after] - steps[before]), steps[-1])
    return np.where((known > 0) & ~np.isnan(shares).any(axis=1), found, np.nan)


def area(shares: NDArray, steps: NDArray) -> NDArray:
    """Mean heights (n,) of curves ``shares`` (n, points) over ``steps`` (points,): 1 for a share of 1 throughout."""
    from scipy.integrate import trapezoid

    return trapezoid(shares, steps, axis=1) / (steps[-1] - steps[0])


def weights(steps: NDArray) -> NDArray:
    """The weights (points,) of the points of a curve in its `area`; their sum is 1."""
    return area(np.eye(len(steps)), steps)


class RelearningCurve(AttackMetric):
    """A figure of the curve of shares over training steps."""

    paper = "Meta-Unlearning on Diffusion Models, arXiv 2410.12777"
    aggregation = "pooled at each step, prompts as clusters"
    needs_detector = True
    version = 3

    @classmethod
    def relevant(cls, evidence: Evidence) -> bool:
        return has_readings(evidence.images, "steps")

    @abstractmethod
    def estimate(self, table: pd.DataFrame, plain: pd.DataFrame) -> Estimate:
        """The figure of the outcomes ``table`` of a curve; ``plain`` are those of the unedited model before training."""

    @abstractmethod
    def difference(self, own: pd.DataFrame, other: pd.DataFrame, plain: pd.DataFrame) -> Estimate:
        """The difference of the figures of two curves."""

    def refusal(self, steps: NDArray) -> str:
        """The reason why a curve over these steps (points,) has no figure, or an empty string."""
        return "the curve has one point" if len(steps) < 2 else ""

    def bound(self, table: pd.DataFrame, plain: pd.DataFrame) -> str:
        """The reason why the figure of a curve is only a lower bound, or an empty string."""
        return ""

    def measure(self, evidence: Evidence) -> Figure:
        own, other = (_relearnt(evidence, frame) for frame in ("images", "original"))
        plain = own_concept(evidence.images_of("target", frame="plain_original"), evidence.threshold)
        count, steps, limit = tally(own), np.unique(own["steps"]), evidence.failure_limit
        figure = Figure(None, n=count.judged, failed=count.failed)
        why = count.refusal(limit, "attacked images") or self.refusal(steps)
        if why:
            return replace(figure, why=why)
        if tally(plain).refusal(limit, "plain images"):
            plain = plain.iloc[:0]
        found = self.estimate(own, plain)
        if found.value is None:
            return replace(figure, why="a step has no judged image, or the unedited model never shows the concept")
        figure = replace(figure, value=found.value, low=found.low, high=found.high, why=self.bound(own, plain))
        other = other[other["steps"].isin(steps)]
        original = self.estimate(other, plain)
        if tally(other).refusal(limit, "attacked images") or original.value is None or not _same_steps(own, other):
            return figure
        if self.bound(other, plain):  # the difference may have either sign
            return replace(figure, original=original.value)
        return figure.compared(self.difference(own, other, plain), original=original.value)


class RelearnStepsToHalf(RelearningCurve):
    """Training steps until half of the unedited model's rate is reached again."""

    direction = "up"
    unit = "steps"
    version = 5

    def estimate(self, table: pd.DataFrame, plain: pd.DataFrame, level: float = LEVEL) -> Estimate:
        shares, known = _by_step(table, level), statistics.proportion(plain["hit"], plain["cluster"], level=level)
        if known.value is None or not shares or any(e.value is None for e in shares.values()):
            return Estimate(None)
        steps, half = np.array(list(shares), float), np.array([known.value]) / 2
        value = steps_to_half(np.array([[e.value for e in shares.values()]], float), steps, 2 * half)[0]
        if np.isnan(value):
            return Estimate(None)
        points = [(e, _sum(e, known, -0.5)) for e in shares.values()]
        early, late = (
            np.array([[getattr(gap, side) + half[0] for _, gap in points]], float) for side in ("high", "low")
        )
        low, high = (float(steps_to_half(band, steps, 2 * half)[0]) for band in (early, late))
        censored = not (late >= half).any()
        return Estimate(float(value), min(low, value), None if censored else max(high, value))

    def difference(self, own: pd.DataFrame, other: pd.DataFrame, plain: pd.DataFrame) -> Estimate:
        return self.gap(own, other, plain)._replace(p_value=_p_value(lambda level: self.gap(own, other, plain, level)))

    def gap(self, own: pd.DataFrame, other: pd.DataFrame, plain: pd.DataFrame, level: float = LEVEL) -> Estimate:
        """The difference of two curves' steps with its interval, without test."""
        return _sum(self.estimate(own, plain, level), self.estimate(other, plain, level), -1.0)

    def refusal(self, steps: NDArray) -> str:
        return super().refusal(steps) or (
            "" if steps[0] == 0 else "the curve does not start at step 0, the victim itself: add 0 to attack.curve"
        )

    def bound(self, table: pd.DataFrame, plain: pd.DataFrame) -> str:
        known = float(plain["hit"].mean())
        reached = (table.groupby("steps")["hit"].mean() >= known / 2).any()
        return "" if reached else f"lower bound: half of {known:.2f} is not reached"


class RelearnArea(RelearningCurve):
    """Mean rate during training: the area under the curve of rates over steps."""

    direction = "down"

    def estimate(self, table: pd.DataFrame, plain: pd.DataFrame) -> Estimate:
        if table.groupby("steps")["hit"].count().min() == 0 or table.empty:
            return Estimate(None)
        return statistics.proportion(table["hit"], table["cluster"], table["steps"], weights=_weights(table))

    def difference(self, own: pd.DataFrame, other: pd.DataFrame, plain: pd.DataFrame) -> Estimate:
        pairs = own.merge(other, on=[*KEYS, "steps"], suffixes=("", "_other"))
        if not _same_steps(own, pairs.assign(hit=pairs["hit"] + pairs["hit_other"])):
            return Estimate(None)
        return statistics.paired_difference(
            pairs["hit"], pairs["hit_other"], pairs["cluster"], pairs["steps"], weights=_weights(pairs)
        )


def _weights(table: pd.DataFrame) -> NDArray:
    """The weight of each outcome's step in the area."""
    steps = np.unique(table["steps"])
    return weights(steps)[np.searchsorted(steps, table["steps"])]


def _same_steps(own: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether ``other`` has judged images at every step of ``own``."""
    return set(own["steps"]) == set(other.loc[other["hit"].notna(), "steps"])


def _by_step(table: pd.DataFrame, level: float) -> dict[float, Estimate]:
    """The share at each step, with its interval."""
    return {
        float(step): statistics.proportion(part["hit"], part["cluster"], level=level)
        for step in np.unique(table["steps"])
        for part in [table[table["steps"] == step]]
    }


def _sum(one: Estimate, other: Estimate, factor: float) -> Estimate:
    """``one + factor · other`` for a negative factor: half-widths are squared and added (Zou and Donner 2008).

    A limit to which an open limit contributes is open.
    """
    (value, low, high), (beside, least, most) = one[:3], other[:3]
    if value is None or beside is None:
        return Estimate(None)
    total = value + factor * beside
    below = None if low is None or most is None else math.hypot(value - low, factor * (most - beside))
    above = None if high is None or least is None else math.hypot(high - value, factor * (beside - least))
    return Estimate(total, None if below is None else total - below, None if above is None else total + above)


def _p_value(at: Callable[[float], Estimate]) -> float:
    """The p-value of "zero": one minus the level at which a limit of the interval ``at(level)`` is zero."""
    from scipy.optimize import brentq
    from scipy.special import ndtr

    def outside(quantile: float) -> float:
        """How far zero is outside the interval; negative inside it, at its ends and on a side without a limit."""
        value, low, high = at(1 - 2 * float(ndtr(-quantile)))[:3]
        assert value is not None
        limit = low if value > 0 else None if high is None else -high
        return -1.0 if limit is None else limit - TOUCHING

    if not outside(NEAREST) > 0:
        return 1.0
    far = FARTHEST if outside(FARTHEST) > 0 else float(brentq(outside, NEAREST, FARTHEST, xtol=1e-6))
    return 2 * float(ndtr(-far))


def _relearnt(evidence: Evidence, frame: FrameName) -> pd.DataFrame:
    """Outcomes of the attacked images, with the training ``steps`` after which they were generated."""
    found = evidence.images_of("attacked", frame=frame)
    steps = pd.to_numeric(found["steps"]) if "steps" in found else pd.Series(dtype=float)
    found = found[steps.notna().to_numpy()] if len(steps) else found.iloc[:0]
    table = own_concept(found.reset_index(drop=True), evidence.threshold)
    return table.assign(steps=steps[steps.notna()].to_numpy(float)[table["image"]])
