"""Statistics against statsmodels, scipy and scikit-learn (goldens), closed forms, and what intervals have to do."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import multinomial

from overpaint.report import statistics as st

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "metrics" / "statistics.json").read_text())["outputs"]
EXACT = 1e-9


@pytest.mark.parametrize("case", GOLDEN["wilson"])
def test_wilson(case):
    assert st.wilson(case["k"], case["n"], case["level"]) == pytest.approx((case["low"], case["high"]), abs=EXACT)


@pytest.mark.parametrize("case", GOLDEN["clopper_pearson"])
def test_clopper_pearson(case):
    assert st.clopper_pearson(case["k"], case["n"]) == pytest.approx((case["low"], case["high"]), abs=EXACT)


@pytest.mark.parametrize("case", GOLDEN["mcnemar"])
@pytest.mark.parametrize("kind", ["exact", "chi2", "chi2_corrected"])
def test_mcnemar(case, kind):
    (_, only_first), (only_second, _) = np.reshape(case["table"], (2, 2)).tolist()
    ours = st.mcnemar(only_first, only_second, exact=kind == "exact", corrected=kind == "chi2_corrected")
    assert ours.value == pytest.approx(case[kind]["statistic"], abs=EXACT)
    assert ours.p_value == pytest.approx(case[kind]["p"], abs=EXACT)
    if kind == "exact":
        assert st.sign_flip([1] * only_first + [-1] * only_second) == pytest.approx(case[kind]["p"], abs=EXACT)


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
    hits = np.concatenate([[1.0] * a + [0.0] * (b - a) for a, b in zip(k, n)])
    return k, n, hits, np.repeat(np.arange(len(n)), n)


def test_cluster_bootstrap_and_robust_error():
    k, n, hits, prompts = clustered()
    golden = GOLDEN["cluster"]
    assert st.cluster_bootstrap(k, n) == pytest.approx(golden["bootstrap_20000"]["percentile"], abs=0.01)
    assert st.cluster_standard_error(k, n) == pytest.approx(golden["cluster_robust_se"], abs=EXACT)
    uncorrected = st.cluster_standard_error(k, n, corrected=False)
    assert uncorrected == pytest.approx(golden["cluster_robust_se_uncorrected"], abs=EXACT)
    ours = st.proportion(hits, prompts)
    assert ours.value == pytest.approx(golden["rate"], abs=EXACT)
    assert (ours.low, ours.high) == pytest.approx(golden["bootstrap_20000"]["percentile"], abs=0.01)
    pooled = st.proportion(hits)
    assert (pooled.low, pooled.high) == pytest.approx(golden["wilson_ignoring_clusters"], abs=EXACT)


def test_paired_difference():
    golden = GOLDEN["paired_difference"]
    ours = st.paired_difference(golden["a"], golden["b"])
    assert ours.value == pytest.approx(golden["mean"], abs=EXACT)
    assert (ours.low, ours.high) == pytest.approx(golden["percentile_20000"], abs=0.01)
    a, b = np.array(golden["a"]), np.array(golden["b"])
    assert ours.p_value == st.mcnemar(int((a > b).sum()), int((b > a).sum())).p_value


def test_tango_inverts_the_score_test():
    """Each limit is the difference whose likeliest shares, found by search, lie just that many deviations away."""
    for gained, lost, n in [(5, 2, 12), (1, 7, 24), (4, 0, 12), (33, 38, 142)]:
        found = (gained - lost) / n
        for limit in st.tango(gained, lost, n):

            def unlikely(share, limit=limit, gained=gained, lost=lost, n=n):
                cells = [share + limit, share, 1 - 2 * share - limit]
                return -sum(k * math.log(max(p, 1e-300)) for k, p in zip((gained, lost, n - gained - lost), cells))

            bounds = (max(0.0, -limit), (1 - limit) / 2)
            share = minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
            deviation = math.sqrt((2 * share + limit - limit**2) / n)
            assert abs(found - limit) / deviation == pytest.approx(1.959964, rel=1e-5)


def test_tango_at_the_edges():
    assert st.tango(0, 0, 10) == pytest.approx((-st.wilson(0, 10)[1], st.wilson(0, 10)[1]))
    z2 = 1.959964**2
    assert st.tango(10, 0, 10) == pytest.approx(((10 - z2) / (10 + z2), 1.0))
    for gained, lost, n in [(0, 0, 1), (3, 1, 12), (12, 0, 12), (2.5, 0.5, 7.5)]:
        assert st.tango(lost, gained, n) == pytest.approx(tuple(-x for x in reversed(st.tango(gained, lost, n))))


@pytest.mark.parametrize("gain, loss", [(0.2, 0.0), (0.3, 0.1), (0.2, 0.2), (0.6, 0.1), (0.8, 0.0)])
def test_paired_intervals_cover(gain, loss):
    """Exact coverage at 12 and 24 pairs, over every outcome; of the second case at 12 a bootstrap holds 0.90."""
    for n in (12, 24):
        hold = 0.0
        for gained, lost in ((i, j) for i in range(n + 1) for j in range(n + 1 - i)):
            chance = multinomial.pmf([gained, lost, n - gained - lost], n, [gain, loss, 1 - gain - loss])
            if chance > 1e-7:
                low, high = st.tango(gained, lost, n)
                hold += chance * (low <= gain - loss <= high)
        assert hold > 0.935, n


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


def test_failed_observations_are_left_out_and_counted():
    ours = st.proportion([1, 0, math.nan, 1], [0, 1, 2, 3])
    assert (ours.value, ours.n, ours.failed) == (2 / 3, 3, 1)
    assert (ours.low, ours.high) == st.wilson(2, 3)
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
    assert (ours.low, ours.high) == st.wilson(0, 10)
    gap = st.paired_difference(np.zeros(40), np.zeros(40), np.repeat(np.arange(10), 4))
    assert gap.low < 0 < gap.high and gap.p_value == 1


def test_strata_that_agree_each_in_itself_still_have_a_width():
    """One label gone and three untouched: 12 of 16, not a certain 0.75."""
    labels = np.repeat(list("abcd"), 4)
    hits = (labels != "a").astype(float)
    ours = st.proportion(hits, np.arange(16), labels)
    assert (ours.value, ours.low, ours.high) == pytest.approx((0.75, *st.wilson(12, 16)))
    gap = st.paired_difference(hits, np.ones(16), np.arange(16), labels)
    assert gap.value == -0.25 and gap.low < -0.25 < gap.high
    uneven = st.proportion([1.0] * 30 + [0.0] * 2, np.arange(32), ["a"] * 30 + ["b"] * 2)
    assert uneven.high - uneven.low > np.subtract(*st.wilson(16, 32)[::-1])  # two images tell little of b


@pytest.mark.parametrize("shares", [(0.05, 0.9, 0.95, 0.98), (0.9,) * 4, (0.8, 0.9, 0.95, 0.99, 1.0), (0.97,) * 9])
def test_few_images_a_stratum_are_covered(shares):
    """UnlearnCanvas' accuracies at the demo's size: four images a label."""
    rng, strata, inside = np.random.default_rng(5), np.repeat(np.arange(len(shares)), 4), 0
    for hits in rng.random((1000, len(strata))) < np.repeat(shares, 4):
        ours = st.proportion(hits, strata=strata)
        inside += ours.low <= np.mean(shares) + 1e-9 and np.mean(shares) - 1e-9 <= ours.high
    assert inside / 1000 > 0.92


def test_strata_of_one_cluster_each():
    hits = [1] * 30 + [0, 1] + [0, 0, 1]
    strata = ["a"] * 30 + ["b"] * 2 + ["c"] * 3
    ours = st.proportion(hits, strata, strata)
    assert ours.value == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert 1 / 3 <= ours.low < ours.value < ours.high <= 1


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


@pytest.mark.parametrize("sums", [[1, 2, -3, 4], [2, 2, 2], [0, 0], [5, -1, -1, 0, 3, 2]])
def test_sign_flip_is_the_enumeration_of_all_signs(sums):
    signs = np.array(list(itertools.product([-1, 1], repeat=len(sums))))
    share = (np.abs(signs @ np.array(sums)) >= abs(sum(sums))).mean()
    assert st.sign_flip(sums) == pytest.approx(share, abs=1e-12)
    if any(sums):
        assert st.sign_flip(np.array(sums) / 7) == pytest.approx(share, abs=0.02)


def test_cluster_bootstrap_covers_where_pooled_wilson_does_not():
    rng, inside = np.random.default_rng(3), np.zeros(2)
    for _ in range(150):
        rates = rng.beta(0.8, 0.8, size=40)
        hits, prompts = (rng.random((40, 6)) < rates[:, None]).astype(float).ravel(), np.repeat(np.arange(40), 6)
        for which, ours in enumerate((st.proportion(hits, prompts, draws=1000), st.proportion(hits))):
            inside[which] += ours.low <= 0.5 <= ours.high
    assert inside[0] / 150 > 0.89
    assert inside[1] / 150 < 0.8


@pytest.mark.parametrize(("prompts", "seeds", "share"), [(50, 10, 0.02), (24, 3, 0.1)])
def test_rare_shares_of_clusters_are_covered(prompts, seeds, share):
    """Shares vary from prompt to prompt, Beta(2 s, 2 (1 - s)); the bootstrap alone is too narrow."""
    rng, inside, clusters = np.random.default_rng(1), np.zeros(2), np.repeat(np.arange(prompts), seeds)
    for _ in range(400):
        rates = rng.beta(2 * share, 2 * (1 - share), size=(prompts, 1))
        hits = (rng.random((prompts, seeds)) < rates).astype(float)
        ours = st.proportion(hits.ravel(), clusters, draws=500)
        low, high = st.cluster_bootstrap(hits.sum(axis=1), np.full(prompts, seeds), draws=500)
        inside += ours.low <= share <= ours.high, low <= share <= high
    assert inside[0] / 400 > 0.92 and inside[1] / 400 < 0.9


def test_independent_seeds_are_worth_what_they_are():
    """One positive in 50 prompts of 10 seeds is worth 500 images, prompts whose seeds all agree no more than prompts."""
    hits, prompts = np.eye(1, 500).ravel(), np.repeat(np.arange(50), 10)
    ours = st.proportion(hits, prompts)
    assert ours.high == pytest.approx(st.wilson(1, 500)[1], rel=0.01) and ours.low == 0
    alike = st.proportion(np.repeat([1.0, 0.0], [20, 80]), np.repeat(np.arange(10), 10))
    assert alike.high - alike.low > 0.9 * np.subtract(*st.wilson(2, 10)[::-1])


def test_tests_keep_their_level():
    rng, rejected = np.random.default_rng(4), np.zeros(2)
    prompts = np.repeat(np.arange(20), 4)
    for _ in range(200):
        rates = rng.beta(0.8, 0.8, size=(20, 1))
        a, b = ((rng.random((20, 4)) < rates).astype(float).ravel() for _ in range(2))
        other = (rng.random((20, 4)) < rng.beta(0.8, 0.8, size=(20, 1))).astype(float).ravel()
        rejected += (
            st.paired_difference(a, b, prompts, draws=200).p_value <= 0.05,
            st.unpaired_difference(a, other, prompts, prompts, draws=500).p_value <= 0.05,
        )
    assert (rejected / 200 < 0.09).all()


def test_unpaired_difference_agrees_with_newcombe():
    ours = st.unpaired_difference([1] * 56 + [0] * 14, [1] * 48 + [0] * 32)
    assert (ours.low, ours.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)  # Newcombe (1998), method 10, example (a)


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


def test_rank_intervals():
    rng = np.random.default_rng(0)
    values = (rng.random((4, 200)) < [[0.9], [0.5], [0.5], [0.1]]).astype(float)
    values[2] = values[1]
    up, down = st.rank_intervals(values), st.rank_intervals(values, "down")
    assert [e.value for e in up] == [1, 2, 2, 4]
    assert [e.value for e in down] == [4, 2, 2, 1]
    assert (up[0].low, up[0].high) == (1, 1)
    close = st.rank_intervals(np.stack([values[1], rng.permutation(values[1])]))
    assert {(e.low, e.high) for e in close} == {(1.0, 2.0)}
    values[0, 0] = math.nan
    assert st.rank_intervals(values)[3].failed == 1


def test_smallest_detectable_difference():
    alone = st.smallest_detectable_difference(1000)
    assert alone == pytest.approx((1.96 + 0.8416) * math.sqrt(0.25 / 1000), rel=0.01)
    assert st.smallest_detectable_difference(2000) < alone
    assert st.smallest_detectable_difference(1000, seeds=4) < alone
    assert st.smallest_detectable_difference(1000, seeds=4, within_prompt=1.0) == pytest.approx(alone)
    assert st.smallest_detectable_difference(1) is None
    assert st.smallest_detectable_difference(2) is None


def test_smallest_detectable_difference_is_found_as_often_as_it_says():
    prompts, rng = 60, np.random.default_rng(6)
    gap = st.smallest_detectable_difference(prompts, pair_correlation=0.0, rate=0.5)
    first = rng.random((200, prompts)) < 0.5 + gap / 2
    second = rng.random((200, prompts)) < 0.5 - gap / 2
    found = [st.paired_difference(a, b, draws=50).p_value <= 0.05 for a, b in zip(first, second)]
    assert 0.65 < np.mean(found) < 0.9
