"""The closed-form solve against its identities and an independent least-squares solution."""

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
