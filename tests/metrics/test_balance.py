"""Balance of attributes, on images whose attributes are known."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from overpaint.grid.concepts import Concept
from overpaint.metrics.balance import AttributeGap
from overpaint.metrics.metric import Evidence
from overpaint.report import statistics

LABELS = ("man", "woman", "robot")


def images_of(shown, seeds=1):
    """One image of each entry, the label that it shows; "" for none, ``None`` for a failed image."""
    rows = []
    for number, name in enumerate(shown):
        scores = {label: math.nan if name is None else 0.9 if label == name else 0.2 for label in LABELS}
        about = {"prompt_id": f"p{number // seeds}", "seed": number % seeds, "role": "attributes", "concept": "adult"}
        rows.append(about | {"expects": [], "failed": name is None} | scores)
    return pd.DataFrame(rows)


def gap_of(shown, desired, original=None, seeds=1, **changes):
    frames = images_of(shown, seeds), images_of(shown if original is None else original, seeds)
    return AttributeGap().measure(Evidence([Concept("adult")], *frames, desired=desired, **changes))


EVEN = {"man": 0.5, "woman": 0.5}


@pytest.mark.parametrize(
    ("shown", "desired", "wanted"),
    [
        (["man", "woman"] * 12, EVEN, 0.0),
        (["man"] * 24, EVEN, 1.0),
        (["man"] * 18 + ["woman"] * 6, EVEN, 0.5),
        (["man"] * 18 + ["woman"] * 6, {"man": 0.75, "woman": 0.25}, 0.0),
        (["man"] * 24, {"man": 0.75, "woman": 0.25}, (1 / 3 + 1) / 2),
        (["man", "woman", "robot"] * 8, dict.fromkeys(LABELS, 1 / 3), 0.0),
        (["man"] * 24, dict.fromkeys(LABELS, 1 / 3), (2 + 1 + 1) / 3),
        (["robot"] * 6 + [""] * 18, {"robot": 0.25}, 0.0),
        (["robot"] * 24, {"robot": 0.5}, 1.0),
    ],
)
def test_the_mean_relative_deviation(shown, desired, wanted):
    figure = gap_of(shown, desired)
    assert figure.value == pytest.approx(wanted, abs=1e-12) and figure.n == 24
    assert 0 <= figure.low <= figure.value <= figure.high and figure.low < figure.high
    assert figure.difference == 0 and figure.p_value == 1
    mixed = gap_of(list(np.random.default_rng(0).permutation(np.array(shown, dtype=object))), desired)
    assert (mixed.value, mixed.low, mixed.high) == pytest.approx((figure.value, figure.low, figure.high))


def test_two_attributes_have_the_score_interval_of_one_share():
    figure = gap_of(["man"] * 18 + ["woman"] * 6, EVEN)
    share = statistics.proportion(np.repeat([1.0, 0.0], [18, 6]))
    assert (figure.low, figure.high) == pytest.approx((2 * share.low - 1, 2 * share.high - 1))


def test_three_attributes_have_simultaneous_intervals():
    rng, desired = np.random.default_rng(1), {"man": 0.2, "woman": 0.3, "robot": 0.5}
    p = np.array([0.5, 0.3, 0.2])
    true = float(np.mean([abs(own - d) / d for own, d in zip(p, desired.values(), strict=True)]))
    figures = [gap_of(list(rng.choice(LABELS, 60, p=p)), desired) for _ in range(40)]
    assert np.mean([f.low <= true <= f.high for f in figures]) >= 0.95
    assert np.mean([f.high - f.low for f in figures]) < 1.2


def test_each_attribute_is_a_part():
    evidence = Evidence(
        [Concept("adult")], *[images_of(["man"] * 9 + ["woman"] * 3)] * 2, desired={"man": 0.5, "woman": 0.5}
    )
    assert {name: f.value for name, f in AttributeGap().parts(evidence).items()} == {"man": 0.5, "woman": 0.5}
    assert AttributeGap().parts(replace(evidence, desired={"man": 0.5})) == {}


def test_images_without_an_attribute_do_not_count():
    with_others = gap_of(["man", "woman"] * 6 + [""] * 20, EVEN)
    assert (with_others.value, with_others.n) == (0, 12)
    nothing = gap_of([""] * 8, EVEN)
    assert nothing.value is None and nothing.why == "no image shows man or woman"


def test_failed_images_are_neither():
    figure = gap_of(["man", "woman"] * 8 + [None] * 4, EVEN, failure_limit=0.5)
    assert (figure.value, figure.n, figure.failed) == (0, 16, 4)
    assert "4 of 20 attributes images failed" in gap_of(["man", "woman"] * 8 + [None] * 4, EVEN).why


def test_seeds_of_one_prompt_are_a_cluster():
    alike = [name for name in ("man", "woman") * 6 for _ in range(5)]
    narrow, wide = gap_of(alike, EVEN), gap_of(alike, EVEN, seeds=5)
    assert narrow.value == wide.value == 0 and wide.high > narrow.high


def test_it_falls_when_the_shares_come_closer():
    figure = gap_of(["man", "woman"] * 20, EVEN, original=["man"] * 40)
    assert (figure.value, figure.original, figure.difference) == (0, 1, -1)
    assert figure.p_value < 0.001


def test_it_is_measured_where_attributes_are_given():
    evidence = Evidence([Concept("adult")], *[images_of(["man"] * 8)] * 2)
    assert not AttributeGap.relevant(evidence) and AttributeGap.relevant(replace(evidence, desired=EVEN))
