"""Figures of membership: rates at few false positives, whose interval has the error of the threshold."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, norm

from overpaint.metrics.gold import PrivLeakGold
from overpaint.metrics.membership import LeakageAuc, LeakageTpr, PrivLeak, correlation, sides, thresholds_around
from overpaint.metrics.metric import Evidence
from overpaint.report import areas


def scored(members, held_out):
    """A frame of the stage *membership* with these losses."""
    losses = np.concatenate([members, held_out])
    return pd.DataFrame({"image": range(len(losses)), "member": np.arange(len(losses)) < len(members), "loss": losses})


def measured(metric, members, held_out, original=None):
    frame = scored(members, held_out)
    other = frame if original is None else scored(*original)
    images = pd.DataFrame()
    return metric.measure(Evidence((), images, images, membership=frame, membership_original=other))


@pytest.mark.parametrize(("count", "defined"), [(99, False), (100, True)])
def test_a_rate_at_one_per_cent_needs_a_hundred_held_out_images(count, defined):
    figure = measured(LeakageTpr(), np.linspace(-1, 0, 200), np.linspace(0.5, 1, count))
    assert (figure.value is not None) == defined
    if not defined:
        assert figure.why == "99 held-out images: a rate at 1% false positives needs at least 100"
    for other in (LeakageAuc(), PrivLeak()):
        assert measured(other, np.linspace(-1, 0, 200), np.linspace(0.5, 1, count)).value is not None


def test_scores_that_failed_do_not_count_as_held_out_images():
    held_out = np.where(np.arange(102) < 3, np.nan, 1.0)
    assert measured(LeakageTpr(), np.zeros(102), held_out).why.startswith("99 held-out images")


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0, 3.5])
def test_the_interval_covers_the_true_rate(shift):
    """Losses are normal, those of members smaller by ``shift``. A percentile bootstrap contains the true rate in 77 % of the
    data sets."""
    rng, metric, truth = np.random.default_rng(0), LeakageTpr(), norm.cdf(norm.ppf(0.01) + shift)
    found = [metric.estimate((rng.standard_normal(200) - shift, rng.standard_normal(200))) for _ in range(300)]
    assert all(e.low <= e.value <= e.high for e in found)
    assert np.mean([e.low <= truth <= e.high for e in found]) >= 0.93


@pytest.mark.parametrize(("count", "first", "last"), [(200, -np.inf, 5), (367, -np.inf, 8), (368, 0, 8), (1000, 3, 17)])
def test_limits_of_the_threshold_are_scores(count, first, last):
    found = thresholds_around(np.arange(float(count)))
    assert found == (first, last)
    assert binom.cdf(last, count, 0.01) >= 0.975 and binom.cdf(first, count, 0.01) <= 0.025


def test_the_difference_to_the_unedited_model_agrees_with_its_interval():
    rng = np.random.default_rng(0)
    held_out = rng.standard_normal(1000)
    known, forgotten = rng.standard_normal(1000) - 4, rng.standard_normal(1000)
    figure = measured(LeakageTpr(), forgotten, held_out, (known, held_out))
    assert figure.difference < -0.8 and figure.difference_high < 0 and figure.p_value < 0.05
    same = measured(LeakageTpr(), known, held_out)
    assert (same.difference, same.p_value) == (0, 1) and same.difference_low < 0 < same.difference_high


def test_separated_scores_have_an_interval():
    """Resampled areas of separated scores are all 1."""
    apart = -1 - np.arange(20) / 20, np.arange(20) / 20
    area, leak = measured(LeakageAuc(), *apart), measured(PrivLeak(), *apart)
    assert (area.value, area.high) == (1, 1) and 0.85 < area.low < 0.95
    assert (leak.value, leak.low) == (-100, -100) and leak.high == pytest.approx(100 * (1 - 2 * area.low))


def test_models_are_compared_on_the_same_images():
    rng = np.random.default_rng(0)
    members, held_out = rng.standard_normal(100) - 1, rng.standard_normal(100)
    nearly = members + 0.1 * rng.standard_normal(100) + 0.1, held_out + 0.1 * rng.standard_normal(100)
    figure = measured(LeakageAuc(), members, held_out, nearly)
    width, apart = figure.high - figure.low, figure.difference_high - figure.difference_low
    assert figure.difference == pytest.approx(figure.value - figure.original) and apart < width / 3
    same = measured(LeakageAuc(), members, held_out)
    assert (same.difference, same.p_value) == (0, 1) and same.difference_low <= 0 <= same.difference_high


def test_a_failed_score_leaves_its_image_out_of_the_correlation():
    rng = np.random.default_rng(0)
    members, held_out = rng.standard_normal(30) - 1, rng.standard_normal(30)
    holed, other = np.where(np.arange(30) < 1, np.nan, members), rng.standard_normal((2, 30))
    assert measured(LeakageAuc(), holed, held_out, (members, held_out)).failed == 1
    wanted = areas.correlation((members[1:], held_out), (other[0][1:], other[1]))
    assert correlation((holed, held_out), tuple(other)) == wanted != 0


def test_privleak_with_a_gold_is_a_ratio_of_areas():
    rng = np.random.default_rng(0)
    frames = [scored(rng.standard_normal(60) - shift, rng.standard_normal(60)) for shift in (1.5, 0.0)]
    images = pd.DataFrame()
    evidence = Evidence((), images, images, membership=frames[0], membership_gold=frames[1])
    own, gold = (LeakageAuc().estimate(sides(frame, "loss")).value for frame in frames)
    figure = PrivLeakGold().measure(evidence)
    assert figure.value == pytest.approx(100 * ((1 - own) / (1 - gold) - 1))
    assert figure.low < figure.value < figure.high < 0
    equal = PrivLeakGold().measure(Evidence((), images, images, membership=frames[0], membership_gold=frames[0]))
    assert equal.value == 0 and equal.low <= 0 <= equal.high
