"""The common test suite of engines, on a track of its own: equal results, recorded failures, no leftovers."""

import io
import os
import signal
import time
from contextlib import suppress
from itertools import product

import counting_track
import psutil
import pytest
from counting_track import IdleLock, RefusedLock, Told, grid, results
from rich.console import Console

from overpaint.errors import UserError
from overpaint.grid.registry import component, components
from overpaint.run.display import Display
from overpaint.run.estimates import Estimates
from overpaint.run.notes import ABANDONED
from overpaint.run.track import track

pytestmark = pytest.mark.usefixtures("counting")

#: Slurm's tests are in test_slurm.py: they need a cluster.
ENGINES = sorted(set(components("engine")) - {"slurm"})


@pytest.fixture(params=ENGINES)
def build(request):
    """``build(device="cpu")``: the engine with two processes, if it can use several."""
    values = {"local": {"workers": 2}, "ray": {"workers": 2}}.get(request.param, {})
    if request.param == "ray":
        values["address"] = request.getfixturevalue("ray_cluster")
    return lambda **more: component("engine", request.param).build(values | more)


@pytest.fixture
def engine(build):
    return build()


def children():
    """Running child processes, except Python's own helper and those of the test's Ray cluster that serve every run."""
    served, found = ("resource_tracker", "/ray/", "ray::IDLE", "ray::Dashboard", "ray::RuntimeEnv"), []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            found += [] if any(name in " ".join(child.cmdline()) for name in served) else [child]
    return found


def left(store):
    """What a run has left: files in the store, and processes. Ray takes a moment to kill an actor that is starting."""
    places = ("tmp", "locks", "leases", "runs")
    until = time.monotonic() + 10
    while children() and time.monotonic() < until:
        time.sleep(0.05)
    return [path for part in places for path in (store.root / part).glob("*")] + children()


def fork(run):
    """Start a process that calls ``run`` and exits with 0 if no task failed. Returns its id."""
    pid = os.fork()
    if not pid:
        code = 2
        try:
            signal.alarm(60)
            code = bool(run().failed)
        finally:
            os._exit(code)
    return pid


def test_it_makes_every_task_once_and_nothing_again(engine, store, tmp_path):
    plan, watcher = grid(range(5), log=tmp_path / "log"), Told()
    outcome = engine.run(plan, store, watcher)
    assert outcome.done == len(plan.tasks) and not outcome.failed and not outcome.blocked
    assert results(plan, store) == list(range(100, 105))
    made = sorted(task.label for task in plan.tasks.values())
    assert (
        sorted((tmp_path / "log").read_text().split("\n")[:-1]) == sorted(watcher.begun) == sorted(watcher.done) == made
    )
    again = Told()
    assert engine.run(plan, store, again).done == 0 and again.begun == []
    assert left(store) == []


def test_it_makes_bundles_in_one_go(engine, store):
    plan, watcher = grid(range(6)), Told()
    plan.bundle([task for task in plan.tasks.values() if task.stage == "count"], 3)
    assert engine.run(plan, store, watcher).done == 12
    assert results(plan, store) == list(range(100, 106))
    assert sum(label.startswith("count") for label in watcher.begun) == 2


def test_it_records_failures_and_the_next_run_tries_them_again(engine, store, tmp_path):
    trouble = tmp_path / "trouble"
    trouble.touch()
    plan, watcher = grid(range(3), log=tmp_path / "log", broken=trouble), Told()
    outcome = engine.run(plan, store, watcher)
    firsts = {task.key for task in plan.tasks.values() if task.stage == "count"}
    assert set(outcome.failed) == set(store.failures()) == firsts
    assert outcome.blocked == {task.key for _, task in plan.cells} and outcome.done == 0
    assert all("ValueError: on purpose" in reason for reason in (*watcher.reasons, *outcome.failed.values()))
    assert sorted((tmp_path / "log").read_text().split("\n")[:-1]) == ["count 0", "count 1", "count 2"]
    trouble.unlink()
    assert engine.run(plan, store, Told()).done == 6
    assert results(plan, store) == [100, 101, 102] and store.failures() == {} and left(store) == []


def test_a_failure_in_one_cell_leaves_the_others(engine, store, tmp_path):
    (tmp_path / "refused").touch()
    plan, watcher = grid(range(3)), Told()
    object.__setattr__(next(iter(plan.tasks.values())), "runtime", {"refused": str(tmp_path / "refused")})
    outcome = engine.run(plan, store, watcher)
    assert watcher.reasons == list(outcome.failed.values()) == ["the request cannot be met"]
    assert outcome.done == 4 and len(outcome.blocked) == 1


def test_an_interruption_is_clean(engine, store):
    def interrupt():
        raise KeyboardInterrupt

    plan = grid(range(6), pause=0.05)
    with pytest.raises(KeyboardInterrupt):
        engine.run(plan, store, Told(at_first=interrupt))
    assert left(store) == [] and store.failures() == {}
    engine.run(plan, store, Told())
    assert results(plan, store) == list(range(100, 106))


