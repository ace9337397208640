"""Do scores order methods as the distance to the gold reference does? Tau, its interval, and who takes part."""

import numpy as np
import pandas as pd
import pytest

from overpaint.report.records import RECORD_COLUMNS
from overpaint.report.rendering import render, tables
from overpaint.report.statistics import NORMAL, kendall_tau_b, taus_b
from overpaint.report.validity import (
    ALL,
    REACH,
    SAMPLES,
    STANDARDISED,
    USEFUL,
    Scored,
    Side,
    _agreement,
    _columns,
    _tests,
    agreements,
    attenuated,
)
from overpaint.report.views import view_named

CONCEPTS, METHODS = ("church", "car", "quillan", "sketch"), [f"method{n}" for n in range(12)]


def scored(values, error=0.01):
    """A column (concepts, methods) measured with one seed and this standard error."""
    return Scored(np.asarray(values, float)[:, :, None], np.full((*np.shape(values), 1), error), "up")


def records(columns, methods=METHODS):
    """Records of metrics: ``columns`` maps (metric, attack, direction) to values (concepts, methods)."""
    rows = []
    for (metric, attack, direction), values in columns.items():
        for concept, own in zip(CONCEPTS, values, strict=True):
            for method, value in zip(methods, own, strict=True):
                named = {"model": "m", "concepts": concept, "kind": "object", "method": method, "method_name": method}
                asked = {"attack": attack, "attack_name": attack, "metric": metric, "direction": direction, "seed": 0}
                figure = {
                    "value": value,
                    "low": value - 0.01,
                    "high": value + 0.01,
                    "n": 50,
                    "failed": 0,
                    "unit": "fraction",
                }
                rest = {
                    "facet": "efficacy",
                    "against": "original",
                    "why": "",
                    "scope": "",
                    "given": "{}",
                    "versions": "{}",
                }
                rows.append(dict.fromkeys(RECORD_COLUMNS) | named | asked | figure | rest)
    return pd.DataFrame(rows)


def said(notes):
    """The scores of each verdict below the table."""
    starts = {
        "orders": "Shown to order the methods",
        "for others": "Of these, also shown",
        "reverse": "Shown to order them in reverse",
        "little use": "Shown to be of little use",
        "none": "None of these is shown",
    }
    lines = {verdict: next(note for note in notes if note.startswith(start)) for verdict, start in starts.items()}
    names = {verdict: line.rsplit(": ", 1)[1].removesuffix(".") for verdict, line in lines.items()}
    return {verdict: [] if listed == "none" else listed.split(", ") for verdict, listed in names.items()}


@pytest.fixture
def distances():
    return np.random.default_rng(0).random((len(CONCEPTS), len(METHODS)))


def test_tau_of_samples_is_scipys_with_ties_and_gaps():
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 4, (50, 9)).astype(float), rng.integers(0, 4, (50, 9)).astype(float)
    x[0, 3] = np.nan
    expected = [kendall_tau_b(a[~np.isnan(a)], b[~np.isnan(a)]).value for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(taus_b(x, y), expected, atol=1e-12)


def test_a_score_that_equals_the_distance_orders_the_methods_and_a_random_one_is_not_shown_to(distances):
    rng = np.random.default_rng(2)
    near, random = scored(-distances), scored(rng.random(distances.shape))
    found, notes = agreements({"good": near, "random": random}, {"to gold": scored(-distances)})
    good, other = found["good"][0], found["random"][0]
    assert found[""] == ["to gold", REACH] and found["good"][1].value == pytest.approx(1, abs=0.05)
    assert good.value == pytest.approx(1) and good.low > 0.8
    assert other.low < 0 < other.high and abs(other.value) < 0.4
    assert said(notes) == {
        "orders": ["good"],
        "for others": ["good"],
        "reverse": [],
        "little use": ["random"],
        "none": [],
    }


@pytest.mark.parametrize("tau", [0.5, 1.0])
@pytest.mark.parametrize("error", [0.0, 0.5, 1.0])
def test_noise_attenuates_tau(tau, error):
    """Figures of 1,500 methods, normal with this tau (Greiner: correlation sin(π tau / 2)), and measured with noise."""
    rng, rho = np.random.default_rng(0), np.sin(np.pi * tau / 2)
    exact = rng.standard_normal((2, 1, 1500))
    exact[1] = rho * exact[0] + np.sqrt(1 - rho**2) * exact[1]
    sides = []
    for values in exact:
        measured = values + error * rng.standard_normal(values.shape)
        redrawn = measured + error * rng.standard_normal((400, *values.shape))
        sides.append(Side(measured, redrawn, np.ones(values.shape)))
    assert sides[0].reliability == pytest.approx(1 / (1 + error**2), abs=0.03)
    expected = attenuated(tau, sides[0].reliability * sides[1].reliability)
    assert kendall_tau_b(sides[0].values[0], sides[1].values[0]).value == pytest.approx(expected[0], abs=0.03)


def test_figures_that_are_all_equal_or_unknown_are_not_reliable():
    values = np.array([[0.5, 0.5, 0.5, 0.5], [np.nan] * 4, [0.0, 1.0, np.nan, 2.0]])
    assert Side(values, np.broadcast_to(values, (9, 3, 4)), np.ones((3, 4))).reliability.tolist() == [0, 0, 1]


def test_the_mean_of_several_seeds_has_less_noise():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1, 2000, 1)) + rng.standard_normal((1, 2000, 5))
    column = Scored(values, np.zeros_like(values), "up")
    drawn = column.drawn(rng.integers(5, size=(200, 2000)), rng)
    assert Side(column.means(), drawn, column.seeds()).reliability == pytest.approx(1 / 1.2, abs=0.05)


