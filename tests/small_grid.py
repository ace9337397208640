"""The figures of a small grid of images, for tests that compare engines."""

import json
from contextlib import contextmanager

import pandas as pd
import torch

from overpaint.commands.grids import planned

CELLS = ("budget=smoke", "protocol.steps=4", "concepts=church", "method=none,uce", "attack=none")
#: Figures that depend on the machine's speed and memory.
COSTS = ["erase_seconds", "erase_peak_bytes", "latency_ratio"]


def planned_in(folder, *cells):
    """The plan of a grid, and its store, which is ready."""
    grid = planned([*(cells or CELLS), f"store={folder}"])
    grid.store.prepare()
    return grid.plan, grid.store


def manifests(folder, stage="*"):
    """The manifests of a store's artefacts."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob(f"artefacts/{stage}/*/manifest.json")]


def figures(folder, run, *cells):
    """The figures of the grid, which ``run(plan, store)`` executes."""
    plan, store = planned_in(folder, *cells)
    outcome = run(plan, store)
    assert outcome.done == len(plan.tasks) and not outcome.failed
    frames = [pd.read_parquet(store.read("measure", task.key) / "records.parquet") for _, task in plan.cells]
    whole = pd.concat(frames, ignore_index=True)
    return whole[~whole["metric"].isin(COSTS)].drop(columns="seconds")


@contextmanager
def one_thread():
    """Compute with one thread, like a worker with one core: sums then round equally."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
