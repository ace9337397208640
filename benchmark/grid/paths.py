"""Paths that users type."""

from __future__ import annotations

import stat
from pathlib import Path

from overpaint.errors import UserError
from overpaint.grid.typed import bare


def path_of(text: str | Path, where: str) -> Path:
    """The absolute path of ``text``, with ``~`` expanded. It need not exist; ``where`` names the key in messages.

    Raises:
        UserError: for a text that cannot be a path: ``~nobody``, control characters, a name that is too long.
    """
    given = f"{where}={bare(str(text))}"
    if not str(text).isprintable():
        raise UserError(f"{given} is not a path: it takes printable characters on one line")
    try:
        path = Path(text).expanduser().absolute()
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except RuntimeError:
        raise UserError(f"{given} is not a path: there is no user {Path(text).parts[0]}") from None
    except OSError as error:
        raise UserError(f"{given} is not a path: {error.strerror}") from None
    return path


def content_path(text: str, where: str) -> Path:
    """`path_of` for a setting whose content is part of keys; a bare word is a value there (`overpaint.grid.digests.is_file`).

    Raises:
        UserError: for a bare word if the working directory has a file or folder of this name, and for what `path_of` refuses.
    """
    path = path_of(text, where)
    if path.exists() and not any(mark in text for mark in "./"):
        kind = "folder" if path.is_dir() else "file"
        raise UserError(f"{where}={text} is a word, not a path: write {where}=./{text} for the {kind}")
    return path


def permit(place: Path, like: Path) -> None:
    """Give a file, or all files below a folder, the permissions of the file ``like``.

    safetensors writes files that only their owner can read, which would keep a store from the others who share it.
    """
    mode = stat.S_IMODE(like.stat().st_mode)
    for file in [place, *place.rglob("*")]:
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)
