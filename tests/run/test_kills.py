"""Fifty runs that are killed at random moments, each with a second run on the same store, which is sometimes killed too."""

import os
import random
import signal
import time

import psutil
import pytest
from counting_track import Told, grid, results

from overpaint.grid.registry import component
from overpaint.run.runner import run_here

ROUNDS = 25  # for each engine
NUMBERS = range(6)
#: Folders of a store that are empty after a run that was not interrupted.
PLACES = ("tmp", "locks", "leases", "runs", "failures", "corrupt")
MARK = "OVERPAINT_TEST_ROUND"


def begin(run, mark):
    """Fork a process that calls ``run`` and exits with 1 if a task failed. Its children carry the mark."""
    pid = os.fork()
    if not pid:
        code = 2
        try:
            os.environ[MARK] = mark
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            code = bool(run().failed)
        finally:
            os._exit(code)
    return pid


def marked(mark):
    """Processes of a killed run that are still running."""
    found = []
    for process in psutil.process_iter():
        try:
            dead = process.status() == psutil.STATUS_ZOMBIE and process.num_threads() < 2
            if process.environ().get(MARK) == mark and not dead:
                found.append(process)
        except psutil.Error:
            continue
    return found


def workers(pid):
    """The worker processes of a run: children of its fork server."""
    found = []
    for child in psutil.Process(pid).children():
        try:
            found += child.children() if "forkserver" in " ".join(child.cmdline()) else []
        except psutil.Error:  # it has just ended
            continue
    return found


def kill(pid, chance):
    """Kill the run. If it has workers, kill one of them instead half of the time."""
    several = workers(pid)
    victim = chance.choice(several) if several and chance.random() < 0.5 else psutil.Process(pid)
    victim.kill()
    return victim.pid


@pytest.mark.parametrize(("name", "values"), [("inline", {}), ("local", {"workers": 2})])
def test_a_kill_at_any_moment_costs_nothing_but_time(name, values, store, counting, tmp_path):
    chance, caught = random.Random(len(name)), 0
    engine = component("engine", name).build(values)
    started = time.monotonic()
    os.waitpid(begin(lambda: engine.run(grid(NUMBERS, steps=2, pause=0.01), store, Told()), ""), 0)
    longest = time.monotonic() - started  # how long a run takes on this machine
    for number in range(ROUNDS):
        store.root = tmp_path / str(number)
        store.prepare()
        plan, mark = grid(NUMBERS, steps=2, pause=0.01), f"{os.getpid()}-{name}-{number}"
        first = begin(lambda: engine.run(plan, store, Told()), mark)  # noqa: B023
        second = begin(lambda: run_here(plan, store, "cpu", Told()), "")  # noqa: B023
        time.sleep(chance.uniform(0, longest))
        killed, both = kill(first, chance), number % 3 == 0
        if both:
            os.kill(second, signal.SIGKILL)
        _, beside = os.waitpid(second, 0)
        _, status = os.waitpid(first, 0)
        caught += os.WIFSIGNALED(status) or killed != first  # it still ran, or had workers, when it was killed
        assert both or beside == 0, "the run beside it failed"
        assert killed == first or status == 0, "the run failed with its worker"
        gone_by = time.monotonic() + 2
        while (orphans := marked(mark)) and time.monotonic() < gone_by:
            time.sleep(0.05)
        assert orphans == [] and store.failures() == {}
        store.sweep()
        outcome = run_here(plan, store, "cpu", Told())
        assert not outcome.failed and (both or outcome.done == 0)
        assert results(plan, store) == [n + 100 for n in NUMBERS]
        left = [path for part in PLACES for path in (store.root / part).glob("*")]
        assert left == []
    assert caught > ROUNDS / 5, "hardly any run was still at work when it was killed"
