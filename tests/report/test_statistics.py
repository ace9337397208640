"""Statistics against statsmodels, scipy and scikit-learn (goldens), closed forms, and properties of intervals."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import chi2, false_discovery_control, norm, t
from statsmodels.stats.proportion import test_proportions_2indep as score_test

from overpaint.report import scores
from overpaint.report import statistics as st
from overpaint.report.resampling import GROUPS, jackknife, left_out

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "metrics" / "statistics.json").read_text())["outputs"]
EXACT = 1e-9


@pytest.mark.parametrize("case", GOLDEN["wilson"])
def test_wilson(case):
    assert st.wilson(case["k"], case["n"], case["level"]) == pytest.approx((case["low"], case["high"]), abs=EXACT)


@pytest.mark.parametrize("case", GOLDEN["mcnemar"])
@pytest.mark.parametrize("kind", ["exact", "chi2", "chi2_corrected"])
def test_mcnemar(case, kind):
    (_, only_first), (only_second, _) = np.reshape(case["table"], (2, 2)).tolist()
    ours = st.mcnemar(only_first, only_second, exact=kind == "exact", corrected=kind == "chi2_corrected")
    assert ours.value == pytest.approx(case[kind]["statistic"], abs=EXACT)
    assert ours.p_value == pytest.approx(case[kind]["p"], abs=EXACT)


@pytest.mark.parametrize("case", GOLDEN["holm"])
def test_holm(case):
    ours = st.holm(case["p"])
    assert ours.p_values == pytest.approx(case["adjusted"], abs=EXACT)
    assert ours.rejected == case["reject"]


def test_holm_leaves_undefined_tests_out_of_the_family():
    assert st.holm([0.01, None, math.nan, 0.04]).p_values == pytest.approx([0.02, None, None, 0.04])
    assert st.holm([None]).rejected == [None]
    assert st.holm([]) == ([], [])


@pytest.mark.parametrize("case", GOLDEN["kendall_tau_b"])
def test_kendall_tau_b(case):
    ours = st.kendall_tau_b(case["x"], case["y"])
    assert ours.value == pytest.approx(case["tau"], abs=EXACT)
    assert ours.p_value == pytest.approx(case["p"], abs=EXACT)


def clustered():
    k, n = GOLDEN["cluster"]["k"], GOLDEN["cluster"]["n"]
    hits = np.concatenate([[1.0] * a + [0.0] * (b - a) for a, b in zip(k, n, strict=True)])
    return k, n, hits, np.repeat(np.arange(len(n)), n)


def test_robust_error():
    _, n, hits, prompts = clustered()
    golden = GOLDEN["cluster"]
    ours = st.mean(hits, prompts)
    short = min(ours.value - ours.low, ours.high - ours.value)
    assert short / t.ppf(0.975, len(n) - 1) == pytest.approx(golden["cluster_robust_se"], abs=EXACT)
    ours = st.proportion(hits, prompts)
    assert ours.value == pytest.approx(golden["rate"], abs=EXACT)
    assert (ours.low, ours.high) == pytest.approx(golden["bootstrap_20000"]["percentile"], abs=0.01)
    pooled = st.proportion(hits)
    assert (pooled.low, pooled.high) == pytest.approx(golden["wilson_ignoring_clusters"], abs=0.001)


def test_paired_difference():
    golden = GOLDEN["paired_difference"]
    ours = st.paired_difference(golden["a"], golden["b"])
    assert ours.value == pytest.approx(golden["mean"], abs=EXACT)
    assert (ours.low, ours.high) == pytest.approx(golden["percentile_20000"], abs=0.01)
    a, b = np.array(golden["a"]), np.array(golden["b"])
    gained, lost = int((a > b).sum()), int((b > a).sum())
    assert ours.p_value == pytest.approx(st.mcnemar(gained, lost, exact=False, corrected=False).p_value)
    assert (ours.low, ours.high) == pytest.approx(st.tango(gained, lost, len(a)))


def test_tango_inverts_the_score_test():
    """At each limit, the score of the most likely shares, found by search, equals the quantile."""
    for gained, lost, n in [(5, 2, 12), (1, 7, 24), (4, 0, 12), (33, 38, 142)]:
        found = (gained - lost) / n
        for limit in st.tango(gained, lost, n):

            def unlikely(share, limit=limit, gained=gained, lost=lost, n=n):
                cells = [share + limit, share, 1 - 2 * share - limit]
                return -sum(
                    k * math.log(max(p, 1e-300)) for k, p in zip((gained, lost, n - gained - lost), cells, strict=True)
                )

            bounds = (max(0.0, -limit), (1 - limit) / 2)
            share = minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
            deviation = math.sqrt((2 * share + limit - limit**2) / n)
            assert abs(found - limit) / deviation == pytest.approx(1.959964, rel=1e-5)


@pytest.mark.parametrize("images, interval", [(1, scores.share_interval), (2, scores.difference_interval)])
def test_limits_do_not_depend_on_how_many_data_sets_are_searched_at_once(images, interval):
    draw = np.random.default_rng(0)
    values = draw.integers(2, size=(200, 36)) - (draw.integers(2, size=(200, 36)) if images == 2 else 0.0)
    groups = np.arange(36) // 3, np.arange(36) // 12
    together = interval(scores.sample(values, *groups, images=images), 0.95)
    alone = [interval(scores.sample(each, *groups, images=images), 0.95) for each in values]
    np.testing.assert_allclose(together, np.concatenate(alone, axis=1), rtol=0, atol=1e-11)


def test_tango_at_the_edges():
    assert st.tango(0, 0, 10) == pytest.approx((-st.wilson(0, 10)[1], st.wilson(0, 10)[1]))
    z2 = 1.959964**2
    assert st.tango(10, 0, 10) == pytest.approx(((10 - z2) / (10 + z2), 1.0))
    for gained, lost, n in [(0, 0, 1), (3, 1, 12), (12, 0, 12), (2.5, 0.5, 7.5)]:
        assert st.tango(lost, gained, n) == pytest.approx(tuple(-x for x in reversed(st.tango(gained, lost, n))))


def test_auc():
    golden = GOLDEN["auc"]
    assert st.auc(golden["positive"], golden["negative"]) == pytest.approx(golden["sklearn"], abs=EXACT)
    assert st.auc([1, 1], [1, 1]) == 0.5
    assert st.auc([2, 3], [0, 1]) == 1
    assert st.auc([2, math.nan, 3], [0, 1]) == 1
    assert st.auc([], [1]) is None
    positive = np.array(golden["positive"])
    assert st.auc(np.exp(positive), np.exp(golden["negative"])) == st.auc(positive, golden["negative"])


@pytest.mark.parametrize("case", GOLDEN["rogan_gladen"])
def test_rogan_gladen_inverts_the_detector(case):
    ours = st.rogan_gladen(case["observed"], case["sensitivity"], case["specificity"])
    assert ours == pytest.approx(case["true"], abs=EXACT)


def test_rogan_gladen_outside_what_a_detector_can_show():
    assert st.rogan_gladen(0.01, 0.9, 0.9) == 0
    assert st.rogan_gladen(0.01, 0.9, 0.9, clip=False) == pytest.approx(-0.09 / 0.8)
    assert st.rogan_gladen(0.5, 0.5, 0.5) is None
    assert st.rogan_gladen(None, 0.9, 0.9) is None


def test_harmonic_mean():
    assert st.harmonic_mean(0.3, 0.3, 0.3).value == pytest.approx(0.3)
    assert st.harmonic_mean(1, 3) == (1.5, (1, 3))
    assert st.harmonic_mean(0.2, 0.9).value == st.harmonic_mean(0.9, 0.2).value
    assert st.harmonic_mean(0.3, 0.9).value > st.harmonic_mean(0.2, 0.9).value
    assert st.harmonic_mean(0.0, 1).value == 0
    assert st.harmonic_mean(-1, 1) == (0.0, (-1, 1))
    assert st.harmonic_mean(None, 1).value is None
    assert st.harmonic_mean().value is None


def rare(hits, n):
    """Wilson's limits with Student's t, widened to those of a Poisson count of rare hits or misses (Brown, Cai and DasGupta
    2001)."""
    low, high = st.wilson(hits, n, level=1 - 2 * norm.sf(t.ppf(0.975, 1.5 * n)))
    below, above = (chi2.ppf(0.05, 2 * k) / 2 / n if 0 < k <= 3 and 4 * k <= n else math.inf for k in (hits, n - hits))
    return min(low, below), max(high, 1 - above)


@pytest.mark.parametrize(
    ("hits", "n"), [(0, 12), (2, 2), (1, 12), (3, 24), (4, 24), (12, 24), (22, 24), (24, 24), (30, 500)]
)
def test_independent_observations_have_wilsons_interval(hits, n):
    ours = st.proportion([1.0] * hits + [0.0] * (n - hits))
    assert (ours.low, ours.high) == pytest.approx(rare(hits, n), abs=EXACT)
    if n > 100:
        assert (ours.low, ours.high) == pytest.approx(st.wilson(hits, n), abs=1e-3)


def test_failed_observations_are_left_out_and_counted():
    ours = st.proportion([1, 0, math.nan, 1], [0, 1, 2, 3])
    assert (ours.value, ours.n, ours.failed) == (2 / 3, 3, 1)
    assert (ours.low, ours.high) == pytest.approx(rare(2, 3))
    pair = st.paired_difference([1, math.nan, 1], [0, 1, math.nan])
    assert (pair.value, pair.n, pair.failed) == (1.0, 1, 2)


@pytest.mark.parametrize("function", [st.proportion, st.mean])
def test_nothing_observed_is_undefined(function):
    assert function([]).value is None
    assert function([math.nan]) == st.Estimate(None, failed=1)
    assert st.paired_difference([], []).value is None
    assert st.unpaired_difference([1.0], []).value is None


def test_agreeing_clusters_still_have_a_width():
    ours = st.proportion(np.zeros(40), np.repeat(np.arange(10), 4))
    assert (ours.low, ours.high) == pytest.approx(rare(0, 10))
    gap = st.paired_difference(np.zeros(40), np.zeros(40), np.repeat(np.arange(10), 4))
    assert gap.low < 0 < gap.high and gap.p_value == 1


@pytest.mark.parametrize("other", [27.3, 26.3])
def test_real_values_are_no_shares_even_if_they_differ_by_0_or_1(other):
    gap = st.paired_difference(np.full(40, 27.3), np.full(40, other))
    wanted = st.mean(np.full(40, 27.3 - other))
    assert gap == wanted and gap.low == gap.value == gap.high and gap.p_equivalence is None


def test_a_failed_observation_does_not_make_shares_real_values():
    gap = st.paired_difference([1, 0, 1, math.nan] * 6, [1, 0, math.nan, 1] * 6)
    assert gap == st.paired_difference([1, 0] * 6, [1, 0] * 6)._replace(failed=12) and gap.p_equivalence is not None


def test_strata_that_agree_each_in_itself_still_have_a_width():
    """One label is erased and three are intact: 12 of 16. The interval has a width, but is narrower than without labels."""
    labels = np.repeat(list("abcd"), 4)
    hits = (labels != "a").astype(float)
    ours = st.proportion(hits, np.arange(16), labels)
    low, high = st.wilson(12, 16)
    assert ours.value == 0.75 and low < ours.low < 0.65 and 0.8 < ours.high < high
    gap = st.paired_difference(hits, np.ones(16), np.arange(16), labels)
    assert gap.value == -0.25 and gap.low < -0.25 < gap.high
    uneven = st.proportion([1.0] * 30 + [0.0] * 2, np.arange(32), ["a"] * 30 + ["b"] * 2)
    assert uneven.high - uneven.low > np.subtract(*st.wilson(16, 32)[::-1])  # two images tell little of b


def test_strata_of_one_cluster_each():
    hits = [1] * 30 + [0, 1] + [0, 0, 1]
    strata = ["a"] * 30 + ["b"] * 2 + ["c"] * 3
    ours = st.proportion(hits, strata, strata)
    assert ours.value == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert 0 <= ours.low < ours.value < ours.high <= 1


def test_strata_weigh_the_same():
    hits, strata = [1, 1, 1, 1, 0, 0], ["a", "a", "a", "a", "b", "b"]
    assert st.proportion(hits, strata=strata).value == 0.5
    assert st.paired_difference(hits, np.zeros(6), strata=strata).value == 0.5
    lone = st.proportion([1, 0, 0, 0, 0, 0, 0, 0], strata=list("abcdefgh"))
    assert lone.low < lone.value < lone.high < 1


@pytest.mark.parametrize("strata", [False, True])
def test_order_does_not_matter(strata):
    rng = np.random.default_rng(0)
    a, b = (rng.random((2, 120)) < [[0.6], [0.4]]).astype(float)
    prompts, groups = np.repeat([f"p{i}" for i in range(40)], 3), np.repeat(["x", "y"], [75, 45])
    groups = groups if strata else np.zeros(120, int)
    mixed = rng.permutation(120)
    for one, other in (
        (st.proportion(a, prompts, groups), st.proportion(a[mixed], prompts[mixed], groups[mixed])),
        (
            st.paired_difference(a, b, prompts, groups),
            st.paired_difference(a[mixed], b[mixed], prompts[mixed], groups[mixed]),
        ),
        (st.unpaired_difference(a, b, prompts), st.unpaired_difference(a[mixed], b[mixed], prompts[mixed])),
    ):
        assert one == pytest.approx(other, abs=1e-12)


def test_one_hit_collapses_nothing():
    """One hit in 24 prompts with two seeds: a bootstrap interval of the difference was [0, 0.06]."""
    hits, prompts = np.eye(1, 48).ravel(), np.repeat(np.arange(24), 2)
    ours = st.proportion(hits, prompts)
    assert 0 < ours.low < ours.value and ours.high > st.wilson(1, 48)[1]
    gap = st.paired_difference(hits, np.zeros(48), prompts)
    assert gap.low < -0.03 and gap.high > 0.1 and gap.p_value > 0.3


def test_seeds_that_all_agree_are_worth_a_prompt():
    alike = st.proportion(np.repeat([1.0, 0.0], [20, 80]), np.repeat(np.arange(10), 10))
    assert alike.high - alike.low > 0.99 * np.subtract(*rare(2, 10)[::-1])
    apart = st.proportion(np.tile([1.0, 0, 0, 0, 1, 0, 0, 0, 0, 0], 10), np.repeat(np.arange(10), 10))
    assert apart.high - apart.low < 0.6 * (alike.high - alike.low)


def paired_in_strata(a, b, prompts, level):
    return st.paired_difference(a, b, prompts, prompts % 3, level=level)


def paired(a, b, prompts, level):
    return st.paired_difference(a, b, level=level)


def unpaired(a, b, prompts, level):
    half = len(b) // 2 + 1
    return st.unpaired_difference(a, b[:half], prompts, prompts[:half], level=level)


@pytest.mark.parametrize("difference", [paired_in_strata, paired, unpaired])
def test_test_and_interval_never_contradict_each_other(difference):
    """p < 0.05 exactly if the interval excludes 0; equivalence exactly if the 90 % interval is inside the margin."""
    rng, found = np.random.default_rng(0), []
    for _ in range(40):
        clusters = rng.integers(3, 30)
        prompts = np.repeat(np.arange(clusters), rng.integers(1, 4))
        rates = rng.beta(1, 1, (2, clusters)).round(1)[:, prompts]
        rates[0] **= rng.choice([0.2, 1.0])  # a difference in half of the cases
        a, b = (rng.random((2, len(prompts))) < rates).astype(float)
        ours, narrow = (difference(a, b, prompts, level) for level in (0.95, 0.9))
        assert ours.low <= ours.value <= ours.high
        assert (ours.p_value < 0.05) == (ours.low > 0 or ours.high < 0), ours
        assert (ours.p_equivalence < 0.05) == (narrow.low > -st.MARGIN and narrow.high < st.MARGIN), ours
        found.append(ours.p_value < 0.05)
    assert 0 < sum(found) < len(found)


def test_equivalence_needs_enough_pairs():
    """If all pairs agree, the 90 % interval of 0 of n ends at z² / (n + z²), which is below 0.10 for n ≥ 25."""
    nothing = [st.paired_difference(np.zeros(n), np.zeros(n)).p_equivalence for n in (24, 25, 100)]
    assert nothing[0] > 0.05 > nothing[1] > nothing[2]
    assert st.paired_difference(np.ones(50), np.zeros(50)).p_equivalence > 0.99


def test_unpaired_difference_agrees_with_miettinen_and_nurminen():
    """Newcombe (1998), method 6, example (a)."""
    ours = st.unpaired_difference([1] * 56 + [0] * 14, [1] * 48 + [0] * 32)
    assert (ours.low, ours.high) == pytest.approx((0.0528, 0.3382), abs=1e-4)
    theirs = score_test(56, 70, 48, 80, compare="diff", method="score", correction=True)
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=1e-9)
    assert st.unpaired_difference([0] * 12, [0] * 12).p_value == 1
    assert st.unpaired_difference([1] * 12, [0] * 12).p_value < 1e-4


def test_benjamini_hochberg():
    """The example of the paper (1995): four of fifteen tests are significant, three with Holm's correction."""
    p = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.324,
        0.4262,
        0.5719,
        0.6528,
        0.759,
        1,
    ]
    assert sum(st.benjamini_hochberg(p).rejected) == 4
    assert sum(st.holm(p).rejected) == 3
    assert st.benjamini_hochberg([0.01, None]).p_values == [0.01, None]
    ties = [0.04, 0.04, 0.2, 0.0, 0.04, 1.0, 0.2]
    assert st.benjamini_hochberg(ties).p_values == false_discovery_control(ties).tolist()


