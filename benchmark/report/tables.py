"""Tables as data: rows, columns and figures with their intervals, tests, reasons and provenance.

Nothing in a table is formatted text: `overpaint.report.rendering` gives the same table to terminals, Markdown, LaTeX, CSV and
JSON.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import pandas as pd

from overpaint.grid.scope import OUTSIDE
from overpaint.report.derived import harmonic, scaled
from overpaint.report.families import UNMARKED, Compared, Mark, families_said, is_primary, marks, test_of
from overpaint.report.pooling import Outcomes, Rows, pooled, rows_by
from overpaint.report.records import given_by_hand, number_of
from overpaint.report.seeds import FEWEST
from overpaint.report.standings import paired, standings
from overpaint.report.statistics import Estimate
from overpaint.report.views import OneAttack, View
from overpaint.run.track import facets

#: Settings that split results into separate tables.
SETTINGS = ["protocol", "budget", "metrics", "seed", "detector", "threshold"]
#: Name of another such setting, for means over concepts: the values of a concept set that were set by hand.
GIVEN = "given on concepts"


@dataclass(frozen=True)
class Entry:
    """One figure of a table.

    Attributes:
        value: the figure; ``None`` if it is undefined.
        low, high: its interval, which is open on a side if only the other limit is known.
        why: the reason why it is undefined or only a lower bound.
        bound: whether the value is only a lower bound.
        outside: whether the attack bypasses the defence.
        of: the number of concepts in a mean and the number in its table, if they differ.
        beside: further values of the same kind that are shown after a slash, such as those of controls.
        standing: ``best`` for the best method of a column, ``tied`` if it is not shown to be worse
            (`overpaint.report.standings`).
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = "fraction"
    n: int = 0
    failed: int = 0
    mark: Mark = UNMARKED
    control: float | None = None
    spread: float | None = None
    bound: bool = False
    outside: bool = False
    of: tuple[int, int] | None = None
    why: str = ""
    beside: tuple[float, ...] = ()
    standing: str = ""


@dataclass(frozen=True)
class Head:
    """The head of a column: its title, the direction in which its figures are better (``up``, ``down`` or unknown), the n of all
    its figures, 0 if they differ, and the view's ``column`` that it is a part of (`overpaint.report.views.OneAttack`)."""

    title: str
    direction: str = ""
    n: int = 0
    column: str = ""


@dataclass(frozen=True)
class Row:
    """A row: a name for each of the table's ``heads``, and an entry per column (``None`` if there is no figure).

    A row of figures of one metric also has their ``direction`` and their largest ``n``.
    """

    names: tuple[str, ...]
    entries: Sequence[Entry | None]
    direction: str = ""
    n: int = 0


@dataclass(frozen=True)
class Provenance:
    """What the figures of a table were made from.

    Attributes:
        records: the number of records.
        settings: hashes of the records' settings (`overpaint.report.records.settings_hash`).
        detectors: the detectors with versions and hashes.
        versions: component -> the versions that occur.
    """

    records: int = 0
    settings: tuple[str, ...] = ()
    detectors: tuple[str, ...] = ()
    versions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table with the notes that belong under it."""

    title: str
    heads: tuple[str, ...]
    columns: Sequence[Head]
    rows: Sequence[Row]
    notes: Sequence[str] = field(default_factory=list)
    provenance: Provenance = Provenance()

    def entries(self) -> Iterator[Entry]:
        """Every figure of the table."""
        for row in self.rows:
            yield from (entry for entry in row.entries if entry is not None)


def provenance(records: pd.DataFrame) -> Provenance:
    """The provenance of a table of these records."""
    versions: dict[str, set[int]] = {}
    for text in records["versions"].dropna().unique() if "versions" in records else ():
        for name, version in json.loads(text).items():
            versions.setdefault(name, set()).add(version)
    records = records.reindex(columns=[*dict.fromkeys([*records, "settings", "detector"])])
    named = (records[name].dropna().astype(str).unique() for name in ("settings", "detector"))
    settings, detectors = (tuple(sorted(value for value in found if value)) for found in named)
    return Provenance(len(records), settings, detectors, {n: tuple(sorted(v)) for n, v in sorted(versions.items())})


#: What the hash after a method's label means.
UNLABELLED = (
    "#: cells with equal labels whose settings differ in something that no label shows, such as an edited YAML file or prompt "
    "list. overpaint table with the overrides of a run shows the figures of the present settings alone."
)


def distinguished(records: pd.DataFrame) -> pd.DataFrame:
    """The records, with a hash after the method's label for all figures of cells that labels do not tell apart."""
    place = [n for n in (*SETTINGS, "model", "concepts", "kind", "method", "attack", "metric") if n in records]
    if "settings" not in records or records.empty:
        return records
    several = records.groupby(place, dropna=False)["settings"].transform("nunique") > 1
    several = records["settings"].isin(set(records.loc[several, "settings"]))
    marked = records["method"].astype(str) + " #" + records["settings"].astype(str).str[:6]
    return records.assign(method=records["method"].where(~several, marked))


