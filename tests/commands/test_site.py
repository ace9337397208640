"""`overpaint site` with the records of a store beside result files."""

import pytest

from command_line import CommandLine
from processes import ROOT

GRID = ["concepts=church", "method=none,uce", "attack=none", "budget=smoke", "protocol.steps=2", "store=store"]
PUBLISHED = str(ROOT / "leaderboards" / "results" / "demo")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A command line in a folder with the store of a small grid."""
    cli = CommandLine(tmp_path_factory.mktemp("site"))
    cli("run", *GRID)
    return cli


def pages(run, out, *arguments):
    run("site", f"out={out}", *arguments)
    folder = run.folder / out
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_store_and_result_files_are_shown_together_in_either_order(run):
    one = pages(run, "one", "store=store", "--from", PUBLISHED)
    assert one == pages(run, "other", "--from", PUBLISHED, "store=store")
    assert f"Read from the store store and {PUBLISHED}." in one["made.html"].decode()
    assert [name for name in one if name.startswith("pictures/")]


def test_a_filter_can_leave_nothing_of_the_store(run):
    """Its pictures are left out as well, and the site does not say that it was read."""
    both = pages(run, "filtered", "store=store", "--from", PUBLISHED, "concepts=sketch")
    assert not [name for name in both if name.startswith("pictures/")]
    assert "sketch" in both["index.html"].decode()
    assert f"Read from {PUBLISHED}." in both["made.html"].decode()
    ours = pages(run, "ours", "store=store", "--from", PUBLISHED, "budget=smoke")
    assert "Read from the store store." in ours["made.html"].decode()
    alone = run("site", "out=none", "store=store", "concepts=sketch", code=2).stderr
    assert "sketch" in alone and not (run.folder / "none").exists()
