"""Power of the paired tests against closed forms."""

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from overpaint.report import scores
from overpaint.report.power import (
    largest_share_shown_equal,
    power_of_equality,
    power_of_paired_difference,
    smallest_detectable_difference,
)


def test_smallest_detectable_difference():
    alone = smallest_detectable_difference(1000)
    assert alone == pytest.approx((1.96 + 0.8416) * math.sqrt(0.25 / 1000), rel=0.01)
    assert smallest_detectable_difference(2000) < alone
    assert smallest_detectable_difference(1000, seeds=4) < alone
    assert smallest_detectable_difference(1000, seeds=4, within_prompt=1.0) == pytest.approx(alone, rel=0.01)
    assert smallest_detectable_difference(1) is None
    assert smallest_detectable_difference(2) is None
    assert smallest_detectable_difference(24, tests=5) > smallest_detectable_difference(24)


def test_the_power_of_many_pairs_is_the_textbook_one():
    """If one pair in four differs by chance, the difference is z + z_power standard errors of sqrt(0.25 / n)."""
    gap = 2 * math.sqrt(0.25 / 4000)
    assert power_of_paired_difference(gap, 4000) == pytest.approx(norm.cdf(2 - 1.959964), abs=0.01)
    assert power_of_paired_difference(0.0, 100) == pytest.approx(0.05, abs=0.01)


def test_the_power_of_few_pairs_is_the_sum_over_outcomes():
    """All differing pairs are gained: four or more of 24 are needed."""
    gap = 0.3
    assert power_of_paired_difference(gap, 24, rate=0.0) == pytest.approx(binom.sf(3, 24, gap))


def test_equality_is_shown_from_twenty_five_pairs_on():
    assert largest_share_shown_equal(24) is None and largest_share_shown_equal(1) is None
    few, many = largest_share_shown_equal(50), largest_share_shown_equal(500)
    assert 0 < few < many < 1
    assert power_of_equality(few, 50) == pytest.approx(0.8, abs=1e-3)
    assert largest_share_shown_equal(50, tests=5) < few
    assert 0 < largest_share_shown_equal(40, seeds=3) < largest_share_shown_equal(200, seeds=3)
    assert largest_share_shown_equal(24, seeds=10) is None, "pairs that agree are no more than prompts"


@pytest.mark.parametrize(("prompts", "seeds", "differing"), [(40, 3, 0.05), (40, 3, 0.02), (60, 3, 0.1), (50, 2, 0.04)])
def test_the_power_of_equality_with_several_seeds_is_that_of_simulated_tests(prompts, seeds, differing):
    """Few prompts have differing pairs, so the test uses Student's t: the power of 40 x 3 pairs, 5 % of which differ, is 0.70."""
    rng, sets = np.random.default_rng(0), 2_000
    chances = [differing / 2, 1 - differing, differing / 2]
    shared, own = (rng.choice([-1, 0, 1], p=chances, size=(sets, prompts, n)) for n in (1, seeds))
    values = np.where(rng.random(own.shape) < math.sqrt(0.3), shared, own).reshape(sets, -1)
    of = scores.sample(values, np.repeat(np.arange(prompts), seeds), np.zeros(prompts * seeds, int), images=2)
    below, above = (scores.difference_score(of, np.full(sets, margin)) for margin in (-0.1, 0.1))
    equal = np.maximum(scores.p_value(of, below, sides=1), scores.p_value(of, -above, sides=1)) < 0.05
    assert power_of_equality(differing, prompts, seeds) == pytest.approx(equal.mean(), abs=0.04)
    if (prompts, seeds, differing) == (40, 3, 0.05):
        assert power_of_equality(differing, prompts, seeds) == pytest.approx(0.70, abs=0.04)
