"""A small version of the simulation in ``docs/statistics.md``: coverage of intervals and power of tests. The page must show
what the command prints."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SETS = 1500
#: 93 % minus three standard errors at this number of data sets.
LEAST = 0.93 - 3 * np.sqrt(0.07 * 0.93 / SETS)


@pytest.fixture(scope="module")
def simulate():
    spec = importlib.util.spec_from_file_location("simulate_coverage", ROOT / "scripts" / "simulate_coverage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompts", "seeds", "correlation"), [(24, 1, 0.0), (24, 2, 0.33), (50, 10, 0.33), (50, 10, 0.8)]
)
def test_intervals_of_shares_and_differences_cover(simulate, prompts, seeds, correlation):
    layout, rng = (prompts, seeds, correlation), np.random.default_rng(1)
    for p in (0.01, 0.02, 0.05, 0.2, 0.5):
        assert simulate.share(*layout, p, SETS, rng) > LEAST, p
    for gained, lost in ((0.02, 0.02), (0.05, 0.0), (0.3, 0.1), (0.9, 0.0)):
        assert simulate.pairs(*layout, gained, lost, SETS, rng)[0] > LEAST, (gained, lost)
    for p, q in ((0.05, 0.05), (0.9, 0.4)):
        assert simulate.unpaired(*layout, p, q, SETS, rng) > LEAST, (p, q)
    middle = [simulate.share(*layout, 0.5, SETS, rng), simulate.pairs(*layout, 0.3, 0.1, SETS, rng)[0]]
    assert max(middle) < 0.98, "and are not needlessly wide away from the rim"


@pytest.mark.slow
@pytest.mark.parametrize("layout", [(24, 1, 0.0), (24, 2, 0.33), (50, 10, 0.8)])
def test_tests_keep_their_level(simulate, layout):
    rng = np.random.default_rng(2)
    for q in (0.05, 0.1, 0.4):
        assert simulate.pairs(*layout, q, q, SETS, rng)[1] < 0.07 + 3 * np.sqrt(0.07 * 0.93 / SETS), q


@pytest.mark.slow
def test_intervals_of_means_cover(simulate):
    rng = np.random.default_rng(3)
    for shares in simulate.LABELS:
        for size in ((4, 1, 0.0), (24, 1, 0.0), (12, 3, 0.33)):
            assert simulate.labels(shares, *size, SETS, rng) > LEAST, (shares, size)
    assert simulate.mean(40, 3, 0.25, 400, rng) > 0.90
    for between in (0.0, 0.5):
        assert simulate.runs(3, 24, between, 300, rng) > 0.90, between


@pytest.mark.slow
@pytest.mark.parametrize("case", [(24, 1, 1, 0.0), (24, 1, 5, 0.0), (50, 2, 5, 0.3), (100, 1, 1, 0.0)])
def test_a_smallest_difference_is_found_as_often_as_it_says(simulate, case):
    gap, found = simulate.power(*case, SETS, np.random.default_rng(4))
    assert 0 < gap < 1 and 0.72 < found < 0.88


def test_one_cell_of_the_simulation(simulate):
    rng = np.random.default_rng(5)
    assert 0.9 < simulate.share(24, 2, 0.33, 0.3, 300, rng) <= 1
    covered, rejected = simulate.pairs(24, 2, 0.33, 0.1, 0.1, 300, rng)
    assert 0.9 < covered <= 1 and rejected < 0.1


def test_the_page_has_a_table_for_every_interval_within_its_bounds():
    """The exceptions that the page names are its lowest figures."""
    page = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    tables = re.findall(r"\*\*([^*]+: coverage [^*]+)\*\*\n\n((?:\|.*\n)+)", page)
    assert {title.split(":")[0] for title, _ in tables} == {
        "Share",
        "Paired difference",
        "Unpaired difference",
        "Mean over labels or concepts",
        "Mean of real values",
        "Mean over method seeds",
    }
    for title, table in tables:
        cells = [float(cell) for row in table.splitlines()[2:] for cell in re.findall(r"\b[01]\.\d{3}\b", row)]
        covered = [cell for cell in cells if cell > 0.82]
        least = 0.85 if title.startswith("Mean over method seeds") else 0.91
        assert len(covered) >= 12 and min(covered) >= least, title
