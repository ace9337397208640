"""Slurm: settings and scripts; and, on a real Slurm, jobs that are killed, preempted, cancelled or out of time."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
from counting_track import Told, grid, results

from command_line import CommandLine
from overpaint.errors import AssetMissing, UserError
from overpaint.grid.registry import component
from overpaint.run import plan as plans
from overpaint.run.engines import slurm
from overpaint.run.engines.slurm import minutes
from overpaint.run.estimates import Estimates
from overpaint.run.executor import Executor, Run
from overpaint.run.following import Follower
from overpaint.run.leases import Leases, held
from overpaint.run.plan import Line, Outline, Plan
from overpaint.run.runner import run_here
from overpaint.run.scheduler import TRIES
from overpaint.run.shared_run import SharedRun
from overpaint.run.store import Store
from overpaint.run.tasks import Task
from overpaint.run.track import track
from processes import jobs, marked
from small_grid import figures, one_thread

#: What a run leaves empty.
PLACES = ("tmp", "locks", "leases", "runs", "corrupt")

submitit = pytest.importorskip("submitit", reason="submitit is not installed: pip install 'overpaint[slurm]'")


@pytest.mark.parametrize(
    ("text", "expected"),
    [(90, 90), ("90", 90), ("5:30", 6), ("4:00:00", 240), ("1-12", 2160), ("1-12:30", 2190), ("2-00:00:30", 2881)],
)
def test_a_time_limit_is_what_slurm_writes(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["soon", "1:2:3:4", "-5", "0:00:00", ""])
def test_what_is_no_time_limit_is_refused(text):
    with pytest.raises(UserError, match=r"engine.time"):
        component("engine", "slurm").build({"time": text})


def test_a_dry_run_prints_the_script_and_submits_nothing(store, counting, capsys):
    values = {"partition": "gpu", "account": "lab", "memory": 32, "setup": ["module load cuda"], "dry_run": True}
    outcome = component("engine", "slurm").build(values).run(grid([1]), store, Told())
    script = capsys.readouterr().out
    for line in (
        "--partition=gpu", "--account=lab", "--time=240", "--mem=32GB", "--gpus-per-node=1", "--cpus-per-task=4",
        "--array=0-3%4", "--requeue", "--kill-on-invalid-dep=yes", "--signal=USR2@120",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in script
    assert re.search(r"^srun .*--cpus-per-task=4 ", script, re.MULTILINE)
    assert "export OMP_NUM_THREADS=4\n" in script and "\nmodule load cuda\n" in script
    assert outcome.elsewhere == "engine.dry_run=true: nothing was submitted"
    assert list(store.root.glob("runs/*")) == []


def test_further_options_of_sbatch(tmp_path):
    options = (
        '{qos: long, constraint: "a100|h100", gpus-per-node: "a100:1", exclusive: true, nice: 5, contiguous: false}'
    )
    engine = ("engine=slurm", "engine.dry_run=true", f"engine.sbatch={options}")
    script = CommandLine(tmp_path)("run", "experiment=smoke", *engine, "store=none").stdout
    for line in (
        "--qos=long",
        "--constraint='a100|h100'",
        "--gpus-per-node=a100:1",
        "--exclusive",
        "--nice=5",
        "--requeue",
    ):
        assert f"#SBATCH {line}\n" in script
    assert script.count("gpus-per-node") == 1 and "contiguous" not in script


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sbatch": {"time": "1:00"}}, "engine.sbatch cannot set time: give engine.time"),
        ({"sbatch": {"--ntasks_per_node": 2}}, "engine.sbatch cannot set ntasks-per-node: the array depends on it"),
        ({"sbatch": {"qos": ["long"]}}, r"sbatch.qos takes true or false or a whole number or a text, got \['long'\]"),
        (
            {"setup": ["#SBATCH --qos=long"]},
            "engine.setup takes shell lines, got '#SBATCH --qos=long': give options of sbatch",
        ),
    ],
)
def test_what_is_no_option_of_sbatch_is_refused(values, said):
    with pytest.raises(UserError, match=said):
        component("engine", "slurm").build(values)


def test_all_workers_of_a_large_array_run_at_once(store, counting, capsys):
    component("engine", "slurm").build({"workers": 1000, "dry_run": True}).run(grid([1]), store, Told())
    assert "#SBATCH --array=0-999%1000\n" in capsys.readouterr().out


def test_a_dry_run_leaves_nothing(tmp_path, monkeypatch):
    """The whole command, on a store that is there and on one that is not."""
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the command's handlers would stay in this process
    monkeypatch.delenv("OVERPAINT_STORE", raising=False)
    there = Store(tmp_path / "there")
    there.prepare()
    before = sorted(tmp_path.rglob("*"))
    cli = CommandLine(tmp_path)
    for name in ("there", "none"):
        done = cli("run", "experiment=smoke", "engine=slurm", "engine.dry_run=true", f"store={name}")
        assert "#SBATCH --requeue" in done.stdout and "nothing was submitted" in done.stderr
        assert sorted(tmp_path.rglob("*")) == before


def test_without_slurm_or_submitit_there_is_one_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="there is no sbatch on this machine; run the command where you submit jobs"):
        component("engine", "slurm").build({}).check(track("images"))
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(AssetMissing, match=r"engine=slurm needs the extra: pip install 'overpaint\[slurm\]'"):
        component("engine", "slurm").build({})


@pytest.fixture
def others(store, counting, monkeypatch):
    """A run of one job whose worker is at a task, seen by another user; with the job in the queue that Slurm shows."""
    asked, queue = [], ["77_0", "78"]

    def ask(*command):
        asked.append(command)
        return "\n".join(queue) if command[0] == "squeue" else "ClusterName             = main\n"

    monkeypatch.setattr(slurm, "_ask", ask)
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: None)
    plan = grid([1])
    batch = slurm.Batch(SharedRun.begin(plan, store, "slurm"), store)
    batch.submit(SimpleNamespace(submit=lambda shared, numbers: {0: "77_0"}, settings=build().settings), [0])
    Leases(store.root, batch.shared.id, "slurm 77_0").take(next(iter(plan.tasks)))
    monkeypatch.setattr(slurm, "_submitter", lambda: "another@main")
    return SimpleNamespace(plan=plan, store=store, shared=batch.shared, queue=queue, asked=asked)


def whole(others):
    """Whether a run has its folder and its lease, and no job was cancelled."""
    cancelled = any(command[0] == "scancel" for command in others.asked)
    return others.shared.jobs_file.exists() and len(held(others.store.root)) == 1 and not cancelled


def test_the_array_of_another_user_is_followed_if_slurm_shows_it(others):
    engine = component("engine", "slurm").build({})
    batch = engine._running(others.plan, others.store)
    assert batch.queued() == {"77_0"} and batch.shared == others.shared

    def interrupt(check):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine._follow(batch, SimpleNamespace(follow=interrupt), Told())
    others.queue.clear()
    follower = SimpleNamespace(look=lambda: 2, left=2)
    for _ in range(slurm.UNSEEN):
        batch.mend(engine, follower, Told())
    with pytest.raises(UserError, match="2 tasks are left and another user's 1 jobs in array 77 are gone"):
        batch.mend(engine, follower, Told())
    assert whole(others)


def test_an_array_is_followed_through_a_grid_that_is_planned_in_parts(others, monkeypatch):
    monkeypatch.setattr(plans, "HORIZON", 0)  # every cell is still a line when it is followed

    def expand(plan, cell):
        return plan.add(Task("measure", {"n": cell}))

    plan, outline = Plan("counting", expand=expand), Outline("digest", {}, {}, {}, {})
    for n in range(3):
        plan.add_line(Line(n, outline, None), "measure", n, f"measure {n}")
    engine = component("engine", "slurm").build({})
    monkeypatch.setattr(engine, "_running", lambda *_: slurm.Batch(others.shared, others.store))
    monkeypatch.setattr(engine, "_follow", lambda batch, follower, watcher: follower.left)
    assert engine.run(plan, others.store, Told()) == 3


def test_other_values_than_those_of_the_array_in_the_queue_are_refused(others, monkeypatch):
    monkeypatch.setattr(slurm, "_submitter", lambda: f"{os.getuid()}@main")
    assert "1 jobs in array 77" in build(detach=True).run(others.plan, others.store, Told()).elsewhere
    said = (
        r"1 jobs in array 77 are already in the queue with engine.workers=2, engine.time=10: .*`scancel 77` to submit"
    )
    with pytest.raises(UserError, match=said):
        build(workers=8, time="1:00:00", detach=True).run(others.plan, others.store, Told())
    assert whole(others)


def test_who_attaches_to_a_run_submits_its_lost_jobs_again(others, monkeypatch):
    submitted, follower = [], SimpleNamespace(look=lambda: 2, left=2)
    monkeypatch.setattr(slurm.Slurm, "submit", lambda engine, *_: submitted.append(engine) or {0: "79_0"})
    others.queue[:] = ["78"]
    slurm.Slurm.tend(others.shared, others.store, follower, Told())  # of another user
    monkeypatch.setattr(slurm, "_submitter", lambda: f"{os.getuid()}@main")
    watcher = Told()
    slurm.Slurm.tend(others.shared, others.store, follower, watcher)
    assert [engine.settings for engine in submitted] == [build().settings] and len(watcher.gone) == 1
    assert slurm.Batch(others.shared, others.store).jobs == {0: "79_0"}


def test_two_commands_that_follow_a_run_submit_a_lost_job_once(others, monkeypatch):
    monkeypatch.setattr(slurm, "_submitter", lambda: f"{os.getuid()}@main")
    engine, follower = (
        SimpleNamespace(submit=lambda *_: {0: "79_0"}, settings={}),
        SimpleNamespace(look=lambda: 2, left=2),
    )
    first, second = (slurm.Batch(others.shared, others.store) for _ in range(2))
    others.queue[:] = ["79_0"]
    first.mend(engine, follower, Told())
    second.mend(None, follower, Told())
    assert second.jobs == {0: "79_0"} and second.again == [0]


def test_the_array_of_another_user_that_slurm_hides_stays_as_it_is(others):
    others.queue.clear()
    engine = component("engine", "slurm").build({})
    assert engine._running(others.plan, others.store) is None
    assert engine.at_work(others.shared, others.store) and whole(others)


def test_an_array_of_the_same_user_that_is_gone_is_closed(others, monkeypatch):
    others.queue.remove("77_0")
    monkeypatch.setattr(slurm, "_submitter", lambda: f"{os.getuid()}@main")
    engine = component("engine", "slurm").build({})
    assert not engine.at_work(others.shared, others.store)
    assert engine._running(others.plan, others.store) is None
    assert left(others.store) == []


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_a_task_that_kills_its_process_is_recorded_before_the_array_is_used_up(store, counting, monkeypatch, workers):
    plan, queue = grid([1]), []
    monkeypatch.setattr(slurm, "_ask", lambda *command: "\n".join(queue) if command[0] == "squeue" else "")

    def submit(shared, numbers):
        names = {number: f"{77 + len(queue)}_{number}" for number in numbers}
        queue.extend(names.values())
        return names

    batch, engine = (
        slurm.Batch(SharedRun.begin(plan, store, "slurm"), store),
        SimpleNamespace(submit=submit, settings={}),
    )
    batch.submit(engine, range(workers))
    follower, task = Follower(plan, store, batch.shared.run, Told()), next(iter(plan.tasks.values()))
    for _ in range(TRIES):
        lease = Leases(store.root, batch.shared.id, f"slurm {queue[0]}").take(task.key)
        assert lease.tries <= TRIES
        (store.root / "leases" / f"{task.key}.json").write_text(json.dumps(asdict(lease) | {"owner": "elsewhere-1-1"}))
        del queue[0]
        batch = slurm.Batch(batch.shared, store)
        batch.mend(engine, follower, Told())
    executor = Executor(plan.track, store, "cpu", Told(), batch.shared.run, f"slurm {queue[0]}")
    assert executor.run_one([task]).status == "failed"
    assert "the 4 workers that tried it have died" in store.failure(task.key).reason


@pytest.mark.parametrize(("started", "failed"), [(200, True), (150, True), (40, False)])
def test_a_task_that_has_had_the_whole_time_of_its_job_is_recorded(store, counting, monkeypatch, started, failed):
    """The job may have spent most of its 180 seconds before its worker began."""
    monkeypatch.setenv("SLURM_JOB_START_TIME", str(int(time.time() - started)))
    plan = grid([1])
    executor = Executor(plan.track, store, "cpu", Told(), Run("run", {}), "slurm 77_0")
    crew = slurm.Timed(executor, plan, Estimates(store), 180)
    crew.give("", [next(iter(plan.tasks.values()))])
    crew.note_time_out()
    assert bool(store.failures()) == failed


def test_a_job_knows_when_it_began(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_START_TIME", raising=False)
    assert 0 < slurm._elapsed() < 3600
    monkeypatch.setenv("SLURM_JOB_START_TIME", str(int(time.time()) + 100))  # the controller's clock is ahead
    assert slurm._elapsed() == 0


def test_a_job_that_slurm_has_forgotten_is_gone(store, counting, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1\n")
    squeue.chmod(0o755)
    batch = slurm.Batch(SharedRun.begin(grid([1]), store, "slurm"), store)
    batch.jobs = {0: "77_0"}
    assert batch.queued() == set()
    squeue.write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    assert batch.queued() is None


@pytest.fixture
def engine(slurm_cluster, counting):
    """``engine(time=2)``: two jobs with a core each."""
    yield build
    assert queue() == ""


def build(**values):
    fixed = {"workers": 2, "gpus": 0, "cpus": 1, "partition": "main", "time": 10}
    return component("engine", "slurm").build(fixed | values)


def queue():
    return subprocess.run(["squeue", "-h", "-r"], capture_output=True, text=True, check=True).stdout


def left(store):
    return [path for part in PLACES for path in (store.root / part).glob("*")] + jobs(store)


@pytest.mark.slow
def test_jobs_share_the_tasks(engine, store, tmp_path):
    plan, watcher = grid(range(8), log=tmp_path / "log", pause=0.2), Told()
    outcome = engine().run(plan, store, watcher)
    assert outcome.done == len(plan.tasks) and not outcome.failed and results(plan, store) == list(range(100, 108))
    assert sorted((tmp_path / "log").read_text().splitlines()) == sorted(t.label for t in plan.tasks.values())
    assert sorted(watcher.done) == sorted(t.label for t in plan.tasks.values())
    makers = {store.manifest(task.stage, task.key)["host"]["process"] for task in plan.tasks.values()}
    assert len(makers) == 2 and left(store) == []
    assert engine().run(plan, store, Told()).done == 0


@pytest.mark.slow
def test_failures_are_told_and_tried_again(engine, store, tmp_path):
    (tmp_path / "trouble").touch()
    plan, watcher = grid(range(2), broken=tmp_path / "trouble"), Told()
    outcome = engine().run(plan, store, watcher)
    assert len(outcome.failed) == len(outcome.blocked) == 2 and outcome.done == 0
    assert all("ValueError: on purpose" in reason for reason in watcher.reasons) and left(store) == []
    (tmp_path / "trouble").unlink()
    assert engine().run(plan, store, Told()).done == 4 and store.failures() == {}


@pytest.mark.slow
def test_a_killed_worker_is_submitted_again(engine, store, tmp_path):
    plan = grid(range(6), log=tmp_path / "log", steps=10, pause=0.2)
    killed = []

    def kill():
        victim = next(p for p in jobs(store) if p.pid == int(held(store.root)[0].owner.split("-")[1]))
        victim.kill()
        killed.append(victim.pid)

    watcher = Told(at_first=kill)
    outcome = engine().run(plan, store, watcher)
    assert killed and len(watcher.gone) == 1 and not outcome.failed
    assert results(plan, store) == list(range(100, 106)) and left(store) == []
    assert len((tmp_path / "log").read_text().splitlines()) == len(plan.tasks) + 1, "one task was in hand"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["preempted", "requeued"])
def test_a_job_that_slurm_takes_away_comes_back(engine, store, tmp_path, how):
    plan = grid(range(6), log=tmp_path / "log", steps=10, pause=0.2)

    def take_away():
        if how == "preempted":
            command = ["sbatch", "--partition=urgent", "--cpus-per-task=3", "--output=/dev/null", "--wrap=sleep 1"]
        else:
            command = ["scontrol", "requeue", held(store.root)[0].worker.removeprefix("slurm ")]
        subprocess.run(command, check=True, capture_output=True)

    watcher = Told(at_first=take_away)
    outcome = engine().run(plan, store, watcher)
    assert not outcome.failed and watcher.gone == [] and results(plan, store) == list(range(100, 106))
    assert len(plan.tasks) < len((tmp_path / "log").read_text().splitlines()) <= len(plan.tasks) + 2
    assert left(store) == []


@pytest.mark.slow
def test_a_node_that_fails_costs_what_its_jobs_have_in_hand(slurm_nodes, counting, store, tmp_path):
    """Slurm runs its jobs again on the other node, where nobody can ask whether the first one's processes live."""
    plan = grid(range(8), log=tmp_path / "log", steps=10, pause=0.2)

    def fail():
        lost = [*marked("SLURMD_NODENAME", "node-2"), *daemons("slurmd", "-N node-2"), *daemons("slurmstepd", "node-2")]
        assert any("submitit" in " ".join(process.cmdline()) for process in lost)
        for process in lost:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    class Failing(Told):
        def finished(self, *args):
            super().finished(*args)
            if len(self.done) == 4:
                fail()

    watcher = Failing()
    outcome = build(workers=4).run(plan, store, watcher)
    assert not outcome.failed and results(plan, store) == list(range(100, 108))
    assert len(plan.tasks) < len((tmp_path / "log").read_text().splitlines()) <= len(plan.tasks) + 2
    assert left(store) == [] and queue() == ""


