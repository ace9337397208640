"""Complete runs from the command line: killed and resumed, two at once, interrupted, on a full disk, and full-size.

These tests take minutes: `make test-slow`.
"""

import io
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from overpaint.images.stages.generate import read_images

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
OVERPAINT = [sys.executable, "-m", "overpaint.cli"]
#: Figures that may differ between equal runs.
COSTS = ["erase_seconds", "erase_peak_bytes", "latency_ratio"]
#: The demo's methods and two of its attacks, on one concept at the smallest budget.
GRID = ["method=none,negative_prompt,uce,esd", "attack=none,synonym,random_prefix", "budget=smoke"]
#: An attack that searches six prompts in batches of two.
SEARCH = ["method=uce", "attack=uda", "attack.timesteps=2", "attack.iterations=15", "budget=smoke"]
SEARCH += ["budget.target_prompts=6", "protocol.batch_size=2"]


def start(store, *grid):
    """Start `overpaint run` of this checkout in a separate process."""
    command = [*OVERPAINT, "run", *grid, f"store={store}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def table(store):
    """All figures of a store, one row each, except those that depend on time."""
    command = [*OVERPAINT, "table", f"store={store}", "--format", "csv"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    records = pd.read_csv(io.BytesIO(done.stdout))
    records = records[~records["metric"].isin(COSTS)].drop(columns="seconds")
    return records.sort_values(["concepts", "method", "attack", "metric"]).reset_index(drop=True)


def made(store):
    return {p.parent.name: p.stat().st_mtime_ns for p in Path(store).glob("artefacts/*/*/manifest.json")}


def test_killed_five_times_and_resumed(tmp_path):
    """The whole demo: `overpaint run` without arguments."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    rng, seen = random.Random(7), {}
    for _ in range(5):
        process = start(killed)
        time.sleep(rng.uniform(5, 90))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        now = made(killed)
        assert seen.items() <= now.items(), "an artefact was made twice"
        seen = now
    assert seen, "killed before anything was made"
    for store in (killed, whole):
        process = start(store)
        process.communicate()
        assert process.returncode == 0
    assert seen.items() <= made(killed).items()
    pd.testing.assert_frame_equal(table(killed), table(whole), check_exact=True)


def test_killed_in_the_middle_of_an_attack(tmp_path):
    """The files of finished prompts are kept; the resumed run gives the same results as an uninterrupted run."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"

    def found(store):
        places = (store / "artefacts" / "attack").glob("*/*")
        return {p.relative_to(store): (p.stat().st_ino, p.stat().st_mtime_ns) for p in places if p.is_file()}

    process = start(killed, *SEARCH)
    while process.poll() is None and not found(killed):
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    kept = found(killed)
    for store in (killed, whole):
        process = start(store, *SEARCH)
        process.communicate()
        assert process.returncode == 0
    made, wanted = found(killed), found(whole)
    assert kept and kept.items() < made.items(), "finished prompts stay, and the attack was not over"
    assert made.keys() == wanted.keys()
    for path in made:
        if path.name != "manifest.json":
            assert (killed / path).read_bytes() == (whole / path).read_bytes(), path
    pd.testing.assert_frame_equal(table(killed), table(whole), check_exact=True)


def test_two_runs_on_one_store(tmp_path):
    processes = [start(tmp_path / "store", *GRID) for _ in range(2)]
    errors = [p.communicate()[1] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], errors
    lines = [line for text in errors for line in text.splitlines() if line.startswith("[")]
    assert len(lines) == len(made(tmp_path / "store")), "only the run that made an artefact reports it"


def test_interrupt_ends_within_seconds(tmp_path):
    process = start(tmp_path / "store", *GRID)
    while not process.stderr.readline().startswith("["):  # the first finished task
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    begin = time.perf_counter()
    _, err = process.communicate()
    assert time.perf_counter() - begin < 5
    assert process.returncode == 130 and "run the same command to continue" in err


def test_full_disk_is_one_sentence(tmp_path):
    """A store on a file system of 256 kB. The test needs the right to mount one."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place]).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        process = start(place, *GRID)
        _, err = process.communicate()
        assert process.returncode == 2, err
        assert "cannot write to the store" in err and "Traceback" not in err
    finally:
        subprocess.run(["umount", place], check=True)


def test_full_size_model_on_the_cpu(tmp_path):
    """UCE and a two-step image on a pipeline with the shape of SD 1.4, within 24 GiB."""
    subprocess.run([sys.executable, ROOT / "scripts" / "build_random_sd.py", tmp_path / "sd"], check=True)
    grid = [
        "model=local",
        "model.detector=null",
        f"model.path={tmp_path / 'sd'}",
        "concepts.erase=[church]",
        "method=uce",
        "protocol=ddim50",
    ]
    grid += ["protocol.steps=2", "budget=smoke", "budget.target_prompts=1", "budget.utility_prompts=0"]
    grid += ["budget.grid=0", "budget.in_prompt=0"]
    process = start(tmp_path / "store", *grid)
    _, err = process.communicate()
    assert process.returncode == 0, err
    folders = [manifest.parent for manifest in (tmp_path / "store").glob("artefacts/generate/*/manifest.json")]
    assert folders and {image.size for folder in folders for image in read_images(folder)} == {(512, 512)}
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 24 << 20
