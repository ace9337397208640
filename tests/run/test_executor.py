"""The loop that runs tasks: resume, failures, damage and two processes at once, on tasks that only write a file."""

import multiprocessing
import time

import pytest

from overpaint.errors import UserError
from overpaint.run.executor import run_tasks
from overpaint.run.plan import Plan
from overpaint.run.store import Store
from overpaint.run.tasks import Task


class Silent:
    def __init__(self):
        self.begun, self.reasons = [], []

    def started(self, task):
        self.begun.append(task.label)

    def stepped(self, task, done, total, what): ...
    def finished(self, task, seconds): ...
    def noted(self, task, note): ...
    def waiting(self, tasks): ...

    def failed(self, task, reason):
        self.reasons.append(reason)


def write(task, inputs, folder, bench):
    """A stage that writes its number plus those of its inputs, and takes note of having run."""
    total = task.config["n"] + sum(int((place / "n").read_text()) for place in inputs.values())
    time.sleep(task.config.get("seconds", 0))
    if task.config.get("fails"):
        raise ValueError("on purpose")
    (folder / "n").write_text(str(total))
    if "log" in task.runtime:
        with open(task.runtime["log"], "a") as log:
            log.write(f"{task.label}\n")
    return {}


def refuse(task, inputs, folder, bench):
    raise UserError("the request cannot be met")


@pytest.fixture(autouse=True)
def stage(monkeypatch):
    monkeypatch.setattr("overpaint.run.executor.stage", lambda track, name: write)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    store.prepare()
    return store


def chain(log=None, fails=False, seconds=0.0, width=1):
    """``width`` measure tasks, each on an erase task of its own; the first erase fails if asked to."""
    plan, runtime = Plan("images"), {"log": str(log)} if log else {}
    for i in range(width):
        config = {"n": i + 1, "seconds": seconds} | ({"fails": True} if fails and i == 0 else {})
        first = plan.add(Task("erase", config, {}, {}, runtime, f"erase {i}"))
        plan.cells.append((None, plan.add(Task("measure", {"n": 100}, {"in": first.key}, {}, runtime, f"measure {i}"))))
    return plan


def test_runs_inputs_first_then_nothing_again(store):
    plan, watcher = chain(width=2), Silent()
    assert run_tasks(plan, store, "cpu", watcher).done == 4
    assert watcher.begun == ["erase 0", "measure 0", "erase 1", "measure 1"]
    assert (store.read("measure", plan.cells[1][1].key) / "n").read_text() == "102"
    again = Silent()
    assert run_tasks(plan, store, "cpu", again).done == 0
    assert again.begun == []


def test_a_stored_result_makes_its_inputs_unnecessary(store):
    plan = chain()
    run_tasks(plan, store, "cpu", Silent())
    store.set_aside("erase", next(iter(plan.tasks)))
    assert plan.missing(store) == []


def test_failure_is_recorded_the_rest_goes_on_and_is_tried_again(store):
    plan, watcher = chain(fails=True, width=2), Silent()
    outcome = run_tasks(plan, store, "cpu", watcher)
    assert len(outcome.failed) == 1 and len(outcome.blocked) == 1 and outcome.done == 2
    assert "ValueError: on purpose" in watcher.reasons[0]
    assert "Traceback" in next((store.root / "failures").iterdir()).read_text()
    again = Silent()
    run_tasks(plan, store, "cpu", again)
    assert again.begun == ["erase 0"]


def test_a_users_mistake_that_shows_while_running_is_one_sentence(store, monkeypatch):
    plan, watcher = chain(), Silent()
    monkeypatch.setattr("overpaint.run.executor.stage", lambda track, name: refuse)
    run_tasks(plan, store, "cpu", watcher)
    assert watcher.reasons == ["the request cannot be met"]