def test_seeds_vary_more_than_their_prompts_say():
    """Three method seeds with means 0.3, 0.4 and 0.5: the variance of 2000 prompts is negligible in comparison."""
    runs, prompts = np.repeat(np.arange(3), 2000), np.tile(np.arange(2000), 3)
    values = np.concatenate([np.arange(2000) < share * 2000 for share in (0.3, 0.4, 0.5)]).astype(float)
    ours = st.proportion(values, prompts, runs=runs)
    reach = 4.302653 * 0.1 / math.sqrt(3)  # Student's t with 2 degrees of freedom
    assert ours.value == pytest.approx(0.4) and ours.spread == pytest.approx(0.1, abs=0.01)
    assert (ours.low, ours.high) == pytest.approx((0.4 - reach, 0.4 + reach), abs=0.02)
    alone = values[:2000], prompts[:2000]
    assert st.proportion(*alone, runs=runs[:2000]) == st.proportion(*alone), "one seed tells nothing of others"
    two = values[:4000], prompts[:4000]
    assert st.proportion(*two, runs=runs[:4000])[:3] == st.proportion(*two)[:3], "nor do two"


def test_equal_seeds_have_no_spread():
    values, prompts, runs = np.tile([1.0, 0, 0, 1], 15), np.tile(np.arange(20), 3), np.repeat([0, 1, 2], 20)
    ours, inside = st.proportion(values, prompts, runs=runs), st.proportion(values, prompts)
    assert ours.spread == 0 and (ours.low, ours.high) == pytest.approx((inside.low, inside.high))


