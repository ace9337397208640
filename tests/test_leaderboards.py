"""The pages say what leaderboards/results holds, byte for byte, and the result files keep the rules."""

import functools
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import pictures
from command_line import CommandLine
from overpaint.errors import UserError
from overpaint.report.claims import claim_files, published, read_claim
from overpaint.report.eligibility import violations
from overpaint.report.filters import narrowed
from overpaint.report.rendering import tables
from overpaint.report.statistics import VERSION, Estimate, paired_difference, proportion, unpaired_difference
from overpaint.report.verdicts import Against

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "leaderboards" / "results"
#: Shares whose outcomes are not independent: a prompt that asks for two things has two of them.
CLUSTERED = ("prompt_agreement", "judge_agreement")
#: Pages whose every share is in a block.
WHOLE = ["README.md", "leaderboards/README.md", "docs/redteam.md"]
#: Numbers of these pages that are no results, with what stands before them.
STATED = {"Python 3.11", "±0.10", "within 0.10"}


@functools.cache
def script():
    spec = importlib.util.spec_from_file_location("write_leaderboards", ROOT / "scripts" / "write_leaderboards.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # types of its classes are looked up there
    spec.loader.exec_module(module)
    return module


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in script().pages()])
def test_a_page_is_what_its_results_give(page):
    """`make leaderboards` changes nothing: tables, figures in sentences, and pictures."""
    files = script().written(ROOT / page, text_of(page))
    assert [str(path) for path, text in files.items() if path.read_text(encoding="utf-8") != text] == []


@pytest.mark.parametrize("page", WHOLE)
def test_a_number_that_was_edited_by_hand_is_found(page):
    """In each kind of block of the page."""
    text = text_of(page)
    seen = set()
    for match in script().BLOCK.finditer(text):
        digits = list(re.finditer(r"\d\.\d\d", match.group(3)))
        if match.group(1) in seen or not digits:
            continue
        seen.add(match.group(1))
        block, place = match.group(), match.start(3) - match.start() + digits[-1].end() - 1
        edited = block[:place] + str((int(block[place]) + 1) % 10) + block[place + 1 :]
        assert script().written(ROOT / page, edited)[ROOT / page] == block != edited
    assert {"table", "figure"} <= seen


@pytest.mark.parametrize("page", WHOLE)
def test_no_share_stands_outside_a_block(page):
    rest = re.sub(r"\s+", " ", script().BLOCK.sub("", text_of(page)))
    for stated in STATED:
        rest = rest.replace(stated, "")
    assert re.findall(r".{0,40}(?<![\d.])\d\.\d\d(?!\d)", rest) == []


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in script().pages()])
def test_no_interval_stands_outside_a_block(page):
    assert re.findall(r"\d \[-?\d[\d.]*, -?\d[^\]\n]*\]", script().BLOCK.sub("", text_of(page))) == []


CARDS = sorted(page for kind in ("methods", "attacks") for page in (ROOT / "docs" / kind).glob("*.md"))


@pytest.mark.parametrize("page", CARDS, ids=lambda page: page.stem)
def test_tables_of_results_are_written_from_records(page):
    """Tables below "On the testbed" are a block, or have one in every cell with a result."""
    results = re.split(r"^## ", script().BLOCK.sub("", text_of(page)), flags=re.M)
    rows = [line for section in results if section.startswith("On the testbed") for line in section.splitlines()]
    typed = [row for row in rows if row.startswith("|") and re.search(r"\d\.\d", re.sub(r"`.*?`", "", row))]
    assert typed == []


def test_the_result_files_are_eligible():
    assert violations(RESULTS) == []


@pytest.mark.parametrize("folder", sorted(path.name for path in RESULTS.iterdir()))
def test_intervals_of_independent_shares_are_todays(folder):
    records, _ = published(RESULTS / folder)
    pooled = (
        records["aggregation"].astype(str).str.endswith("pooled") & (records["unit"] == "fraction") & (records["n"] > 0)
    )
    several = records["budget"].str.contains("seeds=")  # images of one prompt are not independent
    shares = records[pooled & ~records["metric"].isin(CLUSTERED) & ~several]
    assert several.all() or len(shares)
    assert set(shares["statistics"]) <= {VERSION}
    for (n, value), same in shares.groupby(["n", "value"]):
        low, high = proportion(np.arange(n) < round(n * value))[1:3]
        assert np.allclose(same["low"].astype(float), low) and np.allclose(same["high"].astype(float), high)


