"""Tables of stored records: means, marks, sweeps, ranks, pairs and missing values."""

import io
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import overpaint
from overpaint.grid.composition import compose_cells
from overpaint.grid.registry import components
from overpaint.grid.scope import OUTSIDE
from overpaint.report import missing, statistics
from overpaint.report.families import DIFFERS, EQUAL, Compared, marked, marks
from overpaint.report.figure_text import number
from overpaint.report.latex import latex_text
from overpaint.report.markdown import markdown_text
from overpaint.report.pooling import FIELDS, Outcomes, pooled
from overpaint.report.records import CELL, RECORD_COLUMNS, stored_outcomes, stored_records, with_identity
from overpaint.report.rendering import render, tables
from overpaint.report.statistics import Estimate, mean_of_estimates
from overpaint.report.tables import averaged
from overpaint.report.terminal import print_tables
from overpaint.report.views import Column, View, view_named
from overpaint.run.store import Store


def record(method, concepts, metric, value, low=None, high=None, attack="none", kind="object", unit="fraction", **rest):
    row = dict.fromkeys(RECORD_COLUMNS) | {"model": "m", "concepts": concepts, "kind": kind}
    row |= {"method": method, "method_name": method.split()[0], "attack": attack, "attack_name": attack.split()[0]}
    row |= {"protocol": "p", "budget": "b", "metrics": "facets", "seed": 0, "facet": "efficacy", "metric": metric}
    row |= {"direction": "down", "unit": unit, "value": value, "low": low, "high": high, "n": 10, "failed": 0}
    row |= {"original": 1.0, "scope": "", "against": "original", "why": "" if value is not None else "no images"}
    row |= {
        "given": "{}",
        "versions": "{}",
        "version": 1,
        "detector": "eye v1",
        "threshold": 0.5,
        "aggregation": "pooled",
    }
    row |= rest
    return row | {"settings": rest.get("settings", str(hash(tuple(map(str, row.values()))))[-12:])}


def compared(method, concepts, metric, value, difference, p_value, p_equivalence=None, reach=0.1, **rest):
    sides = {"difference": difference, "difference_low": difference - reach, "difference_high": difference + reach}
    return record(
        method, concepts, metric, value, value, value, p_value=p_value, p_equivalence=p_equivalence, **sides | rest
    )


def attacked(method, concepts, name, value, control, difference, p_value, **rest):
    rest = {"control": control, "against": "control", "facet": "robustness"} | rest
    return compared(method, concepts, "attack_success_any", value, difference, p_value, attack=name, **rest)


def frame(*rows):
    return pd.DataFrame(rows, columns=RECORD_COLUMNS)


@pytest.fixture
def records():
    return frame(
        record("uce", "church", "target_proportion", 0.2, 0.1, 0.4),
        record("uce", "car", "target_proportion", 0.4, 0.2, 0.6),
        record("uce", "sketch", "target_proportion", 0.5, 0.3, 0.7, kind="style"),
        record("esd", "church", "target_proportion", 0.0, 0.0, 0.3),
        record("esd", "car", "target_proportion", None),
    )


