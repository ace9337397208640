"""Hostile and damaged stores: a row is a name, a function that spoils a good store, and a part of the sentence."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

GOOD = Path(__file__).parents[1] / "report" / "store_0_1"


@pytest.fixture
def store(here):
    """A copy of a store with the records of two cells."""
    return shutil.copytree(GOOD, here / "s")


def measured(store):
    """The folder of the first cell's records."""
    return min((store / "artefacts" / "measure").iterdir())


def manifest(store, content):
    """Replace the manifest of the first cell's records by a text or JSON values."""
    (measured(store) / "manifest.json").write_text(content if isinstance(content, str) else json.dumps(content))


def forged(store):
    """List the files as they are now in the manifest, as a forger would."""
    folder = measured(store)
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }
    manifest(store, {"files": files})


def content(store, bytes_):
    """Replace the first cell's records by other bytes, with a manifest that says so."""
    (measured(store) / "records.parquet").write_bytes(bytes_)
    forged(store)


def records(store, change=None, **columns):
    """Change the first cell's records, by a function or by column."""
    file = measured(store) / "records.parquet"
    found = pd.read_parquet(file)
    (change(found) if change else found.assign(**columns)).to_parquet(file)
    forged(store)


def lone(store, name):
    """A manifest that lists one file by this name."""
    manifest(store, {"files": {name: {"bytes": 0, "sha256": ""}}})


def removed(store):
    (measured(store) / "records.parquet").unlink()
    return measured(store) / "records.parquet"


def file_at(folder):
    shutil.rmtree(folder)
    folder.write_text("")


