"""The committed tables have today's statistics, and the pages say what they say."""

import functools
import importlib.util
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from overpaint.report.rendering import render
from overpaint.report.statistics import VERSION, paired_difference, proportion, tango, unpaired_difference

ROOT = Path(__file__).resolve().parents[1]
TABLES = sorted((ROOT / "leaderboards").glob("*.csv"))
#: Titles of columns in the cards of methods -> metrics.
COLUMNS = {
    "target": "target_proportion",
    "neighbours kept": "neighbour_retention",
    "IRA": "ira",
    "CRA": "cra",
    "rest of the prompt": "in_prompt_preservation",
    "prompt agreement": "prompt_agreement",
}
#: First words of rows in the cards that show the demo -> metric and attack.
ROWS = {
    "target": ("target_proportion", "none"),
    "synonyms": ("synonym_proportion", "synonym"),
    "other languages": ("language_proportion", "multilingual"),
    "neighbours kept": ("neighbour_retention", "none"),
    "IRA": ("ira", "none"),
    "concept inversion": ("attack_success", "cce"),
    "the same for a never-seen concept": ("attack_floor", "cce"),
}
#: Comparisons that no record holds. Hits and outcomes of both sides, from the records; the prompts are not paired.
UNPAIRED = {
    "one image of a prompt with twelve random words or seeds, UCE": (12, 24, 5, 24),
    "the same, ESD": (20, 24, 13, 24),
    "cce on the church, ESD and AdvUnlearn": (23, 24, 2, 24),
    "cce on the church, ESD and Receler in the red team": (23, 24, 6, 12),
}
#: Comparisons of two methods on the same prompts in which one side has all hits or none, so that the counts give the pairs.
PAIRED = {
    "cce on the church, UCE and RECE": (18, 24, 0),
    "cce on the church, ESD and Receler": (23, 24, 0),
    "cce on the car, ESD and Receler": (24, 24, 20),
    "cce on quillan, AdvUnlearn and ESD": (2, 24, 0),
}
#: Differences between two means of the table in leaderboards/README.md, whose intervals are combined by squaring and adding.
COMBINED = {"0.00 [-0.05, 0.05]", "0.16 [0.07, 0.25]", "0.17 [0.05, 0.28]", "0.02 [-0.06, 0.10]"}


@functools.cache
def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def records(name):
    return pd.read_csv(ROOT / "leaderboards" / f"testbed-{name}.csv", low_memory=False)


@functools.cache
def shown(name, view):
    """A view of a committed table in Markdown."""
    return render(records(name), "md", view)


def text(value, low, high):
    """A figure with its interval as the pages show it."""
    return f"{value:.2f} [{low:.2f}, {high:.2f}]".replace("-0.00", "0.00")


def page(name):
    """A page with ASCII minus signs and without line breaks in its paragraphs."""
    return re.sub(r"\s+", " ", (ROOT / name).read_text(encoding="utf-8")).replace("−", "-")


def recorded():
    """All values and differences of the committed tables, as text."""
    found = set()
    for path in TABLES:
        table = pd.read_csv(path, low_memory=False)
        for columns in (["value", "low", "high"], ["difference", "difference_low", "difference_high"]):
            found |= {text(*row) for row in table[columns].dropna().itertuples(index=False)}
    return found


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_interval_is_todays(path):
    table = pd.read_csv(path, low_memory=False)
    update = script("recompute_leaderboards")
    for _, row in table[table["unit"] == "fraction"].sample(100, random_state=0).iterrows():
        if not update.independent(row):
            continue
        assert row["statistics"] == VERSION
        found = proportion(np.arange(row["n"]) < round(row["n"] * row["value"]))
        assert np.allclose(row[["low", "high"]].astype(float), found[1:3])
        if pd.notna(row["difference"]):
            n = int(row["n"])
            gained, lost = update.pairs(n, row["difference"], row["difference_low"], row["difference_high"])
            assert gained + lost <= n and gained <= round(n * row["value"])
            z = (gained - lost) / np.sqrt(gained + lost) if gained + lost else 0.0
            assert (row["p_value"] < 0.05) == (abs(z) > 1.95996)


def test_an_older_table_is_brought_up_to_date():
    """From the counts of a table with exact p-values, and only where they determine a figure."""
    low, high = tango(10, 0, 12)
    row = {
        "unit": "fraction",
        "n": 12,
        "failed": 0,
        "direction": "down",
        "concepts": "church",
        "method": "uce",
        "attack": "none",
    }
    gap = {
        "difference": -10 / 12,
        "difference_low": -high,
        "difference_high": -low,
        "against": "original",
        "p_value": 0.002,
    }
    table = pd.DataFrame(
        [
            row | gap | {"metric": "target_proportion", "facet": "efficacy", "aggregation": "pooled", "value": 1 / 12},
            row | gap | {"metric": "ira", "facet": "specificity", "aggregation": "per label, then mean", "value": 0.9},
            row | {"metric": "fid_reference", "unit": "distance", "aggregation": "all general prompts", "value": 200.0},
        ]
    )
    target, ira, fid = (new for _, new in script("recompute_leaderboards").update(table).iterrows())
    plain = paired_difference([0] * 10 + [1, 0], [1] * 10 + [1, 0])
    assert (target["p_value"], target["p_equivalence"]) == pytest.approx((plain.p_value, plain.p_equivalence))
    assert target["statistics"] == VERSION and target["mark"] == "differs"
    assert (target["low"], target["high"]) == proportion([1] + [0] * 11)[1:3]
    assert (ira["statistics"], ira["p_value"]) == (4, 0.002)
    assert pd.isna(fid["value"]) and "500 images" in fid["why"]