def piped(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_one_row_a_method_and_the_mean_over_concepts(records):
    text = render(records, "md", "methods")
    header, _, uce, esd = piped(text)
    assert header[1] == "target, objects ↓ n=20" and not any("characters" in name for name in header)
    assert uce[1].startswith("0.30 [0.19, 0.44]") and uce[2] == "0.50 [0.30, 0.70]"
    assert esd[1] == "⊥ (1)" and "\n(1) no images" in text, "a mean over fewer concepts would be another figure"
    assert "these concepts are fixed" in text and "One method seed" in text


def test_a_mean_over_fewer_concepts_says_so(records):
    """ESD has no record for the car. Without a remark, its mean would seem to cover the same concepts as UCE's."""
    fewer = records[~((records["method"] == "esd") & (records["concepts"] == "car"))]
    _, _, uce, esd = piped(render(fewer, "md", "methods"))
    assert esd[1] == "0.00 [0.00, 0.30] (over 1 of 2 concepts)" and "over" not in uce[1]


def test_the_mean_of_equal_estimates_is_narrower_by_the_root_of_their_number():
    one = Estimate(0.5, 0.3, 0.8, n=10)
    four = mean_of_estimates([one] * 4)
    assert four.value == 0.5 and four.n == 40 and four.spread == 0
    assert four.low == pytest.approx(0.4) and four.high == pytest.approx(0.65)
    assert mean_of_estimates([one])[:3] == pytest.approx(one[:3])
    assert mean_of_estimates([]).value is None


def outcomes_of(rows, hits, others):
    """Outcomes ``(records, prompts)`` of records, one image per prompt."""
    parts = []
    for (index, row), own, other in zip(rows.iterrows(), hits, others, strict=True):
        names = [f"{row['concepts']}-{n}" for n in range(len(own))]
        parts.append(
            pd.DataFrame(
                {"prompt_id": names, "seed": 0, "label": "x", "cluster": names, "stratum": "", "value": own}
            ).assign(other=other, metric=row["metric"], artefact=index)
        )
    return rows.assign(artefact=rows.index), pd.concat(parts, ignore_index=True)


def test_a_mean_over_concepts_is_one_stratified_interval_where_outcomes_are_stored():
    """Four concepts without a hit: the combined interval of 4 × 24 prompts ends at 0.07, that of 96 prompts at 0.04.

    If all concepts have the same prompts, they are worth 24 prompts.
    """
    rows = frame(*(compared("uce", c, "target_proportion", 0.0, -1.0, 1e-6, kind="object") for c in "abcd"))
    rows["low"], rows["high"] = 0.0, statistics.wilson(0, 24)[1]
    rows, outcomes = outcomes_of(rows, np.zeros((4, 24)), np.ones((4, 24)))
    (with_,), (without,) = (tables(rows, "methods", found) for found in (outcomes, None))
    sharp, joined = (next(table.entries()) for table in (with_, without))
    assert sharp.high == pytest.approx(statistics.proportion(np.zeros(96)).high, abs=1e-6)
    assert joined.high == pytest.approx(statistics.wilson(0, 24)[1] / 2, abs=1e-6)
    assert sharp.mark.says == joined.mark.says == DIFFERS and sharp.spread == 0
    (shared,) = tables(rows, "methods", outcomes.assign(cluster=outcomes["cluster"].str.split("-").str[1]))
    assert next(shared.entries()).high == pytest.approx(statistics.proportion(np.zeros(24)).high, abs=1e-6)


def test_outcomes_that_give_another_figure_are_not_used():
    rows = frame(*(record("uce", c, "target_proportion", 0.5, 0.3, 0.7) for c in "ab"))
    rows, outcomes = outcomes_of(rows, np.zeros((2, 24)), np.ones((2, 24)))
    (table,) = tables(rows, "methods", outcomes)
    assert next(table.entries()).value == 0.5


def test_method_seeds_are_averaged_and_their_spread_is_shown():
    rows = frame(
        *(
            record("uce", "church", "target_proportion", v, v - 0.1, v + 0.1, seed=s)
            for s, v in enumerate((0.2, 0.4, 0.6))
        )
    )
    (table,) = tables(rows, "methods")
    entry = next(table.entries())
    assert entry.value == pytest.approx(0.4) and entry.spread == pytest.approx(0.193, abs=0.001)
    assert entry.high - 0.4 > 4.302653 * 0.2 / np.sqrt(3) and entry.low == 0
    (two,) = tables(rows.iloc[:2], "methods")
    assert next(two.entries()).low == pytest.approx(0.2), (
        "two seeds: an interval for these, from prompts that they share"
    )
    assert "2 method seeds (0, 1): the intervals say nothing of other seeds" in render(rows.iloc[:2], "md", "methods")
    assert "Means over 3 method seeds (0, 1, 2)" in render(rows, "md", "methods") and "σ" in render(
        rows, "md", "methods"
    )


def test_an_interval_of_seeds_stays_within_the_scale():
    rows = (
        compared("uce", "church", "target_proportion", v, v - 1, 1e-6, seed=s) for s, v in enumerate((0.0, 0.5, 1.0))
    )
    rows = frame(*rows)
    (table,) = tables(rows, "methods")
    entry = next(table.entries())
    assert (entry.value, entry.low, entry.high) == (0.5, 0.0, 1.0)
    assert pooled(rows, "difference", Outcomes()).estimate[:3] == (-0.5, -1.0, pytest.approx(0.742, abs=0.01))


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("model", ["m", "m path=/x"]),
        ("concepts", ["church", "church anchor=house"]),
        ("method", ["uce", "uce lamb=0.5"]),
        ("attack", ["uda", "uda steps=500"]),
        ("protocol", ["p", "p steps=5"]),
        ("budget", ["b target_prompts=4", "b target_prompts=8"]),
        ("metrics", ["facets", "facets threshold=0.7"]),
        ("seed", [0, 1]),
        ("threshold", [0.5, 0.7]),
        ("detector", ["eye v1 aa", "eye v1 bb"]),
        ("settings", ["aaaaaaaaaaaa", "bbbbbbbbbbbb"]),
    ],
)
@pytest.mark.parametrize("form", ["terminal", "md", "latex", "csv", "json"])
def test_every_point_of_a_sweep_is_shown(axis, values, form):
    one = record("uce", "church", "target_proportion", 0.0, attack="uda")
    rows = frame(*(one | {"settings": str(v), axis: v, "value": n / 4} for n, v in enumerate(values, start=1)))
    if form == "terminal":
        console = Console(file=io.StringIO(), width=60)
        print_tables(rows, console=console)
        text = console.file.getvalue()
    else:
        text = render(rows, form)
    if form == "csv":
        assert pd.read_csv(io.StringIO(text))["value"].tolist() == [0.25, 0.5]
    elif form == "json":
        assert [row["value"] for row in json.loads(text)] == [0.25, 0.5]
    else:
        assert text.count("0.25") == 1 and text.count("0.50") == 1


def test_concepts_set_by_hand_are_not_averaged_with_others():
    one = record("uce", "church", "target_proportion", 0.2, 0.1, 0.3)
    two = one | {
        "concepts": "church anchor=tree",
        "given": json.dumps({"concepts.anchor": "tree"}),
        "settings": "b" * 12,
    }
    shown = tables(frame(one, two | {"value": 0.4}), "methods")
    assert [next(t.entries()).value for t in shown] == [0.2, 0.4] and "concepts.anchor=tree" in shown[1].title


def test_a_table_for_each_concept_set_needs_no_second_name_for_it():
    one = record("uce", "objects5", "target_proportion", 0.2, 0.1, 0.3, given=json.dumps({"concepts.merge": None}))
    two = record("uce", "objects5 merged by sum", "target_proportion", 0.4, given=json.dumps({"concepts.merge": "sum"}))
    titles = [table.title for table in tables(frame(one, two), "scaling")]
    assert titles == ["m: objects5", "m: objects5 merged by sum"]


def test_a_view_finds_an_attack_by_its_name_whatever_was_set():
    row = attacked("uce", "church", "seed_search tries=50", 0.5, 0.1, 0.4, 0.01)
    (table,) = tables(frame(row), "robustness")
    assert next(table.entries()).value == 0.5


