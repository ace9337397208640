"""The store: complete artefacts, detection of damage, one process per key, and removal of dead processes' folders."""

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from overpaint.errors import UserError
from overpaint.run.history import History
from overpaint.run.notes import ABANDONED, NOTE, Note, notes, noting
from overpaint.run.owner import alive, owner
from overpaint.run.store import MANIFEST, CorruptArtefact, Store
from overpaint.run.tasks import Task, canonical


def put(store, key="k", text="hello"):
    with store.workspace() as folder:
        (folder / "data.txt").write_text(text)
        store.publish("score", key, folder, {"label": "x"})


def data(store, key="k"):
    return store.path("score", key) / "data.txt"


def leftovers(store):
    return list((store.root / "tmp").iterdir())


@pytest.fixture
def large(monkeypatch):
    """Every file counts as large."""
    monkeypatch.setattr("overpaint.run.store.SMALL", -1)


def test_a_published_artefact_is_read_back_whole(store):
    assert not store.has("score", "k")
    put(store)
    assert store.has("score", "k")
    assert (store.read("score", "k") / "data.txt").read_text() == "hello"
    assert store.manifest("score", "k")["files"]["data.txt"]["bytes"] == 5
    assert leftovers(store) == []


def test_everybody_who_can_read_the_manifest_can_read_the_files(store):
    with store.workspace() as folder:
        (folder / "erasure.safetensors").touch(mode=0o600)  # as safetensors writes it
        store.publish("erase", "k", folder, {"label": "x"})
    place = store.path("erase", "k")
    assert (place / "erasure.safetensors").stat().st_mode == (place / MANIFEST).stat().st_mode


def test_an_interrupted_write_leaves_nothing(store):
    with pytest.raises(RuntimeError), store.workspace() as folder:
        (folder / "data.txt").write_text("half")
        raise RuntimeError
    assert not store.has("score", "k") and leftovers(store) == []


def test_the_loser_of_a_race_keeps_the_first_artefact(store):
    put(store, text="first")
    put(store, text="second")
    assert (store.read("score", "k") / "data.txt").read_text() == "first"


def test_a_folder_without_a_manifest_is_set_aside_and_replaced(store):
    data(store).parent.mkdir(parents=True)
    data(store).write_text("an interrupted copy")
    put(store)
    assert data(store).read_text() == "hello"
    assert (store.root / "corrupt" / "score-k" / "data.txt").read_text() == "an interrupted copy"


@pytest.mark.parametrize("order", [1, -1])
def test_a_copy_that_stops_anywhere_is_not_whole(store, tmp_path, order):
    """Copy an artefact, with the manifest last or first, and stop after every possible number of bytes."""
    with store.workspace() as folder:
        (folder / "a.txt").write_text("hello")
        (folder / "z.txt").write_text("world")
        store.publish("score", "k", folder, {})
    source = store.path("score", "k")
    files = sorted(source.iterdir(), key=lambda path: path.name == MANIFEST)[::order]
    whole = sum(path.stat().st_size for path in files)
    for number, stop in enumerate(range(whole + 1)):
        target, left = Store(tmp_path / f"copy{number}").path("score", "k"), stop
        target.mkdir(parents=True)
        for path in files:
            content = path.read_bytes()[:left]
            (target / path.name).write_bytes(content)
            left -= len(content)
            if left <= 0:
                break
        copied = {path.name: path.read_bytes() for path in target.iterdir()}
        complete = copied == {path.name: path.read_bytes() for path in files}
        assert Store(tmp_path / f"copy{number}").has("score", "k") == complete


def test_a_changed_byte_of_a_small_file_is_found_on_reading_and_stays(store):
    put(store)
    data(store).write_text("hellO")
    assert store.has("score", "k")  # the size is right
    with pytest.raises(CorruptArtefact, match=r"score/k is damaged \(data.txt does not match its hash\)") as caught:
        store.read("score", "k")
    assert data(store).read_text() == "hellO"
    store.make_room(caught.value)
    assert not store.has("score", "k")
    assert (store.root / "corrupt" / "score-k" / "data.txt").read_text() == "hellO"


