"""What the pages show: results by experiment, and their blocks, the parts that share a table."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from overpaint.errors import UserError
from overpaint.grid.concept_sets import Rule, erased_by, listed
from overpaint.grid.read_once import remembered
from overpaint.grid.registry import components
from overpaint.report.claims import claim_files, published
from overpaint.report.filters import narrowed
from overpaint.report.rendering import tables_if_any
from overpaint.report.tables import GIVEN, SETTINGS, Table, distinguished, given_on_concepts, several_of
from overpaint.report.views import view_named

#: The view whose tables are the rows of the index.
VIEW = "leaderboard"
#: What is measured in the same way: a block's labels, besides its concept set.
PLACE = ["model", "protocol", "budget"]
#: Further settings that split results into blocks. They are part of a block's labels where they have several values.
FURTHER = [name for name in SETTINGS if name not in (*PLACE, "seed")]


@dataclass(frozen=True)
class Results:
    """The results of one experiment.

    Attributes:
        name: the name of the experiment, or of the store.
        records: see `overpaint.report.records`.
        outcomes: the outcomes behind them; empty if they are not stored.
        runs: how the records were made (`overpaint.report.claims.Claim`), without repetitions.
        waived: what their files cannot state, and why.
    """

    name: str
    records: pd.DataFrame
    outcomes: pd.DataFrame
    runs: Sequence[Mapping[str, Any]] = ()
    waived: Mapping[str, str] = field(default_factory=dict)

    def of(self, records: pd.DataFrame) -> Results:
        """The results with fewer records."""
        return replace(self, records=records)

    @cached_property
    def components(self) -> dict[str, str]:
        """Names of methods by their labels; also by the labels with a hash that tables show (`distinguished`)."""
        return {
            label: name
            for records in (self.records, distinguished(self.records))
            for label, name in zip(records["method"], records["method_name"], strict=True)
        }


@dataclass(frozen=True)
class Block:
    """One table of view `VIEW`: methods that were measured in the same way on one concept set, or the mean over several.

    Attributes:
        concepts: the label of the concept set, or ``mean of 7 concepts``.
        averaged: the labels of the concept sets in a mean; empty for one concept set.
        settings: the settings besides model, protocol and budget that tell this block from others, as text: ``threshold 0.8``.
    """

    results: Results
    model: str
    protocol: str
    budget: str
    concepts: str
    kind: str
    table: Table
    averaged: tuple[str, ...] = ()
    facets: Mapping[str, str] = field(default_factory=dict)
    settings: str = ""

    @property
    def measured(self) -> str:
        """The results and how they were measured, as text."""
        place = f"{self.model}, protocol {self.protocol}, budget {self.budget}"
        return f"{self.results.name} · {place}" + (f", {self.settings}" if self.settings else "")

    @property
    def name(self) -> str:
        """What tells this block from the others, as text. A mean names its concept sets."""
        of = f": {', '.join(self.averaged)}" if self.averaged else ""
        return f"{self.concepts} ({self.kind}{of}) · {self.measured}"

    @cached_property
    def methods(self) -> dict[str, str]:
        """Names of methods by the labels of the table's rows."""
        return {row.names[0]: self.results.components[row.names[0]] for row in self.table.rows}


def read(folder: Path) -> list[Results]:
    """The results of the files below a folder: one experiment per subfolder, or a single one if the folder holds files.

    A file of results is an experiment of its own.
    """
    files = claim_files(folder)
    single = any(folder in (path, path.parent) for path in files)
    places = [folder] if single else sorted({_top(folder, path) for path in files})
    found = []
    for place in places:
        records, outcomes = published(place)
        runs: list[Mapping[str, Any]] = []
        waived: dict[str, str] = {}
        for path in claim_files(place):
            file = json.loads(path.read_text(encoding="utf-8"))
            runs += [run for run in file["runs"] if run not in runs]
            waived |= {str(rule): str(reason) for rule, reason in file["waived"].items()}
        found.append(Results(place.name.removesuffix(".json"), records, outcomes, runs, waived))
    return found


