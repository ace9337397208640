"""Worker processes: one or all may die, none outlives its run, and images equal those of a single process."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import counting_track
import pandas as pd
import psutil
import pytest
from counting_track import Told, grid, results

from overpaint.errors import UserError
from overpaint.grid.registry import component
from overpaint.run import worker
from overpaint.run.engines import local
from overpaint.run.engines.local import Local, Messenger
from overpaint.run.executor import Executor, Run
from overpaint.run.runner import run_here
from overpaint.run.scheduler import TRIES
from overpaint.run.tasks import Task
from overpaint.run.track import track
from processes import IMPORTED, dead_within, workers
from small_grid import figures

ROOT = Path(__file__).resolve().parents[2]


def two():
    return Local(workers=2, device="cpu")


@pytest.mark.usefixtures("counting")
def test_the_others_take_over_from_a_worker_that_is_killed(store):
    plan = grid(range(8), pause=0.05)
    watcher = Told(at_first=lambda: os.kill(workers()[0].pid, signal.SIGKILL))
    outcome = two().run(plan, store, watcher)
    assert watcher.gone == ["signal 9"] and not outcome.failed and watcher.reasons == []
    assert results(plan, store) == list(range(100, 108))
    assert [*(store.root / "tmp").iterdir(), *(store.root / "locks").iterdir()] == []


@pytest.mark.usefixtures("counting")
def test_workers_that_are_killed_are_replaced(store):
    def kill():
        for process in workers():
            process.kill()

    plan, watcher = grid(range(8), pause=0.05), Told(at_first=kill)
    assert not two().run(plan, store, watcher).failed
    assert watcher.gone == ["signal 9"] * 2 and results(plan, store) == list(range(100, 108))
    assert store.failures() == {} and workers() == []


@pytest.mark.usefixtures("counting")
def test_a_task_that_kills_its_process_fails_and_the_rest_goes_on(store):
    plan, watcher = grid(range(4)), Told()
    deadly, _, *others = plan.tasks.values()
    object.__setattr__(deadly, "runtime", {"deadly": True})
    outcome = two().run(plan, store, watcher)
    assert watcher.gone == ["signal 9"] * TRIES
    assert list(outcome.failed) == [deadly.key] and len(outcome.blocked) == 1 and outcome.done == len(others)
    assert store.failure(deadly.key).task == "count 0"
    assert "the 4 workers that tried it have died" in store.failure(deadly.key).reason
    assert workers() == [] and list((store.root / "leases").iterdir()) == []


@pytest.mark.usefixtures("counting")
def test_workers_that_die_as_they_start_end_the_run_and_blame_no_task(store, monkeypatch):
    monkeypatch.setenv(counting_track.DYING, "1")
    watcher = Told()
    with pytest.raises(UserError, match="16 tasks are left and all 2 workers are gone"):
        two().run(grid(range(8)), store, watcher)
    assert watcher.gone == ["exit code 7"] * 2 * (1 + worker.FALSE_STARTS)
    assert store.failures() == {} and workers() == []


@pytest.mark.usefixtures("counting")
def test_an_error_that_breaks_the_device_fails_no_other_task(store, monkeypatch, tmp_path):
    """Its worker is replaced each time. In the end, the task has failed."""
    monkeypatch.setenv(counting_track.BREAKING, str(tmp_path / "whole"))
    (tmp_path / "trouble").touch()
    plan, watcher = grid(range(4)), Told()
    breaking, _, *others = plan.tasks.values()
    object.__setattr__(breaking, "runtime", {"broken": str(tmp_path / "trouble")})
    outcome = two().run(plan, store, watcher)
    assert list(outcome.failed) == [breaking.key] and outcome.done == len(others)
    assert watcher.gone == ["exit code 1"] * TRIES
    assert watcher.notes == ["cpu cannot be used by this process any more: ValueError: on purpose"] * TRIES
    with pytest.raises(
        UserError, match=r"^count 0: cpu cannot be used by this process any more: ValueError: on purpose; run"
    ):
        run_here(plan, store, "cpu", Told())


@pytest.mark.usefixtures("counting")
def test_the_others_go_on_without_a_worker_that_cannot_start(store, monkeypatch, tmp_path):
    (tmp_path / "broken").mkdir()
    monkeypatch.setenv(counting_track.UNFIT, str(tmp_path / "broken"))
    plan, watcher = grid(range(4)), Told()
    assert not two().run(plan, store, watcher).failed and results(plan, store) == [100, 101, 102, 103]
    assert watcher.gone == ["the GPU is broken"] and store.failures() == {} and workers() == []


@pytest.mark.usefixtures("counting")
def test_a_run_without_a_worker_that_can_start_is_one_sentence(store, monkeypatch):
    def broken(self, asked):
        if asked == "cpu":
            return ["cuda:2", "cuda:3"]
        raise UserError(f"engine.device={asked} is not a device of this machine")

    monkeypatch.setattr(counting_track.Counting, "devices", broken)
    monkeypatch.setattr(local, "START", "fork")  # so that workers have this track
    watcher = Told()
    with pytest.raises(UserError, match=r"^engine.device=cuda:[23] is not a device of this machine$"):
        two().run(grid(range(4)), store, watcher)
    assert len(watcher.gone) == 1 and store.failures() == {} and workers() == []


@pytest.mark.usefixtures("counting")
def test_a_worker_tells_of_a_task_that_the_plan_has_forgotten(store):
    """Another run has stored the cell's records meanwhile (`Plan.advance`)."""
    plan = grid([1], steps=4, pause=0.3)
    plan.cells.append((2, plan.add(Task("count", {"n": 2}))))
    first = next(iter(plan.tasks))
    watcher = Told(at_first=lambda: plan.tasks.pop(first))
    assert not two().run(plan, store, watcher).failed
    assert "count 1" in watcher.done


