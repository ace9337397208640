"""A task: one stage on one unique input. Its key is a hash of everything that decides its result, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from overpaint.grid.source_code import is_ours


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | set | frozenset):
        return sorted(value) if isinstance(value, set | frozenset) else list(value)
    raise TypeError(f"{type(value).__name__} has no canonical form")


@dataclass(frozen=True)
class Task:
    """``config``, ``inputs`` (name → key of another task), ``versions`` and ``sources`` decide the result and make the key.

    ``sources`` holds the source code of components (`overpaint.grid.source_code`), ``method=mine`` → source. `Plan.add`
    adds those of the inputs. Components of this package have versions instead: their sources are not in the key.
    ``runtime`` (paths, devices, batch sizes) and ``label`` help to run the task and to name it to people.
    ``amount`` and ``like`` are for estimates: the task is ``amount`` units of work (images or steps), and tasks of one
    stage with the same ``like`` take about the same time a unit.
    """

    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    runtime: Mapping[str, Any] = field(default_factory=dict, compare=False)
    label: str = field(default="", compare=False)
    amount: int = field(default=1, compare=False)
    like: str = field(default="", compare=False)

    @property
    def pace(self) -> str:
        """The kind of the task for estimates: its stage and ``like``."""
        return f"{self.stage}/{self.like}"

    @property
    def foreign(self) -> dict[str, str]:
        """The sources of components from outside this package."""
        return {component: source for component, source in self.sources.items() if not is_ours(source)}

    @cached_property
    def key(self) -> str:
        decides = {"stage": self.stage, "config": self.config, "inputs": self.inputs, "versions": self.versions}
        if self.foreign:
            decides["sources"] = self.foreign
        return hashlib.sha256(canonical(decides).encode()).hexdigest()[:24]

    def on(self, device: str) -> Task:
        """The same task, told where to run."""
        return replace(self, runtime={**self.runtime, "device": device})

    def __hash__(self) -> int:
        return hash(self.key)
