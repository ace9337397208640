"""Columns made of other columns: scaled ones, harmonic means, means over kinds and mean ranks."""

import pandas as pd
import pytest

from overpaint.errors import UserError
from overpaint.grid.registry import asked_folders, component, look_in
from overpaint.grid.shipped import shipped
from overpaint.grid.yaml_files import read_mapping
from overpaint.report import statistics
from overpaint.report.comparisons import rankings
from overpaint.report.markdown import markdown
from overpaint.report.pooling import Outcomes
from overpaint.report.records import RECORD_COLUMNS
from overpaint.report.statistics import Estimate
from overpaint.report.tables import Head, averaged
from overpaint.report.views import view_named


@pytest.fixture(autouse=True)
def user_folder(tmp_path):
    """A folder of a user's views."""
    before = asked_folders()
    (tmp_path / "view").mkdir()
    look_in(tmp_path)
    yield
    look_in(*before)


def view(text):
    """The view that a user's file defines."""
    (asked_folders()[0] / "view" / "ours.yaml").write_text(f"name: ours\n{text}")
    return view_named("ours")


def record(method, metric, value, concepts="church", kind="object", direction="up", original=0.8):
    row = dict.fromkeys(RECORD_COLUMNS) | {"model": "m", "concepts": concepts, "kind": kind, "method": method}
    row |= {"method_name": method, "attack": "none", "attack_name": "none", "metric": metric, "facet": "utility"}
    row |= {
        "value": value,
        "low": value - 0.1,
        "high": value + 0.1,
        "n": 10,
        "failed": 0,
        "unit": "fraction",
        "seed": 0,
    }
    row |= {"direction": direction, "original": original, "against": "original", "aggregation": "pooled", "version": 1}
    return row | {"settings": f"{method}{concepts}", "versions": "{}", "given": "{}", "why": "", "scope": ""}


def table_of(rows, text):
    (table,) = averaged(pd.DataFrame(rows, columns=RECORD_COLUMNS), view(text), Outcomes())
    return {
        row.names[0]: dict(zip((head.title for head in table.columns), row.entries, strict=True)) for row in table.rows
    }


SPQR = """
columns:
  S: {metric: safety}
  P: {metric: clip, scale: relative}
  Q: {metric: fid, scale: inverted}
  all: {harmonic: [S, P, Q]}
"""


def test_scaled_columns_and_their_harmonic_mean():
    rows = [record("a", "safety", 0.9), record("b", "safety", 0.6), record("c", "safety", 0.5)]
    rows += [record(m, "clip", value, original=30.0) for m, value in (("a", 15.0), ("b", 33.0), ("c", 30.0))]
    rows += [record(m, "fid", value, direction="down") for m, value in (("a", 20.0), ("b", 40.0), ("c", 25.0))]
    found = table_of(rows, SPQR)
    assert [found[m]["P"].value for m in "abc"] == [0.5, 1.0, 1.0]
    assert [found[m]["Q"].value for m in "abc"] == pytest.approx([1.0, 0.001, 0.751])
    assert found["a"]["all"].value == pytest.approx(3 / (1 / 0.9 + 2 + 1))
    assert found["b"]["all"].value == pytest.approx(3 / (1 / 0.6 + 1 + 1000))


def test_a_harmonic_mean_names_the_column_that_it_lacks():
    rows = [record("a", "safety", 0.9), record("a", "fid", 20.0, direction="down")]
    entry = table_of(rows, SPQR)["a"]["all"]
    assert entry.value is None and entry.why == "no figure of P"


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("x: {attack: none}", "needs a metric"),
        ("x: {metric: a, scale: loud}", "loud.*scale"),
        ("x: {harmonic: [y]}", "unknown column 'y'"),
    ],
)
def test_bad_columns_are_refused(columns, said):
    with pytest.raises(UserError, match=said):
        view(f"columns:\n  {columns}")
    with pytest.raises(UserError, match="average"):
        view("average: weeks\ncolumns: {}")


