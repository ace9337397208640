"""Figures of membership: rates at few false positives, whose interval has the error of the threshold."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, norm

from overpaint.metrics.membership import LeakageAuc, LeakageTpr, PrivLeak, thresholds_around
from overpaint.metrics.metric import Evidence


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