def test_a_method_has_one_file_in_each_folder():
    for path in claim_files(RESULTS):
        assert set(read_claim(path).records["method_name"]) == {path.stem}


def block(kind, words, page=ROOT / "README.md"):
    return script().written(page, f"<!-- {kind}: {words} -->old<!-- end -->")[page]


def test_a_figure_is_one_record_or_one_entry_of_a_view():
    record = published(RESULTS / "redteam")[0].query(
        "method == 'uce' and concepts == 'church' and attack == 'cce' and metric == 'attack_success_any'"
    )
    value = f"{record['difference'].item():.2f}"
    words = "redteam uce church cce attack_success_any difference"
    assert f"-->{value} [" in block("figure", words) and f"-->{value}<!--" in block("figure", f"bare {words}")
    records, outcomes = published(RESULTS / "erasers")
    (table,) = tables(narrowed(records, ["attack=none"], "erasers"), "methods", outcomes)
    place = [column.title for column in table.columns].index("neighbours kept")
    (entry,) = [row.entries[place] for row in table.rows if row.names[-1] == "uce"]
    shown = f"-->{entry.value:.2f} [{entry.low:.2f}, {entry.high:.2f}]<"
    assert shown in block("figure", 'erasers attack=none view=methods uce "neighbours kept"')


def test_a_gap_is_paired_if_the_counts_determine_the_pairs():
    one, other = "redteam speed church cce attack_success", "redteam rece church cce attack_success"
    gap = paired_difference(np.arange(12) < 7, np.zeros(12))
    assert f"-->{gap.value:.2f} [{gap.low:.2f}, {gap.high:.2f}]<" in block("gap", f"{one} | {other}")
    gap = unpaired_difference(np.arange(12) < 7, np.zeros(12))
    assert f"-->{gap.value:.2f} [{gap.low:.2f}, {gap.high:.2f}]<" in block("gap", f"unpaired {one} | {other}")
    with pytest.raises(UserError, match="do not determine the pairs"):
        block("gap", "redteam uce church uda attack_success | demo esd church 'cce floor=false' attack_success")


def test_controls_and_other_concept_sets_are_paired_by_their_outcomes():
    """Two controls of one attack have the same prompts, and so do the neighbours of two ways to erase five objects."""
    words = (
        "redteam uce church p4d_n attack_beyond_prefix control | redteam uce church p4d_n attack_success_any control"
    )
    assert block("gap", words) != block("gap", f"unpaired {words}")
    words = 'merging speed "objects5 merged by sum" neighbour_retention | merging speed objects5 neighbour_retention'
    records, outcomes = published(RESULTS / "merging")
    of = records.query("method == 'speed' and metric == 'neighbour_retention'").set_index("concepts")["artefact"]
    sides = [
        outcomes[(outcomes["artefact"] == of[name]) & (outcomes["metric"] == "neighbour_retention")].set_index(
            ["prompt_id", "seed"]
        )
        for name in ("objects5 merged by sum", "objects5")
    ]
    both = sides[0].join(sides[1], rsuffix="_other")
    wanted = paired_difference(both["value"], both["value_other"], both["cluster"], both["stratum"])
    assert f"-->{wanted.value:.2f} [{wanted.low:.2f}, {wanted.high:.2f}]<" in block("gap", words)


def test_a_gap_can_be_that_of_the_prompts_that_both_sides_have():
    """ESD has 24 prompts, Receler 12 of them."""
    words = "redteam esd church uda attack_success_any | redteam receler church uda attack_success_any"
    with pytest.raises(UserError, match="do not determine the pairs"):
        block("gap", words)
    records, outcomes = published(RESULTS / "redteam")
    sides = [
        outcomes[
            outcomes["artefact"].isin(
                records.query(f"method == '{method}' and concepts == 'church' and attack == 'uda'")["artefact"]
            )
            & (outcomes["metric"] == "attack_success_any")
        ].set_index(["prompt_id", "seed"])
        for method in ("esd", "receler")
    ]
    both = sides[0].join(sides[1], rsuffix="_other", how="inner")
    assert len(both) == 12
    wanted = paired_difference(both["value"], both["value_other"], both["cluster"], both["stratum"])
    assert f"-->{wanted.value:.2f} [{wanted.low:.2f}, {wanted.high:.2f}]<" in block("gap", f"shared {words}")


