"""Figures of relearning, on handmade curves."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from overpaint.metrics.gold import RelearnRatioToGold
from overpaint.metrics.outcomes import own_concept
from overpaint.metrics.relearning import RelearnArea, RelearnStepsToHalf, area, steps_to_half, weights
from overpaint.report.statistics import proportion

STEPS = np.array([0.0, 10.0, 40.0])


@pytest.mark.parametrize(
    ("shares", "known", "half", "mean"),
    [
        ([0.0, 0.0, 0.0], 1.0, 40, 0.0),
        ([0.0, 0.5, 1.0], 1.0, 10, (2.5 + 22.5) / 40),
        ([0.0, 0.2, 0.8], 0.8, 10 + 30 / 3, (1 + 15) / 40),
        ([0.0, 1.0, 0.0], 0.6, 3, 20 / 40),
        ([0.5, 0.4, 0.6], 0.9, 0, (4.5 + 15) / 40),
        ([1.0, 1.0, 1.0], 1.0, 0, 1.0),
        ([0.0, 0.0, 0.4], 0.8, 40, 6 / 40),
    ],
)
def test_half_and_area_of_a_curve_have_their_closed_forms(shares, known, half, mean):
    assert steps_to_half(np.array([shares]), STEPS, np.array([known])) == pytest.approx([half])
    assert area(np.array([shares]), STEPS) == pytest.approx([mean])


def test_what_is_not_known_has_no_half():
    curves, known = np.array([[0.0, 0.5, 1.0], [0.0, np.nan, 1.0], [0.0, 0.5, 1.0]]), np.array([0.0, 1.0, np.nan])
    assert np.isnan(steps_to_half(curves, STEPS, known)).all()


def scored(hits, role="attacked", steps=STEPS):
    """Images with the given outcomes (prompts, points) after the given numbers of steps."""
    hits = np.asarray(hits, float)
    prompts, points = np.indices(hits.shape).reshape(2, -1)
    return pd.DataFrame(
        {
            "prompt_id": [f"p{n}" for n in prompts],
            "seed": 0,
            "draw": points,
            "role": role,
            "concept": "church",
            "steps": np.asarray(steps)[points],
            "failed": np.isnan(hits.ravel()),
            "church": hits.ravel(),
        }
    )


def knowing(evidence_of, hits, original=((1, 1, 1),) * 4, plain=((1,),) * 4):
    plain = scored(plain, "target", [0]).drop(columns="steps")
    return evidence_of(0.5, images=scored(hits), original=scored(original), plain_original=plain, failure_limit=0.5)


def test_figures_of_four_prompts(evidence_of):
    evidence = knowing(evidence_of, [(0, 0, 1), (0, 0, 1), (0, 1, 1), (0, 0, 0)])
    half, whole = RelearnStepsToHalf().measure(evidence), RelearnArea().measure(evidence)
    assert half.value == pytest.approx(10 + 30 * 0.25 / 0.5) and half.why == "" and half.n == whole.n == 12
    assert whole.value == pytest.approx((10 * 0.125 + 30 * 0.5) / 40)
    assert (half.original, whole.original) == (0, 1)
    assert half.difference == half.value and whole.difference == pytest.approx(whole.value - 1)
    assert whole.low < whole.value < whole.high and half.low < half.value and half.high is None
    for figure in (half, whole):
        outside = (figure.difference_low or 0) > 0 or (figure.difference_high or 0) < 0
        assert (figure.p_value < 0.05) == outside, "interval and test agree"


def test_prompts_of_one_text_are_one_observation(evidence_of):
    """Four prompts with equal outcomes are one observation if they have the same text."""
    evidence = knowing(evidence_of, [(0, 0, 1), (0, 0, 1), (0, 1, 1), (0, 0, 0)])
    frames = {name: getattr(evidence, name).assign(cluster="a") for name in ("images", "original", "plain_original")}
    apart, alike = (RelearnArea().measure(replace(evidence, **found)) for found in ({}, frames))
    assert alike.value == apart.value and alike.p_value > 0.2 > apart.p_value
    assert alike.high - alike.low > 1.2 * (apart.high - apart.low)


def test_half_that_is_not_back_is_a_bound_and_says_so(evidence_of):
    figure = RelearnStepsToHalf().measure(knowing(evidence_of, [(0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 1)]))
    assert figure.value == 40 and figure.why.startswith("lower bound")
    assert figure.high is None and figure.low < 40, "other prompts could come back"
    assert figure.difference == 40 and figure.difference_high is None
    never = RelearnStepsToHalf().measure(knowing(evidence_of, [(0, 0, 0)] * 4))
    assert never.value == 40 and never.high is None and never.low < 40 and "lower bound" in never.why
    flat = RelearnArea().measure(knowing(evidence_of, [(0, 0, 0)] * 4))
    assert (flat.value, flat.low, flat.high) == pytest.approx(proportion(np.zeros(4))[:3])
    many = [knowing(evidence_of, [(0, 0, 0)] * n, [(1, 1, 1)] * n, [(1,)] * n) for n in (4, 40)]
    assert [RelearnStepsToHalf().measure(e).low for e in many] == [0, 40], "forty prompts show that half is not reached"


def test_an_interval_that_ends_at_zero_steps_shows_no_difference(evidence_of):
    """A share just below half may be half from the start, as the unedited model's is."""
    hits = [(1, 1, 1)] * 22 + [(0, 1, 1)] * 28
    figure = RelearnStepsToHalf().measure(knowing(evidence_of, hits, [(1, 1, 1)] * 50, [(1,)] * 50))
    assert figure.value > 0 and figure.difference_low == pytest.approx(0) and 0.05 < figure.p_value < 1
    clear = [(1, 1, 1)] * 10 + [(0, 1, 1)] * 40
    figure = RelearnStepsToHalf().measure(knowing(evidence_of, clear, [(1, 1, 1)] * 50, [(1,)] * 50))
    assert figure.difference_low > 0 and 0 < figure.p_value < 0.01


