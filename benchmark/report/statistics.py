"""Statistics of a benchmark: estimates with intervals, paired comparisons and corrections.

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

from overpaint.report import scores, seeds
from overpaint.report.resampling import observed
from overpaint.report.scores import Sample

#: Incremented when an interval or a p-value can change. All figures are then measured again from stored scores.
VERSION = 6
LEVEL = 0.95
TINY = 1e-9
#: Equivalence margin: two shares count as equal if their difference is smaller than this.
MARGIN = 0.10
#: Fewer prompts have no interval of a mean of real values: for skewed values, it would cover too rarely.
FEWEST_PROMPTS = 8
#: The 97.5 % quantile of the normal distribution.
NORMAL = 1.959964


class Estimate(NamedTuple):
    """A value with its interval, its tests and its numbers of observations.

    An interval with one limit is open on the other side: nothing is known about how far the true value may be.
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


def wilson(successes: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927), for independent observations."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    return (float(low) if successes else 0.0), (float(high) if successes < n else 1.0)  # to the last bit


def tango(gained: float, lost: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Score interval of the difference ``(gained - lost) / n`` of two paired shares (Tango 1998).

    ``gained`` of n pairs are (1, 0) and ``lost`` are (0, 1). If no pair differs, the limits are plus and minus the upper limit
    of Wilson's interval for 0 of n.
    """
    of = scores.independent((gained - lost) / n, n, up=gained / n, down=lost / n)
    low, high = scores.difference_interval(of, level)
    return float(low[0]), float(high[0])


def proportion(
    hits: ArrayLike,
    clusters: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    level: float = LEVEL,
    weights: ArrayLike | None = None,
    runs: ArrayLike | None = None,
    concepts: ArrayLike | None = None,
) -> Estimate:
    """Share of positive observations with its score interval.

    With ``strata``, the value is the mean of the shares of all strata, with equal weights or with the weights that
    ``weights`` gives for each observation's stratum. With ``runs``, method seeds of each of the ``concepts`` are a sample:
    see `mean_over_runs`.
    """
    kept, groups, failed = observed(hits, clusters, strata)
    if len(kept) == 0:
        return Estimate(None, failed=failed)
    of = scores.sample(kept, *groups, by_stratum(weights, hits, groups[1]))
    low, high = scores.share_interval(of, level)
    found = Estimate(float(of.mean[0]), float(low[0]), float(high[0]), n=len(kept), failed=failed)
    return found if runs is None else mean_over_runs(found, hits, runs, clusters, strata, concepts, (0.0, 1.0))


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    clusters: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    level: float = LEVEL,
    margin: float = MARGIN,
    weights: ArrayLike | None = None,
    runs: ArrayLike | None = None,
    concepts: ArrayLike | None = None,
    interval: bool = True,
) -> Estimate:
    """Mean of ``first - second`` over aligned observations. Pairs with a failed observation are excluded.

    If both sides are 0/1 observations, interval and tests are Tango's, with the other arguments as in `proportion`. Other values
    have the interval and test of `mean`, and no equivalence test. Without ``interval``, shares whose seeds are no sample have
    only the p-value of the difference; the search for the limits takes most of the time.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    if a.shape != b.shape:
        raise ValueError(f"paired observations must be aligned, got {a.shape} and {b.shape}")
    kept, groups, failed = observed(a - b, clusters, strata)
    if len(kept) == 0:
        return Estimate(None, failed=failed)
    if not all(np.isin(side[~np.isnan(side)], (0, 1)).all() for side in (a, b)):
        found = mean(kept, groups[0], level)._replace(failed=failed)
        return found if runs is None else mean_over_runs(found, a - b, runs, clusters, None, concepts)
    of = scores.sample(kept, *groups, by_stratum(weights, a - b, groups[1]), images=2)
    found = Estimate(float(of.mean[0]), n=len(kept), failed=failed)
    if not interval and not seeds.are_sample(runs, concepts):
        return found._replace(p_value=float(scores.p_value(of, scores.difference_score(of, np.zeros(1)))[0]))
    limits = scores.difference_interval(of, level)
    found = _difference(of, lambda v: scores.difference_score(of, v), limits, found, margin)
    return found if runs is None else mean_over_runs(found, a - b, runs, clusters, strata, concepts, (-1.0, 1.0))


def _difference(
    of: Sample, score: Callable[[NDArray], NDArray], interval: tuple[NDArray, NDArray], found: Estimate, margin: float
) -> Estimate:
    """The estimate with its interval and both tests, all from the same score."""
    below, zero, above = (score(np.array([v])) for v in (-margin, 0.0, margin))
    same = max(float(scores.p_value(of, z, sides=1)[0]) for z in (below, -above))
    p_value = float(scores.p_value(of, zero)[0])
    low, high = (float(limit[0]) for limit in interval)
    return found._replace(low=low, high=high, p_value=p_value, p_equivalence=same)


def by_stratum(weights: ArrayLike | None, values: ArrayLike, stratum: NDArray) -> NDArray | None:
    """The weights ``(strata,)`` of strata from those of observations, which are equal within each stratum."""
    if weights is None:
        return None
    kept = np.asarray(weights, float)[~np.isnan(np.asarray(values, float))]
    return kept[np.unique(stratum, return_index=True)[1]]


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
    return _difference(
        scores.beside(one, other),
        lambda v: scores.unpaired_score(one, other, v),
        scores.unpaired_interval(one, other, level),
        Estimate(float(one.mean[0] - other.mean[0]), n=sum(len(kept) for kept, *_ in found), failed=failed),
        margin,
    )


def mean(values: ArrayLike, clusters: ArrayLike | None = None, level: float = LEVEL) -> Estimate:
    """Mean of real values, with interval and test from the contributions of its clusters: see `from_contributions`."""
    kept, (groups, _), failed = observed(values, clusters, None)
    if len(kept) == 0:
        return Estimate(None, failed=failed)
    members = np.unique(groups, return_inverse=True)[1]
    value, sums, sizes = float(kept.mean()), np.bincount(members, kept), np.bincount(members)
    found = from_contributions(value, (sums - value * sizes) / len(kept), level=level)
    return found._replace(n=len(kept), failed=failed)


def from_contributions(value: float, *samples: NDArray, level: float = LEVEL) -> Estimate:
    """Interval and test of a value, from the contributions of clusters to its deviation from the true value.

    Each of ``samples`` is one independent sample ``(clusters,)`` of contributions. For a mean, these are the clusters' sums of
    residuals over n; for other figures they come from a jackknife (`overpaint.report.resampling.left_out`). With C clusters,

        error² = Σ C/(C−1) Σ_c p_c²,    a = Σ C²/((C−1)(C−2)) Σ_c p_c³ / error³

    The first is the sandwich variance (Liang and Zeger 1986), the second the skewness of the value. The limits are
    value ± t · error, and the limit on the long side of the distribution is moved outwards by Johnson's (1978) correction,
    |a| (2 t² + 1) / 6 · error. The test inverts the interval. Degrees of freedom are C − 1, or Satterthwaite's for several
    samples. With fewer than `FEWEST_PROMPTS` clusters in a sample, interval and test are undefined. If all clusters agree, the
    interval has no width (see `where_one_differs`), and p is 2^(1 − C) of the smallest sample.
    """
    from scipy.special import stdtr, stdtrit

    counts = np.array([len(part) for part in samples], float)
    if counts.min() < FEWEST_PROMPTS:
        return Estimate(value)
    variances = np.array([c / (c - 1) * (part @ part) for c, part in zip(counts, samples, strict=True)])
    error = math.sqrt(variances.sum())
    if error <= TINY * abs(value):  # all clusters agree
        return Estimate(value, value, value, 1.0 if value == 0 else float(2.0 ** (1 - counts.min())))
    third = sum(c**2 / ((c - 1) * (c - 2)) * float((part**3).sum()) for c, part in zip(counts, samples, strict=True))
    skewness, free = third / error**3, variances.sum() ** 2 / (variances**2 / (counts - 1)).sum()
    far = float(stdtrit(free, (1 + level) / 2))
    low, high = (value + side * error * _moved(far, max(side * skewness, 0.0)) for side in (-1, 1))
    quantile = _quantile(abs(value) / error, max(-skewness if value > 0 else skewness, 0.0))
    return Estimate(value, low, high, float(2 * stdtr(free, -quantile)))


def where_one_differs(found: Estimate, clusters: ArrayLike) -> Estimate:
    """A mean of values whose clusters all agree, with the interval for the share of values that could differ by 1.

    ``clusters`` (n,) has one entry per value. If the mean were 0, at least the share |value| would differ, so the p-value is at
    least twice the probability that none of the C clusters does, 2 (1 − |value|)^C. An estimate whose interval has a width is
    returned as it is.
    """
    if found.value is None or found.low is None or found.low != found.high:
        return found
    names = np.asarray(clusters)
    other = proportion(np.zeros(len(names)), names).high or 0.0
    none = min(2 * max(1 - abs(found.value), 0.0) ** len(np.unique(names)), 1.0)
    p_value = None if found.p_value is None else max(found.p_value, none)
    return found._replace(low=found.value - other, high=found.value + other, p_value=p_value)


def _moved(quantile: float, skewness: float) -> float:
    """The distance of a limit in standard errors, on the side on which the ``skewness`` (≥ 0) makes values spread."""
    return quantile + skewness * (2 * quantile**2 + 1) / 6


def _quantile(distance: float, skewness: float) -> float:
    """The quantile for which `_moved` gives this distance, or 0 if the distance is too small."""
    if skewness < TINY:
        return distance
    return max((math.sqrt(max(1 - skewness * (skewness / 6 - distance) * 4 / 3, 0.0)) - 1) * 1.5 / skewness, 0.0)


def mean_of_estimates(estimates: Sequence[Estimate], shared: bool = False) -> Estimate:
    """Mean of independent estimates with equal weights. The interval combines theirs (square and add, Zou 2008).

    If the estimates ``shared`` their prompts, they are not independent. The half-widths are then averaged, which is right for any
    dependence.

    The averaged concepts are treated as fixed: the interval makes no statement about other concepts. The lower and the upper
    half-widths are combined separately, so that bounded figures keep their asymmetry. If one estimate is undefined, the mean is
    undefined, because the mean of the others would be a different figure. A limit that one estimate lacks is missing in the mean.
    """
    if not estimates or any(e.value is None for e in estimates):
        return Estimate(None)
    values = np.array([e.value for e in estimates], float)
    value = float(values.mean())
    found = Estimate(value, n=sum(e.n for e in estimates), failed=sum(e.failed for e in estimates))
    limits_of = [e.low for e in estimates], [e.high for e in estimates]
    below, above = (np.abs(values - np.array(side, float)) for side in limits_of)  # NaN for an open side
    combined = np.mean if shared else lambda side: np.sqrt((side**2).sum()) / len(side)
    low, high = (value + sign * float(combined(side)) for sign, side in ((-1, below), (1, above)))
    found = found._replace(low=None if math.isnan(low) else low, high=None if math.isnan(high) else high)
    if found.low is None or found.high is None:
        return found
    return found._replace(spread=spread(values, (below + above) / 2 / NORMAL))


def spread(values: ArrayLike, errors: ArrayLike) -> float | None:
    """Standard deviation between true values, from estimates and their standard errors.

    It is the root of the variance of the estimates minus the mean of their sampling variances, or 0 if that is negative
    (DerSimonian and Laird 1986, with equal weights).
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        return None
    return math.sqrt(max(float(values.var(ddof=1) - np.square(errors).mean()), 0.0))


def mean_over_runs(
    inside: Estimate,
    values: ArrayLike,
    runs: ArrayLike,
    clusters: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    concepts: ArrayLike | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    margin: float = MARGIN,
) -> Estimate:
    """Mean over method seeds (``runs``), which are a sample of all seeds: interval and tests of both levels.

    ``inside`` is the estimate with the seeds treated as fixed: the level of the prompts. The arrays are aligned,
    ``(observations,)``. A prompt that all runs share is one cluster. Runs of different concepts are independent. See
    `overpaint.report.seeds`; with fewer seeds than that needs, the result is ``inside``. ``spread`` is the standard deviation
    between the seeds of one concept. If ``inside`` has an open interval, the result has no interval and no tests: values that are
    bounds do not show how much the seeds vary.
    """
    import pandas as pd

    if inside.value is None or (inside.low is None and inside.high is None):
        return inside
    if inside.low is None or inside.high is None:
        sample = seeds.are_sample(runs, concepts)
        return inside._replace(low=None, high=None, p_value=None, p_equivalence=None) if sample else inside
    kept, (cluster, stratum), _ = observed(values, clusters, strata)
    valid = ~np.isnan(np.asarray(values, float))
    run, concept = (
        np.zeros(len(kept), int) if names is None else pd.factorize(np.asarray(names)[valid])[0]
        for names in (runs, concepts)
    )
    count = run.max() + 1
    several = np.bincount(np.unique(concept * count + run) // count)  # runs of each concept
    if several.max() < seeds.FEWEST and (len(several) > 1 or several.max() == 1):
        return inside
    weights = 1.0 / np.bincount(stratum)[stratum]
    found = []
    for own in (concept == code for code in range(concept.max() + 1)):
        own_runs, own_clusters = (np.unique(side[own], return_inverse=True)[1] for side in (run, cluster))
        found.append(seeds.between(kept[None, own], own_runs, own_clusters, weights[own]))
    if len(found) == 1 and found[0].runs > 1:
        inside = inside._replace(spread=math.sqrt(max(float(found[0].variance[0] - found[0].noise[0]), 0.0)))
    if several.max() < seeds.FEWEST:
        return inside
    return _over_seeds(inside, seeds.plausible(found), bounds, margin)


def _over_seeds(inside: Estimate, plausible: NDArray, bounds: tuple[float, float], margin: float) -> Estimate:
    """The estimate ``inside`` with an interval and tests that include the ``plausible`` variances (1, points) between seeds."""
    value, low, high = inside.value, inside.low, inside.high
    assert value is not None and low is not None and high is not None
    below, above = (np.array([half / NORMAL]) for half in (value - low, high - value))

    def beyond(limit: float) -> float:
        """One-sided p-value of "the true mean is beyond ``limit``"."""
        return float(seeds.tail(np.array([abs(value - limit)]), below if value > limit else above, plausible)[0])

    same = max(beyond(-margin), beyond(margin)) if abs(value) < margin else 1.0
    return inside._replace(
        low=max(value - float(seeds.reach(below, plausible, LEVEL)[0]), bounds[0]),
        high=min(value + float(seeds.reach(above, plausible, LEVEL)[0]), bounds[1]),
        p_value=None if inside.p_value is None else min(2 * beyond(0.0), 1.0),
        p_equivalence=None if inside.p_equivalence is None else same,
    )


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

    def corrected(p: NDArray) -> NDArray:
        order = np.argsort(p)
        steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
        return np.minimum(steps, 1.0)[np.argsort(order)]

    return _adjusted(p_values, corrected, level)


def benjamini_hochberg(p_values: Sequence[float | None], level: float = LEVEL) -> Adjusted:
    """Benjamini and Hochberg's correction (1995), which controls the false discovery rate."""

    # `scipy.stats.false_discovery_control` gives the same, but its import takes 0.55 s, and a table needs nothing else of it.
    def corrected(p: NDArray) -> NDArray:
        order = np.argsort(p)[::-1]
        steps = np.minimum.accumulate(p[order] * (len(p) / np.arange(len(p), 0, -1)))
        return np.minimum(steps, 1.0)[np.argsort(order)]

    return _adjusted(p_values, corrected, level)


def _adjusted(p_values: Sequence[float | None], corrected: Callable[[NDArray], NDArray], level: float) -> Adjusted:
    """Corrected p-values. Undefined entries stay undefined and do not count as tests."""
    given = np.array([math.nan if p is None else p for p in p_values], float)
    found = np.full(len(given), math.nan)
    defined = ~np.isnan(given)
    if defined.any():
        found[defined] = corrected(given[defined])
    adjusted = [None if math.isnan(p) else float(p) for p in found]
    return Adjusted(adjusted, [None if p is None else p <= 1 - level for p in adjusted])


def kendall_tau_b(x: ArrayLike, y: ArrayLike) -> Estimate:
    """Kendall's tau-b (1945) of two orderings, which may have ties. Undefined if either ordering is constant."""
    from scipy.stats import kendalltau

    result = kendalltau(np.asarray(x, float), np.asarray(y, float), variant="b")
    if math.isnan(result.statistic):
        return Estimate(None, n=len(np.asarray(x)))
    return Estimate(float(result.statistic), p_value=float(result.pvalue), n=len(np.asarray(x)))


def taus_b(x: NDArray, y: NDArray) -> NDArray:
    """Kendall's tau-b ``(samples,)`` of resampled values (samples, n). NaN in one of the two leaves a value out."""
    one, other = (np.sign(side[:, :, None] - side[:, None, :]) for side in (x, y))
    unknown = np.isnan(one) | np.isnan(other)
    one, other = np.where(unknown, 0, one), np.where(unknown, 0, other)
    with np.errstate(invalid="ignore"):
        return (one * other).sum((1, 2)) / np.sqrt((one**2).sum((1, 2)) * (other**2).sum((1, 2)))


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


def difference_of_estimates(first: Estimate, second: Estimate, *, correlation: float = 0.0) -> Estimate:
    """Difference of two estimates, which are independent unless a ``correlation`` is given, from their half-widths.

    The half-widths a and b of the two sides give ``(a² + b² - 2 correlation a b)^½`` (Zou and Donner 2008). ``p_value`` inverts
    the interval: it is below 0.05 exactly if the interval excludes 0. A side to which an open limit contributes is open. If
    either estimate has no interval, the difference has none.
    """
    if first.value is None or second.value is None:
        return Estimate(None)
    gap = first.value - second.value
    if any(e.low is None and e.high is None for e in (first, second)):
        return Estimate(gap)
    a, a_low, a_high = (math.nan if number is None else number for number in first[:3])
    b, b_low, b_high = (math.nan if number is None else number for number in second[:3])
    below, above = (
        math.inf if math.isnan(width) else width
        for width in (
            _joint(a - a_low, b_high - b, correlation),
            _joint(a_high - a, b - b_low, correlation),
        )
    )
    error = (below if gap > 0 else above) / NORMAL
    p_value = math.erfc(abs(gap) / error / math.sqrt(2)) if error else float(gap == 0)
    low, high = gap - below, gap + above
    return Estimate(gap, low if math.isfinite(low) else None, high if math.isfinite(high) else None, p_value)


def ratio_of_estimates(first: Estimate, second: Estimate, *, correlation: float = 0.0) -> Estimate:
    """Ratio of two estimates that are not negative, with the interval that corresponds to `difference_of_estimates`.

    Its limits are the numbers r for which 0 is a limit of the difference ``first - r second`` (Donner and Zou 2012). There is no
    upper limit if the lower limit of ``second`` is 0.
    """
    if first.value is None or not second.value or None in (first.low, first.high, second.low, second.high):
        return Estimate(None)
    (a, a_low, a_high), (b, b_low, b_high) = (np.array(side[:3], float) for side in (first, second))

    def root(of_a: float, of_b: float) -> float:
        """Half of the linear coefficient and the square root of the discriminant, added, for these limits of the two sides."""
        half = a * b - correlation * abs((a - of_a) * (b - of_b))
        return half + math.sqrt(max(half**2 - of_a * (2 * a - of_a) * of_b * (2 * b - of_b), 0.0))

    low = a_low * (2 * a - a_low) / root(a_low, b_high) if a_low > 0 else 0.0
    high = root(a_high, b_low) / (b_low * (2 * b - b_low)) if b_low > 0 else None
    return Estimate(float(a / b), float(low), None if high is None else float(high))


def _joint(one: float, other: float, correlation: float) -> float:
    """The half-width of a difference from those of its two sides."""
    return math.sqrt(max(one * one + other * other - 2 * correlation * one * other, 0.0))


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
        if valid < made and not positive:
            continue
        if valid >= drawn:
            values[place] = 1 - math.comb(valid - positive, drawn) / math.comb(valid, drawn)
        elif positive and n is None:
            values[place] = 1.0
    return found.index.to_numpy(), values
