"""Simulate the coverage and the width of the tables' intervals, and the power of their tests.

    python scripts/simulate_coverage.py [--sets 3000] [--seed 0] [--only WORD]

prints the tables of ``docs/coverage.md``. A cell shows the share of simulated data sets whose 95 % interval contains the true
value and, in brackets, the mean width of the interval. Every prompt has its own share, drawn from a Beta distribution around the
overall share (a Dirichlet distribution for pairs). The correlation inside a prompt is given; 0 means independent seeds, 1 equal
ones.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from overpaint.report import scores, seeds, statistics
from overpaint.report.components import PARTS, entries_of
from overpaint.report.power import largest_share_shown_equal, smallest_detectable_difference
from overpaint.report.ranks import rank_intervals, rank_intervals_over_concepts
from overpaint.report.standings import standings
from overpaint.report.statistics import MARGIN, NORMAL, Estimate
from overpaint.report.validity import Scored, agreements

LEVEL = 0.95
SHARES = (0.02, 0.1, 0.3, 0.5, 0.8, 0.98)
#: Share of pairs with the concept in the first image only, and share of pairs with it in the second image only.
PAIRS = ((0.02, 0.02), (0.05, 0.0), (0.1, 0.1), (0.2, 0.0), (0.3, 0.1), (0.4, 0.4), (0.7, 0.1), (0.95, 0.0))
GROUPS = ((1, 0.0), (2, 0.0), (2, 0.3), (2, 1.0), (5, 0.3), (5, 0.8), (10, 0.0), (10, 0.3), (10, 0.8), (10, 1.0))
LAYOUTS = [(n, m, c) for n in (8, 12, 24, 50) for m, c in GROUPS] + [
    (200, m, c) for m, c in ((1, 0.0), (2, 0.3), (5, 0.8))
]
FEWER = [(n, m, c) for n in (8, 12, 24, 50) for m, c in ((1, 0.0), (2, 0.3), (10, 0.0), (10, 0.3), (10, 1.0))]
BOTH = ((0.05, 0.05), (0.5, 0.5), (0.9, 0.4), (0.3, 0.1), (0.98, 0.02), (0.02, 0.1))
LABELS = (
    (0.1, 0.9),
    (0.02, 0.5),
    (0.3, 0.5, 0.7),
    (0.9, 0.9, 0.9),
    (0.05, 0.9, 0.95, 0.98, 0.98),
    (0.1, 0.3, 0.5, 0.7, 0.9),
    (0.97,) * 9,
    (0.0, 1.0) * 5,
    (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95),
)
SIZES = ((4, 1, 0.0), (12, 1, 0.0), (24, 1, 0.0), (12, 2, 0.3), (24, 10, 0.3))
#: Distributions of real values over prompts, with their means.
REALS: dict[str, tuple[Callable[[np.random.Generator, tuple[int, int]], NDArray], float]] = {
    "normal": (lambda rng, shape: rng.normal(1, 1, shape), 1.0),
    "gamma, skewness 1": (lambda rng, shape: rng.gamma(4, 0.25, shape), 1.0),
    "gamma, skewness 2": (lambda rng, shape: rng.gamma(1, 1, shape), 1.0),
    "SSIM-like: Beta(8, 1)": (lambda rng, shape: rng.beta(8, 1, shape), 8 / 9),
}


class Cell(NamedTuple):
    """The share of intervals that contain the true value, their mean width and their number."""

    covered: float
    width: float
    sets: int

    def __str__(self) -> str:
        return f"{self.covered:.3f} ({self.width:.2g})"


def cell(low: NDArray, high: NDArray, truth: NDArray | float) -> Cell:
    low, high = np.asarray(low, float), np.asarray(high, float)
    inside = (low <= truth + 1e-9) & (truth - 1e-9 <= high)
    return Cell(float(inside.mean()), float((high - low).mean()), inside.shape[0])


def of_estimates(found: Iterable[Estimate], truth: float) -> Cell:
    """The coverage and width of intervals; an open side counts as infinite, and the width is that of the others."""
    known = [e for e in found if e.low is not None or e.high is not None]
    low, high = (np.array([getattr(e, side) for e in known], float) for side in ("low", "high"))
    found_cell = cell(np.nan_to_num(low, nan=-np.inf), np.nan_to_num(high, nan=np.inf), truth)
    return found_cell._replace(width=float(np.nanmean(high - low)) if (low + high < np.inf).any() else np.inf)


def outcomes(shares: NDArray, m: int, correlation: float, sets: int, rng: np.random.Generator) -> NDArray:
    """Outcomes ``(sets, prompts * m)`` of prompts with probabilities ``(prompts, kinds)`` and m seeds. The kinds are 1, -1 (if
    there are three kinds) and 0."""
    if correlation == 1:
        return np.repeat(outcomes(shares, 1, 0.0, sets, rng), m, axis=1)
    chances = np.broadcast_to(shares, (sets, *shares.shape))
    if correlation:
        drawn = rng.gamma(np.maximum(chances, 1e-9) * (1 / correlation - 1)) + 1e-300
        chances = drawn / drawn.sum(axis=-1, keepdims=True)
    kind = rng.random((sets, len(shares), m))
    first = chances[..., 0, None]
    found = (kind < first).astype(float)
    if shares.shape[1] == 3:
        found -= (kind >= first) & (kind < first + chances[..., 1, None])
    return found.reshape(sets, -1)


def sampled(prompts: int, m: int, correlation: float, sets: int, rng, *kinds: float) -> scores.Sample:
    """Data sets of prompts whose outcomes have the probabilities ``kinds``."""
    values = outcomes(np.tile([*kinds, 1 - sum(kinds)], (prompts, 1)), m, correlation, sets, rng)
    return scores.sample(values, np.repeat(np.arange(prompts), m), np.zeros(prompts * m, int))


def share(prompts: int, m: int, correlation: float, p: float, sets: int, rng: np.random.Generator) -> Cell:
    return cell(*scores.share_interval(sampled(prompts, m, correlation, sets, rng, p), LEVEL), p)


def any_of_n(prompts: int, n: int, correlation: float, p: float, sets: int, rng) -> Cell:
    """The share of prompts that show the concept in any of n images."""
    values = outcomes(np.tile([p, 1 - p], (prompts, 1)), n, correlation, sets, rng)
    hits = values.reshape(sets, prompts, n).max(axis=2)
    spread = 1 / correlation - 1 if correlation else math.inf
    none = (1 - p) ** n if not correlation else _none_of(n, p * spread, (1 - p) * spread)
    found = scores.sample(hits, np.arange(prompts), np.zeros(prompts, int))
    return cell(*scores.share_interval(found, LEVEL), 1 - none)


def _none_of(n: int, a: float, b: float) -> float:
    """E[(1 − p)^n] for p from Beta(a, b)."""
    from scipy.special import betaln

    return float(np.exp(betaln(a, b + n) - betaln(a, b)))


def pairs(prompts: int, m: int, correlation: float, gained: float, lost: float, sets: int, rng) -> Cell:
    found = sampled(prompts, m, correlation, sets, rng, gained, lost)
    return cell(*scores.difference_interval(found, LEVEL), gained - lost)


def rejected(prompts: int, m: int, correlation: float, share: float, sets: int, rng) -> float:
    """How often the 5 % test rejects "no difference" if as many pairs are gained as lost."""
    found = sampled(prompts, m, correlation, sets, rng, share, share)
    p = scores.p_value(found, scores.difference_score(found, np.zeros(sets)))
    return float((p < 1 - LEVEL).mean())


def called_equal(prompts: int, m: int, correlation: float, gained: float, lost: float, sets: int, rng, tests: int = 1):
    """How often the equivalence test, in a family of ``tests``, calls two shares equal."""
    found = sampled(prompts, m, correlation, sets, rng, gained, lost)
    above, below = (scores.difference_score(found, np.full(sets, v)) for v in (-MARGIN, MARGIN))
    p = np.maximum(scores.p_value(found, above, sides=1), scores.p_value(found, -below, sides=1))
    return float((p < (1 - LEVEL) / tests).mean())


def unpaired(prompts: int, m: int, correlation: float, p: float, q: float, sets: int, rng) -> Cell:
    one, other = (sampled(prompts, m, correlation, sets, rng, share) for share in (p, q))
    return cell(*scores.unpaired_interval(one, other, LEVEL), p - q)


def labels(shares: Sequence[float], prompts: int, m: int, correlation: float, sets: int, rng) -> Cell:
    """A mean over labels or concepts, each with as many prompts of its own."""
    chances = np.repeat([[p, 1 - p] for p in shares], prompts, axis=0)
    values = outcomes(chances, m, correlation, sets, rng)
    layout = np.repeat(np.arange(len(chances)), m), np.repeat(np.arange(len(shares)), prompts * m)
    return cell(*scores.share_interval(scores.sample(values, *layout), LEVEL), float(np.mean(shares)))


def label_pairs(gains: Sequence[float], prompts: int, m: int, correlation: float, sets: int, rng) -> Cell:
    """The mean difference of labels or concepts; half as many pairs are lost as are not gained, up to 0.1."""
    lost = np.minimum((1 - np.array(gains)) / 2, 0.1)
    chances = np.repeat([[g, x, 1 - g - x] for g, x in zip(gains, lost, strict=True)], prompts, axis=0)
    values = outcomes(chances, m, correlation, sets, rng)
    layout = np.repeat(np.arange(len(chances)), m), np.repeat(np.arange(len(gains)), prompts * m)
    found = scores.sample(values, *layout, images=2)
    return cell(*scores.difference_interval(found, LEVEL), float(np.mean(gains - lost)))


def shared(concepts: int, prompts: int, effect: float, sets: int, rng, together: bool = True) -> Cell:
    """A mean over concepts that are measured on the same prompts. The prompts' log-odds have the standard deviation ``effect``.

    Without ``together``, the prompts of each concept count as its own, as up to version 5 of the statistics.
    """
    prompt, concept = np.tile(np.arange(prompts), concepts), np.repeat(np.arange(concepts), prompts)
    values = (rng.random((sets, len(prompt))) < _logistic(effect * rng.normal(size=(sets, prompts)))[:, prompt]) * 1.0
    found = scores.sample(values, prompt if together else np.arange(len(prompt)), concept)
    return cell(*scores.share_interval(found, LEVEL), _mean_share(effect))


def combined(shares: Sequence[float], prompts: int, sets: int, rng) -> Cell:
    """A mean over concepts of which no outcomes are stored: combined half-widths of independent shares."""
    samples = [sampled(prompts, 1, 0.0, sets, rng, p) for p in shares]
    parts = np.array([(of.mean, *scores.share_interval(of, LEVEL)) for of in samples])
    found = (statistics.mean_of_estimates([Estimate(*part) for part in parts[:, :, i]]) for i in range(sets))
    return of_estimates(found, float(np.mean(shares)))


def runs(count: int, prompts: int, between: float, sets: int, rng, concepts: int = 1, paired: bool = False) -> Cell:
    """A mean over method seeds that share their prompts, of one or several concepts with prompts of their own.

    The log-odds of a share are the sum of two normal effects: the prompt's, with standard deviation 1, and the seed's, with
    standard deviation ``between``. With ``paired``, the difference to the unedited model, which has the prompt's effect and 1.
    The true value is that of all seeds; for two seeds, that of these two.
    """
    shape = (sets, concepts, count, prompts)
    prompt, seed = rng.normal(size=(sets, concepts, 1, prompts)), between * rng.normal(size=(sets, concepts, count, 1))
    values = (rng.random(shape) < _logistic(prompt + seed)).astype(float)
    truth: NDArray | float = _mean_share(math.hypot(1, between))
    if count < seeds.FEWEST:
        truth = _mean_share(1.0, seed.reshape(sets, -1)).mean(axis=1)
    if paired:
        original = (rng.random((sets, concepts, 1, prompts)) < _logistic(prompt + 1.0)).astype(float)
        values, truth = values - original, truth - _mean_share(1.0, np.ones(1))[0]
    codes = np.indices(shape[1:]).reshape(3, -1)
    cluster, run = codes[0] * prompts + codes[2], codes[1]
    values = values.reshape(sets, -1)
    of = scores.sample(values, cluster, codes[0], images=1 + paired)
    limits = (scores.difference_interval if paired else scores.share_interval)(of, LEVEL)
    parts = []
    for concept in range(concepts):
        own = codes[0] == concept
        parts.append(seeds.between(values[:, own], run[own], codes[2][own], np.ones(own.sum())))
    variances = seeds.plausible(parts)
    below, above = (
        seeds.reach(np.abs(of.mean - side) / NORMAL, variances, LEVEL) if count >= seeds.FEWEST else abs(of.mean - side)
        for side in limits
    )
    return cell(np.maximum(of.mean - below, -1.0 if paired else 0.0), np.minimum(of.mean + above, 1.0), truth)


def runs_without_outcomes(count: int, prompts: int, between: float, sets: int, rng) -> Cell:
    """The same for records without outcomes."""
    prompt, seed = rng.normal(size=(sets, 1, prompts)), between * rng.normal(size=(sets, count, 1))
    values = (rng.random((sets, count, prompts)) < _logistic(prompt + seed)).astype(float)
    found = []
    for own in values:
        of = scores.sample(own, np.arange(prompts), np.zeros(prompts, int))
        low, high = scores.share_interval(of, LEVEL)
        mean = statistics.mean_of_estimates([Estimate(*e) for e in zip(of.mean, low, high, strict=True)], shared=True)
        found.append(statistics.mean_over_runs(mean, of.mean, range(count)))
    return of_estimates(found, _mean_share(math.hypot(1, between)))


def _logistic(odds: NDArray) -> NDArray:
    """Shares with these log-odds, shifted so that they lie around 0.27."""
    return 1 / (1 + np.exp(1.0 - odds))


def _mean_share(deviation: float, shift: NDArray | float = 0.0):
    """The mean share for normal log-odds with this standard deviation around ``shift``."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    found = _logistic(deviation * nodes + np.asarray(shift, float)[..., None]) @ (weights / weights.sum())
    return float(found) if np.ndim(found) == 0 else found


