"""The closed-form solve against its identities and an independent least-squares solution."""

import math

import pytest
import torch

from overpaint.blocks.ridge import edit, factor, gram
from overpaint.errors import UserError
from overpaint.models.diffusion import Projection
from overpaint.models.erasure import LowRank, Replacement


def rows(n, width=12, seed=0):
    return torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def projection(outputs=9, width=12, seed=7):
    layer = torch.nn.Linear(width, outputs, bias=False, dtype=torch.float64)
    layer.weight.data = rows(outputs, width, seed)
    return Projection("w", "key", layer)


def solve(K, G, P, ridge, edit_weight=1.0, keep_weight=1.0):
    layer = projection()
    shared = factor(K, gram([P], K), ridge, edit_weight, keep_weight)
    return edit([layer], shared, lambda W: (G - K) @ W.T)["w"].apply(layer.weight)


def test_agrees_with_least_squares_on_stacked_rows():
    K, G, P, W = rows(3), rows(3, seed=1), rows(4, seed=2), projection().weight
    stacked = torch.cat([2**0.5 * K, 0.3**0.5 * P, 0.5**0.5 * torch.eye(12, dtype=torch.float64)])
    wanted = torch.cat([2**0.5 * G @ W.T, 0.3**0.5 * P @ W.T, 0.5**0.5 * W.T])
    expected = torch.linalg.lstsq(stacked, wanted).solution.T
    torch.testing.assert_close(solve(K, G, P, 0.5, 2.0, 0.3), expected, rtol=1e-10, atol=1e-10)


def test_one_pair_is_the_sherman_morrison_formula():
    K, G, W = rows(1), rows(1, seed=1), projection().weight
    c, s = K[0], G[0]
    expected = W + torch.outer(W @ (s - c), c) / (0.5 + c @ c)
    torch.testing.assert_close(solve(K, G, rows(0), 0.5), expected, rtol=1e-12, atol=1e-12)


def test_the_change_does_nothing_outside_the_keys():
    K, G = rows(3), rows(3, seed=1)
    change = solve(K, G, rows(0), 0.5) - projection().weight
    free = torch.linalg.svd(K, full_matrices=True).Vh[3:]
    assert (change @ free.T).abs().max() < 1e-12


def test_a_large_ridge_keeps_the_weights():
    change = solve(rows(3), rows(3, seed=1), rows(0), 1e11) - projection().weight
    assert change.abs().max() < 1e-8


def test_heavily_preserved_rows_keep_their_outputs():
    K, G, P, W = rows(2), rows(2, seed=1), rows(3, seed=2), projection().weight
    changed = solve(K, G, P, 0.5, keep_weight=1e9)
    torch.testing.assert_close(P @ changed.T, P @ W.T, rtol=0, atol=1e-7)
    assert (K @ (changed - W).T).abs().max() > 0.1


