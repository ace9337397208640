"""The common test suite of trackers: they accept records, change nothing else, and name a missing library in one sentence."""

import sys
from importlib.util import find_spec

import pandas as pd
import pytest

from overpaint.errors import AssetMissing, UserError
from overpaint.grid.registry import component, components
from overpaint.report.records import CELL, RECORD_COLUMNS
from overpaint.report.tracking import Sweep

TRACKERS = sorted(components("tracker"))
#: The library that a tracker needs.
LIBRARY = {"wandb": "wandb"}


@pytest.fixture(params=TRACKERS)
def name(request):
    return request.param


@pytest.fixture
def tracker(name):
    if name in LIBRARY and not find_spec(LIBRARY[name]):
        pytest.skip(f"{LIBRARY[name]} is not installed")
    return component("tracker", name).build()


@pytest.fixture
def records():
    """Two cells with two figures each; one figure is undefined."""
    figure = {"facet": "efficacy", "metric": "target_proportion", "value": 0.25, "low": 0.1, "high": 0.5, "n": 24}
    figure |= {"direction": "down", "unit": "fraction", "failed": 0, "attack_name": "none"}
    undefined = figure | {"metric": "ua", "value": None, "low": None, "high": None, "n": 0}
    cells = [
        dict.fromkeys(CELL, "x") | {"method": method, "method_name": method, "seed": 0}
        for method in ("none", "uce [/x]")
    ]
    rows = [cell | row for cell in cells for row in (figure, undefined)]
    return pd.DataFrame(rows).reindex(columns=RECORD_COLUMNS)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("count", [4, 0])
def test_it_takes_records_and_changes_none(tracker, records, tmp_path, count):
    """Also those of a store without figures."""
    records = records.iloc[:count]
    before = records.copy(deep=True)
    tracker.send(Sweep("k", records, tmp_path))
    pd.testing.assert_frame_equal(records, before)


def test_it_touches_nothing_of_the_store_but_a_folder_of_its_own(name, tracker, records, tmp_path, monkeypatch):
    store, here = tmp_path / "store", tmp_path / "here"
    for place in ("artefacts/measure/k", "failures"):
        (store / place).mkdir(parents=True)
    (store / "artefacts/measure/k/records.parquet").write_bytes(b"figures")
    (store / "timings.json").write_text("{}")
    here.mkdir()
    monkeypatch.chdir(here)
    before = files(store)
    tracker.send(Sweep("k", records, store))
    own = [path for path in files(store) if path.parts[0] == name]
    assert {path: content for path, content in files(store).items() if path not in own} == before
    assert list(here.iterdir()) == [] and (own or name not in LIBRARY)


@pytest.mark.parametrize("name", LIBRARY)
def test_a_missing_library_is_one_sentence_before_anything_runs(name, monkeypatch):
    monkeypatch.setitem(sys.modules, LIBRARY[name], None)
    with pytest.raises(AssetMissing, match=rf"tracker={name} needs the extra: pip install 'overpaint\[{name}\]'"):
        component("tracker", name).build()


def test_an_unknown_key_is_refused(name):
    with pytest.raises(UserError, match=f"unknown hyper-parameter 'projekt' in tracker={name}"):
        component("tracker", name).build({"projekt": "x"})