def several_of(records: pd.DataFrame, settings: Iterable[str]) -> list[str]:
    """The settings that have more than one value in these records."""
    return [n for n in settings if n in records and records[n].nunique() > 1]


def under(settings: Iterable[str], values: Iterable) -> str:
    """The known settings of a table as text: ``, budget lite, seed 1``."""
    said = (
        f"{value}" if name == GIVEN else f"{name} {value}"
        for name, value in zip(settings, values, strict=True)
        if _known(value)
    )
    return "".join(f", {text}" for text in said)


def _known(value) -> bool:
    return not pd.isna(value) and value != ""


def blocks_of(
    records: pd.DataFrame, view: View, together: Collection[str] = ("seed",)
) -> Iterator[tuple[str, pd.DataFrame]]:
    """A title and the records for each model and setting, without the unedited model. Settings ``together`` split nothing."""
    records = distinguished(records)
    records = records[records["method_name"] != "none"]
    several = several_of(records, _splitting(view, together))
    for (model, *by), part in records.groupby(["model", *view.blocks, *several], sort=False, dropna=False):
        values = by[len(view.blocks) :]
        concepts = ", ".join(dict.fromkeys(part["concepts"]))
        yield f"{model}{under(several, values)}: {concepts}", part


def _splitting(view: View, together: Collection[str]) -> list[str]:
    """The `SETTINGS` that split a view's results, without those that are ``together``, here or in the view."""
    joint = {*together, *view.together, *(["threshold"] if "detector" in view.together else [])}
    return [name for name in SETTINGS if name not in joint]


def every_figure(records: pd.DataFrame, view: View) -> Iterator[Table]:
    """One table per concept set and setting. Rows are figures by facet; columns are methods."""
    records = distinguished(records)
    several = several_of(records, SETTINGS)
    for (model, concepts, kind, *values), part in records.groupby(
        ["model", "concepts", "kind", *several], sort=False, dropna=False
    ):
        methods = list(dict.fromkeys(part["method"]))
        tests = {i: test_of(record, view.primary) for i, record in part.iterrows()}
        found: dict = {}
        for method in methods:
            places = list(part.index[part["method"] == method])
            found |= dict(zip(places, marks([tests[i] for i in places]), strict=True))
        rows = []
        for facet in dict.fromkeys([*facets(), *part["facet"]]):
            of_facet = part[part["facet"] == facet]
            for (attack, metric), figures in of_facet.groupby(["attack", "metric"], sort=False):
                by_method = {r["method"]: _entry(r, found[i]) for i, r in figures.iterrows()}
                most = max(entry.n for entry in by_method.values())
                name = metric.replace("_", " ") + ("" if attack == "none" else f", {attack}")
                entries = [by_method.get(m) for m in methods]
                rows.append(Row((facet, name), entries, figures["direction"].iloc[0], most))
        largest = max((part[part["method"] == m].index for m in methods), key=lambda places: _counted(tests, places))
        notes = families_said([tests[i] for i in largest], view.primary)
        title = f"{concepts} ({kind}) on {model}{under(several, values)}"
        yield Table(title, ("facet", "figure"), list(map(Head, methods)), rows, notes, provenance(part))


def _counted(tests: Mapping[Hashable, Compared | None], places: Iterable[Hashable]) -> int:
    return sum(tests[i] is not None for i in places)


def _entry(record: pd.Series, mark: Mark) -> Entry:
    """A record as an entry."""
    why = record["why"] if isinstance(record["why"], str) else ""
    value = number_of(record["value"])
    return Entry(
        value,
        number_of(record["low"]),
        number_of(record["high"]),
        record["unit"],
        int(record["n"]),
        int(record["failed"]),
        mark,
        number_of(record["control"]),
        bound=value is not None and bool(why),
        outside=record["scope"] == OUTSIDE,
        why=why,
    )


