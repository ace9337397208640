"""Leases: one holder at a time, taken over from the dead and the silent, whatever the clocks say."""

import errno
import io
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from overpaint.run import leases
from overpaint.run.leases import EXPIRY, Leases, clear, end, folder, held, read, sweep


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def elsewhere(monkeypatch):
    """``elsewhere(name)``: leases as of a process on another machine, of which this one knows nothing."""

    def process(root, name, **more):
        class Elsewhere(Leases):
            def take(self, key, label=""):
                with monkeypatch.context() as patch:
                    patch.setattr(leases, "owner", lambda: f"{name}-1-1")
                    return super().take(key, label)

            def release(self, key):
                with monkeypatch.context() as patch:
                    patch.setattr(leases, "owner", lambda: f"{name}-1-1")
                    super().release(key)

        return Elsewhere(root, **more)

    return process


def test_one_holds_it_and_the_next_after_its_release(tmp_path, elsewhere):
    mine, theirs = Leases(tmp_path, "run", "worker 1"), elsewhere(tmp_path, "other")
    with mine.holding("k", "task of k") as lease:
        assert theirs.take("k") is None
        (found,) = held(tmp_path)
        assert found == lease and (found.label, found.worker, found.run) == ("task of k", "worker 1", "run")
        assert found.alive and found.tries == 1
    assert held(tmp_path) == [] and theirs.take("k")


def test_a_beating_lease_is_kept_and_a_silent_one_is_taken_over(tmp_path, elsewhere):
    clock = Clock()
    mine, theirs = Leases(tmp_path, "run", clock=clock), elsewhere(tmp_path, "other", run="run")
    lease = theirs.take("k")
    for _ in range(3):
        assert mine.take("k") is None
        clock.now += EXPIRY * 0.9
        lease = theirs.renew(lease)
    assert mine.take("k") is None  # a new beat was seen just now
    clock.now += EXPIRY * 1.1
    taken = mine.take("k")
    assert taken and taken.tries == 2  # of the same run
    assert theirs.renew(lease) is None
    theirs.release("k")
    assert [found.owner for found in held(tmp_path)] == [taken.owner]


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_a_clock_that_jumps_takes_nothing_from_the_living(tmp_path, elsewhere, monkeypatch, jump):
    lease = elsewhere(tmp_path, "other").take("k")
    mine = Leases(tmp_path)
    assert mine.take("k") is None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump)
    assert mine.take("k") is None and lease.alive is None


def test_a_dead_process_of_this_machine_loses_its_lease_at_once(tmp_path):
    code = f"from overpaint.run.leases import Leases; print(Leases({str(tmp_path)!r}, 'run').take('k').owner)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (left,) = held(tmp_path)
    assert left.owner == done.stdout.strip() and left.alive is False
    assert Leases(tmp_path, "another run").take("k").tries == 1


def test_the_sweep_removes_the_dead_and_nothing_else(tmp_path, elsewhere, monkeypatch):
    elsewhere(tmp_path, "other").take("theirs")
    Leases(tmp_path).take("mine")
    (folder(tmp_path) / "half.json").write_text('{"key": ')
    dead = json.loads((folder(tmp_path) / "mine.json").read_text()) | {"key": "dead"}
    dead["owner"] = dead["owner"].rpartition("-")[0] + "-0"  # a process id that was used again
    (folder(tmp_path) / "dead.json").write_text(json.dumps(dead))
    sweep(tmp_path)
    assert sorted(path.stem for path in folder(tmp_path).iterdir()) == ["half", "mine", "theirs"]
    monkeypatch.setattr(leases, "ABANDONED", -1)
    sweep(tmp_path)
    assert [path.stem for path in folder(tmp_path).iterdir()] == ["mine"]


