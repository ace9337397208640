"""Views: which records they show, in which rows, columns and blocks."""

import io
import json

import pandas as pd
import pytest
from rich.console import Console
from table_records import attacked, frame, piped, record

import overpaint
from overpaint.grid.registry import components
from overpaint.grid.scope import OUTSIDE
from overpaint.report.pooling import FIELDS
from overpaint.report.records import CELL
from overpaint.report.rendering import render, tables
from overpaint.report.terminal import print_tables
from overpaint.report.views import view_named


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


def test_a_table_for_each_concept_set_needs_no_second_name_for_it():
    one = record("uce", "objects5", "target_proportion", 0.2, 0.1, 0.3, given=json.dumps({"concepts.merge": None}))
    two = record("uce", "objects5 merged by sum", "target_proportion", 0.4, given=json.dumps({"concepts.merge": "sum"}))
    titles = [table.title for table in tables(frame(one, two), "scaling")]
    assert titles == ["m: objects5", "m: objects5 merged by sum"]


def test_a_view_finds_an_attack_by_its_name_whatever_was_set():
    row = attacked("uce", "church", "seed_search tries=50", 0.5, 0.1, 0.4, 0.01)
    (table,) = tables(frame(row), "robustness")
    assert next(table.entries()).value == 0.5


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


def test_a_panel_of_figures_without_intervals_shows_none():
    row = attacked("uce", "church", "cce", 0.9, 0.1, 0.8, 1e-6, against="control", facet="robustness")
    rows = [row | {"low": None, "high": None}, row | {"metric": "attack_beyond_prefix"}]
    assert tables(frame(*rows), "panel")[0].rows[0].entries[0].low is None


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


def test_shares_in_per_cent():
    row = record("uce", "church", "acc_e", 0.2512, 0.1, 0.4)
    (table,) = tables(frame(row), "mace")
    entry = next(table.entries())
    assert (entry.value, entry.low, entry.unit) == (pytest.approx(25.12), pytest.approx(10), "%")
    assert "| 25.1 [10.0, 40.0] |" in render(frame(row), "md", "mace")


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


def test_a_view_extends_another():
    hub, ranks = view_named("hub"), view_named("hub_ranks")
    assert ranks.name == "hub_ranks" and (hub.cells, ranks.cells) == ("means", "ranks")
    assert ranks.together == hub.together and ranks.run == hub.run
    assert ranks.columns == {title: column for title, column in hub.columns.items() if title != "preference"}
    kernel = view_named("validity_kernel")
    assert list(kernel.truth) == ["kernel distance to gold"] and "to gold (the rest)" not in kernel.columns


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
