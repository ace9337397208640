"""Distances to the gold reference: closed forms, and images of a prompt that serves several roles."""

import numpy as np
import pandas as pd
import pytest

from overpaint.metrics.distribution import FeatureRows
from overpaint.metrics.gold import (
    GoldLabelDistance,
    GoldLabelDistanceRetained,
    folding,
    label_distance,
)
from overpaint.metrics.metric import Evidence
from overpaint.report.statistics import proportion

LABELS = {"church": "object", "house": "object"}


def frame(rows):
    """Images (role, prompt, church, house)."""
    named = pd.DataFrame(rows, columns=["role", "prompt_id", "church", "house"])
    return named.assign(seed=0, concept="", expects="", failed=False)


def evidence(images, gold):
    return Evidence((), images=images, original=images, gold=gold, kinds=LABELS, threshold=0.5)


def test_the_label_distance_is_half_the_labels_that_differ():
    x, y = pd.DataFrame([[1, 0], [1, 0]]).to_numpy(float), pd.DataFrame([[0, 1], [1, 0]]).to_numpy(float)
    assert label_distance(x, y) == pytest.approx(0.5) and label_distance(x, x) == 0


def test_an_image_of_a_prompt_that_serves_two_roles_counts_once():
    """``a house`` is a neighbour and on the grid; both rows are one image."""
    own = [("near", "a house", 0, 1), ("near", "a barn", 0, 1), ("grid", "a house", 0, 1), ("grid", "a sketch", 0, 0)]
    gold = [("near", "a house", 0, 0), ("near", "a barn", 0, 1), ("grid", "a house", 0, 0), ("grid", "a sketch", 0, 0)]
    figure = GoldLabelDistanceRetained().measure(evidence(frame(own), frame(gold)))
    assert figure.value == pytest.approx(0.5 * 1 / 3) and figure.n == 3


def test_several_images_of_one_prompt_in_one_role_are_refused():
    rows = [("target", "a church", 1, 0), ("target", "a church", 0, 0), ("target", "the church", 0, 1)]
    figure = GoldLabelDistance().measure(evidence(frame(rows), frame(rows)))
    assert figure.value is None and figure.why == "several images of one prompt and seed"


def drawn(rng, shares, images=40):
    """Indicators of labels with these shares, one image per prompt."""
    prompts = np.array([f"p{n:03d}" for n in range(images)])
    keys = pd.MultiIndex.from_arrays([prompts, np.zeros(images, int)])
    return FeatureRows((rng.random((images, len(shares))) < shares).astype(float), prompts, keys, 0)


@pytest.mark.parametrize("labels", [1, 10, 40])
def test_the_distance_of_two_equal_models_is_not_shown_to_be_above_zero(labels):
    """Its value is above 0 by chance, by half the sum of the standard errors times (2/π)^½."""
    rng, metric, shares = np.random.default_rng(0), GoldLabelDistance(), np.full(labels, 0.5 if labels < 40 else 0.05)
    own, gold = ([drawn(rng, shares) for _ in range(100)] for _ in range(2))
    found = [metric.whole(a, b) for a, b in zip(own, gold, strict=True)]
    assert np.mean([e.low == 0 for e in found]) >= 0.93
    assert all(e.low <= e.value <= e.high for e in found)
    expected = labels * np.sqrt(2 * shares[0] * (1 - shares[0]) / 40 * 2 / np.pi) / 2
    assert np.mean([e.value for e in found]) == pytest.approx(expected, rel=0.1)
    if labels > 1:
        assert np.mean(
            [folding(a.vectors, b.vectors, a.prompts) for a, b in zip(own, gold, strict=True)]
        ) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("first", "second"), [((0.6,) * 10, (0.3,) * 10), ((0.9,) * 3 + (0.5,) * 7, (0.1,) * 3 + (0.5,) * 7)]
)
def test_the_interval_of_a_large_distance_covers_it(first, second):
    rng, metric, truth = np.random.default_rng(0), GoldLabelDistance(), np.abs(np.subtract(first, second)).sum() / 2
    found = [metric.whole(drawn(rng, first, 100), drawn(rng, second, 100)) for _ in range(100)]
    assert np.mean([e.low <= truth <= e.high for e in found]) >= 0.93
    assert min(e.low for e in found) > truth / 2


def test_the_difference_of_two_distances_covers_the_true_one():
    """The own model equals the gold reference and its distance is too large; the other one is far away and has no bias."""
    rng, metric, equal, far = np.random.default_rng(0), GoldLabelDistance(), (0.5,) * 10, (0.95,) * 10
    found = [metric.gap(drawn(rng, equal, 100), drawn(rng, far, 100), drawn(rng, equal, 100)) for _ in range(100)]
    assert np.mean([e.low <= -2.25 <= e.high for e in found]) >= 0.93
    assert all(e.p_value < 0.05 for e in found)
    alike = [metric.gap(*(drawn(rng, equal, 100) for _ in range(3))) for _ in range(100)]
    assert np.mean([e.p_value < 0.05 for e in alike]) <= 0.1
    assert all((e.p_value < 0.05) == (e.low > 0 or e.high < 0) for e in [*found, *alike])


def test_models_whose_images_are_equal_can_still_differ_a_little():
    rows = drawn(np.random.default_rng(0), (0.5, 0.5))
    assert GoldLabelDistance().whole(rows, rows)[:3] == (0, 0, proportion(np.zeros(40)).high)


def test_the_distance_of_models_whose_images_all_differ_alike_is_uncertain():
    """50 images without a counterexample: up to about 7 % of images could be another way."""
    rng = np.random.default_rng(0)
    own, gold, metric = drawn(rng, (1, 0), 50), drawn(rng, (0, 1), 50), GoldLabelDistance()
    found = metric.whole(own, gold)
    assert found.value == 1 and 0.9 < found.low < 0.95 and 1.05 < found.high < 1.1
    gap = metric.gap(gold, own, gold)
    assert gap.value == -1 and gap.low < -1.05 and -0.95 < gap.high < -0.9 and 0 < gap.p_value < 0.001


def test_an_image_with_an_unknown_label_is_not_without_the_label():
    rows = [("target", f"church {n}", 1, 0) for n in range(10)]
    own = frame(rows).assign(church=[np.nan, np.nan, *[1.0] * 8])
    figure = GoldLabelDistance().measure(evidence(own, frame(rows)))
    assert figure.value is None and figure.failed == 2 and figure.n == 8
    few = GoldLabelDistance().measure(Evidence((), own, own, gold=frame(rows), kinds=LABELS, failure_limit=0.5))
    assert (few.value, few.n, few.failed) == (0, 8, 2)
