"""Agreement between papers: the rule of disagreement, and the orders of methods."""

import numpy as np
import pandas as pd
import pytest
from ledger_rows import figure
from scipy.stats import kendalltau

from overpaint.report.ledger import agreement
from overpaint.report.ledger.published import names
from overpaint.report.statistics import taus_b, unpaired_difference


def test_papers_disagree_more_than_a_hundred_times(compared):
    apart = compared[compared["verdict"] == agreement.DISAGREE]
    assert len(apart) >= 100
    assert (apart["paper"] != apart["other_paper"]).all()
    assert (apart["tolerances"] > 1).all() and apart["tolerances"].is_monotonic_decreasing
    assert len(apart[~apart["provenance"].eq("secondary") & ~apart["other_provenance"].eq("secondary")]) >= 50


def test_known_disagreements_are_found(compared):
    """UCE under UnlearnDiffAtk: 79.6 % on the leaderboard, 43.0 % in SAFREE, 9.9 % in Concept Steerers."""
    part = compared[
        (compared["method"] == "UCE") & (compared["metric"] == "post_asr") & (compared["erased"] == "nudity")
    ]
    apart = part[part["verdict"] == agreement.DISAGREE]
    values = {frozenset(pair) for pair in apart[["value", "other_value"]].round(3).itertuples(index=False, name=None)}
    assert {frozenset({0.796, 0.43}), frozenset({0.796, 0.099}), frozenset({0.43, 0.099})} <= values


def pair(a, b):
    frame = pd.DataFrame([figure(paper="A", **a), figure(paper="B", **b)])
    (row,) = agreement.pairs(frame).to_dict("records")
    return row


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ({"scaled": 0.50, "images": None}, {"scaled": 0.50, "images": None}, "equal"),
        ({"scaled": 0.50, "images": None}, {"scaled": 0.55, "images": None}, "agree"),
        ({"scaled": 0.50, "images": None}, {"scaled": 0.56, "images": None}, "disagree"),
        ({"scaled": 0.50, "images": 100}, {"scaled": 0.56, "images": 100}, "within sampling error"),
        ({"scaled": 0.50, "images": 100}, {"scaled": 0.56, "images": None}, "disagree"),
        ({"scaled": 0.50, "images": 10_000}, {"scaled": 0.56, "images": 10_000}, "disagree"),
        ({"scaled": 0.50, "images": 10_000}, {"scaled": 0.52, "images": 10_000}, "agree"),
        ({"scaled": 31.0, "scale": "100 cos"}, {"scaled": 30.0, "scale": "100 cos"}, "agree"),
        ({"scaled": 31.0, "scale": "100 cos"}, {"scaled": 29.9, "scale": "100 cos"}, "disagree"),
        ({"scaled": 20.0, "scale": "distance"}, {"scaled": 18.0, "scale": "distance"}, "agree"),
        ({"scaled": 20.0, "scale": "distance"}, {"scaled": 17.9, "scale": "distance"}, "disagree"),
        ({"scaled": 0.0, "scale": "detections"}, {"scaled": 0.0, "scale": "detections"}, "equal"),
    ],
)
def test_the_rule_of_disagreement(a, b, verdict):
    assert pair(a, b)["verdict"] == pair(b, a)["verdict"] == verdict


def test_sampling_error_is_that_of_the_difference_of_shares():
    e = unpaired_difference(np.arange(100) < 50, np.arange(100) < 56)
    assert e.low < 0 < e.high
    e = unpaired_difference(np.arange(10_000) < 5_000, np.arange(10_000) < 5_600)
    assert e.high < 0


def test_figures_of_other_quantities_are_not_compared():
    for other in (
        {"method": "ESD-u"},
        {"base": "SD v1.5"},
        {"concept": "church"},
        {"attack_name": "rab"},
        {"prompts": "I2P"},
    ):
        frame = pd.DataFrame([figure(paper="A"), figure(paper="B", **other)])
        assert agreement.pairs(frame).empty


def test_recorded_differences_are_named():
    row = pair({"images": 142.0, "detector": "Q16"}, {"images": None, "note": "a subset"})
    assert row["differs_in"] == ("n 142 | not stated; detector Q16 | NudeNet v3, 0.45, 9 classes; note none | a subset")
    assert pair({}, {})["differs_in"] == ""


def test_orders_of_unlearndiffatk_and_i2p(found):
    ordered = agreement.orders(found, names())
    nudity = ordered[(ordered["erased"] == "nudity") & (ordered["attack"] == "uda")]
    i2p = ordered[(ordered["prompts"] == "I2P") & (ordered["attack"] == "")]
    assert len(nudity) >= 10 and len(i2p) >= 5
    (row,) = nudity[(nudity["paper"] == "TINA") & (nudity["other_paper"] == "UnlearnDiffAtk leaderboard")].to_dict(
        "records"
    )
    board = {
        "AdvUnlearn": 21.13,
        "ESD": 76.05,
        "FMN": 97.89,
        "MACE": 74.57,
        "RECE": 75.42,
        "SalUn": 11.27,
        "UCE": 79.58,
    }
    tina = {"AdvUnlearn": 23.24, "ESD": 76.05, "FMN": 97.89, "MACE": 81.69, "RECE": 63.38, "SalUn": 13.38, "UCE": 78.87}
    assert set(row["shared"].split(", ")) == set(board) and row["equal"] == 2
    expected = kendalltau([board[m] for m in board], [tina[m] for m in board])
    assert (row["tau"], row["p_value"]) == pytest.approx((expected.statistic, expected.pvalue))
    assert row["low"] < row["tau"] < row["high"]


def test_an_order_counts_in_the_direction_of_its_metric():
    figures = [
        figure(paper=p, method=m, scaled=v) for p in "AB" for m, v in (("ESD", 0.1), ("UCE", 0.2), ("MACE", 0.3))
    ]
    known = names()
    (row,) = agreement.orders(pd.DataFrame(figures), known).to_dict("records")
    assert row["tau"] == 1 and row["methods"] == 3 and row["equal"] == 3
    turned = [f | ({"better": "up"} if f["paper"] == "B" else {}) for f in figures]
    (row,) = agreement.orders(pd.DataFrame(turned), known).to_dict("records")
    assert row["tau"] == -1


def test_the_interval_of_tau():
    """The vectorised tau-b of resamples is scipy's; equal orders and few methods have no interval."""
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=12), generator.integers(0, 4, size=12)
    drawn = generator.integers(12, size=(50, 12))
    assert taus_b(x[drawn], y[drawn]) == pytest.approx([kendalltau(x[i], y[i]).statistic for i in drawn])
    low, high = agreement.tau_interval(list(x), list(y))
    assert -1 <= low < high <= 1
    assert agreement.tau_interval([1, 2, 3, 4], [1, 3, 2, 4]) == (None, None)
    assert agreement.tau_interval([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]) == (None, None)


def test_the_interval_of_tau_covers(n=20, rho=0.5):
    """For normal pairs with correlation rho, tau is 2/π asin(rho)."""
    generator, covered = np.random.default_rng(0), 0
    truth = 2 / np.pi * np.arcsin(rho)
    for _ in range(60):
        x = generator.normal(size=n)
        y = rho * x + np.sqrt(1 - rho**2) * generator.normal(size=n)
        low, high = agreement.tau_interval(list(x), list(y))
        covered += low <= truth <= high
    assert covered >= 53
