"""Ranks of methods and their intervals."""

import math
from itertools import combinations

import numpy as np

from overpaint.report.ranks import _compared, _gaps, alike, rank_intervals, rank_intervals_over_concepts
from overpaint.report.statistics import paired_difference


def test_rank_intervals():
    rng = np.random.default_rng(0)
    values = (rng.random((4, 200)) < [[0.9], [0.5], [0.5], [0.1]]).astype(float)
    values[2] = values[1]
    up, down = rank_intervals(values), rank_intervals(values, "down")
    assert [e.value for e in up] == [1, 2, 2, 4]
    assert [e.value for e in down] == [4, 2, 2, 1]
    assert (up[0].low, up[0].high) == (1, 1)
    close = rank_intervals(np.stack([values[1], rng.permutation(values[1])]))
    assert {(e.low, e.high) for e in close} == {(1.0, 2.0)}
    values[0, 0] = math.nan
    assert rank_intervals(values)[3].failed == 1


def test_ranks_over_other_concepts():
    """The tests are Student's t of the differences of concepts, and no stricter than those for these concepts."""
    rng = np.random.default_rng(1)
    values = np.clip([[0.9], [0.5], [0.5], [0.1]] + 0.05 * rng.normal(size=(4, 8)), 0, 1)
    up, down = (rank_intervals_over_concepts(values, direction) for direction in ("up", "down"))
    assert [(e.low, e.high) for e in up] == [(1, 1), (2, 3), (2, 3), (4, 4)] and up[0].n == 8
    assert [(e.low, e.high) for e in down] == [(4, 4), (2, 3), (2, 3), (1, 1)]
    assert (up[0].value, up[3].value) == (1, 4) and {e.value for e in up} == {1, 2, 3, 4}
    assert {(e.low, e.high) for e in rank_intervals_over_concepts(values, "up", np.ones((4, 4)))} == {(1, 4)}
    assert {(e.low, e.high) for e in rank_intervals_over_concepts(values[:, :4])} == {(None, None)}
    one_concept = np.zeros((2, 8))
    one_concept[0, 0] = 1.0  # one concept alone does not tell of others
    assert {(e.low, e.high) for e in rank_intervals_over_concepts(one_concept)} == {(1, 2)}


def test_equal_methods_share_their_ranks():
    """All methods are equal: every interval contains rank 1, which a bootstrap of ranks misses."""
    rng = np.random.default_rng(0)
    missed = [sum(e.low > 1 for e in rank_intervals(rng.random((5, 40)) < 0.5)) for _ in range(60)]
    assert sum(missed) <= 0.05 * 5 * 60


def test_shares_of_several_seeds_are_compared_as_shares_in_both_directions():
    """Beyond the few seeds that are compared all at once."""
    rng = np.random.default_rng(2)
    shares, runs, prompts = rng.random((3, 120)) < [[0.2], [0.4], [0.9]], np.repeat(range(4), 30), np.tile(range(30), 4)
    up, down = (rank_intervals(v, to, prompts, runs=runs) for v, to in ((shares, "up"), (~shares, "down")))
    assert up == down
    gaps = [paired_difference(~a, ~b, prompts, runs=runs) for a, b in combinations(shares, 2)]
    found = _gaps(*_compared(shares, "up", prompts, None, runs, None, None))
    assert found == [(e.value, e.p_value) for e in gaps] and all(e.p_equivalence is not None for e in gaps)


def test_concepts_weigh_equally_in_ranks_and_groups_whatever_their_number_of_strata():
    strata = np.repeat(range(20), 10)
    concepts = np.where(strata < 2, 0, 1)
    weights = 1 / np.where(concepts == 0, 2, 18)
    first = np.where(concepts == 0, 1.0, np.arange(200) % 10 < 6)  # 1.0 and 0.6
    second = np.where(concepts == 0, np.arange(200) % 10 / 10 >= 0.5, np.arange(200) % 10 < 8)  # 0.5 and 0.8
    values, groups = np.stack([first, second]), {"strata": strata, "concepts": concepts, "weights": weights}
    assert [e.value for e in rank_intervals(values, "up", **groups)] == [1, 2]
    assert alike(values, "up", **groups)[0][0] == 0
    found = paired_difference(first, second, **groups)
    assert np.isclose(found.value, 0.8 - 0.65)
    assert [e.value for e in rank_intervals(values, "up", strata=strata)] == [2, 1], (
        "strata weigh equally without weights"
    )