@pytest.mark.usefixtures("counting")
def test_one_worker_works_in_this_process(store):
    begun = []
    Local(workers=1, device="cpu").run(grid([1]), store, Told(at_first=lambda: begun.append(workers())))
    assert begun == [[]]


@pytest.mark.usefixtures("counting")
def test_work_is_dealt_out_to_all_workers(store):
    plan = grid(range(8), pause=0.05)
    two().run(plan, store, Told())
    makers = {store.manifest(task.stage, task.key)["host"]["process"] for task in plan.tasks.values()}
    assert len(makers) == 2 and os.getpid() not in makers


@pytest.mark.usefixtures("counting")
def test_workers_leave_an_interruption_to_their_run(store):
    plan = grid(range(4), pause=0.05)
    watcher = Told(at_first=lambda: [os.kill(process.pid, signal.SIGINT) for process in workers()])
    assert not two().run(plan, store, watcher).failed
    assert watcher.gone == [] and results(plan, store) == list(range(100, 104))


def test_an_interruption_while_workers_start_ends_the_run_at_once(store, tmp_path):
    (tmp_path / "slow_module.py").write_text("import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(60)\n")
    code = (
        "import counting_track; counting_track.Counting.slow_modules = ('slow_module',)\n"
        f"counting_track.main({str(store.root)!r}, 'local', 4, 0.01)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([IMPORTED, str(tmp_path)])}
    run = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=tmp_path, start_new_session=True)
    until = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < until:
        time.sleep(0.05)
    started = psutil.Process(run.pid).children(recursive=True)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(20) == -signal.SIGINT  # a shell's 130
    assert started and dead_within(2, started)
    assert store.failures() == {} and list((store.root / "tmp").iterdir()) == []


