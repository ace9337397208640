"""What is to be done next. A scheduler knows a plan and what has become of its tasks; it knows no store, clock or process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush

from overpaint.run.plan import Plan
from overpaint.run.tasks import Task

#: How often a bundle is handed out before it has failed, where no attempt failed by itself.
TRIES = 4


class Scheduler:
    """Hands out the tasks of a plan, each after its inputs, in the order of the plan.

    Every task waits for a number of inputs that are still to be made; a task that waits for none is ready. Tasks come in
    bundles, lists of tasks that are made in one go. Each bundle that `next` hands out is answered by one of `made`,
    `fail`, `put_back` and `wait_for`.

    ``failed`` holds the reason by task key, ``blocked`` the keys of tasks with an input that failed or is blocked.
    """

    def __init__(self, plan: Plan, todo: Iterable[Task]):
        self.failed: dict[str, str] = {}
        self.blocked: set[str] = set()
        self._plan = plan
        self._place = {key: place for place, key in enumerate(plan.tasks)}
        self._in_hand: set[str] = set()
        self._elsewhere: set[str] = set()
        self._returned: Counter[str] = Counter()
        self._alone: set[str] = set()  # tasks whose bundle failed, so that they are tried one by one
        self.update(todo)

    def update(self, todo: Iterable[Task]) -> None:
        """Take another list of missing tasks, after damage for instance. What failed and what is in hand stays so."""
        self._open = {task.key for task in todo} - set(self.failed)
        self._inputs_left: dict[str, int] = {}
        self._needed_by: dict[str, list[str]] = {}
        self._ready: list[tuple[int, str]] = []
        self.blocked = set()
        for key in sorted(self._open, key=self._place.__getitem__):
            missing = [name for name in set(self._plan.tasks[key].inputs.values()) if name in self._open]
            self._inputs_left[key] = len(missing)
            for name in missing:
                self._needed_by.setdefault(name, []).append(key)
            if not missing:
                self._push(key)
        for key in [k for k in self._open if not self.failed.keys().isdisjoint(self._plan.tasks[k].inputs.values())]:
            self._block(key)

    @property
    def left(self) -> int:
        """How many tasks are neither made nor failed nor blocked."""
        return len(self._open)

    @property
    def elsewhere(self) -> int:
        """How many tasks wait for another process that is making them."""
        return len(self._elsewhere)

    def next(self) -> list[Task] | None:
        """The bundle to make next; ``None`` if nothing is ready."""
        while self._ready:
            _, key = heappop(self._ready)
            if key in self._open and key not in self._in_hand and key not in self._elsewhere:
                task = self._plan.tasks[key]
                bundle = [task] if key in self._alone else self._plan.bundles.get(key, [task])
                self._in_hand.update(t.key for t in bundle)
                return bundle
        return None

    def made(self, bundle: Sequence[Task]) -> None:
        """The bundle is stored, by this run or by another."""
        self._in_hand.difference_update(t.key for t in bundle)
        for key in self._open.intersection(t.key for t in bundle):
            self._open.remove(key)
            for dependent in self._needed_by.get(key, ()):
                self._inputs_left[dependent] -= 1
                self._push(dependent)

    def fail(self, bundle: Sequence[Task], reason: str) -> None:
        """The bundle failed. Its tasks are then tried one by one; a single task has failed for good in this run."""
        if len(bundle) > 1:
            self._alone.update(t.key for t in bundle)
            self._give_back(bundle)
            return
        key = bundle[0].key
        self._in_hand.discard(key)
        self._open.discard(key)
        self.failed[key] = reason
        for dependent in self._needed_by.get(key, ()):
            self._block(dependent)

    def put_back(self, bundle: Sequence[Task]) -> bool:
        """The bundle was not made: its worker died, or an input was damaged. It is ready again; False after `TRIES`."""
        self._returned[bundle[0].key] += 1
        if self._returned[bundle[0].key] >= TRIES:
            return False
        self._give_back(bundle)
        return True

    def wait_for(self, bundle: Sequence[Task]) -> None:
        """Another process makes the bundle; it is not handed out again before `look_again`."""
        self._in_hand.difference_update(t.key for t in bundle)
        self._elsewhere.update(t.key for t in bundle)

    def look_again(self) -> None:
        """Hand out again what other processes were making: it is stored now, or has failed, or is still in the making."""
        parked, self._elsewhere = self._elsewhere, set()
        for key in parked:
            self._push(key)

    def _give_back(self, bundle: Sequence[Task]) -> None:
        self._in_hand.difference_update(t.key for t in bundle)
        for task in bundle:
            self._push(task.key)

    def _push(self, key: str) -> None:
        if key in self._open and not self._inputs_left[key]:
            heappush(self._ready, (self._place[key], key))

    def _block(self, key: str) -> None:
        if key in self._open:
            self._open.remove(key)
            self.blocked.add(key)
            for dependent in self._needed_by.get(key, ()):
                self._block(dependent)
