"""The command line, called inside the test's process."""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from overpaint.cli import main


def called(*arguments):
    """Call the command line; returns the exit code."""
    try:
        with patch("sys.argv", ["overpaint", *arguments]):
            main()
    except SystemExit as ended:
        return ended.code or 0
    return 0


@dataclass(frozen=True)
class Done:
    """What a command printed."""

    stdout: str
    stderr: str


@dataclass(frozen=True)
class CommandLine:
    """``cli("run", "method=uce")`` in a folder; raises an AssertionError if the exit code is not ``code``."""

    folder: Path

    def __call__(self, *arguments, code=0):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            found = called(*arguments)
        assert found == code, f"exit code {found}: {err.getvalue()}"
        return Done(out.getvalue(), err.getvalue())
