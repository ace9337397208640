"""Pareto fronts and groups of methods that are not told apart."""

import numpy as np
import pandas as pd
import pytest

from overpaint.report.fronts import SAMPLES, better, resampled
from overpaint.report.ranks import alike
from overpaint.report.records import RECORD_COLUMNS
from overpaint.report.rendering import render, tables


def outcomes(methods, hits, metric="target_proportion", direction="down", first=0):
    """Records and outcomes ``(methods, prompts)`` on two concepts that share no prompt."""
    rows, parts = [], []
    for place, (method, own) in enumerate(zip(methods, hits, strict=True)):
        for half, concepts in enumerate(("church", "car")):
            values = own[half::2]
            key = first + 2 * place + half
            named = {"method": method, "method_name": method, "metric": metric, "direction": direction, "artefact": key}
            fixed = {
                "model": "m",
                "concepts": concepts,
                "kind": "object",
                "attack": "none",
                "attack_name": "none",
                "seed": 0,
            }
            figures = {
                "value": np.mean(values),
                "low": 0.0,
                "high": 1.0,
                "n": len(values),
                "failed": 0,
                "unit": "fraction",
            }
            other = {
                "facet": "efficacy",
                "against": "original",
                "p_value": None,
                "difference": None,
                "why": "",
                "scope": "",
            }
            other |= {
                "difference_low": None,
                "difference_high": None,
                "given": "{}",
                "settings": f"{key}",
                "versions": "{}",
            }
            rows.append(dict.fromkeys(RECORD_COLUMNS) | named | fixed | figures | other)
            names = [f"{concepts}-{n}" for n in range(len(values))]
            frame = pd.DataFrame(
                {"prompt_id": names, "seed": 0, "label": "x", "cluster": names, "stratum": "", "value": values}
            )
            parts.append(frame.assign(other=1.0, metric=metric, artefact=key))
    return pd.DataFrame(rows), pd.concat(parts, ignore_index=True)


@pytest.fixture
def measured():
    """``good`` erases all and keeps all; ``weak`` leaves half; ``harsh`` erases all but keeps half."""
    methods, none, half, every = ("good", "weak", "harsh"), np.zeros(40), np.arange(40) < 20, np.ones(40)
    erased = outcomes(methods, np.array([none, half, none], float))
    kept = outcomes(methods, np.array([every, every, half], float), "neighbour_retention", "up", 100)
    return tuple(pd.concat(pair, ignore_index=True) for pair in zip(erased, kept, strict=True))


def test_domination_needs_one_better_and_none_worse():
    values = np.array([[[0.0, 1.0], [0.5, 1.0], [0.0, 0.5], [0.0, 1.0]]])
    found = better(values, ["down", "up"])[0]
    assert (
        found[0].tolist() == [False, True, True, False]
        and not found[1:3].any()
        and found[3].tolist() == found[0].tolist()
    )


def test_the_front_and_what_is_shown_to_be_dominated(measured):
    (table,) = tables(measured[0], "pareto", measured[1])
    share = {row.names[0]: row.entries[-1] for row in table.rows}
    assert share["good"].value == 1 and share["good"].standing == "on the front"
    assert share["weak"].value < 0.05 and share["harsh"].value < 0.05
    assert "weak (by good); harsh (by good)" in table.notes[1] and "paired between methods" in table.notes[0]
    assert "| good | 0.00 " in render(measured[0], "md", "pareto", measured[1])


def two_methods(erased, kept):
    """Records and outcomes of methods ``i`` and ``j`` with these hits ``(2, prompts)``."""
    found = (
        outcomes("ij", np.array(erased, float)),
        outcomes("ij", np.array(kept, float), "neighbour_retention", "up", 9),
    )
    return tuple(pd.concat(pair, ignore_index=True) for pair in zip(*found, strict=True))


def said_of(pair, outcomes_stored=True):
    (table,) = tables(pair[0], "pareto", pair[1] if outcomes_stored else None)
    return table.notes[1]


def test_no_hit_in_few_prompts_does_not_show_a_method_to_erase_as_well_as_another():
    """In every resample, 0 of 24 is at most as many as 1 of 24."""
    few, many = ([np.arange(n) < count for count in (0, 1)] for n in (24, 200))
    kept = [np.arange(n) < n * share for n in (24, 200) for share in (1, 0.3)]
    assert said_of(two_methods(few, kept[:2])).startswith("Shown to be dominated: none.")
    assert "j (by i). The other method is better in one figure" in said_of(two_methods(many, kept[2:]))


def test_few_tables_show_a_method_to_be_dominated_that_erases_better_by_the_margin(tables_made=20, n=48):
    generator, wrong = np.random.default_rng(0), 0
    for _ in range(tables_made):
        erased, kept = (generator.random((2, n)) < np.array(shares)[:, None] for shares in ((0.12, 0.02), (0.95, 0.5)))
        wrong += "j (by i)" in said_of(two_methods(erased, kept))
    assert wrong <= 3  # 5 % of 20, and chance


