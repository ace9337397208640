"""The exit code of `overpaint run`: 1 if tasks failed, 0 once they are done."""

import re

from command_line import CommandLine
from overpaint.images.stages import score

GRID = ["concepts=church", "method=none", "attack=none", "budget=smoke", "protocol.steps=2"]


def broken(*_, **__):
    raise RuntimeError("not today")


def test_a_run_with_failed_tasks_exits_with_1_and_is_continued(tmp_path, monkeypatch):
    run = CommandLine(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(score, "run", broken)
        said = run("run", *GRID, code=1).stderr
    assert re.search(r"\d tasks? failed; \d+ more need them", said)
    assert "not today" in "".join(p.read_text() for p in (tmp_path / "outputs/failures").glob("*"))
    said = run("run", *GRID).stderr
    assert "more need them" not in said and " tasks done" in said
    assert "0 tasks done" in run("run", *GRID).stderr
