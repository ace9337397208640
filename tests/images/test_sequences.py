"""Two concepts in one request and in sequence, from the command line to the table; prompts of sets of several concepts."""

import pytest

import overpaint
from command_line import called
from overpaint.grid.cells import cell_from
from overpaint.grid.composition import compose_cells
from overpaint.grid.roles import role, role_shots
from overpaint.images.planner import make_plan
from overpaint.report.records import stored_records
from overpaint.run.store import Store

GRID = ["concepts.erase=[church,car]", "concepts.sequential=false,true", "method=uce", "budget=smoke"]


def cells(*overrides):
    return [cell_from(c.config, c.explicit) for c in compose_cells(list(overrides))]


def stage(plan, name):
    return [task for task in plan.tasks.values() if task.stage == name]


def test_a_grid_of_both(tmp_path):
    small = [*GRID, "protocol.steps=2", "budget.grid=1", "budget.utility_prompts=1", "budget.reference_images=4"]
    assert called("run", *small, f"store={tmp_path}") == 0
    plan, store = make_plan(cells(*small)).opened(), Store(tmp_path)
    records = stored_records(store, plan).set_index(["concepts", "metric"])
    for name in ("church+car", "church+car in turn"):
        target = records.loc[(name, "target_proportion")]
        assert target["n"] == 4, "two prompts a concept"
        assert records.loc[(name, "artefact_bytes")]["value"] > 0
    assert records.loc["church+car"].index.equals(records.loc["church+car in turn"].index)
    made = {}
    for task in stage(plan, "erase"):
        erasure = overpaint.load_erasure(store.path("erase", task.key) / "erasure.safetensors")
        assert not {"seconds", "peak_bytes"} & {key for e in erasure.sequence for key in e.manifest}
        made[len(erasure.sequence)] = [[c["name"] for c in e.manifest["erase"]] for e in erasure.sequence]
    assert made == {1: [["church", "car"]], 2: [["church"], ["car"]]}


def test_the_order_is_part_of_a_sequence_only_where_there_is_one():
    joint, turns = (make_plan([cell]).opened() for cell in cells(*GRID))
    assert stage(joint, "erase")[0].key != stage(turns, "erase")[0].key
    unedited = [[t.key for t in stage(plan, "generate") if not t.inputs] for plan in (joint, turns)]
    assert unedited[0] == unedited[1]
    one = make_plan(cells("concepts=church", "concepts.sequential=false,true", "method=uce")).opened()
    assert len(stage(one, "erase")) == len(stage(one, "measure")) == 1


@pytest.mark.parametrize("name, count", [("objects5", 5), ("mixed10", 10)])
def test_every_erased_concept_is_asked_for_and_no_anchor_is_erased(name, count):
    (cell,) = cells(f"concepts={name}", "budget=lite")
    erased = {c.name for c in cell.concepts.request.erase}
    assert len(erased) == count and not erased & {c.anchor for c in cell.concepts.request.erase}
    assert not erased & {c.name for c in (*cell.concepts.near, *cell.concepts.request.retain)}
    for name in ("target", "in_prompt"):
        assert {p.concept for p in role(name).prompts(cell.concepts, cell.budget)} == erased
    for prompt in role("in_prompt").prompts(cell.concepts, cell.budget):
        assert not erased & {label for label in prompt.expects if label != prompt.concept}


def test_attacks_look_for_the_first_erased_concept():
    (cell,) = cells("concepts=objects5", "method=uce", "attack=synonym", "budget=smoke")
    _, measure = make_plan([cell]).opened().cells[0]
    for frame in ("images", "original"):
        shots = [shot for batch in measure.config["shots"][frame] for shot in batch]
        assert shots and {shot["concept"] for shot in shots} == {"church"}
    assert {s.prompt.concept for s in role_shots("target", cell.concepts, cell.budget)} > {"church"}


def test_a_wrong_value_is_refused():
    with pytest.raises(overpaint.UserError, match=r"concepts\.sequential takes true or false, got 'maybe'"):
        cells("concepts=church", "concepts.sequential=maybe")
