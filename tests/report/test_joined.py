"""Settings that may differ within a table, on the cells of HUB's experiments, whose figures are made up."""

import random
from functools import cache

import pandas as pd
import pytest

from overpaint.errors import UserError
from overpaint.grid.cells import cell_from, merged
from overpaint.grid.composition import compose_cells
from overpaint.images.measurements import described
from overpaint.report.joined import joined
from overpaint.report.records import RECORD_COLUMNS
from overpaint.report.rendering import tables
from overpaint.report.views import view_named

#: Two concepts of each kind.
CONCEPTS = {
    "styles": "[Andy Warhol],[Picasso]",
    "celebrities": "[Brad Pitt],[Elon Musk]",
    "characters": "[Luigi],[Mario]",
    "unsafe": "[Nudity],[Disturbing]",
}
#: Figures of cells without an attack, of translated prompts, and of attacked ones, with their directions.
FIGURES = {
    "none": {
        "target_proportion": "down",
        "fid": "down",
        "aesthetic_target": "up",
        "image_reward_general": "up",
        "preference_general": "up",
        "selective_alignment": "up",
        "pinpointness": "up",
        "erase_seconds": "down",
    },
    "multilingual": {"multilingual_proportion": "down"},
    "replay": {"attack_proportion": "down"},
}
METHODS = ["ca", "uce", "mace"]


@cache
def cells_of(experiment, model, *overrides):
    given = [f"experiment={experiment}", "model=local", f"model.path={model}", *overrides]
    return merged(cell_from(c.config, c.explicit) for c in compose_cells(given))[0]


@pytest.fixture
def records_of(goldens, monkeypatch, tmp_path):
    """``records_of("hub_styles", …)``: records with made-up figures for each cell of these experiments."""
    monkeypatch.setenv("OVERPAINT_ASSETS", str(tmp_path / "no assets"))

    def records(*experiments, overrides=()):
        draw, rows = random.Random(0), []
        for experiment in experiments:
            few = {"method": ",".join(["none", *METHODS]), "concepts.erase": CONCEPTS[experiment.split("_")[1]]}
            few |= dict(override.split("=", 1) for override in overrides)
            for cell in cells_of(experiment, goldens / "tiny_sd", *(f"{key}={value}" for key, value in few.items())):
                for metric, direction in FIGURES[cell.attack.name].items():
                    value = draw.random()
                    found = {"metric": metric, "direction": direction, "value": value, "low": value - 0.1}
                    found |= {"high": value + 0.1, "n": 10, "failed": 0, "unit": "fraction", "facet": "efficacy"}
                    found |= {"detector": f"{cell.model.detector} 1", "threshold": 0.5, "versions": "{}", "why": ""}
                    rows.append(dict.fromkeys(RECORD_COLUMNS) | described(cell, "weights") | found | {"scope": ""})
        return pd.DataFrame(rows, columns=RECORD_COLUMNS)

    return records


@pytest.fixture
def hub(records_of):
    """Records of HUB's eight experiments."""
    return records_of(*(f"hub_{kind}{attacked}" for kind in CONCEPTS for attacked in ("", "_attacked")))


def by_row(table):
    return {row.names[0]: dict(zip([h.title for h in table.columns], row.entries, strict=True)) for row in table.rows}


def mean(values):
    return sum(values) / len(values)


def test_hubs_experiments_fill_one_table(hub):
    """Kinds differ in detectors, in settings of methods and in budgets under attack; concepts differ in attack prompts."""
    (table,) = tables(hub, "hub")
    rows = by_row(table)
    assert list(rows) == ["none", *METHODS]
    assert [head.title for head in table.columns] == list(view_named("hub").columns)
    assert all(entry.value is not None for of in rows.values() for entry in of.values())
    for title, metric in (("attack", "attack_proportion"), ("target", "target_proportion")):
        own = hub[(hub["method_name"] == "uce") & (hub["metric"] == metric)]
        assert rows["uce"][title].value == pytest.approx(
            mean([part.mean() for _, part in own.groupby("kind")["value"]])
        )
    (said,) = (note for note in table.notes if note.startswith("Settings differ"))
    assert "3 detectors (vlm 1; celebrity 1; q16 1)" in said and "2 settings of uce (uce default_anchor=; uce)" in said
    assert "2 budgets (" in said and " settings of replay (" in said
    assert table.provenance.detectors == ("celebrity 1", "q16 1", "vlm 1")