def test_order_scale_and_repetition_of_rows():
    K, G, P = rows(3), rows(3, seed=1), rows(4, seed=2)
    reference = solve(K, G, P, 0.5)
    torch.testing.assert_close(solve(K.flip(0), G.flip(0), P.flip(0), 0.5), reference, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(solve(K, G, P, 1.5, 3.0, 3.0), reference, rtol=1e-12, atol=1e-12)
    twice = solve(K[[0, 0]], G[[0, 0]], P, 0.5)
    torch.testing.assert_close(twice, solve(K[:1], G[:1], P, 0.5, edit_weight=2.0), rtol=1e-12, atol=1e-12)


def test_factors_are_kept_where_they_are_smaller():
    layer = projection()
    for n, kind in ((2, LowRank), (8, Replacement)):
        K = rows(n)
        changes = edit([layer], factor(K, gram([], K), 0.5), lambda W, K=K: -K @ W.T)
        assert type(changes["w"]) is kind


def test_a_singular_problem_is_refused():
    K = rows(3)
    with pytest.raises(UserError, match=r"lamb=0.*singular"):
        factor(K, gram([], K), 0.0)
    factor(K, gram([rows(40, seed=3)], K), 0.0)


@pytest.mark.parametrize("n", [3, 12, 40])
def test_shifted_rows_are_the_plain_edit_however_many(n):
    K, G, layer = rows(n), rows(n, seed=1), projection()
    shared = factor(K, gram([rows(4, seed=2)], K), 0.5)
    plain = edit([layer], shared, lambda W: (G - K) @ W.T)["w"].apply(layer.weight)
    shifted = shared.text_map(G - K).changes([layer])["w"]
    torch.testing.assert_close(shifted.apply(layer.weight), plain, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("first", "second"), [(2, 3), (2, 40), (40, 2), (7, 7)])
def test_one_map_after_another_is_both_edits_in_turn(first, second):
    layer = projection()
    maps = [
        factor(rows(n), gram([rows(4, seed=2)], rows(n)), 0.5).text_map(rows(n, seed=1) - rows(n))
        for n in (first, second)
    ]
    W = layer.weight
    for each in maps:
        W = W + W @ each.T
    both = maps[0].then(maps[1])
    torch.testing.assert_close(both.changes([layer])["w"].apply(layer.weight), W, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(layer.weight @ both.matrix, W, rtol=1e-11, atol=1e-11)


def exactly(K, G, P, ridge=0.5):
    return solve(K, G, P, ridge, math.inf)


def test_an_infinite_weight_gives_exactly_the_wanted_outputs_at_the_smallest_cost():
    K, G, P, W = rows(3), rows(3, seed=1), rows(4, seed=2), projection().weight
    found = exactly(K, G, P)
    torch.testing.assert_close(K @ found.T, G @ W.T, rtol=0, atol=1e-12)
    C = 0.5 * torch.eye(12, dtype=torch.float64) + P.T @ P
    cost = torch.trace((found - W) @ C @ (found - W).T)
    free = torch.linalg.svd(K, full_matrices=True).Vh[3:]  # directions in which the outputs of K do not change
    for seed in range(5):
        other = found + 1e-3 * rows(9, 9, seed) @ free
        torch.testing.assert_close(K @ other.T, G @ W.T, rtol=0, atol=1e-12)
        assert torch.trace((other - W) @ C @ (other - W).T) > cost


def test_the_ridge_comes_as_close_to_the_constraint_as_its_weight_is_large():
    K, G, P = rows(3), rows(3, seed=1), rows(4, seed=2)
    limit = exactly(K, G, P)
    distances = [float((solve(K, G, P, 0.5, weight) - limit).norm()) for weight in (1e2, 1e4, 1e6)]
    assert distances[0] > 1e-3
    for near, far in zip(distances[1:], distances, strict=False):
        assert near == pytest.approx(far / 100, rel=0.1)


def test_rows_that_depend_on_each_other_are_the_limit_too():
    """A row twice, with two wanted outputs: the constraint cannot hold, and both limits are at their mean."""
    K, G, P, W = rows(2)[[0, 1, 1]], rows(3, seed=1), rows(4, seed=2), projection().weight
    found = exactly(K, G, P)
    torch.testing.assert_close(K @ found.T, torch.stack([G[0], G[1:].mean(0), G[1:].mean(0)]) @ W.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(solve(K, G, P, 0.5, 1e6), found, rtol=0, atol=1e-4)


@pytest.mark.parametrize("n", [3, 12])
def test_shifted_rows_under_the_constraint(n):
    K, G, layer = rows(n), rows(n, seed=1), projection()
    shared = factor(K, gram([rows(4, seed=2)], K), 0.5, math.inf)
    plain = edit([layer], shared, lambda W: (G - K) @ W.T)["w"].apply(layer.weight)
    shifted = shared.text_map(G - K).changes([layer])["w"]
    torch.testing.assert_close(shifted.apply(layer.weight), plain, rtol=1e-9, atol=1e-9)
