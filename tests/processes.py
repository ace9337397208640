"""Processes of runs: those of the engines' workers, those that carry a mark, and a Ray on this machine."""

import os
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
#: Where workers find this package and the modules of the tests.
IMPORTED = os.pathsep.join([str(ROOT), str(ROOT / "tests")])


def workers(of=None):
    """The worker processes of ``engine=local`` of this process, or of process ``of``: children of its fork server."""
    found = []
    for child in psutil.Process(of).children():
        with suppress(psutil.Error):  # it has just ended
            found += child.children() if "forkserver" in " ".join(child.cmdline()) else []
    return found


def actors():
    """The processes of Ray's actors that make something, below this process. Ray renames them after what they run."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found += [child] if "ray::Actor" in " ".join(child.cmdline()) else []
    return found


def jobs(store):
    """The processes of Slurm's workers on a store."""
    command = f"-m submitit.core._submit {store.root}/"
    found = [(p, " ".join(p.info["cmdline"] or ())) for p in psutil.process_iter(["cmdline"])]
    return [p for p, line in found if command in line and "srun" not in line and "slurm_script" not in line]


def marked(name, value):
    """The living processes with this environment variable."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            found += [process] if process.environ().get(name) == value and alive(process) else []
    return found


def alive(process):
    """Whether a process still runs. A zombie process has ended when its last thread has."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1
    except psutil.NoSuchProcess:
        return False


def dead_within(seconds, processes):
    """Whether all processes end in time."""
    until = time.monotonic() + seconds
    while any(map(alive, processes)):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@contextmanager
def ray_of_one_node(cpus, gpus):
    """The address of a Ray cluster of one node with so many CPU cores and pretended GPUs."""
    with ray_nodes(cpus, gpus) as cluster:
        yield cluster.address


@contextmanager
def ray_nodes(cpus, gpus=0):
    """A Ray cluster whose first node has so many CPU cores and pretended GPUs; its ``add_node`` starts further ones."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'overpaint[ray]'")
    from ray.cluster_utils import Cluster

    # A Ray that a run starts itself turns tokens on for the whole process, which then cannot use a cluster without them.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short:  # for its sockets
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", IMPORTED)
            patch.setenv("RAY_TMPDIR", short)
            node = {"num_cpus": cpus, "num_gpus": gpus, "include_dashboard": False}
            cluster = Cluster(initialize_head=True, head_node_args=node)
            yield cluster
        cluster.shutdown()
