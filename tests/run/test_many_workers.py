"""Workers that sleep as long as the demo's tasks take: how near their makespan is to its lower bound, and how they collide."""

import threading
import time

import pytest
from counting_track import Told

from overpaint.commands.grids import cells_of, compose
from overpaint.grid.registry import component
from overpaint.images.planner import make_plan
from overpaint.run.estimates import Estimates
from overpaint.run.executor import Executor, Run
from overpaint.run.plan import Plan
from overpaint.run.runner import Alone, run_plan
from overpaint.run.store import Store
from overpaint.run.tasks import Task
from processes import ray_of_one_node

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("counting")]

#: Seconds a unit of work of the demo, measured with one thread on one of two cores: by stage, with the method or attack.
SECONDS = {
    "erase/uce": 0.04, "erase/negative_prompt": 0.02, "erase/esd": 38.4, "attack/cce": 0.57, "attack/random_prefix": 0.001,
    "generate": 0.132, "score": 0.0022, "compare": 0.003, "measure": 0.21, "latency": 0.42, "reference": 0.002,
}  # fmt: skip
#: What a task may take beyond its bound on a machine that other processes use. On a quiet one it is 1.03.
BUSY = 1.15


def seconds(task):
    named = f"{task.stage}/{task.like.rpartition('/')[2].partition(' ')[0]}"
    return task.amount * SECONDS.get(named, SECONDS.get(task.stage, 0.0))


@pytest.fixture(scope="module")
def demo():
    """``demo(store, scale)``: the demo's plan, whose tasks sleep for that share of their seconds, the seconds of all tasks and
    those of the longest path. The store knows what they take."""
    planned = make_plan(cells_of(compose(["experiment=demo"]))).opened()
    assert all(seconds(task) for task in planned.tasks.values())

    def asleep(store, scale):
        plan, keys, ends, costs = Plan("counting"), {}, {}, Estimates(store)
        for number, (key, task) in enumerate(planned.tasks.items()):
            inputs = {str(place): keys[one] for place, one in enumerate(task.inputs.values())}
            about = {
                "label": task.label,
                "amount": task.amount,
                "like": f"{task.pace} {task.amount}",
                "loads": task.loads,
            }
            stage = "measure" if task.stage == "measure" else "count"
            mine = plan.add(Task(stage, {"n": number}, inputs, runtime={"pause": scale * seconds(task)}, **about))
            keys[key] = mine.key
            ends[key] = scale * seconds(task) + max((ends[one] for one in task.inputs.values()), default=0.0)
            costs.learn(mine, scale * seconds(task))
            if stage == "measure":
                plan.cells.append((number, mine))
        costs.save()
        return plan, scale * sum(map(seconds, planned.tasks.values())), max(ends.values())

    return asleep


class Clocked(Told):
    """A watcher that notes when tasks begin and end."""

    def __init__(self):
        super().__init__()
        self.begins, self.ends = {}, {}

    def started(self, task):
        self.begins.setdefault(task.key, time.monotonic())

    def finished(self, task, seconds, hardware):
        self.ends[task.key] = time.monotonic()


@pytest.mark.parametrize("name", ["local", "ray"])
def test_eight_workers_are_near_the_lower_bound(name, demo, store, capsys):
    """Counted from each worker's first task: how long a worker takes to start depends on the machine."""
    plan, total, path = demo(store, 0.2)
    watcher, called = Clocked(), time.monotonic()
    if name == "ray":
        with ray_of_one_node(cpus=8, gpus=8) as address:
            called = time.monotonic()
            engine = component("engine", "ray").build({"address": address, "workers": 8, "device": "cpu"})
            outcome = engine.run(plan, store, watcher)
    else:
        outcome = component("engine", "local").build({"workers": 8}).run(plan, store, watcher)
    assert outcome.done == len(plan.tasks) == len(watcher.ends)
    first = min(watcher.begins.values())
    ready: dict[int, float] = {}
    for key, begin in watcher.begins.items():
        process = store.manifest(plan.tasks[key].stage, key)["host"]["process"]
        ready[process] = min(ready.get(process, begin), begin)
    late = sum(begin - first for begin in ready.values())
    makespan, bound = max(watcher.ends.values()) - first, max((total + late) / 8, path)
    with capsys.disabled():
        print(
            f"\n{name}: {len(plan.tasks)} tasks of {total:.1f} s, longest path {path:.1f} s: makespan {makespan:.2f} s, "
            f"{makespan / bound:.3f} of the bound; the first task began after {first - called:.2f} s, the eighth worker "
            f"{max(ready.values()) - first:.2f} s later"
        )
    assert len(ready) == 8 and makespan <= BUSY * bound


def test_workers_that_schedule_for_themselves_rarely_want_the_same_task(demo, store, monkeypatch, capsys):
    """Thirty-two jobs on a shared folder, as threads."""
    tries, claim = [], Store.claim
    monkeypatch.setattr(Store, "claim", lambda self, key: tries.append(key) or claim(self, key))
    demo(store, 0.3)
    run, done = Run.begin(store), []

    def work(number):
        mine, place = demo(Store(store.root), 0.3)[0], Store(store.root)
        crew = Alone(Executor(mine.track, place, "cpu", Told(), run, f"job {number}"), mine)
        done.append(run_plan(mine, place, crew, Told(), idle_limit=5.0, start=number / 32).done)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with capsys.disabled():
        print(f"\n32 workers: {len(tries) / sum(done):.2f} attempts a task")
    assert sum(done) == 412 and len(tries) < 6 * sum(done)  # 16.5 a task if all begin at the same place
