"""The loop of a run: the scheduler chooses bundles of tasks, a crew makes them, and the results go back to the scheduler."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from overpaint.errors import UserError
from overpaint.run import leases, shared_run
from overpaint.run.estimates import Estimates
from overpaint.run.executor import Executor, Result, Run, Watcher
from overpaint.run.history import History
from overpaint.run.plan import HORIZON, Plan
from overpaint.run.scheduler import DIED, Scheduler
from overpaint.run.store import Store
from overpaint.run.tasks import Task

#: Seconds between two looks at tasks that other processes are making: a tenth of the time waited so far, within these limits.
PATIENCE = (0.3, 5.0)


@dataclass
class Outcome:
    """The result of a run: the number of tasks made, failed tasks with their reason, and the tasks that these blocked.

    ``elsewhere`` is a sentence for the user if the run goes on without this process, or has not begun.
    """

    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    blocked: set[str] = field(default_factory=set)
    elsewhere: str = ""


class Crew(Protocol):
    """Who makes bundles: this process, worker processes, a cluster."""

    @property
    def run(self) -> str:
        """The id of the run that it works for."""

    @property
    def size(self) -> int:
        """How many were there at the start."""

    @property
    def living(self) -> int:
        """How many are left."""

    @property
    def idle(self) -> list[str]:
        """The names of those who have no bundle."""

    def give(self, worker: str, bundle: Sequence[Task]) -> None:
        """Have a bundle made by an idle worker."""

    def results(self, timeout: float | None) -> list[tuple[Sequence[Task], Result]]:
        """The bundles that are finished, waiting for the first one for up to ``timeout`` seconds."""


class Alone:
    """A crew of one: this process. It passes over the tasks that other processes have leased until nothing else is left."""

    size = living = 1

    def __init__(self, executor: Executor, plan: Plan):
        self._executor, self._plan, self.run = executor, plan, executor.run.id
        self._bundle: Sequence[Task] | None = None

    @property
    def idle(self) -> list[str]:
        return [] if self._bundle else [""]

    def give(self, worker: str, bundle: Sequence[Task]) -> None:
        self._bundle = bundle

    def results(self, timeout: float | None) -> list[tuple[Sequence[Task], Result]]:
        bundle, self._bundle = self._bundle, None
        if bundle:
            return [(bundle, self._executor.run_one(bundle)), *self._leased()]
        time.sleep(timeout or 0)
        return []

    def _leased(self) -> list[tuple[Sequence[Task], Result]]:
        tasks = self._plan.tasks
        keys = [key for key in leases.keys(self._executor.store.root) if key in tasks]
        return [(self._plan.bundles.get(key, [tasks[key]]), Result("elsewhere")) for key in keys]


def run_here(plan: Plan, store: Store, device: str, watcher: Watcher) -> Outcome:
    """Run a plan in this process, one task after another."""
    executor = Executor(plan.track, store, device, watcher, Run.begin(store))
    return run_plan(plan, store, Alone(executor, plan), watcher)


def run_plan(
    plan: Plan, store: Store, crew: Crew, watcher: Watcher, idle_limit: float | None = None, start: float = 0.0
) -> Outcome:
    """Run what is missing, inputs first, until every task is stored or has failed.

    With ``idle_limit``, a crew that has waited for so many seconds leaves the last tasks to the processes that are at work, if
    these suffice (`Scheduler.narrows`).
    ``start``, from 0 to 1, is where in the plan to begin (`Scheduler`).

    Several processes may run one plan on one store: each task is claimed by one of them. The others go on elsewhere and
    look again when they have nothing else to do. A task that failed during this run, in any process, is not tried again.
    """
    costs = Estimates(store).guess
    scheduler, done, up_to_date, more = Scheduler(plan, plan.missing(store), costs, crew.size, start), 0, True, True
    history, idle_since, few = History(store), time.monotonic(), HORIZON // 2
    leases.sweep(store.root)
    shared_run.sweep(store)
    history.add(history.known(plan.sources) | plan.sources_stored(store))
    while True:
        if more and scheduler.left - scheduler.elsewhere < few:
            more = plan.advance(store)  # which looks for all records: not again after the last cell
            if more:
                scheduler.update(plan.missing(store))
            few = min(HORIZON, scheduler.left) // 2 or 1  # where most tasks are stored, a cell adds few to those left
        for worker in crew.idle:
            bundle = scheduler.next(worker)
            if bundle:
                crew.give(worker, bundle)
        idle = len(crew.idle) == crew.living
        if idle and not scheduler.elsewhere:
            if not up_to_date:
                scheduler.update(plan.missing(store))  # another process may have set something aside
                up_to_date = True
            if not scheduler.left:
                return Outcome(done, scheduler.failed, scheduler.blocked)
            if crew.living:
                continue
        if not crew.living:
            raise UserError(
                f"{scheduler.left} tasks are left and all {crew.size} workers are gone; what is stored stays: run the "
                "same command again, with fewer engine.workers if memory is short"
            )
        if idle:
            watcher.waiting(scheduler.elsewhere)
        waited = time.monotonic() - idle_since
        if idle and idle_limit is not None and waited > idle_limit and scheduler.narrows:
            return Outcome(done, scheduler.failed, scheduler.blocked)
        found = crew.results(min(max(waited / 10, PATIENCE[0]), PATIENCE[1]) if scheduler.elsewhere else None)
        if any(result.status != "elsewhere" for _, result in found):
            idle_since = time.monotonic()
        up_to_date = up_to_date and not found
        for made, result in found:
            done += len(result.keys)
            _settle(made, result, scheduler, watcher, store, crew)
            if result.status == "made":
                history.add({component: source for task in made for component, source in task.sources.items()})
            if result.status == "damaged":
                scheduler.update(plan.missing(store))
        if not found:
            scheduler.look_again()


def _settle(
    bundle: Sequence[Task], result: Result, scheduler: Scheduler, watcher: Watcher, store: Store, crew: Crew
) -> None:
    """Tell the scheduler and the watcher the result of a bundle."""
    if result.status == "made":
        scheduler.made(bundle)
        for task in bundle:
            if task.key in result.keys:
                watcher.finished(task, result.seconds, result.hardware)
            else:
                watcher.shared(task)
    elif result.status == "elsewhere":
        scheduler.wait_for(bundle)
    elif result.status == "failed":
        scheduler.fail(bundle, result.reason)
        if len(bundle) == 1:
            watcher.failed(bundle[0], result.reason)
    elif scheduler.put_back(bundle):  # damaged or lost: make it again
        if result.reason:
            watcher.noted(bundle[0], result.reason)
    else:
        for task in bundle:
            reason = result.reason or DIED
            scheduler.fail([task], reason)
            try:
                store.record_failure(task.key, task.label, crew.run, reason)
            except OSError as error:
                raise store.unwritable(error) from error
            watcher.failed(task, reason)
