"""Score intervals and score tests for shares and paired differences of shares, with clusters and strata.

Interval and test use the same function of the hypothesised value, so they never contradict each other: a value is inside
the 95 % interval exactly if its two-sided p-value is above 0.05.

Let y_i be the observations (0 or 1; −1, 0 or 1 for differences), w_i = 1 / (H n_h) their weights in H strata of n_h
observations (or a_h / n_h for strata with weights a_h), m = Σ w_i y_i and N = 1 / Σ w_i². The score of a hypothesised value v is

    z(v) = (m − v) √N / √(D(v) V(v))

V(v) is the variance of one observation: v (1 − v) for a share (Wilson 1927). For a difference it is evaluated at the most
likely shares with that difference (Tango 1998). D(v) is the design effect, which is also estimated at the hypothesised value.
Boos (1992) describes such tests; at v = 0 and for equal clusters, the result is the test of Durkalski et al. (2003):

    D(v) = max(1, Σ_c (Σ_{i in c} w_i e_i)² / Σ_i w_i² e_i²) · min(1, Σ_i w_i² e_i² / Σ_i w_i² (y_i − v)²)

with e_i = y_i − o_h − v for the C clusters c and the strata's offsets o_h, their means minus m shrunk by
C_h / (C_h + `SHRINKAGE`) for the C_h clusters of a stratum, with twice that constant for differences. The first factor is at most
the size of the largest cluster. It is 1 if each cluster has one observation. The second factor is 1 if there is one stratum. If
both are 1, the interval is Wilson's or Tango's. Because D is estimated at v and not at m, a single hit cannot make it collapse.
For the same reason the sum over clusters needs no factor C/(C−1): the deviations are taken from v, not from a fitted mean.
`worth`, which evaluates D at m, has that factor.

There are three corrections for few observations:

- If at most `RARE` effective hits were found, in a share of at most `RARE_SHARE`, the limit of the share is widened to that of a
  Poisson count (Brown, Cai and DasGupta 2001). The same holds for the distance of a difference from 1 or -1.
- If clusters have several observations and the hits come from few clusters, Student's t replaces the normal distribution in
  interval and test.
- For a single share, Student's t has at most 1.5 N degrees of freedom, for the effective size N.

All functions are vectorised: leading axes of the arrays are data sets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Largest number of effective hits at which a share has a Poisson limit.
RARE = 3
#: Largest share that counts as rare, for any number of observations.
RARE_SHARE = 0.25
#: Number of prompts at which a stratum's offset is shrunk by half; twice as many for differences.
SHRINKAGE = 6.0
#: A search for a limit ends when the interval around it has been halved this often.
HALVINGS = 42
#: Values that one step of the search computes. A few data sets are searched in larger steps than many, because the calls of NumPy
#: take most of the time.
AT_ONCE = 64
TINY = 1e-12

Score = Callable[[NDArray], NDArray]


class Sample(NamedTuple):
    """Sufficient statistics of data sets: arrays of shape ``(sets,)``, and coefficients of quadratics ``(sets, 3)``.

    ``by_cluster``, ``by_observation`` and ``unstratified`` are the three sums of squares of the design effect, as
    coefficients of 1, v and v².
    """

    mean: NDArray
    up: NDArray  # weighted share of observations that are 1
    down: NDArray  # weighted share of observations that are -1
    size: NDArray  # N
    clusters: NDArray
    largest: NDArray  # observations of the largest cluster
    few: NDArray  # degrees of freedom; infinite for the normal distribution
    by_cluster: NDArray
    by_observation: NDArray
    unstratified: NDArray


def sample(
    values: NDArray, clusters: NDArray, strata: NDArray, shares: NDArray | None = None, images: int = 1
) -> Sample:
    """Statistics of data sets ``values`` (sets, n) that share the codes of ``clusters`` (n,) and ``strata`` (n,).

    ``shares`` (strata,) are weights of the strata, equal by default. ``images`` is the number of images of an observation: 2 for
    differences.
    """
    values = np.atleast_2d(np.asarray(values, float))
    member, sizes = np.unique(clusters, return_inverse=True, return_counts=True)[1:]
    stratum, in_stratum = np.unique(strata, return_inverse=True, return_counts=True)[1:]
    shares = np.ones(len(in_stratum)) if shares is None else shares
    shares = shares / shares.sum()
    weights = (shares / in_stratum)[stratum]

    def averaged(table: NDArray) -> NDArray:
        return (_sums(table, stratum) / in_stratum) @ shares

    mean = averaged(values)
    offsets = _sums(values, stratum) / in_stratum - mean[:, None]
    prompts = np.bincount(np.unique(stratum * len(sizes) + member) // len(sizes))  # clusters of each stratum
    trust = prompts / (prompts + images * SHRINKAGE) * (len(in_stratum) > 1)
    offsets = offsets * trust
    spent = (trust * (2 - trust)).mean() * (len(in_stratum) - 1)  # degrees of freedom used by the offsets
    lost = max(len(stratum) - 1, 1) / max(len(stratum) - 1 - spent, 1)
    centred = values - offsets[:, stratum]
    total, width = _sums(centred * weights, member), np.bincount(member, weights)
    squares = weights**2
    hit = [_sums(values == sign, member) for sign in (1, -1)]
    several = int(sizes.max()) > 1
    return Sample(
        mean=mean,
        up=averaged(values == 1),
        down=averaged(values == -1),
        size=np.full(len(values), 1.0 / squares.sum()),
        clusters=np.full(len(values), len(sizes)),
        largest=np.full(len(values), sizes.max()),
        few=_few(hit, sizes) if several else np.full(len(values), np.inf),
        by_cluster=lost * _quadratic((total**2).sum(axis=1), total @ width, (width**2).sum()),
        by_observation=lost * _quadratic(centred**2 @ squares, centred @ squares, squares.sum()),
        unstratified=_quadratic(values**2 @ squares, values @ squares, squares.sum()),
    )


def _sums(values: NDArray, groups: NDArray) -> NDArray:
    """``(sets, groups)`` sums of ``values`` (sets, n) over groups, given as codes (n,)."""
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], np.arange(groups.max() + 1))
    return np.add.reduceat(values[:, order], starts, axis=1, dtype=float)


def _quadratic(constant: NDArray, linear: NDArray, square: float) -> NDArray:
    return np.stack([constant, -2 * linear, np.full(len(constant), square)], axis=1)


def _few(hit: list[NDArray], sizes: NDArray) -> NDArray:
    """`degrees_of_freedom` from the numbers of hits in the clusters, or of misses if fewer clusters have them.

    For differences, hits are pairs that differ and misses are pairs that do not.
    """
    found = hit[0] + hit[1]
    return degrees_of_freedom(np.minimum((found > 0).sum(axis=1), (found < sizes).sum(axis=1)), len(sizes))


def degrees_of_freedom(found: NDArray, clusters: int) -> NDArray:
    """Student's degrees of freedom (sets,) of samples whose hits come from ``found`` (sets,) of these clusters.

    They are that number plus 4 if it is above 0, below 10 and below a quarter of all clusters; otherwise they are infinite. The
    constants were chosen with the simulation in ``docs/coverage.md``.
    """
    return np.where((found > 0) & (found < min(10.0, clusters / 4)), found + 4, np.inf)


def design_effect(of: Sample, value: NDArray, fitted: bool = False) -> NDArray:
    """D(v): the factor by which clusters and strata change the variance of independent observations.

    ``fitted`` says that ``value`` is the mean of the same observations, which costs one degree of freedom.
    """
    powers = np.stack([np.ones_like(value), value, value**2], axis=-1)
    by_cluster, inside, plain = (
        np.maximum((part * powers).sum(axis=-1), 0.0) for part in (of.by_cluster, of.by_observation, of.unstratified)
    )
    nothing = inside <= TINY * of.by_observation[..., 2]
    all_alike = of.by_cluster[..., 2] / of.by_observation[..., 2]
    ratio = np.where(nothing, all_alike, by_cluster / np.where(nothing, 1.0, inside))
    if fitted:
        ratio = np.where(nothing, ratio, ratio * of.clusters / np.maximum(of.clusters - 1, 1))
    ratio = np.where(of.largest > 1, np.clip(ratio, 1.0, of.largest), 1.0)
    strata = np.where(plain > inside, inside / np.where(plain > 0, plain, 1.0), 1.0)
    return ratio * np.maximum(strata, TINY)


def share_score(of: Sample, share: NDArray) -> NDArray:
    """z of a hypothesised share: Wilson's score, with the design effect."""
    return _score(of, share, share * (1 - share))


