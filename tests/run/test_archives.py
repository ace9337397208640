"""Merging stores and archives: nothing half, nothing replaced, nothing outside the store."""

import errno
import io
import os
import tarfile

import pytest

from overpaint.errors import UserError
from overpaint.run.archives import merge, pack
from overpaint.run.history import History
from overpaint.run.store import MANIFEST, Store


def filled(root, **texts):
    """A store with an artefact for each text."""
    store = Store(root)
    store.prepare()
    for key, text in texts.items():
        with store.workspace() as folder:
            (folder / "part").mkdir()
            (folder / "part" / "data.txt").write_text(text)
            (folder / "more.txt").write_text("more")
            store.publish("score", key, folder, {"label": key})
    return store


def data(store, key):
    return store.path("score", key) / "part" / "data.txt"


def packed(store, file, **keys):
    """What `pack` says of everything in the store, or of some keys by stage."""
    return pack(store, file, keys or {stage: store.present(stage) for stage in store.stages()})


def content(store):
    """Every file of the artefacts with its bytes."""
    place = store.root / "artefacts"
    return {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()}


def sources(store, folder, way):
    """The store as the source of a merge: its folder, or an archive of it."""
    if way == "folder":
        return store.root
    packed(store, folder / "packed.tar")
    return folder / "packed.tar"


@pytest.mark.parametrize("way", ["folder", "archive"])
def test_a_merge_brings_what_is_missing_byte_for_byte(tmp_path, way):
    ours, theirs = filled(tmp_path / "ours"), filled(tmp_path / "theirs", a="one", b="two")
    moved = merge(ours, sources(theirs, tmp_path, way))
    assert (moved.copied, moved.there, moved.damaged) == (2, 0, [])
    assert content(ours) == content(theirs) and not list(ours.verify())
    moved = merge(ours, sources(theirs, tmp_path, way))
    assert (moved.copied, moved.there) == (0, 2) and list((ours.root / "tmp").iterdir()) == []


@pytest.mark.parametrize("way", ["folder", "archive"])
def test_of_one_key_ours_stays_unless_it_is_damaged(tmp_path, way):
    ours, theirs = filled(tmp_path / "ours", a="mine", b="torn"), filled(tmp_path / "theirs", a="theirs", b="whole")
    os.truncate(data(ours, "b"), 1)
    moved = merge(ours, sources(theirs, tmp_path, way))
    assert (moved.copied, moved.there) == (1, 1)
    assert data(ours, "a").read_text() == "mine" and data(ours, "b").read_text() == "whole"


@pytest.mark.parametrize("way", ["folder", "archive"])
def test_damaged_artefacts_are_left_out_and_named(tmp_path, way):
    ours, theirs = filled(tmp_path / "ours"), filled(tmp_path / "theirs", a="one", b="two", c="three")
    source = sources(theirs, tmp_path, way)
    if way == "folder":
        data(theirs, "a").write_text("ono")  # of the right size
        data(theirs, "b").unlink()
    else:
        source.write_bytes(source.read_bytes().replace(b"one", b"ono"))
    moved = merge(ours, source)
    reasons = {damage.key: damage.reason for damage in moved.damaged}
    assert reasons["a"] == "part/data.txt does not match its hash" and ours.has("score", "c")
    assert reasons.keys() == ({"a", "b"} if way == "folder" else {"a"})
    assert not ours.path("score", "a").exists() and list((ours.root / "tmp").iterdir()) == []


def test_a_packed_store_names_what_it_leaves_out(tmp_path):
    store = filled(tmp_path / "s", a="one", b="two")
    data(store, "a").write_text("ono")
    moved = packed(store, tmp_path / "x.tar")
    assert [d.key for d in moved.damaged] == ["a"] and moved.copied == 1
    with tarfile.open(tmp_path / "x.tar") as archive:
        assert not any("/a/" in name for name in archive.getnames())


