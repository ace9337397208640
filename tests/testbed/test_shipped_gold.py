"""The gold references in the repository: what their cards say, what they draw, and distances to them in a grid."""

import hashlib
import json

import pytest

import overpaint
from overpaint.cli import main
from overpaint.commands.grids import planned
from overpaint.grid.cells import cell_from
from overpaint.grid.composition import compose_cells
from overpaint.grid.shipped import shipped
from overpaint.images.planner import make_plan
from overpaint.report.records import stored_records
from overpaint.run.store import Store
from overpaint.testbed.oracle import load_oracle

FOLDER = shipped("datasets") / "testbed_gold"
CARDS = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*/card.json"))}
GOLDS = {name: card["absent"][0] for name, card in CARDS.items() if name != "base"}
PROMPTS = {
    "church": "a photo of a church",
    "car": "a photo of a car",
    "quillan": "a photo of quillan",
    "sketch": "a sketch of a tree",
}


def test_a_base_and_golds_are_there_within_their_size():
    assert "base" in CARDS and GOLDS
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) <= 40e6


@pytest.mark.parametrize("name", CARDS)
def test_its_card_says_that_it_met_its_bars(name):
    card = CARDS[name]
    assert all(card["bars"].values()) and len(card["bars"]) == 3
    for oracle in ("oracle", "second_oracle"):
        assert card["agreement"][oracle]["shown"]["mean"] >= 0.95
        assert max(card["agreement"][oracle]["absent"].values(), default=0) <= 0.02
    assert card["int8"]["shown"]["int8"]["mean"] >= card["int8"]["shown"]["fp16"]["mean"] - 0.01


@pytest.mark.parametrize("name", GOLDS)
def test_the_card_belongs_to_the_file(name):
    content = (FOLDER / name / "int8.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == CARDS[name]["files"]["int8"]["sha256"]


@pytest.fixture(scope="module")
def base():
    return overpaint.load_model("testbed_gold")


@pytest.mark.parametrize("name", GOLDS)
def test_the_base_draws_the_concept_and_its_gold_does_not(name, base):
    concept = GOLDS[name]
    oracle, prompts = load_oracle(shipped("datasets") / "testbed" / "oracle", "a"), [PROMPTS[concept]] * 8
    place = oracle.labels.index(concept)

    def rate():
        images = base.sample(prompts, seeds=list(range(8)), steps=20, guidance_scale=4.0)
        return float((oracle.predict(images)[0][:, place] > 0.5).mean())

    erasure = overpaint.erase(base, "gold", erase=[concept])
    with erasure.attached(base):
        assert rate() <= 0.125
    assert rate() >= 0.75


def test_distances_of_the_gold_itself_are_zero_and_those_of_the_base_are_not(tmp_path, monkeypatch):
    concept = next(iter(GOLDS.values()))
    grid = [
        "model=testbed_gold",
        "metrics=gold",
        "method=none,gold,uce",
        f"concepts={concept}",
        "attack=none",
        "budget=smoke",
    ]
    grid += ["budget.target_prompts=8", "budget.utility_prompts=8", f"store={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["overpaint", "run", *grid])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    records = stored_records(Store(tmp_path))
    found = records.set_index(["method_name", "metric"])["value"]
    for metric in ("gold_label_distance", "gold_label_distance_retained"):
        assert found["gold", metric] == 0
    assert found["none", "gold_label_distance"] > 0.5 > found["uce", "target_proportion"]
    assert found["gold", "gold_kernel_distance"] == 0 < found["none", "gold_kernel_distance"]


def test_a_concept_without_a_gold_is_refused_before_anything_runs():
    cells = [
        cell_from(c.config, c.explicit) for c in compose_cells(["model=testbed_gold", "method=gold", "concepts=cat"])
    ]
    with pytest.raises(overpaint.UserError, match=r"method=gold has no model for concepts=cat; allowed: .*church"):
        make_plan(cells)


def test_it_is_the_reference_of_its_own_base_only():
    with pytest.raises(overpaint.UserError, match=r"reference of model=testbed_gold, got model=testbed$"):
        planned(["model=testbed", "method=gold", "concepts=church"])