def difference_score(of: Sample, difference: NDArray) -> NDArray:
    """z of a hypothesised difference of two paired shares: Tango's score, with the design effect.

    The most likely share of (0, 1) pairs q at a difference v solves 2 q² + b q − l v (1 − v) = 0 with
    b = (2 − g + l) v − g − l, for the shares g of (1, 0) pairs and l of (0, 1) pairs.
    """
    gained, lost, v = of.up, of.down, difference
    b = (2 - gained + lost) * v - gained - lost
    likeliest = (np.sqrt(np.maximum(b * b + 8 * lost * v * (1 - v), 0.0)) - b) / 4
    return _score(of, v, 2 * likeliest + v * (1 - v))


def independent(mean: ArrayLike, size: ArrayLike, up: ArrayLike | None = None, down: ArrayLike | None = None) -> Sample:
    """Statistics of ``size`` independent observations, from their means (or their shares of 1 and -1)."""
    mean = np.atleast_1d(np.asarray(mean, float))
    size = np.broadcast_to(np.asarray(size, float), mean.shape)
    up, down = (mean if up is None else np.atleast_1d(up)), (0 * mean if down is None else np.atleast_1d(down))
    plain = _quadratic((up + down) / size, mean / size, 0.0) + np.stack([0 * mean, 0 * mean, 1 / size], axis=1)
    one, never = np.ones_like(mean), np.full_like(mean, np.inf)
    return Sample(mean, up, down, size, size, one, never, plain, plain, plain)


