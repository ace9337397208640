"""The default engine: tasks one after another in this process, on one device with all its threads."""

from __future__ import annotations

from overpaint.planning import Plan
from overpaint.running import Outcome, Watcher, run_tasks
from overpaint.store import Store


def run(plan: Plan, store: Store, watcher: Watcher, device: str = "auto") -> Outcome:
    """Run the plan here. ``device="auto"`` takes the first GPU if there is one."""
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return run_tasks(plan, store, device, watcher)
