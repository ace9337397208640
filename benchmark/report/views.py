"""Views: the figures that a table shows, and its primary endpoints. Each view is a YAML file in ``conf/view``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import yaml

from overpaint.errors import UserError, unknown
from overpaint.grid.registry import components
from overpaint.report.pooling import FIELDS

#: What a mean over concept sets weighs equally: the sets, or the kinds of their concepts.
AVERAGES = ("concepts", "kinds")
#: How the figures of a column can be scaled (`overpaint.report.derived.scaled`).
SCALES = ("relative", "inverted")
#: Contents of a view's cells: all figures of a concept set, means over concepts, ranks of methods, or pairs of methods.
CELLS = ("every", "means", "ranks", "pairs")


@dataclass(frozen=True)
class Column:
    """One column: a metric, an attack, a kind of concept, the field to show, and the comparison of a difference.

    ``scale`` maps its figures to (0, 1] (`SCALES`). ``harmonic`` makes it the harmonic mean of other columns, by
    their titles; such a column has no metric.
    """

    metric: str = ""
    attack: str = "none"
    kind: str | None = None
    field: str = "value"
    against: str | None = None
    scale: str | None = None
    harmonic: tuple[str, ...] = ()

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
class View:
    """A view as defined in its YAML.

    ``primary`` names one endpoint per facet: ``facet: {metric, attack, against}``. ``attack`` and ``against`` are optional.
    ``average`` says what means weigh equally (`AVERAGES`). A view of ranks has one column of mean ranks over its columns for each
    entry of ``mean_ranks``, an average.
    """

    name: str
    cells: str = "means"
    rows: str = "method"
    blocks: tuple[str, ...] = ()
    columns: Mapping[str, Column] = field(default_factory=dict)
    primary: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    average: str = "concepts"
    mean_ranks: tuple[str, ...] = ()

    def tests(self, title: str) -> bool:
        """Whether a column's figures are tested: differences are, and so are values if no column shows their difference."""
        column = self.columns[title]
        if column.field == "difference":
            return True
        others = [c for c in self.columns.values() if c.field == "difference" and c.metric == column.metric]
        return column.field == "value" and not others


def view_named(name: str) -> View:
    """The view of that name. Raises a `UserError` for an unknown name or a YAML file that does not define a view."""
    known = components("view")
    if name not in known:
        raise unknown("view", name, list(known))
    return _view(name, yaml.safe_load(known[name].read_text(encoding="utf-8")))


def _view(name: str, config: Any) -> View:
    if not isinstance(config, Mapping):
        raise UserError(f"view={name}: the file must hold a mapping with name, rows, blocks and columns")
    for key in config:
        if key not in View.__dataclass_fields__:
            raise unknown("key", key, View.__dataclass_fields__, f"view={name}")
    columns = {}
    for title, column in (config.get("columns") or {}).items():
        for key in column:
            if key not in Column.__dataclass_fields__:
                raise unknown("key", key, Column.__dataclass_fields__, f"view={name}: columns.{title}")
        columns[str(title)] = Column(**{**column, "harmonic": tuple(column.get("harmonic", ()))})
        if not (column.get("metric") or column.get("harmonic")):
            raise UserError(f"view={name}: columns.{title} needs a metric, or harmonic with titles of other columns")
        if column.get("scale") not in (None, *SCALES):
            raise unknown("scale", column["scale"], SCALES, f"view={name}: columns.{title}")
        if columns[str(title)].field not in FIELDS:
            raise unknown("field", column["field"], FIELDS, f"view={name}: columns.{title}")
    for title, made in columns.items():
        for other in made.harmonic:
            if other not in columns or columns[other].harmonic:
                raise unknown("column", other, columns, f"view={name}: columns.{title}.harmonic")
    chosen = dict(config) | {"columns": columns, "blocks": tuple(config.get("blocks") or ())}
    if chosen.get("cells", "means") not in CELLS:
        raise unknown("cells", chosen["cells"], CELLS, f"view={name}")
    chosen["mean_ranks"] = tuple(config.get("mean_ranks") or ())
    for key, values in (("average", [chosen.get("average", "concepts")]), ("mean_ranks", chosen["mean_ranks"])):
        for value in values:
            if value not in AVERAGES:
                raise unknown("average", value, AVERAGES, f"view={name}: {key}")
    return View(**{**chosen, "primary": chosen.get("primary") or {}})
