"""Views: the figures that a table shows, and its primary endpoints. Each view is a YAML file in ``conf/view``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd
from typing_extensions import TypedDict

from overpaint.errors import UserError, unknown
from overpaint.grid.registry import components
from overpaint.grid.typed import checked, construct
from overpaint.grid.yaml_files import read_mapping, refuse_resolvers
from overpaint.report.pooling import FIELDS

#: Contents of views whose tables have one concept set each.
ONE_CONCEPT_SET = ("every", "panel")
#: What a mean over concept sets weighs equally: the sets, or the kinds of their concepts.
Average = Literal["concepts", "kinds"]


@dataclass(frozen=True)
class Column:
    """One column: a metric, an attack, a kind of concept, the field to show, and the comparison of a difference.

    ``scale`` maps its figures to (0, 1] (`overpaint.report.derived.scaled`). ``harmonic`` makes it the harmonic mean of other
    columns, by their titles; such a column has no metric.
    """

    metric: str = ""
    attack: str = "none"
    kind: str | None = None
    field: str = "value"
    against: str | None = None
    scale: Literal["relative", "inverted"] | None = None
    harmonic: list[str] | None = None

    def chosen(self, records: pd.DataFrame, rows: str) -> pd.DataFrame:
        """The records that this column shows. If rows are attacks, the column is not restricted to one attack."""
        wanted = records["metric"] == self.metric
        if rows != "attack":
            wanted &= records["attack_name"] == self.attack
        for name in ("kind", "against"):
            if getattr(self, name) is not None:
                wanted &= records[name] == getattr(self, name)
        return records[wanted]


@dataclass(frozen=True)
class OneAttack(Column):
    """Column ``of`` of a view, for one of several settings of its attack: the one with this ``label``."""

    of: str = ""
    label: str = ""

    def chosen(self, records: pd.DataFrame, rows: str) -> pd.DataFrame:
        """The records that this column shows."""
        found = super().chosen(records, rows)
        return found[found["attack"] == self.label]


@dataclass(frozen=True)
class View:
    """A view as defined in its YAML.

    ``cells`` is its content: every figure of a concept set, means over concepts, ranks of methods, pairs of methods, a panel of
    attacks and methods, a Pareto front of methods, the spread of figures, verdicts on attacks, or the validity of scores: its
    columns in ``truth`` are the distances by which the others are judged. ``primary`` names one endpoint per facet (`Endpoint`).
    ``average`` says what means weigh equally (`Average`). A view of ranks has one column of mean ranks over its columns for each
    entry of ``mean_ranks``, an average. ``together`` lists settings that may differ within a table
    (`overpaint.report.joined`). ``percent`` shows shares in per cent. ``run`` holds the overrides of the run that fills
    the view.
    """

    name: str
    cells: str = "means"
    rows: str = "method"
    blocks: Sequence[str] = ()
    columns: Mapping[str, Column] = field(default_factory=dict)
    primary: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    average: str = "concepts"
    mean_ranks: Sequence[str] = ()
    percent: bool = False
    run: Mapping[str, str] = field(default_factory=dict)
    truth: Sequence[str] = ()
    together: Sequence[str] = ()

    def shown(self, records: pd.DataFrame) -> pd.DataFrame:
        """The records that a column of the view shows."""
        places = {place for column in self.columns.values() for place in column.chosen(records, self.rows).index}
        return records[records.index.isin(places)]

    def by_attack(self, records: pd.DataFrame) -> View:
        """The view with a column for each setting of an attack: ``concept inversion, cce steps=50``. They have no common mean."""
        columns: dict[str, Column] = {}
        for title, column in self.columns.items():
            labels = list(dict.fromkeys(column.chosen(records, self.rows)["attack"])) if self.rows != "attack" else []
            if len(labels) < 2:
                columns[title] = column
            for label in labels if len(labels) > 1 else ():
                columns[f"{title}, {label}"] = OneAttack(**vars(column), of=title, label=label)
        return replace(self, columns=columns)

    def tests(self, title: str) -> bool:
        """Whether a column's figures are tested: differences are, and so are values if no column shows their difference."""
        column = self.columns[title]
        if column.field == "difference":
            return True
        others = [c for c in self.columns.values() if c.field == "difference" and c.metric == column.metric]
        return column.field == "value" and not others


