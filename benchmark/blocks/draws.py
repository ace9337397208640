"""Named random draws that can be replayed, and a trace of intermediate values.

Tests compare methods and attacks with recorded runs of official code. The recordings contain every random draw. Inside
`replayed`, our code uses these draws instead of its own; inside `traced`, a test sees the intermediate values.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from overpaint.models.lazily import torch

_records: ContextVar[Mapping[str, Any] | None] = ContextVar("records", default=None)
_watcher: ContextVar[Callable[..., None] | None] = ContextVar("trace", default=None)


class Draws:
    """Named random draws from one seeded CPU generator.

    Inside `replayed`, the n-th draw of a name is the recorded ``name.n`` if there is one.
    """

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self._count: Counter[str] = Counter()

    @classmethod
    def of(cls, *parts: object) -> Draws:
        """Draws seeded by a hash of the given values, independent of all other draws."""
        digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
        return cls(int.from_bytes(digest[:8], "big") >> 1)

    def take(self, name: str, draw: Callable[[torch.Generator], Any]) -> Any:
        """``draw(generator)``, or the recorded value instead."""
        key = f"{name}.{self._count[name]}"
        self._count[name] += 1
        recorded = _records.get()
        return recorded[key] if recorded is not None and key in recorded else draw(self.generator)

    def integer(self, name: str, low: int, high: int) -> int:
        """A uniform integer from ``low`` to ``high`` − 1."""
        return int(self.take(name, lambda g: torch.randint(low, high, (1,), generator=g)))

    def noise(self, name: str, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """Standard normal noise, drawn on the CPU in float32, with the device and dtype of ``like``."""
        return self.take(name, lambda g: torch.randn(shape, generator=g)).to(like)


@contextmanager
def replayed(records: Mapping[str, Any]) -> Iterator[None]:
    """Draws inside the block return the recorded values ``name.index`` where they exist."""
    token = _records.set(records)
    try:
        yield
    finally:
        _records.reset(token)


@contextmanager
def traced(watcher: Callable[..., None]) -> Iterator[None]:
    """Call ``watcher(**values)`` for all values that code inside the block reports."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def trace_values(**values: Any) -> None:
    """Report intermediate values to `traced`; does nothing outside of it."""
    watcher = _watcher.get()
    if watcher:
        watcher(**values)
