"""Marks of figures, the best and tied methods of a column, and methods in pairs."""

import numpy as np
import pandas as pd
import pytest
from table_records import compared, frame, outcomes_of, piped, record

import overpaint
from overpaint.report import statistics
from overpaint.report.families import DIFFERS, EQUAL, Compared, marked, marks
from overpaint.report.records import RECORD_COLUMNS
from overpaint.report.rendering import render, tables
from overpaint.report.views import view_named


def test_the_three_marks():
    found = marks([Compared(1e-6, 1.0, True), Compared(0.9, 1e-6, True), Compared(0.4, 0.4, True), None])
    assert [mark.says for mark in found] == [DIFFERS, EQUAL, "", ""]
    assert found[3].p_adjusted is None


def test_primary_endpoints_are_not_corrected_for_the_others():
    """A thousand near-duplicates do not affect the primary endpoint, because each family has its own correction."""
    found = marks([Compared(0.0005, None, True), Compared(0.02, None, True), *[Compared(0.5)] * 1000, Compared(0.0005)])
    assert found[0].says == DIFFERS and found[0].p_adjusted == pytest.approx(0.001)
    assert found[1].says == DIFFERS and found[-1].says == "" and found[-1].p_adjusted == pytest.approx(0.5, abs=0.01)


def test_twelve_of_twelve_differs_beside_a_thousand_other_figures():
    gap = statistics.paired_difference(np.zeros(12), np.ones(12))
    first = compared("uce", "church", "target_proportion", 0.0, gap.value, gap.p_value)
    others = [compared("uce", "church", f"other_{n}", 0.5, 0.0, 0.9) for n in range(1006)]
    text = render(frame(first, *others), "md")
    assert "0.00 [0.00, 0.00] ≠" in text
    assert "Holm over its 1 test of primary endpoints (efficacy target proportion" in text
    assert "Benjamini–Hochberg over its 1006 other tests" in text


def test_families_are_those_of_a_method_on_a_concept_set():
    rows = [compared(m, c, "target_proportion", 0.0, -0.9, 0.03) for m in ("uce", "esd") for c in ("church", "car")]
    found = marked(frame(*rows), view_named("facets").primary)
    assert (found["p_adjusted"] == 0.03).all() and set(found["mark"]) == {DIFFERS}
    assert set(found["family"]) == {"primary (Holm)"}


def test_notes_name_only_corrections_that_were_made():
    target, other = (compared("uce", "church", m, 0.0, -0.9, 0.03) for m in ("target_proportion", "other"))
    untested = record("uce", "church", "target_proportion", 0.0, 0.0, 0.1)
    for rows, holm, hochberg in (((target, other), 1, 1), ((target,), 1, 0), ((other,), 0, 1), ((untested,), 0, 0)):
        text = render(frame(*rows), "md")
        assert (
            text.count("Holm over its 1 test of") == holm and text.count("Hochberg over its 1 other test") == hochberg
        )
        assert text.count("Tests are corrected") == (holm or hochberg) and "over its 0" not in text


def test_the_unedited_model_is_not_tested_against_itself():
    rows = frame(compared("none", "church", "target_proportion", 0.9, 0.0, 1.0, 0.001))
    assert marked(rows, view_named("facets").primary)["mark"].tolist() == [""]
    assert "=" not in piped(render(rows, "md"))[2][2]


def test_ranks_have_intervals(three):
    ranks, agreement = tables(three[0], "ranks", three[1])
    assert [(row.names, row.entries[0].value) for row in ranks.rows] == [(("uce",), 1), (("esd",), 2), (("mace",), 3)]
    assert (ranks.rows[0].entries[0].low, ranks.rows[2].entries[0].high) == (1, 3)
    assert agreement.heads == ("column",) and "tau-b" in agreement.notes[0]
    without = tables(three[0], "ranks")[0].rows[0].entries[0]
    assert without.value == 1 and without.low is None


def test_several_outcomes_of_one_image_give_ranks_without_intervals(three):
    rows, outcomes = three
    ranks, _ = tables(rows, "ranks", pd.concat([outcomes, outcomes[:1]], ignore_index=True))
    assert [row.entries[0].value for row in ranks.rows] == [1, 2, 3]
    assert ranks.rows[0].entries[0].low is None


def test_ranks_over_other_concepts_need_five_of_them():
    """Six concepts without stored outcomes; a method that lacks one of them has no rank there."""
    rows = frame(
        *(
            record(method, f"c{c}", "target_proportion", value + 0.01 * c)
            for method, value in (("uce", 0.0), ("esd", 0.4), ("mace", 0.8))
            for c in range(6 if method != "mace" else 5)
        )
    )
    _, over, _ = tables(rows, "ranks")
    assert over.title.startswith("Ranks over other concepts") and over.columns[0].n == 6
    found = {row.names[0]: row.entries[0] for row in over.rows}
    assert (found["uce"].value, found["uce"].high, found["esd"].low) == (1, 1, 2)
    assert found["mace"].value is None and found["mace"].why == "measured on 5 of 6 concept sets"
    assert len(tables(rows[rows["concepts"] < "c4"], "ranks")) == 2


def test_rankings_agree_or_not(three):
    rows, outcomes = three
    other = rows.assign(metric="neighbour_retention", direction="up", value=1 - rows["value"], artefact=[10, 11, 12])
    turned = outcomes.assign(
        metric="neighbour_retention", artefact=outcomes["artefact"] + 10, value=1 - outcomes["value"]
    )
    found = pd.concat([rows, other], ignore_index=True), pd.concat([outcomes, turned], ignore_index=True)
    agreement = tables(found[0], "ranks", found[1])[1]
    assert agreement.rows[0].entries[1].value == pytest.approx(1.0) and agreement.rows[0].entries[0] is None


