"""A store that an earlier version made still reads: two cells of version 0.1.0, before records had an identity."""

from pathlib import Path

import pytest

from overpaint.report.records import stored_records
from overpaint.report.rendering import render
from overpaint.run.store import Store

STORE = Path(__file__).with_name("store_0_1")


@pytest.fixture
def records():
    return stored_records(Store(STORE))


def test_every_cell_has_its_records_and_an_identity(records):
    assert set(records["method"]) == {"none", "uce"}
    assert records["settings"].notna().all() and records.groupby("method")["settings"].nunique().eq(1).all()
    target = records[records["metric"] == "target_proportion"].set_index("method")["value"]
    assert target["none"] == 1.0 and target["uce"] == 0.0


@pytest.mark.parametrize("form", ["md", "latex", "csv", "json"])
def test_its_figures_are_in_every_format(records, form):
    text = render(records, form)
    assert "uce" in text and ("0.66" in text or "0.657" in text)  # the interval of 0 of 2