def test_of_many_that_want_it_one_gets_it(tmp_path, elsewhere):
    start = threading.Barrier(8)

    def want(number):
        start.wait()
        return Leases(tmp_path).take("k") is not None

    # one process, so that a lease that is there is its own: count the files that were created
    created, create = [], leases._create
    leases._create = lambda path: created.append(create(path)) or created[-1]
    try:
        with ThreadPoolExecutor(8) as pool:
            assert any(pool.map(want, range(8)))
    finally:
        leases._create = create
    assert len(created) == 1


def test_what_is_no_lease_is_ignored_and_expires(tmp_path):
    clock, place = Clock(), folder(tmp_path)
    place.mkdir()
    for text in ("", "[]", '{"key": 1}', "[" * 100_000):
        (place / "k.json").write_text(text)
        assert read(place / "k.json") is None and held(tmp_path) == []
        mine = Leases(tmp_path, clock=clock)
        assert mine.take("k") is None
        clock.now += EXPIRY + 1
        assert mine.take("k") and mine.release("k") is None
    assert list(place.iterdir()) == []


def test_a_run_clears_up_behind_its_lost_workers(tmp_path, elsewhere):
    for number in (1, 2):
        elsewhere(tmp_path, f"host{number}", run="run", worker=f"worker {number}").take(f"k{number}")
    elsewhere(tmp_path, "host3", run="other").take("k3")
    (tmp_path / "tmp" / "host1-1-1-abc").mkdir(parents=True)
    (tmp_path / "tmp" / "host2-1-1-abc").mkdir()
    clear(tmp_path, "run", "worker 1")
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == ["host2-1-1-abc"]
    assert {lease.key for lease in held(tmp_path)} == {"k2", "k3"}
    clear(tmp_path, "run")
    assert [lease.key for lease in held(tmp_path)] == ["k3"]


def test_a_lease_that_was_ended_is_taken_at_once_and_counts_the_tries(tmp_path, elsewhere, monkeypatch):
    for number in (1, 2):
        elsewhere(tmp_path, f"host{number}", run="run", worker=f"worker {number}").take(f"k{number}")
    (tmp_path / "tmp" / "host1-1-1-abc").mkdir(parents=True)
    end(tmp_path, "run", "worker 1")
    sweep(tmp_path)
    assert {lease.key: lease.alive for lease in held(tmp_path)} == {"k1": False, "k2": None}
    assert list((tmp_path / "tmp").iterdir()) == []
    again = Leases(tmp_path, "run").take("k1")
    assert again.tries == 2 and again.alive and read(folder(tmp_path) / "k1.json") == again
    assert Leases(tmp_path, "run").take("k2") is None
    end(tmp_path, "run", "")
    monkeypatch.setattr(leases, "ABANDONED", -1)
    sweep(tmp_path)
    assert held(tmp_path) == []


def test_where_leases_cannot_be_written_work_goes_on(tmp_path):
    (tmp_path / "leases").write_text("a file")
    with Leases(tmp_path).holding("k") as lease:
        assert lease


@pytest.mark.parametrize("failure", ["unreadable", "away"])
def test_a_lease_beats_on_after_its_file_could_not_be_read(tmp_path, failure):
    mine, file = Leases(tmp_path), folder(tmp_path) / "k.json"
    lease = mine.take("k")
    text = file.read_text()
    file.write_text("half") if failure == "unreadable" else file.unlink()
    assert mine.renew(lease) == lease and file.is_file() == (failure == "unreadable")
    file.write_text(text)
    assert mine.renew(lease).beats == read(file).beats == 1


def test_a_disk_that_fills_up_leaves_no_empty_lease(tmp_path, monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(leases, "_create", lambda path: path.touch() or Full())
    folder(tmp_path).mkdir()
    with Leases(tmp_path).holding("k") as lease:
        assert lease and list(folder(tmp_path).iterdir()) == []


def test_a_lease_beats_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "BEAT", 0.01)
    with Leases(tmp_path).holding("k") as lease:
        until = time.monotonic() + 10
        while (found := read(folder(tmp_path) / "k.json")) is None or found.beats < 3:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert lease.beats == 0 and found.beat > lease.beat and held(tmp_path) == []
