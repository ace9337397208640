"""Write, install and run every example of docs/extending.md."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from overpaint.report.records import stored_records
from overpaint.run.store import Store

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n# ([^\n]+)\n(.*?)^```$", PAGE, re.S | re.M)
COMMANDS = {place: text for language, place, text in BLOCKS if language == "bash"}
FILES = {name: text for language, name, text in BLOCKS if language != "bash"}

#: Overrides that make the page's commands small; they are appended to each `overpaint run`, `plan` and `table`.
TINY = "protocol.steps=2 budget.utility_prompts=0 budget.grid=0 budget.in_prompt=0 budget.reference_images=1"


@pytest.fixture
def package(tmp_path):
    """The page's files in a folder."""
    for name, text in FILES.items():
        path = tmp_path / "package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / "package"


def shell(command, folder, tmp_path, *python_path):
    """Run a block of the page in a folder, with `overpaint` and `pip` of this interpreter."""
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    tiny = f'case "$1" in run|plan|table) set -- "$@" {TINY};; esac\n'
    (tools / "overpaint").write_text(f'#!/bin/sh\n{tiny}exec "{sys.executable}" -m overpaint.cli "$@"\n')
    target = f'[ "$1" = install ] && set -- "$@" --no-deps --no-build-isolation --target "{tmp_path / "site"}"\n'
    (tools / "pip").write_text(f'#!/bin/sh\n{target}exec "{sys.executable}" -m pip -q "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    path = [str(place) for place in (*python_path, ROOT)]
    environment = os.environ | {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(path),
        "OVERPAINT_STORE": str(tmp_path / "store"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    command = command.replace("PYTHONPATH=$PWD", "PYTHONPATH=$PWD:$PYTHONPATH")
    done = subprocess.run(["sh", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_block_of_the_page_is_run():
    assert len(BLOCKS) == PAGE.count("```") // 2, "a block without a first line that names its file"
    assert set(COMMANDS) == {
        "in the folder that contains my_package",
        "in the folder that contains pyproject.toml",
        "with the experiment, in the folder that contains my_package",
        "with the track, in the folder that contains my_package",
    }


def test_a_folder_named_in_the_search_path(package, tmp_path):
    printed = shell(COMMANDS["in the folder that contains my_package"], package, tmp_path)
    assert "anchor" in printed and "misspelt" in printed
    records = pd.concat(map(pd.read_parquet, (tmp_path / "store").rglob("records.parquet")))
    records = records[(records["method"] == "project_out") & (records["concepts"] == "village")]
    figures = records.set_index(["metric", "attack"])["n"]
    assert figures["anchor_shown", "none"] == figures["target_proportion", "none"] == 2, (
        "budget=smoke takes two prompts"
    )
    assert figures["attack_success", "misspelling"] == figures["brightness", "none"] == 2
    assert records["detector"].str.startswith("oracle_mean").all()


def test_an_experiment_of_ones_own(package, tmp_path):
    shell(COMMANDS["with the experiment, in the folder that contains my_package"], package, tmp_path)
    records = pd.concat(map(pd.read_parquet, (tmp_path / "store").rglob("records.parquet")))
    methods = {"none", "project_out strength=0.5", "project_out strength=1.0"}
    assert set(records["method"]) == methods and set(records["attack"]) == {"none", "misspelling"}
    assert set(records["concepts"]) == {"village"}
    figures = records[records["metric"] == "anchor_shown"]
    assert len(figures) == 3 and set(figures["n"]) == {4}, "two prompts with two seeds"


def test_a_package_adds_a_track(package, tmp_path):
    printed = shell(COMMANDS["with the track, in the folder that contains my_package"], package, tmp_path)
    assert "mentions" in printed and "0.50" in printed


def test_an_installed_package_is_found(package, tmp_path):
    printed = shell(COMMANDS["in the folder that contains pyproject.toml"], package, tmp_path, tmp_path / "site")
    assert re.search(r"^project_out +value projections without", printed, re.M)
    assert (package / "church.safetensors").stat().st_size > 0
    shutil.rmtree(tmp_path / "site")
    code = "from overpaint.grid.registry import components; print('project_out' in components('method'))"
    assert shell(f'"{sys.executable}" -c "{code}"', tmp_path, tmp_path).strip() == "False", "found by its entry point"


def cloned(tmp_path):
    """A copy of the checkout's code, with the links `overpaint` and `benchmark/methods`."""
    clone = tmp_path / "clone"
    for folder in ("benchmark", "methods", "conf"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, clone / folder, symlinks=True, ignore=ignored)
    (clone / "overpaint").symlink_to("benchmark")
    (clone / "datasets").symlink_to(ROOT / "datasets")
    return clone


def test_files_of_a_clone(package, tmp_path):
    """A checkout with one file more in two folders."""
    clone = cloned(tmp_path)
    shutil.copy(package / "my_package" / "project_out.py", clone / "methods")
    text = (package / "my_package" / "conf" / "method" / "project_out.yaml").read_text(encoding="utf-8")
    text = text.replace("my_package.project_out", "overpaint.methods.project_out")
    (clone / "conf" / "method" / "project_out.yaml").write_text(text, encoding="utf-8")
    out = tmp_path / "church.safetensors"
    shell(f"overpaint erase method=project_out concepts=church out={out}", tmp_path, tmp_path, clone)
    assert out.stat().st_size > 0


def edit(file, before, after):
    text = file.read_text(encoding="utf-8")
    assert text.count(before) == 1
    file.write_text(text.replace(before, after), encoding="utf-8")


@pytest.mark.parametrize("installed", [False, True], ids=["folder", "package"])
def test_a_changed_source_makes_results_again(package, tmp_path, installed):
    """The page's track, changed, with another comment, and changed back. Its figure is the share of its answers."""
    if installed:
        shell("pip install .", package, tmp_path)
        path, search = tmp_path / "site", ""
        shutil.rmtree(package)
    else:
        path, search = package, f"'hydra.searchpath=[file://{package}/my_package/conf]'"
    echo = path / "my_package" / "echo.py"

    def overpaint(command):
        said = shell(
            f"overpaint {command} {search} track=echo concepts=church budget=smoke 2>&1", tmp_path, tmp_path, path
        )
        return said, stored_records(Store(tmp_path / "store"))["value"].tolist()

    warning = "track=echo has changed since its results were made: 2 tasks to make again"
    said, figures = overpaint("run")
    assert "has changed" not in said and "2 tasks done" in said and figures == [0.5]
    edit(echo, "number % 2 else", "number % 2 < 2 else")
    if not installed:
        said, figures = overpaint("plan")
        assert warning in said and figures == [0.5]
    said, figures = overpaint("run")
    assert warning in said and "2 tasks done" in said and figures == [1.0], "not both records"
    edit(echo, "class Bench:", "# A comment\nclass Bench:")
    if not installed:
        said, _ = overpaint("plan")
        assert "has changed" not in said and "everything is stored" in said
    edit(echo, "number % 2 < 2 else", "number % 2 else")
    said, figures = overpaint("run")
    assert "has changed" not in said and "0 tasks done" in said and figures == [0.5], (
        "the first record is current again"
    )


def test_an_edited_method_of_a_clone_keeps_its_results_and_says_so(tmp_path):
    clone = cloned(tmp_path)
    commit = "git -c user.name=a -c user.email=a@b commit -q -m"
    shell(f"git init -q && git add benchmark methods conf && {commit} first", clone, tmp_path)
    grid = "method=uce attack=none concepts=church budget=smoke budget.target_prompts=1 budget.near_prompts=0"

    def overpaint(command):
        return shell(f"overpaint {command} {grid} 2>&1", tmp_path, tmp_path, clone)

    assert "source changed" not in overpaint("run")
    assert "source changed" not in overpaint("plan")
    edit(clone / "methods" / "uce.py", "version: ClassVar[int] = 2", "edited = version = 2")
    said = overpaint("plan")
    assert said.count("its source changed since its results were made, and its version did not") == 1
    assert "method=uce: " in said and "1 task kept; raise version" in said and "everything is stored" in said
    shell(f"git add methods && {commit} second", clone, tmp_path)
    assert "source changed" not in overpaint("plan"), "committed with the version that it should have"
