"""Verdicts on attacks over all erasers: more than the control, as much, or undecided, with the power of each."""

import numpy as np
import pandas as pd
import pytest

from overpaint.report.pooling import Outcomes
from overpaint.report.records import RECORD_COLUMNS
from overpaint.report.rendering import render, tables
from overpaint.report.verdicts import against, by_images


def records(pairs):
    """Records and outcomes of ``attack -> (attacked, control)``, each ``(erasers, prompts)``, on one concept."""
    rows, parts = [], []
    for attack, (attacked, control) in pairs.items():
        for number, (first, second) in enumerate(zip(attacked, control, strict=True)):
            row = dict.fromkeys(RECORD_COLUMNS) | {"model": "m", "concepts": "church", "kind": "object", "seed": 0}
            row |= {
                "method": f"eraser{number}",
                "method_name": f"eraser{number}",
                "attack": attack,
                "attack_name": attack,
            }
            row |= {"metric": "attack_beyond_chance", "direction": "down", "unit": "fraction", "facet": "robustness"}
            row |= {"value": first.mean(), "control": second.mean(), "difference": first.mean() - second.mean()}
            row |= {
                "against": "control",
                "n": len(first),
                "given": "{}",
                "versions": "{}",
                "artefact": len(rows),
                "why": "",
            }
            rows.append(row)
            names = [f"p{n}" for n in range(len(first))]
            frame = pd.DataFrame({"prompt_id": names, "seed": 0, "label": "church", "cluster": names, "stratum": ""})
            own = {"value": first, "other": second, "metric": "attack_beyond_chance", "artefact": row["artefact"]}
            parts.append(frame.assign(**own))
    return pd.DataFrame(rows), pd.concat(parts, ignore_index=True)


def shares(value, control, size=(4, 120), seed=0):
    rng = np.random.default_rng(seed)
    return tuple((rng.random(size) < share).astype(float) for share in (value, control))


def test_attacks_find_more_or_as_much_or_neither_is_shown():
    few = tuple(part[:, :8] for part in shares(0.4, 0.35))
    rows, outcomes = records(
        {"strong": shares(0.5, 0.2), "chance": shares(0.05, 0.05), "short": few, "weak": shares(0.1, 0.4)}
    )
    (table,) = tables(rows, "chance_tests", outcomes)
    found = {row.names[0]: row.entries for row in table.rows}
    assert [found[name][2].mark.says for name in ("strong", "chance", "short", "weak")] == [
        "differs",
        "equal",
        "",
        "differs",
    ]
    for sentence in (
        "Shown to find more than the control: strong.",
        "Shown to find less than the control: weak.",
        "Shown to find as much as the control (within ±0.10): chance.",
        "Undecided: short.",
    ):
        assert sentence in table.notes
    first, control, gap = found["strong"][:3]
    assert gap.value == pytest.approx(first.value - control.value) and gap.low < gap.value < gap.high and gap.n == 480


def test_a_table_says_on_which_erasers_each_attack_was_run():
    rows, outcomes = records({"everywhere": shares(0.5, 0.2, (3, 30)), "on two": shares(0.5, 0.2, (2, 30))})
    (table,) = tables(rows, "chance_tests", outcomes)
    (said,) = (note for note in table.notes if note.startswith("Pairs over"))
    assert said.startswith("Pairs over eraser0, eraser1, eraser2 (everywhere); eraser0, eraser1 (on two); a prompt is")
    (table,) = tables(rows[rows["method"] != "eraser2"], "chance_tests", outcomes)
    assert any(note.startswith("Pairs over eraser0, eraser1; a prompt is") for note in table.notes)


def test_a_prompt_on_several_erasers_is_one_cluster():
    """Outcomes that all erasers share say no more than those of one; independent ones count in full."""
    attacked, control = shares(0.5, 0.3, (1, 120))
    same = records({"a": (np.repeat(attacked, 4, axis=0), np.repeat(control, 4, axis=0))})
    apart = records({"a": shares(0.5, 0.3)})
    effective = []
    for rows, outcomes in (same, apart):
        table = outcomes.assign(method=[rows["method"][place] for place in outcomes["artefact"]], concepts="church")
        effective.append(against(table).pairs)
    assert effective[0] == pytest.approx(120, rel=0.02) and effective[1] > 400


def test_power_is_the_share_of_simulated_experiments_with_the_verdict():
    equal, more = [], []
    for seed in range(150):
        rows, outcomes = records({"same": shares(0.25, 0.25, seed=seed), "more": shares(0.35, 0.25, seed=1000 + seed)})
        (table,) = tables(rows, "chance_tests", outcomes)
        same, stronger = (row.entries for row in table.rows)
        equal.append((same[2].mark.says == "equal", same[-2].value))
        more.append((stronger[2].mark.says == "differs", stronger[-1].value))
    for found in (equal, more):
        happened, expected = np.mean(found, axis=0)
        assert happened == pytest.approx(expected, abs=0.1), (happened, expected)


def test_the_view_renders_in_every_format_and_says_what_is_missing():
    rows, outcomes = records({"a": shares(0.5, 0.3)})
    for form in ("md", "csv", "json", "latex"):
        assert "a" in render(rows, form, "chance_tests", outcomes)
    assert "Not stored: first 2, first 5, first 20" in render(rows, "md", "chance_tests", outcomes)


def test_an_attack_without_outcomes_is_named():
    rows, outcomes = records({"a": shares(0.5, 0.3), "b": shares(0.5, 0.3)})
    lost = rows["artefact"][rows["attack"] == "b"].iloc[0]
    (table,) = tables(rows, "chance_tests", outcomes[outcomes["artefact"] != lost])
    assert [row.names for row in table.rows] == [("a",)]
    assert "Not shown: b (outcomes are not stored)." in table.notes


def test_shares_by_number_of_images_are_those_of_attacks_with_several():
    rows, outcomes = records({"uda steps=1": shares(0.5, 0.3), "pez": shares(0.1, 0.1)})
    rows["attack_name"] = rows["attack"].str.split().str[0]
    uda = rows[rows["attack"] == "uda steps=1"]
    early = uda.assign(metric="attack_beyond_chance.first_1", artefact=uda["artefact"] + 100)
    fewer = outcomes[outcomes["artefact"].isin(uda["artefact"])]
    fewer = fewer.assign(artefact=fewer["artefact"] + 100, metric="attack_beyond_chance.first_1", value=0.0)
    found = by_images(pd.concat([rows, early]), Outcomes(pd.concat([outcomes, fewer])))
    assert list(found) == ["uda"] and [label for label, _ in found["uda"]] == ["1", "all"]
    assert found["uda"][0][1].attacked.value == 0.0 < found["uda"][1][1].attacked.value
