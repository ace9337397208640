"""Random draws by name, which can be replayed, and a trace of what a computation passes through.

Reference runs of official code come with every draw they made. Replaying them here sends the very function that
`overpaint.erase` runs on through the recorded noise, and the trace lets a test compare each step on the way.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_records: ContextVar[Mapping[str, Any] | None] = ContextVar("records", default=None)
_watcher: ContextVar[Callable[..., None] | None] = ContextVar("trace", default=None)


class Draws:
    """Named random draws from one seeded CPU generator.

    Inside `replayed` the n-th draw of a name is the recorded ``name.n`` where there is one.
    """

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self._count: Counter[str] = Counter()

    @classmethod
    def of(cls, *parts: object) -> Draws:
        """Draws that depend on the given values alone, whatever else is drawn elsewhere."""
        digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
        return cls(int.from_bytes(digest[:8], "big") >> 1)

    def take(self, name: str, draw: Callable[[torch.Generator], Any]) -> Any:
        """What ``draw`` makes of the generator, or the recorded value in its place."""
        key = f"{name}.{self._count[name]}"
        self._count[name] += 1
        recorded = _records.get()
        return recorded[key] if recorded is not None and key in recorded else draw(self.generator)

    def integer(self, name: str, low: int, high: int) -> int:
        """One of low … high − 1."""
        return int(self.take(name, lambda g: torch.randint(low, high, (1,), generator=g)))

    def noise(self, name: str, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """Standard normal noise with the device and type of ``like``."""
        return self.take(name, lambda g: torch.randn(shape, generator=g)).to(like)


@contextmanager
def replayed(records: Mapping[str, Any]) -> Iterator[None]:
    """Draws inside the block take recorded values, by ``name.index``, wherever there are any."""
    token = _records.set(records)
    try:
        yield
    finally:
        _records.reset(token)


@contextmanager
def traced(watcher: Callable[..., None]) -> Iterator[None]:
    """Call ``watcher(**values)`` for everything that work inside the block shows."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def trace_values(**values: Any) -> None:
    """Let whoever traces see these values; free when nobody does."""
    watcher = _watcher.get()
    if watcher:
        watcher(**values)
