"""A plan that is saved and loaded has the same tasks, bundles and missing results."""

import json

import pyarrow.parquet as pq
import pytest
from counting_track import Told, grid

from overpaint.commands.grids import planned
from overpaint.errors import UserError
from overpaint.grid.digests import canonical
from overpaint.run.engines.inline import Inline
from overpaint.run.plan import Plan
from overpaint.run.saved_plan import load, save
from overpaint.run.tasks import Task


def same(loaded, plan):
    assert list(loaded.tasks) == list(plan.tasks) and loaded.track == plan.track
    for key, task in loaded.tasks.items():
        original = plan.tasks[key]
        again = Task(task.stage, task.config, task.inputs, task.versions, sources=task.sources, name=original.name)
        assert task.key == again.key == key
        assert canonical(task.runtime) == canonical(original.runtime)
        assert (task.label, task.amount, task.like) == (original.label, original.amount, original.like)
        assert json.loads(canonical(original.config)) == task.config
        assert [list(task.config), list(task.inputs)] == [list(original.config), list(original.inputs)], "another order"
    assert {task.key for _, task in loaded.cells} == {task.key for _, task in plan.cells}
    assert {k: [t.key for t in b] for k, b in loaded.bundles.items()} == {
        k: [t.key for t in b] for k, b in plan.bundles.items()
    }


def test_a_grid_of_images_survives(tmp_path):
    plan = planned(["experiment=smoke", "concepts=church,cat", "attack=none,uda", f"store={tmp_path}"]).plan.opened()
    assert plan.bundles and len(plan.tasks) > 50
    save(plan, tmp_path / "plan.parquet")
    loaded = load(tmp_path / "plan.parquet")
    same(loaded, plan)
    lists = [
        value for task in loaded.tasks.values() for value in task.config.values() if isinstance(value, list | dict)
    ]
    assert len({id(value) for value in lists}) == len({json.dumps(value) for value in lists}) < len(lists), "held twice"


def test_a_loaded_plan_runs(tmp_path, store, counting):
    plan = grid(range(4))
    counts = [task for task in plan.tasks.values() if task.stage == "count"]
    plan.bundle(counts[::-1], 3)
    save(plan, store.root / "runs" / "plan.parquet")
    loaded = load(store.root / "runs" / "plan.parquet")
    same(loaded, plan)
    assert [t.key for t in loaded.missing(store)] == [t.key for t in plan.missing(store)]
    assert Inline(device="cpu").run(loaded, store, Told()).done == 8
    assert plan.missing(store) == [] == loaded.missing(store)


def test_tasks_that_are_to_be_made_again_survive(store, counting):
    plan = grid(range(4))
    Inline(device="cpu").run(plan, store, Told())
    counts = [task for task in plan.tasks.values() if task.stage == "count"]
    store.remove("count", counts[1].key)
    assert plan.missing(store) == []
    plan.again = {task.key for task in counts}
    save(plan, store.root / "runs" / "plan.parquet")
    loaded = load(store.root / "runs" / "plan.parquet")
    assert [t.key for t in loaded.missing(store)] == [t.key for t in plan.missing(store)] == [counts[1].key]
    assert Inline(device="cpu").run(loaded, store, Told()).done == 1


def test_a_plan_that_cannot_be_read_is_one_sentence(tmp_path):
    path = tmp_path / "plan.parquet"
    with pytest.raises(UserError, match=r"the plan .* cannot be read"):
        load(path)
    path.write_bytes(b"PAR1 and nothing")
    with pytest.raises(UserError, match=r"the plan .* cannot be read"):
        load(path)
    save(Plan("images"), path)
    newer = pq.read_table(path).replace_schema_metadata({"format": "99", "track": "images"})
    pq.write_table(newer, path)
    with pytest.raises(UserError, match="has format 99, and this version of overpaint reads up to 1"):
        load(path)
