"""The counting track, registered for a test, an empty store, and clusters of one node."""

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager

import counting_track
import pytest

from overpaint.grid.registry import look_in
from overpaint.run import following
from overpaint.run.store import Store
from processes import IMPORTED, ROOT, ray_of_one_node


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
def ray_cluster():
    """The address of a Ray cluster of one node with two CPU cores. It sees the modules of the tests."""
    with ray_of_one_node(cpus=2, gpus=0) as address:
        yield address


@pytest.fixture(scope="module")
def slurm_cluster():
    """A Slurm of one node with four pretended CPUs. Skips where it cannot be started."""
    with slurm(nodes=1):
        yield


@pytest.fixture
def slurm_nodes():
    """A Slurm of two nodes with two pretended CPUs each. The second one counts as another machine."""
    with slurm(nodes=2):
        yield


@contextmanager
def slurm(nodes):
    """A Slurm of so many nodes, which share four pretended CPUs, for the block."""
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'overpaint[slurm]'")
    if os.geteuid() or not shutil.which("dpkg"):
        pytest.skip("starting a Slurm on this machine needs root and Debian's packages")
    script = ROOT / "scripts" / "slurm_on_this_machine.sh"
    with tempfile.TemporaryDirectory(prefix="slurm-") as lab, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_LAB", lab)
        patch.setenv("SLURM_LAB_PORT", str(7807 + 10 * nodes))
        started = subprocess.run([script, "start", str(4 // nodes), "0", str(nodes)], capture_output=True, text=True)
        if started.returncode:
            pytest.skip(f"Slurm cannot be started here: {started.stderr.strip()}")
        patch.setenv("SLURM_CONF", f"{lab}/slurm.conf")
        patch.setenv("PYTHONPATH", IMPORTED)
        patch.setattr(following, "ASK", 2.0)
        patch.setattr(following, "PAUSE", 0.3)
        try:
            yield
        finally:
            subprocess.run([script, "stop"], check=True)
