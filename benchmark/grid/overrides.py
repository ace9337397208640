"""Overrides as the user types them: ``key=value``. Several values define an axis of the grid."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException

from overpaint.errors import UserError
from overpaint.grid.registry import components
from overpaint.grid.typed import bare, shown

#: Maximum number of cells of a grid, and of values of an axis.
MOST_CELLS = 200_000
#: Longer texts that cannot be read get no advice.
LONGEST = 1000
How = Literal["set", "add", "delete"]


@dataclass(frozen=True)
class Setting:
    """One override: the text as typed, its key and its values.

    ``how`` is ``set``, ``add`` (``+key=value``, for a new key) or ``delete`` (``~key``).
    """

    typed: str
    key: str
    values: tuple[Any, ...]
    how: How = "set"

    @property
    def group(self) -> str:
        """The part before the first dot: a group (``method``), or a component (``uce``)."""
        return self.key.partition(".")[0]

    @property
    def inner(self) -> str:
        """The part after the first dot; empty for ``method=uce``."""
        return self.key.partition(".")[2]


def read_override(typed: str) -> Setting:
    """Parse an override in Hydra's grammar. Raises a `UserError` that shows how to quote a text outside the grammar."""
    if typed.startswith("-"):
        raise UserError(f"there is no option {typed} here; overrides are key=value")
    try:
        parsed = OverridesParser.create().parse_override(typed)
    except (HydraException, ValueError, RecursionError):
        raise _unreadable(typed) from None
    if not parsed.key_or_group:
        raise UserError(f"cannot read the override {typed!r}: there is no key before the =")
    if parsed.package is not None:
        raise UserError(f"cannot read the override {typed!r}: a key has no package (@) here")
    how: How = "delete" if parsed.is_delete() else "add" if parsed.is_add() or parsed.is_force_add() else "set"
    typed = typed if typed.isprintable() and len(typed) <= 200 else bare(typed)
    return Setting(typed, parsed.key_or_group, tuple(_values(parsed)), how)


def _values(parsed: Override) -> list[Any]:
    """The values of an override, each as plain Python."""
    if not parsed.is_sweep_override():
        return [parsed.value()]
    sweep = parsed.value()
    if isinstance(sweep, IntervalSweep):
        raise UserError(f"{parsed.input_line}: an interval has no values to run; list some of them")
    if isinstance(sweep, Glob):
        found: list[Any] = sweep.filter(list(components(parsed.key_or_group)))
    elif isinstance(sweep, RangeSweep) and not sweep.step:
        raise UserError(f"{parsed.input_line}: a range takes a step other than 0")
    elif isinstance(sweep, RangeSweep) and ((sweep.stop or 0) - (sweep.start or 0)) / sweep.step > MOST_CELLS:
        found = [None] * (MOST_CELLS + 1)
    else:
        found = [_plain(value) for value in islice(parsed.sweep_iterator(), MOST_CELLS + 1)]
    if not found:
        raise UserError(f"{parsed.input_line} has no value")
    if len(found) > MOST_CELLS:
        raise UserError(f"{parsed.input_line} has more than {MOST_CELLS} values; a grid has at most so many cells")
    return found


def _plain(value: Any) -> Any:
    """An element of a sweep as plain Python."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(part) for key, part in value.items()}
    return value


def _unreadable(typed: str) -> UserError:
    """The error for a text outside the grammar, with the quoted form if that is valid."""
    key, equals, value = typed.partition("=")
    if not equals:
        return UserError(f"cannot read the override {shown(typed)}: overrides are key=value")
    if not typed.isprintable() or len(typed) > LONGEST:
        return UserError(f"cannot read the override {shown(typed)}")
    if value.startswith("[") and "]" not in value:  # the shell splits arguments at spaces
        return UserError(
            f"cannot read the override {shown(typed)}: the list is not closed; quote an override that has a space: "
            f"'{key}=[a b,c]'"
        )
    if not re.search(r"[\"'\\]", value):
        several = re.split(r"\s+(?=[+~]?[A-Za-z_][\w.]*=)", typed)
        if len(several) > 1:
            return UserError(
                f"cannot read the override {shown(typed)}: it holds {len(several)} overrides; give each an argument of its own: "
                f"{shlex.join(several)}"
            )
        first, *others = (part.strip() for part in value.strip("[]").split(","))
        if others and not (first and all(others)):
            return UserError(
                f"cannot read the override {shown(typed)}: a value is missing {'after' if first else 'before'} a comma"
            )
    listed = value.startswith("[") and value.endswith("]")
    each = ",".join(_quoted(part.strip()) for part in (value[1:-1] if listed else value).split(","))
    better = [f"{key}=[{each}]"] if listed else [f"{key}={_quoted(value.strip())}", f"{key}={each}"]
    readable = [shlex.quote(text) for text in dict.fromkeys(better) if in_grammar(text)]
    if not readable:
        return UserError(f"cannot read the override {shown(typed)}: overrides are key=value, in Hydra's grammar")
    sweep = f", or for a sweep: {readable[1]}" if len(readable) > 1 else ""
    return UserError(f"cannot read the override {shown(typed)}; quote it: {readable[0]}{sweep}")


def override(key: str, value: Any) -> str:
    """``key=value`` in Hydra's grammar, which `read_override` reads as this one value."""
    return f"{key}={_written(value)}"


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, dict):
        parts = (f"{_escaped(str(name))}:{_written(part)}" for name, part in value.items())  # keys take no quotes
        return f"{{{','.join(parts)}}}"
    if isinstance(value, str):
        plain = re.fullmatch(r"[\w./-]+", value, re.ASCII) and read_override(f"key={value}").values == (value,)
        return value if plain else _quoted(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _escaped(name: str) -> str:
    return re.sub(r"([\\()\[\]{}:=,\s])", r"\\\1", name)


def in_grammar(text: str) -> bool:
    """Whether Hydra can read a text as an override."""
    try:
        OverridesParser.create().parse_override(text)
    except (HydraException, ValueError, RecursionError):
        return False
    return True


def _quoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text
    return '"' + text.replace('"', '\\"') + '"'
