"""`overpaint attach`: follows a run by what is in the store."""

import os
import threading
import time

import counting_track
import pandas as pd
import pytest
from counting_track import grid

from command_line import CommandLine
from overpaint.commands.attach import follow
from overpaint.errors import UserError
from overpaint.grid.registry import look_in
from overpaint.run import following
from overpaint.run.executor import Executor, Run
from overpaint.run.following import Follower
from overpaint.run.runner import Alone, run_plan
from overpaint.run.shared_run import SharedRun, shared_runs
from overpaint.run.store import Store


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr("overpaint.grid.registry._asked", [])
    monkeypatch.setattr(following, "PAUSE", 0.02)
    look_in(counting_track.CONF)
    store = Store(tmp_path / "store")
    store.prepare()
    return store


@pytest.fixture
def signals(monkeypatch):
    """Leave this process's signals alone. The counting track has no records for a table."""
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("overpaint.commands.attach.stored_records", lambda store, plan: pd.DataFrame())


def work(shared, store):
    """What a worker of a run does, in a thread."""

    def run():
        plan = shared.plan()
        executor = Executor(plan.track, store, "cpu", counting_track.Told(), shared.run, "worker 1")
        run_plan(plan, store, Alone(executor, plan), counting_track.Told())

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_it_shows_what_others_do_and_ends_with_them(store, signals, capfd, tmp_path):
    shared = SharedRun.begin(grid(range(4), steps=2, pause=0.05), store, "ray")
    working = work(shared, store)
    assert follow(shared, store) == 0
    working.join()
    said = capfd.readouterr().err
    assert "(engine=ray, begun on" in said and "8 of 8 tasks to do" in said
    assert all(f"{what} {n}: " in said for what in ("count", "measure") for n in range(4)) and "8 tasks done" in said


def test_a_failure_of_this_run_is_told_and_an_old_one_is_not(store, signals, capfd, tmp_path):
    (tmp_path / "trouble").touch()
    plan = grid(range(2), broken=tmp_path / "trouble")
    work(SharedRun.begin(plan, store, "ray"), store).join()
    assert len(store.failures()) == 2
    shared = SharedRun.begin(plan, store, "ray")
    follower = Follower(plan, store, shared.run, counting_track.Told())
    assert follower.look() == 4
    work(shared, store).join()
    assert follow(shared, store) == 1
    said = capfd.readouterr().err
    assert "ValueError: on purpose (traceback in" in said and "2 tasks failed; 2 more need them" in said


def test_a_run_whose_process_is_gone_is_one_sentence(store, signals):
    plan = grid(range(2))
    pid = os.fork()
    if not pid:
        SharedRun.begin(plan, store, "ray")
        os._exit(0)
    os.waitpid(pid, 0)
    (shared,) = shared_runs(store)
    with pytest.raises(UserError, match="4 tasks are left and no worker makes them; run the same command again"):
        follow(shared, store)
    SharedRun.begin(plan, store, "ray")  # which sweeps the other
    assert len(list(shared_runs(store))) == 1


def test_a_damaged_result_counts_as_left(store):
    plan, watcher = grid([1]), counting_track.Told()
    shared = SharedRun.begin(plan, store, "ray")
    follower = Follower(plan, store, shared.run, watcher)
    work(shared, store).join()
    (store.path("measure", plan.cells[0][1].key) / "manifest.json").unlink()
    assert follower.look() == 1
    work(shared, store).join()
    assert follower.look() == 0 and follower.outcome.done == 2


def test_which_run_is_chosen(tmp_path, store):
    cli = CommandLine(tmp_path)
    assert "has no run of engine=slurm or engine=ray to follow" in cli("attach", "store=elsewhere", code=2).stderr
    look_in(counting_track.CONF)  # which a command replaces
    first, second = (SharedRun.begin(grid([n]), store, "ray").id for n in range(2))
    said = cli("attach", f"store={store.root}", code=2).stderr
    assert f"has 2 runs: give the ID of one ({first}, {second})" in said
    assert f"did you mean '{first}'" in cli("attach", first[:-1] + "x", f"store={store.root}", code=2).stderr
    assert "attach takes one run's ID and store=DIR" in cli("attach", "method=uce", code=2).stderr


def test_a_run_of_a_newer_version_is_left_out(store):
    shared = SharedRun.begin(grid([1]), store, "ray")
    file = shared.folder / "run.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 2'))
    assert list(shared_runs(store)) == []
    with pytest.raises(UserError, match="has format 2, and this version of overpaint reads up to 1"):
        SharedRun.read(shared.folder)


def test_a_run_without_failures_is_read_as_it_was_written(store):
    shared = SharedRun.begin(grid([1]), store, "ray")
    assert SharedRun.read(shared.folder) == shared and isinstance(shared.run, Run) and shared.began <= time.time()
    shared.end()
    assert list(shared_runs(store)) == []