def test_damage_found_on_reading_is_made_again(store):
    plan = chain()
    run_tasks(plan, store, "cpu", Silent())
    erase, measure = plan.tasks
    store.set_aside("measure", measure)
    (store.path("erase", erase) / "n").write_text("7")  # same size, other content
    watcher = Silent()
    run_tasks(plan, store, "cpu", watcher)
    assert watcher.begun == ["measure 0", "erase 0", "measure 0"]
    assert "does not match its hash" in watcher.reasons[0]
    assert (store.read("measure", measure) / "n").read_text() == "101"


def bundled(monkeypatch, fails=None):
    """Three erase tasks that are made in one go, each with its measurement; notes of which were made together."""
    plan, goes = chain(width=3), []
    tasks = [plan.tasks[key] for key in plan.tasks if plan.tasks[key].stage == "erase"]
    plan.bundle(tasks, 3)

    def together(tasks, inputs, folders, bench):
        goes.append([task.label for task in tasks])
        if fails in goes[-1]:
            raise ValueError("on purpose")
        return [write(task, inputs, folder, bench) for task, folder in zip(tasks, folders)]

    def alone(task, inputs, folder, bench):
        if task.label == fails:
            raise ValueError("on purpose")
        return write(task, inputs, folder, bench)

    monkeypatch.setattr("overpaint.run.executor.stage_together", lambda track, name: together)
    monkeypatch.setattr("overpaint.run.executor.stage", lambda track, name: alone)
    return plan, tasks, goes


def test_a_bundle_is_made_in_one_go_into_an_artefact_each(store, monkeypatch):
    plan, tasks, goes = bundled(monkeypatch)
    assert run_tasks(plan, store, "cpu", Silent()).done == 6
    assert goes == [["erase 0", "erase 1", "erase 2"]]
    assert [(store.read("erase", task.key) / "n").read_text() for task in tasks] == ["1", "2", "3"]


def test_a_bundle_is_made_whole_and_what_is_stored_stays(store, monkeypatch):
    plan, tasks, goes = bundled(monkeypatch)
    run_tasks(plan, store, "cpu", Silent())
    kept = {t.key: (store.path("erase", t.key) / "n").stat().st_ino for t in tasks[1:]}
    store.set_aside("erase", tasks[0].key)
    store.set_aside("measure", plan.cells[0][1].key)
    outcome = run_tasks(plan, store, "cpu", Silent())
    assert outcome.done == 2 and goes == [["erase 0", "erase 1", "erase 2"]] * 2
    assert {key: (store.path("erase", key) / "n").stat().st_ino for key in kept} == kept
    assert list((store.root / "tmp").iterdir()) == []


def test_a_bundle_that_fails_is_tried_one_by_one(store, monkeypatch):
    plan, tasks, goes = bundled(monkeypatch, fails="erase 1")
    outcome = run_tasks(plan, store, "cpu", Silent())
    assert list(outcome.failed) == [tasks[1].key] and outcome.done == 4 and len(goes) == 1


def test_interruption_loses_only_the_task_in_hand(store, monkeypatch):
    plan = chain(width=3)

    def interrupted(task, *rest):
        if task.label == "erase 1":
            raise KeyboardInterrupt
        return write(task, *rest)

    monkeypatch.setattr("overpaint.run.executor.stage", lambda track, name: interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_tasks(plan, store, "cpu", Silent())
    assert list((store.root / "tmp").iterdir()) == []
    monkeypatch.setattr("overpaint.run.executor.stage", lambda track, name: write)
    watcher = Silent()
    run_tasks(plan, store, "cpu", watcher)
    assert watcher.begun == ["erase 1", "measure 1", "erase 2", "measure 2"]


def test_two_processes_share_the_work(store, tmp_path):
    log = tmp_path / "log"
    plan = chain(log, seconds=0.05, width=6)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=run_tasks, args=(plan, Store(store.root), "cpu", Silent())) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [w.exitcode for w in workers] == [0, 0]
    assert sorted(log.read_text().split("\n"))[1:] == sorted(t.label for t in plan.tasks.values())
    assert plan.missing(store) == []