def test_a_large_file_is_hashed_only_on_suspicion(store, large, monkeypatch):
    put(store)
    data(store).write_text("hellO")
    with monkeypatch.context() as patch:
        patch.setattr("overpaint.run.store.file_hash", None)
        assert store.read("score", "k") == store.path("score", "k")
        with store.reading("score", "k"):
            pass
    with pytest.raises(CorruptArtefact, match=r"data.txt does not match its hash"), store.reading("score", "k"):
        raise ValueError("cannot parse this")


def test_whole_files_that_cannot_be_parsed_are_damage(store):
    put(store)
    with pytest.raises(CorruptArtefact, match=r"ValueError: cannot parse this"), store.reading("score", "k"):
        raise ValueError("cannot parse this\nor that")


def test_an_error_of_a_reader_stays_where_the_files_are_whole(store, large):
    put(store)
    with pytest.raises(ZeroDivisionError), store.reading("score", "k"):
        1 / 0  # noqa: B018
    assert store.has("score", "k")


def test_verify_names_every_damaged_artefact_and_moves_none(store):
    for key in "abcde":
        put(store, key)
    data(store, "b").write_text("hellO")
    data(store, "c").write_text("he")
    data(store, "d").unlink()
    (store.path("score", "e") / MANIFEST).unlink()
    reasons = {
        "b": "data.txt does not match its hash",
        "c": "data.txt has 2 of 5 bytes",
        "d": "data.txt is missing",
        "e": "manifest.json is missing",
    }
    assert {d.key: d.reason for d in store.verify()} == reasons
    assert {d.key: d.reason for d in store.verify("score")} == reasons
    assert not list(store.verify("images"))
    assert [key for key in "abcde" if store.has("score", key)] == ["a", "b"]
    assert list((store.root / "corrupt").iterdir()) == []


def test_damage_in_a_store_that_cannot_be_written_to_is_one_sentence(store, monkeypatch):
    put(store)
    data(store).write_text("he")

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("pathlib.Path.rename", refuse)
    assert not store.has("score", "k")
    with pytest.raises(CorruptArtefact, match=r"data.txt has 2 of 5 bytes") as caught:
        store.read("score", "k")
    with pytest.raises(UserError, match=r"data.txt has 2 of 5 bytes.*the store cannot be written to"):
        store.make_room(caught.value)


def test_without_flock_everybody_gets_the_claim_and_nothing_stays_behind(store, monkeypatch):
    """A file in the place of a lock would outlive the process of a killed worker."""

    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    with store.claim("k") as first, store.claim("k") as second:
        assert first and second
    History(store).add({"method=mine": "source"})
    assert History(store).of("method=mine") == ["source"]
    assert list((store.root / "locks").iterdir()) == []


def test_only_one_process_gets_a_claim(store):
    with store.claim("k") as mine:
        assert mine
        queue = multiprocessing.get_context("fork").Queue()

        def ask(root):
            with Store(root).claim("k") as also:
                queue.put(also)

        process = multiprocessing.get_context("fork").Process(target=ask, args=(store.root,))
        process.start()
        assert queue.get(timeout=10) is False
        process.join()
    with store.claim("k") as mine:
        assert mine
    assert list((store.root / "locks").iterdir()) == []


def test_failures_count_attempts_until_the_task_succeeds(store):
    assert store.failure("k") is None and store.failures() == {}
    store.record_failure("k", "score it", "run 1", "Traceback …")
    path = store.record_failure("k", "score it", "run 2", "Traceback …")
    assert store.failure("k").mark == ("run 2", 2) and list(store.failures()) == ["k"]
    assert json.loads(path.read_text())["task"] == "score it"
    put(store)
    assert store.failure("k") is None


def test_an_unreadable_failure_is_none(store):
    (store.root / "failures" / "k.json").write_text("")
    assert store.failure("k") is None and store.failures() == {}
    store.record_failure("k", "score it", "run", "Traceback …")
    assert store.failure("k").attempt == 1
    (store.root / "failures" / "k.json").write_text('{"task": 1, "traceback": null}')
    assert store.failure("k").reason == "None" and store.failure("k").task == "1"


