"""Variance components of figures: known parts are found, intervals cover them, and seeds order methods or do not."""

import numpy as np
import pandas as pd
import pytest

from overpaint.report.components import PARTS, components, crossed, effective_freedom, entries_of
from overpaint.report.records import RECORD_COLUMNS
from overpaint.report.rendering import render, tables


def made(rng, sizes, deviations):
    """Outcomes (concepts, seeds, prompts) with these standard deviations of concepts, seeds, prompts and the rest."""
    concepts, seeds, prompts = sizes
    of_concepts, of_seeds, of_prompts, rest = deviations
    return (
        rng.normal(0, of_concepts, (concepts, 1, 1))
        + rng.normal(0, of_seeds, (concepts, seeds, 1))
        + rng.normal(0, of_prompts, (concepts, 1, prompts))
        + rng.normal(0, rest, sizes)
    )


def test_components_by_hand():
    """Two concepts, two seeds, two prompts: its mean squares are 18, 0.25, 0.25 and 0.25."""
    values = np.array([[[0.0, 0.0], [1.0, 0.0]], [[3.0, 3.0], [3.0, 4.0]]])
    squares = {"concepts": 18.0, "seeds": 0.25, "prompts": 0.25, "rest": 0.25}
    expected = [
        (squares["concepts"] - squares["seeds"] - squares["prompts"] + squares["rest"]) / 4,
        (squares["seeds"] - squares["rest"]) / 2,
        (squares["prompts"] - squares["rest"]) / 2,
        squares["rest"],
    ]
    np.testing.assert_allclose(components(values), expected)


@pytest.mark.parametrize("deviations", [(1.0, 0.5, 0.7, 0.4), (0.3, 0.0, 1.0, 1.0), (0.0, 1.0, 0.0, 0.5)])
def test_components_of_a_large_layout_are_those_that_made_it(deviations):
    values = made(np.random.default_rng(0), (200, 40, 40), deviations)
    np.testing.assert_allclose(np.sqrt(components(values)), deviations, atol=0.07)


def test_one_concept_has_no_variance_of_concepts():
    found = components(made(np.random.default_rng(0), (1, 5, 24), (0, 1, 1, 1)))
    assert np.isnan(found[0]) and not np.isnan(found[1:]).any()


def test_observations_that_a_seed_lacks_are_left_out():
    rows = [("church", run, f"p{p}", 10 * run + p) for run in range(3) for p in range(4) if (run, p) != (1, 2)]
    found = pd.DataFrame(rows, columns=["concepts", "run", "prompt_id", "value"]).assign(label="church", seed=0)
    values, why = crossed(found)
    assert values.tolist() == [[[10 * run + p for p in (0, 1, 3)] for run in range(3)]]
    assert why == "1 of 4 prompts"
    assert crossed(found[found["run"] == 0]) == (None, "one method seed")
    assert crossed(None) == (None, "outcomes are not stored")


def test_images_of_one_prompt_are_not_averaged():
    """Noise of single images has its own size, however many images a prompt has."""
    rng = np.random.default_rng(0)
    rows = [("church", run, f"p{p}", image, rng.normal()) for run in range(5) for p in range(40) for image in range(5)]
    found = pd.DataFrame(rows, columns=["concepts", "run", "prompt_id", "seed", "value"]).assign(label="x")
    values, why = crossed(found)
    assert values.shape == (1, 5, 200) and why == ""
    assert components(values)[3] == pytest.approx(1.0, abs=0.1)


def test_concepts_with_other_numbers_of_prompts_or_seeds():
    rows = [(c, run, f"p{p}", p) for c, n in (("church", 4), ("car", 6)) for run in range(3) for p in range(n)]
    found = pd.DataFrame(rows, columns=["concepts", "run", "prompt_id", "value"]).assign(label="x", seed=0)
    values, why = crossed(found)
    assert values.shape == (2, 3, 4) and why == "2 of 10 prompts"
    lacks = found[(found["concepts"] == "church") | (found["run"] < 2)]
    assert crossed(lacks) == (None, "different numbers of seeds: church 3, car 2")


def records(values):
    """Records and outcomes of ``method -> (concepts, seeds, prompts)``."""
    rows, parts = [], []
    for method, table in values.items():
        for concept, of_concept in zip(("church", "car", "cat", "boat"), table, strict=False):
            for seed, own in enumerate(of_concept):
                row = dict.fromkeys(RECORD_COLUMNS) | {
                    "model": "m",
                    "concepts": concept,
                    "kind": "object",
                    "seed": seed,
                }
                row |= {"method": method, "method_name": method, "attack": "none", "attack_name": "none", "n": len(own)}
                row |= {"metric": "target_proportion", "direction": "down", "value": own.mean(), "unit": "fraction"}
                row |= {"facet": "efficacy", "given": "{}", "versions": "{}", "artefact": len(rows), "why": ""}
                rows.append(row)
                names = [f"{concept}-{n}" for n in range(len(own))]
                frame = pd.DataFrame({"prompt_id": names, "seed": 0, "label": "x", "cluster": names, "stratum": ""})
                parts.append(frame.assign(value=own, other=1.0, metric="target_proportion", artefact=row["artefact"]))
    return pd.DataFrame(rows), pd.concat(parts, ignore_index=True)