def test_a_perfect_score_that_is_measured_with_much_noise_is_not_called_useless():
    useless = measured = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        distance = rng.random((4, 20))
        noisy = scored(distance + 0.9 * rng.standard_normal(distance.shape), 0.9)
        found, notes = agreements({"score": noisy}, {"to gold": scored(distance)})
        measured += found["score"][0].high < USEFUL
        useless += "score" in said(notes)["little use"]
        assert found["score"][1].value < 0.4
    assert measured >= 4 and useless == 0


def test_the_interval_of_an_unrelated_score_holds_zero():
    held = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        sides = (scored(rng.random((4, 12)), 0.05) for _ in range(2))
        entry = agreements({"score": next(sides)}, {"to gold": next(sides)})[0]["score"][0]
        held.append(entry.low <= 0 <= entry.high)
    assert np.mean(held) >= 0.85  # four concepts: less than the nominal 0.95


def test_unrelated_scores_are_rarely_shown_to_order_the_methods(scores=15, concepts=4, tables_made=8):
    """Orders of few methods and concepts agree by chance, however exactly the figures are known."""
    uncorrected, shown = 0, 0
    for seed in range(tables_made):
        rng = np.random.default_rng(seed)
        columns = {f"score{n}": scored(rng.random((concepts, 12)), 0.02) for n in range(scores)}
        found, notes = agreements(columns, {"to gold": scored(rng.random((concepts, 12)), 0.02)})
        uncorrected += any(found[name][0].low > 0 for name in columns)
        shown += bool(said(notes)["orders"])
    assert uncorrected >= 4 and shown <= 1
    assert any(f"over the {scores} scores" in note for note in notes)


def test_a_score_that_orders_one_concept_only_is_shown_for_these_concepts_and_not_for_others():
    """Concepts that were measured need less than concepts that are a sample."""
    found = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        distance = rng.random((4, 25))
        score = np.array([distance[0], *rng.random((3, 25))])
        found.append(said(agreements({"score": scored(score)}, {"to gold": scored(distance)})[1]))
    assert sum(verdicts["orders"] == ["score"] for verdicts in found) >= 8
    assert sum(verdicts["for others"] == ["score"] for verdicts in found) <= 1


def test_a_reversed_score_is_said_to_be_reversed(distances):
    notes = agreements({"score": scored(distances)}, {"to gold": scored(-distances)})[1]
    assert said(notes)["reverse"] == ["score"] and said(notes)["orders"] == []


def test_a_distance_that_varies_more_dominates_the_mean_but_not_the_standardised_one():
    small, large = np.random.default_rng(4).random((2, 4, 12))
    found = agreements({"score": scored(-small)}, {"small": scored(-small), "large": scored(-9 * large)})[0]
    columns = dict(zip(found[""], found["score"], strict=True))
    alone = agreements({"score": scored(-small)}, {"large": scored(-large)})[0]["score"][0].value
    assert columns["large"].value == pytest.approx(alone)
    assert columns[ALL].value < columns[STANDARDISED].value - 0.2
    assert columns[STANDARDISED].value > 0.3


def test_the_error_of_a_label_distance_is_in_its_upper_limit():
    """The lower limit is reduced for the bias of few images."""
    made = records({("gold_label_distance", "none", "down"): np.full((4, 12), 0.5)})
    made = made.assign(low=made["value"] - 0.3, high=made["value"] + 0.1)
    errors = [
        _columns(made.assign(unit=unit), view_named("validity"))["to gold"].errors for unit in ("labels", "fraction")
    ]
    np.testing.assert_allclose([each.mean() for each in errors], [0.1 / NORMAL, 0.2 / NORMAL])


