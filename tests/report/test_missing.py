"""What a table says of figures that are not stored, and the command that makes them."""

import json
import re
import shlex

import pandas as pd
import pytest
from table_records import frame, record

import overpaint
from overpaint.grid.composition import compose_cells
from overpaint.grid.registry import components
from overpaint.report import missing
from overpaint.report.rendering import render
from overpaint.report.views import Column, View


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


def test_the_command_of_missing_facets_names_the_methods_and_the_threshold(records):
    given = records.assign(given=json.dumps({"metrics.threshold": 0.9}), threshold=0.9)
    command = render(given, "md", "facets").split("To make them: overpaint run ")[1].splitlines()[0]
    assert "method=uce,esd" in command and "metrics.threshold=0.9" in command


def test_a_note_names_settings_that_no_title_shows(records):
    given = json.dumps({"metrics.threshold": 0.9})
    small = render(records.assign(budget="smoke", seed=1, given=given), "md", "methods")
    assert "Other settings than the defaults: budget smoke, seed 1, metrics.threshold=0.9." in small
    assert "Other settings" not in render(records.assign(budget="lite", seed=0), "md", "methods")
    several = pd.concat([records.assign(budget="smoke"), records.assign(budget="lite")])
    assert "Other settings" not in render(several, "md", "methods")


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
    ("column", "said"),
    [
        (Column("ira2"), "the metric 'ira2', which is unknown; did you mean 'ira'?"),
        (Column("ira", kind="objct"), "the kind 'objct', which is unknown; did you mean 'object'?"),
        (Column("ira", attack="ccee"), "the attack 'ccee', which is unknown; did you mean 'cce'?"),
    ],
)
def test_no_run_is_advised_for_a_misspelt_column(records, column, said):
    assert missing.gaps(records, View("mine", columns={"a": column})) == [f"Column a of view mine shows {said}"]


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


def test_undefined_figures_that_are_not_named_are_counted():
    columns = {f"figure {place}": Column(f"m{place}") for place in range(8)}
    found = frame(*(record("uce", "church", f"m{place}", None, why="too few") for place in range(8)))
    said = missing.undefined(found, View("v", columns=columns))
    assert said.endswith("figure 5 (too few) and 2 more. ") and "figure 6" not in said