class Endpoint(TypedDict, total=False):
    """A primary endpoint of a view. Without ``attack`` or ``against``, any attack or comparison counts."""

    metric: str
    attack: str
    against: str


class ViewFile(TypedDict, total=False):
    """The keys of a view's YAML. Keys that it does not set have the values of the view that it ``extends``."""

    name: str
    extends: str
    cells: Literal["every", "means", "ranks", "pairs", "panel", "front", "validity", "spread", "verdicts"]
    rows: Literal["method", "attack", "concepts"]
    blocks: (
        list[Literal["model", "concepts", "kind", "method", "attack", "protocol", "budget", "metrics", "seed"]] | None
    )
    columns: dict[str, dict[str, Any] | None] | None
    primary: dict[str, dict[str, Any]] | None
    average: Average
    mean_ranks: list[Average] | None
    percent: bool
    run: dict[str, str] | None
    truth: list[str] | None
    together: list[Literal["detector", "budget", "concepts", "method", "attack"]] | None


def in_store(view: View, store: str | None) -> View:
    """The view, whose commands make figures in the store that the user named."""
    return replace(view, run={**view.run, "store": shlex.quote(store)}) if store else view


def view_named(name: str) -> View:
    """The view of that name. Raises a `UserError` for an unknown name or a YAML file that does not define a view."""
    return _defined(name, "", ())


def _defined(name: str, named_by: str, descendants: tuple[str, ...]) -> View:
    """The view of that name, which the last of ``descendants`` extends at ``named_by``."""
    known, where = components("view"), f"view {name}"
    if name not in known:
        raise unknown("view", name, list(known), named_by)
    if name in descendants:
        raise UserError(f"{named_by}: view {name} would extend itself")
    read = read_mapping(known[name], where)
    refuse_resolvers(read, where)
    given = checked(ViewFile, read, where)
    base = View(name)
    if extended := given.get("extends"):
        base = _defined(extended, f"{where}: extends", (*descendants, name))
    columns = _columns(base.columns, given.get("columns") or {}, where)
    for facet, endpoint in (given.get("primary") or {}).items():
        if "metric" not in checked(Endpoint, endpoint, f"{where}: primary.{facet}"):
            raise UserError(f"{where}: primary.{facet} names no metric")
    plain = vars(View(name))  # a key that is null has its default
    own = {
        key: plain[key] if value is None else value for key, value in given.items() if key not in ("extends", "columns")
    }
    view = replace(base, **own | {"name": name, "columns": columns})
    for title in view.truth:
        if title not in columns:
            raise unknown("column", title, columns, f"{where}: truth")
    if view.together and view.cells in ONE_CONCEPT_SET:
        raise UserError(
            f"{where}: together has no effect on cells: {view.cells}, whose tables have one concept set each"
        )
    return view


def _columns(
    inherited: Mapping[str, Column], given: Mapping[str, Mapping[str, Any] | None], where: str
) -> dict[str, Column]:
    """The inherited columns with those of a view's YAML. Its ``null`` removes a column."""
    columns = dict(inherited)
    for title, values in given.items():
        if values is not None:
            columns[title] = _column(values, f"{where}: columns.{title}")
        elif columns.pop(title, None) is None:
            raise unknown("column", title, inherited, f"{where}: columns")
    for title, column in columns.items():
        for other in column.harmonic or ():
            if other not in columns or columns[other].harmonic:
                raise unknown("column", other, columns, f"{where}: columns.{title}.harmonic")
    return columns


def _column(values: Mapping[str, Any], where: str) -> Column:
    column = construct(Column, values, where)
    if column.field not in FIELDS:
        raise unknown("field", column.field, FIELDS, where)
    if not (column.metric or column.harmonic):
        raise UserError(f"{where} needs a metric, or harmonic with titles of other columns")
    return column