def test_a_wide_table_is_printed_in_parts_and_no_column_is_cut():
    rows = frame(*(record(f"uce lamb={n}", "church", "target_proportion", n / 100, 0.0, 1.0) for n in range(1, 31)))
    console = Console(file=io.StringIO(), width=80)
    print_tables(rows, console=console)
    text = console.file.getvalue()
    assert all(f"{n / 100:.2f} [0.00, 1.00]" in text for n in range(1, 31)) and "columns 1 to" in text


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


def test_the_unedited_model_is_not_tested_against_itself():
    rows = frame(compared("none", "church", "target_proportion", 0.9, 0.0, 1.0, 0.001))
    assert marked(rows, view_named("facets").primary)["mark"].tolist() == [""]
    assert "=" not in piped(render(rows, "md"))[2][2]


def test_one_row_an_attack_beside_its_control():
    rows = frame(
        attacked("uce", "church", "cce", 0.9, 0.1, 0.8, 1e-5),
        attacked("uce", "car", "cce", 0.7, 0.1, 0.6, 1e-5),
        attacked("uce", "church", "uda", 0.2, 0.1, 0.1, 0.4),
        attacked("uce", "car", "uda", 0.1, 0.1, 0.0, 0.4),
        attacked("esd", "church", "cce", 0.5, 0.5, 0.0, 0.9, scope=OUTSIDE),
        attacked("esd", "church", "random_prefix", 0.5, None, -0.5, 0.01, against="original"),
        attacked("esd", "church", "uda", 0.9, 0.1, 0.8, 1e-5),
    )
    text = render(rows, "md", "redteam")
    assert "### uce on m: mean over church, car" in text and "### esd on m: church" in text
    table = piped(text)
    assert [name.split(" ↓")[0] for name in table[0][:5]] == (
        ["attack", "attacked", "control", "attacked − control", "unedited model"]
    )
    found = {(row[0], row[1].split(" σ")[0].split(" [")[0]): row[2:4] for row in table}
    assert found["cce", "0.80"] == ["0.10", "0.70 [0.63, 0.77] σ 0.13 ≠"]
    assert found["uda", "0.90"] == ["0.10", "0.80 [0.70, 0.90] ≠"]
    assert found["uda", "0.15"] == ["0.10", "0.05 [-0.02, 0.12] σ 0.05"], "neither is shown"
    assert found["cce", "0.50"][1] == "0.00 [-0.10, 0.10] †" and OUTSIDE in text
    assert found["random_prefix", "0.50"] == ["", ""], "it is a control and has none"


def test_a_mean_difference_is_told_from_none_by_its_own_interval():
    """For four concepts, no single difference is significant, but their mean is."""
    rows = [attacked("uce", concept, "cce", 0.2, 0.11, 0.09, 0.4) for concept in ("church", "car", "cat", "ship")]
    assert "0.09 [0.04, 0.14] σ 0.00 ≠" in render(frame(*rows), "md", "redteam")
    unsure = [rows[0], attacked("uce", "car", "cce", 0.02, 0.11, -0.09, 0.4)]
    assert "0.00 [-0.07, 0.07] σ" in render(frame(*unsure), "md", "redteam")
    assert "≠" not in "".join(piped(render(frame(*unsure), "md", "redteam"))[2])
    assert "0.09 [-0.01, 0.19] |" in render(frame(rows[0]), "md", "redteam")


@pytest.fixture
def three():
    """Three methods on 40 prompts: 0, 8 and 32 of them show the concept."""
    rows = frame(*(record(m, "church", "target_proportion", v) for m, v in (("uce", 0.0), ("esd", 0.2), ("mace", 0.8))))
    hits = np.array([np.zeros(40), np.arange(40) < 8, np.arange(40) < 32], float)
    return outcomes_of(rows, hits, np.ones((3, 40)))


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


def test_a_panel_of_figures_without_intervals_shows_none():
    row = attacked("uce", "church", "cce", 0.9, 0.1, 0.8, 1e-6, against="control", facet="robustness")
    rows = [row | {"low": None, "high": None}, row | {"metric": "attack_beyond_prefix"}]
    assert tables(frame(*rows), "panel")[0].rows[0].entries[0].low is None


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


@pytest.mark.parametrize("form", ["md", "latex"])
@pytest.mark.parametrize("view", ["facets", "methods"])
def test_failed_images_are_shown_beside_the_figure(form, view):
    one, other = (record("uce", c, "target_proportion", 0.25, 0.1, 0.5) for c in ("church", "car"))
    whole, holed = (render(frame(one, other | {"failed": n}), form, view) for n in (0, 3))
    assert "failed" not in whole and holed.count("(3 failed)") == 1


@pytest.mark.parametrize("form", ["terminal", "md", "latex"])
def test_an_undefined_figure_says_why(form, capsys):
    rows = frame(record("uce", "church", "fid_reference", None, why="40 images, FID needs 500", failed=24))
    if form == "terminal":
        print_tables(rows)
        text = capsys.readouterr().out
    else:
        text = render(rows, form)
    assert "(1) (24 failed)" in text and "(1) 40 images, FID needs 500" in text


def test_a_lower_bound_is_marked():
    row = record("uce", "church", "relearn_steps_to_half", 40, 20, 40, attack="relearn", unit="steps")
    free, bound = (render(frame(row | {"why": why}), "md") for why in ("", "censored: not back"))
    assert "| 40 [20, 40] |" in free and "≥" not in free
    assert "| ≥ 40 [20, 40] (1) |" in bound and "≥ a lower bound" in bound and "(1) censored: not back" in bound


