"""Estimates and progress display: measured and unknown times, and text that cannot harm a terminal."""

import errno
import io
import json
import os
import platform

import counting_track
import pytest
from rich.console import Console

from overpaint.commands.plan import summary
from overpaint.grid.labels import printable
from overpaint.run.display import Display
from overpaint.run.estimates import Estimate, Estimates, duration
from overpaint.run.runner import run_here
from overpaint.run.tasks import Task

HERE = platform.node()


def task(n=0, amount=10, like="uce", label="erase it"):
    return Task("erase", {"n": n}, label=label, amount=amount, like=like)


def test_nothing_is_guessed_that_no_machine_has_measured(store):
    assert str(Estimates(store).total([task()])) == "time not yet measured on this machine"


def test_a_machine_without_timings_uses_those_of_others_and_says_so(store):
    nodes = {f"node{n}, NVIDIA H100": {"erase/uce": unit} for n, unit in enumerate((1.0, 2.0, 9.0))}
    known = nodes | {"node4": {"erase/uce": 50.0, "erase/esd": 5.0}, "node5, NVIDIA T4": {"erase/sd": 8.0}}
    store.write(store.root / "timings.json", json.dumps(known))
    login = Estimates(store)
    assert login.total([task(like="uce", amount=1)]) == Estimate(2.0, 0, 1) and login.of(task(like="esd")) is None
    assert str(login.total([task(amount=30)])) == "about 1m 00s (1 kind of task measured on other machines)"
    assert Estimates(store, "cpu").of(task(amount=1)) == 50.0
    login.learn(task(like="sld", amount=1), 3.0, "NVIDIA T4")
    assert login.of(task(like="sd", amount=1)) == 8.0 and login.of(task(like="uce")) is None, "of the same hardware"
    login.learn(task(like="sd", amount=1), 4.0, "NVIDIA T4")
    assert login.of(task(like="sd", amount=1)) == 4.0, "its own"


def test_the_first_task_of_a_kind_is_measured_and_the_estimate_follows(store):
    estimates = Estimates(store)
    estimates.learn(task(), 20.0)
    assert estimates.total([task(amount=5)]) == Estimate(10.0, 0)
    estimates.learn(task(), 30.0)
    assert estimates.of(task(amount=1)) == pytest.approx(0.6 * 2 + 0.4 * 3)
    assert estimates.total([task(amount=10), task(like="esd"), task(1, like="esd")]) == Estimate(pytest.approx(24), 1)


def test_an_estimate_says_what_it_rests_on():
    assert str(Estimate(75, 0)) == "about 1m 15s"
    assert str(Estimate(75, 1)) == "at least 1m 15s (1 kind of task not yet measured on this machine)"
    assert str(Estimate(75, 2, 1)) == (
        "at least 1m 15s (2 kinds of task not yet measured on this machine, 1 kind of task measured on other machines)"
    )
    assert str(Estimate(0.4, 1)) == str(Estimate(0, 3)) == "time not yet measured on this machine"
    assert (duration(59.6), duration(3599), duration(7260)) == ("1m 00s", "59m 59s", "2h 01m")


def test_two_runs_and_two_machines_keep_each_others_timings(store):
    path = store.root / "timings.json"
    store.write(path, json.dumps({"another machine": {"erase/uce": 2.0}, "erase/old layout": 3.0}))
    one, other = Estimates(store), Estimates(store)
    one.learn(task(like="uce"), 10)
    other.learn(task(like="esd"), 20)
    one.save(), other.save()
    assert json.loads(path.read_text()) == {
        "another machine": {"erase/uce": 2.0},
        HERE: {"erase/uce": 1.0, "erase/esd": 2.0},
    }


def test_each_hardware_of_a_machine_has_timings_of_its_own(store):
    path = store.root / "timings.json"
    store.write(path, json.dumps({HERE: {"erase/uce": 2.0}}))  # as it was written before hardware was kept: the CPU's
    first = Estimates(store)
    assert first.of(task(amount=1)) == 2.0
    first.learn(task(), 1.0, "NVIDIA H100")
    assert first.of(task(amount=1)) == 0.1, "the hardware that works is the one that counts"
    first.learn(task(like="esd"), 5.0, "NVIDIA T4")
    first.learn(task(like="esd"), 30.0, "cpu")
    first.save()
    assert json.loads(path.read_text()) == {
        HERE: {"erase/uce": 2.0, "erase/esd": 3.0},
        f"{HERE}, NVIDIA H100": {"erase/uce": 0.1},
        f"{HERE}, NVIDIA T4": {"erase/esd": 0.5},
    }
    assert Estimates(store, "auto").of(task(amount=1)) == Estimates(store, "cuda:1").of(task(amount=1)) == 0.1
    assert Estimates(store, "cpu").of(task(amount=1)) == 2.0
    path.write_text(json.dumps({f"{HERE}2, NVIDIA H100": {"erase/uce": 9.0}, HERE: {"erase/uce": 2.0}}))
    assert Estimates(store, "auto").of(task(amount=1)) == 2.0, "the GPU of another machine"


