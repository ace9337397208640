"""Benchmark a large store: tables from many measurements, `overpaint status`, and the look at what is stored.

``python scripts/bench_store.py`` writes a synthetic store of 20,000 artefacts and measures it. ``… make DIR MEASUREMENTS OUTCOMES
OTHERS`` only writes one: so many measurements, so many outcomes for each, and so many small artefacts of stage *score*. ``… DIR``
measures that. Each figure is of a process of its own, first without the store's index and then with it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from overpaint.report.records import NUMBERS, OUTCOME_COLUMNS, RECORD_COLUMNS
from overpaint.run.store import MANIFEST, Store

#: Metrics of every synthetic measurement, with their facets.
METRICS = {
    "target_proportion": "efficacy",
    "neighbour_retention": "specificity",
    "ira": "specificity",
    "cra": "specificity",
    "prompt_agreement": "utility",
}
#: Attacks, concept sets and methods of a synthetic grid; the methods are as many as it takes.
ATTACKS = ("none", "synonym", "paraphrase", "cce", "uda", "p4d_n", "rab", "mma", "pez", "seed_search")
CONCEPTS = 50


def make(root: Path, measurements: int, outcomes: int, others: int) -> None:
    """Write a synthetic store: ``measurements`` with ``outcomes`` rows each, and ``others`` artefacts of stage score."""
    store = Store(root)
    store.prepare()
    random = np.random.default_rng(0)
    rows = random.integers(0, 2, outcomes).astype(float)
    images = outcomes // len(METRICS)
    shared = {
        "metric": np.repeat(list(METRICS), images),
        "prompt_id": np.tile([f"prompt {i}" for i in range(images)], len(METRICS)),
        "seed": np.zeros(outcomes, int),
        "label": np.full(outcomes, "shown"),
        "cluster": np.tile([f"prompt {i // 2}" for i in range(images)], len(METRICS)),
        "stratum": np.full(outcomes, ""),
        "other": np.ones(outcomes),
    }
    for number in range(measurements):
        value = np.roll(rows, number) if outcomes else rows
        table = pa.table({name: value if name == "value" else shared[name] for name in OUTCOME_COLUMNS})
        means = value.reshape(len(METRICS), -1).mean(axis=1) if outcomes else random.random(len(METRICS))
        files = {"records.parquet": records(number, means, images), "outcomes.parquet": table}
        place(store, "measure", {name: parquet(part) for name, part in files.items()}, number)
    content = {"scores.parquet": parquet(pa.table({"church": random.random(16), "failed": np.zeros(16, bool)}))}
    for number in range(others):
        place(store, "score", content, number)


def records(number: int, means: np.ndarray, images: int) -> pa.Table:
    """The records of one measurement: a point of a grid of methods, concept sets and attacks."""
    attack, concept, method = (
        number % len(ATTACKS),
        number // len(ATTACKS) % CONCEPTS,
        number // len(ATTACKS) // CONCEPTS,
    )
    said = {
        "model": "testbed", "concepts": f"concept {concept}", "kind": "object", "method": f"method {method}",
        "attack": ATTACKS[attack], "scope": "inside", "protocol": "ddim20", "budget": "lite", "metrics": "facets",
        "direction": "down", "unit": "fraction", "against": "original", "detector": "oracle v1 abc", "aggregation": "mean",
        "paper": "", "settings": f"{number:012x}", "given": "{}", "method_name": f"method {method}",
        "attack_name": ATTACKS[attack], "versions": '{"method": 1, "oracle": 2, "statistics": 9}',
    }  # fmt: skip
    columns = {}
    for name in RECORD_COLUMNS:
        if name in said:
            columns[name] = [said[name]] * len(METRICS)
        elif name in NUMBERS:
            columns[name] = [0.5] * len(METRICS)
        else:
            columns[name] = pa.nulls(len(METRICS), pa.string())
    ones = [1] * len(METRICS)
    columns |= {
        "metric": list(METRICS), "facet": list(METRICS.values()), "value": means, "low": means * 0.9, "high": means,
        "seed": [0] * len(METRICS), "n": [images] * len(METRICS), "failed": [0] * len(METRICS), "version": ones,
        "original": [1.0] * len(METRICS), "difference": means - 1, "p_value": [0.01] * len(METRICS),
    }  # fmt: skip
    return pa.table(columns)


def parquet(table: pa.Table) -> bytes:
    buffer = BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def place(store: Store, stage: str, files: dict[str, bytes], number: int) -> None:
    """Write an artefact as `Store.publish` leaves it, without the waits for the disk."""
    key = hashlib.sha256(f"{stage} {number}".encode()).hexdigest()[:24]
    folder = store.path(stage, key)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    listed = {n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()}
    manifest = {
        "stage": stage, "label": f"{stage} {number}", "config": {"shots": list(range(200))}, "inputs": {},
        "versions": {"oracle": 2}, "sources": {"method=uce": f"overpaint.methods.uce:{'a' * 16}"}, "libraries": {},
        "host": {"machine": "x86_64"}, "seconds": 1.5, "files": listed,
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


#: What is measured, as arguments of the command line.
COMMANDS = {
    "status": ["status"],
    "table, csv": ["table", "--format", "csv"],
    "table, view methods": ["table", "--format", "md", "--view", "methods"],
}


def measured(arguments: list[str]) -> dict[str, float]:
    """Seconds, seconds of the processor, and peak memory in GB of a command in a process of its own."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "overpaint.cli", *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"overpaint {' '.join(arguments)} failed")
    seconds, processor = time.perf_counter() - begin, used.ru_utime + used.ru_stime
    return {
        "seconds": round(seconds, 2),
        "processor": round(processor, 2),
        "memory_gb": round(used.ru_maxrss / 2**20, 2),
    }


def present(root: Path) -> dict[str, float]:
    """How many artefacts of all stages `Store.present` finds, and in how many seconds."""
    store, begin = Store(root), time.perf_counter()
    count = sum(len(store.present(stage)) for stage in store.stages())
    return {"artefacts": count, "seconds": round(time.perf_counter() - begin, 2)}


def measure(root: Path) -> dict[str, tuple[float, float]]:
    """Print the figures of a store, one line each. Returns seconds without and with the index by name."""
    found: dict[str, tuple[float, float]] = {}
    for name, arguments in COMMANDS.items():
        shutil.rmtree(root / "index", ignore_errors=True)
        before, after = (measured([*arguments, f"store={root}"]) for _ in range(2))
        found[name] = before["seconds"], after["seconds"]
        print(f"{name}, without index", json.dumps(before), flush=True)
        print(f"{name}, with index", json.dumps(after), flush=True)
    shutil.rmtree(root / "index")
    before, after = present(root), present(root)
    found["what is stored"] = before["seconds"], after["seconds"]
    print("what is stored, without index", json.dumps(before))
    print("what is stored, with index", json.dumps(after))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="nothing, DIR, or make DIR MEASUREMENTS OUTCOMES OTHERS")
    match parser.parse_args().what:
        case ["make", root, *counts]:
            make(Path(root), *map(int, counts))
        case [root]:
            measure(Path(root))
        case [_, *_]:
            parser.error("it takes nothing, DIR, or make DIR MEASUREMENTS OUTCOMES OTHERS")
        case _:
            with tempfile.TemporaryDirectory() as folder:
                make(Path(folder), 4000, 500, 16000)
                measure(Path(folder))


if __name__ == "__main__":
    main()