def daemons(name, argument):
    found = psutil.process_iter(["name", "cmdline"])
    return [p for p in found if p.info["name"] == name and argument in " ".join(p.info["cmdline"] or ())]


@pytest.mark.slow
def test_a_cancelled_array_is_one_sentence_and_the_same_command_continues(engine, store, tmp_path):
    plan = grid(range(6), log=tmp_path / "log", steps=10, pause=0.2)

    def cancel():
        subprocess.run(["scancel", "--me"], check=True)

    with pytest.raises(
        UserError, match=r"the array was cancelled with \d+ tasks left; run the same command to continue"
    ):
        engine().run(plan, store, Told(at_first=cancel))
    assert left(store) == [] and store.failures() == {}
    assert not engine().run(plan, store, Told()).failed and results(plan, store) == list(range(100, 106))


@pytest.mark.slow
def test_an_interruption_cancels_the_array(engine, store):
    def interrupt():
        raise KeyboardInterrupt

    plan = grid(range(6), steps=10, pause=0.2)
    with pytest.raises(KeyboardInterrupt):
        engine().run(plan, store, Told(at_first=interrupt))
    assert queue() == "" and left(store) == [] and store.failures() == {}


@pytest.mark.slow
def test_a_detached_run_is_picked_up_by_the_same_command(engine, store, tmp_path):
    plan = grid(range(6), log=tmp_path / "log", steps=5, pause=0.2)
    outcome = engine(detach=True).run(plan, store, Told())
    assert "2 jobs in array" in outcome.elsewhere and "overpaint attach" in outcome.elsewhere

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # which leaves a detached run alone
        engine().run(plan, store, Told(at_first=interrupt))
    assert queue() != ""
    outcome = engine().run(plan, store, Told())
    assert not outcome.failed and results(plan, store) == list(range(100, 106)) and left(store) == []
    assert len((tmp_path / "log").read_text().splitlines()) == len(plan.tasks)


