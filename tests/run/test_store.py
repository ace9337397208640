"""The store: whole artefacts or none, damage found and set aside, one maker a key."""

import json
import multiprocessing
import os

import pytest

from overpaint.errors import UserError
from overpaint.run.store import MANIFEST, CorruptArtefact, Store
from overpaint.run.tasks import Task, canonical


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    store.prepare()
    return store


def put(store, key="k", text="hello"):
    with store.workspace() as folder:
        (folder / "data.txt").write_text(text)
        store.publish("score", key, folder, {"label": "x"})


def test_published_artefact_is_read_back_whole(store):
    assert not store.has("score", "k")
    put(store)
    assert store.has("score", "k")
    assert (store.read("score", "k") / "data.txt").read_text() == "hello"
    assert store.manifest("score", "k")["files"]["data.txt"]["bytes"] == 5
    assert list((store.root / "tmp").iterdir()) == []


def test_interrupted_write_leaves_nothing(store):
    with pytest.raises(RuntimeError), store.workspace() as folder:
        (folder / "data.txt").write_text("half")
        raise RuntimeError
    assert not store.has("score", "k")
    assert list((store.root / "tmp").iterdir()) == []


def test_killed_writer_leaves_no_artefact(store):
    def write(root):
        other = Store(root)
        with other.workspace() as folder:
            (folder / "data.txt").write_text("half")
            os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=write, args=(store.root,))
    process.start()
    process.join()
    assert not store.has("score", "k")
    put(store)
    assert store.has("score", "k")


def test_changed_byte_is_found_by_its_hash_and_set_aside(store):
    put(store)
    (store.path("score", "k") / "data.txt").write_text("hellO")
    assert store.has("score", "k")  # same size: only reading tells
    with pytest.raises(CorruptArtefact, match=r"data.txt does not match its hash"):
        store.read("score", "k")
    assert not store.has("score", "k")
    assert (store.root / "corrupt" / "score-k" / "data.txt").read_text() == "hellO"


def test_truncated_file_is_found_by_its_size(store):
    put(store)
    (store.path("score", "k") / "data.txt").write_text("he")
    assert not store.has("score", "k")
    assert (store.root / "corrupt" / "score-k").is_dir()


def test_broken_manifest_counts_as_damage(store):
    put(store)
    (store.path("score", "k") / MANIFEST).write_text("{")
    assert not store.has("score", "k")


def test_losing_a_race_keeps_the_first(store):
    put(store, text="first")
    put(store, text="second")
    assert (store.read("score", "k") / "data.txt").read_text() == "first"


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


def test_unwritable_store_is_one_sentence(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UserError, match="cannot write to the store"):
        Store(blocker / "store").prepare()


def test_key_depends_on_what_decides_and_on_nothing_else():
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