#: Figures and tests of a column by row, and columns by title.
Cells = dict[Any, tuple[Entry, Compared | None]]
Columns = dict[str, Cells]


def averaged(records: pd.DataFrame, view: View, outcomes: Outcomes) -> Iterator[Table]:
    """One table per model and other columns in the view's ``blocks``, with means over concepts and method seeds.

    A mean over fewer concepts than the others in its column shows their number.
    """
    records = distinguished(records).assign(**{GIVEN: given_on_concepts(records)})
    # labels of concept sets name what was set by hand
    one_each = "concepts" in (view.rows, *view.blocks, *view.together)
    several = several_of(records, [*([] if one_each else [GIVEN]), *_splitting(view, ("seed",))])
    for (model, *by), part in records.groupby(["model", *view.blocks, *several], sort=False, dropna=False):
        columns: Columns = {}
        heads: dict[str, Head] = {}
        for title, column in view.columns.items():
            chosen = column.chosen(part, view.rows)
            if column.harmonic or chosen.empty:
                continue
            direction = "up" if column.scale else chosen["direction"].iloc[0]
            of = column.of if isinstance(column, OneAttack) else title
            heads[title] = Head(title, direction if column.field == "value" else "", column=of)
            columns[title] = _means(chosen, view, title, outcomes)
        for title, cells in _harmonics(columns, view).items():
            heads[title], columns[title] = Head(title, "up", column=title), cells
        columns = {title: columns[title] for title in view.columns if title in columns}
        names = [n for n in dict.fromkeys(part[view.rows]) if any(n in cells for cells in columns.values())]
        if not names:
            continue
        owners = {name: part[part[view.rows] == name]["method"].iloc[0] for name in names}
        rows, largest = _with_marks(columns, names, owners, view)
        concepts = list(dict.fromkeys(part["concepts"]))
        method = [str(value) for name, value in zip(view.blocks, by, strict=False) if name == "method"]
        over = ("mean over " if len(concepts) > 1 else "") + ", ".join(concepts)
        title = f"{' on '.join([*method, str(model)])}{under(several, by[len(view.blocks) :])}: {over}"
        notes = [_over(part, view.average), *families_said(largest, view.primary)]
        heads = {t: replace(heads[t], n=_common_n(columns[t].values()) if heads[t].direction else 0) for t in columns}
        yield Table(title, (view.rows,), list(heads.values()), rows, notes, provenance(part))


def _common_n(cells: Iterable[tuple[Entry, Any]]) -> int:
    """The n of a column's shares; 0 if they have no common one."""
    found = {entry.n for entry, _ in cells if entry.unit == "fraction" and entry.value is not None}
    return found.pop() if len(found) == 1 else 0


def given_on_concepts(records: pd.DataFrame) -> pd.Series:
    """Values of a concept set that were set by hand, except the concepts to erase."""
    found = given_by_hand(records, ("concepts",), without=("concepts.erase", "concepts.name"))
    return found.astype(object)


def _means(chosen: pd.DataFrame, view: View, title: str, outcomes: Outcomes) -> Cells:
    """The mean of a column's figures and its test, by row."""
    column, most = view.columns[title], chosen["concepts"].nunique()
    cells: Cells = {}
    by_row = rows_by(chosen, view.rows)
    for name, figures in by_row.items():
        found = pooled(figures, column.field, outcomes, view.average)
        if found is None:
            continue
        count = len({figure["concepts"] for figure in figures})
        first = figures[0]
        reasons = dict.fromkeys(f["why"] for f in figures if isinstance(f["why"], str) and f["why"])
        shown = column.field in ("value", "difference")
        entry = Entry(
            found.estimate.value,
            found.estimate.low,
            found.estimate.high,
            first["unit"],
            found.estimate.n,
            sum(int(figure["failed"]) for figure in figures) if column.field == "value" else 0,
            spread=found.estimate.spread,
            bound=shown and found.estimate.value is not None and bool(reasons),
            outside=shown and any(figure["scope"] == OUTSIDE for figure in figures),
            of=(count, most) if count < most and view.rows != "concepts" else None,
            why="; ".join(reasons),
        )
        test = None
        if view.tests(title) and found.p_value is not None:
            primary = is_primary(view.primary, first["facet"], first["metric"], first["attack_name"], first["against"])
            test = Compared(found.p_value, found.p_equivalence, primary, first["facet"])
        cells[name] = (entry, test)
    if view.rows == "method" and column.field == "value" and not column.scale:
        cells = _with_standings(cells, by_row, outcomes)
    if column.scale:
        originals = {name: pooled(by_row[name], "original", outcomes, view.average) for name in cells}
        values = {name: found.estimate.value if found else None for name, found in originals.items()}
        return {
            name: (entry, None)
            for name, entry in scaled({name: entry for name, (entry, _) in cells.items()}, column, values).items()
        }
    return cells


