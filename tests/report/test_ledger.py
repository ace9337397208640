"""``overpaint ledger``: filters, tables, formats, and the tables that docs/ledger.md shows."""

import io
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from ledger_rows import record

from command_line import CommandLine
from overpaint.report.ledger import agreement
from overpaint.report.ledger.published import COLUMNS, chosen

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cli(tmp_path_factory):
    """The command line in a folder without a store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OVERPAINT_STORE", raising=False)
        yield CommandLine(tmp_path_factory.mktemp("ledger"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "has no column 'model'"),
        ("\0\0", ""),
        (
            "model,concepts,kind,method,attack,budget,seed,facet,metric,direction,unit,value,n\n" + ",".join("x" * 13),
            "text in column",
        ),
    ],
)
def test_files_that_are_no_records_are_refused(cli, text, said):
    (cli.folder / "records.csv").write_text(text)
    assert said in cli("ledger", "--from", "records.csv", code=2).stderr


def test_filters_select_names_of_the_project_and_printed_names(found):
    assert set(chosen(found, {"method": "esd"})["method"]) == {"ESD", "ESD-u", "ESD-x"}
    assert set(chosen(found, {"method": "ESD-u"})["method"]) == {"ESD-u"}
    assert set(chosen(found, {"concept": "van gogh"})["erased"]) == {"Van Gogh"}
    assert set(chosen(found, {"paper": "hub,2403.06135"})["paper"]) == {"HUB", "MACE"}
    assert set(chosen(found, {"attack": "none", "paper": "MACE"})["attack"]) == {""}
    assert set(chosen(found, {"method": "MACE, CFR only"})["method"]) == {"MACE, CFR only"}


def test_without_a_filter_it_prints_an_overview(cli, compared):
    out = cli("ledger").stdout
    apart = (compared["verdict"] == agreement.DISAGREE).sum()
    assert f"2,678 published figures of 22 papers, {apart} disagreements" in out
    assert len(out.splitlines()) < 120


def test_figures_stand_side_by_side(cli):
    out = cli("ledger", "method=UCE", "metric=post_asr", "concept=nudity", "--format", "md").stdout
    assert (
        "| nudity (SD v1.4) | post_asr ↓ under uda | UCE | 0.0986 ≠ (142) | 0.43° ≠ | 0.7887 ≠ (142) | 0.7958 ≠ (142) |"
        in out
    )


def test_marks_count_papers_that_the_filters_leave_out(cli):
    out = cli("ledger", "method=UCE", "metric=post_asr", "provenance=paper", "--format", "md").stdout
    assert "| UCE | 0.0986 ≠ (142) |" in out


def test_our_record_and_its_verdict_stand_beside_a_figure(cli):
    ours = [
        record(method_name="uce", method="uce lamb=0.5", value=0.8, low=0.72, high=0.86),
        record(method_name="esd", model="testbed", concepts="church", n=24, value=0.5, low=0.3, high=0.7),
    ]
    pd.DataFrame(ours).to_csv(cli.folder / "ours.csv", index=False)
    arguments = (
        "ledger",
        "method=uce,ESD",
        "metric=post_asr",
        "paper=unlearndiffatk",
        "concept=nudity",
        "--from",
        "ours.csv",
    )
    out = cli(*arguments, "--format", "md").stdout
    assert "| UCE | 0.7958 ≠ (142) | 0.80 \\[0.72, 0.86\\] uce lamb=0.5, uda, sd14, nudity, paper | agrees |" in out
    assert "testbed, church, paper | not comparable: base, concept, n |" in out
    assert "No paper measured testbed: only orders of methods and signs of differences are comparable" in out
    form = pd.read_json(io.StringIO(cli(*arguments, "--format", "json").stdout))
    assert dict(zip(form["method"], form["verdict"], strict=True)) == {"UCE": "agrees", "ESD": "not comparable"}
    assert re.search(r"Records: \d+ figures have a record .*: \d agrees", cli("ledger", "--from", "ours.csv").stdout)


def test_limits_of_tables_and_figures_are_said(cli):
    out = cli("ledger", "paper=HUB", "metric=fid", "method=MACE", "--format", "md").stdout
    assert (
        "| 22.15? (30000) |" in out
        and "HUB, Table 3, MACE, NSFW (3), FID: another table of the paper prints 13.313" in out
    )
    assert "HUB, Table 4: printed as a mean over 33 concepts" in out


def test_csv_and_json_are_the_long_form(cli, found):
    form = pd.read_csv(io.StringIO(cli("ledger", "paper=MACE", "--format", "csv").stdout))
    assert len(form) == (found["paper"] == "MACE").sum() and {*COLUMNS, "verdict", "disagrees"} <= set(form.columns)


def page():
    return (ROOT / "docs" / "ledger.md").read_text(encoding="utf-8")


TABLES = re.findall(r"^`overpaint ledger (.+)` prints:\n\n((?:\|.*\n)+)", page(), re.M)


def test_the_page_shows_tables():
    assert len(TABLES) == 3


@pytest.mark.parametrize(("arguments", "table"), TABLES, ids=[arguments for arguments, _ in TABLES])
def test_the_tables_of_the_page_are_those_of_the_command(cli, arguments, table):
    out = cli("ledger", *shlex.split(arguments), "--format", "md").stdout
    assert [line for line in out.splitlines() if line.startswith("|")] == table.splitlines()


def test_the_page_counts_right(found):
    assert f"{len(found):,} printed figures of {found['paper'].nunique()} papers" in page()
    for value in (0.0282, 0.8169):  # "3 %" and "82 %" in the text
        assert f"| {value} |" in page()