def test_seeds_of_several_concepts_count_for_each_concept():
    """A mean over two concepts, one with and one without variance between its seeds, has half the reach."""
    rng = np.random.default_rng(0)
    share = np.repeat([[0.2, 0.5, 0.8], [0.5, 0.5, 0.5]], 300, axis=1).ravel()
    values = (np.arange(1800) % 100 < share * 100).astype(float)
    runs, concepts = np.repeat(np.arange(6), 300), np.repeat([0, 1], 900)
    prompts = np.tile(rng.permutation(300), 6) + 300 * concepts
    both = st.proportion(values, prompts, concepts, runs=runs, concepts=concepts)
    one = st.proportion(values[:900], prompts[:900], runs=runs[:900])
    assert both.value == pytest.approx(0.5) and both.spread is None
    # 4.30 * 0.3 / √3 for both sides.
    assert one.high - one.low == 1 and both.high - both.low == pytest.approx(0.75, abs=0.05)


def test_means_over_seeds_have_tests_that_agree_with_their_intervals():
    rng, found = np.random.default_rng(1), []
    for _ in range(40):
        rates = np.clip(rng.normal(0.3, 0.15, 3), 0.01, 0.99)
        values, others = rng.random((3, 30)) < rates[:, None], rng.random((3, 30)) < 0.1
        prompts, runs = np.tile(np.arange(30), 3), np.repeat(np.arange(3), 30)
        ours = st.paired_difference(values.ravel(), others.ravel(), prompts, runs=runs)
        assert ours.low <= ours.value <= ours.high
        assert (ours.p_value < 0.05) == (ours.low > 0 or ours.high < 0), ours
        found.append(ours.p_value < 0.05)
    assert 0 < sum(found) < len(found)