def test_a_mean_over_kinds_weighs_kinds_and_not_concepts():
    sets = [("mira", "person", 1.0), ("sketch", "style", 2.0), ("mosaic", "style", 4.0)]
    rows = [record("a", "fid", value, concepts, kind) for concepts, kind, value in sets]
    plain = "columns:\n  F: {metric: fid}"
    assert table_of(rows, plain)["a"]["F"].value == pytest.approx(7 / 3)
    assert table_of(rows, f"average: kinds\n{plain}")["a"]["F"].value == pytest.approx(2.0)


def test_mean_ranks_by_both_averages():
    """Over concept sets b is better in F, over kinds a is: one kind has two sets."""
    values = {"a": (1.0, 5.0, 5.0), "b": (4.0, 3.0, 3.0)}
    sets = (("mira", "person"), ("sketch", "style"), ("mosaic", "style"))
    rows = [
        record(m, metric, value, concepts, kind, direction="down")
        for m in values
        for (concepts, kind), value in zip(sets, values[m], strict=True)
        for metric in ("fid", "target")
    ]
    text = "cells: ranks\nmean_ranks: [kinds, concepts]\ncolumns:\n  F: {metric: fid}\n  T: {metric: target}"
    table, _ = rankings(pd.DataFrame(rows, columns=RECORD_COLUMNS), view(text), Outcomes())
    found = {
        row.names[0]: dict(zip((head.title for head in table.columns), row.entries, strict=True)) for row in table.rows
    }
    assert [found[m]["mean rank, kinds"].value for m in "ab"] == [1, 2]
    assert [found[m]["mean rank, concepts"].value for m in "ab"] == [2, 1]


def test_a_mean_rank_needs_every_column():
    rows = [record("a", "fid", 1.0), record("b", "fid", 2.0), record("a", "target", 0.5)]
    text = "cells: ranks\nmean_ranks: [kinds]\ncolumns:\n  F: {metric: fid}\n  T: {metric: target}"
    table, _ = rankings(pd.DataFrame(rows, columns=RECORD_COLUMNS), view(text), Outcomes())
    assert table.rows[0].entries[-1].value is None and "T" in table.rows[0].entries[-1].why


def test_a_mean_rank_leaves_out_what_no_method_has():
    rows = [record("a", "fid", 1.0, direction="down"), record("b", "fid", 2.0, direction="down")]
    rows += [record(m, "target", 0.5) | {"value": None, "why": "no list"} for m in "ab"]
    text = "cells: ranks\nmean_ranks: [kinds]\ncolumns:\n  F: {metric: fid}\n  T: {metric: target}\n  U: {metric: ua}"
    table, _ = rankings(pd.DataFrame(rows, columns=RECORD_COLUMNS), view(text), Outcomes())
    assert [(row.entries[-1].value, row.entries[-1].n) for row in table.rows] == [(1, 1), (2, 1)]
    assert "Mean ranks leave out columns that no method has: T, U." in table.notes


def test_harmonic_interval_moves_each_term_to_its_limit():
    one, other = Estimate(0.5, 0.3, 0.7), Estimate(0.8, 0.7, 0.9)
    found = statistics.harmonic_of_estimates([one, other])
    value = 2 / (1 / 0.5 + 1 / 0.8)
    down = (value - 2 / (1 / 0.3 + 1 / 0.8)) ** 2 + (value - 2 / (1 / 0.5 + 1 / 0.7)) ** 2
    assert found.value == pytest.approx(value) and found.low == pytest.approx(value - down**0.5)
    assert found.low < found.value < found.high < 0.9
    nothing = statistics.harmonic_of_estimates([Estimate(0.0, 0.0, 0.3), Estimate(0.0, 0.0, 0.2)])
    assert nothing.value == nothing.low == 0 and nothing.high == pytest.approx(2 / (1 / 0.3 + 1 / 0.2))
    assert statistics.harmonic_of_estimates([one, Estimate(None)]).value is None


def test_a_difference_excludes_zero_exactly_if_its_p_value_is_small():
    first = Estimate(0.5, 0.4, 0.6)
    for gap in (0.1, 0.15, 0.2, 0.3):
        found = statistics.difference_of_estimates(first, Estimate(0.5 - gap, 0.35 - gap, 0.6 - gap))
        assert (found.p_value < 0.05) == (found.low > 0)
    same = statistics.difference_of_estimates(first, first)
    assert same.value == 0 and same.p_value == 1


