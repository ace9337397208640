"""Ray: actors may be killed at any moment, and what stops a run is one sentence. The common suite is in test_every_engine.py."""

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
from counting_track import Told, grid, results

from overpaint.errors import AssetMissing, UserError
from overpaint.grid.registry import component
from overpaint.run.engines.ray import Actor, Actors, sweep
from overpaint.run.runner import run_here, run_plan
from overpaint.run.scheduler import TRIES
from overpaint.run.shared_run import SharedRun
from processes import IMPORTED, actors, dead_within, marked, ray_nodes
from small_grid import figures, one_thread

KILLS = 3


def servers():
    """Ray's own processes: those of the test's cluster, and of a run that has started Ray."""
    names = ("raylet", "gcs_server")
    return {child for child in psutil.Process().children(recursive=True) if child.name() in names}


def killing(chance, made, stop, pause=(1, 3)):
    """Kill a random actor now and then."""
    while len(made) < KILLS and not stop.wait(chance.uniform(*pause)):
        try:
            victims = actors()
            if victims:
                chance.choice(victims).kill()
                made.append(time.monotonic())
        except psutil.Error:  # it has just ended
            continue


@contextmanager
def killed_at_random(pause):
    """Kill actors during the block; yields the times of the kills."""
    killed, stop = [], threading.Event()
    killer = threading.Thread(target=killing, args=(random.Random(0), killed, stop, pause))
    killer.start()
    try:
        yield killed
    finally:
        stop.set()
        killer.join()


def left(store):
    places = ("tmp", "locks", "leases", "runs", "corrupt")
    return [path for part in places for path in (store.root / part).glob("*")] + actors()


def test_actors_that_are_killed_cost_what_they_have_in_hand(ray_cluster, store, counting, tmp_path):
    plan, watcher = grid(range(12), log=tmp_path / "log", steps=4, pause=0.1), Told()
    with killed_at_random((1, 3)) as killed:
        outcome = component("engine", "ray").build({"address": ray_cluster, "workers": 2}).run(plan, store, watcher)
    assert not outcome.failed and results(plan, store) == [n + 100 for n in range(12)]
    assert len(killed) > 1 and 0 < len(watcher.gone) <= len(killed)
    begun = (tmp_path / "log").read_text().splitlines()
    assert len(plan.tasks) <= len(begun) <= len(plan.tasks) + len(killed), "more than what was in hand was made again"
    assert left(store) == []


@pytest.mark.slow
def test_the_figures_of_actors_that_were_killed_equal_those_of_one_process(ray_cluster, tmp_path):
    """To the last digit."""
    with one_thread():
        alone = figures(tmp_path / "alone", lambda plan, store: run_here(plan, store, "cpu", Told()))

    def run(plan, store):
        watcher = Told()
        with killed_at_random((3, 6)):
            outcome = component("engine", "ray").build({"address": ray_cluster, "workers": 2}).run(plan, store, watcher)
        assert watcher.gone and left(store) == []
        return outcome

    pd.testing.assert_frame_equal(figures(tmp_path / "shared", run), alone, check_exact=True)


def test_a_killed_node_costs_what_its_actors_have_in_hand(store, counting, tmp_path):
    """One of two nodes is killed during the run, and a new one takes its place."""
    plan = grid(range(20), log=tmp_path / "log", pause=0.2)

    class Replacing(Told):
        def finished(self, *args):
            super().finished(*args)
            if len(self.done) == 10:
                cluster.remove_node(second, allow_graceful=False)
                cluster.add_node(num_cpus=2)

    with ray_nodes(cpus=1) as cluster:
        second, watcher = cluster.add_node(num_cpus=2), Replacing()
        cluster.wait_for_nodes()
        outcome = component("engine", "ray").build({"address": cluster.address}).run(plan, store, watcher)
    assert not outcome.failed and results(plan, store) == [n + 100 for n in range(20)]
    assert watcher.gone == ["its actor died"] * 2
    begun = (tmp_path / "log").read_text().splitlines()
    assert len(plan.tasks) <= len(begun) <= len(plan.tasks) + 2, "more than what was in hand was made again"
    assert left(store) == []