def test_the_jackknife_of_a_mean_is_the_mean():
    rng = np.random.default_rng(0)
    values = rng.gamma(1, 1, 15)
    parts = left_out([np.delete(values, i).mean() for i in range(15)])
    assert parts == pytest.approx((values - values.mean()) / 15)
    assert st.from_contributions(values.mean(), parts) == pytest.approx(st.mean(values)._replace(n=0), nan_ok=True)
    grouped = jackknife(lambda names: values[names].mean(), np.arange(15))
    assert sorted(grouped) == pytest.approx(sorted(parts))
    assert len(jackknife(lambda names: 0.0, np.arange(100))) == GROUPS


def test_skewness_widens_the_long_side_only():
    values = np.random.default_rng(0).gamma(1, 1, 20)
    ours, error = st.mean(values), values.std(ddof=1) / math.sqrt(20)
    reach = t.ppf(0.975, 19) * error
    assert ours.low == pytest.approx(ours.value - reach) and ours.high > ours.value + reach
    turned = st.mean(-values)
    assert (turned.low, turned.high) == pytest.approx((-ours.high, -ours.low))


@pytest.mark.parametrize("side", [1, -1])
def test_the_test_of_a_mean_inverts_its_interval(side):
    values = side * np.random.default_rng(0).gamma(1, 1, 20)
    for shift in (-1.5, -0.9, -0.5, 0.0, 0.7):
        ours = st.mean(values + side * shift)
        at = st.mean(values + side * shift, level=1 - ours.p_value)
        assert min(abs(at.low), abs(at.high)) == pytest.approx(0, abs=1e-9)