def test_a_concept_that_the_unedited_model_does_not_show_has_no_half(evidence_of):
    evidence = knowing(evidence_of, [(0, 0, 1)] * 4, plain=[(0,)] * 4)
    assert RelearnStepsToHalf().measure(evidence).value is None
    assert RelearnArea().measure(evidence).value == pytest.approx(15 / 40)


def test_a_step_without_a_judged_image_leaves_a_hole(evidence_of):
    evidence = knowing(evidence_of, [(0, np.nan, 1)] * 4)
    for metric in (RelearnStepsToHalf(), RelearnArea()):
        figure = metric.measure(evidence)
        assert figure.value is None and figure.failed == 4 and "step" in figure.why
    holed = RelearnArea().measure(knowing(evidence_of, [(0, np.nan, 1), (0, 1, 1)] * 2))
    assert holed.value == pytest.approx((5 + 30) / 40), "a step's share is that of the images it has"


def test_other_attacks_leave_no_curve(evidence_of):
    evidence = evidence_of(0.5)
    assert RelearnArea.relevant(evidence)
    assert not RelearnArea.relevant(replace(evidence, images=evidence.images.drop(columns="steps")))
    assert not RelearnArea.relevant(replace(evidence, images=evidence.images.assign(steps=np.nan)))


def test_a_curve_that_does_not_begin_with_the_victim_has_no_steps_to_half(evidence_of):
    """Half may have returned before the first point. The mean rate of the measured points is known."""
    evidence = knowing(evidence_of, [(1, 1, 1), (0, 1, 1)] * 2)
    late = scored([(1, 1, 1), (0, 1, 1)] * 2, steps=[5.0, 10.0, 40.0])
    shifted = replace(evidence, images=late, original=scored(((1, 1, 1),) * 4, steps=[5.0, 10.0, 40.0]))
    assert RelearnStepsToHalf().measure(evidence).value == 0
    half = RelearnStepsToHalf().measure(shifted)
    assert (
        half.value is None
        and half.why == "the curve does not start at step 0, the victim itself: add 0 to attack.curve"
    )
    assert RelearnArea().measure(shifted).value == pytest.approx((0.75 * 5 + 30) / 35)