#: Method, figure, bound, limit -> verdict, on the records of `made_up`.
VERDICTS = [
    ("none_of_12", "share", "at_most", 0.5, "agrees"),
    ("none_of_12", "share", "at_most", 0.1, "too few images"),
    ("half_of_12", "share", "at_most", 0.5, "open"),
    ("all_of_12", "share", "at_most", 0.5, "disagrees"),
    ("all_of_12", "share", "at_least", 0.5, "agrees"),
    ("all_of_12", "share", "at_least", 0.9, "too few images"),
    ("half_of_12", "steps", "at_least", 30, "open"),
    ("half_of_12", "steps", "at_least", 10, "agrees"),
    ("nobody", "share", "at_most", 0.5, ""),
]


@pytest.fixture
def made_up(monkeypatch):
    """The folder ``made_up``: three methods with a share of 12 images and a number of steps from 20 to 40."""
    rows, seen = [], []
    for method, count in (("none_of_12", 0), ("half_of_12", 6), ("all_of_12", 12)):
        share = proportion(np.arange(12) < count)
        numbers = {"value": share.value, "low": share.low, "high": share.high}
        rows.append(numbers | {"method": method, "metric": "share", "unit": "fraction", "artefact": method})
        steps = {"value": 30.0, "low": 20.0, "high": 40.0}
        rows.append(steps | {"method": method, "metric": "steps", "unit": "steps", "artefact": method})
        seen += [{"artefact": method, "metric": "share", "value": float(place < count)} for place in range(12)]
    records = pd.DataFrame(rows).assign(n=12, why="", attack="none")
    records = records.assign(method_name=records["method"], concepts="c", protocol="p", budget="b", seed=0)
    outcomes = pd.DataFrame(seen)

    def results(folder):
        value = folder.partition(" as ")[2]
        return script().as_if(records, outcomes, float(value)) if value else (records, outcomes)

    monkeypatch.setattr(script(), "results", results)


@pytest.mark.parametrize(("method", "figure", "bound", "limit", "verdict"), VERDICTS)
def test_a_claim_is_decided_by_its_interval(made_up, method, figure, bound, limit, verdict):
    """With 12 images, even a share of 0 has an interval beyond 0.1, but not beyond 0.5. Steps have no best figure."""
    rule = {"shows": "", "figure": f"made_up {{method}} {figure}", bound: limit}
    assert script().decided(rule, method, "here")[0][-1] == verdict


def test_a_gap_is_paired_by_outcomes_where_they_are_published():
    """Both sides are between 0 and 1, so their counts do not determine the pairs."""
    tree = "'tree prompts.target=negative_window.csv#d382e7 retain=[]' target_proportion"
    sides = [f"negative_window 'negative_prompt start={start}' {tree}" for start in ("0.0", "0.25")]
    records, outcomes = published(RESULTS / "negative_window")
    by_side = [
        outcomes[
            outcomes["artefact"].isin(
                records.query(
                    f"method == 'negative_prompt start={start}' and kind == 'object' and metric == 'target_proportion'"
                )["artefact"]
            )
            & (outcomes["metric"] == "target_proportion")
        ].set_index(["prompt_id", "seed"])
        for start in ("0.0", "0.25")
    ]
    both = by_side[0].join(by_side[1], rsuffix="_other")
    assert len(both) == 48
    wanted = paired_difference(both["value"], both["value_other"], clusters=both["cluster"])
    shown = f"{wanted.value:.2f} [{wanted.low:.2f}, {wanted.high:.2f}]"
    assert f"-->{shown}<" in block("gap", " | ".join(sides)) != block("gap", f"unpaired {' | '.join(sides)}")