def steps(value, low, high, why="", concepts="church", **rest):
    """A record of steps, and its difference to an unedited model's value of 0."""
    sides = {"difference": value, "difference_low": low, "difference_high": high, "p_value": 0.001}
    found = record("uce", concepts, "relearn_steps_to_half", value, low, high, attack="relearn", unit="steps")
    return found | {"direction": "up", "facet": "robustness", "original": 0.0, "why": why} | sides | rest


FORMS = {
    "md": "[20, ∞)",
    "latex": r"$^{\infty}_{20}$",
    "terminal": "[20, ∞)",
}


@pytest.mark.parametrize(("form", "text"), FORMS.items())
@pytest.mark.parametrize("why", ["", "lower bound: half is not reached"])
def test_an_interval_without_an_upper_limit_is_open_in_every_format(form, text, why, capsys):
    rows = frame(steps(40, 20, None, why))
    if form == "terminal":
        print_tables(rows, console=Console(width=200))
        shown = capsys.readouterr().out
    else:
        shown = render(rows, form)
    assert text in shown and "nan" not in shown
    assert (r"$\geq$ 40" if form == "latex" else "≥ 40") in shown or not why


def test_the_long_form_has_no_upper_limit_where_an_interval_is_open():
    rows = frame(steps(40, 20, None))
    (row,) = json.loads(render(rows, "json"))
    assert (row["low"], row["high"]) == (20, None)
    assert pd.read_csv(io.StringIO(render(rows, "csv")))["high"].isna().all()


def test_json_holds_every_digit():
    rows = frame(record("uce", "church", "ua", 1 / 3, 0.2, 0.5) | {"p_value": 1.25e-12})
    (row,) = json.loads(render(rows, "json"))
    assert (row["value"], row["p_value"], row["control"]) == (1 / 3, 1.25e-12, None)


def test_a_bound_of_an_older_record_has_no_upper_limit():
    """It was the last step. Other records keep theirs."""
    rows = frame(
        steps(40, 20, 40, "lower bound: half is not reached"), steps(30, 20, 40), steps(None, None, None, "none")
    )
    found = with_identity(rows)
    for name in ("high", "difference_high"):
        assert found[name].tolist() == pytest.approx([np.nan, 40, np.nan], nan_ok=True)
    assert found["low"].tolist() == pytest.approx([20, 20, np.nan], nan_ok=True)


@pytest.mark.parametrize("field", ["value", "difference"])
def test_a_mean_with_a_bound_has_no_upper_limit_and_no_test(field):
    why = "lower bound: half is not reached"
    rows = frame(steps(40, 20, None, why), steps(20, 10, 30, concepts="car"))
    found = pooled(rows, field, Outcomes())
    assert found.estimate[:3] == (30, pytest.approx(30 - np.hypot(20, 10) / 2), None)
    assert found.estimate.spread is found.p_value is found.p_equivalence is None
    alone = pooled(rows.iloc[:1], field, Outcomes())
    assert (alone.estimate.high, alone.p_value) == (None, 0.001)


def test_a_mean_of_bounds_over_a_sample_of_seeds_has_no_interval():
    """Three seeds that do not reach half have equal values, which says nothing about how much they vary."""
    why = "lower bound: half is not reached"
    rows = frame(*(steps(40, 20, None, why, seed=seed) for seed in range(3)))
    found = pooled(rows, "value", Outcomes())
    assert found.estimate[:3] == (40, None, None) and found.estimate.spread is found.p_value is None
    two = pooled(rows.iloc[:2], "value", Outcomes())
    assert two.estimate[:3] == (40, 20, None)


def test_a_difference_with_a_bound_is_marked():
    rows = frame(
        *(steps(40, 20, None, "lower bound: half is not reached", concepts=name) for name in ("car", "church"))
    )
    view = replace(
        view_named("remains"), columns={"gap": Column("relearn_steps_to_half", "relearn", field="difference")}
    )
    (table,) = averaged(rows, view, Outcomes())
    (entry,) = table.entries()
    assert entry.bound and entry.high is None and entry.mark.says == ""


def test_a_facet_that_no_track_names_is_shown():
    assert "0.25" in render(frame(record("uce", "church", "target_proportion", 0.25, facet="beauty")), "md")


def test_an_unknown_view_names_the_known(records):
    with pytest.raises(overpaint.UserError, match="did you mean 'methods'"):
        render(records, "md", "method")


def test_a_view_that_shows_nothing_says_so(records):
    with pytest.raises(overpaint.UserError, match="view redteam shows none of the"):
        render(records, "md", "redteam")
    with pytest.raises(overpaint.UserError, match="view redteam shows none"):
        render(records, "csv", "redteam")
    assert render(records, "csv").startswith("model,")


def test_a_block_a_concept_set():
    one = record("uce", "church", "target_proportion", 0.25, 0.1, 0.5)
    text = render(frame(one, one | {"concepts": "objects5 in turn", "value": 0.75}), "md", "scaling")
    titles = [line for line in text.splitlines() if line.startswith("###")]
    assert titles == ["### m: church", "### m: objects5 in turn"] and "0.25 [" in text and "0.75 [" in text


def test_csv_and_json_hold_the_tables_of_a_view(records):
    table = pd.read_csv(io.StringIO(render(records, "csv", "methods")))
    assert table[["method", "column", "value"]].to_numpy().tolist()[0] == ["uce", "target, objects", pytest.approx(0.3)]
    assert set(table["direction"]) == {"down"} and len(table) == 3
    (read,) = json.loads(render(records, "json", "methods"))
    assert read["columns"][0] == {"title": "target, objects", "direction": "down", "n": 20} | {
        "column": "target, objects"
    }
    assert read["rows"][1]["entries"][0]["why"] == "no images" and "↓ lower is better" in read["legend"]
    assert read["provenance"]["records"] == 5 and read["provenance"]["detectors"] == ["eye v1"]