def test_equal_methods_are_not_shown_to_dominate_each_other(methods=6, n=24):
    """The tests of a method against all others are corrected together."""
    generator, wrong = np.random.default_rng(0), 0
    for _ in range(4):
        names = "abcdef"[:methods]
        erased = outcomes(names, (generator.random((methods, n)) < 0.03).astype(float))
        kept = outcomes(names, (generator.random((methods, n)) < 0.8).astype(float), "neighbour_retention", "up", 100)
        records, found = (pd.concat(pair, ignore_index=True) for pair in zip(erased, kept, strict=True))
        (table,) = tables(records, "pareto", found)
        wrong += "dominated: none" not in table.notes[1]
    assert wrong == 0


def test_without_outcomes_domination_is_tested_from_the_intervals():
    wide = two_methods([np.zeros(40), np.ones(40)], [np.ones(40), np.ones(40)])
    assert "dominated: none" in said_of(wide, outcomes_stored=False)  # the fixture's intervals are [0, 1]
    close = wide[0].assign(low=(wide[0]["value"] - 0.02).clip(0), high=(wide[0]["value"] + 0.02).clip(upper=1))
    assert "j (by i)" in said_of((close, None), outcomes_stored=False)


def test_methods_are_compared_on_the_same_concepts(measured):
    """``harsh`` is measured on the car only; then ``weak`` has an undefined figure of the church."""
    rows, found = measured
    one = rows[(rows["method"] != "harsh") | (rows["concepts"] == "car")]
    (table,) = tables(one, "pareto", found)
    assert [row.names[0] for row in table.rows] == ["good", "weak"]
    assert table.notes[-1] == "Not shown: harsh (without both figures on church, car)."
    undefined = one.assign(value=one["value"].mask((one["method"] == "weak") & (one["concepts"] == "church")))
    (table,) = tables(undefined, "pareto", found)
    assert [row.names[0] for row in table.rows] == ["good", "weak", "harsh"]
    assert table.notes[-1] == "Means over car only, which all of these methods share."
    assert table.rows[0].entries[0].n == 20


def test_without_outcomes_the_front_is_drawn_from_the_intervals(measured):
    (table,) = tables(measured[0], "pareto")
    share = {row.names[0]: row.entries[-1].value for row in table.rows}
    assert share["good"] > share["weak"] and "outcomes are not stored" in table.notes[0]


KINDS = {"church": "object", "car": "object"}


def drawn(*hits, kinds=KINDS):
    """Samples of one figure of methods a, b, …, and their outcomes."""
    methods = list("abc"[: len(hits)])
    rows, table = outcomes(methods, np.array(hits, float))
    found = table.merge(rows[["artefact", "method", "concepts"]], on="artefact").assign(run=0)
    return resampled([found], methods, kinds, np.random.default_rng(0))[..., 0], found


def test_resampled_methods_are_paired_and_have_the_error_of_a_share():
    samples, _ = drawn(np.arange(400) < 100, np.arange(400) < 100, np.zeros(400))
    assert samples.shape == (SAMPLES, 3) and (samples[:, 0] == samples[:, 1]).all() and (samples[:, 2] == 0).all()
    assert samples[:, 0].mean() == pytest.approx(0.25, abs=0.003)
    assert samples[:, 0].std() == pytest.approx(np.sqrt(0.25 * 0.75 / 400), rel=0.06)


def test_resampled_means_weigh_concepts_or_kinds_whatever_their_number_of_strata():
    _, found = drawn(np.tile([1, 0], 200))  # the church always, the car never
    found.loc[found["concepts"] == "car", "stratum"] = [f"{n % 4}" for n in range(200)]
    own = {"church": "church", "car": "car"}
    assert resampled([found], ["a"], own, np.random.default_rng(0)).mean() == pytest.approx(0.5)
    cat = found[found["concepts"] == "car"].assign(concepts="cat", cluster=lambda t: "cat" + t["cluster"])
    three = pd.concat([found, cat])
    assert resampled([three], ["a"], own | {"cat": "cat"}, np.random.default_rng(0)).mean() == pytest.approx(1 / 3)
    kinds = {"church": "building", "car": "object", "cat": "object"}
    assert resampled([three], ["a"], kinds, np.random.default_rng(0)).mean() == pytest.approx(0.5)


def test_a_prompt_that_concepts_and_figures_share_is_drawn_once():
    _, found = drawn(np.repeat(np.arange(100) < 50, 2))
    shared = found.assign(cluster=found["cluster"].str.split("-").str[1])
    samples = resampled([shared, shared], ["a"], KINDS, np.random.default_rng(0))
    assert (samples[..., 0] == samples[..., 1]).all()
    assert samples[..., 0].std() == pytest.approx(np.sqrt(0.25 / 100), rel=0.06), "100 prompts, not 200"


def test_methods_that_are_not_told_apart_share_a_group():
    def shares(*hits):
        return np.array([np.arange(60) < count for count in hits], float)

    assert alike(shares(0, 60, 30), "down") == [[0], [2], [1]]
    assert alike(shares(30, 30, 30), "down") == [[0, 1, 2]]
    assert alike(shares(20, 25, 30), "up") == [[2, 1], [1, 0]], "only the outer two are told apart"
    assert alike(np.full((2, 5), np.nan)) == []


def test_the_ranks_say_which_methods_are_alike(measured):
    ranks = tables(measured[0], "ranks", measured[1])[0]
    assert "target: not told apart (paired tests, Holm over all pairs), best first: good, harsh; weak." in ranks.notes
