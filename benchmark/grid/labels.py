"""Labels: a name with the values that a user set by hand, ``uce lamb=1.0``. Labels are for people; no code parses them."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from overpaint.grid.digests import digest, file_digest

#: Longest value and longest name that a label shows in full, in characters.
LONGEST, LONGEST_NAME = 40, 60
#: Number of things that a sentence names.
FEW = 6
#: Invisible characters that change the direction of text, so that one line can look like another.
DIRECTIONS = {*"\u061c\u200e\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


def printable(text: str) -> str:
    """Text that is safe to print in a terminal: control characters become spaces, direction marks are removed.

    >>> printable("a\\x1b[31mb\\nc")
    'a [31mb c'
    """
    kept = (character for character in text if character not in DIRECTIONS)
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in kept)


def label(name: str, given: Mapping[str, Any]) -> str:
    """The name followed by the values set by hand, sorted by key: ``uce lamb=1.0``."""
    shown = short(name, LONGEST_NAME)
    return " ".join([shown, *(f"{key}={said(value)}" for key, value in sorted(given.items()))]) if given else shown


def said(value: Any) -> str:
    """A value as text for a label. Long values are truncated and end in a hash; files show a name and a content hash."""
    if isinstance(value, str):
        file = file_digest(value)
        return f"{Path(value).name}#{file[:6]}" if file else short(value)
    if isinstance(value, list | tuple):
        return short(f"[{', '.join(map(str, value))}]")
    if isinstance(value, dict):
        return short(json.dumps(value, sort_keys=True, default=str))
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@lru_cache(1000)
def short(text: str, longest: int = LONGEST) -> str:
    """The text in at most ``longest`` characters. A truncated text ends in a hash of the full text."""
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 8].rstrip()}…#{digest(text)[:6]}"


def counted(count: int, what: str) -> str:
    """A number of things as text for people: ``1 task``, ``2 tasks``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def few(names: Iterable[str], most: int = FEW, between: str = ", ") -> str:
    """The first names as text for people, and how many more there are.

    >>> few(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more


def bytes_said(size: float) -> str:
    """A number of bytes as text for people: ``1.2 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:  # else three digits would be rounded to 1e+03
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
