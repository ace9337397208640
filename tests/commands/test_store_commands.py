"""`overpaint status`, `retry`, `gc` and `store` on the tasks of a small grid, which are published without being made."""

import json
import shutil
import subprocess
import sys
import tarfile

import pandas as pd
import pytest

from command_line import CommandLine
from overpaint.commands.grids import planned
from overpaint.errors import UserError
from overpaint.run.leases import Leases
from overpaint.run.notes import noting
from overpaint.run.progress import watched
from overpaint.run.shared_run import SharedRun
from overpaint.run.store import MANIFEST, Store
from overpaint.run.tasks import Task

GRID = ("method=uce", "attack=none", "budget=smoke")
#: A grid whose images of the unedited model are among those of GRID.
PART = ("method=none", "attack=none", "budget=smoke")


@pytest.fixture
def cli(tmp_path, monkeypatch):
    monkeypatch.delenv("OVERPAINT_STORE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return CommandLine(tmp_path)


@pytest.fixture
def store(tmp_path):
    """The store ``outputs`` of the folder in which `cli` works."""
    found = Store(tmp_path / "outputs")
    found.prepare()
    return found


def publish(store, task, text="12345"):
    with store.workspace() as folder:
        (folder / "data.txt").write_text(text)
        store.publish(task.stage, task.key, folder, {"label": task.label, "inputs": task.inputs, "config": task.config})


@pytest.fixture
def plan(store):
    """The plan of GRID, all of it stored."""
    found = planned([*GRID, f"store={store.root}"]).plan.opened()
    for task in found.tasks.values():
        publish(store, task)
    return found


def keys(store):
    return {(stage, key) for stage in store.stages() for key in store.present(stage)}


def as_json(cli, *overrides):
    return json.loads(cli("status", "--format", "json", *overrides).stdout)


def test_status_of_a_store_counts_artefacts_and_bytes(cli, store, plan):
    found = as_json(cli)
    assert sum(s["artefacts"] for s in found["stages"].values()) == len(plan.tasks)
    assert sum(s["bytes"] for s in found["stages"].values()) == 5 * len(plan.tasks)
    assert found["left"] is None and found["commands"] == found["working"] == found["failures"] == []
    said = cli("status").stdout
    assert "nothing is running" in said and "nothing has failed" in said and "generate" in said


def test_status_of_a_grid_says_what_is_left_and_what_failed(cli, store, plan):
    cell = plan.cells[0][1]
    score = next(task for task in plan.tasks.values() if task.stage == "score")
    store.set_aside(cell.stage, cell.key)
    store.record_failure(cell.key, cell.label, "run", "Traceback …\n  line 1\nValueError: on purpose\n")
    store.record_failure("elsewhere", "of another grid", "run", "KeyError: 'x'")
    found = as_json(cli, *GRID)
    assert found["left"]["missing"] == {"measure": 1} and found["left"]["tasks"] == len(plan.tasks)
    (failure,) = found["failures"]
    assert failure["key"] == cell.key and failure["attempt"] == 1 and failure["reason"] == "ValueError: on purpose"
    assert len(as_json(cli)["failures"]) == 2
    said = cli("status", *GRID).stdout
    assert "ValueError: on purpose" in said and f"1 of {len(plan.tasks)} tasks (1 measure)" in said
    store.set_aside(score.stage, score.key)  # which the missing measurement needs
    assert as_json(cli, *GRID)["left"]["missing"] == {"score": 1, "measure": 1}


def test_status_shows_a_whole_error_and_what_to_do(cli, store):
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v.weight"
    store.record_failure(
        "k", "erase church", "run", f"Traceback …\n  line 1\noverpaint.errors.UserError: it changes {name}\n"
    )
    assert as_json(cli)["failures"][0]["reason"] == f"it changes {name}"
    said = cli("status").stdout
    cells = "".join(line.split("│")[4].strip() for line in said.splitlines() if line.count("│") == 5)
    assert name in cells.replace(" ", "") and "…" not in cells
    assert f"`overpaint run` tries them again; tracebacks are in {store.root}/failures" in said.replace("\n", "")


def test_status_shows_the_living_at_work_and_not_the_dead(cli, store, plan):
    lease = Leases(store.root, "run", "worker 1").take(plan.cells[0][1].key, plan.cells[0][1].label)
    code = "import sys; from overpaint.run.leases import Leases; Leases(sys.argv[1]).take('dead', 'a dead one')"
    subprocess.run([sys.executable, "-c", code, store.root], check=True)
    with noting(store.root, "overpaint run, 3 cells"):
        found = as_json(cli)
        assert [note["what"] for note in found["commands"]] == ["overpaint run, 3 cells"]
        assert [work["key"] for work in found["working"]] == [lease.key]
        assert found["working"][0]["worker"] == "worker 1" and found["working"][0]["alive"] is True
        said = cli("status").stdout
        assert "at work: 2" in said and "overpaint run, 3 cells" in said and "a dead one" not in said
    assert as_json(cli)["commands"] == []


def test_status_shows_runs_whose_jobs_wait_in_a_queue(cli, store, plan):
    shared = SharedRun.begin(plan, store, "slurm")
    shared.jobs_file.write_text(json.dumps({"jobs": {"0": "77_0", "1": "77_1"}}))
    (found,) = as_json(cli)["runs"]
    assert (found["id"], found["engine"], found["jobs"]) == (shared.id, "slurm", 2)
    said = cli("status").stdout
    assert "run of engine=slurm, 2 jobs" in said and shared.id in said
    shared.end()
    assert as_json(cli)["runs"] == []


def test_retry_forgets_failures_by_key_by_grid_or_all(cli, store, plan):
    cell = plan.cells[0][1]
    for key in ("abc1", "abc2", "def1", cell.key):
        store.record_failure(key, f"task {key}", "run", "ValueError: no")
    assert "abc1  task abc1  (attempt 1: ValueError: no)" in cli("retry", "abc").stdout
    assert store.failures().keys() == {"def1", cell.key}
    said = cli("retry", "xyz", code=2).stderr
    assert "no failed task has a key that begins with 'xyz'" in said and "def1" in said
    cli("retry", *GRID)
    assert store.failures().keys() == {"def1"}
    cli("retry")
    assert store.failures() == {} and "no failures are recorded" in cli("retry").stderr
    store.record_failure("def1", "task", "run", "ValueError: no")
    assert store.failure("def1").attempt == 1


def test_gc_changes_nothing_unless_asked_and_keeps_what_the_grid_needs(cli, store, plan):
    part = {(task.stage, task.key) for task in planned([*PART, f"store={store.root}"]).plan.opened().tasks.values()}
    before = keys(store)
    said = cli("gc", *PART).stdout
    assert keys(store) == before and f"{5 * len(before - part)} B can be deleted: add --delete" in said
    assert f"{5 * len(before - part)} B deleted" in cli("gc", *PART, "--delete").stdout
    assert keys(store) == before & part and before - part and before & part
    assert cli("gc", *PART).stdout.endswith("0 B can be deleted: add --delete\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["experiment="], "experiment= is empty"),
        (["experiment=demo,"], "experiment=demo, has an empty name"),
        ([*PART, "--also", ""], "--also '' names no grid"),
        ([*PART, "--also", "store=elsewhere"], "names no grid"),
    ],
)
def test_gc_deletes_nothing_for_an_empty_name(cli, store, plan, words, said):
    before = keys(store)
    assert said in cli("gc", *words, "--delete", code=2).stderr
    assert keys(store) == before and before


