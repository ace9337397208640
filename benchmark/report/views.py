"""Views: which figures a table shows, and which of them are its primary endpoints. One YAML of ``conf/view`` each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import yaml

from overpaint.errors import UserError, unknown
from overpaint.grid.registry import components
from overpaint.report.pooling import FIELDS

#: What the cells of a view hold: every figure of a concept set; means over concepts; ranks of methods; methods in pairs.
CELLS = ("every", "means", "ranks", "pairs")


@dataclass(frozen=True)
class Column:
    """One column: a metric, under an attack, for a kind of concept; which field, and against what a difference is."""

    metric: str
    attack: str = "none"
    kind: str | None = None
    field: str = "value"
    against: str | None = None

    def chosen(self, records: pd.DataFrame, rows: str) -> pd.DataFrame:
        """The records that this column shows. Where rows are attacks, each row has its own."""
        wanted = records["metric"] == self.metric
        if rows != "attack":
            wanted &= records["attack_name"] == self.attack
        for name in ("kind", "against"):
            if getattr(self, name) is not None:
                wanted &= records[name] == getattr(self, name)
        return records[wanted]


@dataclass(frozen=True)
class View:
    """A view as its YAML says it.

    ``primary`` names one endpoint a facet: ``facet: {metric, attack, against}``, the latter two if they matter.
    """

    name: str
    cells: str = "means"
    rows: str = "method"
    blocks: tuple[str, ...] = ()
    columns: Mapping[str, Column] = field(default_factory=dict)
    primary: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def tests(self, title: str) -> bool:
        """Whether a column's figures are tested: its differences, or its values where no column shows the difference."""
        column = self.columns[title]
        if column.field == "difference":
            return True
        others = [c for c in self.columns.values() if c.field == "difference" and c.metric == column.metric]
        return column.field == "value" and not others


def view_named(name: str) -> View:
    """The view of that name; a `UserError` for an unknown name or a YAML that is no view."""
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
        columns[str(title)] = Column(**column)
        if columns[str(title)].field not in FIELDS:
            raise unknown("field", column["field"], FIELDS, f"view={name}: columns.{title}")
    chosen = dict(config) | {"columns": columns, "blocks": tuple(config.get("blocks") or ())}
    if chosen.get("cells", "means") not in CELLS:
        raise unknown("cells", chosen["cells"], CELLS, f"view={name}")
    return View(**{**chosen, "primary": chosen.get("primary") or {}})