def test_shares_in_per_cent():
    row = record("uce", "church", "acc_e", 0.2512, 0.1, 0.4)
    (table,) = tables(frame(row), "mace")
    entry = next(table.entries())
    assert (entry.value, entry.low, entry.unit) == (pytest.approx(25.12), pytest.approx(10), "%")
    assert "| 25.1 [10.0, 40.0] |" in render(frame(row), "md", "mace")


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


def test_ranks_are_those_on_the_images_that_every_method_has(three):
    rows, outcomes = three
    without = outcomes[~((outcomes["artefact"] == 2) & (outcomes["prompt_id"] == "church-0"))]
    ranks, _ = tables(rows, "ranks", without)
    assert {(row.entries[0].n, row.entries[0].failed) for row in ranks.rows} == {(39, 0)}


def test_settings_of_an_attack_are_columns_and_have_no_common_mean():
    labels = {"cce steps=1": 0.0, "cce steps=50": 0.5, "cce": 1.0}
    rows = frame(*(attacked("uce", "church", label, v, 0.0, v, 1e-6) for label, v in labels.items()))
    (table,) = tables(rows, "leaderboard")
    shown = {head.title: entry.value for head, entry in zip(table.columns, table.rows[0].entries, strict=True)}
    inversion = {f"concept inversion, {label}": value for label, value in labels.items()}
    assert shown == inversion | {f"its control, {label}": 0.0 for label in labels}
    (alone,) = tables(rows[rows["attack"] == "cce"], "leaderboard")
    assert [head.title for head in alone.columns] == ["concept inversion", "its control"]


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
        record(m, "church", "artefact_bytes", v, unit="bytes") for m, v in (("uce", 5.0), ("esd", 6.0), ("ca", 5.0))
    ]
    assert standing_of(frame(*rows)) == {"uce": "best", "esd": "", "ca": "best"}
    text = render(frame(*rows), "md", "methods")
    assert "| **5 B** |" in text and "| 6 B |" in text and "Bold: the best method" in text


@pytest.mark.parametrize("name", sorted(components("view")))
def test_a_view_without_records_says_which_command_makes_them(name):
    with pytest.raises(overpaint.UserError, match=f"for view {name}. To make some: overpaint run ") as refused:
        render(frame(), "md", name)
    command = str(refused.value).split("overpaint run ")[1]
    compose_cells(command.split(" "))


def test_a_partial_store_says_what_is_missing(records):
    text = render(records, "md", "methods")
    assert "To make them: overpaint run method=uce,esd concepts=church,sketch,quillan attack=none" in text
    kept = record("uce", "church", "neighbour_retention", 0.9, 0.8, 1.0, direction="up")
    text = render(pd.concat([records, frame(kept)]), "md", "methods")
    assert "Not stored for esd: ‘target, styles’, neighbours kept. To make them: overpaint run method=esd" in text


def test_the_command_sets_no_hyper_parameter_of_another_method(records):
    only = records[records["method"] == "esd"]
    command = render(only, "md", "sweep").split("To make them: overpaint run ")[1].splitlines()[0]
    assert command.startswith("method=esd concepts=")
    both = render(records, "md", "sweep").split("To make them: overpaint run ")[1].splitlines()[0]
    assert both.startswith("method=uce,esd uce.lamb=")


@pytest.mark.parametrize("name", ["ranks", "pairs", "pareto", "validity", "panel", "spread", "chance_tests"])
def test_a_view_of_erasers_is_not_filled_by_the_unedited_model(name):
    unedited = frame(record("none", "church", "ua", 0.0, 0.0, 0.1))
    with pytest.raises(overpaint.UserError, match=r"Not stored: .* To make them: overpaint run ") as refused:
        render(unedited, "md", name)
    assert "method=none " not in str(refused.value)


def test_the_command_makes_figures_of_the_same_table(records):
    """It repeats the model and the budget that all records share. What it cannot repeat is named after it."""
    smoke = render(records.assign(budget="smoke", model="sd14"), "md", "methods")
    assert "attack=none model=sd14 budget=smoke" in smoke
    by_hand = render(records.assign(budget="smoke grid=0"), "md", "methods")
    command = by_hand.split("To make them: ")[1].splitlines()[0]
    assert "budget=" not in command
    assert command.endswith("attack=none (with the values that these figures have: model m, budget smoke grid=0)")


def test_the_command_repeats_values_that_were_set_by_hand(records):
    given = {"budget.grid": 0, "model.detector": "two words"}
    by_hand = records.assign(model="sd14 detector=two words", budget="smoke grid=0", given=json.dumps(given))
    uce = by_hand["method_name"] == "uce"
    by_hand.loc[uce, ["method", "given"]] = ["uce preset=paper", json.dumps(given | {"method.preset": "paper"})]
    command = render(by_hand, "md", "methods").split("To make them: overpaint run ")[1].splitlines()[0]
    values = ["model=sd14", "budget=smoke", 'model.detector="two words"', "budget.grid=0", "uce.preset=paper"]
    assert shlex.split(command) == ["method=uce,esd", "concepts=church,sketch,quillan", "attack=none", *values]


def test_several_settings_of_a_method_are_named_after_the_command(records):
    swept = pd.concat([
        records.assign(method=f"uce lamb={lamb}", method_name="uce", given=json.dumps({"method.lamb": lamb}))
        for lamb in (0.1, 1.0)
    ])  # fmt: skip
    command = render(swept, "md", "methods").split("To make them: overpaint run ")[1].splitlines()[0]
    assert "lamb" not in command.split(" (with ")[0]
    assert command.endswith("method uce lamb=0.1, uce lamb=1.0)")


