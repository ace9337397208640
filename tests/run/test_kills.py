"""Fifty kills at random moments over all engines. Each engine prints a line: what the kills cost, and what they left."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import psutil
import pytest
from counting_track import Told, grid

from overpaint.grid.registry import component
from overpaint.run.store import Store
from processes import IMPORTED, actors, alive, jobs, marked, workers

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("counting")]

#: Kills for each engine.
KILLS = {"inline": 15, "local": 15, "ray": 10, "slurm": 10}
SEED = 14
NUMBERS, PAUSE = range(6), 0.05
#: Folders of a store that are empty after a run that was not interrupted.
PLACES = ("tmp", "locks", "leases", "runs", "failures", "corrupt")
MARK = "OVERPAINT_TEST_ROUND"
LINE = "{:8} {:>5} {:>6} {:>11} {:>5} {:>10} {:>8} {:>6}".format
HEAD = LINE("engine", "kills", "tasks", "made again", "twice", "lost", "left over", "seed")


@pytest.fixture(scope="module", autouse=True)
def heading(pytestconfig):
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{HEAD}")


@pytest.fixture
def values(request):
    """The values of an engine with two workers, on a cluster that runs already."""
    if request.param == "slurm":
        request.getfixturevalue("slurm_cluster")
        return {"workers": 2, "gpus": 0, "cpus": 1, "partition": "main", "time": 10}
    if request.param == "ray":
        return {"workers": 2, "address": request.getfixturevalue("ray_cluster")}
    return {"workers": 2} if request.param == "local" else {}


@dataclass
class Cost:
    """What kills cost. ``again``: tasks in the hands of a process that was killed, which were begun again. ``twice``: others
    that were. ``lost``: results that are missing, wrong or half-written at the end. ``left``: files and processes."""

    kills: int = 0
    tasks: int = 0
    again: int = 0
    twice: int = 0
    lost: int = 0
    left: int = 0


class Round:
    """A command on a store of its own, with another one beside it on the same store."""

    def __init__(self, folder, engine, values, beside):
        self.store, self.journal, self.engine, self.values = Store(folder / "store"), folder / "journal", engine, values
        self.plan, self.mark, self.killed = grid(NUMBERS, journal=self.journal), f"{os.getpid()}-{folder}", set()
        self.dying = []
        self.command = self._begin(engine, values)
        self.beside = self._begin("inline", {}) if beside else None
        until = time.monotonic() + 60
        while not (self.store.root / "leases").is_dir() and time.monotonic() < until:
            time.sleep(0.005)

    def _begin(self, engine, values):
        arguments = f"{str(self.store.root)!r}, {engine!r}, {len(NUMBERS)}, {PAUSE}, {str(self.journal)!r}, **{values}"
        environment = {**os.environ, "PYTHONPATH": IMPORTED, MARK: self.mark}
        code = f"import counting_track; counting_track.main({arguments})"
        return subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def workers(self):
        """The command's workers, which may be on a cluster."""
        if self.engine in ("ray", "slurm"):
            return actors() if self.engine == "ray" else jobs(self.store)
        with suppress(psutil.Error):
            return workers(self.command.pid)
        return []

    def kill_a_worker(self, chance):
        """Kill one of the workers; returns whether there was one. The command must end well."""
        with suppress(psutil.Error, IndexError):
            victim = chance.choice(self.workers())
            victim.kill()
            self.killed.add(victim.pid)
            return True
        return False

    def kill_the_command(self):
        """Kill the command; returns whether it still ran. Its workers must die with it, except jobs of Slurm, which go on."""
        ran, own = self.command.poll() is None, [] if self.engine == "slurm" else self.workers()
        self.command.kill()
        self.killed |= {self.command.pid, *(worker.pid for worker in own)} if ran else set()
        self.dying = own
        return ran

    def kill_the_other(self):
        ran = self.beside.poll() is None
        self.beside.kill()
        self.killed |= {self.beside.pid} if ran else set()
        return ran

    def end(self):
        """Wait for the two; returns their exit codes, negative if they were killed."""
        codes = [process.wait(120) for process in (self.command, self.beside) if process]
        until = time.monotonic() + (30 if self.engine == "ray" else 10)
        while self.engine != "slurm" and self.processes() and time.monotonic() < until:
            time.sleep(0.05)
        return codes

    def processes(self):
        """What should have ended."""
        own = [] if self.engine == "slurm" else marked(MARK, self.mark)  # jobs inherit the mark
        dying = [
            process for process in self.dying if alive(process)
        ]  # Ray renames an actor's process before it kills it
        return [*own, *dying, *filter(alive, actors()), *filter(alive, jobs(self.store))]

    def continued(self):
        """Run the same command to its end. Jobs of Slurm that go on are followed; other engines need no workers for the rest."""
        self.store.sweep()
        engine = component("engine", self.engine if self.engine == "slurm" else "inline")
        return engine.build(self.values if self.engine == "slurm" else {}).run(self.plan, self.store, Told())

    def cost(self, kills):
        begun = [line.split(" ", 1) for line in self.journal.read_text().splitlines()]
        labels = {task.label: task for task in self.plan.tasks.values()}
        makers = {
            task.label: self.store.manifest(task.stage, task.key)["host"]["process"]
            for task in self.plan.tasks.values()
            if self.store.has(task.stage, task.key)
        }
        last = {int(pid): label for pid, label in begun}
        in_hand = sum(pid in self.killed and makers[label] != pid for pid, label in last.items())
        repeated = sum(Counter(label for _, label in begun).values()) - len(labels)
        wrong = [
            task
            for n, task in self.plan.cells
            if not self.store.has(task.stage, task.key) or self._number(task) != n + 100
        ]
        half = list(self.store.verify())
        files = [path for part in PLACES for path in (self.store.root / part).glob("*")]
        left = len(files) + len(self.processes())
        return Cost(kills, len(labels), in_hand, repeated - in_hand, len(wrong) + len(half), left)

    def _number(self, task):
        return int((self.store.path(task.stage, task.key) / "n").read_text())


