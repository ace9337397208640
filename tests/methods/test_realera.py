"""RealEra's identities. There is no official code to compare with."""

import numpy as np
import pytest
import torch

import overpaint
from official import changed, distance, watched
from overpaint.blocks.draws import Draws, replayed
from overpaint.blocks.ridge import factor
from overpaint.blocks.text_rows import TextRows
from overpaint.methods.realera import Neighbourhood

CLOSED = {"erase": ["snoopy"], "anchor": "cat", "retain": ["bird", "ship"], "iterations": 0}
TRAINED = CLOSED | {"iterations": 2, "pictures": 2, "picture_steps": 1, "batch_size": 2, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def row():
    return torch.randn(768, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_neighbours_meet_both_conditions(row):
    drawn = Neighbourhood(0.0, 0.9, 0.8, 0.95).sample(row, 500, Draws(0), "neighbours")
    assert drawn.shape == (500, 768)
    distance = (drawn - row).norm(dim=1) / row.norm()
    cosine = torch.nn.functional.cosine_similarity(drawn, row[None])
    assert distance.min() > 0 and distance.max() <= 0.9
    assert cosine.min() >= 0.8 and cosine.max() <= 0.95


def test_distances_are_even_and_directions_have_no_preference(row):
    drawn = Neighbourhood(0.5, 1.5, -1.0, 1.0).sample(row, 4000, Draws(0), "beyond")
    distance = (drawn - row).norm(dim=1) / row.norm()
    assert distance.min() >= 0.5 and distance.max() <= 1.5
    assert abs(distance.mean() - 1) < 0.02 and abs(distance.std() - 12**-0.5) < 0.02
    assert (drawn - row).mean(dim=0).norm() < 0.03 * row.norm()


@pytest.mark.parametrize("distance", [0.25, 0.5, 1.0])
def test_the_cosine_follows_from_the_distance(row, distance):
    """In 768 dimensions η is nearly orthogonal to e: cos = 1/√(1 + r²/‖e‖²)."""
    drawn = Neighbourhood(distance, distance, -1.0, 1.0).sample(row, 300, Draws(0), "neighbours")
    cosine = torch.nn.functional.cosine_similarity(drawn, row[None])
    assert abs(cosine.mean() - (1 + distance**2) ** -0.5) < 2e-3 and cosine.std() < 0.03


def test_a_smallest_cosine_is_a_largest_distance(row):
    """S₁ accepts r ≤ ‖e‖ √(1/S₁² − 1), which is 0.75 ‖e‖ at 0.8."""
    drawn = Neighbourhood(0.0, 1.5, 0.8, 1.0).sample(row, 2000, Draws(0), "neighbours")
    distance = (drawn - row).norm(dim=1) / row.norm()
    assert abs(distance.max() - 0.75) < 0.06 and abs(distance.mean() - 0.375) < 0.02


def test_accepted_neighbours_follow_the_sampling_rule_in_few_dimensions():
    """Where η is far from orthogonal to e: with ρ = ‖η‖/‖e‖ even on (0, D₁] and c = cos(η, e), whose density on the sphere
    is ∝ (1 − c²)^((d − 3)/2), cos(e, e + η) = (1 + ρc)/√(1 + 2ρc + ρ²) is accepted from S₁ to S₂; means on a grid."""
    d, farthest, lowest, highest = 6, 1.5, 0.7, 0.97
    e = np.random.default_rng(0).standard_normal(d) * 3

    rho = (np.arange(1500)[:, None] + 0.5) / 1500 * farthest
    angle = (np.arange(3000)[None] + 0.5) / 3000 * np.pi
    c = np.cos(angle)
    cosine = (1 + rho * c) / np.sqrt(1 + 2 * rho * c + rho**2)
    density = np.sin(angle) ** (d - 2) * ((lowest <= cosine) & (cosine <= highest))  # with dc = sin dθ
    expected = {"rho": rho, "c": c, "cosine": cosine}
    drawn = (
        Neighbourhood(0.0, farthest, lowest, highest).sample(torch.tensor(e), 40_000, Draws(1), "neighbours").numpy()
    )
    eta = drawn - e
    length = np.linalg.norm(e)
    found = {
        "rho": np.linalg.norm(eta, axis=1) / length,
        "c": eta @ e / length / np.linalg.norm(eta, axis=1),
        "cosine": drawn @ e / length / np.linalg.norm(drawn, axis=1),
    }
    for name, values in found.items():
        mean = (density * expected[name]).sum() / density.sum()
        assert abs(values.mean() - mean) < 5 * values.std() / len(values) ** 0.5 + 1e-3, name
    across = np.linalg.svd(e[None])[2][1:]  # (d − 1, d): around e there is no preferred direction
    spread = (eta @ across.T).T @ (eta @ across.T) / len(eta)
    assert np.abs(spread - np.eye(d - 1) * np.trace(spread) / (d - 1)).max() < 0.02 * np.trace(spread)


def test_unfiltered_neighbours_have_the_variance_that_shrinks():
    """E ηηᵀ = D₁²‖e‖²/(3d) · I, because E r² = D₁²‖e‖²/3 and directions are uniform."""
    e = np.array([2.0, -1.0, 0.5, 3.0])
    eta = Neighbourhood(0.0, 0.8, -1.0, 1.0).sample(torch.tensor(e), 40_000, Draws(2), "neighbours").numpy() - e
    variance = 0.8**2 * (e @ e) / (3 * len(e))
    np.testing.assert_allclose(eta.T @ eta / len(eta), variance * np.eye(len(e)), atol=0.03 * variance)


def test_equal_seeds_draw_equal_neighbours(row):
    around = Neighbourhood(0.0, 0.9, 0.8, 1.0)
    one, two, other = (around.sample(row, 5, Draws(seed), "neighbours") for seed in (3, 3, 4))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_no_neighbour_anywhere_is_an_error(row):
    with pytest.raises(overpaint.UserError, match="is incompatible with min_cosine"):
        Neighbourhood(0.9, 1.0, 0.99, 1.0).sample(row, 5, Draws(0), "neighbours")


@pytest.mark.parametrize("values", [{"neighbours": 0}, {"radius": 0.0}, {"radius": 0.0, "beyond_radius": 0.0}])
def test_without_neighbours_it_is_uce(tiny_sd_float64, values):
    ours = changed(tiny_sd_float64, "realera", **CLOSED, **values)
    uce = changed(tiny_sd_float64, "uce", variant="legacy", **{k: v for k, v in CLOSED.items() if k != "iterations"})
    assert ours.keys() == uce.keys()
    for name in uce:
        torch.testing.assert_close(ours[name], uce[name], rtol=0, atol=1e-10)


def test_the_closed_form_is_least_squares_over_the_neighbourhood(tiny_sd_float64):
    """Compared with rows stacked in the test: neighbours with weight 1/3 each, retained rows with β, λ, and rows beyond."""
    model = tiny_sd_float64
    near, beyond = (torch.randn(n, 48, dtype=torch.float64) for n in (2, 5))
    with replayed({"neighbours.0": near, "beyond.0": beyond}):
        ours = changed(model, "realera", neighbours=2, beyond_samples=5, preserve_scale=0.2, lamb=0.3, **CLOSED)
    rows = TextRows(model, ["snoopy", "cat", "", "bird", "ship"])
    E, G = rows.tails("snoopy", "cat")
    kept = torch.cat([rows.all(text) for text in ("", "bird", "ship")])
    for projection in model.projections("key", "value"):
        W = projection.weight
        terms = [  # keys, wanted outputs, weight
            (torch.cat([E[:1], near]), G[:1].expand(3, -1) @ W.T, 1 / 3), (E[1:], G[1:] @ W.T, 1.0),
            (kept, kept @ W.T, 0.2), (beyond, beyond @ W.T, 0.2 / 5), (torch.eye(48), W.T, 0.3),
        ]  # fmt: skip
        K, V = (torch.cat([term[part].double() * term[2] ** 0.5 for term in terms]) for part in (0, 1))
        expected = torch.linalg.lstsq(K, V).solution.T
        torch.testing.assert_close(ours[projection.name], expected, rtol=0, atol=1e-8)


def test_two_concepts_are_solved_for_together(tiny_sd_float64):
    """(λW + Σ w VᵀK)(λI + Σ w KᵀK)⁻¹ in numpy with the rows cut by hand: each concept's neighbourhood weighs 1 in all, rows
    to the end of the padding 1 each, retained rows β = 1/3 by UCE's rule, and each concept's rows beyond β in all."""
    model, d = tiny_sd_float64, 48
    rng = np.random.default_rng(5)
    near, beyond = rng.standard_normal((2, 3, d)), rng.standard_normal((2, 4, d))
    records = {
        f"{name}.{i}": torch.tensor(rows[i])
        for name, rows in (("neighbours", near), ("beyond", beyond))
        for i in (0, 1)
    }
    pairs = [("snoopy", "cat"), ("dog", "the old bird")]
    with replayed(records):
        ours = changed(
            model, "realera", erase=[c for c, _ in pairs], anchor=[a for _, a in pairs], retain=["ship", "mouse"],
            neighbours=3, beyond_samples=4, lamb=0.3, iterations=0,
        )  # fmt: skip
    encoded = {
        text: model.encode([text])[0].double().numpy()
        for text in ("snoopy", "cat", "dog", "the old bird", "", "ship", "mouse")
    }
    last = {text: len(model.tokenizer(text)["input_ids"]) - 2 for text in encoded}
    beta, terms = 1 / 3, []  # terms: (key rows, rows whose outputs are wanted there, weight)
    for i, (concept, anchor) in enumerate(pairs):
        E, G = encoded[concept][last[concept] :], encoded[anchor][last[anchor] :]
        length = min(len(E), len(G))
        around = np.vstack([E[:1], near[i]])
        terms += [
            (around, np.repeat(G[:1], 4, axis=0), 1 / 4),
            (E[1:length], G[1:length], 1.0),
            (beyond[i], beyond[i], beta / 4),
        ]
    terms += [(encoded[text], encoded[text], beta) for text in ("", "ship", "mouse")]
    A = 0.3 * np.eye(d) + sum(w * K.T @ K for K, _, w in terms)
    for projection in model.projections("key", "value"):
        W = projection.weight.numpy()
        expected = (0.3 * W + sum(w * (V @ W.T).T @ K for K, V, w in terms)) @ np.linalg.inv(A)
        assert distance(ours[projection.name], torch.tensor(expected), projection.weight) < 1e-9


def test_neighbours_alone_shrink_the_matrix(row):
    """The reason for the terms beyond: W becomes λ/(λ + σ²) W in every direction but the concept's, σ² = E r²/d."""
    e, ridge = row[:24], 2.0
    W, m = (torch.randn(n, 24, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (8, 1))
    near = Neighbourhood(0.0, 3.0, -1.0, 1.0).sample(e, 50_000, Draws(0), "neighbours")
    weight = len(near) ** -0.5
    shared = factor(near * weight, torch.zeros(24, 24, dtype=torch.float64), ridge)
    after = W + W @ (m - near).T * weight @ shared.down
    across = torch.linalg.svd(e[None]).Vh[1:]  # directions (23, 24) orthogonal to e
    variance = 3**2 / 3 * float(e.norm() ** 2) / 24
    torch.testing.assert_close(after @ across.T, ridge / (ridge + variance) * W @ across.T, rtol=0, atol=0.05)


def test_a_great_weight_beyond_keeps_those_outputs(tiny_sd_float64):
    model = tiny_sd_float64
    ours = changed(model, "realera", preserve_scale=1e9, **CLOSED)
    rows = torch.cat([model.encode([text])[0] for text in ("", "bird", "ship")])
    for projection in model.projections("key", "value"):
        before = rows @ projection.weight.T
        assert ((rows @ ours[projection.name].T) - before).norm() < 1e-5 * before.norm()


def test_training_starts_from_the_closed_form(tiny_sd_float64):
    """The trained factor starts at zero, so without training the result is the closed form."""
    idle = changed(tiny_sd_float64, "realera", **(TRAINED | {"learning_rate": 0}))
    closed = changed(tiny_sd_float64, "realera", **CLOSED)
    moved = changed(tiny_sd_float64, "realera", **TRAINED)
    for name in closed:
        torch.testing.assert_close(idle[name], closed[name], rtol=0, atol=1e-12)
    assert any(not torch.equal(moved[name], closed[name]) for name in closed)


def test_the_first_loss_follows_from_the_predictions(tiny_sd_float64):
    model = tiny_sd_float64
    settings = TRAINED | {"iterations": 1, "retain": []}
    x0, noise, t = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.tensor([100, 800])
    eta = torch.randn(2, 48, dtype=torch.float64)
    with watched({"x0.0": x0, "noise.0": noise, "t.0": t, "eta.0": eta}) as seen:
        overpaint.erase(model, "realera", **settings, beyond_weight=3.0)
    x_t = model.add_noise(x0.double(), noise.double(), t)
    closed = overpaint.erase(model, "realera", **(CLOSED | {"retain": []}))
    with torch.no_grad():
        plain = {text: model.encode([text]).repeat(2, 1, 1) for text in ("snoopy", "cat", "")}
        near = plain["snoopy"].clone()
        near[:, model.last_subject_token("snoopy")] = eta
        targets = {text: model.predict(x_t, t, plain[text]) for text in ("cat", "")}
        with closed.attached(model):
            ours = {"cat": model.predict(x_t, t, near), "": model.predict(x_t, t, plain[""])}
    erased, kept = (float(torch.nn.functional.mse_loss(ours[text], targets[text])) for text in ("cat", ""))
    terms, step = seen
    assert abs(float(terms["erased"]) / erased - 1) < 1e-5 and abs(float(terms["kept"]) / kept - 1) < 1e-4
    assert abs(float(step["loss"]) / (erased + 3 * kept) - 1) < 1e-5


def test_only_keys_and_values_change(tiny_sd):
    erasure = overpaint.erase(tiny_sd, "realera", **TRAINED)
    assert set(erasure.changes) == {p.name for p in tiny_sd.projections("key", "value")}


@pytest.mark.parametrize(
    "values",
    [
        {"radius": -1.0},
        {"min_cosine": 0.9, "max_cosine": 0.8},
        {"max_cosine": 1.5},
        {"beyond_radius": 0.1},
        {"rank": 0},
    ],
)
def test_settings_that_mean_nothing_are_refused(tiny_sd, values):
    with pytest.raises(overpaint.UserError, match=list(values)[-1]):
        overpaint.erase(tiny_sd, "realera", erase=["dog"], **values)