def test_equal_stores_give_equal_archives_and_a_choice_gives_a_part(tmp_path):
    for name in ("one", "two"):
        packed(filled(tmp_path / name, a="x", b="y"), tmp_path / f"{name}.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    assert packed(Store(tmp_path / "one"), tmp_path / "part.tar", score=["a"]).copied == 1


def test_an_archive_that_is_cut_anywhere_leaves_nothing_half(tmp_path):
    theirs = filled(tmp_path / "theirs", a="one", b="two")
    packed(theirs, tmp_path / "whole.tar")
    bytes_ = (tmp_path / "whole.tar").read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as archive:
        headers = [member.offset for member in archive]
        last = archive.offset
    assert len(headers) > 4 and last < len(bytes_)
    cuts = {*range(0, last, 700), *headers, *(start + 100 for start in headers), last, last + 100}
    for number, end in enumerate(sorted(cuts)):
        (tmp_path / "cut.tar").write_bytes(bytes_[:end])
        ours = filled(tmp_path / f"ours{number}")
        with pytest.raises(UserError, match=r"cut\.tar"):
            merge(ours, tmp_path / "cut.tar")
        assert not list(ours.verify()) and list((ours.root / "tmp").iterdir()) == []
        assert content(ours).items() <= content(theirs).items()


def tar(file, *members):
    """An archive of members ``(name, bytes)``, or of other kinds of members."""
    with tarfile.open(file, "w") as archive:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            info.size = 0 if info is member else len(member[1])
            archive.addfile(info, None if info is member else io.BytesIO(member[1]))
    return file


def link(name, to):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, to
    return info


HOSTILE = [
    ("artefacts/score/a/../../../../escape", b"x"),
    ("/etc/passwd", b"x"),
    ("../escape", b"x"),
    ("artefacts/../score/a/x", b"x"),
    ("artefacts/.hidden/a/x", b"x"),
    ("artefacts/score/a", b"x"),
    ("tmp/x/y/z", b"x"),
    ("timings.json", b"{}"),
    link("artefacts/score/a/x", "/etc/passwd"),
    link("sources.json", "/etc/passwd"),
]


@pytest.mark.parametrize(
    "member", HOSTILE, ids=lambda member: member[0] if isinstance(member, tuple) else f"link {member.name}"
)
def test_an_archive_with_anything_else_is_refused(tmp_path, member):
    ours = filled(tmp_path / "ours")
    with pytest.raises(UserError, match="which no archive of overpaint store pack holds"):
        merge(ours, tar(tmp_path / "x.tar", member))
    assert content(ours) == {} and not (tmp_path / "escape").exists()


def test_an_artefact_whose_manifest_names_a_file_outside_is_damaged(tmp_path):
    ours = filled(tmp_path / "ours")
    manifest = b'{"files": {"../../x": {"bytes": 1, "sha256": ""}}}'
    moved = merge(ours, tar(tmp_path / "x.tar", (f"artefacts/score/a/{MANIFEST}", manifest)))
    assert "no file of it" in moved.damaged[0].reason and content(ours) == {}


def test_files_that_no_manifest_names_stay_behind_from_a_folder(tmp_path):
    ours, theirs = filled(tmp_path / "ours"), filled(tmp_path / "theirs", a="one")
    (theirs.path("score", "a") / "stray").write_text("x")
    merge(ours, theirs.root)
    assert not (ours.path("score", "a") / "stray").exists() and ours.has("score", "a")


def test_what_is_no_store_and_no_archive_is_one_sentence(tmp_path):
    ours = filled(tmp_path / "ours")
    (tmp_path / "text").write_text("hello" * 1000)
    (tmp_path / "folder").mkdir()
    for source, said in (
        (tmp_path / "text", "neither a store nor an archive"),
        (tmp_path / "folder", "is no store"),
        (ours.root, "is the store itself"),
        (tmp_path / "gone", "cannot read"),
    ):
        with pytest.raises(UserError, match=said):
            merge(ours, source)


def test_a_full_disk_stops_a_merge_in_one_sentence(tmp_path, monkeypatch):
    ours, theirs = filled(tmp_path / "ours"), filled(tmp_path / "theirs", a="one")

    def full(source, target):  # as `shutil` names the files
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source, None, target)

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(UserError, match=f"cannot write to the store {ours.root}"):
        merge(ours, theirs.root)
    assert content(ours) == {} and list((ours.root / "tmp").iterdir()) == []


@pytest.mark.parametrize("way", ["folder", "archive"])
def test_sources_of_another_store_count_as_older(tmp_path, way):
    ours, theirs = filled(tmp_path / "ours"), filled(tmp_path / "theirs")
    for store, used in ((ours, ["b", "c"]), (theirs, ["a", "b", "d"])):
        for source in used:
            History(store).add({"method=mine": source})
    merge(ours, sources(theirs, tmp_path, way))
    assert History(ours).of("method=mine") == ["a", "d", "b", "c"]
