"""What a person sees of a run: live bars on a terminal, elsewhere one line for each finished task."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from overpaint.grid.labels import printable
from overpaint.run.estimates import Estimates, amounts
from overpaint.run.plan import Work
from overpaint.run.progress import watched
from overpaint.run.tasks import Task


@contextmanager
def steps_shown(console: Console) -> Iterator[None]:
    """Context: the announced steps are shown as a bar, if the console is a terminal."""
    hidden, both = not console.is_terminal, sys.stdout.isatty()  # else what is printed goes where it should
    with Progress(console=console, transient=True, disable=hidden, redirect_stdout=both) as bars:
        bar = bars.add_task("", total=None)
        with watched(lambda done, total, what: bars.update(bar, completed=done, total=total, description=what)):
            yield


class Display:
    """A watcher that shows a run on stderr: what is at work, how far it is, how long the rest takes.

    ``interrupted`` is asked at every step. An interruption that a library has swallowed ends the run there. ``more`` is the
    work of tasks that are not planned yet, with their number (`Plan.unopened`).
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        estimates: Estimates,
        console: Console | None = None,
        interrupted: Callable[[], bool] = lambda: False,
        more: Mapping[Work, int] | None = None,
    ):
        self.console, self.interrupted = console or Console(stderr=True), interrupted
        self.estimates, self.todo, self.more = estimates, {t.key: t for t in tasks}, Counter(more or {})
        self.amounts = amounts(self.todo.values(), self.more)
        self.count, self.done = len(self.todo) + self.more.total(), 0
        self.live = self.console.is_terminal
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        self.all = self.bars.add_task("all tasks", total=max(1, self.count), note="")
        self.at_work: dict[str, TaskID] = {}
        self.workers = 1  # how many tasks were at work when the last one started

    def __enter__(self) -> Display:
        if self.live:
            self.bars.start()
        return self

    def __exit__(self, *_) -> None:
        if self.live:
            self.bars.stop()
        self.estimates.save()

    def left(self) -> str:
        """How many tasks are done, and the estimate for the others."""
        return f"{self.done}/{self.count}, left: {self.estimates.of_amounts(self.amounts).shared(self.workers)}"

    def _go_on(self) -> None:
        """Raise a `KeyboardInterrupt` if the user has asked the run to stop."""
        if self.interrupted():
            raise KeyboardInterrupt

    def started(self, task: Task) -> None:
        self._go_on()
        if task.key not in self.todo:
            self.todo[task.key] = task
            if self.more[Work.of(task)]:
                self.more[Work.of(task)] -= 1
            else:  # made again after damage
                self.count += 1
                self.amounts[task.pace] += task.amount
        if task.key not in self.at_work:
            self.at_work[task.key] = self.bars.add_task(printable(task.label), total=1, note="")
            self.workers = len(self.at_work)
        self.bars.update(self.all, total=max(1, self.count), note=self.left())

    def stepped(self, task: Task, done: int, total: int, what: str) -> None:
        self._go_on()
        bar = self.at_work.get(task.key)
        if bar is not None:
            self.bars.update(bar, completed=done, total=max(1, total), note=f"{done}/{total} {printable(what)}")

    def finished(self, task: Task, seconds: float, hardware: str) -> None:
        self.estimates.learn(task, seconds, hardware)
        self._drop(task)
        if not self.live:
            self._say(f"[{self.left()}] {task.label}: {seconds:.1f}s")

    def shared(self, task: Task) -> None:
        self._drop(task)

    def noted(self, task: Task, note: str) -> None:
        self._say(f"note: {task.label}: {note}", style="yellow")

    def failed(self, task: Task, reason: str) -> None:
        self._drop(task)
        self._say(f"failed: {task.label}: {reason}", style="red")

    def waiting(self, tasks: int) -> None:
        self.bars.update(self.all, note=f"waiting for another process ({tasks} tasks)")

    def lost(self, worker: str, how: str) -> None:
        self._say(f"{worker} is gone ({how}); its task is made again", style="yellow")

    def _say(self, text: str, style: str | None = None) -> None:
        self.console.print(printable(text), highlight=False, markup=False, emoji=False, style=style)

    def _drop(self, task: Task) -> None:
        if task.key in self.at_work:
            self.bars.remove_task(self.at_work.pop(task.key))
        if self.todo.pop(task.key, None):
            self.done += 1
            self.amounts[task.pace] -= task.amount
            self.bars.update(self.all, completed=self.done, note=self.left())