def test_damage_is_mended(engine, store):
    plan = grid(range(2))
    engine.run(plan, store, Told())
    key, last = next(iter(plan.tasks)), plan.cells[0][1].key
    store.set_aside("measure", last)
    (store.path("count", key) / "n").write_text("7")
    watcher = Told()
    assert engine.run(plan, store, watcher).done == 2
    assert "does not match its hash" in watcher.notes[0] and results(plan, store) == [100, 101]


def test_a_full_disk_is_one_sentence(engine, store):
    plan = grid([1], full=True)
    with pytest.raises(UserError, match=f"cannot write to the store {store.root}: No space left on device"):
        engine.run(plan, store, Told())
    assert left(store) == [] and store.failures() == {}


def test_a_store_that_is_gone_for_a_while_is_one_sentence_and_loses_nothing(engine, store):
    """As a file system that is unmounted during a run: nothing is written in its place."""
    away = store.root.with_name("away")
    plan = grid(range(4), pause=0.2)
    engine.run(grid([0]), store, Told())
    with pytest.raises(UserError, match=f"cannot write to the store {store.root}: its folders are gone"):
        engine.run(plan, store, Told(at_first=lambda: store.root.rename(away)))
    assert not store.root.exists()
    away.rename(store.root)
    store.sweep()
    watcher = Told()
    assert engine.run(plan, store, watcher).done == 6 and len(watcher.begun) == 6
    assert results(plan, store) == [100, 101, 102, 103] and store.failures() == {}
    begun = set(store.root.glob("runs/*"))  # by this process, which still lives
    assert set(left(store)) <= begun


@pytest.mark.parametrize(
    ("build", "jump"),
    [*((name, 0) for name in ENGINES), *product(("inline", "local"), (-10 * ABANDONED, 10 * ABANDONED))],
    indirect=["build"],
)
def test_two_runs_at_once_are_one_even_if_the_clock_of_one_jumps(engine, store, tmp_path, monkeypatch, jump):
    """A second engine in another process on the same store shares the work and ends with the same results."""
    plan, right = grid(range(8), log=tmp_path / "log", pause=0.05), time.time
    clock = iter([0] * 20)  # it jumps in the middle
    second = fork(lambda: component("engine", "inline").build({}).run(plan, store, Told()))
    monkeypatch.setattr(time, "time", lambda: right() + next(clock, jump))
    outcome = engine.run(plan, store, Told())
    assert os.waitpid(second, 0)[1] == 0
    assert not outcome.failed and results(plan, store) == list(range(100, 108))
    assert sorted((tmp_path / "log").read_text().split("\n")[:-1]) == sorted(t.label for t in plan.tasks.values())
    assert left(store) == []


@pytest.mark.parametrize("lock", ["idle", "refused"])
def test_two_runs_at_once_end_well_without_working_locks(engine, store, monkeypatch, lock):
    monkeypatch.setenv(counting_track.LOCKS, lock)
    monkeypatch.setattr("overpaint.run.store.FileLock", {"idle": IdleLock, "refused": RefusedLock}[lock])
    plan = grid(range(6), pause=0.02)
    second = fork(lambda: component("engine", "inline").build({}).run(plan, store, Told()))
    with Display(plan.tasks.values(), Estimates(store), Console(file=io.StringIO(), force_terminal=True)) as display:
        outcome = engine.run(plan, store, display)
    assert os.waitpid(second, 0)[1] == 0
    assert not outcome.failed and results(plan, store) == list(range(100, 106)) and display.at_work == {}
    assert left(store) == [] and store.failures() == {}


def test_an_unknown_key_is_refused(build):
    with pytest.raises(UserError, match=r"unknown hyper-parameter 'devise' in engine=\w+; did you mean 'device'"):
        build(devise="cpu")


def test_a_device_that_the_track_refuses_is_one_sentence(build, store):
    with pytest.raises(UserError, match=r"engine.device=tpu cannot count"):
        build(device="tpu").run(grid([1]), store, Told())
    assert left(store) == []


@pytest.mark.parametrize("name", ["ray", "slurm"])
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"device": "gpu"}, "unknown engine.device 'gpu'"),
        ({"device": "cuda:1"}, "engine.device=cuda:1: the cluster chooses the GPU; give engine.device=cuda"),
        ({"device": "cpu", "gpus": 1}, "engine.device=cpu leaves the GPU of engine.gpus=1.* idle: add engine.gpus=0"),
        ({"device": "cuda", "gpus": 0}, "engine.device=cuda needs a GPU, and engine.gpus=0 asks for none"),
    ],
)
def test_a_device_that_no_worker_of_a_cluster_has_is_refused(name, values, said):
    pytest.importorskip({"ray": "ray", "slurm": "submitit"}[name])
    with pytest.raises(UserError, match=said):
        component("engine", name).build(values).check(track("images"))
