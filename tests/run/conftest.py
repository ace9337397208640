"""The counting track, registered from a temporary configuration folder, and an empty store."""

import counting_track
import pytest

from overpaint.grid.registry import look_in
from overpaint.run.store import Store


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """The configuration folder of ``counting_track``, known to this process during the test."""
    monkeypatch.setattr("overpaint.grid.registry._asked", [])
    folder = counting_track.register(tmp_path / "conf")
    look_in(folder)
    return folder


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    store.prepare()
    return store
