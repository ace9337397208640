"""Tasks in one process, on the counting track: resume, failures, damage, bundles and two simultaneous processes."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from dataclasses import asdict, replace

import pytest
from counting_track import IdleLock, RefusedLock, Told, count, grid, results

from overpaint.errors import UserError
from overpaint.run import shared_run
from overpaint.run.engines.slurm import _leaving
from overpaint.run.executor import Executor, Run
from overpaint.run.leases import Leases
from overpaint.run.notes import ABANDONED
from overpaint.run.runner import Alone, run_here, run_plan
from overpaint.run.scheduler import TRIES
from overpaint.run.shared_run import SharedRun
from overpaint.run.store import MANIFEST, Store

pytestmark = pytest.mark.usefixtures("counting")


def run(plan, store, watcher=None):
    watcher = watcher or Told()
    return run_here(plan, store, "cpu", watcher), watcher


@pytest.fixture
def trouble(tmp_path):
    """A file. ``trouble.touch()`` makes tasks fail whose ``broken`` names it."""
    return tmp_path / "trouble"


def with_trouble(plan, label, **runtime):
    """The plan with another runtime for the task with that label."""
    (task,) = [t for t in plan.tasks.values() if t.label == label]
    object.__setattr__(task, "runtime", {**task.runtime, **runtime})
    return plan


def of_stage(plan, stage):
    return [task for task in plan.tasks.values() if task.stage == stage]


def test_inputs_come_first_and_nothing_is_made_twice(store):
    plan = grid([1, 2])
    outcome, watcher = run(plan, store)
    assert outcome.done == 4 and watcher.done == watcher.begun == ["count 1", "measure 1", "count 2", "measure 2"]
    assert results(plan, store) == [101, 102]
    outcome, watcher = run(plan, store)
    assert outcome.done == 0 and watcher.begun == []


def test_a_stored_result_needs_no_inputs(store):
    plan = grid([1])
    run(plan, store)
    store.set_aside("count", of_stage(plan, "count")[0].key)
    assert plan.missing(store) == []


def test_a_failure_is_recorded_the_rest_goes_on_and_the_next_run_tries_again(store, trouble):
    trouble.touch()
    plan = with_trouble(grid([1, 2]), "count 1", broken=trouble)
    first, last = of_stage(plan, "count")[0].key, plan.cells[0][1].key
    outcome, watcher = run(plan, store)
    assert list(outcome.failed) == [first] and outcome.blocked == {last} and outcome.done == 2
    assert watcher.reasons[0].startswith("ValueError: on purpose (traceback in ")
    assert "Traceback" in store.failure(first).traceback and store.failure(first).attempt == 1
    run(plan, store)
    assert store.failure(first).attempt == 2
    trouble.unlink()
    outcome, watcher = run(plan, store)
    assert watcher.begun == ["count 1", "measure 1"] and store.failures() == {}


def test_a_failure_recorded_in_the_future_does_not_block_its_task(store, trouble):
    trouble.touch()
    plan = with_trouble(grid([1]), "count 1", broken=trouble)
    run(plan, store)
    (record,) = (store.root / "failures").iterdir()
    os.utime(record, (2**33, 2**33))
    trouble.unlink()
    assert run(plan, store)[0].done == 2


def test_a_bench_that_cannot_be_made_is_a_failure_of_its_tasks(store, monkeypatch):
    def broken(self):
        raise UserError("no bench")

    monkeypatch.setattr("counting_track.Counting.bench", broken)
    outcome, watcher = run(grid([1]), store)
    assert watcher.reasons == ["no bench"] and len(outcome.failed) == 1


def test_a_users_mistake_is_one_sentence(store, trouble):
    trouble.touch()
    assert run(with_trouble(grid([1]), "count 1", refused=trouble), store)[1].reasons == ["the request cannot be met"]


class Panic(BaseException):
    """What libraries in Rust raise."""


class Unreadable(Exception):
    def __str__(self):
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SystemExit(0), "SystemExit: 0"),
        (Panic("index out of bounds"), "Panic: index out of bounds"),
        (Unreadable(), "Unreadable: its message cannot be read"),
    ],
)
def test_every_exception_of_a_component_is_a_failure_of_its_task_and_the_rest_goes_on(
    store, monkeypatch, error, reason
):
    def raising(task, *rest):
        if task.label == "count 1":
            raise error
        return count(task, *rest)

    monkeypatch.setattr("counting_track.count", raising)
    plan = grid([1, 2])
    outcome, watcher = run(plan, store)
    key = of_stage(plan, "count")[0].key
    assert list(outcome.failed) == list(store.failures()) == [key] and outcome.done == 2
    assert watcher.reasons[0].startswith(f"{reason} (traceback in ")
    assert type(error).__name__ in store.failure(key).reason


def test_a_process_that_has_to_leave_blames_no_task(store, monkeypatch):
    """Submitit ends a job that Slurm takes away by `sys.exit` in a signal's handler."""
    monkeypatch.setattr("counting_track.count", lambda *_: signal.raise_signal(signal.SIGUSR2))
    before = signal.signal(signal.SIGUSR2, _leaving(lambda *_: sys.exit(-1)))
    try:
        with pytest.raises(SystemExit) as left:
            run(grid([1]), store)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert left.value.code == -1
    assert store.failures() == {} and list((store.root / "tmp").iterdir()) == []


