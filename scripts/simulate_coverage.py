"""Simulate the coverage of the tables' intervals and the power of their tests.

    python scripts/simulate_coverage.py [--sets 4000] [--seed 0]

prints the tables of ``docs/statistics.md``. Every prompt has its own share, drawn from a Beta distribution around the overall
share (a Dirichlet distribution for pairs). The correlation inside a prompt is given; 0 means independent seeds. All data sets
of a cell are computed at once.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from overpaint.report import scores, statistics

LEVEL = 0.95
SHARES = (0.02, 0.05, 0.1, 0.3, 0.5)
#: Share of pairs with the concept in the first image only, and share of pairs with it in the second image only.
PAIRS = ((0.02, 0.02), (0.05, 0.0), (0.1, 0.1), (0.2, 0.0), (0.3, 0.1), (0.5, 0.0), (0.9, 0.0))
LAYOUTS = [(n, 1, 0.0) for n in (12, 24, 50)] + [
    (n, m, c) for n in (12, 24, 50) for m in (2, 10) for c in (0.0, 0.33, 0.8)
]
LABELS = ((0.05, 0.9, 0.95, 0.98), (0.9,) * 4, (0.97,) * 9, (0.2, 0.4, 0.6, 0.8), (0.0, 1.0, 0.0, 1.0, 0.5, 0.5))
#: Squared coefficients of variation of gamma-distributed prompts. The skewness is twice the square root.
SKEWS = (0.0625, 0.25, 1.0)


def outcomes(shares: NDArray, seeds: int, correlation: float, sets: int, rng: np.random.Generator) -> NDArray:
    """Outcomes ``(sets, prompts * seeds)`` of prompts with probabilities ``(prompts, kinds)``. The kinds are 1, -1 (if there
    are three kinds) and 0."""
    chances = np.broadcast_to(shares, (sets, *shares.shape))
    if correlation:
        drawn = rng.gamma(np.maximum(chances, 1e-9) * (1 / correlation - 1)) + 1e-300
        chances = drawn / drawn.sum(axis=-1, keepdims=True)
    kind = rng.random((sets, len(shares), seeds))
    first = chances[..., 0, None]
    found = (kind < first).astype(float)
    if shares.shape[1] == 3:
        found -= (kind >= first) & (kind < first + chances[..., 1, None])
    return found.reshape(sets, -1)


def covered(interval: Callable, found: scores.Sample, truth: float) -> float:
    """The share of data sets whose interval contains the true value."""
    low, high = interval(found, LEVEL)
    return float(((low <= truth + 1e-12) & (truth - 1e-12 <= high)).mean())


def share(prompts: int, seeds: int, correlation: float, p: float, sets: int, rng: np.random.Generator) -> float:
    """Coverage of the interval of a share."""
    values = outcomes(np.tile([p, 1 - p], (prompts, 1)), seeds, correlation, sets, rng)
    layout = np.repeat(np.arange(prompts), seeds), np.zeros(prompts * seeds, int)
    return covered(scores.share_interval, scores.sample(values, *layout), p)


def labels(shares: Sequence[float], prompts: int, seeds: int, correlation: float, sets: int, rng) -> float:
    """Coverage of the interval of a mean over labels, each with the same number of prompts."""
    chances = np.repeat([[p, 1 - p] for p in shares], prompts, axis=0)
    values = outcomes(chances, seeds, correlation, sets, rng)
    layout = np.repeat(np.arange(len(chances)), seeds), np.repeat(np.arange(len(shares)), prompts * seeds)
    return covered(scores.share_interval, scores.sample(values, *layout), float(np.mean(shares)))


def pairs(
    prompts: int, seeds: int, correlation: float, gained: float, lost: float, sets: int, rng
) -> tuple[float, float]:
    """Coverage of the interval of a paired difference, and how often its test rejects "no difference"."""
    values = outcomes(np.tile([gained, lost, 1 - gained - lost], (prompts, 1)), seeds, correlation, sets, rng)
    found = scores.sample(values, np.repeat(np.arange(prompts), seeds), np.zeros(prompts * seeds, int))
    rejected = scores.p_value(found, scores.difference_score(found, np.zeros(sets))) < 1 - LEVEL
    return covered(scores.difference_interval, found, gained - lost), float(rejected.mean())


def unpaired(prompts: int, seeds: int, correlation: float, p: float, q: float, sets: int, rng) -> float:
    """Coverage of the interval of an unpaired difference."""
    layout = np.repeat(np.arange(prompts), seeds), np.zeros(prompts * seeds, int)
    one, other = (
        scores.sample(outcomes(np.tile([s, 1 - s], (prompts, 1)), seeds, correlation, sets, rng), *layout)
        for s in (p, q)
    )
    low, high = scores.unpaired_interval(one, other, LEVEL)
    return float(((low <= p - q) & (p - q <= high)).mean())


def mean(prompts: int, seeds: int, skew: float, sets: int, rng: np.random.Generator) -> float:
    """Coverage of the t-interval of a mean of real values: gamma-distributed prompts with mean 1, plus noise per image."""
    inside = 0
    for _ in range(sets):
        effects = rng.gamma(1 / skew, skew, prompts)
        values = np.repeat(effects, seeds) + rng.normal(0, 0.1, prompts * seeds)
        found = statistics.mean(values, np.repeat(np.arange(prompts), seeds))
        inside += found.low <= 1.0 <= found.high
    return inside / sets


def runs(count: int, prompts: int, between: float, sets: int, rng: np.random.Generator) -> float:
    """Coverage of the interval of a mean over method seeds that share their prompts.

    The log-odds of a share are the sum of two normal effects: the prompt's, with standard deviation 1, and the seed's, with
    standard deviation ``between``.
    """
    inside = 0
    truth = float(_logistic(math.hypot(1.0, between) * rng.normal(size=400_000)).mean())
    seed, prompt = np.repeat(np.arange(count), prompts), np.tile(np.arange(prompts), count)
    for _ in range(sets):
        shares = _logistic(rng.normal(size=prompts)[prompt] + rng.normal(0, between, count)[seed])
        values = (rng.random(len(seed)) < shares).astype(float)
        found = statistics.mean_over_runs(values, seed, prompt, statistics.proportion(values, prompt))
        inside += found.low <= truth <= found.high
    return inside / sets


def _logistic(odds: NDArray) -> NDArray:
    """Shares with these log-odds, shifted so that they lie around 0.27."""
    return 1 / (1 + np.exp(1.0 - odds))


def power(prompts: int, seeds: int, tests: int, correlation: float, sets: int, rng) -> tuple[float, float]:
    """The smallest detectable difference that the plan states, and how often the test detects it.

    The pairs of a prompt and seed have the shares p ± d / 2 around 0.5 with correlation 0.5, the same for all prompts.
    """
    gap = statistics.smallest_detectable_difference(prompts, seeds, tests, within_prompt=correlation)
    first, second = 0.5 + gap / 2, 0.5 - gap / 2
    both = first * second + 0.5 * np.sqrt(first * (1 - first) * second * (1 - second))
    gained, lost = first - both, second - both
    values = outcomes(np.tile([gained, lost, 1 - gained - lost], (prompts, 1)), seeds, correlation, sets, rng)
    found = scores.sample(values, np.repeat(np.arange(prompts), seeds), np.zeros(prompts * seeds, int))
    p = scores.p_value(found, scores.difference_score(found, np.zeros(sets)))
    return gap, float((p < (1 - LEVEL) / tests).mean())


def _named(layout: tuple[int, int, float]) -> tuple[int, int, str]:
    return (*layout[:2], f"{layout[2]:g}")


def table(title: str, heads: Iterable[str], rows: Iterable[Sequence]) -> None:
    """Print a Markdown table. Each row is printed as soon as it is computed."""
    heads = list(heads)
    print(f"\n**{title}**\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(f'{cell:.3f}' if isinstance(cell, float) else str(cell) for cell in row)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=4000, help="data sets a cell")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    sets, rng = asked.sets, np.random.default_rng(asked.seed)
    layout = ("prompts", "seeds", "correlation")
    table(
        "Share: coverage of its 95 % interval",
        (*layout, *(f"p = {p}" for p in SHARES)),
        ((*_named(where), *(share(*where, p, sets, rng) for p in SHARES)) for where in LAYOUTS),
    )
    table(
        "Paired difference: coverage of its 95 % interval, by the shares of pairs (gained, lost)",
        (*layout, *(f"{g:g}, {lost:g}" for g, lost in PAIRS)),
        ((*_named(where), *(pairs(*where, *p, sets, rng)[0] for p in PAIRS)) for where in LAYOUTS),
    )
    nothing = [(q, q) for q in (0.02, 0.05, 0.1, 0.2, 0.4)]
    table(
        "Paired difference: how often the 5 % test rejects where there is none, by the share of pairs gained and lost",
        (*layout, *(f"{g:g}" for g, _ in nothing)),
        ((*_named(where), *(pairs(*where, *p, sets, rng)[1] for p in nothing)) for where in LAYOUTS),
    )
    both = ((0.05, 0.05), (0.5, 0.5), (0.9, 0.4), (0.3, 0.1), (0.98, 0.02))
    table(
        "Unpaired difference: coverage of its 95 % interval, by the two shares",
        (*layout, *(f"{p:g}, {q:g}" for p, q in both)),
        ((*_named(where), *(unpaired(*where, *p, sets, rng) for p in both)) for where in LAYOUTS),
    )
    sizes = ((4, 1, 0.0), (12, 1, 0.0), (24, 1, 0.0), (12, 3, 0.33))
    table(
        "Mean over labels or concepts: coverage of its 95 % interval",
        ("shares", *(f"{n} × {m}, {c:g}" for n, m, c in sizes)),
        ((", ".join(f"{p:g}" for p in s), *(labels(s, *size, sets, rng) for size in sizes)) for s in LABELS),
    )
    few = max(sets // 4, 1)
    table(
        "Mean of real values: coverage of its 95 % interval, by the skewness of prompts",
        ("prompts", "seeds", *(f"{2 * k**0.5:g}" for k in SKEWS)),
        ((n, m, *(mean(n, m, k, few, rng) for k in SKEWS)) for n in (12, 40) for m in (1, 3)),
    )
    table(
        "Mean over method seeds: coverage of its 95 % interval, by the standard deviation between seeds (log-odds)",
        ("method seeds", "prompts", "0", "0.2", "0.5", "1"),
        ((s, n, *(runs(s, n, b, few, rng) for b in (0.0, 0.2, 0.5, 1.0))) for s in (2, 3, 5) for n in (24, 50)),
    )
    table(
        "Power: the smallest detectable difference at 80 %, and how often the test finds it",
        ("prompts", "seeds", "tests in the family", "correlation", "smallest difference", "found"),
        (
            (n, m, k, f"{c:g}", *power(n, m, k, c, sets, rng))
            for n in (24, 50, 100)
            for m, c in ((1, 0.0), (2, 0.3), (10, 0.3))
            for k in (1, 5)
        ),
    )


if __name__ == "__main__":
    main()