def test_the_command_names_another_protocol_than_the_models(records):
    """Figures of another protocol are in another table."""

    def command(**values):
        shown = render(records.assign(**({"model": "sd14"} | values)), "md", "methods")
        return shown.split("To make them: ")[1].splitlines()[0]

    assert "protocol" not in command(protocol="ddim50")
    assert " protocol=lms50" in command(protocol="lms50")
    assert command(protocol="ddim50 steps=4").endswith(
        "(with the values that these figures have: budget b, protocol ddim50 steps=4)"
    )
    assert "protocol p steps=4" in command(model="mine", protocol="p steps=4", given='{"protocol.steps": 4}')


@pytest.mark.parametrize(
    ("view", "said"),
    [
        ("pairs", "It needs 2 methods besides the unedited model; stored: uce. "),
        ("pareto", "It needs 2 methods besides the unedited model; stored: uce. "),
        ("ranks", "It needs 2 methods besides the unedited model; stored: uce. "),
        ("validity", "It needs 4 methods besides the unedited model; stored: uce. "),
        ("spread", "It needs two method seeds; stored: one. "),
    ],
)
def test_a_view_that_compares_says_what_there_is_too_little_of(view, said):
    rows = [record("uce", "church", m, 0.5, 0.4, 0.6) for m in ("target_proportion", "neighbour_retention")]
    with pytest.raises(overpaint.UserError, match=re.escape(said)):
        render(frame(*rows), "md", view)


def test_no_run_is_advised_for_pictures_of_other_code(records):
    given = records.assign(protocol="as given", model="pictures in x")
    given[["method", "method_name"]] = ["uce under random_prefix"] * 2
    text = render(given, "md", "methods")
    assert "To make them: overpaint score, with the pictures that they need" in text and "overpaint run" not in text
    assert "To make them: overpaint score" in render(given, "md", "facets")
    both = render(pd.concat([records, given]), "md", "methods")
    command = both.split("To make them: ")[1].splitlines()[0]
    assert command.startswith("overpaint run method=uce,esd concepts=")


def test_undefined_figures_say_why_two_methods_are_not_compared():
    none = {"why": "no near images", "direction": "up"}
    found = frame(*(record(m, "church", "neighbour_retention", None, None, None, **none) for m in ("uce", "esd")))
    assert "no near images" in render(found, "md", "pairs") and "older version" not in render(found, "md", "pairs")
    with pytest.raises(overpaint.UserError, match=r"neighbours kept \(no near images\)\. To make some"):
        kept = [record(m, "church", "target_proportion", 0.5, 0.4, 0.6) for m in ("uce", "esd")]
        render(pd.concat([found, frame(*kept)]), "md", "pareto")


def test_undefined_figures_that_are_not_named_are_counted():
    columns = {f"figure {place}": Column(f"m{place}") for place in range(8)}
    found = frame(*(record("uce", "church", f"m{place}", None, why="too few") for place in range(8)))
    said = missing.undefined(found, View("v", columns=columns))
    assert said.endswith("figure 5 (too few) and 2 more. ") and "figure 6" not in said


def test_a_panel_shows_attacks_beside_their_controls():
    def pair(method, attack, seeds, words, above):
        same = {"against": "control", "facet": "robustness"}
        return [
            attacked(method, "church", attack, 0.9, seeds, 0.9 - seeds, 1e-6, **same),
            attacked(method, "church", attack, 0.9, words, 0.9 - words, above, **same)
            | {"metric": "attack_beyond_prefix"},
        ]

    rows = [
        *pair("uce", "cce", 0.1, 0.2, 1e-6),
        *pair("uce", "uda", 0.1, 0.8, 0.7),
        *pair("esd", "cce", 0.1, 0.1, 1e-6),
    ]
    (table,) = tables(frame(*rows), "panel")
    assert [head.title for head in table.columns] == ["uce", "esd"]
    cce, uda = table.rows
    assert (cce.entries[0].beside, cce.entries[0].standing) == ((0.1, 0.2), "above all controls")
    assert uda.entries[0].standing == "above the first control" and uda.entries[1] is None
    assert "| cce | **0.90 / 0.10 / 0.20** | **0.90 / 0.10 / 0.10** |" in render(frame(*rows), "md", "panel")
    assert "| uda | *0.90 / 0.10 / 0.80* |  |" in render(frame(*rows), "md", "panel")
    undefined = {"value": None, "low": None, "high": None, "why": "more than 5 % failed"}
    rows[4:] = [row | undefined for row in rows[4:]]
    assert "| cce | **0.90 / 0.10 / 0.20** | ⊥ (1) |" in (text := render(frame(*rows), "md", "panel"))
    assert "(1) more than 5 % failed" in text