def mean(prompts: int, m: int, kind: str, sets: int, rng: np.random.Generator) -> Cell:
    """A mean of real values: prompts of one distribution, and noise per image."""
    draw, truth = REALS[kind]
    effects = draw(rng, (sets, prompts))
    values = np.repeat(effects, m, axis=1) + (m > 1) * rng.normal(0, 0.1, (sets, prompts * m))
    clusters = np.repeat(np.arange(prompts), m)
    return of_estimates((statistics.mean(row, clusters) for row in values), truth)


def psnr(prompts: int, spread: float, sets: int, rng) -> Cell:
    """PSNR of mean squared errors with a log-normal distribution."""
    from overpaint.metrics.metric import Figure
    from overpaint.metrics.similarity import PsnrOriginal

    values = rng.lognormal(-4, spread, (sets, prompts))
    figures = (PsnrOriginal().figure(statistics.mean(row), Figure(None)) for row in values)
    return of_estimates((Estimate(f.value, f.low, f.high) for f in figures), -10 / math.log(10) * (spread**2 / 2 - 4))


def kid(prompts: int, m: int, shift: float, sets: int, rng, paired: bool = True) -> Cell:
    """KID of features in 8 dimensions, half of whose variance belongs to the prompt.

    With ``paired``, the second image of a pair keeps 0.8 of the first one's features; otherwise there are 200 reference
    pictures. Features are moved by ``shift``.
    """
    from overpaint.metrics.distribution import KidOriginal, KidReference

    metric, clusters, found = (KidOriginal if paired else KidReference)(), np.repeat(np.arange(prompts), m), []
    reference = rng.normal(size=(200, 8)) - shift * np.eye(8)[0]
    for _ in range(sets):
        own = (np.repeat(rng.normal(size=(prompts, 8)), m, axis=0) + rng.normal(size=(prompts * m, 8))) / math.sqrt(2)
        other = 0.8 * own + 0.6 * rng.normal(size=own.shape) - shift * np.eye(8)[0]

        def value(names: NDArray, own=own, other=other) -> float:
            rows = np.isin(clusters, names)
            return metric.distance(own[rows], other[rows] if paired else reference)

        found.append(metric.estimate(value, clusters, metric.floor))
    draws = np.random.default_rng(9).normal(size=(2, 1_000_000, 8))
    moved = draws - shift * np.eye(8)[0]
    if paired:
        truth = _kernel(*draws).mean() + _kernel(*moved).mean() - 2 * _kernel(draws[0], moved[1]).mean()
    else:
        inside, across = _kernel(reference[:, None], reference), _kernel(draws[0, :20_000, None], reference)
        truth = _kernel(*draws).mean() + (inside.sum() - np.trace(inside)) / (200 * 199) - 2 * across.mean()
    return of_estimates(found, float(truth))


