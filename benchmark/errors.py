"""Errors that the user can fix: one clear sentence, exit code 2."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

#: Maximum number of characters that a message shows of a given name.
LONGEST = 200
#: Similarity from which a name is suggested: that of ``uxe`` and ``uce``, or ``output`` and ``out``, is 0.67.
NEAR = 0.65
#: Maximum number of allowed names that a message lists.
MOST_LISTED = 60


class UserError(Exception):
    """Bad input. The message says what was given, where, what is allowed, and the nearest match."""


class AssetMissing(UserError):
    """Weights or prompt files that are not on this machine; the message says how to get them.

    ``assets`` are the names of the assets (``conf/asset``) that are missing, if they are known.
    """

    def __init__(self, message: str, *assets: str):
        super().__init__(message)
        self.assets = assets


def message(error: BaseException) -> str:
    """The message of an exception of any library; ``str`` of some raises an error itself."""
    try:
        return str(error)
    except Exception:
        return "its message cannot be read"


def changed(what: str) -> UserError:
    """The error for content that a task reads and that is no longer what its key stands for."""
    return UserError(f"{what} has changed since this run was planned; run the same command again")


def unknown(what: str, given: str, allowed: Iterable[str], where: str = "") -> UserError:
    """The error for a name that is not among the allowed ones.

    >>> str(unknown("method", "essd", ["esd", "uce"]))
    "unknown method 'essd'; did you mean 'esd'? (allowed: esd, uce)"
    """
    names, given = sorted(map(str, allowed)), str(given)[:LONGEST]
    hint = nearest(given, names)
    place = f" in {where}" if where else ""
    look = f" ({given!a})" if hint and not given.isascii() else ""  # а looks like a
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    listed = f"{', '.join(names[:MOST_LISTED]) or 'none'}{more}"
    return UserError(f"unknown {what} {given!r}{look}{place}{hint} (allowed: {listed})")


def nearest(given: str, allowed: Iterable[str]) -> str:
    """The end of a message that names the allowed name nearest to the given one, in any case; empty if none is near.

    A name that starts with the given one is near, too: ``seed_search`` for ``seed``.

    >>> nearest("church", ["Richard Eurich"])
    ''
    """
    names, wanted = {name.casefold(): name for name in allowed}, given[:LONGEST].casefold()
    near = get_close_matches(wanted, names, n=1, cutoff=NEAR)
    if not near and len(wanted) > 2:
        near = [name for name in names if name.startswith(wanted)]
    return f"; did you mean {names[near[0]]!r}?" if near else ""


def at_least(low: float, **values: float | None) -> None:
    """Refuse values below ``low`` by name: ``at_least(1, steps=self.steps)``. ``None``, a value left open, is not checked."""
    for name, value in values.items():
        if value is not None and value < low:
            raise UserError(f"{name} takes a number from {low:g} up, got {value!r}")
