"""Progress as events: code announces its steps, and a watcher draws them. Without a watcher nothing happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_watcher: ContextVar[Callable[[int, int, str], None] | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(watcher: Callable[[int, int, str], None]) -> Iterator[None]:
    """Call ``watcher(done, total, what)`` for every step announced inside the block."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def announce(done: int, total: int, what: str) -> None:
    """Tell the watcher that ``done`` of ``total`` steps are done; ``what`` names the steps."""
    watcher = _watcher.get()
    if watcher:
        watcher(done, total, what)


def steps(total: int, what: str) -> Iterator[int]:
    """``range(total)`` that announces each step: ``for i in steps(1000, "iterations")``."""
    for index in range(total):
        announce(index, total, what)
        yield index
    announce(total, total, what)