@pytest.mark.slow
def test_a_job_stops_before_its_time_limit_and_goes_on_after_it(engine, store, tmp_path):
    """Of one minute, 20 seconds are sure: 12 tasks of 4 seconds need two times, and one of 50 seconds is given up."""
    plan = grid(range(12), log=tmp_path / "log", steps=8, pause=0.5)
    long = next(iter(plan.tasks.values()))
    object.__setattr__(long, "runtime", {**long.runtime, "steps": 100})
    for task in plan.tasks.values():
        if task.stage == "measure":
            object.__setattr__(task, "runtime", {})
    watcher = Told()
    outcome = engine(time=1, workers=2).run(plan, store, watcher)
    assert list(outcome.failed) == [long.key] and "it takes longer than the time limit of a job" in watcher.reasons[0]
    assert len(outcome.blocked) == 1 and watcher.gone == [] and left(store) == []
    log = (tmp_path / "log").read_text().splitlines()
    assert outcome.done == len(plan.tasks) - 2
    assert len(log) <= len(set(log)) + 2, "Slurm's notice came before the time that is sure"


@pytest.mark.slow
def test_a_full_disk_is_one_sentence(engine, store):
    with pytest.raises(UserError, match=f"cannot write to the store {store.root}: No space left on device"):
        engine().run(grid([1], full=True), store, Told())
    subprocess.run(["scancel", "--me"], check=True)
    assert store.failures() == {} and jobs(store) == []


