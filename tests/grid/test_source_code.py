"""The source of a component: what it covers, and what does not count as a change."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from overpaint.grid import source_code
from overpaint.grid.registry import component, look_in
from overpaint.grid.source_code import is_ours, source_now, source_of

ROOT = Path(__file__).resolve().parents[2]

FILES = {
    "pack/__init__.py": "",
    "pack/method.py": "import numpy\nfrom . import near\nfrom pack.deep.two import value\nimport other\n",
    "pack/near.py": "def late():\n    import pack.lazy\n",
    "pack/lazy.py": "from .missing import nothing\n",
    "pack/deep/__init__.py": "from ..around import x\n",
    "pack/deep/one.py": "from overpaint.errors import UserError\n",
    "pack/deep/two.py": "from .one import *\nvalue = 1\n",
    "pack/around.py": "x = 1\n",
    "pack/unused.py": "y = 1\n",
    "other.py": "z = 1\n",
    "lone.py": "import beside\nimport yaml\n",
    "beside.py": "from pack import around\n",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a package and two modules. ``place(name, text)`` writes a file, ``place()`` forgets what was computed."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name=None, text=""):
        if name:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
        for cached in (source_of, source_code._parsed, source_code._checkout, source_code._uncommitted):
            cached.cache_clear()

    for name, text in FILES.items():
        write(name, text)
    yield write
    write()


def covered(module):
    return set(source_code._files(module, source_code._inside(module)))


def test_a_package_covers_all_that_it_imports_of_itself(place):
    inside = {
        "pack",
        "pack.method",
        "pack.near",
        "pack.lazy",
        "pack.deep",
        "pack.deep.one",
        "pack.deep.two",
        "pack.around",
    }
    assert covered("pack.method") == inside
    assert not any(name.partition(".")[0] in ("pack", "lone", "other") for name in sys.modules), "nothing was imported"


def test_a_module_without_a_package_covers_what_it_imports_of_its_folder(place):
    assert covered("lone") == {"lone", "beside", "pack", "pack.around"}


def test_a_module_beside_a_checkout_does_not_cover_overpaint(place, tmp_path):
    (tmp_path / "overpaint").symlink_to(ROOT / "benchmark")
    place("lone.py", "import overpaint.errors\nfrom overpaint.methods import eraser\n")
    assert covered("lone") == {"lone"}


@pytest.mark.parametrize("name", ["pack/method.py", "pack/deep/one.py", "pack/around.py", "pack/lazy.py"])
def test_a_change_of_any_covered_file_is_a_change(place, name):
    before = source_of("pack.method:Mine")
    place(name, FILES[name] + "changed = 1\n")
    assert source_of("pack.method:Mine") != before
    place(name, FILES[name])
    assert source_of("pack.method:Mine") == before


@pytest.mark.parametrize("name", ["pack/unused.py", "other.py", "lone.py"])
def test_other_files_do_not_count(place, name):
    before = source_of("pack.method:Mine")
    place(name, "changed = 1\n")
    assert source_of("pack.method:Mine") == before


CODE = "class A:\n    def f(self, *, x=None, **y):\n        return {**y, 'a': x, 1.5: ...}\n"


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (CODE + "\n\n# a comment\n", True),
        (CODE.replace("    def", '    """What it is."""\n\n    def'), True),
        (CODE.replace("x=None, **y", "x=None,\n          **y").replace("'a'", '"a"'), True),
        ('"""A module."""\n' + CODE, True),
        (CODE.replace("None", "0"), False),
        (CODE.replace("**y, 'a': x", "'a': x, **y"), False),
        (CODE.replace("...", "'...'"), False),
        (CODE.replace("*, ", ""), False),
        (CODE + "'a string that is no docstring'\n", False),
        (CODE + "(", False),
    ],
)
def test_comments_docstrings_and_formatting_do_not_count(place, text, same):
    place("lone.py", CODE)
    before = source_of("lone:A")
    place("lone.py", text)
    assert (source_of("lone:A") == before) == same


def test_files_that_cannot_be_parsed_count_as_they_are(place):
    place("lone.py", "0" + "x" * 9)
    before = source_of("lone:A")
    assert before.startswith("lone@")
    place("lone.py", "0" + "x" * 8)
    assert source_of("lone:A") != before


def test_a_new_module_that_hides_nothing_changes_nothing_and_a_moved_one_does(place):
    before = source_of("pack.method:Mine")
    place("pack/new.py", "a = 1\n")
    assert source_of("pack.method:Mine") == before
    place("pack/near.py", "from .new import a\n")
    assert source_of("pack.method:Mine") != before


def test_several_modules_make_one_source(place):
    source = source_of("lone:Track", "pack.method:run", "overpaint.images.stages.score:run")
    assert source.startswith("lone+pack.method@") and source_now(source) == source and not is_ours(source)
    place("beside.py", "z = 2\n")
    assert source_now(source) != source, "the first one has changed"


def test_the_source_of_a_component_is_named_after_it(place, tmp_path, monkeypatch):
    monkeypatch.setattr("overpaint.grid.registry._asked", [])
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "mine.yaml").write_text("name: mine\ncomponent: pack.method:Mine\n")
    look_in(tmp_path / "conf")
    assert component("method", "mine").source == {"method=mine": source_of("pack.method:Mine")}


def git(folder, *command):
    named = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *named, *command], cwd=folder, check=True, capture_output=True)


def test_our_components_cover_their_room_and_the_blocks():
    found = covered("overpaint.methods.esd")
    assert {"overpaint.methods.esd", "overpaint.methods.eraser", "overpaint.blocks.draws"} <= found
    assert {".".join(name.split(".")[:2]) for name in found} == {"overpaint.methods", "overpaint.blocks"}


def test_our_components_have_a_source_in_a_git_checkout_only(place, tmp_path):
    """A copy of two rooms: without git, committed, edited, and with another comment."""
    for room in ("methods", "blocks", "grid"):
        shutil.copytree((ROOT / "benchmark" / room).resolve(), tmp_path / "clone" / "overpaint" / room)
    shutil.copy(ROOT / "benchmark" / "__init__.py", tmp_path / "clone" / "overpaint")
    shutil.copy(ROOT / "benchmark" / "errors.py", tmp_path / "clone" / "overpaint")
    clone = tmp_path / "clone"

    def source():
        code = "from overpaint.grid.source_code import source_of; print(source_of('overpaint.methods.esd:ESD'))"
        done = subprocess.run([sys.executable, "-c", code], cwd=clone, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    assert source() == ""
    git(clone, "init")
    assert source().endswith("-dirty"), "nothing is committed yet"
    git(clone, "add", ".")
    git(clone, "commit", "-m", "first")
    committed = source()
    assert committed.startswith("overpaint.methods.esd@") and not committed.endswith("-dirty")
    for name, changed in (("methods/uce.py", False), ("blocks/draws.py", True), ("methods/esd.py", True)):
        file = clone / "overpaint" / name
        before = file.read_text()
        file.write_text(before + "\nchanged = 1\n")
        assert (source() != committed) == changed and source().endswith("-dirty") == changed
        file.write_text(before)
    file.write_text(before + "\n# a comment\n")
    assert source() == f"{committed}-dirty"
