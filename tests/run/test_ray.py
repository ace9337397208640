"""Ray: actors may be killed at any moment, and what stops a run is one sentence. The common suite is in test_every_engine.py."""

import random
import sys
import threading
import time

import psutil
import pytest
from counting_track import Told, grid, results

from overpaint.errors import AssetMissing, UserError
from overpaint.grid.registry import component
from overpaint.run.engines.ray import Actor

KILLS = 4


def actors():
    """The processes of actors that make something. Ray renames them after what they run."""
    found = psutil.Process().children(recursive=True)
    return [child for child in found if "ray::Actor" in " ".join(child.cmdline())]


def killing(chance, made, stop):
    """Kill a random actor now and then."""
    while len(made) < KILLS and not stop.wait(chance.uniform(1, 3)):
        try:
            victims = actors()
            if victims:
                chance.choice(victims).kill()
                made.append(time.monotonic())
        except psutil.Error:  # it has just ended
            continue


def test_actors_that_are_killed_cost_what_they_have_in_hand(ray_cluster, store, counting, tmp_path):
    plan = grid(range(12), log=tmp_path / "log", steps=4, pause=0.1)
    killed, stop, watcher = [], threading.Event(), Told()
    killer = threading.Thread(target=killing, args=(random.Random(0), killed, stop))
    killer.start()
    try:
        outcome = component("engine", "ray").build({"address": ray_cluster, "workers": 2}).run(plan, store, watcher)
    finally:
        stop.set()
        killer.join()
    assert not outcome.failed and results(plan, store) == [n + 100 for n in range(12)]
    assert len(killed) > 1 and 0 < len(watcher.gone) <= len(killed)
    begun = (tmp_path / "log").read_text().splitlines()
    assert len(plan.tasks) <= len(begun) <= len(plan.tasks) + len(killed), "more than what was in hand was made again"
    assert [p for part in ("tmp", "locks", "leases", "runs", "corrupt") for p in (store.root / part).glob("*")] == []
    assert actors() == []


def test_a_cluster_without_room_is_one_sentence(ray_cluster, store, counting):
    for values, said in [
        ({"gpus": 0.5}, r"engine.gpus=0.5: Ray has 0 GPUs"),
        ({"cpus": 64}, r"engine.cpus=64: Ray has 2 CPU cores"),
    ]:
        with pytest.raises(UserError, match=said):
            component("engine", "ray").build({"address": ray_cluster} | values).run(grid([1]), store, Told())


def test_no_ray_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(AssetMissing, match=r"engine=ray needs the extra: pip install 'overpaint\[ray\]'"):
        component("engine", "ray").build({})


@pytest.mark.parametrize("gpus", [-1.0, 1.5])
def test_a_share_of_gpus_is_checked(gpus):
    with pytest.raises(UserError, match=f"engine.gpus takes auto, a share from 0 to 1 or a whole number, got {gpus:g}"):
        component("engine", "ray").build({"gpus": gpus})


def test_an_actor_that_does_not_see_the_store_says_so(tmp_path):
    with pytest.raises(UserError, match=f"ray 1 on .* does not see the store {tmp_path}: put it on a path"):
        Actor(tmp_path / "runs" / "id", "ray 1", "cpu", 1).begin()
