"""The Weights & Biases tracker writes one run per cell, offline and without an account."""

import sys
import time

import pandas as pd
import pytest

from overpaint.errors import AssetMissing
from overpaint.grid.registry import component
from overpaint.report.records import CELL


@pytest.fixture
def records():
    cell = dict.fromkeys(CELL, "x")
    figure = {"facet": "efficacy", "metric": "target_proportion", "value": 0.25, "low": 0.1, "high": 0.5, "n": 24}
    return pd.DataFrame([cell | figure | {"method": method} for method in ("none", "uce")])


def test_one_offline_run_a_cell_with_its_figures(records, tmp_path):
    pytest.importorskip("wandb")
    component("tracker", "wandb").build().send(records, str(tmp_path))
    for _ in range(100):  # wandb's own process writes the last blocks after `finish` has returned
        written = [path.read_bytes() for path in tmp_path.glob("wandb/offline-run-*/*.wandb")]
        if len(written) == 2 and all(b"efficacy/target_proportion/low" in log for log in written):
            break
        time.sleep(0.1)
    assert len(written) == 2
    assert all(b"efficacy/target_proportion/low" in log for log in written)
    assert sum(b"x / x / uce / x" in log for log in written) == 1


def test_none_writes_nothing(records, tmp_path):
    component("tracker", "none").build().send(records, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_told_before_anything_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(AssetMissing, match=r"overpaint\[wandb\]"):
        component("tracker", "wandb").build()
