"""Labels: a name with the values that a user set by hand, ``uce lamb=1.0``. Labels are for people; no code parses them."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from overpaint.grid.read_once import remembered
from overpaint.grid.shipped import shipped

#: Longest value and longest name that a label shows in full, in characters.
LONGEST, LONGEST_NAME = 40, 60
#: Suffixes of image files.
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
#: Suffixes of files of weights in a folder of one network or LoRA.
WEIGHTS = (".safetensors", ".bin")
#: Invisible characters that change the direction of text, so that one line can look like another.
DIRECTIONS = {*"\u061c\u200e\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


def printable(text: str) -> str:
    """Text that a terminal prints and does not obey: control characters become spaces, direction marks are removed.

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


def bytes_said(size: float) -> str:
    """A number of bytes as text for people: ``1.2 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:  # else three digits would be rounded to 1e+03
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return _CANONICAL.encode(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no canonical form")


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)


def digest(value: Any) -> str:
    """A hash of JSON values that does not depend on the order of keys."""
    return hashlib.sha256(_SORTED.encode(value).encode()).hexdigest()


_SORTED = json.JSONEncoder(sort_keys=True, ensure_ascii=False)  # `json.dumps` would build one for each call


@remembered
def file_digest(text: str) -> str | None:
    """The SHA-256 of the file that a text names, or a hash of the files in a folder; ``None`` for any other text.

    A folder has networks (a ``config.json`` or a ``model_index.json``), weights, or images in it or in its subfolders. Relative
    paths are looked up in the working directory, then in ``datasets/``.
    """
    if not any(mark in text for mark in "./"):
        return None
    try:
        for path in (Path(text), shipped("datasets") / text):
            if is_file(path):
                return _hash(path.expanduser())
            if any(is_file(path / name) for name in ("model_index.json", "config.json")):
                folder = path.expanduser()
                files = sorted(file for file in folder.rglob("*") if file.is_file())
                return digest({file.relative_to(folder).as_posix(): _hash(file) for file in files})
            if (folder := path.expanduser()).is_dir():
                inside = sorted(file for file in folder.glob("*") if file.is_file())
                if any(file.suffix in WEIGHTS for file in inside):  # a LoRA, or a network without its configuration
                    return digest({file.name: _hash(file) for file in inside})
                files = [file for depth in ("*", "*/*") for file in folder.glob(depth) if file.is_file()]
                if images := sorted(file for file in files if file.suffix.lower() in IMAGES):
                    return digest({file.relative_to(folder).as_posix(): _hash(file) for file in images})
    except (OSError, RuntimeError, ValueError):
        pass
    return None


def _hash(path: Path) -> str:
    stat = path.stat()
    return _hash_of(path, stat.st_size, stat.st_mtime_ns)


@cache
def _hash_of(path: Path, size: int, modified: int) -> str:
    """The SHA-256 of a file's content; a process reads a file of this size and time once."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_file(path: Path) -> bool:
    """Whether a path names a file. Accepts any text, even one too long for a path, ``~nobody``, or one with a NUL byte.

    A bare word such as ``x`` is a value and never a file, even if the working directory contains one with this name.
    """
    try:
        return any(mark in str(path) for mark in "./") and path.expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False