def test_the_view_says_what_varies_and_whether_seeds_agree():
    rng = np.random.default_rng(0)
    steady = made(rng, (4, 5, 24), (0.3, 0.0, 0.1, 0.05))
    wild = 0.5 + made(rng, (4, 5, 24), (0.0, 0.4, 0.0, 0.05))
    rows, outcomes = records({"steady": steady, "wild": wild})
    (table,) = tables(rows, "spread", outcomes)
    assert [head.title for head in table.columns] == ["target", *(f"σ of {part}" for part in PARTS)]
    found = {row.names[0]: row.entries for row in table.rows}
    assert found["steady"][2].high < found["wild"][2].low
    assert "4×5×24" in table.notes[0] and "pairs of methods have the same strict order" in table.notes[1]
    (table,) = tables(rows[(rows["method"] == "steady") | (rows["seed"] == 0)], "spread", outcomes)
    assert [row.names[0] for row in table.rows] == ["steady"]
    assert "Not shown: wild (one method seed)." in table.notes


def test_the_order_of_far_apart_methods_is_that_of_every_seed():
    rng = np.random.default_rng(0)
    apart = {f"method{place}": place + made(rng, (2, 3, 12), (0, 0.01, 0, 0.01)) for place in range(3)}
    rows, outcomes = records(apart)
    said = render(rows, "md", "spread", outcomes)
    assert "mean Kendall's τ of 1.00 (lowest 1.00). 3 of 3 pairs" in said


def test_orders_of_few_seeds_are_not_those_of_all():
    """Both methods are equal with two of four seeds, so that one pair of seeds has a τ."""
    one, other = np.zeros((1, 4, 12)), np.zeros((1, 4, 12))
    other[:, :2, :6] = 1.0
    rows, outcomes = records({"one": one, "other": other})
    said = "mean Kendall's τ of 1.00 (lowest 1.00), in 1 of 6 pairs of seeds; in the others a seed ties all methods. 0 of 1"
    assert said in render(rows, "md", "spread", outcomes)


def test_intervals_cover_the_deviations_that_made_the_outcomes():
    rng, deviations, inside = np.random.default_rng(0), (0.2, 0.1, 0.1, 0.3), np.zeros(len(PARTS))
    for _ in range(200):
        entries = entries_of(made(rng, (4, 5, 24), deviations), "fraction")[1:]
        inside += [e.low <= truth <= e.high for e, truth in zip(entries, deviations, strict=True)]
    assert (inside >= 182).all(), inside  # 95 % of 200 are 190; below 182 is less likely than 1 % for each


def test_freedom_is_kept_for_normal_parts_and_reduced_for_rare_hits():
    rng = np.random.default_rng(0)
    normal = effective_freedom(made(rng, (8, 10, 40), (1, 1, 1, 1)))
    assert normal == pytest.approx([7, 72, 312, 2808], rel=0.35)
    rare = effective_freedom((rng.random((4, 5, 24)) < 0.03).astype(float))
    assert rare[3] < 60 < 368
    one_fails = np.zeros((4, 5, 24))
    one_fails[1, 2] = 1
    assert effective_freedom(one_fails)[1] < 4, "one of 20 seeds fails"
    assert effective_freedom(np.zeros((4, 5, 24))).tolist() == [3, 16, 92, 368]


@pytest.mark.parametrize("share", [0.03, 0.1, 0.3])
def test_the_interval_of_single_images_covers_their_deviation(share):
    """The variance of outcomes of 0 and 1 is known: share (1 − share)."""
    rng, held = np.random.default_rng(1), []
    for _ in range(40):
        values = (rng.random((4, 5, 24)) < share).astype(float)
        rest = entries_of(values, "fraction")[4]
        if rest.low is not None:
            held.append(rest.low <= np.sqrt(share * (1 - share)) <= rest.high)
    assert np.mean(held) >= 0.85


def test_few_hits_have_no_interval():
    rng = np.random.default_rng(0)
    never, often = np.zeros((4, 5, 24)), (rng.random((4, 5, 24)) < 0.5).astype(float)
    rows, outcomes = records({"never": never, "often": often})
    (table,) = tables(rows, "spread", outcomes)
    found = {row.names[0]: row.entries[4] for row in table.rows}
    assert (found["never"].value, found["never"].low, found["never"].high) == (0, None, None)
    assert found["often"].low < 0.5 < found["often"].high
    assert "No intervals: hits or misses on fewer than 10 prompts (never)." in table.notes