def _kernel(x: NDArray, y: NDArray) -> NDArray:
    """KID's kernel of rows of features."""
    return ((x * y).sum(axis=-1) / x.shape[-1] + 1) ** 3


def fid(prompts: int, shift: float, sets: int, rng) -> Cell:
    """FID of features in 8 dimensions to 500 reference pictures. Its true value is its mean at this number of images."""
    from overpaint.metrics.distribution import FidReference

    metric, found, values = FidReference(), [], []
    reference = rng.normal(size=(500, 8)) - shift * np.eye(8)[0]
    for _ in range(sets):
        own = rng.normal(size=(prompts, 8))
        found.append(metric.estimate(lambda n, own=own: metric.distance(own[n], reference), np.arange(prompts), 0.0))
        values.append(found[-1].value)
    return of_estimates(found, float(np.mean(values)))


def ranks(shares: Sequence[float], prompts: int, effect: float, sets: int, rng) -> Cell:
    """The ranks of all methods. The log-odds of a share are the method's and the prompt's normal effect."""
    own = np.array([_odds_of(p, effect) for p in shares])
    truth = np.array([1 + sum(q > p + 1e-9 for q in shares) for p in shares])
    low, high = [], []
    for _ in range(sets):
        chances = 1 / (1 + np.exp(-(own[:, None] + effect * rng.normal(size=prompts))))
        found = rank_intervals(rng.random(chances.shape) < chances)
        low.append([e.low for e in found])
        high.append([e.high for e in found])
    return cell(low, high, truth)


