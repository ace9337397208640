"""What commands write: whole or not at all, and one sentence where a disk is full."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from overpaint.commands.targets import whole
from overpaint.errors import UserError


def test_what_a_command_writes_appears_when_it_is_whole(tmp_path):
    with whole(tmp_path / "a.csv") as partial:
        partial.write_text("1")
        assert not (tmp_path / "a.csv").exists()
    assert (tmp_path / "a.csv").read_text() == "1" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a defect"), UserError("x is no church")])
def test_an_interruption_leaves_what_was_there(tmp_path, error):
    (tmp_path / "a.csv").write_text("old")
    with pytest.raises(type(error)), whole(tmp_path / "a.csv") as partial:
        partial.write_text("half")
        raise error
    assert (tmp_path / "a.csv").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"a\.csv cannot be written: .*No space left"), whole(tmp_path / "a.csv"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full on this system")
def test_output_to_a_full_disk_is_one_sentence():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "overpaint.cli", "list", "metrics"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "overpaint: No space left on device: the output is incomplete\n")
