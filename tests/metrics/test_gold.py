"""Distances to the gold reference: closed forms, and images of a prompt that serves several roles."""

import pandas as pd
import pytest

from overpaint.metrics.gold import GoldLabelDistance, GoldLabelDistanceRetained, label_distance
from overpaint.metrics.metric import Evidence

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