def ranks_over_concepts(shares: Sequence[float], concepts: int, spread: float, sets: int, rng) -> Cell:
    """The ranks of all methods over all concepts, from a sample of concepts with 24 prompts each.

    The log-odds of a share are the method's and the normal effect of a method on a concept, with standard deviation ``spread``.
    """
    own = np.array([_odds_of(p, spread) for p in shares])
    truth = np.array([1 + sum(q > p + 1e-9 for q in shares) for p in shares])
    low, high = [], []
    for _ in range(sets):
        chances = 1 / (1 + np.exp(-(own[:, None] + spread * rng.normal(size=(len(shares), concepts)))))
        found = rank_intervals_over_concepts(rng.binomial(24, chances) / 24)
        low.append([e.low for e in found])
        high.append([e.high for e in found])
    return cell(low, high, truth)


def best_unmarked(shares: Sequence[float], prompts: int, effect: float, sets: int, rng) -> float:
    """How often a table marks neither as best nor as tied with it one of the methods that truly are (the largest share).

    The log-odds of a share are the method's and the prompt's normal effect. All methods share the prompts and their effects.
    """
    own = np.array([_odds_of(p, effect) for p in shares])
    best = [i for i, p in enumerate(shares) if p == max(shares)]
    wrong = 0
    for _ in range(sets):
        chances = 1 / (1 + np.exp(-(own[:, None] + effect * rng.normal(size=prompts))))
        hits = (rng.random(chances.shape) < chances).astype(float)
        marked = standings(
            {str(i): statistics.proportion(of) for i, of in enumerate(hits)},
            "up",
            lambda a, b, hits=hits: statistics.paired_difference(hits[int(a)], hits[int(b)], interval=False),
        )
        wrong += any(str(i) not in marked for i in best)
    return wrong / sets


def _odds_of(p: float, effect: float) -> float:
    """The log-odds around which a normal effect gives this mean share."""
    from scipy.optimize import brentq

    return float(brentq(lambda x: _mean_share(effect, x + 1.0) - p, -20, 20))


