"""Statistics of a benchmark: estimates with intervals, paired comparisons, corrections, ranks and power.

All functions are pure functions of numbers. They know nothing about images, models or erasure.

An observation is ``1`` (present), ``0`` (absent) or ``NaN`` (failed). Failed observations are excluded and counted; they are
never treated as absent. Observations of one *cluster* (a prompt with several seeds) are dependent. All random numbers are
drawn from ``seed``, and no result depends on the order of the observations. Undefined results are ``None``. Shares have score
intervals and score tests: see `overpaint.report.scores` and ``docs/statistics.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from overpaint.report import scores
from overpaint.report.resampling import limits, observed, resampled_ratios
from overpaint.report.scores import Sample

#: Incremented when an interval or a p-value can change. All figures are then measured again from stored scores.
VERSION = 5
LEVEL = 0.95
DRAWS = 10_000
TINY = 1e-9
#: Largest number of pairs for which the power of a test is computed exactly.
EXACT_PAIRS = 150
#: Equivalence margin: two shares count as equal if their difference is smaller than this.
MARGIN = 0.10
#: The 97.5 % quantile of the normal distribution.
NORMAL = 1.959964


class Estimate(NamedTuple):
    """A value with its interval, its tests and its numbers of observations.

    For differences, ``p_value`` tests "the difference is zero" (two-sided) and ``p_equivalence`` tests "the absolute difference
    is at least `MARGIN`" (two one-sided tests, Schuirmann 1987). ``spread`` is the standard deviation between the averaged
    concepts or method seeds, without sampling noise.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    n: int = 0
    failed: int = 0
    p_equivalence: float | None = None
    spread: float | None = None


class Harmonic(NamedTuple):
    """A harmonic mean and its terms."""

    value: float | None
    terms: tuple[float | None, ...]


class Adjusted(NamedTuple):
    """Corrected p-values in the order given, and whether each is significant; ``None`` for undefined entries."""

    p_values: list[float | None]
    rejected: list[bool | None]


# --- shares ----------------------------------------------------------------------------------------------------


def wilson(successes: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927), for independent observations."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    return (float(low) if successes else 0.0), (float(high) if successes < n else 1.0)  # to the last bit


def clopper_pearson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper and Pearson 1934). Its coverage is never below the level."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, alpha=1 - level, method="beta")
    return float(np.nan_to_num(low, nan=0.0)), float(np.nan_to_num(high, nan=1.0))


