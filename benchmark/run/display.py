"""What a person sees while a run goes on: live bars on a terminal, one line a finished task elsewhere."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from overpaint.run.estimates import Estimates
from overpaint.run.tasks import Task


def duration(seconds: float) -> str:
    """``75`` → ``1m 15s``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes}m {seconds:02d}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02d}m"


class Display:
    """Follows a run on stderr: what is at work, how far, how long left."""

    def __init__(self, tasks: Iterable[Task], estimates: Estimates, console: Console | None = None):
        self.console = console or Console(stderr=True)
        self.estimates, self.todo = estimates, {t.key: t for t in tasks}
        self.count, self.done = len(self.todo), 0
        self.live = self.console.is_terminal
        self.bars = Progress(
            TextColumn("{task.description}", table_column=None),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.live,
            transient=True,
        )
        self.all = self.bars.add_task("all tasks", total=max(1, self.count), note="")
        self.at_work: dict[str, TaskID] = {}

    def __enter__(self) -> Display:
        self.bars.start()
        return self

    def __exit__(self, *_) -> None:
        self.bars.stop()
        self.estimates.save()

    def left(self) -> str:
        seconds = self.estimates.total(self.todo.values()) / max(1, len(self.at_work))
        return f"{self.done}/{self.count}, about {duration(seconds)} left"

    def started(self, task: Task) -> None:
        if task.key not in self.todo:  # made again after damage, say
            self.todo[task.key], self.count = task, self.count + 1
        if task.key not in self.at_work:
            self.at_work[task.key] = self.bars.add_task(task.label, total=1, note="")
        self.bars.update(self.all, total=max(1, self.count), note=self.left())

    def stepped(self, task: Task, done: int, total: int, what: str) -> None:
        self.bars.update(self.at_work[task.key], completed=done, total=max(1, total), note=f"{done}/{total} {what}")

    def finished(self, task: Task, seconds: float) -> None:
        self.estimates.learn(task, seconds)
        self._drop(task)
        if not self.live:
            self.console.print(f"[{self.left()}] {task.label}: {seconds:.1f}s", highlight=False, markup=False)

    def noted(self, task: Task, note: str) -> None:
        self.console.print(f"note: {task.label}: {note}", highlight=False, markup=False, style="yellow")

    def failed(self, task: Task, reason: str) -> None:
        self._drop(task)
        self.console.print(f"failed: {task.label}: {reason}", highlight=False, markup=False, style="red")

    def waiting(self, tasks: int) -> None:
        self.bars.update(self.all, note=f"waiting for another process ({tasks} tasks)")

    def lost(self, worker: str, code: int) -> None:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        text = f"{worker} is gone ({how}); the others take over what it had in hand"
        self.console.print(text, highlight=False, markup=False, style="yellow")

    def _drop(self, task: Task) -> None:
        self.todo.pop(task.key, None)
        if task.key in self.at_work:
            self.bars.remove_task(self.at_work.pop(task.key))
        self.done += 1
        self.bars.update(self.all, completed=self.done, note=self.left())