def inversion(pictures: int, gap: float, sets: int, rng, field: str = "") -> Cell:
    """Likelihood distance of a concept's images, or PSNR (``field`` psnr), or the difference to the control.

    Negative log-likelihoods lie ``gap`` standard deviations of N(0, I) above its mean, those of the control one more and those of
    ordinary images two. An image shares half of its variance with its control.
    """
    from overpaint.metrics.inversion import LikelihoodDistance, ReconstructionPsnr, normal_moments
    from overpaint.metrics.metric import Evidence

    dimensions, found = 1024, []
    normal, names = normal_moments(dimensions), np.array([f"{i}" for i in range(pictures)])
    for _ in range(sets):
        texture, parts = rng.normal(size=pictures), []
        for role, at in (("attacked", gap), ("scrambled", gap + 1.0), ("ordinary", 2.0)):
            shape = texture if role != "ordinary" else rng.normal(size=pictures)
            read = at + math.sqrt(0.5) * (shape + rng.normal(size=pictures))
            described = {"prompt_id": names, "seed": 0, "draw": 0, "role": role, "failed": False}
            nll = normal.mean + normal.deviation * read
            parts.append(pd.DataFrame({**described, "dimensions": dimensions, "nll": nll, "psnr": read}))
        table = pd.concat(parts, ignore_index=True)
        metric = ReconstructionPsnr() if field.startswith("psnr") else LikelihoodDistance()
        figure = metric.measure(Evidence([], table, table.iloc[:0]))
        estimate = Estimate(figure.value, figure.low, figure.high)
        if field.endswith("difference"):
            estimate = Estimate(figure.difference, figure.difference_low, figure.difference_high)
        found.append(estimate)
    own, control = (gap, gap + 1) if field.startswith("psnr") else (gap**2 / 4, (gap + 1) ** 2 / 4)
    return of_estimates(found, own - control if field.endswith("difference") else own)


def relearning(prompts: int, curve: Sequence[float], effect: float, sets: int, rng, field: str = "area") -> Cell:
    """A figure of a relearning curve over steps 0, 10, 40 and 160, or its difference to a curve that is 0.9 throughout.

    The unedited model shows the concept in 0.9 of all images. The latent normal variables of one prompt's images have the
    correlation ``effect``.
    """
    from scipy.special import ndtri

    from overpaint.metrics.outcomes import own_concept
    from overpaint.metrics.relearning import RelearnArea, RelearnStepsToHalf, area, steps_to_half

    steps, found = np.array([0.0, 10.0, 40.0, 160.0]), []
    metric = RelearnArea() if field.startswith("area") else RelearnStepsToHalf()
    prompt, point = np.indices((prompts, len(steps))).reshape(2, -1)
    names = np.array([f"{i:03d}" for i in range(prompts)])
    described = {"prompt_id": names[prompt], "seed": 0, "role": "attacked", "concept": "church", "failed": False}
    level = np.sqrt(effect) * rng.normal(size=(sets, prompts, 1))
    limits = ndtri(np.array([curve, [0.9] * len(steps)]))
    noise = np.sqrt(1 - effect) * rng.normal(size=(3, sets, prompts, len(steps)))
    for own, other, plain in zip(*(noise + level), strict=True):
        images, original = (
            pd.DataFrame({**described, "steps": steps[point], "church": (draw < at).ravel() * 1.0})
            for draw, at in zip((own, other), limits, strict=True)
        )
        shown = pd.DataFrame({**described, "church": np.repeat(plain[:, 0] < limits[1, 0], len(steps)) * 1.0})
        shown = shown.drop_duplicates("prompt_id").reset_index(drop=True)
        tables = [own_concept(frame, 0.5).assign(steps=frame["steps"]) for frame in (images, original)]
        known = own_concept(shown, 0.5)
        if not field.endswith("difference"):
            found.append(metric.estimate(tables[0], known))
        elif isinstance(metric, RelearnStepsToHalf):
            found.append(metric.gap(*tables, known))
        else:
            found.append(metric.difference(*tables, known))
    curves = np.array([curve, [0.9] * len(steps)])
    own, other = area(curves, steps) if field.startswith("area") else steps_to_half(curves, steps, np.array([0.9, 0.9]))
    return of_estimates(found, float(own - other if field.endswith("difference") else own))


def spread(usual: float, failing: float, how_often: float, sets: int, rng, part: str) -> Cell:
    """The standard deviation of seeds or of the rest (``part``), for 4 concepts × 5 seeds × 24 prompts.

    A seed has the share ``failing`` with the probability ``how_often``, else the ``usual`` one. Data sets without intervals are
    left out.
    """
    shares = np.where(rng.random((sets, 4, 5, 1)) < how_often, failing, usual)
    found = []
    for values in (rng.random((sets, 4, 5, 24)) < shares).astype(float):
        entry = entries_of(values, "fraction")[1 + PARTS.index(part)]
        if entry.low is not None:
            found.append(Estimate(entry.value, entry.low, entry.high))
    if part == "seeds":
        truth = math.sqrt(how_often * (1 - how_often)) * abs(failing - usual)
    else:
        truth = math.sqrt((1 - how_often) * usual * (1 - usual) + how_often * failing * (1 - failing))
    return of_estimates(found, truth)


def membership(images: int, shift: float, sets: int, rng, of: str) -> Cell:
    """AUC of normal losses of as many members as held-out images, the members' smaller by ``shift``; its difference to a model
    that never saw them, and PrivLeak with that model's area. The losses of one image in two models correlate by 0.5."""
    from scipy.special import ndtr

    from overpaint.metrics.gold import PrivLeakGold
    from overpaint.metrics.membership import LeakageAuc, correlation

    auc, leak, area, found = LeakageAuc(), PrivLeakGold(), float(ndtr(shift / math.sqrt(2))), []
    for _ in range(sets):
        images_of, own, gold = math.sqrt(0.5) * rng.normal(size=(3, 2, images))
        with_members, without = images_of + own - [[shift], [0.0]], images_of + gold
        one, other = tuple(with_members), tuple(without)
        if of == "area":
            found.append(auc.estimate(one))
        elif of == "difference":
            found.append(auc.difference(one, other))
        else:
            estimates = leak.estimate(one), leak.estimate(other)
            found.append(statistics.ratio_of_estimates(*estimates, correlation=correlation(one, other)))
    return of_estimates(found, {"area": area, "difference": area - 0.5, "ratio": (1 - area) / 0.5}[of])


