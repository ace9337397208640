"""Benchmark a large store (`make bench`): tables from many measurements, `overpaint status`, a plan against what is stored.

``python scripts/bench_store.py make DIR MEASUREMENTS OUTCOMES OTHERS`` writes a synthetic store: so many measurements, so many
outcomes for each, and so many small artefacts of stage *score*. ``python scripts/bench_store.py DIR`` prints the seconds and the
peak memory of every command on it, each in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
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
    "table, csv": ["table", "--format", "csv"],
    "table, view methods": ["table", "--format", "md", "--view", "methods"],
}


def measured(arguments: list[str]) -> dict[str, float]:
    """Seconds and peak memory in GB of a command in a process of its own."""
    begin, process = time.perf_counter(), os.fork()
    if not process:
        with open(os.devnull, "w") as nowhere:
            command = [sys.executable, "-m", "overpaint.cli", *arguments]
            code = subprocess.run(command, stdout=nowhere).returncode
        print(json.dumps({"memory_gb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20}), flush=True)
        os._exit(code)
    _, status = os.waitpid(process, 0)
    return {"seconds": time.perf_counter() - begin, "exit code": os.waitstatus_to_exitcode(status)}


def main() -> None:
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), *map(int, sys.argv[3:6]))
        return
    for name, arguments in COMMANDS.items():
        print(name, json.dumps(measured([*arguments, f"store={sys.argv[1]}"])), flush=True)


if __name__ == "__main__":
    main()
