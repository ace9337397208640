"""The index of a stage: it answers for many artefacts at once, and never calls something stored that is not."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from overpaint.errors import UserError
from overpaint.run import store as stores
from overpaint.run.index import Entry, Index
from overpaint.run.store import FORMAT, MANIFEST, Store


@pytest.fixture(autouse=True)
def _eager(monkeypatch):
    """Write the index after the first artefact, and use it for any number of keys."""
    monkeypatch.setattr(stores, "WORTH_WRITING", 1)
    monkeypatch.setattr(stores, "FEW", 0)


def put(store, key, text="hello", stage="score", **manifest):
    with store.workspace() as folder:
        (folder / "data.txt").write_text(text)
        store.publish(stage, key, folder, {"label": f"score {key}", "seconds": 1.5, **manifest})


def again(store):
    """The store as another process sees it."""
    return Store(store.root)


def manifests_read(monkeypatch):
    """The folders whose manifests are read from now on."""
    read, found = stores.read_manifest, []

    def note(folder):
        found.append(folder.name)
        return read(folder)

    monkeypatch.setattr(stores, "read_manifest", note)
    return found


def index_file(store):
    (file,) = (store.root / "index").iterdir()
    return file


def test_a_look_up_of_some_keys_does_not_list_a_large_store(store, monkeypatch):
    for n in range(60):
        put(store, f"k{n}")
    store.present("score")
    other, listed = again(store), []
    folders = Store._folders
    monkeypatch.setattr(Store, "_folders", lambda self, stage: listed.append(stage) or folders(self, stage))
    assert other.stored("score", ["k1", "k2", "x"]) == {"k1", "k2"} and listed == []
    assert len(other.stored("score", [f"k{n}" for n in range(4)])) == 4 and listed == ["score"]


def test_what_is_indexed_is_not_opened_again(store, monkeypatch):
    for key in "abc":
        put(store, key)
    assert store.present("score") == {*"abc"} and store.present("measure") == set()
    opened = manifests_read(monkeypatch)
    other = again(store)
    assert other.present("score") == {*"abc"} and other.stored("score", ["a", "x"]) == {"a"} and opened == []
    put(store, "d")
    assert other.present("score") == {*"abcd"} and opened == ["d"]


def test_columns_are_those_of_the_manifests(store):
    put(store, "a", inputs={"images": "k1"}, sources={"method=mine": "mine:abc"})
    for place in (store, again(store), again(store)):
        listing = place.listed("score")
        found = {name: listing.column(name)["a"] for name in Entry._fields[2:]}
        assert (found["bytes"], found["seconds"], found["label"]) == (5, 1.5, "score a")
        assert json.loads(found["inputs"]) == ["k1"] and json.loads(found["sources"]) == {"method=mine": "mine:abc"}
        assert json.loads(found["files"]) == place.manifest("score", "a")["files"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: shutil.rmtree(folder),
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: (folder / "data.txt").unlink(),
        lambda folder: (folder / "data.txt").rename(folder / "other.txt"),
        lambda folder: (shutil.rmtree(folder), folder.mkdir(), (folder / "data.txt").write_text("hello")),
        lambda folder: (shutil.rmtree(folder), folder.write_text("a file")),
    ],
)
def test_an_artefact_that_loses_a_file_is_not_stored(store, spoil):
    put(store, "a"), put(store, "b")
    store.present("score")
    spoil(store.path("score", "a"))
    for place in (store, again(store)):
        assert place.present("score") == {"b"} == {key for key in "ab" if place.has("score", key)}


def test_a_copy_of_a_store_is_checked_although_its_index_was_copied(store, tmp_path):
    put(store, "a"), put(store, "b")
    store.present("score")
    shutil.copytree(store.root, tmp_path / "copy")  # with the times of files and folders
    (tmp_path / "copy" / "artefacts" / "score" / "a" / "data.txt").write_text("he")
    copy = Store(tmp_path / "copy")
    assert copy.present("score") == {"b"} and list(copy.listed("score").damaged) == ["a"]


DAMAGES = {
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("hello"),
    "cut": lambda file: os.truncate(file, 700),
    "other bytes": lambda file: file.write_bytes(
        bytes(b ^ 255 if 4 < i < 400 else b for i, b in enumerate(file.read_bytes()))
    ),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "another table": lambda file: _write(file, {"key": ["a", "ghost"]}),
    "other types": lambda file: _write(file, {"key": [1, 2], "changed": ["x", "y"]}),
}


def _write(file, columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), file)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_index_is_made_again(store, name):
    for key in "abc":
        put(store, key)
    store.present("score")
    DAMAGES[name](index_file(store))
    listing = again(store).listed("score")
    assert listing.keys == {*"abc"} and set(listing.column("label").values()) == {f"score {key}" for key in "abc"}


def test_a_part_of_the_index_that_is_damaged_later_is_read_from_the_manifests(store):
    put(store, "a")
    store.present("score")
    listing = again(store).listed("score")
    listing.index._opened.close()
    listing.index._opened = None
    index_file(store).write_bytes(b"")
    assert listing.column("label") == {"a": "score a"}


def test_an_index_of_another_version_stays_beside_ours(store, monkeypatch):
    put(store, "a")
    store.present("score")
    monkeypatch.setattr(stores, "LAYOUT", 2)
    assert again(store).present("score") == {"a"}
    assert len(list((store.root / "index").iterdir())) == 2


def test_processes_that_write_it_at_once_leave_a_whole_one(store, monkeypatch):
    places = [again(store) for _ in range(4)]
    for number in range(40):
        put(store, f"k{number}")

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda place: place.present("score"), places))
    assert found == [{f"k{number}" for number in range(40)}] * 4
    opened = manifests_read(monkeypatch)
    assert len(again(store).present("score")) == 40 and opened == []


def test_a_store_that_cannot_be_written_to_is_listed(store, monkeypatch):
    put(store, "a")

    def refuse(*_):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(Store, "write", refuse)
    assert store.present("score") == {"a"} and list((store.root / "index").iterdir()) == []


def test_a_few_new_artefacts_do_not_rewrite_the_index(store, monkeypatch):
    monkeypatch.setattr(stores, "WORTH_WRITING", 3)
    put(store, "a"), put(store, "b")
    assert store.present("score") == {"a", "b"} and list((store.root / "index").iterdir()) == []
    put(store, "c")
    assert store.present("score") == {*"abc"}
    assert Index(index_file(store)).column("label").keys() == {*"abc"}


def test_an_artefact_of_a_newer_version_is_refused_and_stays(store):
    put(store, "a")
    file = store.path("score", "a") / MANIFEST
    file.write_text(file.read_text().replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}'))
    before = sorted(store.root.rglob("*"))
    for look in (
        lambda: store.has("score", "a"),
        lambda: store.read("score", "a"),
        lambda: store.present("score"),
        lambda: put(store, "a", "other"),
        lambda: list(store.verify()),
    ):
        with pytest.raises(UserError, match=r"score/a of .* was written by a newer version .*update overpaint"):
            look()
    assert sorted(store.root.rglob("*")) == before


def test_strange_values_in_a_manifest_do_not_stop_the_index(store):
    put(store, "a", label="\ud800", seconds="long", inputs=["x"], sources=None)
    found = again(store).listed("score")
    assert found.column("label") == {"a": "?"} and found.column("seconds") == {"a": 0.0}
    assert found.column("inputs") == {"a": "[]"} and again(store).present("score") == {"a"}