@pytest.mark.parametrize(
    ("low", "high", "bound", "verdict"),
    [
        (0.0, 0.1, {"at_most": 0.1}, "agrees"),
        (0.0, 0.11, {"at_most": 0.1}, "open"),
        (0.11, 0.3, {"at_most": 0.1}, "disagrees"),
        (0.9, 1.0, {"at_least": 0.9}, "agrees"),
        (0.8, 1.0, {"at_least": 0.9}, "open"),
        (0.5, 0.89, {"at_least": 0.9}, "disagrees"),
        (None, None, {"at_least": 0.9}, "open"),
    ],
)
def test_a_claim_agrees_if_the_whole_interval_meets_its_bound(low, high, bound, verdict):
    assert script().verdict(Estimate(0.5, low, high, n=12), bound) == verdict


def claims_file():
    return yaml.safe_load(text_of("leaderboards/expectations.yaml"))


def test_every_method_has_its_claims():
    """Every shipped one but those without a paper, and every rule decides a claim."""
    claims, rules = claims_file()["claims"], claims_file()["rules"]
    methods = {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")} - {"none", "gold", "checkpoint"}
    assert {claim["method"] for claim in claims} == methods
    assert {claim["rule"] for claim in claims if "rule" in claim} == set(rules)
    assert len({(claim["method"], claim["claim"]) for claim in claims}) == len(claims)


def test_sources_name_tables_as_the_published_figures_do():
    """A place in a paper whose figures are in leaderboards/published is its abstract or one of those tables."""
    papers = yaml.safe_load(text_of("leaderboards/published/papers.yaml"))
    tables = {paper["arxiv"]: {"abstract", *paper["tables"]} for paper in papers.values()}
    sources = [claim["source"].split(", ", 1) for claim in claims_file()["claims"]]
    assert [source for source in sources if source[1] not in tables.get(source[0], {source[1]})] == []
    assert {"Table 1", "Table 2"} <= {place for paper, place in sources if paper in tables}


def test_pages_of_claims_have_their_section():
    for page, section in {tuple(claim["page"].split("#")) for claim in claims_file()["claims"] if "page" in claim}:
        headings = re.findall(r"^#+ (.+)$", text_of(f"leaderboards/{page}"), re.M)
        assert section in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_methods_without_records_get_the_command_that_measures_them(tmp_path):
    file = claims_file()
    rows = [("checkpoint", "erases"), ("checkpoint", "erases_ten"), ("esd", "erases")]
    file["claims"] = [
        {"method": method, "claim": "it erases", "source": "2303.17591, abstract", "rule": rule}
        for method, rule in rows
    ]
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(file), encoding="utf-8")
    text = block("expectations", str(tmp_path / "claims.yaml"))
    assert text.count("| not measured |") == 2 and text.count("| ≤ 0.1 |") == 3
    commands = re.findall(r"^overpaint run (.+)$", text, re.M)
    assert commands == [f"{file['runs'][folder]} method=none,checkpoint" for folder in ("erasers", "scaling")]
    file["runs"]["eraser"] = file["runs"].pop("erasers")
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(file), encoding="utf-8")
    with pytest.raises(UserError, match=r"unknown folder 'erasers'.*did you mean 'eraser'"):
        block("expectations", str(tmp_path / "claims.yaml"))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (("rule: erases\n", "rule: erasse\n"), "unknown rule 'erasse'.*did you mean 'erases'"),
        (("method: uce\n", "method: uxe\n"), "unknown method 'uxe'.*did you mean 'uce'"),
        (
            ("    at_most: 0.1\n", "    at_most: 0.1\n    at_least: 0\n"),
            "erases takes shows, figure or gap, and at_most or at_least",
        ),
        (("    at_most: 0.1\n", "    at_most: low\n"), r"rules\.erases\.?:? ?at_most takes a finite number, got 'low'"),
        (("    source: 2312.12807, abstract\n", ""), r"claims\[0\]: no value for source"),
        (
            ("source: 2312.12807, abstract", "source: the abstract"),
            "source takes an arXiv id and a place.*got 'the abstract'",
        ),
        (("    rule: erases\n", ""), r"claims\[0\]: a claim takes a rule, or a page and its verdict"),
        (("    verdict: not tested\n", ""), r"claims\[\d+\]: a claim takes a rule, or a page and its verdict"),
        (
            ("verdict: not tested", "verdict: maybe"),
            r"unknown value 'maybe' in .*claims\[\d+\]: verdict \(allowed: agrees, ",
        ),
    ],
)
def test_a_bad_claim_is_refused(tmp_path, edit, said):
    text = text_of("leaderboards/expectations.yaml")
    assert edit[0] in text
    (tmp_path / "claims.yaml").write_text(text.replace(*edit, 1), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        block("expectations", str(tmp_path / "claims.yaml"))


@pytest.mark.parametrize(
    ("kind", "words", "said"),
    [
        ("figure", "erasers uxe church ira", "unknown label 'uxe'.*did you mean 'uce'"),
        ("figure", "erasers uce ira", "7 records have these labels, expected one"),
        ("figure", "eraser uce church ira", "there is no folder"),
        ("figure", "erasers attack=none view=methods uce IRAS", "0 figures have row 'uce' and column 'IRAS'"),
        ("table", "erasers view=method", "unknown view 'method'.*did you mean 'methods'"),
        ("table", "erasers view=methods method=uxe", "unknown method 'uxe'.*did you mean 'uce'"),
        ("table", "erasers view=methods columns=IRAS", "unknown column 'IRAS'.*did you mean 'IRA'"),
    ],
)
def test_a_bad_block_is_refused_with_its_page(kind, words, said):
    with pytest.raises(UserError, match=f"README.md: {kind}: .*{said}"):
        block(kind, words)


@pytest.mark.parametrize(("concepts", "sizes"), [("quillan", 1), ("church", 2)])
def test_the_picture_shows_every_cell_of_its_panels(concepts, sizes):
    """Numbers of prompts have panels of their own, which the picture shows side by side, with each eraser once."""
    files = script().written(
        ROOT / "x.md", f"<!-- picture: redteam concepts={concepts} file=x.svg -->![alt](y)<!-- end -->"
    )
    picture = files[ROOT / "x.svg"]
    panels = script().shown(["redteam", f"concepts={concepts}"], "panel")
    assert len(panels) == sizes
    cells = {
        (head.title, row.names)
        for panel in panels
        for row in panel.rows
        for head, entry in zip(panel.columns, row.entries, strict=True)
        if entry is not None
    }
    assert picture.count("<rect") == len(cells) + 1 and "![alt](x.svg)" in files[ROOT / "x.md"]
    for method in {method for method, _ in cells}:
        assert picture.count(f">{method}</text>") == 1


def test_curves_show_every_attack_and_both_shares_at_every_number_of_images():
    shares = [Estimate(value, value - 0.1, value + 0.1, n=20) for value in (0.2, 0.5, 0.4)]
    few, many = (Against(own, control, own, 20.0, 0.3, ("uce",)) for own, control in (shares[:2], shares[1:]))
    picture = pictures.curves({"uda": [("1", few), ("5", many), ("all", many)], "a<b": [("all", few)]})
    assert picture.count("<circle") == 2 * 3 + 2 * 1 and picture.count("<polygon") == 4
    assert ">uda</text>" in picture and ">a&lt;b</text>" in picture and picture.count(">all</text>") == 2
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', picture)]
    assert heights[3] == max(heights[:6]) and heights[0] == min(heights[:6]), "the attack's first share is the lowest"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "grid"),
    [
        ("erasers", ["experiment=erasers", "budget=lite", "budget.grid=4", "budget.utility_prompts=20"]),
        ("validity", ["experiment=validity"]),
    ],
)
def test_a_claim_is_measured_again_with_the_same_figures(folder, grid, tmp_path):
    """UCE's church, and the unedited model's: a closed form and plain images are alike on every processor."""
    cli = CommandLine(tmp_path)
    grid = [*grid, "method=none,uce", "concepts=church", "attack=none"]
    cli("run", *grid)
    cli("publish", *grid, "out=results")
    key = ["method", "metric"]
    claimed, again = (
        records.query("concepts == 'church' and attack == 'none' and method in ('none', 'uce') and unit == 'fraction'")
        for records, _ in (published(RESULTS / folder), published(tmp_path / "results"))
    )
    both = claimed.merge(again, on=key, suffixes=("", "_again"))
    assert len(both) == len(claimed) > 10
    different = both[(both["value"] - both["value_again"]).abs() > 1e-6]
    assert different[[*key, "value", "value_again"]].to_numpy().tolist() == []
    assert (both["n"] == both["n_again"]).all()
