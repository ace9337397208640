"""`overpaint list`: components one per line, or the commented YAML of one."""

import pytest

from command_line import CommandLine
from overpaint.grid.registry import file_of


@pytest.fixture
def listed(tmp_path):
    return lambda *names: CommandLine(tmp_path)("list", *names).stdout


def test_a_named_component_is_printed_with_its_comments(listed):
    assert listed("methods", "uce", "esd") == "".join(file_of("method", name).read_text() for name in ("uce", "esd"))


def test_names_of_every_length_stand_in_columns(listed):
    lines = listed("experiments").splitlines()
    starts = {len(line) - len(line.split("  ", 1)[1].lstrip()) for line in lines}
    assert len(lines) > 20 and len(starts) == 1
