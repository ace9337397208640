"""The default engine: tasks one after another in this process, on one device with all its threads."""

from __future__ import annotations

from dataclasses import dataclass

from overpaint.errors import UserError
from overpaint.images.planner import Plan
from overpaint.run.executor import Outcome, Watcher, run_tasks
from overpaint.run.store import Store


@dataclass(kw_only=True)
class Inline:
    """``device``: ``auto`` is the first GPU if there is one, else the CPU."""

    device: str

    def __post_init__(self):
        available(self.device)

    def run(self, plan: Plan, store: Store, watcher: Watcher) -> Outcome:
        return run_tasks(plan, store, available(self.device), watcher)


def available(device: str) -> str:
    """The device that is meant, if it is there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
        raise UserError(f"engine.device={device} is no device of this machine: {str(error).splitlines()[0]}") from None
    return device