def _with_standings(cells: Cells, by_row: Mapping[str, Rows], outcomes: Outcomes) -> Cells:
    """The cells of a column with the best method and those tied with it. Means over fewer concepts take no part."""
    estimates = {
        name: Estimate(entry.value, entry.low, entry.high)
        for name, (entry, _) in cells.items()
        if entry.of is None and not entry.bound and by_row[name][0]["method_name"] != "none"
    }
    first = next(iter(by_row.values()))[0]
    found = standings(
        estimates,
        first["direction"],
        lambda a, b: paired(by_row[a], by_row[b], outcomes, interval=False)[0],
        exact=first["facet"] == "sustainability",
    )
    return {name: (replace(entry, standing=found.get(name, "")), test) for name, (entry, test) in cells.items()}


def _harmonics(columns: Columns, view: View) -> Columns:
    """The columns that are harmonic means of others, for the rows that those have."""
    found: Columns = {}
    for title, column in view.columns.items():
        parts = [columns.get(other, {}) for other in column.harmonic or ()]
        rows = dict.fromkeys(name for part in parts for name in part)
        means = {
            name: harmonic(
                [part[name][0] if name in part else None for part in parts], column.harmonic or (), Entry(None)
            )
            for name in rows
        }
        if rows:
            found[title] = {name: (entry, None) for name, entry in means.items()}
    return found


def _with_marks(
    columns: Columns, names: Sequence[str], owners: Mapping[str, str], view: View
) -> tuple[list[Row], list[Compared | None]]:
    """The rows of a table with their marks, and the tests of its largest family. Each method has one family."""
    largest: list[Compared | None] = []
    found: dict[tuple[str, str], Mark] = {}
    for owner in dict.fromkeys(owners.values()):
        places = [(n, c) for n in names if owners[n] == owner for c in columns if n in columns[c]]
        tests = [columns[c][n][1] for n, c in places]
        found |= dict(zip(places, marks(tests), strict=True))
        largest = max(largest, [t for t in tests if t], key=len)

    def marked(name: str, title: str) -> Entry | None:
        if name not in columns[title]:
            return None
        entry = replace(columns[title][name][0], mark=found[name, title])
        return in_percent(entry) if view.percent else entry

    return [Row((name,), [marked(name, title) for title in columns]) for name in names], largest


def in_percent(entry: Entry) -> Entry:
    """A share as a percentage, as many papers print it; other units are not changed."""
    if entry.unit != "fraction":
        return entry
    names = ("value", "low", "high", "control", "spread")
    known = {name: getattr(entry, name) for name in names if getattr(entry, name) is not None}
    return replace(entry, unit="%", **{name: 100 * value for name, value in known.items()})


def _over(records: pd.DataFrame, average: str) -> str:
    """A sentence that says over how many concepts and seeds the means of these records are, and which of them are samples."""
    what = "kinds of concepts" if average == "kinds" else "concepts"
    fixed = (
        f"Means over {what}: these concepts are fixed and weigh the same, their prompts are a sample. "
        if records["concepts"].nunique() > 1
        else ""
    )
    edited = records[records["method_name"] != "none"] if (records["method_name"] != "none").any() else records
    by_figure = edited.groupby(["method", "concepts"], sort=False)["seed"]
    found = {tuple(sorted({*seeds.dropna()})) for _, seeds in by_figure}
    fewest, most = min(map(len, found)), max(map(len, found))
    listed = ", ".join(f"{seed:.0f}" for seed in sorted({*chain(*found)}))
    each, named = (" for each method and concept", f" ({listed})") if len(found) > 1 else ("", "")
    if most <= 1:
        return f"{fixed}One method seed{each}{named}: the intervals do not cover the variation between seeds."
    number = f"{most}" if fewest == most else f"{fewest} to {most}"
    over = f"{fixed}Means over {number} method seeds{each} ({listed})"
    if fewest >= FEWEST:
        return f"{over}, a sample of seeds."
    if most < FEWEST:
        return f"{over}: the intervals do not cover the variation between seeds, which takes {FEWEST}."
    return f"{over}: the intervals cover the variation between seeds where there are {FEWEST} or more."
