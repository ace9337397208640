"""The counting track, registered for a test, and an empty store."""

import os
import tempfile
from pathlib import Path

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


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory):
    """The address of a Ray cluster of one node with two CPU cores. It sees the modules of the tests."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'overpaint[ray]'")
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(
        prefix="ray-", ignore_cleanup_errors=True
    ) as folder:  # a short path, for its sockets
        place = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", place)
            patch.setenv("RAY_TMPDIR", folder)
            arguments = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": False}
            cluster = Cluster(initialize_head=True, head_node_args=arguments)
        yield cluster.address
        cluster.shutdown()
