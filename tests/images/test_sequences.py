"""Two concepts in one request and in sequence, from the command line to the table; prompts of sets of several concepts."""

import pytest

import overpaint
from command_line import called
from overpaint.grid.cells import cell_from, merged
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


MERGED = ["concepts.erase=[church,car]", "method=uce", "budget=smoke"]


def test_a_merged_request_is_a_third_point_beside_at_once_and_in_turn():
    """``sequential`` does nothing to a merge, so that both can be swept."""
    swept = merged(cells(*MERGED, "concepts.sequential=false,true", "concepts.merge=null,sum"))[0]
    names = [cell.labels["concepts"] for cell in swept]
    assert sorted(names) == ["church+car", "church+car in turn", "church+car merged by sum"]
    keys = {stage(make_plan([cell]).opened(), "erase")[0].key for cell in swept}
    assert len(keys) == len({cell.identity for cell in swept}) == 3


def test_every_merge_has_a_label_and_a_key_of_its_own():
    swept = [
        cells(*MERGED, f"concepts.merge={merge}")[0]
        for merge in ("sum", "mean", "ties", "{rule: ties, keep: 0.1}", "{rule: sum, scale: 0.5}", "closed")
    ]
    swept += cells(*MERGED, "concepts.merge={rule: closed, captions: testbed/captions}")
    assert [cell.labels["concepts"].removeprefix("church+car merged by ") for cell in swept] == [
        "sum", "mean", "ties", "ties keep=0.1", "sum scale=0.5", "closed", "closed captions=testbed/captions",
    ]  # fmt: skip
    tasks = [stage(make_plan([cell]).opened(), "erase")[0] for cell in swept]
    assert len({task.key for task in tasks}) == len({cell.identity for cell in swept}) == len(swept)
    assert "merge.captions" in tasks[-1].config["files"]


def test_one_concept_is_the_same_cell_however_several_would_be_erased():
    one = make_plan(cells("concepts=church", "concepts.merge=null,sum,ties", "method=uce")).opened()
    assert len(stage(one, "erase")) == len(stage(one, "measure")) == 1


def test_a_wrong_merge_is_refused():
    with pytest.raises(overpaint.UserError, match=r"unknown rule 'tie' in concepts\.merge; did you mean 'ties'"):
        cells(*MERGED, "concepts.merge=tie")


def test_a_merged_erasure_goes_from_the_command_line_to_the_table(tmp_path):
    small = [*MERGED, "concepts.merge=closed", "protocol.steps=2", "budget.grid=1", "budget.utility_prompts=1"]
    small += ["budget.reference_images=4", f"store={tmp_path}"]
    assert called("run", *small) == 0
    plan, store = make_plan(cells(*small[:-1])).opened(), Store(tmp_path)
    records = stored_records(store, plan).set_index(["concepts", "metric"])
    assert records.loc[("church+car merged by closed", "target_proportion")]["n"] == 4
    (task,) = stage(plan, "erase")
    erasure = overpaint.load_erasure(store.path("erase", task.key) / "erasure.safetensors")
    assert [c["name"] for c in erasure.manifest["erase"]] == ["church", "car"]
    assert erasure.manifest["merge"]["rule"] == "closed"
