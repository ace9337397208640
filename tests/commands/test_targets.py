"""What commands write: whole or not at all, and one sentence where a disk is full."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from overpaint.commands.targets import check_writable, target, whole
from overpaint.errors import UserError


def test_what_a_command_writes_appears_when_it_is_whole(tmp_path):
    with whole(tmp_path / "a.csv") as partial:
        partial.write_text("1")
        assert not (tmp_path / "a.csv").exists()
    assert (tmp_path / "a.csv").read_text() == "1" and len(list(tmp_path.iterdir())) == 1


def test_private_files_of_a_library_become_like_others(tmp_path):
    (tmp_path / "new").touch()
    with whole(tmp_path / "pipeline") as partial:
        (partial / "unet").mkdir(parents=True)
        (partial / "unet" / "a.safetensors").touch(mode=0o600)
    with whole(tmp_path / "a.safetensors") as partial:
        partial.touch(mode=0o600)
    for name in ("a.safetensors", "pipeline/unet/a.safetensors"):
        assert (tmp_path / name).stat().st_mode == (tmp_path / "new").stat().st_mode


def test_only_files_can_be_overwritten(tmp_path):
    (tmp_path / "file.csv").touch()
    (tmp_path / "folder").mkdir()
    for name, suffix, advice in (
        ("file.csv", ".csv", "choose another name, or add --overwrite"),
        ("folder", "", "remove it or choose another name"),
        ("file.csv", "", "remove it or choose another name"),
    ):
        with pytest.raises(UserError, match=f"exists already: {advice}$"):
            target(str(tmp_path / name), suffix)
    assert target(str(tmp_path / "file.csv"), ".csv", overwrite=True) == tmp_path / "file.csv"
    with pytest.raises(UserError, match="exists already: remove it"):
        target(str(tmp_path / "folder"), overwrite=True)


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


def test_an_error_names_the_output_not_the_temporary_path(tmp_path):
    path = tmp_path / "a.csv"
    with pytest.raises(UserError, match=f"^{re.escape(str(path))} is full$"), whole(path) as partial:
        raise UserError(f"{partial} is full")
    with pytest.raises(UserError, match=f"^{re.escape(str(path))} cannot be written: No such file[^/]*$"), whole(path):
        pass


@pytest.mark.parametrize("write", [check_writable, lambda path: whole(path).__enter__()])
def test_a_file_system_that_is_read_only_is_one_sentence(tmp_path, monkeypatch, write):
    def refused(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.mkdtemp", refused)
    with pytest.raises(UserError, match=r"a\.csv cannot be written: Read-only file system$"):
        write(tmp_path / "a.csv")


def test_a_check_leaves_nothing(tmp_path):
    check_writable(tmp_path / "a.csv")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full on this system")
def test_output_to_a_full_disk_is_one_sentence():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "overpaint.cli", "list", "metrics"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "overpaint: No space left on device: the output is incomplete\n")