def worth(of: Sample) -> NDArray:
    """Effective sample size: the number of independent observations with the same information (Kish 1965)."""
    return of.size / design_effect(of, of.mean, fitted=True)


def unpaired_score(one: Sample, other: Sample, difference: NDArray) -> NDArray:
    """z of a hypothesised difference of two shares without pairs (Miettinen and Nurminen 1985), at their effective sizes.

    The most likely shares with that difference are a root of a cubic. Farrington and Manning (1990) give its closed form.
    """
    p, q, n, m, v = one.mean, other.mean, worth(one), worth(other), difference
    ratio = m / n
    a, b = 1 + ratio, -(1 + ratio + p + ratio * q + v * (ratio + 2))
    c, d = v * v + v * (2 * p + ratio + 1) + p + ratio * q, -p * v * (1 + v)
    cubed = (b / (3 * a)) ** 3 - b * c / (6 * a * a) + d / (2 * a)
    root = np.copysign(np.sqrt(np.maximum((b / (3 * a)) ** 2 - c / (3 * a), 0.0)), cubed)
    cosine = np.where(np.abs(root) > TINY, cubed / np.where(np.abs(root) > TINY, root**3, 1.0), 1.0)
    angle = (np.pi + np.arccos(np.clip(cosine, -1, 1))) / 3
    first = np.clip(2 * root * np.cos(angle) - b / (3 * a), np.maximum(v, 0), np.minimum(1 + v, 1))
    second = first - v
    variance = (first * (1 - first) / n + second * (1 - second) / m) * (n + m) / np.maximum(n + m - 1, TINY)
    return _ratio(p - q - v, variance)


def beside(one: Sample, other: Sample) -> Sample:
    """``one`` with the degrees of freedom of the difference to ``other``.

    The design effects of unpaired samples are those of their own means. With several observations per cluster, they are known
    with C − 1 degrees of freedom each.
    """
    known = np.where(np.maximum(one.largest, other.largest) > 1, one.clusters + other.clusters - 2, np.inf)
    return one._replace(few=np.minimum(np.minimum(one.few, other.few), np.maximum(known, 1)))


def unpaired_interval(one: Sample, other: Sample, level: float) -> tuple[NDArray, NDArray]:
    """Limits ``(sets,)`` of unpaired differences."""
    gap, far = one.mean - other.mean, reach(beside(one, other), level)
    limits = _limits(lambda v: unpaired_score(one, other, v), gap, far, (-1.0, 1.0))
    return _rare_differences(gap, np.minimum(worth(one), worth(other)), limits, level)


def _score(of: Sample, value: NDArray, variance: NDArray) -> NDArray:
    return _ratio(of.mean - value, variance * design_effect(of, value) / of.size)