@pytest.mark.parametrize(("engine", "values"), [(name, name) for name in KILLS], indirect=["values"], ids=KILLS)
def test_kills_at_any_moment_cost_what_is_in_hand(engine, values, tmp_path, capsys):
    chance, costs, number = random.Random(f"{SEED} {engine}"), [], 0
    started = time.monotonic()
    warm = Round(tmp_path / "warm", engine, values, beside=False)
    begun = time.monotonic()
    assert warm.end() == [0]
    longest = time.monotonic() - begun
    while sum(cost.kills for cost in costs) < KILLS[engine]:
        number += 1
        assert number <= 2 * KILLS[engine], f"hardly any process still ran when it was killed: {costs}"
        beside = engine in ("inline", "local") and number % 2 == 0
        current = Round(tmp_path / str(number), engine, values, beside)
        time.sleep(chance.uniform(0, longest))
        survives = chance.random() < 0.5 and current.kill_a_worker(chance)
        kills = 1 if survives else int(current.kill_the_command())
        if beside and number % 4 == 0:
            kills += current.kill_the_other()
        codes = current.end()
        assert all(code in (0, -9) for code in codes) and (codes[0] == 0 or not survives), (
            "a run failed with its worker"
        )
        if engine != "slurm":
            assert current.processes() == [], "processes outlive their run"
        outcome = current.continued()
        assert not outcome.failed
        costs.append(current.cost(kills))
    total = Cost(*(sum(getattr(cost, name) for cost in costs) for name in Cost.__dataclass_fields__))
    with capsys.disabled():
        print(
            LINE(engine, total.kills, total.tasks, total.again, total.twice, total.lost, total.left, SEED)
            + f"   ({number} rounds, {time.monotonic() - started:.0f} s)"
        )
    assert (total.twice, total.lost, total.left) == (0, 0, 0)