def test_a_damaged_small_input_is_found_on_reading_and_made_again(store):
    plan = grid([1])
    run(plan, store)
    count, measure = plan.tasks
    store.set_aside("measure", measure)
    (store.path("count", count) / "n").write_text("7")  # same size, other content
    _, watcher = run(plan, store)
    assert watcher.done == ["count 1", "measure 1"]
    assert "n does not match its hash" in watcher.notes[0] and watcher.reasons == []
    assert results(plan, store) == [101]


def test_a_damaged_large_input_is_found_when_its_reader_fails(store, monkeypatch):
    monkeypatch.setattr("overpaint.run.store.SMALL", 0)  # every file counts as large
    plan = grid([1])
    run(plan, store)
    count, measure = plan.tasks
    store.set_aside("measure", measure)
    (store.path("count", count) / "n").write_text("x")
    _, watcher = run(plan, store)
    assert "n does not match its hash" in watcher.notes[0] and watcher.reasons == [] and store.failures() == {}
    assert results(plan, store) == [101]


def test_a_damaged_input_that_cannot_be_set_aside_is_one_sentence(store, monkeypatch):
    plan = grid([1])
    run(plan, store)
    count, measure = plan.tasks
    store.set_aside("measure", measure)
    (store.path("count", count) / "n").write_text("7")
    monkeypatch.setattr(Store, "set_aside", lambda *_: False)  # read-only, which root would not notice
    with pytest.raises(UserError, match=r"artefact count/\w+ is damaged .* the store cannot be written to"):
        run(plan, store)


def test_an_interrupted_copy_is_set_aside_once(store):
    plan = grid([1])
    run(plan, store)
    for task in plan.tasks.values():
        (store.path(task.stage, task.key) / MANIFEST).unlink()
    assert run(plan, store)[0].done == 2
    assert run(plan, store)[0].done == 0
    assert len(list((store.root / "corrupt").iterdir())) == 2


def test_an_interrupted_copy_that_appears_during_the_run_gives_way(store, counting):
    plan = grid([1])

    def copy():
        folder = store.path("count", of_stage(plan, "count")[0].key)
        folder.mkdir(parents=True)
        (folder / "n").write_text("half")

    assert run(plan, store, Told(at_first=copy))[0].done == 2
    assert results(plan, store) == [101]


def bundled(**runtime):
    """Three tasks in one bundle, each with its measurement."""
    plan = grid([1, 2, 3], **runtime)
    plan.bundle(of_stage(plan, "count"), 3)
    return plan


def test_a_bundle_is_made_in_one_go_into_an_artefact_each(store):
    plan = bundled()
    outcome, watcher = run(plan, store)
    assert outcome.done == 6 and watcher.begun == ["count 1", "measure 1", "measure 2", "measure 3"]
    assert results(plan, store) == [101, 102, 103]


def test_a_bundle_is_made_whole_and_what_is_stored_stays(store, tmp_path):
    plan = bundled(log=tmp_path / "log")
    run(plan, store)
    first, *others = of_stage(plan, "count")
    kept = {t.key: (store.path("count", t.key) / "n").stat().st_ino for t in others}
    shutil.rmtree(store.path("count", first.key))
    shutil.rmtree(store.path("measure", plan.cells[0][1].key))
    (tmp_path / "log").unlink()
    assert run(plan, store)[0].done == 2
    assert (tmp_path / "log").read_text().split("\n")[:-1] == ["count 1", "count 2", "count 3", "measure 1"]
    assert {key: (store.path("count", key) / "n").stat().st_ino for key in kept} == kept


