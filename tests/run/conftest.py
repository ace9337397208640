"""The counting track, registered for a test, and an empty store."""

import counting_track
import pytest

from overpaint.grid.registry import look_in
from overpaint.run.store import Store


@pytest.fixture
def counting(monkeypatch):
    """Add the configuration folder of ``counting_track`` to the search path during the test."""
    monkeypatch.setattr("overpaint.grid.registry._asked", [])
    look_in(counting_track.CONF)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    store.prepare()
    return store