def test_a_run_says_on_which_hardware_a_task_was_made(store, counting, monkeypatch):
    monkeypatch.setattr(counting_track.Counting, "hardware", lambda self, device: "abacus")
    plan = counting_track.grid([1])
    with Display(plan.tasks.values(), Estimates(store), Console(file=io.StringIO())) as shown:
        run_here(plan, store, "cpu", shown)
    assert list(json.loads((store.root / "timings.json").read_text())) == [f"{HERE}, abacus"]
    key = next(iter(plan.tasks))
    assert store.manifest("count", key)["host"]["processor"] == "cpu (abacus)"


@pytest.mark.parametrize(
    "workers, said",
    [(1, "about 1m 20s"), ("auto", "about 1m 20s with 1 worker"), (2, "about 40s with 2 workers")],
)
def test_a_plan_divides_its_time_among_the_workers(store, counting, workers, said):
    plan, estimates = counting_track.grid(range(4)), Estimates(store)
    for one in list(plan.tasks.values())[:2]:
        estimates.learn(one, 10.0)
    assert summary(plan, list(plan.tasks.values()), {}, estimates, workers).endswith(f", {said}")


def test_timings_survive_a_full_disk_and_nonsense(store, monkeypatch):
    path = store.root / "timings.json"
    estimates = Estimates(store)
    estimates.learn(task(), 10)
    estimates.save()
    whole = path.read_text()
    estimates.learn(task(like="esd"), 10)
    with monkeypatch.context() as patch:

        def full(_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr("os.fsync", full)
        estimates.save()
    assert path.read_text() == whole
    for nonsense in ("", "[]", '{"a": 3}', f'{{"{HERE}": {{"erase/uce": "soon"}}}}'):
        path.write_text(nonsense)
        assert Estimates(store).of(task()) is None


def display(store, *tasks, terminal=False):
    out = io.StringIO()
    return Display(tasks, Estimates(store), Console(file=out, force_terminal=terminal, width=200)), out


@pytest.mark.parametrize("terminal", [False, True])
def test_names_are_shown_as_they_are(store, terminal):
    hostile = task(label="erase [/x] [v] dog [red]x :smile: \x1b]0;title\x07\x1b[2J\u202etxt")
    shown, out = display(store, hostile, terminal=terminal)
    with shown:
        shown.started(hostile)
        shown.stepped(hostile, 1, 2, "[/steps]\x1b[2J")
        shown.bars.refresh()
        shown.noted(hostile, "[/note]\x1b[2J")
        shown.failed(hostile, "[bold]reason\r\x07")
    text = out.getvalue()
    assert "erase [/x] [v] dog [red]x :smile:  ]0;title  [2Jtxt: [/note]" in text and "[bold]reason" in text
    assert "\x1b[2J" not in text and "\x1b]0" not in text and "\x07" not in text and "\u202e" not in text


def test_lines_count_what_is_done_and_say_what_is_left(store):
    tasks = [task(n) for n in range(3)]
    shown, out = display(store, *tasks)
    with shown:
        shown.started(tasks[0])
        shown.finished(tasks[0], 20.0, "cpu")
        shown.shared(tasks[1])  # by another process
        shown.started(tasks[2])
        shown.finished(tasks[2], 30.0, "cpu")
    assert out.getvalue().splitlines() == [
        "[1/3, left: about 40s] erase it: 20.0s",
        "[3/3, left: about 0s] erase it: 30.0s",
    ]


def test_the_estimate_is_shared_by_the_workers(store):
    tasks = [task(n) for n in range(4)]
    shown, out = display(store, *tasks)
    with shown:
        shown.started(tasks[0])
        shown.started(tasks[1])
        shown.finished(tasks[0], 20.0, "cpu")  # its worker has not begun the next one yet
    assert out.getvalue().splitlines() == ["[1/4, left: about 30s] erase it: 20.0s"]


def test_events_of_tasks_that_are_not_shown_are_no_crash(store):
    shown, _ = display(store, task(0))
    with shown:
        for event in (shown.shared, lambda t: shown.stepped(t, 1, 2, "steps"), lambda t: shown.failed(t, "no")):
            event(task(1))
            event(task(0))
        shown.finished(task(1), 1.0, "cpu")
        shown.started(task(1))
    assert shown.done == 1 and shown.count == 2


def test_printable_keeps_letters():
    assert printable("café Ω 日本 👩‍🎨 `[x]`") == "café Ω 日本 👩‍🎨 `[x]`"
    assert printable("a\tb\nc\x00d\u2028e\u2066f") == "a b c d ef"


def test_an_interruption_that_was_swallowed_ends_the_run_at_the_next_step(store):
    asked, one = [], task()
    with Display([one], Estimates(store), Console(file=io.StringIO()), lambda: bool(asked)) as display:
        display.started(one)
        asked.append(True)
        with pytest.raises(KeyboardInterrupt):
            display.stepped(one, 1, 2, "steps")
        with pytest.raises(KeyboardInterrupt):
            display.started(one)