def test_the_tasks_of_a_bundle_that_fails_are_tried_one_by_one(store, trouble):
    trouble.touch()
    plan = with_trouble(bundled(), "count 2", broken=trouble)
    outcome, watcher = run(plan, store)
    assert list(outcome.failed) == [of_stage(plan, "count")[1].key] and outcome.done == 4
    assert watcher.begun[:4] == ["count 1", "count 1", "measure 1", "count 2"]
    assert len(watcher.reasons) == len(store.failures()) == 1


def test_an_interruption_loses_only_the_task_in_hand(store):
    plan, interrupted = grid([1, 2, 3]), Told()

    def finished(task, seconds, hardware):
        interrupted.at_first = interrupt

    def interrupt():
        raise KeyboardInterrupt

    interrupted.finished = finished
    with pytest.raises(KeyboardInterrupt):
        run(plan, store, interrupted)
    assert list((store.root / "tmp").iterdir()) == [] and store.failures() == {}
    assert run(plan, store)[1].begun == ["measure 1", "count 2", "measure 2", "count 3", "measure 3"]


def start(plan, store, count):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run_here, args=(plan, Store(store.root), "cpu", Told())) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * count


def test_two_processes_share_the_work(store, tmp_path):
    plan = grid(range(6), log=tmp_path / "log", pause=0.05)
    start(plan, store, 2)
    assert sorted((tmp_path / "log").read_text().split("\n")[:-1]) == sorted(t.label for t in plan.tasks.values())
    assert results(plan, store) == list(range(100, 106))
    assert list((store.root / "locks").iterdir()) == list((store.root / "tmp").iterdir()) == []


def test_two_processes_try_what_fails_once(store, tmp_path, trouble):
    trouble.touch()
    start(grid(range(4), log=tmp_path / "log", pause=0.5, broken=trouble), store, 2)
    assert sorted((tmp_path / "log").read_text().split("\n")[:-1]) == [f"count {n}" for n in range(4)]
    assert [failure.attempt for failure in store.failures().values()] == [1] * 4


@pytest.mark.parametrize("lock", [IdleLock, RefusedLock])
def test_without_working_locks_the_results_are_the_same(store, monkeypatch, lock):
    monkeypatch.setattr("overpaint.run.store.FileLock", lock)
    plan = grid(range(4), pause=0.02)
    start(plan, store, 3)
    assert results(plan, store) == list(range(100, 104)) and store.failures() == {}
    assert list((store.root / "tmp").iterdir()) == []


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full(*_, **__):
    raise FULL


def wrapped(*_):
    raise RuntimeError(f"SafetensorError: I/O error: {os.strerror(errno.ENOSPC)} (os error 28)")


@pytest.mark.parametrize(
    ("place", "instead"),
    [
        ("counting_track.count", full),
        ("counting_track.count", wrapped),
        ("overpaint.run.store.Store.publish", full),
        ("overpaint.run.store.Store.workspace", full),
        ("overpaint.run.store.Store.record_failure", full),
        ("overpaint.run.store.os.fsync", full),
    ],
)
def test_a_full_disk_is_one_sentence_wherever_it_shows(store, monkeypatch, trouble, place, instead):
    plan = grid([1])
    if place.endswith("record_failure"):
        trouble.touch()
        plan = with_trouble(plan, "count 1", broken=trouble)
    monkeypatch.setattr(place, instead)
    monkeypatch.setattr(Store, "_has_room", lambda _: False)
    with pytest.raises(UserError, match=f"cannot write to the store {store.root}: {os.strerror(errno.ENOSPC)}"):
        run(plan, store)
    assert list((store.root / "tmp").iterdir()) == [] and store.failures() == {}
    assert not list(store.root.glob("artefacts/*/*"))


def test_a_full_disk_elsewhere_is_the_tasks_own_failure(store, monkeypatch):
    monkeypatch.setattr("counting_track.count", full)
    monkeypatch.setattr(Store, "_has_room", lambda _: True)
    outcome, watcher = run(grid([1]), store)
    assert len(outcome.failed) == 1 and os.strerror(errno.ENOSPC) in watcher.reasons[0]


def test_a_store_that_goes_away_during_a_run_is_one_sentence_and_nothing_is_lost(store):
    plan, away = grid([1, 2]), store.root.with_name("away")
    gone = Told()

    def finished(task, seconds, hardware):
        if store.root.is_dir():
            shutil.move(store.root, away)  # as an unmounted file system

    gone.finished = finished
    with pytest.raises(UserError, match=f"cannot write to the store {store.root}"):
        run(plan, store, gone)
    shutil.rmtree(store.root, ignore_errors=True)
    shutil.move(away, store.root)
    store.prepare()
    assert run(plan, store)[1].begun == ["measure 1", "count 2", "measure 2"] and store.failures() == {}
    assert results(plan, store) == [101, 102]