def test_a_difference_that_no_counts_give_is_refused():
    with pytest.raises(ValueError, match="no pairs give"):
        script("recompute_leaderboards").pairs(12, 0.5, 0.1, 0.9)


@pytest.mark.parametrize(("name", "view"), [("erasers", "methods"), ("scaling", "scaling")])
def test_the_leaderboards_show_their_records(name, view):
    readme = (ROOT / "leaderboards" / "README.md").read_text(encoding="utf-8")
    rows = [line for line in shown(name, view).splitlines() if line.startswith("| ")]
    assert len(rows) > 15
    assert [row for row in rows if row not in readme] == []


def test_the_red_teams_tables_are_those_of_its_records():
    """Whatever `scripts/redteam_panel.py` prints of the committed records is what the page shows."""
    tables = (ROOT / "docs" / "redteam.md").read_text(encoding="utf-8")
    headings = re.findall(r"^\| attack \| ((?:\w+ \| )*\w+) \|$", tables, re.M)
    panel, table = script("redteam_panel"), records("redteam")
    assert len(headings) == 3
    for heading in headings:
        concepts = "quillan" if heading.startswith("negative_prompt") else "church"
        cells = panel.cells(table[table["concepts"] == concepts])
        assert panel.markdown(cells, heading.split(" | ")) in tables
    church = table[table["concepts"] == "church"]
    for method in ("uce", "esd"):
        assert panel.differences(church, method) in tables


@pytest.mark.parametrize("name", ["docs/redteam.md", "leaderboards/README.md"])
def test_every_interval_of_a_page_is_recorded(name):
    allowed = recorded() | COMBINED
    for one, n, other, m in UNPAIRED.values():
        allowed.add(text(*unpaired_difference(np.arange(n) < one, np.arange(m) < other)[:3]))
    for one, n, other in PAIRED.values():
        allowed.add(text(*paired_difference(np.arange(n) < one, np.arange(n) < other)[:3]))
    figure = r"-?\d\.\d\d \[-?\d\.\d\d, -?\d\.\d\d\]"
    allowed |= set(re.findall(figure, shown("erasers", "methods") + shown("scaling", "scaling")))
    quoted = re.findall(figure, page(name))
    assert len(quoted) > 50
    assert [figure for figure in dict.fromkeys(quoted) if figure not in allowed] == []


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "methods").glob("*.md")), ids=lambda path: path.stem)
def test_a_cards_table_is_that_of_the_records(path):
    """Rows of concepts in the table of the erasers; sweeps and quick looks are not among the records."""
    table = records("erasers").query("attack == 'none'").set_index(["method", "concepts", "metric"])
    header = None
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else None
        header = (header or cells) if cells else None
        if cells is None or header[:1] != [""] or (path.stem, cells[0], "ira") not in table.index:
            continue
        if header[1].startswith("target (n"):
            metrics = [COLUMNS[title.split(" (")[0]] for title in header[1:]]
            wanted = [text(*table.loc[(path.stem, cells[0], metric)][["value", "low", "high"]]) for metric in metrics]
            assert cells[1:] == wanted


@pytest.mark.parametrize("method", ["uce", "esd"])
def test_a_card_of_the_demo_shows_its_records(method):
    table = records("demo").query("method == @method").set_index(["concepts", "metric", "attack"]).sort_index()
    lines = (ROOT / "docs" / "methods" / f"{method}.md").read_text(encoding="utf-8").splitlines()
    start = next(
        i for i, line in enumerate(lines) if re.fullmatch(r"\| \| church[^|]*\| sketch[^|]*\| quillan[^|]*\|", line)
    )
    checked = 0
    for line in lines[start + 2 : start + 2 + len(ROWS)]:
        title, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        found = [pair for words, pair in ROWS.items() if title.startswith(words)]
        for concept, cell in zip(("church", "sketch", "quillan"), cells, strict=True) if found else ():
            row = table.loc[[(concept, *found[0])]].iloc[0]
            control = f" ({row['control']:.2f})" if found[0][1] == "cce" and "control" in title else ""
            assert cell == text(row["value"], row["low"], row["high"]) + control, (title, concept)
            checked += 1
    assert checked >= 18
