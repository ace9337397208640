"""Engines on a real grid: worker processes do what one process does, one failure is one failure, and a worker may die."""

import os
import signal

import pandas as pd
import psutil
import pytest

from overpaint.commands.grids import prepare
from overpaint.errors import UserError
from overpaint.grid.composition import compose_cells
from overpaint.grid.registry import component
from overpaint.run.engines.local import Local
from overpaint.run.executor import run_tasks
from overpaint.run.track import track

GRID = ("budget=smoke", "concepts=church", "method=none,uce", "attack=none")
COSTS = ["erase_seconds", "erase_peak_bytes", "latency_ratio"]
#: One thread adds in another order than two, which four pictures' KID shows most.
ROUNDING = 1e-2


class Told:
    """A watcher that keeps what it is told, and does something when the first task starts."""

    def __init__(self, at_first=lambda: None):
        self.finished_labels, self.reasons, self.gone, self.at_first = [], [], [], at_first

    def started(self, task):
        self.at_first()
        self.at_first = lambda: None

    def finished(self, task, seconds):
        self.finished_labels.append(task.label)

    def failed(self, task, reason):
        self.reasons.append(reason)

    def lost(self, worker, code):
        self.gone.append(code)

    def stepped(self, task, done, total, what): ...
    def noted(self, task, note): ...
    def waiting(self, tasks): ...


def planned(folder, *overrides):
    """The plan of a grid and its store."""
    grid = prepare(compose_cells([*(overrides or GRID), f"store={folder}"]))
    plan, store = grid.plan, grid.store
    store.prepare()
    return plan, store


def figures(plan, store):
    frames = [pd.read_parquet(store.read("measure", task.key) / "records.parquet") for _, task in plan.cells]
    whole = pd.concat(frames, ignore_index=True)
    return whole[~whole["metric"].isin(COSTS)].drop(columns="seconds")


def workers():
    """Process ids of this process's workers."""
    return [child.pid for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The grid as one process makes it."""
    plan, store = planned(tmp_path_factory.mktemp("alone"))
    run_tasks(plan, store, "cpu", Told())
    return figures(plan, store)


def test_workers_make_what_one_process_makes(tmp_path, alone):
    plan, store = planned(tmp_path)
    watcher = Told()
    outcome = Local(workers=2, device="cpu").run(plan, store, watcher)
    assert outcome.done == len(watcher.finished_labels) == len(plan.tasks) and not outcome.failed
    pd.testing.assert_frame_equal(figures(plan, store), alone, rtol=ROUNDING)
    hosts = {store.manifest(task.stage, task.key)["host"]["process"] for task in plan.tasks.values()}
    assert len(hosts) == 2, "one worker did everything"
    assert workers() == []


def test_a_worker_that_is_killed_is_told_and_the_other_goes_on(tmp_path, alone):
    plan, store = planned(tmp_path)
    watcher = Told(at_first=lambda: os.kill(workers()[0], signal.SIGKILL))
    outcome = Local(workers=2, device="cpu").run(plan, store, watcher)
    assert watcher.gone == [-signal.SIGKILL]
    assert not outcome.failed and plan.missing(store) == []
    pd.testing.assert_frame_equal(figures(plan, store), alone, rtol=ROUNDING)


def test_all_workers_gone_is_one_sentence_and_what_is_stored_stays(tmp_path):
    plan, store = planned(tmp_path)

    def kill():
        for worker in workers():
            os.kill(worker, signal.SIGKILL)

    with pytest.raises(UserError, match="all 2 workers are gone"):
        Local(workers=2, device="cpu").run(plan, store, Told(at_first=kill))
    assert list((store.root / "failures").iterdir()) == []


def test_interruption_ends_the_workers(tmp_path):
    plan, store = planned(tmp_path)

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Local(workers=2, device="cpu").run(plan, store, Told(at_first=interrupt))
    assert workers() == [] and list((store.root / "tmp").iterdir()) == []


def test_what_fails_is_tried_once_by_all_workers_together(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    erase = ("method=salun", f"method.folder={pictures}", "concepts=church,cat", "budget=smoke", "attack=none")
    plan, store = planned(tmp_path / "store", *erase)
    watcher = Told()
    outcome = Local(workers=2, device="cpu").run(plan, store, watcher)
    assert len(outcome.failed) == len(watcher.reasons) == 2
    assert all("holds no pictures" in reason for reason in watcher.reasons)
    assert len(list((store.root / "failures").glob("*.json"))) == 2


def test_one_worker_works_in_this_process(tmp_path, alone):
    plan, store = planned(tmp_path)
    begun = []
    Local(workers=1, device="cpu").run(plan, store, Told(at_first=lambda: begun.append(workers())))
    assert begun == [[]]


def test_workers_are_as_many_as_there_are_devices(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 6)
    images = track("images")
    assert Local(workers="auto", device="cpu").places(images) == (["cpu"] * 6, 6)
    assert Local(workers=3, device="cpu").places(images) == (["cpu"] * 3, 6)
    monkeypatch.setattr(type(images), "devices", lambda self, asked: ["cuda:0", "cuda:1"])
    assert Local(workers="auto", device="auto").places(images)[0] == ["cuda:0", "cuda:1"]
    assert Local(workers=3, device="auto").places(images)[0] == ["cuda:0", "cuda:1", "cuda:0"]


def test_no_workers_are_refused():
    with pytest.raises(UserError, match=r"engine.workers takes auto or a number from 1 up, got 0"):
        component("engine", "local").build({"workers": 0})