def leave_lease(store, key, **values):
    """A lease that a killed process of this machine has left."""
    lease = Leases(store.root, "a run", "worker 1").take(key)
    dead = f"{lease.owner.rpartition('-')[0]}-0"  # whose process id has another process now
    text = json.dumps(asdict(replace(lease, **{"owner": dead} | values)))
    (store.root / "leases" / f"{key}.json").write_text(text)


def test_a_task_that_kills_its_workers_fails_in_the_end(store):
    plan, found = grid([1]), {}
    first = next(iter(plan.tasks.values()))
    executor = Executor(plan.track, store, "cpu", Told(), Run("a run", found))
    for tries, status in ((TRIES - 1, "made"), (TRIES, "failed")):
        leave_lease(store, first.key, tries=tries)
        assert executor.run_one([first]).status == status
        store.set_aside("count", first.key)
    assert "the 4 workers that tried it have died" in store.failure(first.key).traceback
    leave_lease(store, first.key, run="an earlier run", tries=TRIES)
    another = Executor(plan.track, store, "cpu", Told(), Run("another run", {first.key: ("a run", 1)}))
    assert another.run_one([first]).status == "made"
    assert list((store.root / "leases").iterdir()) == []


def test_what_another_machine_makes_is_left_to_it(store):
    plan, elsewhere = grid([1, 2]), "0123456789ab-1-1"
    first, second = of_stage(plan, "count")
    leave_lease(store, first.key, owner=elsewhere)
    executor = Executor(plan.track, store, "cpu", Told(), Run.begin(store))
    assert executor.run_one([first]).status == "elsewhere" and executor.run_one([second]).status == "made"
    assert list((store.root / "locks").iterdir()) == []


def test_a_crew_of_one_passes_over_what_others_have_leased(store, monkeypatch):
    plan, tries, claim = grid([1, 2, 3]), [], Store.claim
    leased, needs_it = of_stage(plan, "count")[1], of_stage(plan, "measure")[1]
    leave_lease(store, leased.key, owner="0123456789ab-1-1")
    plan.cells[1] = (2, leased)
    del plan.tasks[needs_it.key]
    monkeypatch.setattr(Store, "claim", lambda self, key: tries.append(key) or claim(self, key))
    executor = Executor(plan.track, store, "cpu", Told(), Run.begin(store))
    outcome = run_plan(plan, store, Alone(executor, plan), Told(), idle_limit=0.1)
    assert outcome.done == 4
    assert tries.index(leased.key) == 4, "it is tried when nothing else is left"


def test_a_crew_that_has_waited_long_enough_leaves_the_last_tasks_to_others(store):
    plan = grid([1])
    leave_lease(store, of_stage(plan, "count")[0].key, owner="0123456789ab-1-1")
    executor = Executor(plan.track, store, "cpu", Told(), Run.begin(store))
    plan.cells, plan.tasks = [(1, of_stage(plan, "count")[0])], {t.key: t for t in of_stage(plan, "count")}
    outcome = run_plan(plan, store, Alone(executor, plan), Told(), idle_limit=0.1)
    assert outcome.done == 0 and not outcome.failed


def test_a_crew_leaves_tasks_that_need_what_others_make_if_these_suffice(store):
    plan = grid([1, 2])
    for task in of_stage(plan, "count"):
        leave_lease(store, task.key, owner="0123456789ab-1-1")
    executor = Executor(plan.track, store, "cpu", Told(), Run.begin(store))
    outcome = run_plan(plan, store, Alone(executor, plan), Told(), idle_limit=0.1)
    assert outcome.done == 0 and len(plan.missing(store)) == 4


def test_folders_of_runs_whose_process_was_killed_are_swept(store):
    pid = os.fork()
    if not pid:
        SharedRun.begin(grid([1]), store, "ray")
        os._exit(0)
    os.waitpid(pid, 0)
    assert len(list((store.root / "runs").iterdir())) == 1
    run(grid([2]), store)
    assert list((store.root / "runs").iterdir()) == []


def test_a_run_of_another_machine_is_swept_after_a_day_of_silence(store, monkeypatch):
    monkeypatch.setattr("overpaint.run.shared_run.owner", lambda: "0123456789ab-1-1")
    shared = SharedRun.begin(grid([1]), store, "ray")
    shared_run.sweep(store)
    assert shared.living and shared.folder.is_dir()
    os.utime(shared.folder, (time.time() - ABANDONED - 60,) * 2)
    shared_run.sweep(store)
    assert not shared.living and not shared.folder.exists()