def test_a_file_that_cannot_be_written_keeps_its_old_content(store, monkeypatch):
    path = store.root / "timings.json"
    store.write(path, "old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        store.write(path, "new")
    assert path.read_text() == "old" and leftovers(store) == []


WORKING = """
import sys, time
from overpaint.run.store import Store
with Store(sys.argv[1]).workspace() as folder:
    (folder / "data.txt").write_text("half")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_a_workspace_goes_with_its_owner_and_not_before(store):
    process = subprocess.Popen([sys.executable, "-c", WORKING, store.root], stdout=subprocess.PIPE, text=True)
    folder = process.stdout.readline().strip()
    os.utime(folder, (0, 0))  # however old it is
    store.sweep()
    assert [str(place) for place in leftovers(store)] == [folder]
    process.kill()
    process.wait()
    store.sweep()
    assert leftovers(store) == []


def test_a_zombie_owns_nothing(store):
    process = subprocess.Popen([sys.executable, "-c", WORKING, store.root], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.kill()
    until = time.monotonic() + 10
    while leftovers(store) and time.monotonic() < until:  # nobody has asked for its exit code yet
        store.sweep()
    assert leftovers(store) == []
    process.wait()


def test_workspaces_of_other_machines_go_after_a_day_of_silence(store):
    _, pid, started = owner().split("-")
    silent, busy, old = (store.root / "tmp" / name for name in (f"f00-{pid}-{started}-a", "f00-1-1-b", "tmpabc"))
    for place in (silent, busy, old):
        place.mkdir()
    for place in (silent, old):
        os.utime(place, (time.time() - ABANDONED - 60,) * 2)
    store.sweep()
    assert leftovers(store) == [busy]


@pytest.mark.parametrize("jump", [-10 * ABANDONED, 10 * ABANDONED])
def test_a_clock_that_jumps_makes_nobody_look_abandoned(store, monkeypatch, jump):
    _, pid, started = owner().split("-")
    busy = store.root / "tmp" / f"f00-{pid}-{started}-a"
    busy.mkdir()
    (busy.with_suffix(NOTE)).write_text(json.dumps(Note("overpaint run", "elsewhere", 7, time.time())._asdict()))
    right = time.time
    monkeypatch.setattr("time.time", lambda: right() + jump)
    store.sweep()
    assert busy.is_dir() and [note.host for note in notes(store.root)] == ["elsewhere"]


def test_a_note_goes_with_its_owner_and_a_damaged_one_is_ignored(store):
    with noting(store.root, "overpaint run"):
        (store.root / "tmp" / f"{owner()}-x{NOTE}").write_text("{")
        (found,) = notes(store.root)
        assert found.what == "overpaint run" and found.process == os.getpid()
    assert notes(store.root) == []
    process = subprocess.Popen([sys.executable, "-c", NOTING, store.root], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    assert len(notes(store.root)) == 1
    process.kill()
    process.wait()
    assert notes(store.root) == []
    (store.root / "tmp" / f"{owner()}-x{NOTE}").unlink()
    store.sweep()
    assert leftovers(store) == []


NOTING = """
import sys, time
from pathlib import Path
from overpaint.run.notes import noting
with noting(Path(sys.argv[1]), "overpaint run"):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_full_disk_keeps_nobody_from_working(store, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with noting(store.root, "overpaint run"):
        assert notes(store.root) == []


def test_a_store_that_is_gone_is_told_from_a_tasks_own_failure(store):
    shutil.move(store.root, store.root.with_name("away"))
    error = store.disk_error(FileNotFoundError(errno.ENOENT, "no"))
    assert str(store.unwritable(error)) == f"cannot write to the store {store.root}: its folders are gone"
    assert store.present("score") == set() and store.failures() == {} and notes(store.root) == []


def test_nothing_that_a_killed_process_held_stays(store):
    process = subprocess.Popen([sys.executable, "-c", HOLDING, store.root], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    held = [path for part in ("tmp", "locks", "leases") for path in (store.root / part).iterdir()]
    store.sweep()
    assert [path for part in ("tmp", "locks", "leases") for path in (store.root / part).iterdir()] == held
    assert len(held) == 4
    process.kill()
    process.wait()
    store.sweep()
    assert [path for part in ("tmp", "locks", "leases") for path in (store.root / part).iterdir()] == []


HOLDING = """
import sys, time
from overpaint.run.leases import Leases
from overpaint.run.notes import noting
from overpaint.run.store import Store
store = Store(sys.argv[1])
with noting(store.root, "overpaint run"), store.claim("k"), store.workspace():
    Leases(store.root).take("k", "a task")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_workspace_gives_signs_of_life(store, monkeypatch):
    monkeypatch.setattr("overpaint.run.notes.HEARTBEAT", 0.01)
    with store.workspace() as folder:
        os.utime(folder, (0, 0))
        until = time.monotonic() + 10
        while folder.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert folder.stat().st_mtime > 0


def test_a_process_of_another_user_that_is_hidden_is_not_dead(monkeypatch):
    """As with ``/proc`` mounted with ``hidepid=2``."""
    name = owner()
    monkeypatch.setattr("overpaint.run.owner._started", lambda pid: None)

    def refuse(pid, signal):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.kill", refuse)
    assert alive(f"{name}-x") is None

    def gone(pid, signal):
        raise ProcessLookupError(3, "No such process")

    monkeypatch.setattr("os.kill", gone)
    assert alive(f"{name}-x") is False


def test_a_process_id_that_was_given_again_is_another_owner():
    machine, pid, started = owner().split("-")
    assert alive(f"{owner()}-x") is True
    assert alive(f"{machine}-{pid}-1{started}-x") is False
    assert alive(f"elsewhere-{pid}-{started}-x") is None and alive("tmpabc") is None


def test_a_bad_store_is_named_as_it_was_given(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OVERPAINT_STORE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"^OVERPAINT_STORE=.*/file is not a folder"):
        Store.chosen(None)
    with pytest.raises(UserError, match=r"^store=.*/file is not a folder"):
        Store.chosen(str(tmp_path / "file"))


def test_an_unwritable_store_is_one_sentence(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UserError, match="cannot write to the store"):
        Store(blocker / "store").prepare()


def test_a_full_disk_is_seen_behind_other_errors(store, monkeypatch):
    monkeypatch.setattr(Store, "_has_room", lambda _: False)
    full, other = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("no")
    assert store.disk_error(other) is None and store.disk_error(FileNotFoundError(errno.ENOENT, "no")) is None
    other.__cause__ = full
    assert store.disk_error(other) is full
    assert store.disk_error(RuntimeError("PytorchStreamWriter: No space left on device")).errno == errno.ENOSPC


@pytest.mark.parametrize("how", ["refused", "little"])
def test_a_full_disk_is_the_stores_only_if_the_store_has_no_room(store, monkeypatch, how):
    errors = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("No space left on device")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 40))
    assert [store.disk_error(error) for error in errors] == [None, None] and leftovers(store) == []
    if how == "little":
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 30))
    else:

        def refuse(*_):
            raise errors[0]

        monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    assert all(map(store.disk_error, errors))


def test_a_read_only_file_outside_the_store_is_the_tasks_own_failure(store):
    def refused(file):
        return OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))

    assert store.disk_error(refused(store.root / "tmp" / "x")) is not None
    assert store.disk_error(refused("/elsewhere/cache/refs")) is None


def test_a_key_depends_on_what_decides_and_on_nothing_else():
    task = Task("score", {"b": 1, "a": (1, 2)}, {"images": "x"}, {"v": 1}, {"path": "/a"}, "one", 3)
    same = Task("score", {"a": [1, 2], "b": 1}, {"images": "x"}, {"v": 1}, {"path": "/b"}, "two", 9)
    assert task.key == same.key
    for other in (
        Task("measure", task.config, task.inputs, task.versions),
        Task("score", {"b": 2, "a": (1, 2)}, task.inputs, task.versions),
        Task("score", task.config, {"images": "y"}, task.versions),
        Task("score", task.config, task.inputs, {"v": 2}),
    ):
        assert other.key != task.key


def test_canonical_text_is_json():
    assert json.loads(canonical({"z": (1,), "a": None})) == {"z": [1], "a": None}
