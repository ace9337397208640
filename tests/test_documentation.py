"""Every method and every attack has a page; links, file names, commands and code of all pages work."""

import functools
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml

import overpaint
from overpaint.cli import COMMANDS, cli
from overpaint.commands import publish
from overpaint.commands.gc import listed
from overpaint.commands.grids import cells_of, compose, prepare, single_cell, taken
from overpaint.commands.ledger import SHOWN, chosen, published
from overpaint.commands.list import lines
from overpaint.commands.targets import target
from overpaint.errors import AssetMissing
from overpaint.grid.assets import asset
from overpaint.grid.registry import DESCRIPTION, component
from overpaint.report import claims, filters
from overpaint.report.changes import GROUPS, LABELS
from overpaint.report.rendering import FORMATS
from overpaint.report.sheets import FORMATS as SHEET_FORMATS
from overpaint.report.site import results
from overpaint.report.views import view_named
from requirements import documented

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "leaderboards" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: tests/test_extending.py writes the files of docs/extending.md and runs its commands.
OTHERS = [page for page in PAGES if page.name != "extending.md"]

#: Blocks that are not run, by the start of their first line -> why.
NOT_CODE = {
    "conf/ ──compose──▶": "a diagram of the data flow",
    "cli → commands → images": "the order of the rooms; import-linter checks it",
}
#: Commands that are not run, by their first word -> why.
NOT_RUN = {
    "apt-get": "needs root and installs system packages",
    "eval": "sets the environment of a Slurm of one node; tests/run/test_slurm.py runs jobs on one",
    "source": "changes the reader's shell",
    "ray": "starts Ray on a machine of a cluster; tests/run/test_ray.py joins one",
    "scripts/slurm_on_this_machine.sh": "needs root; tests/run/test_slurm.py runs it",
}
#: Of a command that spans more cells than this, every second, third, … is planned.
PLANNED = 40
#: Placeholders in commands, and a folder that takes hours to make -> their values in this test.
PLACEHOLDERS = {
    "/path/to/diffusers-folder": str(ROOT / "tests" / "goldens" / "tiny_sd"),
    "outputs/gold/seed1/export": str(ROOT / "datasets" / "testbed_gold"),
}


#: Records of a folder of results, the results of a folder and the ledger, read once for all commands.
records_in = functools.cache(lambda folder: claims.published(folder)[0])
results_in = functools.cache(results.read)
ledger = functools.cache(published)


def blocks(*languages, pages):
    """Fenced blocks in one of the languages, as parameters (page, text)."""
    for page in pages:
        found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.S | re.M)
        for number, (language, text) in enumerate(found):
            if language in languages:
                yield pytest.param(page, text, id=f"{page.relative_to(ROOT)}-{number}")


def commands(text):
    """The commands of a shell block as lists of words, without comments and redirections."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words[: words.index(">")] if ">" in words else words


def test_overrides_in_the_text_of_the_readme_are_read():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"`((?:model=\w+ )?'concepts\.(?:erase|templates)=[^`]+)`", text)
    assert len(found) == 2
    for overrides in found:
        cells_of(compose(shlex.split(overrides)))


def shipped(kind):
    return sorted(path.stem for path in (ROOT / "conf" / kind).glob("*.yaml"))


@pytest.mark.parametrize("kind", ["method", "attack"])
def test_every_one_has_one_page(kind):
    assert sorted(documented(kind)) == shipped(kind)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize(
    "page",
    [
        page for page in PAGES if page.name != "extending.md"
    ],  # it names files that its reader writes: tests/test_extending.py
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_files_that_are_named_exist(page):
    """Files that are named by their whole path, as `methods/uce.py`."""
    named = re.findall(
        r"`((?:benchmark|conf|datasets|methods|scripts|tests)/[\w./]+\.\w+)`", page.read_text(encoding="utf-8")
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_readme_names_them_all():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for kind in ("method", "attack"):
        (row,) = re.findall(rf"^\| {kind}s \| (.+) \|$", text, re.M)
        assert set(shipped(kind)) - {"none"} <= set(re.findall(r"`(\w+)`", row))


load_once = functools.cache(overpaint.load_model)


@functools.cache
def executed(text):
    """The names that a Python block defines. All blocks share the same models."""
    names = {}
    with patch.object(overpaint, "load_model", load_once):
        exec(text, names)
    return names


@pytest.mark.parametrize(("page", "text"), blocks("python", pages=OTHERS))
def test_python_runs(page, text):
    assert executed(text)


def test_the_readmes_python_does_what_it_says():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = executed(next(block for block in re.findall(r"```python\n(.+?)```", text, re.S) if "load_model" in block))
    parameters, tensors = names["model"].named_parameters(), names["erasure"].tensors
    assert tensors and all(tensor.shape == parameters[name].shape for name, tensor in tensors.items())
    assert [image.size for image in names["images"]] == [(64, 64)]


@pytest.mark.parametrize(("page", "text"), blocks("bash", "sh", "shell", "console", pages=OTHERS))
def test_commands_are_understood(page, text, tmp_path, monkeypatch):
    """`overpaint` commands are parsed, composed and planned, targets of `make` exist; no image is made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OVERPAINT_STORE", raising=False)
    for word, wanted in PLACEHOLDERS.items():
        text = text.replace(word, wanted)
    for tool, *words in commands(text):
        if tool == "overpaint":
            understood(*words)
        elif tool == "make":
            rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
            assert {word for word in words if "=" not in word} <= set(rules)
        elif tool == "python":
            assert (ROOT / words[0]).is_file()
        elif tool == "cp":
            shutil.copy(*words)
        else:
            assert tool in NOT_RUN, f"run {tool!r} here, or say in NOT_RUN why no test can"


