"""Figures that are better nearer to 0, such as PrivLeak."""

import numpy as np
import pytest

from overpaint.grid.directions import BETTER
from overpaint.report.directions import ARROWS, folded, loss
from overpaint.report.fronts import better
from overpaint.report.ranks import mean_ranks
from overpaint.report.standings import standings
from overpaint.report.statistics import Estimate


def test_every_direction_has_an_arrow_and_words():
    assert set(BETTER) == set(ARROWS) - {""}
    assert [loss([-60, 0, 40], direction).tolist() for direction in BETTER] == [[60, 0, -40], [-60, 0, 40], [60, 0, 40]]


@pytest.mark.parametrize(
    ("low", "high", "ends"), [(32, 48, (32, 48)), (-68, -52, (52, 68)), (-3, 8, (0, 8)), (-8, 3, (0, 8))]
)
def test_an_interval_is_folded_at_0(low, high, ends):
    found = folded(Estimate((low + high) / 2, low, high, p_value=0.01), "zero")
    assert (found.low, found.high) == ends and found.low <= found.value <= found.high
    assert found.p_value is None, "the test of a difference says nothing of distances from 0"
    assert folded(Estimate(-1.0, -2.0, 0.0), "down") == Estimate(-1.0, -2.0, 0.0)


def test_the_ideal_is_best_and_not_the_largest():
    figures = {"over": Estimate(40.0, 32, 48), "ideal": Estimate(1.0, -7, 9), "near": Estimate(-4.0, -12, 4)}
    figures["under"] = Estimate(-60.0, -68, -52)

    def never(one, other):
        raise AssertionError("a difference of values is no difference of distances")

    assert standings(figures, "zero", never) == {"ideal": "best", "near": "tied"}


def test_ranks_and_fronts_take_the_distance():
    values = np.array([[40.0, 0.1], [1.0, 0.2], [-60.0, 0.3]])
    ranks, _ = mean_ranks(values, ["zero", "down"])
    assert ranks.tolist() == [[2, 1], [1, 2], [3, 3]]
    (dominates,) = better(values[None], ["zero", "down"])
    assert dominates.tolist() == [[False, False, True], [False, False, True], [False, False, False]]
