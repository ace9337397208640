"""Write every table, picture and figure of the pages from leaderboards/results. No model is run.

    python scripts/write_leaderboards.py            # rewrites the pages
    python scripts/write_leaderboards.py --check    # exit code 1 if a page differs from what it would write

A page says in comments what belongs between them. `make leaderboards` runs this script, and a test compares every page.

    <!-- table: erasers view=methods -->…<!-- end -->
        A view of leaderboards/results/erasers in Markdown. key=value selects records as in `overpaint table --from`. title=no
        leaves out the title, and notes=yes adds all notes to the reasons of figures. columns='A;B' and rows='A;B' select what is
        shown of the view; its tests are corrected for the whole view. split=N puts N columns into a table, without=A,B leaves out
        methods.
    <!-- figure: redteam uce church cce attack_success_any difference -->0.67 [0.44, 0.82]<!-- end -->
        One record, named by its labels; without the name of an attack, that of no attack. The last word is a field: value
        (default), control, difference, original, n or p_value. `bare` leaves out the interval. With view=NAME, the last two words
        are the names of a row and a column of its table.
    <!-- gap: erasers rece church ira | erasers uce church ira -->…<!-- end -->
        The difference of two figures of one folder, or of their controls (last word control). It is paired by the outcomes of
        both records; `shared` compares the prompts that both have. If the outcomes do not give the difference of the two
        figures, it is paired if one side has all hits or none, so that the counts determine the pairs. `unpaired` prevents
        both. Figures of a view are compared as independent ones.
    <!-- expectations: leaderboards/expectations.yaml -->…<!-- end -->
        The claims of papers in a file, each with its source, the figure that decides and its verdict, and the commands that
        make the figures of methods without records.
    <!-- picture: redteam concepts=church file=images/redteam-panel.svg -->…<!-- end -->
        View `panel` as a heat map; the block holds its link. With draw=curves, the shares of
        attacks and controls by number of images; with draw=taus, view `validity`.
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from typing_extensions import TypedDict

import pictures
from overpaint.errors import UserError, unknown
from overpaint.grid.registry import component
from overpaint.grid.typed import checked, construct
from overpaint.grid.yaml_files import read_mapping
from overpaint.report import statistics
from overpaint.report.claims import published
from overpaint.report.figure_text import interval, number
from overpaint.report.filters import narrowed
from overpaint.report.markdown import markdown
from overpaint.report.pooling import Outcomes, groups_of
from overpaint.report.records import number_of
from overpaint.report.rendering import tables
from overpaint.report.standings import aligned
from overpaint.report.statistics import Estimate
from overpaint.report.tables import Entry, Table
from overpaint.report.verdicts import by_images

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"<!-- (table|figure|gap|expectations|picture): (.*?) -->(.*?)<!-- end -->", re.S)
#: Fields of a record -> their interval.
FIELDS = {
    "value": ("low", "high"),
    "difference": ("difference_low", "difference_high"),
    "control": None,
    "original": None,
    "n": None,
    "p_value": None,
}
#: Labels by which a figure is named.
LABELS = ["method", "metric", "attack", "concepts", "protocol", "budget", "seed"]


def pages() -> list[Path]:
    """The pages that hold blocks."""
    found = [ROOT / "README.md", ROOT / "leaderboards" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if BLOCK.search(page.read_text(encoding="utf-8"))]


def written(page: Path, text: str) -> dict[Path, str]:
    """The files that a page's text determines: the page itself and its pictures.

    Raises:
        UserError: for a block that cannot be written; the message names the page and the block.
    """
    files: dict[Path, str] = {}

    def block(match: re.Match) -> str:
        kind, words, _ = match.groups()
        try:
            content = BLOCKS[kind](shlex.split(words))
        except UserError as error:
            raise UserError(f"{page.name}: {kind}: {words}: {error}") from None
        if kind == "picture":
            name = dict(word.split("=", 1) for word in shlex.split(words)[1:])["file"]
            files[page.parent / name] = content
            content = f"\n![{match.group(3).partition('[')[2].partition(']')[0]}]({name})\n"
        return f"<!-- {kind}: {words} -->{content}<!-- end -->"

    files[page] = BLOCK.sub(block, text)
    return files


@cache
def results(folder: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The records and outcomes of a folder of leaderboards/results; of ``FOLDER as 1``, as if all outcomes of shares were 1."""
    folder, _, value = folder.partition(" as ")
    found = published(ROOT / "leaderboards" / "results" / folder)
    return as_if(*found, float(value)) if value else found