def test_too_few_prompts_have_no_interval():
    assert st.mean(np.arange(7.0)).low is None and st.mean(np.arange(8.0)).low is not None


def test_mean():
    values = np.random.default_rng(0).normal(3, 1, size=200)
    ours = st.mean(values)
    assert ours.value == pytest.approx(values.mean())
    assert ours.high - ours.low == pytest.approx(2 * 1.96 * values.std(ddof=1) / math.sqrt(200), rel=0.05)
    assert st.mean([1.0, 2.0], ["same", "same"]).low is None


def test_any_at_n():
    names, values = st.any_at_n([1, 0, 0, 0, 0, math.nan, math.nan, 1], ["a", "a", "b", "b", "c", "c", "d", "d"])
    assert list(names) == ["a", "b", "c", "d"]
    assert values == pytest.approx([1, 0, math.nan, 1], nan_ok=True)
    hits = [1, 0, 0, 1, 0]
    one_of = [any(hits[i] for i in draw) for draw in itertools.combinations(range(5), 2)]
    assert st.any_at_n(hits, ["p"] * 5, 2)[1] == pytest.approx([np.mean(one_of)])
    assert np.isnan(st.any_at_n([0, 0, math.nan], ["p"] * 3, 2)[1]).all()  # the failed one could have been positive


def test_an_open_interval_opens_what_is_made_of_it():
    """The differences of 40 and at least 20 to other figures: only a side with limits of both can exclude 0."""
    opened, closed = st.Estimate(40.0, 20.0, None), st.Estimate(4.0, 0.0, 8.0)
    gap, turned = st.difference_of_estimates(opened, closed), st.difference_of_estimates(closed, opened)
    assert gap[:3] == (36, pytest.approx(36 - math.hypot(20, 4)), None) and gap.p_value < 0.05
    assert turned[:3] == (-36, None, pytest.approx(-36 + math.hypot(20, 4))) and turned.p_value == gap.p_value
    none = st.difference_of_estimates(closed._replace(low=None), opened._replace(value=2.0, low=1.0))
    assert none[:3] == (2, None, pytest.approx(2 + math.hypot(4, 1))) and none.p_value == 1
    assert st.difference_of_estimates(opened, st.Estimate(4.0)) == st.Estimate(36.0)
    mean = st.mean_of_estimates([opened, closed], shared=True)
    assert mean[:3] == (22, pytest.approx(22 - 12), None) and mean.spread is None