def test_ranks_are_those_on_the_images_that_every_method_has(three):
    rows, outcomes = three
    without = outcomes[~((outcomes["artefact"] == 2) & (outcomes["prompt_id"] == "church-0"))]
    ranks, _ = tables(rows, "ranks", without)
    assert {(row.entries[0].n, row.entries[0].failed) for row in ranks.rows} == {(39, 0)}


def test_methods_in_pairs(three):
    (table,) = tables(three[0], "pairs", three[1])
    (uce, esd, mace) = (row.entries for row in table.rows)
    gap = statistics.paired_difference(np.zeros(40), np.arange(40) < 8)
    assert uce[0] is None and (uce[1].value, uce[1].low, uce[1].high) == pytest.approx(gap[:3])
    assert esd[0].value == 0.2 and esd[0].low == pytest.approx(-gap.high) and mace[0].value == 0.8
    assert uce[1].mark.says == DIFFERS and uce[1].mark.p_adjusted == pytest.approx(gap.p_value)
    assert "Holm over the 3 pairs" in table.notes[0]
    (bare,) = tables(three[0], "pairs")
    assert bare.rows[0].entries[1].value is None and "outcomes are not stored" in bare.rows[0].entries[1].why


@pytest.fixture
def seeded():
    """UCE shows 11 of 40 prompts and has one run; the three seeds of ESD show 0, 36 and 36. Lower is better."""
    shares = {("uce", 0): 11, ("esd", 0): 0, ("esd", 1): 36, ("esd", 2): 36}
    rows = frame(*(record(m, "church", "target_proportion", n / 40, 0, 1, seed=s) for (m, s), n in shares.items()))
    return outcomes_of(rows, np.array([np.arange(40) < n for n in shares.values()], float), np.ones((4, 40)))


def test_a_method_with_one_run_is_compared_with_every_seed_of_another(seeded):
    rows, outcomes = seeded
    (table,) = tables(rows, "pairs", outcomes)
    esd = next(row for row in table.rows if row.names == ("esd",)).entries[0]
    assert esd.value == pytest.approx(24 / 40 - 11 / 40) and (esd.n, esd.failed) == (120, 0)
    ranks, _ = tables(rows, "ranks", outcomes)
    found = {row.names[0]: row.entries[0] for row in ranks.rows}
    assert {name: (e.value, e.low, e.high, e.failed) for name, e in found.items()} == {
        "uce": (1, 1, 2, 0),
        "esd": (2, 1, 2, 0),
    }
    assert standing_of(rows, outcomes) == {"uce": "best", "esd": "tied"}  # three seeds that differ so much show nothing


def standing_of(rows, outcomes=None, view="methods"):
    (table,) = tables(rows, view, outcomes)
    return {row.names[0]: row.entries[0].standing for row in table.rows}


def test_best_and_tied_methods(three):
    """uce has 0 of 40, esd 8, mace 32: esd is worse by the paired test. The unedited model takes no part."""
    rows, outcomes = three
    assert standing_of(rows, outcomes) == {"uce": "best", "esd": "", "mace": ""}
    fewer = outcomes.assign(value=outcomes["value"].where(outcomes["prompt_id"].isin(["church-0", "church-39"]), 0.0))
    close = rows.assign(value=[0.0, 0.025, 0.025])
    assert standing_of(close, fewer) == {"uce": "best", "esd": "tied", "mace": "tied"}
    unedited = record("none", "church", "target_proportion", 0.0, 0.0, 0.1)
    assert standing_of(frame(unedited, *(dict(row) for _, row in rows[RECORD_COLUMNS].iterrows())))["none"] == ""


def test_without_outcomes_estimates_are_compared_as_independent_ones():
    def shown(value):
        rows = [record("uce", "church", "target_proportion", 0.0, 0.0, 0.15)]
        return standing_of(frame(*rows, record("esd", "church", "target_proportion", value, value - 0.1, value + 0.1)))

    assert shown(0.12) == {"uce": "best", "esd": "tied"} and shown(0.5) == {"uce": "best", "esd": ""}


def test_sizes_have_no_interval_and_are_tied_only_if_equal():
    rows = [
        record(m, "church", "artefact_bytes", v, unit="bytes", facet="sustainability")
        for m, v in (("uce", 5.0), ("esd", 6.0), ("ca", 5.0))
    ]
    assert standing_of(frame(*rows)) == {"uce": "best", "esd": "", "ca": "best"}
    text = render(frame(*rows), "md", "methods")
    assert "| **5 B** |" in text and "| 6 B |" in text and "Bold: the best method" in text


def test_a_mean_of_too_few_prompts_for_an_interval_is_not_shown_to_be_worse():
    values = (("uce", 0.500), ("esd", 0.501), ("ca", 0.499))
    rows = [record(m, "church", "target_proportion", v) for m, v in values]
    assert sorted(standing_of(frame(*rows)).values()) == ["best", "tied", "tied"]


def test_undefined_figures_say_why_two_methods_are_not_compared():
    none = {"why": "no near images", "direction": "up"}
    found = frame(*(record(m, "church", "neighbour_retention", None, None, None, **none) for m in ("uce", "esd")))
    assert "no near images" in render(found, "md", "pairs") and "older version" not in render(found, "md", "pairs")
    with pytest.raises(overpaint.UserError, match=r"neighbours kept \(no near images\)\. To make some"):
        kept = [record(m, "church", "target_proportion", 0.5, 0.4, 0.6) for m in ("uce", "esd")]
        render(pd.concat([found, frame(*kept)]), "md", "pareto")
