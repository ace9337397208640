"""Power of the paired tests: what a number of prompts and seeds can detect, or show to be equal.

`overpaint plan` prints these figures before anything runs. The power of a test is the probability that it detects a true
difference; that of equality is the probability that two equal shares are called equal.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from overpaint.report import scores
from overpaint.report.statistics import LEVEL, MARGIN, TINY

#: Largest number of pairs for which the power of a test is computed exactly.
EXACT_PAIRS = 150
#: Assumed correlation of the differences of one prompt: a round value for several seeds of one model.
WITHIN_PROMPT = 0.3
#: The same for one prompt on several erasers, which differ more than seeds do.
BETWEEN_ERASERS = 0.1


def power_of_paired_difference(
    difference: float,
    prompts: int,
    seeds: int = 1,
    tests: int = 1,
    rate: float = 0.5,
    pair_correlation: float = 0.5,
    within_prompt: float = WITHIN_PROMPT,
    level: float = LEVEL,
) -> float:
    """The probability that `paired_difference` on ``prompts x seeds`` pairs detects a true difference, after correction.

    The shares are p ± difference / 2 around the ``rate`` p. A share q of the pairs differs; it depends on the correlation r of
    the two models' images of one prompt and seed. With g pairs gained and l lost, the score test rejects if
    ``|g − l| > z √(g + l)``. z is the quantile of the two-sided level divided by ``tests``, the size of the family under Holm's
    correction, so the result is the power of its first and strictest step. With one seed and up to `EXACT_PAIRS` pairs, the power
    is summed over all g and l. For more pairs it is approximately

        Φ((difference √n − z √q) / √(q − difference²)),    n = prompts · seeds / (1 + (seeds − 1) c)

    (Miettinen 1968; Connor 1987). c is the correlation of one prompt's differences (Kish 1965). With several seeds, the test
    compares the sums of C prompts with their squares, so that |t| > √((C − 1) z² / (C − z²)) for their t statistic. The power is
    that of the noncentral t distribution with C − 1 degrees of freedom and noncentrality difference √(n / (q − difference²)).
    """
    from scipy.special import ndtr, ndtri

    effective = prompts * seeds / (1 + (seeds - 1) * within_prompt)
    far = float(ndtri(1 - (1 - level) / (2 * tests)))
    first, second = min(rate + difference / 2, 1.0), max(rate - difference / 2, 0.0)
    if first == 1.0 or second == 0.0:  # the shares would leave [0, 1]
        first, second = (difference, 0.0) if rate < 0.5 else (1.0, 1.0 - difference)
    both = pair_correlation * math.sqrt(first * (1 - first) * second * (1 - second))
    differing = max(first * (1 - second) + second * (1 - first) - 2 * both, difference)
    spread = math.sqrt(max(differing - difference**2, 0.0))
    if seeds > 1:
        from scipy.stats import nct

        if prompts <= far**2:
            return 0.0
        if spread == 0:
            return 1.0
        t = far * math.sqrt((prompts - 1) / (prompts - far**2))
        # scipy's tail fails for larger values, where the power is 1.
        centre = min(difference * math.sqrt(effective) / spread, 3 * t)
        return float(nct.sf(t, prompts - 1, centre))
    if effective <= EXACT_PAIRS:
        n = int(effective + TINY)
        gained, lost = _outcomes(0, n, n)
        rejected = np.abs(gained - lost) > far * np.sqrt(gained + lost)
        chances = np.clip([(differing + difference) / 2, (differing - difference) / 2, 1 - differing], 0, 1)
        return _chance(gained[rejected], lost[rejected], n, chances / chances.sum())
    gap = difference * math.sqrt(effective) - far * math.sqrt(differing)
    return float(ndtr(gap / spread)) if spread > 0 else float(gap > 0)


def _outcomes(least: int, most: int, n: int) -> tuple[NDArray, NDArray]:
    """All numbers of pairs gained and lost from ``least`` to ``most``, of n pairs."""
    gained, lost = (side.ravel() for side in np.mgrid[least : most + 1, least : most + 1])
    possible = gained + lost <= n
    return gained[possible], lost[possible]


def _chance(gained: NDArray, lost: NDArray, n: int, chances: ArrayLike) -> float:
    """The probability that n pairs have one of these numbers gained and lost; ``chances`` of gained, lost, and neither.

    `scipy.stats.multinomial` gives the same, and takes half a second to import: `overpaint plan` would wait for it.
    """
    from scipy.special import gammaln, xlogy

    outcomes = np.stack([gained, lost, n - gained - lost], axis=1)
    return float(np.exp(gammaln(n + 1) + (xlogy(outcomes, chances) - gammaln(outcomes + 1)).sum(axis=-1)).sum())


@cache
def smallest_detectable_difference(
    prompts: int,
    seeds: int = 1,
    tests: int = 1,
    rate: float = 0.5,
    pair_correlation: float = 0.5,
    within_prompt: float = WITHIN_PROMPT,
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


def power_of_equality(
    differing: float,
    prompts: int,
    seeds: int = 1,
    tests: int = 1,
    within_prompt: float = WITHIN_PROMPT,
    level: float = LEVEL,
    margin: float = MARGIN,
) -> float:
    """The probability that two equal shares are called equal, after correction, if a share ``differing`` of the pairs differs.

    It is summed over all numbers of pairs gained and lost, of the effective number of pairs. The design effect is that at the
    margin v, where pairs that agree all deviate by v: (v² seeds + q (1 + (seeds − 1) c)) / (v² + q) for the share q of differing
    pairs and their correlation c inside a prompt. With several seeds, the test uses Student's t if few prompts have differing
    pairs (`overpaint.report.scores`). Its degrees of freedom are those of the expected number of such prompts, if there are any.
    """
    from scipy.special import ndtri, stdtrit

    own = 1 + (seeds - 1) * within_prompt
    design = (margin**2 * seeds + differing * own) / (margin**2 + differing)
    n = int(prompts * seeds / design + TINY)
    mean, spread = n * differing / 2, math.sqrt(n * differing / 2 * (1 - differing / 2))
    least, most = max(0, int(mean - 8 * spread - 8)), min(n, int(mean + 8 * spread + 8))  # other numbers: below 1e-12
    gained, lost = _outcomes(least, most, n)
    of = scores.independent((gained - lost) / n, n, gained / n, lost / n)
    inside = 1 - (1 - level) / tests
    far = np.full(len(gained), ndtri(inside))
    if seeds > 1:
        found = np.where(gained + lost > 0, _differing_prompts(differing, prompts, seeds, within_prompt), 0.0)
        few = scores.degrees_of_freedom(found, prompts)
        far = np.where(np.isfinite(few), stdtrit(np.where(np.isfinite(few), few, 1.0), inside), far)
    below, above = (scores.difference_score(of, np.full(len(gained), v)) for v in (-margin, margin))
    shown = (below > far) & (above < -far)
    return _chance(gained[shown], lost[shown], n, [differing / 2, differing / 2, 1 - differing])


def _differing_prompts(differing: float, prompts: int, seeds: int, within_prompt: float) -> float:
    """The expected number of prompts with a differing pair, given that there is one.

    The number of differing pairs of a prompt is beta-binomial with the correlation ``within_prompt``.
    """
    if within_prompt >= 1:
        none = 1 - differing
    else:
        seed = np.arange(seeds)
        none = float(np.prod(1 - differing * (1 - within_prompt) / (1 - within_prompt + within_prompt * seed)))
    return prompts * (1 - none) / (1 - none**prompts)


@cache
def largest_share_shown_equal(
    prompts: int,
    seeds: int = 1,
    tests: int = 1,
    within_prompt: float = WITHIN_PROMPT,
    power: float = 0.8,
    level: float = LEVEL,
) -> float | None:
    """The largest share of differing pairs at which two equal shares are called equal with this ``power``.

    ``None`` if the budget is too small to show equality even if no pair differs.
    """
    from scipy.optimize import brentq

    def excess(differing: float) -> float:
        return power_of_equality(differing, prompts, seeds, tests, within_prompt, level) - power

    if prompts < 2 or seeds < 1 or excess(1e-9) < 0:
        return None
    return float(brentq(excess, 1e-9, 1.0, xtol=1e-6)) if excess(1.0) < 0 else 1.0