def test_the_weights_of_an_area_are_those_of_the_trapezoid_rule():
    assert weights(STEPS) == pytest.approx([0.125, 0.5, 0.375])


def test_an_interval_is_open_where_half_may_come_back_after_the_last_step(evidence_of):
    """The curve reaches half of 1 between the last two steps, but a share of 13 of 24 may be below it."""
    hits = [(0, 0, 1)] * 13 + [(0, 0, 0)] * 11
    figure = RelearnStepsToHalf().measure(knowing(evidence_of, hits, [(1, 1, 1)] * 24, [(1,)] * 24))
    assert 10 < figure.low < figure.value < 40 and figure.why == ""
    assert figure.high is None and figure.difference_high is None
    assert figure.difference_low > 0 and figure.p_value < 0.05, "that the unedited model is faster is shown"
    clear = RelearnStepsToHalf().measure(knowing(evidence_of, [(0, 1, 1)] * 24, [(1, 1, 1)] * 24, [(1,)] * 24))
    assert clear.high is not None and clear.difference_high is not None


def test_open_intervals_contain_steps_beyond_the_last_one(evidence_of):
    """The share rises from 0 to 0.45 over the measured steps, so half of 1 comes back at 44 steps, after the last one."""
    rng, metric = np.random.default_rng(0), RelearnStepsToHalf()
    plain = own_concept(scored([(1,)] * 24, steps=[0]), 0.5)
    found, reached = [], 0
    for _ in range(100):
        images = scored(rng.random((24, 3)) < np.array([0, 0.11, 0.45]))
        table = own_concept(images, 0.5).assign(steps=images["steps"])
        found.append(metric.estimate(table, plain))
        reached += metric.bound(table, plain) == ""
    assert reached > 10, "some curves reach half by chance"
    assert np.mean([e.low <= 44 and (e.high is None or e.high >= 44) for e in found]) >= 0.93


def test_a_curve_has_no_difference_to_one_that_does_not_reach_half(evidence_of):
    figure = RelearnStepsToHalf().measure(knowing(evidence_of, [(0, 0, 0)] * 24, [(0, 0, 0)] * 24, [(1,)] * 24))
    assert (figure.value, figure.original) == (40, 40)
    assert figure.difference is figure.p_value is None


def test_a_ratio_to_the_gold_reference_has_no_upper_limit_where_its_steps_have_none(evidence_of):
    """The gold reference reaches half after 7 steps, and has limits."""
    gold = scored([(0, 1, 1)] * 17 + [(0, 0, 1)] * 7)
    late = [(0, 0, 1)] * 13 + [(0, 0, 0)] * 11
    for hits, is_open in ((late, True), ([(0, 0, 0)] * 24, True), ([(0, 0, 1)] * 24, False)):
        evidence = knowing(evidence_of, hits, [(1, 1, 1)] * 24, [(1,)] * 24)
        figure = RelearnRatioToGold().measure(replace(evidence, gold=gold))
        assert figure.low < figure.value and (figure.high is None) == is_open
    same = RelearnRatioToGold().measure(replace(evidence, gold=scored([(1, 1, 1)] * 12 + [(0, 1, 1)] * 12)))
    assert same.value is None
    early = scored([(1, 1, 1)] * 11 + [(0, 1, 1)] * 13)
    figure = RelearnRatioToGold().measure(replace(evidence, gold=early))
    assert figure.value > 1 and figure.high is None, "the gold reference may reach half at once"