def test_hubs_mean_ranks_are_defined(hub):
    ranks, *_ = tables(hub, "hub_ranks")
    for of in by_row(ranks).values():
        assert of["mean rank, kinds"].n == len(view_named("hub_ranks").columns)
        assert 1 <= of["mean rank, kinds"].value <= len(METHODS) and of["mean rank, concepts"].value is not None


def test_two_settings_of_a_method_on_one_concept_stay_apart(records_of):
    swept = records_of("hub_styles", overrides=("uce.default_anchor=art", "method=uce"))
    found = pd.concat([records_of("hub_styles"), records_of("hub_celebrities"), swept], ignore_index=True)
    (table,) = tables(found, "hub")
    rows = by_row(table)
    assert set(rows) == {"none", "uce default_anchor=", "uce default_anchor=art", "uce", "ca", "mace"}


def test_settings_that_no_label_shows_keep_their_hash(records_of):
    found = pd.concat([records_of("hub_styles"), records_of("hub_celebrities")], ignore_index=True)
    edited = found[found["method_name"] == "mace"].assign(settings=lambda own: "edited" + own["settings"].astype(str))
    (table,) = tables(pd.concat([found, edited], ignore_index=True), "hub")
    rows = by_row(table)
    assert {"none", "uce", "ca"} < set(rows) and not rows.keys() & {"mace"}
    assert all(" #" in name for name in rows if name.startswith("mace"))
    assert any(note.startswith("#: cells with equal labels") for note in table.notes)


def test_two_budgets_of_one_cell_stay_apart(records_of):
    again = records_of("hub_unsafe", overrides=("budget.utility_prompts=10",))
    found = pd.concat([records_of("hub_styles"), records_of("hub_unsafe"), again], ignore_index=True)
    shown = tables(found, "hub")
    assert len(shown) == 2
    assert all("budget paper" in table.title and "detector" not in table.title for table in shown)


def test_models_are_never_joined(records_of):
    found = records_of("hub_styles")
    others = found.assign(model=found["model"].str.replace("local", "sd14"))
    both = pd.concat([found, others], ignore_index=True)
    assert [part["model"].unique().tolist() for part, *_ in joined(both, view_named("hub"))] == [
        [model] for model in both["model"].str.replace(" detector=vlm", "").unique()
    ]


def test_a_concept_set_with_other_prompts_joins_its_kind(records_of):
    """HUB has no pinpoint prompts of violence, so that this concept has a value of its own."""
    violent = ("concepts.erase=[Violent]", "concepts.prompts.near=null")
    found = pd.concat([records_of("hub_unsafe"), records_of("hub_unsafe", overrides=violent)], ignore_index=True)
    (table,) = tables(found, "hub")
    assert "Violent" in table.title
    twice = records_of("hub_unsafe", overrides=("concepts.prompts.near=null",))
    assert len(tables(pd.concat([found, twice], ignore_index=True), "hub")) == 2, (
        "one concept with two lists of prompts"
    )


def test_no_settings_are_joined_unless_a_view_says_so(hub):
    view = view_named("hub")
    assert [(found is hub, own, notes) for found, own, notes in joined(hub, view.__class__("plain"))] == [
        (True, view.__class__("plain"), [])
    ]


def test_a_view_whose_tables_have_one_concept_set_joins_nothing(tmp_path):
    from overpaint.grid.registry import asked_folders, look_in

    before = asked_folders()
    (tmp_path / "view").mkdir()
    (tmp_path / "view" / "ours.yaml").write_text("name: ours\ncells: panel\ntogether: [budget]\n")
    look_in(tmp_path)
    try:
        with pytest.raises(UserError, match="view ours: together has no effect on cells: panel"):
            view_named("ours")
    finally:
        look_in(*before)


def test_the_command_for_missing_columns_names_no_concepts_of_another_model(records_of):
    (table,) = tables(records_of("hub_styles", "hub_unsafe"), "hub")
    (said,) = (note for note in table.notes if note.startswith("Not stored"))
    assert said.startswith("Not stored: attack. ") and "church" not in said
    assert "concepts hub33 erase=[Andy Warhol], hub33 erase=[Picasso], hub33 erase=[Nudity] and 1 more" in said
    assert "model local detector=vlm path=tiny_sd" in said and "method uce default_anchor=, uce" in said
