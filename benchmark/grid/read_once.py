"""What many cells share is read and computed once while a grid is composed and planned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
Value = TypeVar("Value")
#: Types of arguments that are compared by value; all others are compared by identity.
BY_VALUE = {str, int, float, frozenset, type(None)}

_results: dict[tuple, tuple[Any, tuple]] | None = None  # by function and arguments; None outside a block


@contextmanager
def reading_once() -> Iterator[None]:
    """A block in which `remembered` functions are computed once per argument. Blocks can be nested."""
    global _results
    outer = _results
    _results = {} if outer is None else outer
    try:
        yield
    finally:
        _results = outer


def remembered(function: Function) -> Function:
    """Decorate a function of positional arguments whose result does not change within `reading_once`.

    Outside of such a block it is computed on each call. Results must not be modified.
    """

    @wraps(function)
    def once(*arguments):
        key: tuple
        if _results is None:
            return function(*arguments)
        if len(arguments) == 1:  # most calls, millions for a large grid: without a list
            (value,) = arguments
            key = (function, value if type(value) in BY_VALUE else id(value))
        else:
            key = (function, *[value if type(value) in BY_VALUE else id(value) for value in arguments])
        found = _results.get(key)
        if found is None:
            found = _results[key] = function(*arguments), arguments  # which keeps the arguments' identities
        return found[0]

    return once  # type: ignore[return-value]


def shared(values: Sequence[Value]) -> Sequence[Value]:
    """The first sequence within `reading_once` whose values equal these; outside of such a block, the values themselves.

    Sets of concepts often have the same prompts: one list of 30,000 captions then serves all of them.
    """
    if _results is None:
        return values
    key = (shared, tuple(values))
    return _results.setdefault(key, (values, ()))[0]


def forget() -> None:
    """Forget what was read, because the folders that are searched have changed."""
    if _results is not None:
        _results.clear()