DAMAGES = {
    "an empty manifest": (lambda s: manifest(s, ""), "unreadable manifest"),
    "a manifest that is cut": (lambda s: manifest(s, "{"), "unreadable manifest"),
    "a manifest that is a list": (lambda s: manifest(s, "[]"), "unreadable manifest"),
    "a manifest that is null": (lambda s: manifest(s, "null"), "unreadable manifest"),
    "a manifest without files": (lambda s: manifest(s, "{}"), "unreadable manifest"),
    "a manifest nested deeply": (lambda s: manifest(s, "[" * 10**6), "unreadable manifest"),
    "a manifest of binary": (lambda s: (measured(s) / "manifest.json").write_bytes(b"\xff\xfe"), "unreadable manifest"),
    "a manifest of a number": (lambda s: manifest(s, {"files": 3}), "unreadable manifest"),
    "a manifest of a list of files": (lambda s: manifest(s, {"files": ["records.parquet"]}), "unreadable manifest"),
    "a file of a number": (lambda s: manifest(s, {"files": {"records.parquet": 5}}), "unreadable manifest"),
    "a file without a size": (lambda s: manifest(s, {"files": {"records.parquet": {}}}), "unreadable manifest"),
    "a size that is a text": (
        lambda s: manifest(s, {"files": {"records.parquet": {"bytes": "x", "sha256": 5}}}),
        "is damaged",
    ),
    "a file outside": (lambda s: lone(s, "../../../../escape"), "'../../../../escape', which is no file of it"),
    "a file by its whole path": (lambda s: lone(s, "/etc/passwd"), "'/etc/passwd', which is no file of it"),
    "a device as a file": (lambda s: lone(s, "/dev/zero"), "'/dev/zero', which is no file of it"),
    "a folder as a file": (lambda s: ((measured(s) / "d").mkdir(), lone(s, "d")), "'d', which is no file of it"),
    "a pipe as a file": (lambda s: (os.mkfifo(measured(s) / "p"), lone(s, "p")), "'p', which is no file of it"),
    "a name with NUL": (lambda s: lone(s, "a\0b"), "unreadable manifest"),
    "a name of 5,000 letters": (lambda s: lone(s, "a" * 5000), "is damaged"),
    "a name with an escape": (lambda s: lone(s, "a\x1b[31m"), "is missing"),
    "records that are cut": (lambda s: os.truncate(measured(s) / "records.parquet", 100), "records.parquet has 100 of"),
    "records that are gone": (lambda s: removed(s), "records.parquet is missing"),
    "records with another byte": (
        lambda s: (f := measured(s) / "records.parquet").write_bytes(f.read_bytes()[:-1] + b"!"),
        "records.parquet does not match its hash",
    ),
    "a device as records": (lambda s: removed(s).symlink_to("/dev/zero"), "no file of it"),
    "a link to itself as records": (lambda s: removed(s).symlink_to("records.parquet"), "is damaged"),
    "forged records that are gone": (lambda s: (removed(s), forged(s)), "FileNotFoundError"),
    "a folder as forged records": (lambda s: (removed(s).mkdir(), manifest(s, {"files": {}})), "is damaged"),
    "forged records of nothing": (lambda s: content(s, b""), "is damaged"),
    "forged records of text": (lambda s: content(s, b"hello"), "is damaged"),
    "forged records that are cut": (
        lambda s: content(s, (measured(s) / "records.parquet").read_bytes()[:200]),
        "is damaged",
    ),
    "no columns": (lambda s: records(s, lambda d: d[[]]), "has no column 'model'"),
    "one column": (lambda s: records(s, lambda d: d[["metric"]]), "has no column 'model'"),
    "a column of another name": (
        lambda s: records(s, lambda d: d.rename(columns={"value": "v"})),
        "has no column 'value'",
    ),
    "figures that are text": (lambda s: records(s, value="abc"), "in column 'value'"),
    "figures that are lists": (lambda s: records(s, lambda d: d.assign(value=[[1.0]] * len(d))), "in column 'value'"),
    "limits that are text": (lambda s: records(s, low="abc"), "in column 'low'"),
    "numbers of images that are text": (lambda s: records(s, n="abc"), "in column 'n'"),
    "no number of images": (lambda s: records(s, n=None), "a row without 'n'"),
    "seeds that are text": (lambda s: records(s, seed="x"), "in column 'seed'"),
    "metrics that are numbers": (lambda s: records(s, metric=5), "in column 'metric'"),
    "no metric": (lambda s: records(s, metric=None), "a row without 'metric'"),
    "no facet": (lambda s: records(s, facet=None), "a row without 'facet'"),
    "an unknown direction": (lambda s: records(s, direction="sideways"), "a direction other than up, down, zero"),
    "versions that are no JSON": (lambda s: records(s, versions="{"), "is damaged"),
    "versions that are a list": (lambda s: records(s, versions="[1]"), "has [1] in column 'versions'"),
    "versions that are text": (lambda s: records(s, versions='{"uce": "x"}'), "takes a JSON mapping of whole numbers"),
    "settings that are no JSON": (lambda s: records(s, given="{"), "is damaged"),
    "settings that are a list": (lambda s: records(s, given="[]"), "column 'given', which takes a JSON mapping"),
    "a file as the folder of artefacts": (lambda s: file_at(s / "artefacts"), "artefacts is not a folder"),
    "a file as the folder of locks": (lambda s: (s / "locks").write_text(""), "locks is not a folder"),
    "a broken link as the temporary folder": (lambda s: (s / "tmp").symlink_to("gone"), "tmp is not a folder"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_store_is_refused_in_one_sentence(refused, store, name):
    spoil, said = DAMAGES[name]
    spoil(store)
    refused("table", "store=s", "--format", "md", said=said)


def test_a_damaged_record_names_the_command_that_moves_it_away(refused, called, store):
    os.truncate(measured(store) / "records.parquet", 100)
    refused("table", "store=s", said="`overpaint store verify measure --set-aside` moves it away")
    assert called("store", "verify", "measure", "--set-aside", "store=s") == 1
    assert called("table", "store=s", "--format", "md") == 0


@pytest.mark.parametrize("command", ["status", "store verify", "table", "gc budget=smoke", "store pack out=x.tar"])
def test_an_artefact_of_a_newer_version(refused, store, command):
    manifest(store, {"format": 99, "files": {}})
    refused(*command.split(), "store=s", said="was written by a newer version of overpaint (format 99")


FAILURES = ["", "{", "[]", "[" * 10**6, '{"task": 5}', '{"task": "t", "run": "r", "attempt": "x", "traceback": 5}']


@pytest.mark.parametrize("text", FAILURES, ids=lambda text: repr(text[:40]))
@pytest.mark.parametrize("folder", ["failures", "leases", "tmp"])
def test_status_ignores_files_that_say_nothing(called, store, text, folder, capfd):
    (store / folder).mkdir(exist_ok=True)
    (store / folder / ("k.note" if folder == "tmp" else "k.json")).write_text(text)
    assert called("status", "store=s", "--format", "json") == 0
    found = json.loads(capfd.readouterr().out)
    assert (
        found["failures"] == found["working"] == found["commands"] == []
        and found["stages"]["measure"]["artefacts"] == 2
    )


def test_what_a_store_says_cannot_drive_the_terminal(called, store, capfd):
    (store / "failures").mkdir()
    said = {"task": "a\x1b[31mb", "run": "r", "attempt": 1, "traceback": "x\nError: \x1b]0;hi\x07[bold]"}
    (store / "failures" / "k.json").write_text(json.dumps(said))
    assert called("status", "store=s") == 0
    out = capfd.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "[bold]" in out


def test_the_good_store_is_taken(here, called, store, capfd):
    assert called("table", "store=s", "--format", "md") == 0
    assert "uce" in capfd.readouterr().out


def test_a_grid_without_records_names_its_own_command(refused, store):
    said = "holds no cell of this grid (stored: method=uce, none). To make them: overpaint run method=esd budget=smoke store=s"
    refused("table", "method=esd", "budget=smoke", "store=s", said=said)


TIMINGS = [
    "",
    "[" * 10**6,
    "[]",
    "5",
    '{"HERE": 5}',
    '{"HERE": {"KIND": "x"}}',
    '{"HERE": {"KIND": NaN}}',
    '{"HERE": {"KIND": -1e308}}',
]


@pytest.mark.parametrize("text", TIMINGS, ids=lambda text: repr(text[:40]))
def test_timings_that_cannot_be_used_are_ignored(here, called, store, text, capfd):
    import platform

    text = text.replace("HERE", platform.node()).replace("KIND", "generate/testbed")
    (store / "timings.json").write_text(text)
    assert called("plan", "budget=smoke", "store=s") == 0
    assert "time not yet measured on this machine" in capfd.readouterr().out
