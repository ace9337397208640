"""A task: one stage on one unique input. Its key is a hash of everything that decides its result, and of nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from overpaint.grid.digests import canonical
from overpaint.grid.source_code import is_ours


class SharedList(list):
    """A list of lists or mappings that the configurations of many tasks contain; it is hashed once."""

    @cached_property
    def digest(self) -> Any:
        return _digest(list(self))


class SharedDict(dict):
    """A mapping that the configurations of many tasks contain; what stands for it in their keys is computed once."""

    @cached_property
    def digest(self) -> Any:
        return _digest(dict(self))


def _digest(value: Any) -> Any:
    """The value with hashes in the place of lists and mappings that contain nothing but lists and mappings."""
    if isinstance(value, _PLAIN):  # most values by far: asked first
        return value
    if isinstance(value, SharedList | SharedDict):
        return value.digest
    if isinstance(value, Mapping):
        inside = {key: part if isinstance(part, _PLAIN) else _digest(part) for key, part in value.items()}
        return hashed(inside) if value and all(isinstance(part, _CONTAINERS) for part in value.values()) else inside
    if isinstance(value, list | tuple) and value and all(isinstance(part, _CONTAINERS) for part in value):
        return hashed([_digest(part) for part in value])
    return value


_CONTAINERS, _PLAIN = (list, tuple, dict), (str, int, float, type(None))


def hashed(value: Any) -> str:
    """The first 24 hex digits of a hash of the value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Task:
    """``config``, ``inputs`` (name → key of another task), ``versions`` and ``sources`` decide the result and make the key.

    ``sources`` holds the source code of components (`overpaint.grid.source_code`), ``method=mine`` → source. `Plan.add`
    adds those of the inputs. Components of this package have versions instead: their sources are not in the key.
    ``stages`` holds the stage of each input, which `Plan.add` fills in: a worker needs nothing of the plan but its tasks.
    ``runtime`` (paths, devices, batch sizes) and ``label`` help to run the task and to name it to people.
    ``name`` replaces the hash as the key; it must be another hash of what decides the result (`overpaint.run.plan.Line`).
    ``amount`` and ``like`` are for estimates: the task is ``amount`` units of work (images or steps), and tasks of one
    stage with the same ``like`` take about the same time a unit. ``loads`` names what a worker keeps in memory for the next
    task, such as a model with its erasure; empty if that is nothing.
    """

    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    stages: Mapping[str, str] = field(default_factory=dict, kw_only=True, compare=False)
    runtime: Mapping[str, Any] = field(default_factory=dict, compare=False)
    label: str = field(default="", compare=False)
    amount: int = field(default=1, compare=False)
    like: str = field(default="", compare=False)
    loads: str = field(default="", kw_only=True, compare=False)
    name: str = field(default="", kw_only=True)

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
        """The name of the task's artefact: a hash of everything that decides its result."""
        return self.name or self.key_with(self.inputs, self.foreign)

    def key_with(self, inputs: Mapping[str, str], foreign: Mapping[str, str]) -> str:
        """The key of this task with other inputs and other sources from outside this package."""
        return hashed([self.stage, self._settings, inputs, self.versions, foreign])

    @cached_property
    def _settings(self) -> str:
        return canonical(_digest(self.config))

    def planned(self, sources: Mapping[str, str], stages: Mapping[str, str]) -> Task:
        """The same task with all sources that it depends on, and with the stages of its inputs."""
        about = (self.stage, self.config, self.inputs, self.versions, self.runtime, self.label, self.amount, self.like)
        return Task(*about, sources=sources, stages=stages, loads=self.loads, name=self.name)

    def on(self, device: str) -> Task:
        """The same task on a device."""
        return replace(self, runtime={**self.runtime, "device": device})

    def __hash__(self) -> int:
        return hash(self.key)