def test_the_tests_agree_with_the_interval(distances):
    rng = np.random.default_rng(5)
    exact, places = scored(-distances), np.argsort(rng.random((SAMPLES, 12)), axis=1)
    for noise in (0.2, 0.5, 1.0, 2.0):
        for _ in range(3):
            near = scored(-distances + noise * rng.standard_normal(distances.shape), 0.02)
            sides = [
                Side(one.means(), one.drawn(np.zeros((SAMPLES, 12), int), rng), one.seeds()) for one in (near, exact)
            ]
            chosen = rng.integers(4, size=(SAMPLES, 4))
            entry, resampled = _agreement(*sides, chosen)
            here, zero, useful = _tests(*sides, entry, resampled, places)
            assert here <= zero
            assert zero > 0.04 or entry.low > 0 or entry.high < 0
            assert useful > 0.04 or entry.high < USEFUL
            assert useful < 0.06 or entry.high > USEFUL - 0.05  # the figures have little noise


def test_the_interval_holds_the_tau_of_figures_without_noise_if_there_is_little():
    """Noise pulls tau towards 0; the reflected percentiles make up for a part of it."""
    held = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        distance = rng.random((4, 12))
        score = distance + 0.15 * rng.standard_normal(distance.shape)
        exact = np.mean([kendall_tau_b(x, y).value for x, y in zip(score, distance, strict=True)])
        measured = [scored(side + 0.15 * rng.standard_normal(side.shape), 0.15) for side in (score, distance)]
        entry = agreements({"score": measured[0]}, {"to gold": measured[1]})[0]["score"][0]
        held.append(entry.low <= exact <= entry.high)
    assert np.mean(held) >= 0.85  # four concepts: less than the nominal 0.95


def test_two_scores_that_each_know_half_are_better_together():
    rng = np.random.default_rng(3)
    one, other = rng.random((2, 4, 12))
    found, notes = agreements({"erases": scored(one), "keeps": scored(other)}, {"a": scored(one), "b": scored(other)})
    assert found[""] == ["a", "b", ALL, STANDARDISED, REACH]
    assert found["erases"][0].value == pytest.approx(1) and found["erases"][2].value < 0.9
    assert "Best mean of two ranks: erases and keeps" in notes[-1]


def test_a_method_without_a_figure_is_left_out_of_that_order(distances):
    holed = -distances.copy()
    holed[:, 0] = np.nan
    entry = agreements({"score": scored(holed)}, {"to gold": scored(-distances)})[0]["score"][0]
    assert entry.value == pytest.approx(1) and entry.n == len(METHODS) - 1


def test_the_view_reads_directions_and_leaves_out_the_references(distances):
    wanted = {("gold_label_distance", "none", "down"): distances, ("target_proportion", "none", "down"): distances / 2}
    wanted[("ua", "none", "up")] = 1 - distances
    wanted[("neighbour_retention", "none", "up")] = distances
    made = records(wanted)
    gold = made[made["method"] == METHODS[0]].assign(method="gold", method_name="gold", value=0.0)
    unedited = made[made["method"] == METHODS[0]].assign(method="none", method_name="none", value=1.0)
    [table] = tables(pd.concat([made, gold, unedited], ignore_index=True), "validity")
    shown = {row.names[0]: row.entries[0] for row in table.rows}
    assert shown["target"].value == shown["UA"].value == pytest.approx(1)
    assert shown["neighbours kept"].value == pytest.approx(-1)
    assert {entry.n for entry in shown.values()} == {len(METHODS)}
    assert any("Not stored" in note and "to gold (synonyms)" in note for note in table.notes)


@pytest.mark.parametrize("form", ["md", "csv", "json", "latex"])
def test_every_format_shows_it(form, distances):
    made = records({("gold_label_distance", "none", "down"): distances, ("ua", "none", "up"): 1 - distances})
    assert "UA" in render(made, form, "validity")


def test_too_few_methods_are_undefined(distances):
    few = -distances[:, :3]
    entry = agreements({"score": scored(few)}, {"to gold": scored(few)})[0]["score"][0]
    assert entry.value is None and "fewer than 4 methods" in entry.why


def test_a_score_that_is_best_at_0_is_ordered_by_its_distance_from_0():
    column = Scored(np.array([[[40.0], [1.0], [-60.0]]]), np.full((1, 3, 1), 0.01), "zero")
    assert column.means().tolist() == [[-40, -1, -60]]
    drawn = column.drawn(np.zeros((SAMPLES, 3), int), np.random.default_rng(0))
    assert (drawn.argsort(axis=2)[:, 0] == [2, 0, 1]).all()


def test_a_method_with_one_run_keeps_its_noise_where_another_seed_is_drawn():
    values, errors = np.full((1, 2, 3), 0.5), np.full((1, 2, 3), 0.1)
    values[0, 0, 1:] = errors[0, 0, 1:] = np.nan
    seeds = np.random.default_rng(1).integers(3, size=(SAMPLES, 2))
    drawn = Scored(values, errors, "up").drawn(seeds, np.random.default_rng(0))
    assert drawn.std(axis=0)[0] == pytest.approx([0.1, 0.1], rel=0.06)