def test_gc_keeps_several_grids_and_everything_that_their_results_were_made_from(cli, store, plan):
    assert "0 B can be deleted" in cli("gc", *PART, "--also", " ".join(GRID)).stdout
    cell, score = plan.cells[0][1], next(task for task in plan.tasks.values() if task.stage == "score")
    store.remove(score.stage, score.key)
    publish(store, score)
    (old := store.path("generate", "old")).mkdir()
    (old / MANIFEST).write_text('{"files": {}}')
    manifest = store.path(cell.stage, cell.key) / MANIFEST
    manifest.write_text(manifest.read_text().replace('"inputs": {', '"inputs": {"by name": "old", '))
    cli("gc", *GRID, "--delete")
    assert old.is_dir()  # no task of the plan, but an input of a stored result


def test_gc_deletes_damaged_artefacts_and_what_was_set_aside(cli, store, plan):
    cell = plan.cells[0][1]
    (store.path("measure", "half")).mkdir()
    (store.path("measure", "half") / "data").write_text("123")
    store.set_aside(cell.stage, cell.key)
    cli("gc", *GRID, "--delete")
    assert not store.path("measure", "half").exists() and list((store.root / "corrupt").iterdir()) == []


def test_gc_deletes_nothing_while_anybody_works_on_the_store(cli, store, plan):
    before = keys(store)
    with noting(store.root, "overpaint run, 3 cells"):
        said = cli("gc", *PART, "--delete", code=2)
    assert "nothing was deleted: overpaint run, 3 cells on " in said.stderr and keys(store) == before
    leases = Leases(store.root)
    leases.take("k", "a task")
    with noting(store.root, "overpaint run, 3 cells"):
        assert " and 1 more work on " in cli("gc", *PART, "--delete", code=2).stderr
    assert "nothing was deleted: a task on " in cli("gc", *PART, "--delete", code=2).stderr and keys(store) == before
    leases.release("k")
    cli("gc", *PART, "--delete")
    assert keys(store) < before


