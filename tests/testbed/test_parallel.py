"""Training is a function of its seed: a resumed run gives the same bytes as an uninterrupted run. A killed run stops."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import torch

from overpaint.testbed.parallel import Schedule, train
from processes import IMPORTED, dead_within
from small_training import build, start

WHOLE = Schedule(images=48, batch=4, peak=1e-2, ema=0.9, warm_up_steps=2, save_every=4)


def test_a_run_that_stopped_goes_on_to_the_same_bytes(tmp_path):
    folders = [tmp_path / name for name in ("whole", "halves")]
    for folder in folders:
        folder.mkdir()
    whole = train(build, start, WHOLE, folders[0], "it", seed=3)
    train(build, start, replace(WHOLE, stop=20), folders[1], "it", seed=3)
    halves = train(build, start, WHOLE, folders[1], "it", seed=3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), halves.parameters(), strict=True))
    saved = [(folder / "it.safetensors").read_bytes() for folder in folders]
    assert saved[0] == saved[1]
    torch.manual_seed(3)
    assert not torch.equal(whole.weight, build().weight)  # and it learned something


def test_workers_of_a_killed_training_in_the_background_end(tmp_path):
    """torch interrupts the workers of a dead process; a process that a script starts with ``&`` ignores interrupts."""
    training = (
        "if __name__ == '__main__':\n"
        "    import signal\n"
        "    signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "    from pathlib import Path\n"
        "    from overpaint.testbed.parallel import Schedule, train\n"
        "    from small_training import build, start\n"
        "    train(build, start, Schedule(1 << 40, batch=4, peak=0.01, ema=0.9), Path('.'), 'it')\n"
    )
    (tmp_path / "training.py").write_text(training)
    command, environment = [sys.executable, "training.py"], os.environ | {"PYTHONPATH": IMPORTED}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (tmp_path / "log.jsonl").exists():
            time.sleep(0.1)
        workers = [child for child in psutil.Process(process.pid).children() if "spawn_main" in str(child.cmdline())]
        process.kill()
    assert len(workers) == 2 and dead_within(30, workers)