def as_if(records: pd.DataFrame, outcomes: pd.DataFrame, value: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The records and outcomes as if every outcome of a share had this value."""
    share = (records["unit"] == "fraction") & records["value"].notna()
    shares = {n: statistics.proportion(np.full(int(n), value)) for n in records.loc[share, "n"].unique()}
    changed = {name: [getattr(shares[n], name) for n in records.loc[share, "n"]] for name in ("value", "low", "high")}
    records = records.copy()
    records.loc[share, list(changed)] = pd.DataFrame(changed, index=records.index[share])
    return records, outcomes.assign(value=outcomes["value"].mask(outcomes["value"].isin((0, 1)), value))


@cache
def outcomes_of(folder: str) -> Outcomes:
    """The outcomes of a folder of leaderboards/results, by record."""
    return Outcomes(results(folder)[1])


def shown(words: Sequence[str], view: str) -> list[Table]:
    """The tables of a view of a folder (the first word), of the records that the other words select."""
    return _shown(tuple(words), view)


@cache
def _shown(words: tuple[str, ...], view: str) -> list[Table]:
    records, outcomes = results(words[0])
    return tables(narrowed(records, words[1:], words[0]), view, outcomes)


def options(words: Sequence[str], **known: str) -> tuple[dict[str, str], list[str]]:
    """The ``key=value`` words with these keys, and the remaining words."""
    found = dict(known)
    rest = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in known:
            found[key] = value
        else:
            rest.append(word)
    return found, rest


def table(words: Sequence[str]) -> str:
    """A view in Markdown."""
    chosen, rest = options(words, view="facets", title="yes", notes="no", columns="", rows="", split="", without="")
    records = results(rest[0])[0]
    left = [method for method in records["method"].unique() if method not in chosen["without"].split(",")]
    rest += [f"method={','.join(left)}"] if chosen["without"] else []
    parts, whole = [], chosen["notes"] == "yes"
    for one in shown(rest, chosen["view"]):
        one = with_columns(one, chosen["columns"].split(";")) if chosen["columns"] else one
        one = with_rows(one, chosen["rows"].split(";")) if chosen["rows"] else one
        for part in split(one, int(chosen["split"] or len(one.columns))):
            title, rows, *notes = markdown([part if whole else replace(part, notes=[])]).strip().split("\n\n")
            title = f"**{title.removeprefix('### ')}**"
            parts += [
                *([title] if chosen["title"] == "yes" else []),
                rows,
                *(notes if whole else notes[:-1]),  # without: only the reasons of figures, and no legend
            ]
    return "\n\n" + "\n\n".join(parts) + "\n\n"


def with_columns(one: Table, titles: Sequence[str]) -> Table:
    """The table with these columns only."""
    places = {head.title: place for place, head in enumerate(one.columns)}
    for title in titles:
        if title not in places:
            raise unknown("column", title, places)
    kept = [places[title] for title in titles]
    rows = [replace(row, entries=[row.entries[place] for place in kept]) for row in one.rows]
    return replace(one, columns=[one.columns[place] for place in kept], rows=rows)


def split(one: Table, count: int) -> list[Table]:
    """The table in parts of at most ``count`` columns."""
    titles = [head.title for head in one.columns]
    return [with_columns(one, titles[start : start + count]) for start in range(0, len(titles), count)]


def with_rows(one: Table, names: Sequence[str]) -> Table:
    """The table with the rows whose last names these are."""
    known = {row.names[-1] for row in one.rows}
    for name in names:
        if name not in known:
            raise unknown("row", name, known)
    return replace(one, rows=[row for row in one.rows if row.names[-1] in names])


def figure(words: Sequence[str]) -> str:
    """One figure as text."""
    return said(estimate([word for word in words if word != "bare"]), bare="bare" in words)


def said(found: Entry, bare: bool = False) -> str:
    """A figure as text: ``0.67 [0.44, 0.82]``, or ``≥ 160 [120, ∞)`` for a lower bound."""
    if found.value is None:
        raise UserError("the figure is undefined")
    value = ("≥ " if found.bound else "") + number(found.value, found.unit)
    return value + ("" if bare else interval(found.low, found.high, found.unit))


def estimate(words: Sequence[str]) -> Entry:
    """The figure that the words name."""
    chosen, rest = options(words, view="")
    if chosen["view"]:
        return _of_view(rest, chosen["view"])
    field = rest.pop() if rest[-1] in FIELDS else "value"
    record = record_of(rest)
    limits = FIELDS[field]
    low, high = (number_of(record[name]) for name in limits) if limits else (None, None)
    unit = {"n": "", "p_value": "p"}.get(field, record["unit"])
    bound = field in ("value", "difference") and pd.notna(record["value"]) and bool(record["why"])
    return Entry(number_of(record[field]), low, high, unit, int(record["n"]), bound=bound)


def _of_view(words: Sequence[str], view: str) -> Entry:
    """The figure in a row and a column (the last two words) of a view's only table."""
    *selection, name, title = words
    found = shown(selection, view)
    entries = [
        entry
        for one in found
        for row in one.rows
        for head, entry in zip(one.columns, row.entries, strict=True)
        if row.names[-1] == name and head.title == title and entry is not None
    ]
    if len(entries) != 1:
        raise UserError(f"{len(entries)} figures have row {name!r} and column {title!r}, expected one")
    return entries[0]


@cache
def labels_of(folder: str) -> pd.DataFrame:
    """The labels of a folder's records, as text."""
    return results(folder)[0][LABELS].astype(str)


def record_of(words: Sequence[str]) -> pd.Series:
    """The one record of a folder (the first word) that has all the labels."""
    labels = labels_of(words[0])
    for word in words[1:]:
        column = next((name for name in LABELS if (labels[name] == word).any()), None)
        if column is None:
            raise unknown("label", word, {value for name in LABELS for value in labels[name].unique()})
        labels = labels[labels[column] == word]
    records = results(words[0])[0].loc[labels.index]
    if len(records) > 1 and (records["attack"] == "none").any():
        records = records[records["attack"] == "none"]
    if len(records) != 1:
        raise UserError(f"{len(records)} records have these labels, expected one")
    return records.iloc[0]


#: Words in a gap that say how its sides are compared.
MODES = ("unpaired", "shared")


def gap(words: Sequence[str]) -> str:
    """The difference of two figures as text."""
    return said(difference(words))


def difference(words: Sequence[str]) -> Entry:
    """The difference of the two figures that the words name: paired, unless ``unpaired`` is among them.

    With ``shared``, it is that of the prompts that both figures have.
    """
    unpaired, shared = (word in words for word in MODES)
    words = [word for word in words if word not in MODES]
    place = words.index("|")
    sides = words[:place], words[place + 1 :]
    one, other = map(estimate, sides)

    def entry(found: Estimate) -> Entry:
        return Entry(found.value, found.low, found.high, one.unit, found.n)

    if any(word.startswith("view=") for word in words):
        both = (Estimate(e.value, e.low, e.high) for e in (one, other))
        return entry(statistics.difference_of_estimates(*both))
    if one.value is None or other.value is None:
        raise UserError("a figure is undefined")
    if not unpaired and sides[0][0] == sides[1][0]:
        joined, _ = aligned(*map(outcomes_behind, sides))
        if joined is not None:
            found = statistics.paired_difference(joined["value"], joined["value_other"], **groups_of(joined))
            if found.value is not None and (shared or np.isclose(found.value, one.value - other.value)):
                return entry(found)
    hits = [np.arange(e.n) < round(e.n * (e.value or 0.0)) for e in (one, other)]
    if unpaired:
        return entry(statistics.unpaired_difference(*hits))
    if one.n != other.n or not any(h.all() or not h.any() for h in hits):
        raise UserError("the counts do not determine the pairs: write unpaired, or publish outcomes")
    return entry(statistics.paired_difference(*hits))


def outcomes_behind(words: Sequence[str]) -> pd.DataFrame | None:
    """The outcomes of a figure or of its control, as those of one concept set: two sets can have the same prompts."""
    field = words[-1] if words[-1] in FIELDS else "value"
    record = record_of(words[:-1] if words[-1] in FIELDS else words).to_dict()
    table = outcomes_of(words[0]).together([record])
    columns = {"value": "value", "control": "other"}
    if table is None or field not in columns:
        return None
    return table.assign(value=table[columns[field]], concepts="")


class Rule(TypedDict, total=False):
    """A figure or a gap with ``{method}`` in it, what it shows in words, and the bound that a claim states."""

    shows: str
    figure: str
    gap: str
    at_most: float
    at_least: float


@dataclass(frozen=True)
class Claim:
    """What a paper claims of a method, its arXiv id and the place in it, and what decides: a rule, or a page with its verdict."""

    method: str
    claim: str
    source: str
    rule: str | None = None
    page: str | None = None
    verdict: Literal["agrees", "disagrees", "open", "not tested"] | None = None

    def __post_init__(self) -> None:
        if (self.rule is None) == (self.page is None) or (self.page is None) != (self.verdict is None):
            raise UserError("a claim takes a rule, or a page and its verdict")


class Expectations(TypedDict):
    """A file of claims. ``runs``: the command behind each folder of results, without ``overpaint run`` and its methods."""

    runs: dict[str, str]
    rules: dict[str, dict[str, Any]]
    claims: list[dict[str, Any]]


def expectations(words: Sequence[str]) -> str:
    """The claims in a file, each with its source and verdict, and the commands that make the figures that are missing."""
    (name,) = words
    file = checked(Expectations, read_mapping(ROOT / name, name), name)
    rules = {key: checked(Rule, rule, f"{name}: rules.{key}") for key, rule in file["rules"].items()}
    lines = [
        "| method | the paper claims | source | figure | bound | found | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    missing: dict[str, list[str]] = {}  # folder -> methods without records in it
    for row, given in enumerate(file["claims"]):
        where = f"{name}: claims[{row}]"
        claim = construct(Claim, given, where)
        method = component("method", claim.method).name
        if claim.page:
            decision = [f"[{Path(claim.page).stem}]({claim.page})", "", "", claim.verdict]
        elif claim.rule not in rules:
            raise unknown("rule", claim.rule, rules, name)
        else:
            decision, folder = decided(rules[claim.rule], method, f"{name}: rules.{claim.rule}")
            if folder and method not in missing.setdefault(folder, []):
                missing[folder].append(method)
        cells = [f"[{method}](../docs/methods/{method}.md)", claim.claim, linked(claim.source, where), *decision]
        lines.append(f"| {' | '.join(cells)} |")
    if missing:
        lines += ["", "These commands make the figures that are *not measured*:", "", "```bash"]
        for folder, methods in sorted(missing.items()):
            if folder not in file["runs"]:
                raise unknown("folder", folder, file["runs"], f"{name}: runs")
            lines.append(f"overpaint run {file['runs'][folder]} method=none,{','.join(methods)}")
        lines.append("```")
    return "\n\n" + "\n".join(lines) + "\n\n"


def linked(source: str, where: str) -> str:
    """A source such as ``2303.07345, Table 2`` with a link to the paper."""
    paper, comma, place = source.partition(", ")
    if not (comma and re.fullmatch(r"\d{4}\.\d{5}", paper)):
        raise UserError(f"{where}: source takes an arXiv id and a place, as in '2303.07345, Table 2', got {source!r}")
    return f"[{paper}](https://arxiv.org/abs/{paper}), {place}"


def decided(rule: Mapping[str, Any], method: str, where: str) -> tuple[list[str], str | None]:
    """What a rule shows, its bound, what was found and the verdict, and the folder if it has no records of the method."""
    if "shows" not in rule or ("figure" in rule) == ("gap" in rule) or ("at_most" in rule) == ("at_least" in rule):
        raise UserError(f"{where} takes shows, figure or gap, and at_most or at_least")
    named = shlex.split(rule.get("figure", rule.get("gap", "")).replace("{method}", method))
    bound = f"≤ {rule['at_most']:g}" if "at_most" in rule else f"≥ {rule['at_least']:g}"
    folder = next(word for word in named if word not in MODES)
    if method not in results(folder)[0]["method_name"].unique():
        return [rule["shows"], bound, "not measured", ""], folder
    found = estimate(named) if "figure" in rule else difference(named)
    decision = verdict(found, rule)
    if decision == "open" and "figure" in rule and found.unit == "fraction" and named[-1] not in FIELDS:
        best = estimate([f"{folder} as {1 if 'at_least' in rule else 0}", *named[1:]])
        decision = "open" if verdict(best, rule) == "agrees" else TOO_FEW
    return [rule["shows"], bound, said(found), decision], None


#: The verdict where a figure of as many images without a single miss would not meet the bound either.
TOO_FEW = "too few images"


def verdict(found: Entry, rule: Mapping[str, Any]) -> str:
    """``agrees`` if the whole interval meets the bound, ``disagrees`` if none of it does, else ``open``."""
    if found.low is None and found.high is None:
        return "open"
    low, high = -math.inf if found.low is None else found.low, math.inf if found.high is None else found.high
    if "at_most" in rule:
        inside, outside = high <= rule["at_most"], low > rule["at_most"]
    else:
        inside, outside = low >= rule["at_least"], high < rule["at_least"]
    return "agrees" if inside else "disagrees" if outside else "open"


def picture(words: Sequence[str]) -> str:
    """The picture that ``draw`` names, in SVG, of the records that the other words select."""
    chosen, rest = options(words, file="", draw="panel")
    if chosen["draw"] == "panel":
        return pictures.panel(side_by_side(shown(rest, "panel")))
    if chosen["draw"] == "curves":
        records, outcomes = results(rest[0])
        return pictures.curves(by_images(narrowed(records, rest[1:], rest[0]), Outcomes(outcomes)))
    if chosen["draw"] == "taus":
        (table,) = shown(rest, "validity")
        return pictures.taus(table)
    raise unknown("draw", chosen["draw"], ("panel", "curves", "taus"))


def side_by_side(panels: Sequence[Table]) -> Table:
    """The columns of all panels in the rows of the first, each method once: the panels differ in their numbers of prompts."""
    first, *others = panels
    columns, rows = list(first.columns), {row.names: list(row.entries) for row in first.rows}
    for panel in others:
        new = [place for place, head in enumerate(panel.columns) if head not in columns]
        columns += [panel.columns[place] for place in new]
        entries = {row.names: row.entries for row in panel.rows}
        for names, row in rows.items():
            row += [entries[names][place] if names in entries else None for place in new]
    return replace(first, columns=columns, rows=[replace(row, entries=rows[row.names]) for row in first.rows])


#: Kinds of blocks -> what writes them.
BLOCKS = {
    "table": table,
    "figure": figure,
    "gap": gap,
    "expectations": expectations,
    "picture": picture,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a page would change")
    asked = parser.parse_args()
    changed = []
    try:
        for page in pages():
            for path, text in written(page, page.read_text(encoding="utf-8")).items():
                if not path.exists() or path.read_text(encoding="utf-8") != text:
                    changed.append(path)
                    if not asked.check:
                        path.write_text(text, encoding="utf-8")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for path in changed:
        print(f"{path.relative_to(ROOT)}: {'differs from its records' if asked.check else 'written'}")
    return 1 if changed and asked.check else 0


if __name__ == "__main__":
    sys.exit(main())