@pytest.mark.slow
def test_the_figures_of_jobs_that_were_killed_and_requeued_equal_those_of_one_process(engine, tmp_path):
    """To the last digit. `overpaint attach` prints the table of the detached run."""
    with one_thread():
        alone = figures(tmp_path / "alone", lambda plan, store: run_here(plan, store, "cpu", Told()))

    def run(plan, store):
        def disturb():
            first, *others = held(store.root)
            psutil.Process(int(first.owner.split("-")[1])).kill()
            for lease in others:
                subprocess.run(["scontrol", "requeue", lease.worker.removeprefix("slurm ")], check=True)

        watcher = Told(at_first=disturb)
        outcome = engine().run(plan, store, watcher)
        assert len(watcher.gone) == 1 and left(store) == []
        return outcome

    pd.testing.assert_frame_equal(figures(tmp_path / "shared", run), alone, check_exact=True)


@pytest.mark.slow
def test_attach_prints_the_table_of_a_detached_run(engine, tmp_path):
    grid = ("experiment=smoke", "method=none", "attack=none", "protocol.steps=2", f"store={tmp_path / 'store'}")
    slurm = (
        "engine=slurm",
        "engine.workers=1",
        "engine.gpus=0",
        "engine.cpus=1",
        "engine.time=10",
        "engine.detach=true",
    )
    environment = {**os.environ, "OVERPAINT_STORE": ""}
    command = [sys.executable, "-m", "overpaint.cli"]
    done = subprocess.run([*command, "run", *grid, *slurm], env=environment, capture_output=True, text=True, check=True)
    assert "1 jobs in array" in done.stderr and done.stdout == ""
    done = subprocess.run([*command, "attach", grid[-1]], env=environment, capture_output=True, text=True, check=True)
    assert "(engine=slurm, begun on" in done.stderr and "efficacy" in done.stdout
    assert left(Store(tmp_path / "store")) == []