def narrowed_to(found: Sequence[Results], filters: Sequence[str], own_keys: Collection[str] = ()) -> list[Results]:
    """The results that the filters of `overpaint.report.filters.narrowed` select, without experiments that have none."""
    kept, refused = [], []
    for results in found:
        try:
            kept.append(results.of(narrowed(results.records, filters, results.name, own_keys)))
        except UserError as error:
            refused.append(error)
    if not kept and refused:
        raise refused[0]
    return kept


def _top(folder: Path, path: Path) -> Path:
    return folder / path.relative_to(folder).parts[0]


def blocks(results: Results) -> Iterator[Block]:
    """The blocks of an experiment. A mean over all concept sets that erase a single concept comes before its parts.

    Only figures of the same settings are in one mean: see `FURTHER` and `overpaint.report.tables.GIVEN`.
    """
    described = results.records.drop_duplicates("metric")
    facets = dict(zip(described["metric"].astype(str), described["facet"].astype(str), strict=True))
    for place, everything in results.records.groupby(PLACE, sort=False, dropna=False):
        model, protocol, budget = map(str, place)
        for settings, part in _split(everything, FURTHER):
            parts = [*_means(part)]
            for (label, of_kind), own in part.groupby(["concepts", "kind"], sort=False):
                parts.append((str(label), str(of_kind), (), "", own))
            for concepts, kind, averaged, given, own in parts:
                said = ", ".join(text for text in (settings, given) if text)
                for table in shown(results.of(own), VIEW):
                    yield Block(results, model, protocol, budget, concepts, kind, table, averaged, facets, said)


#: A mean or a concept set of a block: its label, kind, the labels in the mean, the values set by hand, and the records.
Part = tuple[str, str, tuple[str, ...], str, pd.DataFrame]


def _means(part: pd.DataFrame) -> Iterator[Part]:
    """The means over concept sets that erase a single concept, one for each combination of values set by hand on concepts."""
    labels = map(str, dict.fromkeys(view_named(VIEW).shown(part)["concepts"]))
    chosen = part[part["concepts"].isin([label for label in labels if len(erased_in(part, label)) == 1])]
    for given, own in _split(chosen.assign(**{GIVEN: given_on_concepts(chosen)}), [GIVEN]):
        covered = tuple(map(str, dict.fromkeys(own["concepts"])))
        kinds = list(map(str, dict.fromkeys(own["kind"])))
        if len(covered) > 1:
            kind = kinds[0] if len(kinds) == 1 else "several kinds"
            yield f"mean of {len(covered)} concepts", kind, covered, given, own


def _split(records: pd.DataFrame, settings: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """The records by those settings that have several values, which are named as text; empty if none has."""
    several = several_of(records, settings)
    if not several:
        yield "", records
        return
    for values, own in records.groupby(several, sort=False, dropna=False):
        yield ", ".join(map(_setting, several, values)), own


def _setting(name: str, value: Any) -> str:
    """A setting as text: ``threshold 0.8``; values set by hand on concepts name themselves."""
    known = not pd.isna(value) and value != ""
    if name == GIVEN:
        return str(value) if known else "no values set by hand on concepts"
    return f"{name} {value}" if known else f"no {name}"


def erased_in(records: pd.DataFrame, label: str) -> tuple[str, ...]:
    """The concepts that a concept set of these records erases: set by hand, or those of the known set; else none."""
    given = json.loads(records.loc[records["concepts"] == label, "given"].iloc[0]).get("concepts.erase")
    return erased().get(label, ()) if given is None else tuple(listed(given))


def shown(results: Results, view: str) -> list[Table]:
    """The tables of a view; none if the records fill none of its columns."""
    return tables_if_any(results.records, view, results.outcomes)


#: How the label of a concept set ends if its concepts are not erased at once, and the name of each manner.
MANNERS = {"": "once", " in turn": "turn", **{f" merged by {rule}": "merged" for rule in get_args(Rule)}}


@remembered
def erased() -> dict[str, tuple[str, ...]]:
    """The concepts that each known concept set erases, by its label; ``X in turn`` is the label of a sequence of requests,
    ``X merged by sum`` that of separately made erasures."""
    return {f"{name}{manner}": erased_by(name) for name in components("concepts") for manner in MANNERS}
