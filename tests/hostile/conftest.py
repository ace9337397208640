"""The one check of hostile input: exit code 2, one sentence, nothing written."""

import os

import pytest

from command_line import called
from overpaint.grid.cells import cell_from, merged
from overpaint.grid.composition import compose_cells
from overpaint.grid.registry import look_in
from overpaint.grid.roles import ROLES, shortfalls


def listing(folder):
    """Every file below a folder with its size and time of change; links are not followed."""
    found = (os.path.join(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files))
    return {path: (stat.st_mode, stat.st_size, stat.st_mtime_ns) for path in found if (stat := os.lstat(path))}


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def here(tmp_path, monkeypatch, cache):
    """An empty working folder. No folder of components stays in the search path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("OVERPAINT_STORE", raising=False)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    look_in()


@pytest.fixture(name="called")
def call_the_command_line():
    """``called("plan", "method=uce")`` calls the command line; returns the exit code."""
    return called


@pytest.fixture
def refused(here, tmp_path, capfd):
    """``refused("run", "method=x", said=["did you mean"])`` checks that the command line refuses this input."""

    def check(*arguments, said=()):
        before = listing(tmp_path)
        capfd.readouterr()
        code = called(*arguments)
        out, err = capfd.readouterr()
        assert code == 2, out + err
        assert out == "" and err.startswith("overpaint: ") and err.endswith("\n")
        assert err[:-1].isprintable() and len(err) < 1000, err
        for part in [said] if isinstance(said, str) else said:
            assert part in err
        assert listing(tmp_path) == before
        return err

    return check


@pytest.fixture
def conf(tmp_path):
    """Writes a file of a user's configuration folder; returns the override that names the folder."""

    def write(place, content):
        file = tmp_path / "conf" / f"{place}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return f"hydra.searchpath=[file://{tmp_path / 'conf'}]"

    return write


@pytest.fixture
def taken(here):
    """``taken("method=uce")`` returns the cells of overrides after all checks that need no model."""

    def check(*overrides):
        kept, _ = merged([cell_from(c.config, c.explicit) for c in compose_cells(list(overrides))])
        for cell in kept:
            assert all(label.isprintable() for label in cell.labels.values())
            shortfalls(cell)
            for role in ROLES:
                role.shots(cell.concepts, cell.budget)
        return kept

    return check