def _ratio(gap: NDArray, variance: NDArray) -> NDArray:
    """A gap in standard errors: 0 for no gap, infinite if the variance is 0."""
    spread = np.sqrt(np.maximum(variance, 0.0))
    impossible = np.where(np.abs(gap) < TINY, 0.0, np.copysign(np.inf, gap))
    return np.where(spread > TINY, gap / np.where(spread > TINY, spread, 1.0), impossible)


def p_value(of: Sample, score: NDArray, sides: int = 2) -> NDArray:
    """The p-value of scores: two-sided, or the upper tail."""
    from scipy.special import ndtr, stdtr

    far = np.abs(score) if sides == 2 else score
    few = np.isfinite(of.few)
    tail = np.where(few, stdtr(np.where(few, of.few, 1.0), -far), ndtr(-far))
    return np.minimum(sides * tail, 1.0)


def reach(of: Sample, level: float) -> NDArray:
    """The absolute score at the limits of a two-sided interval of this level."""
    from scipy.special import ndtri, stdtrit

    few, side = np.isfinite(of.few), (1 + level) / 2
    return np.where(few, stdtrit(np.where(few, of.few, 1.0), side), ndtri(side))


def share_interval(of: Sample, level: float) -> tuple[NDArray, NDArray]:
    """Limits ``(sets,)`` of shares."""
    from scipy.special import stdtrit

    size = np.minimum(worth(of), of.size)
    far = stdtrit(np.minimum(of.few, 1.5 * size), (1 + level) / 2)
    low, high = _limits(lambda v: share_score(of, v), of.mean, far, (0.0, 1.0))
    low = np.minimum(low, _rare(of.mean, size, level))
    high = np.maximum(high, 1 - _rare(1 - of.mean, size, level))
    return np.where(of.mean <= TINY, 0.0, low), np.where(of.mean >= 1 - TINY, 1.0, high)


def _rare(share: NDArray, size: NDArray, level: float) -> NDArray:
    """The lower Poisson limit of a rare share, from its number of hits; infinite for other shares."""
    from scipy.special import gammaincinv

    hits = share * size
    rare = (hits > TINY) & (hits <= RARE + TINY) & (share <= RARE_SHARE + TINY)
    return np.where(rare, gammaincinv(np.maximum(hits, TINY), 1 - level), np.inf) / size


def _rare_differences(
    gap: NDArray, size: NDArray, limits: tuple[NDArray, NDArray], level: float
) -> tuple[NDArray, NDArray]:
    """Limits of differences, widened as in `share_interval` if few observations keep the difference from 1 or -1."""
    low, high = limits
    low = np.minimum(low, _rare(1 + gap, size, level) - 1)
    high = np.maximum(high, 1 - _rare(1 - gap, size, level))
    return np.where(gap <= TINY - 1, -1.0, low), np.where(gap >= 1 - TINY, 1.0, high)


def difference_interval(of: Sample, level: float) -> tuple[NDArray, NDArray]:
    """Limits ``(sets,)`` of paired differences."""
    limits = _limits(lambda v: difference_score(of, v), of.mean, reach(of, level), (-1.0, 1.0))
    return _rare_differences(of.mean, np.minimum(worth(of), of.size), limits, level)


def _limits(score: Score, inside: NDArray, far: NDArray, ends: tuple[float, float]) -> tuple[NDArray, NDArray]:
    """On both sides of ``inside``, the value with absolute score ``far``; the end of the scale if there is none."""
    outside = np.array(ends)[:, None] + 0 * inside
    near, away = inside + 0 * outside, outside.copy()
    beyond = np.abs(score(outside)) > far
    halvings = max((AT_ONCE // len(inside)).bit_length() - 1, 1)  # of one step
    parts = 2**halvings
    shares = np.arange(1, parts)[:, None, None] / parts
    for _ in range(-(-HALVINGS // halvings)):
        inner = near + (away - near) * shares
        out = np.abs(score(inner)) > far
        ladder = np.concatenate([near[None], inner, away[None]])
        first = np.where(out.any(axis=0), out.argmax(axis=0) + 1, parts)[None]  # the first value that is beyond
        near, away = (np.take_along_axis(ladder, step, axis=0)[0] for step in (first - 1, first))
    low, high = np.where(beyond, (near + away) / 2, outside)
    return low, high
