"""The command line, called inside the test's process."""

import contextlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from overpaint.cli import main


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
        out, err, found, before = io.StringIO(), io.StringIO(), 0, Path.cwd()
        os.chdir(self.folder)
        try:
            with (
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
                patch("sys.argv", ["overpaint", *arguments]),
            ):
                main()
        except SystemExit as ended:
            found = ended.code or 0
        finally:
            os.chdir(before)
        assert found == code, f"exit code {found}: {err.getvalue()}"
        return Done(out.getvalue(), err.getvalue())
