"""Intervals of areas under ROC curves, their correlation, and ratios of estimates."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from overpaint.report import areas
from overpaint.report import statistics as st
from overpaint.report.statistics import NORMAL, Estimate


def variance(area, positives, negatives):
    """Hanley and McNeil's variance with the mean number of observations (Newcombe 2006, method 5)."""
    q1, q2, others = area / (2 - area), 2 * area**2 / (1 + area), (positives + negatives) / 2 - 1
    return (area * (1 - area) + others * (q1 - area**2) + others * (q2 - area**2)) / (positives * negatives)


@pytest.mark.parametrize("value", [0.0, 0.03, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("sides", [(4, 4), (12, 30), (200, 200)])
def test_limits_are_as_far_from_the_value_as_their_own_error_says(value, sides):
    low, high = areas.limits(value, *sides)
    assert low <= value <= high
    for limit in (low, high):
        if 0 < limit < 1:
            assert abs(limit - value) == pytest.approx(NORMAL * math.sqrt(variance(limit, *sides)), abs=1e-6)
    assert (low == 0) == (value == 0) and (high == 1) == (value == 1)
    assert areas.limits(1 - value, *sides) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def scored(rng, sides, shift, other, correlation):
    """Scores of two models for the same observations: normal, those of positives larger by ``shift`` and ``other``."""
    rest = math.sqrt(1 - correlation)
    common = [math.sqrt(correlation) * rng.standard_normal(n) for n in sides]
    return [
        tuple(c + rest * rng.standard_normal(len(c)) + by * (side == 0) for side, c in enumerate(common))
        for by in (shift, other)
    ]


@pytest.mark.parametrize(("sides", "shift"), [((8, 8), 3.0), ((30, 12), 0.0), ((60, 60), 1.0)])
def test_intervals_of_areas_and_of_their_differences_and_ratios_cover(sides, shift):
    rng, truth, other = np.random.default_rng(0), norm.cdf(shift / math.sqrt(2)), norm.cdf(1 / math.sqrt(2))
    inside = np.zeros(3)
    for _ in range(sets := 300):
        both = scored(rng, sides, shift, 1.0, 0.6)
        one, two = (Estimate(value, *areas.limits(value, *sides)) for value in (st.auc(*scores) for scores in both))
        together = areas.correlation(*both)
        gap = st.difference_of_estimates(one, two, correlation=together)
        ratio = st.ratio_of_estimates(one, two, correlation=together)
        for place, (found, true) in enumerate(((one, truth), (gap, truth - other), (ratio, truth / other))):
            inside[place] += found.low <= true <= found.high
    assert (inside / sets >= 0.92).all(), inside / sets


def test_the_correlation_is_that_of_the_areas_of_other_samples():
    rng = np.random.default_rng(1)
    found = [scored(rng, (40, 40), 1.0, 0.5, 0.7) for _ in range(1500)]
    between = np.corrcoef([[st.auc(*scores) for scores in both] for both in found], rowvar=False)[0, 1]
    # 1,500 samples give the correlation with a standard error of 0.015, 200 the mean of its estimates with less than 0.01
    estimates = [areas.correlation(*both) for both in found[:200]]
    assert np.std(estimates) < 0.01 * math.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(between, abs=0.04)
    one = found[0][0]
    assert areas.correlation(one, one) == pytest.approx(1)
    assert areas.correlation(one, tuple(-side for side in one)) == pytest.approx(-1)
    assert areas.correlation(one, (np.ones(40), np.zeros(40))) == 0  # separated scores have no variance


def test_equal_scores_count_half_in_the_correlation():
    ties = np.array([0.0, 1.0, 1.0, 2.0]), np.array([0.0, 1.0, 2.0, 0.0])
    above = [np.mean([(p > n) + (p == n) / 2 for n in ties[1]]) for p in ties[0]]
    assert np.mean(above) == pytest.approx(st.auc(*ties))
    assert areas._placements(*ties)[0] == pytest.approx(above)


@pytest.mark.parametrize("correlation", [-0.5, 0.0, 0.9])
@pytest.mark.parametrize("one", [Estimate(0.4, 0.3, 0.55), Estimate(0.9, 0.8, 0.95), Estimate(0.02, 0.01, 0.1)])
def test_zero_is_a_limit_of_the_difference_at_the_limits_of_the_ratio(one, correlation):
    other = Estimate(0.5, 0.4, 0.58)
    found = st.ratio_of_estimates(one, other, correlation=correlation)
    assert found.value == pytest.approx(one.value / 0.5) and found.low < found.value < found.high
    for ratio, side in ((found.low, "low"), (found.high, "high")):
        scaled = Estimate(*(ratio * number for number in other[:3]))
        gap = st.difference_of_estimates(one, scaled, correlation=correlation)
        assert getattr(gap, side) == pytest.approx(0, abs=1e-9)


def test_ratios_at_zero():
    other = Estimate(0.5, 0.4, 0.6)
    none = st.ratio_of_estimates(Estimate(0.0, 0.0, 0.1), other)
    assert (none.value, none.low) == (0, 0) and 0.1 / 0.6 < none.high < 0.1 / 0.4
    assert st.ratio_of_estimates(other, Estimate(0.1, 0.0, 0.2)).high is None
    assert st.ratio_of_estimates(other, Estimate(0.0, 0.0, 0.2)).value is None
    assert st.ratio_of_estimates(Estimate(0.5), other).value is None
