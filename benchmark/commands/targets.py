"""Output paths of commands, checked before any work starts."""

from __future__ import annotations

import os
from pathlib import Path

from overpaint.errors import UserError


def target(out: str, suffix: str = "", overwrite: bool = False) -> Path:
    """The path of ``out=``. Raises a `UserError` if it has another suffix, exists, or cannot be written."""
    path = Path(out).expanduser()
    folder = path.absolute().parent
    if suffix and path.suffix != suffix:
        raise UserError(f"out={out} must end in {suffix}")
    if not folder.is_dir():
        raise UserError(f"out={out}: the folder {path.parent} does not exist")
    if not os.access(folder, os.W_OK):
        raise UserError(f"out={out}: the folder {path.parent} cannot be written to")
    if path.exists() and not overwrite:
        raise UserError(f"out={out} exists already: choose another name, or add --overwrite")
    if path.is_dir():
        raise UserError(f"out={out} is a folder: remove it or choose another name")
    return path
