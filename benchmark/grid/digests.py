"""Hashes of values and of files, of which keys are made, and which texts name files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from overpaint.grid.read_once import remembered
from overpaint.grid.shipped import shipped

#: Suffixes of image files.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
#: Suffixes of files of weights in a folder of one network or LoRA.
WEIGHT_SUFFIXES = (".safetensors", ".bin")


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
            if path.expanduser().is_file():
                return _hash(path.expanduser())
            if any(is_file(path / name) for name in ("model_index.json", "config.json")):
                folder = path.expanduser()
                files = sorted(file for file in folder.rglob("*") if file.is_file())
                return digest({file.relative_to(folder).as_posix(): _hash(file) for file in files})
            if (folder := path.expanduser()).is_dir():
                inside = sorted(file for file in folder.glob("*") if file.is_file())
                # a LoRA, or a network without its configuration
                if any(file.suffix in WEIGHT_SUFFIXES for file in inside):
                    return digest({file.name: _hash(file) for file in inside})
                files = [file for depth in ("*", "*/*") for file in folder.glob(depth) if file.is_file()]
                if images := sorted(file for file in files if file.suffix.lower() in IMAGE_SUFFIXES):
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