HOSTILE = [
    "[/x]",
    "[v] dog",
    "a | b",
    "*bold* _it_ `code`",
    "<script>",
    "\x1b[31mred",
    "=1+1",
    "r\u202eevil",
    "\\input{x}",
    "a\nb",
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("form", ["terminal", "md", "latex", "csv", "json"])
def test_names_are_printed_as_they_are(name, form):
    rows = frame(
        record("uce", name, "target_proportion", 0.25, 0.1, 0.5), record(name, "x", "target_proportion", None, why=name)
    )
    if form == "terminal":
        console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
        print_tables(rows, console=console)
        text = console.file.getvalue()
        assert "\x1b[31m" not in text and "\u202e" not in text
        assert name.isprintable() <= (name in text)
    else:
        text = render(rows, form)
    if form == "md":
        assert len({len(row) for row in piped(text.replace("\\|", "¦"))}) == 1 and "\x1b" not in text
    if form == "csv":
        assert pd.read_csv(io.StringIO(text))["concepts"][0] == name
    if form == "json":
        assert json.loads(text)[0]["concepts"] == name


def test_markdown_escapes_mark_up():
    assert markdown_text("*a* [b](c) <d> e|f `g` in_word _h_") == r"\*a\* \[b\](c) \<d\> e\|f \`g\` in_word \_h\_"


def test_latex_escapes_what_it_would_read_as_commands():
    assert latex_text(r"a_b {c} $d \e 50 % ≠") == r"a\_b \{c\} \$d \textbackslash{}e 50 \% $\neq$"


def test_latex_is_a_float_of_one_column(records):
    """Its structure: balanced groups and environments, and as many cells in every row as columns."""
    text = render(records, "latex", "methods")
    assert text.startswith("% These tables need \\usepackage{booktabs} and \\usepackage{graphicx}.")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 1
    assert r"\label{tab:m-mean-over-church-car-sketch-1}" in text
    assert "0.30$^{0.44}_{0.19}$" in text and text.count("{") == text.count("}")
    assert_aligned(text)


def assert_aligned(text):
    """Every row of every tabular has as many cells as the tabular has columns; at most five of them hold figures."""
    parts = re.findall(r"\\begin\{tabular\}\{(l+)(r+)\}(.+?)\\end\{tabular\}", text, re.S)
    assert parts
    for names, figures, body in parts:
        rows = [row for row in body.splitlines() if row.endswith(r"\\")]
        assert {row.count(" & ") + 1 for row in rows} == {len(names + figures)} and len(figures) <= 5


def test_a_wide_latex_table_is_split_into_parts(three):
    rows, outcomes = three
    metrics = ("target_proportion", "neighbour_retention", "ira", "cra", "in_prompt_preservation", "prompt_agreement")
    wide = pd.concat([rows.assign(metric=metric) for metric in metrics], ignore_index=True)
    text = render(wide, "latex", "methods", outcomes)
    assert text.count(r"\begin{tabular}") == 2 and text.count(r"\begin{table}") == 1
    assert r"\textbf{0.00}" in text
    assert_aligned(text)


@pytest.mark.skipif(
    not shutil.which("pdflatex"), reason="needs LaTeX with booktabs (Debian: texlive-latex-recommended)"
)
@pytest.mark.parametrize("view", ["facets", "methods", "mace", "ranks", "pairs"])
def test_latex_compiles_as_it_is_printed(three, view, tmp_path):
    """In a document of two columns, with hostile names, without an overfull line."""
    rows, outcomes = three
    names = dict(zip(rows["method"], ("none", r"\input{/x} # 50% _a^b~ 教会 Ł é", "mace σ≥−±…"), strict=True))
    rows = rows.assign(method=rows["method"].map(names), method_name=rows["method"].map(names), why="⊥ € ‘x’")
    found = [rows, rows.assign(metric="acc_e"), rows.assign(metric="celebrity_s", value=None)]
    table = render(pd.concat(found, ignore_index=True), "latex", view, outcomes)
    head = r"\documentclass[twocolumn]{article}\usepackage{booktabs}\usepackage{graphicx}\begin{document}"
    (tmp_path / "table.tex").write_text(head + table + r"\end{document}", encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "table.tex"],
        cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert r"Overfull \hbox" not in done.stdout and (tmp_path / "table.pdf").is_file()


@pytest.mark.parametrize("start", "=+-@\t\r")
def test_a_spreadsheet_runs_no_cell(start):
    rows = frame(record("uce", f"{start}cmd()", "target_proportion", 0.25, difference=-0.5))
    safe = pd.read_csv(io.StringIO(render(rows, "csv", spreadsheet=True), newline=""), dtype=str, keep_default_na=False)
    assert safe["concepts"][0].startswith("'") and safe["difference"][0] == "-0.5"
    assert "'" not in render(rows, "csv")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (-0.001, "fraction", "0.00"),
        (-0.3, "fraction", "-0.30"),
        (421e3, "bytes", "421 kB"),
        (0.00129, "seconds", "0.00129 s"),
        (26.17, "dB", "26.2 dB"),
        (2.0, "rank", "2"),
        (141.3, "", "141"),
    ],
)
def test_numbers_are_short_and_have_their_unit(value, unit, text):
    assert number(value, unit) == text


@pytest.mark.parametrize("name", sorted(components("view")))
def test_every_view_asks_for_metrics_that_exist(name):
    import yaml

    sets = (yaml.safe_load(path.read_text())["metrics"] for path in components("metrics").values())
    known = {metric for metrics in sets for metric in metrics} | {""}  # a harmonic mean of columns has none
    view = view_named(name)
    assert view.rows in ("method", "attack", "concepts") and set(view.blocks) <= set(CELL)
    assert {column.field for column in view.columns.values()} <= FIELDS.keys()
    assert {column.metric.split(".")[0] for column in view.columns.values()} <= known
    assert {column.attack for column in view.columns.values()} <= components("attack").keys()
    assert {endpoint["metric"] for endpoint in view.primary.values()} <= known


@pytest.fixture
def measured(tmp_path):
    """``measured(record, …)``: a store with one measurement per record. A record's ``key`` names its artefact."""

    def make(*rows, outcomes=None):
        store = Store(tmp_path)
        store.prepare()
        for index, row in enumerate(rows):
            with store.workspace() as folder:
                columns = [name for name in RECORD_COLUMNS if name in row]
                pd.DataFrame([row], columns=columns).to_parquet(folder / "records.parquet")
                if outcomes is not None:
                    outcomes.to_parquet(folder / "outcomes.parquet")
                store.publish("measure", row.get("key", f"{index:03}"), folder, {})
        return store

    return make


OLD = ("settings", "given", "method_name", "attack_name", "versions", "metrics", "p_equivalence")


def older(row, *more):
    return {k: v for k, v in row.items() if k not in (*OLD, *more)}


