"""The Weights & Biases tracker: one run per sweep, offline and without an account, read back with wandb's own schema."""

import json
import struct
import sys
import time

import pandas as pd
import pytest

from overpaint.commands.grids import Grid
from overpaint.commands.run import track_results
from overpaint.errors import AssetMissing
from overpaint.grid.registry import component
from overpaint.report.records import CELL, RECORD_COLUMNS
from overpaint.report.tracking import Sweep, config_of, name_of, summary_of, sweep_key, tables_of
from overpaint.run.plan import Plan
from overpaint.run.store import Store

FIGURE = {"facet": "efficacy", "metric": "target_proportion", "direction": "down", "unit": "fraction", "failed": 0}


def records_of(*methods, **values):
    """Records of a target proportion, one per method."""
    label = dict.fromkeys(CELL, "x") | {
        "seed": 0,
        "attack": "none",
        "attack_name": "none",
        "kind": "unsafe",
        "versions": '{"uce": 2}',
    }
    rows = [
        label | FIGURE | {"method": method, "method_name": method, "value": 0.25, "low": 0.1, "high": 0.5, "n": 24} | values
        for method in methods
    ]  # fmt: skip
    return pd.DataFrame(rows).reindex(columns=RECORD_COLUMNS)


def entries(path):
    """The records of a .wandb file: LevelDB's log, whose blocks of 32 KiB hold chunks (checksum, length, type, data)."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, whole = path.read_bytes(), 7, b""  # wandb's header has 7 bytes
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the only or the last chunk of a record
            found = Record()
            found.ParseFromString(whole)
            yield found
            whole = b""


def sent(folder, count):
    """For each offline run below the folder: its description, its config, and everything that was logged."""
    for _ in range(200):  # wandb's own process writes the last blocks after `finish` has returned
        logs = [list(entries(path)) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]
        if len(logs) == count and all(any(e.HasField("exit") for e in log) for log in logs):
            break
        time.sleep(0.1)
    assert len(logs) == count
    for log in logs:
        (run,) = (entry.run for entry in log if entry.HasField("run"))
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        logged = {}
        for entry in log:
            for item in [*entry.history.item, *entry.summary.update]:
                logged[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        yield run, config, logged


@pytest.fixture
def tracker():
    pytest.importorskip("wandb")
    return component("tracker", "wandb").build({"tags": ["mine"]})


def test_one_offline_run_a_sweep_with_tables_sheets_and_figures(tracker, tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "x-church.png")
    sweep = Sweep("k" * 16, records_of("none", "uce"), tmp_path, sheets=[tmp_path / "x-church.png"])
    tracker.send(sweep)
    ((run, config, logged),) = sent(tmp_path, 1)
    assert (run.run_id, run.project, run.run_group, run.job_type) == ("k" * 16, "overpaint", "x, x", "sweep")
    assert run.display_name == "none, uce on x; none" and set(run.tags) == {"mine", "unsafe"}
    assert config["methods"] == ["none", "uce"] and config["versions"] == {"uce": 2} and config["cells"] == 2
    assert logged["uce/target_proportion/value"] == 0.25 and logged["uce/target_proportion/high"] == 0.5
    assert logged["facets._type"] == "table-file" and logged["figures.nrows"] == 2
    assert logged["sheets/x-church._type"] == "image-file" and logged["sheets/x-church.width"] == 8
    (table,) = tmp_path.glob("wandb/offline-run-*/files/" + logged["facets.path"])
    assert json.loads(table.read_text())["data"][0] == [
        "efficacy",
        "target proportion ↓ n=24",
        "0.25 [0.10, 0.50]",
        "0.25 [0.10, 0.50]",
    ]
    assert list(tmp_path.glob("wandb/offline-run-*/files/" + logged["sheets/x-church.path"]))


def test_the_same_sweep_continues_its_run(tracker, tmp_path):
    for methods in (("none",), ("none", "uce")):
        tracker.send(Sweep(sweep_key(["a", "b"]), records_of(*methods), tmp_path))
        time.sleep(1.1)  # wandb names an offline run by the second
    runs = [run.run_id for run, *_ in sent(tmp_path, 2)]
    assert runs == [sweep_key(["b", "a", "a"])] * 2 and sweep_key(["a"]) != runs[0]


def test_tables_hold_numbers_and_every_cell():
    records = records_of("none", "uce", value=None, why="too few")
    found = dict(tables_of(records, None))
    columns, rows = found["figures"]
    assert [row[columns.index("value")] for row in rows] == [None, None] and rows[0][columns.index("n")] == 24
    assert found["cells"][1] == [[*[*records[CELL].iloc[i]], 1, 0] for i in range(2)]
    assert "methods" not in found, "it has no column for unsafe concepts alone"
    columns, rows = dict(tables_of(records_of("none", "uce", kind="object"), None))["methods"]
    assert "target, objects" in " ".join(columns) and [row[columns.index("method")] for row in rows] == ["none", "uce"]
    assert summary_of(records, None) == {}
    assert name_of(config_of(records_of(*"abcdef"))) == "a, b, c, d and 2 more on x; none"


def test_undefined_figures_say_why_in_every_table():
    """Tables of W&B have no notes that a number could refer to."""
    found = dict(tables_of(records_of("none", "uce", value=None, low=None, high=None, why="too few"), None))
    assert found["facets"][1] == [["efficacy", "target proportion ↓ n=24", "⊥ (too few)", "⊥ (too few)"]]
    columns, rows = found["figures"]
    assert [row[columns.index("why")] for row in rows] == ["too few"] * 2


def test_the_summary_averages_nothing_over_models_or_budgets():
    records = pd.concat(
        [
            records_of("uce", model=m, budget=b, value=v)
            for m, b, v in (("a", "lite", 0.2), ("b", "lite", 0.4), ("b", "paper", 0.9))
        ]
    )
    values = {name: value for name, value in summary_of(records, None).items() if name.endswith("/value")}
    assert values == {
        "uce/target_proportion, model a, budget lite/value": 0.2,
        "uce/target_proportion, model b, budget lite/value": 0.4,
        "uce/target_proportion, model b, budget paper/value": 0.9,
    }
    concepts = pd.concat([records_of("uce", concepts=c, value=v) for c, v in (("car", 0.2), ("cat", 0.4))])
    assert summary_of(concepts, None)["uce/target_proportion/value"] == pytest.approx(0.3)


def test_the_summary_averages_nothing_over_values_set_by_hand_on_concepts():
    records = pd.concat(
        [
            records_of(
                "uce", concepts=f"church anchor={anchor}", value=value, given=json.dumps({"concepts.anchor": anchor})
            )
            for anchor, value in (("house", 0.2), ("tower", 0.4))
        ]
    )
    values = {name: value for name, value in summary_of(records, None).items() if name.endswith("/value")}
    assert values == {
        "uce/target_proportion, concepts.anchor=house/value": 0.2,
        "uce/target_proportion, concepts.anchor=tower/value": 0.4,
    }


def test_tables_with_long_or_similar_titles_keep_their_own_names():
    long = "prompts.target=list.csv " * 8
    labels = [f"{long}{end}" for end in ("retain=a", "retain=b")] + ["a b", "a/b"]
    records = pd.concat([records_of("uce", concepts=label) for label in labels])
    names = [name for name, _ in tables_of(records, None) if name.startswith("facets/")]
    assert len(set(names)) == len(labels) and max(map(len, names)) <= len("facets/") + 100
    assert names == [name for name, _ in tables_of(records, None) if name.startswith("facets/")]
    short = [name for name, _ in tables_of(pd.concat([records_of("uce", concepts=c) for c in "ab"]), None)]
    assert {"facets/a_unsafe_on_x", "facets/b_unsafe_on_x"} <= set(short)


def test_a_failure_of_the_service_is_reported_and_ends_no_run(tmp_path, capsys):
    class Down:
        def send(self, sweep):
            raise ConnectionError("no route to host")

    grid = Grid([], Plan("images"), Store(tmp_path), {"tracker": {"name": "wandb"}})
    track_results(Down(), grid, records_of("uce"), [])
    assert "tracker=wandb sent nothing: ConnectionError: no route to host" in capsys.readouterr().err


def test_none_writes_nothing(tmp_path):
    def fail():
        raise AssertionError("no outcome is read for it")

    component("tracker", "none").build().send(Sweep("k", records_of("uce"), tmp_path, fail))
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_told_before_anything_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(AssetMissing, match=r"overpaint\[wandb\]"):
        component("tracker", "wandb").build()