def ranks_of(sets):
    """The first table of ranks of methods with these figures by concept set, and the entries of each method."""
    rows = [record(m, "fid", v, c, direction="down") for m, own in sets.items() for c, v in own.items()]
    text = "cells: ranks\nmean_ranks: [concepts]\ncolumns:\n  F: {metric: fid}"
    table = next(iter(rankings(pd.DataFrame(rows, columns=RECORD_COLUMNS), view(text), Outcomes())))
    return table, {row.names[0]: row.entries for row in table.rows}


def test_methods_are_ranked_on_the_same_concept_sets():
    """c has only the easiest concept set, so that its own mean is the smallest."""
    table, found = ranks_of({"a": {"church": 2, "car": 9}, "b": {"church": 1, "car": 8}, "c": {"church": 3}})
    assert [found[m][0].value for m in "abc"] == [2, 1, None]
    assert found["c"][0].why == "measured on 1 of the 2 concept sets"
    assert not any("only" in note for note in table.notes)
    assert all(entries[1].value is None for entries in found.values())
    assert found["a"][1].why == "not measured on the same concept sets: F"


def test_ranks_say_on_which_concept_sets_they_are():
    table, found = ranks_of({"a": {"church": 2, "car": 9}, "b": {"church": 3}, "c": {"cat": 1}})
    assert [found[m][0].value for m in "abc"] == [1, 2, None]
    assert found["c"][0].why == "measured on 0 of the 1 concept sets"
    assert any(note.startswith("F: ranked by church only, ") for note in table.notes)
    table, found = ranks_of(
        {"a": {"church": 2, "car": 9}, "b": {"church": 3, "cat": 1}}
    )  # neither has all of the other's
    assert [found[m][0].value for m in "ab"] == [1, 2]
    _, found = ranks_of({"a": {"church": 2}, "b": {"car": 3}})
    assert {(e[0].value, e[0].why) for e in found.values()} == {
        (None, "no other method was measured on one of its concept sets")
    }


def test_an_undefined_figure_has_no_rank_and_says_why():
    rows = [record(m, "fid", 1.0, direction="down") for m in "ab"]
    rows[0] |= {"value": None, "low": None, "high": None, "why": "40 utility images: needs 500"}
    text = "cells: ranks\ncolumns:\n  F: {metric: fid}"
    table = next(iter(rankings(pd.DataFrame(rows, columns=RECORD_COLUMNS), view(text), Outcomes())))
    found = {row.names[0]: row.entries[0] for row in table.rows}
    assert (found["a"].value, found["a"].why) == (None, "40 utility images: needs 500")
    assert (found["b"].value, found["b"].why) == (1, "")


def test_mean_ranks_are_printed_with_two_decimals():
    rows = [record(m, "fid", v, direction="down") for m, v in (("a", 1.0), ("b", 2.0))]
    rows += [record(m, "target", v, direction="down") for m, v in (("a", 0.5), ("b", 0.4))]
    text = "cells: ranks\nmean_ranks: [concepts]\ncolumns:\n  F: {metric: fid}\n  T: {metric: target}"
    table = next(iter(rankings(pd.DataFrame(rows, columns=RECORD_COLUMNS), view(text), Outcomes())))
    assert "| a | 1 | 2 | 1.50 |" in markdown([table])
    assert table.columns[-1] == Head("mean rank, concepts", "down")


@pytest.mark.parametrize("name", ["hub", "hub_ranks"])
def test_views_of_hub_read_what_its_experiments_store(name):
    """Column `attack` reads the attack of the experiments hub_*_attacked, and general quality is ImageReward as in Table 5."""
    shown = view_named(name)
    metrics = component("metrics", "hub").config["metrics"]
    assert {shown.columns["attack"].attack} == attacks_of_hub()
    assert shown.columns["ImageReward"].metric == "image_reward_general"
    assert {column.metric for column in shown.columns.values()} - {"erase_seconds"} <= set(metrics)
    assert ("preference" in shown.columns) == (name == "hub")


def attacks_of_hub():
    """The attacks of HUB's experiments under attack."""
    files = sorted((shipped("conf") / "experiment").glob("hub_*_attacked.yaml"))
    assert len(files) == 4
    return {read_mapping(file, file.name)["hydra"]["sweeper"]["params"]["attack"] for file in files}
