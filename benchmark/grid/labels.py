"""What a user set by hand, as a short text beside a name: ``uce lamb=1.0``. A label is for reading and is never parsed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: The longest value that a label shows whole, and the longest name.
LONGEST, LONGEST_NAME = 40, 60


def label(name: str, given: Mapping[str, Any]) -> str:
    """``uce lamb=1.0``: the name and what was set by hand, by key."""
    return " ".join([short(name, LONGEST_NAME), *(f"{key}={said(value)}" for key, value in sorted(given.items()))])


def said(value: Any) -> str:
    """A value in a label. Long ones are cut and end in a hash; a file is its name with a hash of what it holds."""
    if isinstance(value, str):
        file = file_digest(value)
        return f"{Path(value).name}#{file[:6]}" if file else short(value)
    if isinstance(value, list | tuple):
        return short(f"[{', '.join(map(str, value))}]")
    if isinstance(value, dict):
        return short(json.dumps(value, sort_keys=True, default=str))
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def short(text: str, longest: int = LONGEST) -> str:
    """The text, cut where it is long and then with a hash of the whole."""
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 8].rstrip()}…#{digest(text)[:6]}"


def digest(value: Any) -> str:
    """A hash of JSON values that does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_digest(text: str) -> str | None:
    """A hash of the file that a text names; ``None`` where it names none. Any text may be asked about."""
    try:
        if not is_file(Path(text)):
            return None
        with Path(text).expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, RuntimeError, ValueError):
        return None


def is_file(path: Path) -> bool:
    """Whether a path names a file. Any text may be asked about: too long for a path, ``~nobody``, with a NUL byte."""
    try:
        return path.expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False
