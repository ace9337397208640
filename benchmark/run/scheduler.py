"""The next tasks of each worker. A scheduler knows a plan, costs and the results of tasks, but no store, clock or process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from itertools import islice

from overpaint.run.plan import Plan
from overpaint.run.tasks import Task

#: Number of times that a bundle is handed out if its workers die or its inputs are damaged. Then it has failed.
TRIES = 4
#: Why a task has failed whose workers died each time.
DIED = f"the {TRIES} workers that tried it have died; if memory is short, use fewer workers"
#: A path is urgent if it takes longer than this share of what is left for each worker.
URGENT = 0.5
#: Number of things to load from which a worker that has used up its own chooses.
CHOICES = 64


class Scheduler:
    """Hands out the tasks of a plan, each after its inputs.

    Every task waits for a number of inputs that are still to be made; a task that waits for none is ready. Tasks come in
    bundles, lists of tasks that are made in one go. Each bundle that `next` hands out is answered by one of `made`,
    `fail`, `put_back` and `wait_for`.

    The order is that of the plan, but a worker first gets the tasks that need what it has loaded (`Task.loads`). With several
    workers, the task with the longest path to the end comes first as soon as that path is urgent (`URGENT`).

    ``failed`` holds the reason by task key, ``blocked`` the keys of tasks with an input that failed or is blocked.

    Args:
        seconds: how long a task takes, about.
        workers: how many work at the same time.
        start: where in the plan to begin, from 0 to 1. Processes that schedule for themselves begin at different places.
    """

    def __init__(
        self,
        plan: Plan,
        todo: Iterable[Task],
        seconds: Callable[[Task], float] = lambda task: 1.0,
        workers: int = 1,
        start: float = 0.0,
    ):
        self.failed: dict[str, str] = {}
        self.blocked: set[str] = set()
        self.workers = workers
        self._plan, self._seconds, self._start = plan, seconds, start
        self._in_hand: set[str] = set()
        self._elsewhere: set[str] = set()
        self._returned: Counter[str] = Counter()
        self._alone: set[str] = set()  # tasks whose bundle failed, so that they are tried one by one
        self._loaded: dict[str, str] = {}  # by worker
        self.update(todo)

    def update(self, todo: Iterable[Task]) -> None:
        """Take another list of missing tasks, inputs first, after damage for instance. What failed and is in hand stays so."""
        tasks = [task for task in todo if task.key not in self.failed]
        self._open = {task.key: self._seconds(task) for task in tasks}
        self._left = sum(self._open.values())
        first = int(self._start * len(tasks))
        self._place = {task.key: (place - first) % len(tasks) for place, task in enumerate(tasks)}
        self._inputs_left: dict[str, int] = {}
        self._needed_by: dict[str, list[str]] = {}
        self._paths: dict[str, float] = {}  # seconds from the start of a task to the end of the longest path after it
        self._ready: dict[str, list[tuple[int, str]]] = {}  # by what they load, in the order of the plan
        self._longest: list[tuple[float, int, str]] = []
        self.blocked = set()
        for task in tasks:
            missing = [key for key in set(task.inputs.values()) if key in self._open]
            self._inputs_left[task.key] = len(missing)
            for key in missing:
                self._needed_by.setdefault(key, []).append(task.key)
        for task in reversed(tasks):
            after = max((self._paths[key] for key in self._needed_by.get(task.key, ())), default=0.0)
            self._paths[task.key] = self._open[task.key] + after
        for task in tasks:
            self._push(task.key)
        for key in [task.key for task in tasks if not self.failed.keys().isdisjoint(task.inputs.values())]:
            self._block(key)

    @property
    def left(self) -> int:
        """How many tasks are neither made nor failed nor blocked."""
        return len(self._open)

    @property
    def elsewhere(self) -> int:
        """How many tasks wait for another process that is making them."""
        return len(self._elsewhere)

    @property
    def narrows(self) -> bool:
        """Whether the processes that make tasks elsewhere suffice to the end, where every task waits for them.

        Counts the bundles by the number of bundles that must be made before them: no count is larger than that of the first.
        """
        depth: dict[str, int] = {}
        for key, task in self._plan.tasks.items():
            if key in self._open:
                depth[key] = 1 + max((depth[other] for other in task.inputs.values() if other in depth), default=0)
        bundles = {(place, id(self._plan.bundles.get(key, key))) for key, place in depth.items()}
        count = Counter(place for place, _ in bundles)
        return max(count.values(), default=0) <= count[1]

    def next(self, worker: str = "") -> list[Task] | None:
        """The bundle for a worker to make next; ``None`` if nothing is ready."""
        key = self._urgent() or self._first((self._loaded.get(worker, ""), "")) or self._new() or self._any()
        if key is None:
            return None
        task = self._plan.tasks[key]
        self._loaded[worker] = task.loads or self._loaded.get(worker, "")
        bundle = [task] if key in self._alone else self._plan.bundles.get(key, [task])
        self._in_hand.update(t.key for t in bundle)
        return bundle

    def _urgent(self) -> str | None:
        """The task with the longest path, if that path is urgent."""
        while self._longest:
            seconds, _, key = self._longest[0]
            if self._is_ready(key):
                share = self._left / self.workers
                return key if self.workers > 1 and -seconds > URGENT * share else None
            heappop(self._longest)
        return None

    def _new(self) -> str | None:
        """The first of some ready tasks that load what no worker has loaded."""
        taken = set(self._loaded.values())
        return self._first(islice((what for what in self._ready if what not in taken), CHOICES))

    def _any(self) -> str | None:
        """The first of some ready tasks."""
        return self._first(islice(self._ready, CHOICES))

    def _first(self, loads: Iterable[str]) -> str | None:
        """The first ready task that loads one of these."""
        keys = [key for what in list(loads) if (key := self._loading(what))]
        return min(keys, key=self._place.__getitem__, default=None)

    def _loading(self, what: str) -> str | None:
        """The first ready task that loads ``what``."""
        ready = self._ready.get(what, [])
        while ready and not self._is_ready(ready[0][1]):
            heappop(ready)
        if ready:
            return ready[0][1]
        self._ready.pop(what, None)
        return None

    def _is_ready(self, key: str) -> bool:
        return key in self._open and key not in self._in_hand and key not in self._elsewhere

    def made(self, bundle: Sequence[Task]) -> None:
        """The bundle is stored, by this run or by another."""
        self._in_hand.difference_update(t.key for t in bundle)
        for key in [t.key for t in bundle if t.key in self._open]:
            self._close(key)
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
        self._close(key)
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
        self._elsewhere.update(t.key for t in bundle if t.key in self._open)

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
            heappush(self._ready.setdefault(self._plan.tasks[key].loads, []), (self._place[key], key))
            heappush(self._longest, (-self._paths[key], self._place[key], key))

    def _close(self, key: str) -> None:
        """The task needs no more work in this run."""
        self._left -= self._open.pop(key, 0.0)

    def _block(self, key: str) -> None:
        waiting = [key]
        while waiting:
            key = waiting.pop()
            if key in self._open:
                self._close(key)
                self.blocked.add(key)
                waiting += self._needed_by.get(key, ())