class Agreement(NamedTuple):
    """Coverage of a tau of `overpaint.report.validity`, and how often its tests reject."""

    here: Cell
    elsewhere: Cell
    orders: float
    for_others: float
    little_use: float


def validity(tau: float, spread: float, reliability: float, sets: int, rng, methods: int = 25) -> Agreement:
    """A score and a distance of ``methods`` on 4 concepts, whose taus without noise are normal around ``tau``.

    The truth of these concepts is the tau of the simulated figures without noise, that of other concepts is ``tau``.
    """
    found, exact_taus, shown = [], [], []
    for _ in range(sets):
        taus = np.clip(rng.normal(tau, spread, 4), -1, 1)[:, None]
        rho = np.sin(np.pi * taus / 2)
        exact = rng.standard_normal((2, 4, methods))
        exact[1] = rho * exact[0] + np.sqrt(1 - rho**2) * exact[1]
        error = math.sqrt(1 / reliability - 1)
        score, distance = (
            Scored(figures[:, :, None], np.full((4, methods, 1), error), "up")
            for figures in exact + error * rng.standard_normal(exact.shape)
        )
        entries, notes = agreements({"score": score}, {"distance": distance})
        entry = entries["score"][0]
        found.append(Estimate(entry.value, entry.low, entry.high))
        exact_taus.append(np.mean([statistics.kendall_tau_b(x, y).value for x, y in zip(*exact, strict=True)]))
        orders, others, reverse, little, _ = (note.endswith(": score.") for note in notes[:5])
        shown.append((orders or reverse, others, little))
    low, high = np.array([(entry.low, entry.high) for entry in found]).T
    return Agreement(
        cell(low, high, np.array(exact_taus)), of_estimates(found, tau), *map(float, np.mean(shown, axis=0))
    )


def latency(pairs: int, sets: int, rng) -> Cell:
    """The range of log-normal ratios, which is the interval of their median."""
    ratios = rng.lognormal(0, 0.1, (sets, pairs))
    return cell(ratios.min(axis=1), ratios.max(axis=1), 1.0)


def power(prompts: int, m: int, tests: int, correlation: float, sets: int, rng) -> tuple[float, float]:
    """The smallest detectable difference that the plan states, and how often the test detects it.

    The pairs of a prompt and seed have the shares p ± d / 2 around 0.5 with correlation 0.5, the same for all prompts.
    """
    gap = smallest_detectable_difference(prompts, m, tests, within_prompt=correlation)
    first, second = 0.5 + gap / 2, 0.5 - gap / 2
    both = first * second + 0.5 * np.sqrt(first * (1 - first) * second * (1 - second))
    found = sampled(prompts, m, correlation, sets, rng, first - both, second - both)
    p = scores.p_value(found, scores.difference_score(found, np.zeros(sets)))
    return gap, float((p < (1 - LEVEL) / tests).mean())


def power_of_equality(prompts: int, m: int, tests: int, correlation: float, sets: int, rng) -> tuple[float, float]:
    """The largest share of differing pairs that the plan states, and how often two equal models are called equal."""
    differing = largest_share_shown_equal(prompts, m, tests, within_prompt=correlation)
    if differing is None:
        return math.nan, math.nan
    return differing, called_equal(prompts, m, correlation, differing / 2, differing / 2, sets, rng, tests)


Table = tuple[str, Sequence[str], Iterator[Sequence]]


