"""Output paths of commands: checked before any work starts, and written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from overpaint.errors import UserError
from overpaint.grid.paths import path_of, permit


def target(out: str, suffix: str = "", overwrite: bool = False) -> Path:
    """The path of ``out=``, a folder without a ``suffix``. Raises a `UserError` if it has another suffix, exists, or cannot be
    written."""
    path = path_of(out, "out")
    if suffix and path.suffix != suffix:
        raise UserError(f"out={out} must end in {suffix}")
    if not path.parent.is_dir():
        raise UserError(f"out={out}: the folder {Path(out).parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"out={out}: the folder {Path(out).parent} cannot be written to")
    if path.is_dir() or (os.path.lexists(path) and not suffix):  # a folder is not replaced, and replaces nothing
        raise UserError(f"out={out} exists already: remove it or choose another name")
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"out={out} exists already: choose another name, or add --overwrite")
    return path


def check_writable(path: Path) -> None:
    """Raise a `UserError` if no file can be written beside ``path``. For a command that computes for long before it writes."""
    before = path.parent.stat()
    _beside(path).rmdir()
    with suppress(OSError):  # of a folder of somebody else
        os.utime(path.parent, ns=(before.st_atime_ns, before.st_mtime_ns))


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path in a temporary folder beside ``path``. What the block writes there becomes ``path`` if the block succeeds.

    Raises a `UserError` if it cannot be written, for example because the disk is full.
    """
    folder = _beside(path)
    try:
        yield folder / path.name
        new = folder / f"{path.name[:40]}.new"
        new.touch()
        permit(folder / path.name, new)
        (folder / path.name).replace(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error
    except UserError as error:  # of code that knows the temporary path only
        error.args = (str(error).replace(str(folder / path.name), str(path)), *error.args[1:])
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A new temporary folder beside ``path``. Raises a `UserError` if it cannot be made."""
    try:
        return Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:40]}-"))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
