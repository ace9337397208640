"""`overpaint status --watch` looks again until Ctrl-C."""

from types import SimpleNamespace

from command_line import CommandLine
from overpaint.commands import status
from overpaint.run.store import Store


def test_watch_draws_again_until_it_is_interrupted(tmp_path, monkeypatch):
    Store(tmp_path / "store").prepare()
    drawn, pauses = [], []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt

    def draw(found):
        drawn.append(found)
        return f"drawing {len(drawn)}"

    monkeypatch.setattr(status, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(status, "drawn", draw)
    said = CommandLine(tmp_path)("status", "--watch", "store=store", code=130)
    assert len(drawn) == 2 and "drawing 2" in said.stdout and pauses == [status.PAUSE] * 2
