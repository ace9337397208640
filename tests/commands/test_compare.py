"""`overpaint compare` on result files and commits. No model is run; a store is compared in tests/report/test_claims.py."""

import csv
import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from command_line import CommandLine

RESULTS = Path(__file__).resolve().parents[2] / "leaderboards" / "results" / "demo"


def git(folder, *arguments):
    named = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *named, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def cli(tmp_path_factory):
    """A command line in a repository whose only commit holds results; in the working tree, UCE no longer erases."""
    folder = tmp_path_factory.mktemp("repository")
    place = folder / "leaderboards" / "results" / "demo"
    shutil.copytree(RESULTS, place)
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "results")
    claim = json.loads((place / "uce.json").read_text())
    columns = claim["columns"]
    for record in claim["records"]:
        of = dict(zip(columns, record, strict=True))
        if (of["concepts"], of["metric"], of["attack"]) == ("church", "target_proportion", "none"):
            for name, value in (("value", 1), ("low", 0.85), ("high", 1)):
                record[columns.index(name)] = value
    (place / "uce.json").write_text(json.dumps(claim))
    return CommandLine(folder)


def test_a_commit_and_the_working_tree(cli):
    said = cli("compare", "git:HEAD", "leaderboards/results", "--format", "json").stdout
    found = json.loads(said)
    counts = found["groups"]
    assert counts["changed"] == 1 and set(counts) - {"changed", "identical"} == {n for n, k in counts.items() if not k}
    (figure,) = (figure for figure in found["figures"] if figure["group"] == "changed")
    assert (figure["experiment"], figure["method"], figure["metric"]) == ("demo", "uce", "target_proportion")
    assert (figure["a"], figure["b"], figure["better"], figure["pairing"]) == (0, 1, "worse", "unpaired")


def test_a_path_of_a_commit_is_never_the_working_tree(cli):
    paths = ["leaderboards/results", f"{cli.folder}/leaderboards/results", "./leaderboards/../leaderboards/results"]
    for path in paths:
        cli("compare", "git:HEAD", f"git:HEAD:{path}", "--fail")


def test_fail_is_an_exit_code_for_ci(cli):
    both = ["git:HEAD", "leaderboards/results"]
    cli("compare", *both)
    assert "worse; unpaired" in cli("compare", *both, "--fail", code=1).stdout
    cli("compare", *both, "method=esd", "--fail")
    cli("compare", "git:HEAD", "git:HEAD:leaderboards/results", "--fail")


@pytest.mark.parametrize("form", ["terminal", "md", "csv", "json"])
def test_nothing_in_common_fails(cli, form):
    other = cli.folder / "other" / "demo"
    shutil.copytree(RESULTS, other, dirs_exist_ok=True)
    for path in other.iterdir():
        found = json.loads(path.read_text())
        assert found["same"]["budget"] == "lite"
        path.write_text(json.dumps(found | {"same": found["same"] | {"budget": "paper"}}))
    both = ["git:HEAD", "other", "concepts=church", "--format", form]
    done = cli("compare", *both, "--fail", code=1)
    said = " ".join((done.stderr if form in ("csv", "json") else done.stdout).split())
    assert "No figure is on both sides: budget is lite in A and paper in B. ignore=budget leaves it out" in said
    if form == "md":  # exit codes do not depend on the format
        cli("compare", *both)
        cli("compare", *both, "ignore=budget", "--fail")
    shutil.rmtree(other)


def test_formats_agree(cli):
    both = ["git:HEAD:leaderboards/results/demo/uce.json", "leaderboards/results/demo/uce.json", "concepts=church"]
    rows = list(csv.DictReader(io.StringIO(cli("compare", *both, "--format", "csv").stdout)))
    md = cli("compare", *both, "--format", "md", "--show", "all").stdout
    changed = [row for row in rows if row["group"] == "changed"]
    assert len(changed) == 1 and float(changed[0]["difference"]) == 1
    assert "| church | uce | none | target proportion ↓ | 0.00" in md and "| changed | 1 |" in md
    assert f"| identical | {sum(row['group'] == 'identical' for row in rows)} |" in md
    assert {row["concepts"] for row in rows} == {"church"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "git:HEAD"], "A=nowhere does not exist: give a store, a result file or folder"),
        (["git:HEAD", "."], ""),
        (["git:HAED", "git:HEAD"], "A=git:HAED: git knows no commit HAED here"),
        (["git:--help", "git:HEAD"], "git knows no commit --help here"),
        (["git:HEAD", "git:HEAD:results"], "B=git:HEAD:results: the commit has no results"),
        (["git:HEAD", "git:HEAD:../.."], "B=git:HEAD:../..: the commit has no ../.."),
        (["git:HEAD", "git:HEAD:/etc"], "B=git:HEAD:/etc: the commit has no /etc"),
        (["git:HEAD\0", "git:HEAD"], "A=git:HEAD\\x00 is not a path"),
        (
            ["git:HEAD", "git:HEAD", "metod=uce"],
            "unknown filter 'metod' in git:HEAD and git:HEAD; did you mean 'method'",
        ),
        (
            ["git:HEAD", "git:HEAD", "ignor=budget"],
            "in git:HEAD and git:HEAD; did you mean 'ignore'? (allowed: attack,",
        ),
        (["git:HEAD", "git:HEAD", "--show", "change"], "unknown group 'change' in --show; did you mean 'changed'"),
        (["git:HEAD", "git:HEAD", "ignore=budgets"], "unknown label 'budgets' in ignore; did you mean 'budget'"),
        (["git:HEAD", "git:HEAD", "--format", "latex"], "unknown format 'latex'"),
    ],
)
def test_bad_input_is_one_sentence(cli, arguments, said):
    if said:
        message = cli("compare", *arguments, code=2).stderr
        assert said in message and message.count("\n") == 1
    else:
        cli("compare", *arguments)  # a folder above results


def test_an_empty_folder_and_a_file_of_something_else(cli):
    (cli.folder / "empty").mkdir()
    (cli.folder / "x.json").write_text("[]")
    assert "B=empty holds neither a store nor result files" in cli("compare", "git:HEAD", "empty", code=2).stderr
    assert "x.json is not a result file" in cli("compare", "git:HEAD", "x.json", code=2).stderr