def tables(sets: int, rng: np.random.Generator) -> Iterator[Table]:
    """Title, heads and rows of each table. Slow figures get fewer data sets."""
    few, fewest = max(sets // 4, 1), max(sets // 12, 1)
    layout = ("prompts", "seeds", "correlation")

    def by_layout(layouts: Iterable[tuple[int, int, float]], columns: Iterable, cell: Callable) -> Iterator[Sequence]:
        columns = list(columns)
        return ((*where[:2], f"{where[2]:g}", *(cell(where, column) for column in columns)) for where in layouts)

    yield (
        "Share",
        (*layout, *(f"p = {p:g}" for p in SHARES)),
        by_layout(LAYOUTS, SHARES, lambda where, p: share(*where, p, sets, rng)),
    )
    yield (
        "Share of prompts with any of n images, by the share of single images",
        ("prompts", "n", "correlation", "0.02", "0.1", "0.3"),
        by_layout(
            [(n, m, c) for n in (12, 24, 50) for m, c in ((5, 0.3), (10, 0.0), (10, 0.3))],
            (0.02, 0.1, 0.3),
            lambda where, p: any_of_n(*where, p, sets, rng),
        ),
    )
    yield (
        "Paired difference, by the shares of pairs (gained, lost)",
        (*layout, *(f"{g:g}, {x:g}" for g, x in PAIRS)),
        by_layout(LAYOUTS, PAIRS, lambda where, p: pairs(*where, *p, sets, rng)),
    )
    yield (
        "Paired difference: how often the 5 % test rejects where there is none, by the share of pairs gained and lost",
        (*layout, "0.02", "0.05", "0.1", "0.2", "0.4"),
        by_layout(FEWER, (0.02, 0.05, 0.1, 0.2, 0.4), lambda where, q: rejected(*where, q, sets, rng)),
    )
    yield (
        "Paired difference: how often two shares that differ by 0.10 are called equal, by the share of pairs lost",
        (*layout, "0", "0.05", "0.2"),
        by_layout(
            [*FEWER, (200, 1, 0.0), (200, 2, 0.3)],
            (0.0, 0.05, 0.2),
            lambda where, x: called_equal(*where, x + MARGIN, x, sets, rng),
        ),
    )
    yield (
        "Unpaired difference, by the two shares",
        (*layout, *(f"{p:g}, {q:g}" for p, q in BOTH)),
        by_layout(FEWER, BOTH, lambda where, p: unpaired(*where, *p, sets, rng)),
    )
    sizes = [f"{n} × {m}, {c:g}" for n, m, c in SIZES]
    yield (
        "Mean over labels or concepts, by prompts × seeds, correlation",
        ("shares", *sizes),
        ((_listed(p), *(labels(p, *size, sets, rng) for size in SIZES)) for p in LABELS),
    )
    yield (
        "Mean difference of labels or concepts, by prompts × seeds, correlation",
        ("shares of pairs gained", *sizes),
        ((_listed(p), *(label_pairs(p, *size, sets, rng) for size in SIZES)) for p in LABELS),
    )
    yield (
        "Mean over concepts that share their prompts, by the standard deviation of the prompts' log-odds",
        ("concepts", "prompts", "0", "1", "3"),
        ((k, n, *(shared(k, n, e, sets, rng) for e in (0.0, 1.0, 3.0))) for k in (2, 3, 5, 10) for n in (12, 40)),
    )
    yield (
        "Mean over concepts without stored outcomes",
        ("shares", "12 prompts", "24 prompts"),
        ((_listed(p), *(combined(p, n, few, rng) for n in (12, 24))) for p in LABELS[:6]),
    )
    spreads = (0.0, 0.2, 0.5, 1.0)
    yield (
        "Mean over method seeds, by the standard deviation between seeds (log-odds)",
        ("method seeds", "concepts", "prompts", *(f"{b:g}" for b in spreads)),
        (
            (s, k, n, *(runs(s, n, b, few, rng, k) for b in spreads))
            for s in (2, 3, 5)
            for k, n in ((1, 24), (1, 50), (3, 24))
        ),
    )
    yield (
        "Mean difference over method seeds, by the standard deviation between seeds (log-odds)",
        ("method seeds", "concepts", "prompts", *(f"{b:g}" for b in spreads)),
        (
            (s, k, n, *(runs(s, n, b, few, rng, k, paired=True) for b in spreads))
            for s in (2, 3, 5)
            for k, n in ((1, 24), (3, 24))
        ),
    )
    yield (
        "Mean over method seeds without stored outcomes, by the standard deviation between seeds (log-odds)",
        ("method seeds", "prompts", *(f"{b:g}" for b in spreads)),
        ((s, 24, *(runs_without_outcomes(s, 24, b, fewest, rng) for b in spreads)) for s in (3, 5)),
    )
    yield (
        "Mean of real values, by their distribution",
        ("prompts", "seeds", *REALS),
        ((n, m, *(mean(n, m, kind, sets, rng) for kind in REALS)) for n in (8, 12, 24, 50) for m in (1, 3)),
    )
    yield (
        "PSNR, by the standard deviation of the logarithmic squared error",
        ("prompts", "0.5", "1"),
        ((n, *(psnr(n, s, sets, rng) for s in (0.5, 1.0))) for n in (8, 12, 40)),
    )
    yield (
        "Distances of distributions, by the shift of the features",
        ("distance", "prompts", "images", "0", "0.5", "1"),
        (
            *(("KID to the unedited model", n, m, *(kid(n, m, x, fewest, rng) for x in (0, 0.5, 1))) for n, m in KIDS),
            *(("KID to references", n, m, *(kid(n, m, x, fewest, rng, False) for x in (0, 0.5, 1))) for n, m in KIDS),
            ("FID to references", 500, 1, *(fid(500, x, max(fewest // 3, 1), rng) for x in (0, 0.5, 1))),
        ),
    )
    yield (
        "Ranks, by the methods' shares and the standard deviation of the prompts' log-odds",
        ("shares", "prompts", "0", "2"),
        ((_listed(p), n, *(ranks(p, n, e, fewest, rng) for e in (0.0, 2.0))) for p in RANKED for n in (24, 50)),
    )
    yield (
        "Inversion, by the distance of the concept's images from ordinary start noise",
        ("figure", "images", "2", "4"),
        (
            (name, n, *(inversion(n, x, few, rng, field) for x in (2.0, 4.0)))
            for name, field in INVERSIONS
            for n in (12, 24)
        ),
    )
    yield (
        "Relearning, by the shares after 0, 10, 40 and 160 steps",
        ("figure", "prompts", *map(_listed, CURVES)),
        (
            (name, n, *(relearning(n, c, 0.3, fewest, rng, field) for c in CURVES))
            for name, field in RELEARNED
            for n in (12, 24)
        ),
    )
    yield (
        "Membership, by the number of members and of held-out images and the distance of their losses in standard deviations",
        ("images", "distance", *MEMBERSHIP),
        (
            (n, f"{shift:g}", *(membership(n, shift, few, rng, of) for of in MEMBERSHIP.values()))
            for n in (8, 24, 100)
            for shift in (0.0, 0.5, 1.5, 3.0)
        ),
    )
    yield "Latency ratio: the range of six pairs", ("pairs", "covered"), ((n, latency(n, sets, rng)) for n in (6,))
    budgets = [(n, m, k, c) for n in (24, 50, 100) for m, c in ((1, 0.0), (2, 0.3), (10, 0.3)) for k in (1, 5)]
    head = ("prompts", "seeds", "tests in the family", "correlation")
    yield (
        "Power: the smallest detectable difference at 80 %, and how often the test finds it",
        (*head, "smallest difference", "found"),
        ((*b[:3], f"{b[3]:g}", *power(*b, sets, rng)) for b in budgets),
    )
    yield (
        "Power: the largest share of differing pairs at which equal models are called equal at 80 %, and how often they are",
        (*head, "largest share", "called equal"),
        ((*b[:3], f"{b[3]:g}", *power_of_equality(*b, sets, rng)) for b in budgets),
    )
    yield (
        "Spread, by the share of hits with a usual seed, with a seed that fails, and the probability that one fails",
        ("usual", "failing", "probability", "σ of seeds", "σ of the rest"),
        ((*of, *(spread(*of, fewest, rng, part) for part in ("seeds", "the rest"))) for of in SPREADS),
    )
    yield (
        "Best methods: how often one of those that truly are is not marked, by their shares",
        ("methods", "shares", "12 prompts", "50 prompts", "200 prompts"),
        ((len(p), said, *(best_unmarked(p, n, 1.0, few, rng) for n in (12, 50, 200))) for said, p in BEST),
    )
    yield (
        "Ranks over other concepts, by the methods' shares and the standard deviation of the concepts' log-odds",
        ("shares", "concepts", "0", "1", "2"),
        (
            (_listed(p), n, *(ranks_over_concepts(p, n, e, fewest, rng) for e in (0.0, 1.0, 2.0)))
            for p in RANKED
            for n in (5, 7, 12)
        ),
    )
    yield (
        "Validity: Kendall's tau of a score with a distance, 25 methods on 4 concepts, one score",
        ("tau", "σ over concepts", "reliability", "these concepts", "other concepts", *VERDICTS),
        ((*setting, *validity(*setting, fewest, rng)) for setting in VALIDITIES),
    )


#: Mean and standard deviation of tau over concepts, and the reliability of both figures (`overpaint.report.validity`).
VALIDITIES = (
    (0.0, 0.0, 0.9),
    (0.0, 0.3, 0.9),
    (0.3, 0.0, 0.9),
    (0.3, 0.0, 0.6),
    (0.3, 0.25, 0.9),
    (0.5, 0.0, 0.9),
    (0.5, 0.3, 0.9),
    (0.8, 0.0, 0.9),
)
VERDICTS = ("shown to order", "also for others", "of little use")
KIDS = ((16, 1), (40, 1))
SPREADS = (
    (0.03, 0.03, 0.0),
    (0.1, 0.1, 0.0),
    (0.3, 0.3, 0.0),
    (0.02, 0.8, 0.05),
    (0.02, 0.8, 0.1),
    (0.02, 0.8, 0.2),
    (0.1, 0.4, 0.5),
)
MEMBERSHIP = {"AUC": "area", "its difference to another model": "difference", "ratio of PrivLeak": "ratio"}
#: Shares of the methods of a table, in words and in numbers.
BEST = (
    ("all 0.5", (0.5,) * 5),
    ("all 0.5", (0.5,) * 20),
    ("one 0.6, the others 0.5", (0.6,) + (0.5,) * 19),
    ("evenly from 0.1 to 0.9", tuple(np.linspace(0.1, 0.9, 20))),
)
RANKED = ((0.5, 0.5, 0.5, 0.5), (0.2, 0.4, 0.6, 0.8), (0.1, 0.5, 0.5, 0.9))
INVERSIONS = (
    ("likelihood distance", ""),
    ("its difference to the control", "difference"),
    ("PSNR", "psnr"),
    ("its difference to the control", "psnr difference"),
)
CURVES = ((0.02, 0.1, 0.4, 0.8), (0.0, 0.3, 0.7, 0.9), (0.0, 0.05, 0.1, 0.2))
RELEARNED = (
    ("area", "area"),
    ("its difference to the unedited model", "area difference"),
    ("steps to half", "half"),
    ("their difference to the unedited model", "half difference"),
)


def _listed(shares: Iterable[float]) -> str:
    return ", ".join(f"{p:g}" for p in shares)


def _printed(value: object) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.3f}"
    return str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sets", type=int, default=3000, help="data sets a cell; slow figures get a fourth or a twelfth"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="print the tables whose title contains this text")
    asked = parser.parse_args()
    rng = np.random.default_rng()
    for number, (title, heads, rows) in enumerate(tables(asked.sets, rng)):
        rng.bit_generator.state = np.random.default_rng(
            [asked.seed, number]
        ).bit_generator.state  # each table has its own
        if asked.only.lower() not in title.lower():
            continue
        print(f"\n**{title}**\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
        for row in rows:
            print(f"| {' | '.join(map(_printed, row))} |", flush=True)


if __name__ == "__main__":
    main()