@functools.cache
def tasks(*overrides):
    """Tasks of the grid that the overrides span, planned once; several pages show the demo.

    Of a grid whose assets are not on this machine, the cells.
    """
    composed = compose(overrides, demo=True)
    try:
        return prepare(composed[:: 1 + len(composed) // PLANNED]).plan.opened().tasks
    except AssetMissing as error:
        assert error.assets
        return cells_of(composed)


def understood(name, *words):
    """Parse a command as the command line does, and compose and plan its overrides."""
    assert name in COMMANDS
    given = cli.get_command(None, name).make_context(name, list(words)).params
    overrides = list(given.get("overrides", ()))
    if name == "list":
        assert list(lines(given["what"]))
    elif name == "erase":
        out, rest = taken(overrides, "out")
        assert single_cell(rest, name)[0].method.name != "none"
        target(out, ".safetensors").touch()
    elif name == "export":
        out, rest = taken(overrides, "out")
        erasure, rest = taken(rest, "erasure")
        if erasure:
            assert Path(erasure).is_file(), "an earlier command of the block writes it"
            single_cell(rest, name)
            target(out)
        else:
            assert tasks(*rest)
            target(out, ".csv").write_text("prompt\na church\n")
    elif name == "table":
        assert given["form"] in FORMATS and (given["view"] == "facets" or view_named(given["view"]))
        if given["folder"]:
            assert filters.narrowed(records_in(ROOT / given["folder"]), overrides, name).size
        else:
            assert not overrides or tasks(*overrides)
    elif name == "publish":
        for key in ("out", "name"):
            overrides = taken(overrides, key)[1]
        assert Path(ROOT / given["folder"]).is_dir() if given["folder"] else tasks(*overrides)
    elif name == "site":
        store, rest = taken(taken(list(given["filters"]), "out")[1], "store")
        read = [] if store else results_in(ROOT / (given["place"] or publish.RESULTS))
        assert store or results.narrowed_to(read, rest)
    elif name == "compare":
        assert given["groups"] == "all" or set(given["groups"].split(",")) <= set(GROUPS)
        ignored, rest = taken(list(given["filters"]), "ignore")
        assert set(ignored.split(",") if ignored else ()) <= set(LABELS)
        assert filters.narrowed(records_in(ROOT / publish.RESULTS), rest, name).size
        assert all(place.startswith("git:") or "/" not in place or (ROOT / place).exists() for place in words[:2])
    elif name == "ledger":
        assert given["form"] in SHEET_FORMATS and given["what"] in (None, *SHOWN)
        assert len(chosen(ledger(), dict(text.split("=", 1) for text in given["filters"])))
    elif name in ("show", "scores"):
        for key in ("out", "prompt", "role"):
            overrides = taken(overrides, key)[1]
        assert tasks(*overrides)
    elif name == "score":
        for key in ("images", "prompts", "names", "role", "prompt", "name"):
            overrides = taken(overrides, key)[1]
        detector, rest = taken(overrides, "detector")
        assert single_cell([*rest, *([f"model.detector={detector}"] if detector else [])], name)[0].model.detector
    elif name == "store":
        assert words[0] in cli.get_command(None, name).commands
        options = [word for word in words[1:] if "=" in word]
        assert all(tasks(option) for option in options if option.split("=")[0] not in ("store", "out"))
    elif name == "retry":
        assert all(tasks(word) for word in given["what"] if "=" in word)
    elif name == "gc":
        assert all(tasks(*words) for words in listed(overrides, given["also"]))
    elif name == "status":
        assert not overrides or tasks(*overrides)
    elif name == "fetch":
        named, rest = taken(overrides, "asset")
        assert all(map(asset, named.split(","))) if named else cells_of(compose(rest))
    elif name not in ("doctor", "attach"):
        assert tasks(*overrides)
        if any(override.startswith("engine=") for override in overrides):
            values = dict(compose(overrides, demo=True)[0].config["engine"])
            assert component("engine", values["name"]).settle({k: v for k, v in values.items() if k not in DESCRIPTION})


@pytest.mark.parametrize(("page", "text"), blocks("yaml", pages=PAGES))
def test_yaml_is_valid(page, text):
    assert yaml.safe_load(text)


@pytest.mark.parametrize(("page", "text"), blocks("toml", pages=PAGES))
def test_toml_is_valid(page, text):
    assert tomllib.loads(text)


def test_every_other_block_says_why_it_is_not_run():
    run = {"python", "bash", "sh", "shell", "console", "yaml", "toml"}
    used = {word for page in OTHERS for word in re.findall(r"^```(\w+)$", page.read_text(encoding="utf-8"), re.M)}
    others = [parameter.values[1] for parameter in blocks("", *(used - run), pages=OTHERS)]
    assert [text for text in others if not text.lstrip().startswith(tuple(NOT_CODE))] == []
    assert [start for start in NOT_CODE if not any(text.lstrip().startswith(start) for text in others)] == []