def tango(gained: float, lost: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Score interval of the difference ``(gained - lost) / n`` of two paired shares (Tango 1998).

    ``gained`` of n pairs are (1, 0) and ``lost`` are (0, 1). If no pair differs, the limits are plus and minus the upper limit
    of Wilson's interval for 0 of n.
    """
    of = scores.independent((gained - lost) / n, n, up=gained / n, down=lost / n)
    low, high = scores.difference_interval(of, level)
    return float(low[0]), float(high[0])


def proportion(
    hits: ArrayLike, clusters: ArrayLike | None = None, strata: ArrayLike | None = None, level: float = LEVEL
) -> Estimate:
    """Share of positive observations with its score interval.

    With ``strata``, the value is the mean of the shares of all strata with equal weights.
    """
    kept, groups, failed = observed(hits, clusters, strata)
    if len(kept) == 0:
        return Estimate(None, failed=failed)
    of = scores.sample(kept, *groups)
    low, high = scores.share_interval(of, level)
    return Estimate(float(of.mean[0]), float(low[0]), float(high[0]), n=len(kept), failed=failed)


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    clusters: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    level: float = LEVEL,
    margin: float = MARGIN,
) -> Estimate:
    """Mean of ``first - second`` over aligned observations. Pairs with a failed observation are excluded.

    For 0/1 observations, interval and tests are Tango's, with clusters and strata as in `proportion`. Other values have a
    t-interval over cluster means (`mean`) and no equivalence test.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    if a.shape != b.shape:
        raise ValueError(f"paired observations must be aligned, got {a.shape} and {b.shape}")
    kept, groups, failed = observed(a - b, clusters, strata)
    if len(kept) == 0:
        return Estimate(None, failed=failed)
    if not np.isin(kept, (-1, 0, 1)).all():
        return mean(kept, groups[0], level)._replace(failed=failed)
    of = scores.sample(kept, *groups)
    return _difference(
        of,
        lambda v: scores.difference_score(of, v),
        scores.difference_interval(of, level),
        Estimate(float(of.mean[0]), n=len(kept), failed=failed),
        margin,
    )


def _difference(
    of: Sample, score: Callable[[NDArray], NDArray], interval: tuple[NDArray, NDArray], found: Estimate, margin: float
) -> Estimate:
    """The estimate with its interval and both tests, all from the same score."""
    below, zero, above = (score(np.array([v])) for v in (-margin, 0.0, margin))
    same = max(float(scores.p_value(of, z, sides=1)[0]) for z in (below, -above))
    p_value = float(scores.p_value(of, zero)[0])
    low, high = (float(limit[0]) for limit in interval)
    return found._replace(low=low, high=high, p_value=p_value, p_equivalence=same)


def unpaired_difference(
    first: ArrayLike,
    second: ArrayLike,
    first_clusters: ArrayLike | None = None,
    second_clusters: ArrayLike | None = None,
    level: float = LEVEL,
    margin: float = MARGIN,
) -> Estimate:
    """Difference of two shares without pairing: the score interval and tests of Miettinen and Nurminen (1985), at the
    effective sizes of the two clustered samples."""
    found = [observed(hits, c, None) for hits, c in ((first, first_clusters), (second, second_clusters))]
    failed = sum(f for *_, f in found)
    if any(len(kept) == 0 for kept, *_ in found):
        return Estimate(None, failed=failed)
    one, other = (scores.sample(kept, *groups) for kept, groups, _ in found)
    fewer = one if one.few[0] <= other.few[0] else other
    return _difference(
        fewer,
        lambda v: scores.unpaired_score(one, other, v),
        scores.unpaired_interval(one, other, level),
        Estimate(float(one.mean[0] - other.mean[0]), n=sum(len(kept) for kept, *_ in found), failed=failed),
        margin,
    )


# --- means -----------------------------------------------------------------------------------------------------


def mean(values: ArrayLike, clusters: ArrayLike | None = None, level: float = LEVEL) -> Estimate:
    """Mean of real values, with a t-interval and a t-test from `cluster_standard_error`. One cluster gives no interval."""
    from scipy.stats import t

    kept, (groups, _), failed = observed(values, clusters, None)
    if len(kept) == 0:
        return Estimate(None, failed=failed)
    members = np.unique(groups, return_inverse=True)[1]
    value, sums, sizes = float(kept.mean()), np.bincount(members, kept), np.bincount(members)
    error = cluster_standard_error(sums, sizes)
    if error is None:
        return Estimate(value, n=len(kept), failed=failed)
    reach, free = float(t.ppf((1 + level) / 2, len(sums) - 1)) * error, len(sums) - 1
    p_value = float(2 * t.sf(abs(value) / error, free)) if error else float(value == 0)
    return Estimate(value, value - reach, value + reach, p_value, len(kept), failed)


def mean_of_estimates(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of independent estimates with equal weights. The interval combines theirs (square and add, Zou 2008).

    The averaged concepts are treated as fixed: the interval makes no statement about other concepts. The lower and the upper
    half-widths are combined separately, so that bounded figures keep their asymmetry. If one estimate is undefined, the mean is
    undefined, because the mean of the others would be a different figure.
    """
    if not estimates or any(e.value is None for e in estimates):
        return Estimate(None)
    values = np.array([e.value for e in estimates], float)
    value = float(values.mean())
    found = Estimate(value, n=sum(e.n for e in estimates), failed=sum(e.failed for e in estimates))
    if any(e.low is None or e.high is None for e in estimates):
        return found
    limits_of = [e.low for e in estimates], [e.high for e in estimates]
    below, above = (np.abs(values - np.array(side, float)) for side in limits_of)
    low, high = (float(np.sqrt((side**2).sum())) / len(values) for side in (below, above))
    errors = (below + above) / 2 / NORMAL
    return found._replace(low=value - low, high=value + high, spread=spread(values, errors))


def spread(values: ArrayLike, errors: ArrayLike) -> float | None:
    """Standard deviation between true values, from estimates and their standard errors.

    It is the root of the variance of the estimates minus the mean of their sampling variances, or 0 if that is negative
    (DerSimonian and Laird 1986, with equal weights).
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        return None
    return math.sqrt(max(float(values.var(ddof=1) - np.square(errors).mean()), 0.0))


def mean_over_runs(values: ArrayLike, runs: ArrayLike, clusters: ArrayLike, inside: Estimate) -> Estimate:
    """Mean over ``runs`` (method seeds, or concepts) that are a sample of all possible runs: a two-level interval.

    ``values``, ``runs`` and ``clusters`` are aligned, ``(observations,)``. A prompt that all runs share is one cluster.
    ``inside`` is the estimate with the runs treated as fixed: the level of the prompts. Let S be the number of runs, B the
    variance of their means, N the part of B that comes from prompts and images, and I the squared standard error of
    ``inside``. Then

        error² = B / S + max(I − N / S, 0),    reach = t_ν · error

    where ν is Satterthwaite's (1946) number of degrees of freedom, from S − 1 for B / S and the number of clusters minus one for
    the rest. On both sides, the interval is at least as wide as that of ``inside``. For a single run the result is ``inside``.
    ``spread`` is the square root of B − N.
    """
    from scipy.stats import t

    kept, (group, run), _ = observed(values, clusters, runs)
    names, run = np.unique(run, return_inverse=True)
    if inside.value is None or inside.low is None or inside.high is None or len(names) < 2:
        return inside
    group = np.unique(group, return_inverse=True)[1]
    sizes = np.bincount(run)
    means = np.bincount(run, kept) / sizes
    parts = np.zeros((len(names), group.max() + 1))  # contribution of each cluster to the mean of each run
    np.add.at(parts, (run, group), (kept - means[run]) / sizes[run])
    held = np.zeros(parts.shape, bool)
    held[run, group] = True
    sharing = held.sum(axis=0)
    own = np.where(sharing > 1, (parts - parts.sum(axis=0) / sharing) * held, parts)
    noise = (own**2).sum(axis=1) * held.sum(axis=1) / np.maximum(held.sum(axis=1) - 1, 1)
    side, count = (1 + LEVEL) / 2, len(names)
    outer = float(means.var(ddof=1)) / count

    def reach(half: float) -> float:
        """Half the width of one side, from that of ``inside``."""
        inner = max((half / NORMAL) ** 2 - float(noise.mean()) / count, 0.0)
        free = (outer + inner) ** 2 / (outer**2 / (count - 1) + inner**2 / max(group.max(), 1)) if outer else math.inf
        return max(half, float(t.ppf(side, free)) * math.sqrt(outer + inner))

    below, above = reach(inside.value - inside.low), reach(inside.high - inside.value)
    return inside._replace(low=inside.value - below, high=inside.value + above, spread=spread(means, np.sqrt(noise)))


def cluster_bootstrap(
    successes: ArrayLike, sizes: ArrayLike, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of sum(successes) / sum(sizes), by resampling whole clusters (Field and Welsh 2007).

    ``successes`` and ``sizes`` are ``(clusters,)``: positive observations and observations in each cluster.
    """
    return limits(resampled_ratios(successes, sizes, draws, np.random.default_rng(seed)), level)


def cluster_standard_error(successes: ArrayLike, sizes: ArrayLike, corrected: bool = True) -> float | None:
    """Linearised (sandwich) standard error of sum(successes) / sum(sizes), robust to dependence inside clusters.

    ``sqrt(sum_c (k_c - p n_c)^2) / sum n``, times ``sqrt(C / (C - 1))`` when corrected for C clusters (Liang and
    Zeger 1986).
    """
    k, n = np.asarray(successes, float), np.asarray(sizes, float)
    if n.sum() == 0 or (corrected and len(n) < 2):
        return None
    residuals = k - k.sum() / n.sum() * n
    error = math.sqrt(float(residuals @ residuals)) / float(n.sum())
    return error * math.sqrt(len(n) / (len(n) - 1)) if corrected else error


# --- tests, corrections, ranks ---------------------------------------------------------------------------------


def mcnemar(only_first: int, only_second: int, exact: bool = True, corrected: bool = True) -> Estimate:
    """McNemar's test (1947) of the two kinds of discordant pairs. ``value`` is the statistic.

    The exact test is binomial. The other is chi-squared, with or without continuity correction, and is undefined without
    discordant pairs.
    """
    from statsmodels.stats.contingency_tables import mcnemar as test

    n = only_first + only_second
    if n == 0:
        return Estimate(0.0, p_value=1.0) if exact else Estimate(None)
    result = test([[0, only_first], [only_second, 0]], exact=exact, correction=corrected)
    return Estimate(float(result.statistic), p_value=float(result.pvalue), n=n)


def holm(p_values: Sequence[float | None], level: float = LEVEL) -> Adjusted:
    """Holm's step-down correction (1979), which controls the family-wise error rate."""
    return _adjusted(p_values, "holm", level)


def benjamini_hochberg(p_values: Sequence[float | None], level: float = LEVEL) -> Adjusted:
    """Benjamini and Hochberg's correction (1995), which controls the false discovery rate."""
    return _adjusted(p_values, "fdr_bh", level)


def _adjusted(p_values: Sequence[float | None], method: str, level: float) -> Adjusted:
    """p-values corrected by statsmodels. Undefined entries stay undefined and do not count as tests."""
    from statsmodels.stats.multitest import multipletests

    defined = [i for i, p in enumerate(p_values) if p is not None and not math.isnan(p)]
    adjusted: list[float | None] = [None] * len(p_values)
    rejected: list[bool | None] = [None] * len(p_values)
    if defined:
        outcome = multipletests([p_values[i] for i in defined], alpha=1 - level, method=method)
        for i, reject, p in zip(defined, outcome[0], outcome[1], strict=True):
            adjusted[i], rejected[i] = float(p), bool(reject)
    return Adjusted(adjusted, rejected)


def kendall_tau_b(x: ArrayLike, y: ArrayLike) -> Estimate:
    """Kendall's tau-b (1945) of two orderings, which may have ties. Undefined if either ordering is constant."""
    from scipy.stats import kendalltau

    result = kendalltau(np.asarray(x, float), np.asarray(y, float), variant="b")
    if math.isnan(result.statistic):
        return Estimate(None, n=len(np.asarray(x)))
    return Estimate(float(result.statistic), p_value=float(result.pvalue), n=len(np.asarray(x)))


def auc(positive: ArrayLike, negative: ArrayLike) -> float | None:
    """Area under the ROC curve: P(positive > negative) + P(equal) / 2, from exact ranks (Mann and Whitney 1947)."""
    from scipy.stats import rankdata

    p, q = (side[~np.isnan(side)] for side in (np.asarray(positive, float), np.asarray(negative, float)))
    if not len(p) or not len(q):
        return None
    ranks = rankdata(np.concatenate([p, q]))[: len(p)].sum()
    return float((ranks - len(p) * (len(p) + 1) / 2) / (len(p) * len(q)))


def rogan_gladen(apparent: float | None, sensitivity: float, specificity: float, clip: bool = True) -> float | None:
    """The true share, estimated from the apparent share of an imperfect detector (Rogan and Gladen 1978).

    It is ``(apparent + specificity - 1) / (sensitivity + specificity - 1)``, clipped to [0, 1] unless ``clip`` is false.
    It is undefined for a detector that is no better than chance.
    """
    informative = sensitivity + specificity - 1
    if apparent is None or informative <= 0:
        return None
    value = (apparent + specificity - 1) / informative
    return min(max(value, 0.0), 1.0) if clip else value


def harmonic_mean(*terms: float | None) -> Harmonic:
    """Harmonic mean. It is undefined if a term is undefined, and 0 if a term is not positive."""
    known = [t for t in terms if t is not None and not math.isnan(t)]
    if not terms or len(known) < len(terms):
        return Harmonic(None, terms)
    if any(t <= 0 for t in known):
        return Harmonic(0.0, terms)
    return Harmonic(len(known) / sum(1 / t for t in known), terms)


def harmonic_of_estimates(estimates: Sequence[Estimate]) -> Estimate:
    """Harmonic mean of independent estimates, with an interval from theirs.

    Each estimate is moved to its own limit while the others stay; the changes are squared and added (Zou and Donner 2008). If
    several estimates are 0, the upper limit is the harmonic mean of all upper limits.
    """
    values = [e.value for e in estimates]
    value = harmonic_mean(*values).value
    found = Estimate(value, n=sum(e.n for e in estimates), failed=sum(e.failed for e in estimates))
    lows, highs = [e.low for e in estimates], [e.high for e in estimates]
    if value is None or None in lows or None in highs:
        return found

    def moved(limits_of: Sequence[float | None]) -> float:
        changes = [
            (harmonic_mean(*values[:place], limit, *values[place + 1 :]).value or 0.0) - value
            for place, limit in enumerate(limits_of)
        ]
        return math.sqrt(sum(change**2 for change in changes))

    low, high = value - moved(lows), value + moved(highs)
    if sum(v == 0 for v in values) > 1:
        high = harmonic_mean(*highs).value or 0.0
    return found._replace(low=max(low, 0.0), high=min(high, max(h for h in highs if h is not None)))


def difference_of_estimates(first: Estimate, second: Estimate) -> Estimate:
    """Difference of two independent estimates: their half-widths are squared and added (Zou and Donner 2008).

    ``p_value`` inverts the interval: it is below 0.05 exactly if the interval excludes 0.
    """
    numbers = (first.value, first.low, first.high, second.value, second.low, second.high)
    if first.value is None or second.value is None:
        return Estimate(None)
    gap = first.value - second.value
    if any(number is None for number in numbers):
        return Estimate(gap)
    a, a_low, a_high, b, b_low, b_high = (float(number) for number in numbers if number is not None)
    below, above = math.hypot(a - a_low, b_high - b), math.hypot(a_high - a, b - b_low)
    error = (below if gap > 0 else above) / NORMAL
    p_value = math.erfc(abs(gap) / error / math.sqrt(2)) if error else float(gap == 0)
    return Estimate(gap, gap - below, gap + above, p_value)


def any_at_n(hits: ArrayLike, clusters: ArrayLike, n: int | None = None) -> tuple[NDArray, NDArray]:
    """For each cluster, the probability that a random subset of n of its observations contains a positive one.

    It is ``1 - C(m - k, n) / C(m, n)`` for k positives among m (Chen et al. 2021, pass@k). With ``n=None`` all observations
    are used, so the value is 0 or 1. A failed observation could have been positive: a cluster with failed observations is NaN if
    the others contain no positive one or are fewer than n. Returns ``(clusters, values)``.
    """
    import pandas as pd

    frame = pd.DataFrame({"cluster": np.asarray(clusters), "hit": np.asarray(hits, float)})
    found = frame.groupby("cluster", sort=True)["hit"].agg(["sum", "count", "size"])
    values = np.full(len(found), math.nan)
    for place, (positive, valid, made) in enumerate(found.astype(int).itertuples(index=False)):
        drawn = made if n is None else n
        if valid >= drawn:
            values[place] = 1 - math.comb(valid - positive, drawn) / math.comb(valid, drawn)
        elif positive and n is None:
            values[place] = 1.0
    return found.index.to_numpy(), values


def mean_ranks(table: ArrayLike, directions: Sequence[str]) -> tuple[NDArray, NDArray]:
    """Ranks (methods, tasks) of the columns of a table, and mean ranks (methods,).

    HUB prints such mean ranks (arXiv 2410.05664, Table 5). Rank 1 is best; ties share the better rank. ``directions``
    has ``"up"`` or ``"down"`` for every task.
    """
    from scipy.stats import rankdata

    signs = np.array([1.0 if direction == "down" else -1.0 for direction in directions])
    ranks = rankdata(np.asarray(table, float) * signs, method="min", axis=0)
    return ranks, ranks.mean(axis=1)


def rank_intervals(
    values: ArrayLike, direction: str = "up", level: float = LEVEL, draws: int = 2_000, seed: int = 0
) -> list[Estimate]:
    """Ranks of methods by their mean over the same prompts, with intervals from resampled prompts.

    Rank 1 is best; ties share the better rank. ``values`` is ``(methods, prompts)``. Prompts on which any method failed are
    excluded.
    """
    from scipy.stats import rankdata

    table = np.asarray(values, float)
    complete = ~np.isnan(table).any(axis=0)
    failed = int((~complete).sum())
    table = table[:, complete] * (-1 if direction == "up" else 1)
    prompts = table.shape[1]
    if prompts == 0:
        return [Estimate(None, failed=failed)] * len(table)
    table = table[:, np.lexsort(table)]
    picks = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=draws)
    ranks = rankdata((picks @ table.T / prompts).round(12), method="min", axis=1)
    own = rankdata(table.mean(axis=1).round(12), method="min")
    limits = np.percentile(ranks, [50 * (1 - level), 50 * (1 + level)], axis=0, method="nearest")
    return [
        Estimate(float(r), float(a), float(b), n=prompts, failed=failed) for r, a, b in zip(own, *limits, strict=True)
    ]


def power_of_paired_difference(
    difference: float,
    prompts: int,
    seeds: int = 1,
    tests: int = 1,
    rate: float = 0.5,
    pair_correlation: float = 0.5,
    within_prompt: float = 0.3,
    level: float = LEVEL,
) -> float:
    """The probability that `paired_difference` on ``prompts x seeds`` pairs detects a true difference, after correction.

    The shares are p ± difference / 2 around the ``rate`` p. A share q of the pairs differs; it depends on the correlation r of
    the two models' images of one prompt and seed. With g pairs gained and l lost, the score test rejects if
    ``|g − l| > z √(g + l)``. z is the quantile of the two-sided level divided by ``tests``, the size of the family under Holm's
    correction, so the result is the power of its first and strictest step. Up to `EXACT_PAIRS` pairs, the power is summed over
    all g and l. For more pairs it is approximately

        Φ((difference √n − z √q) / √(q − difference²)),    n = prompts · seeds / (1 + (seeds − 1) c)

    (Miettinen 1968; Connor 1987). c is the correlation of one prompt's differences (Kish 1965).
    """
    from scipy.stats import multinomial, norm

    effective = prompts * seeds / (1 + (seeds - 1) * within_prompt)
    far = float(norm.ppf(1 - (1 - level) / (2 * tests)))
    first, second = min(rate + difference / 2, 1.0), max(rate - difference / 2, 0.0)
    if first == 1.0 or second == 0.0:  # the shares would leave [0, 1]
        first, second = (difference, 0.0) if rate < 0.5 else (1.0, 1.0 - difference)
    both = pair_correlation * math.sqrt(first * (1 - first) * second * (1 - second))
    differing = max(first * (1 - second) + second * (1 - first) - 2 * both, difference)
    if effective <= EXACT_PAIRS:
        n = int(effective + TINY)
        gained, lost = (side.ravel() for side in np.mgrid[: n + 1, : n + 1])
        rejected = (gained + lost <= n) & (np.abs(gained - lost) > far * np.sqrt(gained + lost))
        outcomes = np.stack([gained, lost, n - gained - lost], axis=1)[rejected]
        chances = np.clip([(differing + difference) / 2, (differing - difference) / 2, 1 - differing], 0, 1)
        return float(multinomial.pmf(outcomes, n, chances / chances.sum()).sum()) if len(outcomes) else 0.0
    gap = difference * math.sqrt(effective) - far * math.sqrt(differing)
    spread_ = math.sqrt(max(differing - difference**2, 0.0))
    return float(norm.cdf(gap / spread_)) if spread_ > 0 else float(gap > 0)


def smallest_detectable_difference(
    prompts: int,
    seeds: int = 1,
    tests: int = 1,
    rate: float = 0.5,
    pair_correlation: float = 0.5,
    within_prompt: float = 0.3,
    power: float = 0.8,
    level: float = LEVEL,
) -> float | None:
    """The smallest difference of two shares that the paired score test detects with this ``power``.

    ``prompts`` is the actual number of prompts, which may be smaller than the number requested. ``tests`` is the size of the
    family of primary endpoints. The default rate is the hardest case; both default correlations are round values for moderate
    prompt effects. Returns ``None`` if the budget is too small to detect any difference. See `power_of_paired_difference`.
    """
    if prompts < 2 or seeds < 1:
        return None
    from scipy.optimize import brentq

    def shortfall(difference: float) -> float:
        return (
            power_of_paired_difference(difference, prompts, seeds, tests, rate, pair_correlation, within_prompt, level)
            - power
        )

    return float(brentq(shortfall, 1e-9, 1.0, xtol=1e-6)) if shortfall(1.0) >= 0 else None
