"""Every method and every attack has a page, and pages lead to what is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from requirements import documented

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


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


def test_the_readmes_python_does_what_it_says():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.+?)```", text, re.S) if "load_model" in block)
    names = {}
    exec(code.replace("erasure.tensors", "tensors = erasure.tensors"), names)
    parameters = names["model"].named_parameters()
    assert names["tensors"] and all(t.shape == parameters[name].shape for name, t in names["tensors"].items())
    assert [image.size for image in names["images"]] == [(64, 64)]


def test_the_red_teams_tables_are_those_of_its_records():
    """Whatever `scripts/redteam_panel.py` prints of the committed records is what the page shows."""
    page = (ROOT / "docs" / "redteam.md").read_text(encoding="utf-8")
    headings = re.findall(r"^\| attack \| ((?:\w+ \| )*\w+) \|$", page, re.M)
    assert len(headings) == 3
    for heading in headings:
        records = ROOT / "leaderboards" / "testbed-redteam.csv"
        concepts = "quillan" if heading.startswith("negative_prompt") else "church"
        command = [
            sys.executable,
            ROOT / "scripts" / "redteam_panel.py",
            records,
            "--methods",
            heading.replace(" | ", ","),
            "--concepts",
            concepts,
        ]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout in page
