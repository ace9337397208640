"""`overpaint table` without results names the command that makes them, in the store that the user named."""

import pytest

from command_line import CommandLine
from overpaint.run.store import Store


@pytest.fixture
def cli(tmp_path, monkeypatch):
    monkeypatch.delenv("OVERPAINT_STORE", raising=False)
    Store(tmp_path / "my store").prepare()
    return CommandLine(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["store=nowhere", "--view", "pareto"], "method=uce,esd concepts=church attack=none store=nowhere)"),
        (["--view", "pareto"], "method=uce,esd concepts=church attack=none)"),
        (["store=nowhere", "method=uce", "budget=smoke"], "store=nowhere method=uce budget=smoke)"),
        (["store=my store", "--view", "pareto"], "method=uce,esd concepts=church attack=none store='my store'"),
    ],
)
def test_the_command_that_makes_the_figures_is_named(cli, arguments, command):
    said = cli("table", *arguments, code=2).stderr.strip()
    assert said.endswith(f"overpaint run {command}")