def test_the_highest_versions_are_current_whenever_they_were_measured(measured):
    one = record("uce", "church", "target_proportion", 0.2, settings="a" * 12)
    rows = [
        one | {"versions": json.dumps({"metric": metric, "statistics": s}), "value": value, "key": key}
        for key, metric, s, value in (("c", 2, 3, 0.1), ("a", 2, 4, 0.4), ("b", 1, 9, 0.3))
    ]
    store = measured(*rows)
    assert stored_records(store)["value"].tolist() == [0.4]
    everything = stored_records(store, older=True)
    assert dict(zip(everything["value"], everything["current"], strict=True)) == {0.1: False, 0.4: True, 0.3: False}


def test_versions_of_components_that_share_a_name_are_compared_with_records_that_name_one(measured):
    old, new = {"clip_b32": 1}, {"detector=clip_b32": 1, "extractor=clip_b32": 1}
    cases = {
        "old is newer": [("facets", {"clip_b32": 2}), ("facets", new)],
        "new is newer": [("facets", old), ("facets", new | {"extractor=clip_b32": 2})],
        "old is newer in another set": [("facets", {"clip_b32": 2}), ("hub", new)],
        "equal in another set": [("facets", old), ("hub", new)],
    }
    rows = [
        record("uce", "church", "target_proportion", number)
        | {"settings": name, "metrics": metrics, "versions": json.dumps(versions), "key": f"{name} {number}"}
        for name, records in cases.items()
        for number, (metrics, versions) in enumerate(records)
    ]
    found = stored_records(measured(*rows)).groupby("settings", sort=False)["value"].apply(list)
    assert found.to_dict() == dict(zip(cases, ([0], [1], [0], [0, 1]), strict=True))


def test_records_of_two_settings_detectors_or_thresholds_stay_apart(measured):
    one = record("uce", "church", "target_proportion", 0.2, settings="a" * 12)
    rows = [one, one | {"settings": "b" * 12}, one | {"threshold": 0.9}, one | {"detector": "other v1 bb"}]
    found = stored_records(measured(*rows))
    assert len(found) == 4
    text = render(found, "md")
    assert text.count("###") == 3 and "uce #aaaaaa" in text and "uce #bbbbbb" in text


def test_all_figures_of_a_cell_have_the_same_column():
    """Two cells with equal labels: one has a figure that the other lacks."""
    cells = {"a" * 12: ("ua", "ira"), "b" * 12: ("ua",)}
    rows = [record("uce", "church", m, 0.5, settings=s) for s, metrics in cells.items() for m in metrics]
    (table,) = tables(frame(*rows))
    assert [head.title for head in table.columns] == ["uce #aaaaaa", "uce #bbbbbb"]
    assert any(note.startswith("#: cells with equal labels") for note in table.notes)
    (alone,) = tables(frame(*rows[:2]))
    assert [head.title for head in alone.columns] == ["uce"] and not any("#" in note for note in alone.notes)


def test_a_figure_of_two_metric_sets_is_current_in_both_unless_one_is_older(measured):
    def of(concept, chosen, value, **versions):
        named = {"metrics": chosen, "versions": json.dumps(versions), "settings": concept}
        return record("uce", concept, "target_proportion", value) | named

    rows = [of("church", "facets", 0.4, oracle=2), of("church", "hub", 0.4, oracle=2, extract=1)]
    rows += [of("car", "facets", 0.4, oracle=3), of("car", "hub", 0.5, oracle=2, extract=1)]
    found = stored_records(measured(*rows))
    assert sorted(zip(found["concepts"], found["metrics"], strict=True)) == [
        ("car", "facets"),
        ("church", "facets"),
        ("church", "hub"),
    ]


def test_records_of_an_older_store_count_until_their_cell_is_measured_again(measured):
    old = older(record("uce", "church", "target_proportion", 0.2))
    oldest = older(record("uce", "church", "target_proportion", 0.1), "detector", "threshold", "aggregation")
    other = older(record("esd", "church", "target_proportion", 0.3), "detector", "threshold", "aggregation")
    found = stored_records(measured(oldest, old, other))
    assert sorted(found["value"]) == [0.2, 0.3] and found["settings"].str.fullmatch("[0-9a-f]{12}").all()
    assert found["settings"].nunique() == 2 and found["attack_name"].tolist() == ["none", "none"]
    assert "0.30" in render(found, "md")
    again = stored_records(measured(oldest, old, other, record("uce", "church", "target_proportion", 0.4)))
    assert sorted(again["value"]) == [0.3, 0.4]


def test_outcomes_are_read_with_their_records(measured):
    row = record("uce", "church", "target_proportion", 0.5)
    table = pd.DataFrame({"metric": row["metric"], "prompt_id": ["p", "q"], "seed": 0, "value": [0.0, 1.0]})
    store = measured(row, outcomes=table)
    found = stored_outcomes(store, stored_records(store))
    assert found["value"].to_pylist() == [0.0, 1.0] and found["artefact"].to_pylist() == ["000", "000"]


def test_a_store_without_outcomes_has_none(measured):
    store = measured(record("uce", "church", "target_proportion", 0.5))
    assert stored_outcomes(store, stored_records(store)).num_rows == 0


def test_a_view_says_which_records_it_shows():
    records = frame(
        record("uce", "church", "target_proportion", 0.2),
        record("uce", "church", "target_proportion", 0.2, attack="uda"),
        record("none", "church", "ira", 0.9),
        record("uce", "church", "asr", 0.2, attack="uda"),
    )
    assert view_named("methods").shown(records).index.tolist() == [0, 2]
    assert view_named("facets").shown(records).empty
    assert view_named("methods").shown(records[:0]).empty
