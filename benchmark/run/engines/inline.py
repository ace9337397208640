"""The default engine: tasks one after another in this process, on one device with all its threads."""

from __future__ import annotations

from dataclasses import dataclass

from overpaint.run.executor import Watcher
from overpaint.run.plan import Plan
from overpaint.run.runner import Outcome, run_here
from overpaint.run.store import Store
from overpaint.run.track import Track, track


@dataclass(kw_only=True)
class Inline:
    """``device``: ``auto`` is the first GPU if there is one, else the CPU. ``compile`` decides what the cells are
    (`overpaint.grid.cells.ModelSpec`): the images of compiled networks have keys of their own."""

    device: str
    compile: bool = False

    def check(self, kind: Track) -> None:
        """Raise a `UserError` if this machine lacks the device, or the compiler for ``compile``."""
        kind.check(self.device, self.compile)

    def run(self, plan: Plan, store: Store, watcher: Watcher) -> Outcome:
        return run_here(plan, store, track(plan.track).devices(self.device)[0], watcher)
