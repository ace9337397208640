"""Location of the data folders: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def shipped(name: str) -> Path:
    """The path of the folder ``conf``, ``datasets`` or ``leaderboards``, in a checkout and in an installed wheel."""
    here = Path(__file__).resolve().parents[1]
    return here / name if (here / name).is_dir() else here.parent / name