def test_a_run_starts_ray_and_ends_it(store, counting, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", IMPORTED)
    before = servers()
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="r") as short:  # Ray's sockets need a short path
        monkeypatch.setattr(tempfile, "tempdir", short)
        plan = grid(range(3))
        assert component("engine", "ray").build({"workers": 1}).run(plan, store, Told()).done == 6
        assert os.listdir(short) == []
    assert left(store) == [] and results(plan, store) == [100, 101, 102]
    assert servers() == before


def test_a_ray_that_a_killed_run_has_started_ends_with_it(store, monkeypatch):
    code = f"import counting_track; counting_track.main({str(store.root)!r}, 'ray', 20, 0.5)"
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="r") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        environment = {**os.environ, "PYTHONPATH": IMPORTED, "TMPDIR": short}
        run = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while not list(store.root.glob("artefacts/*/*")) and time.monotonic() < until:
            time.sleep(0.1)
        started = marked("TMPDIR", short)
        assert len(started) > 3
        run.kill()
        run.wait()
        assert dead_within(30, started) and len(os.listdir(short)) == 1
        sweep()
        assert os.listdir(short) == []


def test_a_cluster_without_room_is_one_sentence(ray_cluster, store, counting):
    for values, said in [
        ({"gpus": 0.5}, r"engine.gpus=0.5: Ray has 0 GPUs"),
        ({"cpus": 64}, r"engine.cpus=64: Ray has 2 CPU cores"),
    ]:
        with pytest.raises(UserError, match=said):
            component("engine", "ray").build({"address": ray_cluster} | values).run(grid([1]), store, Told())


class Killed:
    """Ray's answers if its memory monitor kills every actor: at its start, or while it makes its first bundle."""

    def __init__(self, ready):
        self.exceptions, self.ready, self.hired = pytest.importorskip("ray").exceptions, ready, 0

    def remote(self, **_):
        return lambda actor: SimpleNamespace(remote=self.hire)

    def hire(self, folder, name, *_):
        self.hired += 1
        stream = SimpleNamespace(remote=lambda bundle: iter(["killed"]))
        run_one = SimpleNamespace(options=lambda **_: stream)
        return SimpleNamespace(begin=SimpleNamespace(remote=lambda: f"begin {self.hired}"), run_one=run_one)

    def wait(self, calls, **_):
        return calls[:1], calls[1:]

    def get(self, answer):
        if answer == "killed" or not self.ready:
            raise self.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.")
        return "elsewhere-1-1"

    def kill(self, actor): ...


class Broken(Killed):
    """Ray's answers if the first actors cannot start, such as on nodes that do not see the store."""

    def __init__(self, broken):
        super().__init__(ready=True)
        self.broken = broken

    def get(self, answer):
        if answer in [f"begin {number}" for number in range(1, self.broken + 1)]:
            raise self.exceptions.RayTaskError("begin", "Traceback …", UserError(f"{answer} does not see the store"))
        return super().get(answer)


def crew(monkeypatch, store, ray, watcher, size=1):
    monkeypatch.setattr("overpaint.run.engines.ray._library", lambda: ray)
    return Actors(store, SharedRun.begin(grid([1]), store, "ray"), size, 0, 1, "cpu", watcher)


def test_an_actor_that_is_killed_to_free_memory_is_replaced_and_its_task_fails_in_the_end(store, counting, monkeypatch):
    plan, watcher, ray = grid([1]), Told(), Killed(ready=True)
    with crew(monkeypatch, store, ray, watcher) as actors:
        outcome = run_plan(plan, store, actors, watcher)
    (failed,) = outcome.failed
    assert "the 4 workers that tried it have died" in store.failure(failed).reason
    assert store.failure(failed).run == actors.run and len(outcome.blocked) == 1
    assert watcher.gone == ["its actor died"] * TRIES and ray.hired == TRIES + 1


