"""Which stored records are current, and which belong to one column."""

import json

import pandas as pd
import pytest
from table_records import frame, record

from overpaint.report.records import RECORD_COLUMNS, stored_outcomes, stored_records
from overpaint.report.rendering import render, tables
from overpaint.run.store import Store


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


def test_equal_records_under_two_labels_are_shown_under_both_and_those_of_two_seeds_once(measured):
    """``uce.lamb=0.5`` is the default value: the sweep's row and the plain one have the same settings."""
    one = record("uce", "church", "target_proportion", 0.2, settings="a" * 12)
    swept = one | {"method": "uce lamb=0.5", "method_name": "uce"}
    rows = [one, swept, one | {"seed": 1}, swept | {"budget": "smoke max_steps=20"}]
    found = stored_records(measured(*rows))
    assert sorted(zip(found["method"], found["budget"], strict=True)) == [
        ("uce", one["budget"]),
        ("uce lamb=0.5", one["budget"]),
        ("uce lamb=0.5", "smoke max_steps=20"),
    ]


def test_one_extractor_is_current_and_a_missing_one_is_not(measured):
    def of(extractor, value, **versions):
        told = {"extractor": extractor, "settings": "a" * 12, "versions": json.dumps({"metric": 1} | versions)}
        return record("uce", "church", "erased_clip_score", value) | told

    first, second = (of(f"clip_b32 v{v} abc", 0.5 + v / 10, **{"extractor=clip_b32": v}) for v in (1, 2))
    missing = of(None, None)
    for rows in ([first, second, missing], [missing, second, first], [second, missing, first]):
        named = [row | {"key": f"{number}"} for number, row in enumerate(rows)]
        assert stored_records(measured(*named))["value"].tolist() == [0.7]


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