def test_workers_die_with_a_killed_run_and_blame_no_task(store):
    arguments = (str(store.root), "local", 4, 30.0)
    code = f"import counting_track; counting_track.main(*{arguments})"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    run = subprocess.Popen([sys.executable, "-c", code], env=environment)
    until = time.monotonic() + 60
    while len(list((store.root / "tmp").iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    orphans = workers(run.pid)
    run.kill()
    run.wait()
    assert len(orphans) == 2
    assert dead_within(2, orphans)
    assert store.failures() == {}
    store.sweep()
    assert [*(store.root / "tmp").iterdir(), *(store.root / "locks").iterdir()] == []


def test_a_worker_that_cannot_ask_its_system_notices_by_itself_that_the_run_is_gone():
    code = (
        "import multiprocessing, time\n"
        "from overpaint.run.engines import local\n"
        "child = multiprocessing.get_context('spawn').Process(target=local._wait_for_the_run)\n"
        "child.start()\nprint(child.pid, flush=True)\ntime.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(run.stdout.readline()))
    time.sleep(0.5)
    assert child.is_running()
    run.kill()
    run.wait()
    assert dead_within(10, [child])


@pytest.mark.usefixtures("counting")
def test_a_pipe_without_a_run_at_its_other_end_is_no_failure_of_the_task(store):
    here, there = multiprocessing.Pipe()
    here.close()
    plan = grid([1])
    with pytest.raises(SystemExit):
        Executor(plan.track, store, "cpu", Messenger(there), Run.begin(store)).run_one(
            [next(iter(plan.tasks.values()))]
        )
    assert store.failures() == {} and list((store.root / "tmp").iterdir()) == []


def test_workers_are_as_many_as_there_are_devices(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(12)))
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    images = track("images")
    assert Local(workers="auto", device="cpu").places(images) == (["cpu"] * 6, 6)
    assert Local(workers=3, device="cpu").places(images) == (["cpu"] * 3, 6)
    monkeypatch.setattr(type(images), "devices", lambda self, asked: ["cuda:0", "cuda:1"])
    assert Local(workers="auto", device="auto").places(images)[0] == ["cuda:0", "cuda:1"]
    assert Local(workers=3, device="auto").places(images)[0] == ["cuda:0", "cuda:1", "cuda:0"]


def test_no_workers_are_refused():
    with pytest.raises(UserError, match=r"engine.workers takes auto or a number from 1 up, got 0"):
        component("engine", "local").build({"workers": 0})


#: Sums round differently with one and with two threads. KID of four images is affected most.
ROUNDING = 1e-2


def test_workers_share_slow_imports_that_have_touched_no_gpu_and_started_no_thread():
    """The only thread beside the main one is that of pyarrow's jemalloc, which is made for forks."""
    modules = track("images").slow_modules
    code = (
        "import multiprocessing, os, sys\n"
        "def look(pipe):\n"
        "    import torch\n"
        "    pipe.send(('overpaint.models.diffusion' in ready, torch.cuda.is_initialized(),\n"
        "        torch.cuda._is_in_bad_fork(), threads(os.getppid())))\n"
        "def threads(pid):\n"
        "    names = [open(f'/proc/{pid}/task/{t}/comm').read().strip() for t in os.listdir(f'/proc/{pid}/task')]\n"
        "    return len([name for name in names if name != 'jemalloc_bg_thd'])\n"
        "ready = set(sys.modules)\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('forkserver')\n"
        f"    context.set_forkserver_preload({list(modules)})\n"
        "    here, there = context.Pipe()\n"
        "    context.Process(target=look, args=(there,)).start()\n"
        "    print(here.recv())\n"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(code)
        script.flush()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **worker.environment(1)}
        done = subprocess.run(
            [sys.executable, script.name], env=environment, capture_output=True, text=True, check=True
        )
    assert done.stdout.strip() == "(True, False, False, 1)"


def test_slow_imports_do_not_initialise_a_gpu():
    """CUDA that is initialised does not survive a fork. torch without CUDA must not even be asked if there is a GPU."""
    code = (
        "import torch\n"
        "asked = []\n"
        "names = [(torch.cuda, '_lazy_init'), (torch.cuda, 'get_device_capability'), (torch.cuda, 'get_device_properties')]\n"
        "if torch.cuda._is_compiled():\n"
        "    torch.cuda._device_count_nvml = lambda: 1\n"
        "    names += [(torch._C, '_cuda_getDeviceCount'), (torch._C, '_cuda_init')]\n"
        "else:\n"
        "    names += [(torch.cuda, 'is_available'), (torch.cuda, 'device_count')]\n"
        "for place, name in names:\n"
        "    setattr(place, name, lambda *_, name=name: asked.append(name) or 1)\n"
        f"for module in {list(track('images').slow_modules)}:\n"
        "    __import__(module)\n"
        "print(asked)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **worker.environment(1)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_on_pictures_workers_make_what_one_process_makes(tmp_path):
    alone = figures(tmp_path / "alone", lambda plan, store: run_here(plan, store, "cpu", Told()))
    shared = figures(tmp_path / "shared", lambda plan, store: two().run(plan, store, Told()))
    pd.testing.assert_frame_equal(shared, alone, rtol=ROUNDING)


def test_the_counting_track_is_as_foreign_as_it_looks(counting):
    """Workers find it only through the folders that this process searches."""
    assert component("track", "counting").load() is counting_track.Counting