def test_actors_that_are_killed_as_they_start_are_one_sentence(store, counting, monkeypatch):
    with (
        crew(monkeypatch, store, Killed(ready=False), Told()) as actors,
        pytest.raises(UserError, match="engine=ray: actors die as soon as they start: Task was killed"),
    ):
        run_plan(grid([1]), store, actors, Told())


def test_the_others_go_on_without_an_actor_that_cannot_start(store, counting, monkeypatch):
    watcher = Told()
    with crew(monkeypatch, store, Broken(1), watcher, size=2) as actors:
        assert actors.results(1) == [] and actors.idle == ["ray 2"]
    assert watcher.gone == ["begin 1 does not see the store"]
    with (
        crew(monkeypatch, store, Broken(2), Told(), size=2) as actors,
        pytest.raises(UserError, match=r"^begin 2 does not see the store$"),
    ):
        actors.results(1)


def test_no_ray_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(AssetMissing, match=r"engine=ray needs the extra: pip install 'overpaint\[ray\]'"):
        component("engine", "ray").build({})


def test_actors_without_work_wait_and_do_not_ask_at_once(store, monkeypatch):
    """While another process makes the last tasks, there is no answer to wait for."""
    library = SimpleNamespace(wait=lambda *_, **__: ([], []), remote=lambda **_: lambda actor: actor)
    monkeypatch.setattr("overpaint.run.engines.ray._library", lambda: library)
    idle, begun = Actors(store, SimpleNamespace(id="id"), 0, 0, 1, "cpu", Told()), time.monotonic()
    assert idle.results(0.4) == [] and time.monotonic() - begun >= 0.4


def test_the_device_of_actors_follows_their_gpus(store, counting, monkeypatch):
    asked = []
    monkeypatch.setattr("overpaint.run.engines.ray.Actors", lambda *values: asked.append(values[2:6]) or nullcontext())
    monkeypatch.setattr("overpaint.run.engines.ray.run_plan", lambda *_: None)

    def begin(resources, **values):
        engine = component("engine", "ray").build(values)
        monkeypatch.setattr(engine, "_connected", lambda: nullcontext(resources))
        engine.run(grid([1]), store, Told())
        return asked.pop()

    assert begin({"CPU": 8.0, "GPU": 2.0}, device="cpu") == (8, 0.0, 1, "cpu")
    assert begin({"CPU": 8.0, "GPU": 2.0}, address="there") == (2, 1.0, 1, "cuda")
    assert begin({"CPU": 8.0}) == (8, 0.0, 1, "cpu")


@pytest.mark.parametrize("gpus", [-1.0, 1.5, 2.0])
def test_a_share_of_gpus_is_checked(gpus):
    with pytest.raises(UserError, match=rf"engine.gpus takes auto or a number from 0 to 1 .*, got {gpus:g}"):
        component("engine", "ray").build({"gpus": gpus})


def test_an_actor_that_does_not_see_the_store_says_so(tmp_path):
    with pytest.raises(UserError, match=f"ray 1 on .* does not see the store {tmp_path}: put it on a path"):
        Actor(tmp_path / "runs" / "id", "ray 1", "cpu", 1).begin()


def test_a_store_that_is_gone_before_the_actors_look_for_it_is_not_blamed_on_their_machine(
    ray_cluster, store, counting, monkeypatch
):
    begin, away = SharedRun.begin, store.root.with_name("away")

    def begin_and_go(*args):
        shared = begin(*args)
        store.root.rename(away)
        return shared

    monkeypatch.setattr(SharedRun, "begin", begin_and_go)
    with pytest.raises(UserError, match=f"cannot write to the store {store.root}: its folders are gone"):
        component("engine", "ray").build({"address": ray_cluster, "workers": 2}).run(grid(range(2)), store, Told())
    assert not store.root.exists()