def test_gc_deletes_nothing_while_a_detached_run_waits_in_the_queue(cli, store, plan, monkeypatch):
    before, queue = keys(store), ["77_0"]
    shared = SharedRun.begin(plan, store, "slurm")
    store.write(shared.jobs_file, json.dumps({"detached": True, "jobs": {"0": "77_0"}, "again": []}))
    monkeypatch.setattr("overpaint.run.engines.slurm._ask", lambda *command: "\n".join(queue))
    said = cli("gc", *PART, "--delete", code=2).stderr
    assert f"nothing was deleted: run {shared.id} (engine=slurm), begun on " in said and keys(store) == before
    queue.clear()
    cli("gc", *PART, "--delete")
    assert keys(store) < before


def test_work_of_a_dead_process_does_not_stop_gc(cli, store, plan):
    code = (
        "import os, sys; from pathlib import Path; from overpaint.run.notes import noting\n"
        "with noting(Path(sys.argv[1]), 'overpaint run, 3 cells'): os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, store.root])
    assert list((store.root / "tmp").iterdir())
    cli("gc", *PART, "--delete")
    assert list((store.root / "tmp").iterdir()) == []


def test_a_run_after_gc_makes_the_rest_again(cli, store, plan):
    before = keys(store)
    cli("gc", *PART, "--delete")
    gone = before - keys(store)
    assert gone and {(task.stage, task.key) for task in plan.missing(store)} == gone


def test_what_verify_has_found_stays_when_it_is_interrupted(cli, store, plan, monkeypatch):
    first, *_, last = sorted(store.keys("score"))
    (store.path("score", first) / "data.txt").write_text("other")
    damage, announced = Store.damage, []

    def interrupted(self, stage, key, *more):
        if key == last:
            raise UserError("cannot read")
        return damage(self, stage, key, *more)

    monkeypatch.setattr(Store, "damage", interrupted)
    with watched(lambda *step: announced.append(step)), pytest.raises(UserError):
        list(store.verify("score"))
    assert (0, len(list(store.keys("score"))), "score artefacts") in announced
    said = cli("store", "verify", "score", "--set-aside", code=2)
    assert first in said.stdout and "cannot read" in said.stderr and not store.path("score", first).exists()


def test_verify_names_damage_and_sets_it_aside_when_asked(cli, store, plan):
    assert "0 damaged artefacts" in cli("store", "verify").stderr
    cell = plan.cells[0][1]
    (store.path(cell.stage, cell.key) / "data.txt").write_text("12346")
    found = cli("store", "verify", code=1)
    assert f"measure/{cell.key}: data.txt does not match its hash" in found.stdout
    assert "1 damaged artefact\n" in found.stderr
    assert cli("store", "verify", "generate").stdout == "" and store.has(cell.stage, cell.key)
    cli("store", "verify", "measure", "--set-aside", code=1)
    assert not store.has(cell.stage, cell.key) and plan.missing(store) == [cell]


def test_verify_finds_figures_that_no_table_can_read(cli, store, plan):
    cell = plan.cells[0][1]
    labels = ("model", "concepts", "kind", "method", "attack", "budget", "facet", "metric", "unit")
    row = dict.fromkeys(labels, "a") | {"seed": 0, "value": 0.5, "n": 2}
    for direction in ("sideways", "up"):
        store.remove(cell.stage, cell.key)
        with store.workspace() as folder:
            pd.DataFrame([row | {"direction": direction}]).to_parquet(folder / "records.parquet")
            store.publish(cell.stage, cell.key, folder, {"label": cell.label, "inputs": cell.inputs})
        if direction == "up":
            assert "0 damaged artefacts" in cli("store", "verify", "measure").stderr
        else:
            why = "ValueError: records.parquet has a direction other than up, down, zero"
            assert f"measure/{cell.key}: {why}\n" in cli("store", "verify", "measure", "--set-aside", code=1).stdout
            assert not store.has(cell.stage, cell.key)


def test_a_packed_store_is_merged_into_an_empty_one(cli, store, plan, tmp_path):
    assert f"{len(plan.tasks)} artefacts" in cli("store", "pack", "out=x.tar").stderr
    assert f"{len(plan.tasks)} artefacts copied" in cli("store", "merge", "x.tar", "store=other").stderr
    assert keys(Store(tmp_path / "other")) == keys(store)
    assert f"{len(plan.tasks)} were there" in cli("store", "merge", "outputs", "store=other").stderr


def test_pack_names_damaged_artefacts(cli, store, plan):
    task = next(iter(plan.tasks.values()))
    (store.path(task.stage, task.key) / "data.txt").write_text("1")
    done = cli("store", "pack", "out=x.tar", code=1)
    assert f"{len(plan.tasks) - 1} artefacts" in done.stderr and "1 damaged one left out" in done.stderr
    assert done.stdout == f"{task.stage}/{task.key}: data.txt has 1 of 5 bytes\n"


def test_a_stored_attack_is_exported_without_overrides(cli, store):
    publish(store, Task("attack", {}, label="an attack", name="abc123"))
    said = cli("export", "attack=abc", "method=uce", "out=x.csv", code=2).stderr
    assert "attack=abc is the key of one stored attack, which takes no overrides, got method=uce" in said


def test_pack_takes_a_grid_and_does_not_replace_a_file_unasked(cli, store, plan, tmp_path):
    part = {task.key for task in planned([*PART, f"store={store.root}"]).plan.opened().tasks.values()}
    cli("store", "pack", *PART, "out=x.tar")
    with tarfile.open(tmp_path / "x.tar") as archive:
        found = {name.split("/")[2] for name in archive.getnames() if name.startswith("artefacts/")}
    assert found == part & plan.tasks.keys()
    assert "exists already" in cli("store", "pack", "out=x.tar", code=2).stderr
    cli("store", "pack", "out=x.tar", "--overwrite")


def test_a_merge_says_what_it_leaves_out(cli, store, plan, tmp_path):
    shutil.copytree(store.root, tmp_path / "theirs")
    task = plan.cells[0][1]
    (Store(tmp_path / "theirs").path(task.stage, task.key) / "data.txt").write_text("12346")
    done = cli("store", "merge", "theirs", "store=new", code=1)
    assert task.key in done.stdout and "1 damaged one left out" in done.stderr


@pytest.mark.parametrize("setting", ["hydra.searchpath=[file://.]", "engine=local", "engine.workers=2", "tracker=none"])
def test_settings_that_say_nothing_about_cells_leave_the_whole_store(cli, store, plan, setting):
    store.record_failure("abc1", "task abc1", "run", "ValueError: no")
    engine = ("engine=local",) if setting == "engine.workers=2" else ()
    count = len(keys(store))
    assert f"all.tar: {count} artefacts" in cli("store", "pack", "out=all.tar", *engine, setting).stderr
    shown = as_json(cli, *engine, setting)
    assert shown["left"] is None and shown["failures"][0]["key"] == "abc1"
    assert "gc takes the grids to keep" in cli("gc", *engine, setting, "--delete", code=2).stderr
    assert len(keys(store)) == count
    assert "0 B can be deleted" in cli("gc", *engine, setting, "--also", " ".join(GRID)).stdout
    cli("retry", *engine, setting)
    assert store.failures() == {}


def test_gc_gives_settings_of_one_grid_to_no_other(cli, store, plan):
    also = ("--also", " ".join(GRID))
    assert "0 B can be deleted" in cli("gc", *PART, "engine.compile=true", *also).stdout


def test_such_settings_are_checked(cli, store):
    assert "unknown engine 'lokal'; did you mean 'local'?" in cli("status", "engine=lokal", code=2).stderr
    assert "engine says where and how the whole grid runs" in cli("status", "engine=local,inline", code=2).stderr
    assert "hydra.searchpath: " in cli("status", "hydra.searchpath=[file://nowhere]", code=2).stderr
