"""Counts the steps of methods and attacks, for the common suites: what they repeat must be a length that a budget can shorten."""

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from overpaint.errors import UserError
from overpaint.grid.lengths import Shortenable
from overpaint.run.progress import watched


def work(task: Callable[[], object]) -> int:
    """The number of optimiser steps and of announced steps that a task takes."""
    steps = 0

    def count(*_) -> None:
        nonlocal steps
        steps += 1

    hook = register_optimizer_step_post_hook(count)
    try:
        with watched(lambda done, total, what: count() if done < total else None):
            task()
    finally:
        hook.remove()
    return steps


def undeclared(built: Shortenable, defaults: Mapping[str, Any], run: Callable[..., object]) -> list[str]:
    """Integer hyper-parameters that are no declared length, although a larger value means more steps.

    ``run(**values)`` runs the component as it was ``built``, except for these values.
    """
    own = {key: getattr(built, key) for key in defaults if key not in (*built.lengths, *built.paced)}
    larger = {key: more for key, value in own.items() if (more := _larger(value)) is not None}
    before = work(run)

    def grows(**values) -> bool | None:
        try:
            return work(lambda: run(**values)) > before
        except UserError:  # these values are not allowed together
            return None

    if not larger or grows(**larger) is False:
        return []
    return [key for key, value in larger.items() if grows(**{key: value})]


def _larger(value: Any) -> Any:
    """The next integer, or a list with a larger last integer; ``None`` for other values."""
    if type(value) is int:
        return value + 1
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return [*value[:-1], value[-1] + 1]
    return None
