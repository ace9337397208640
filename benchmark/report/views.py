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

#: Contents of a view's cells: all figures of a concept set, means over concepts, ranks of methods, or pairs of methods.
CELLS = ("every", "means", "ranks", "pairs")


@dataclass(frozen=True)
class Column:
    """One column: a metric, an attack, a kind of concept, the field to show, and the comparison of a difference."""

    metric: str
    attack: str = "none"
    kind: str | None = None
    field: str = "value"
    against: str | None = None

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
    """

    name: str
    cells: str = "means"
    rows: str = "method"
    blocks: tuple[str, ...] = ()
    columns: Mapping[str, Column] = field(default_factory=dict)
    primary: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

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
        columns[str(title)] = Column(**column)
        if columns[str(title)].field not in FIELDS:
            raise unknown("field", column["field"], FIELDS, f"view={name}: columns.{title}")
    chosen = dict(config) | {"columns": columns, "blocks": tuple(config.get("blocks") or ())}
    if chosen.get("cells", "means") not in CELLS:
        raise unknown("cells", chosen["cells"], CELLS, f"view={name}")
    return View(**{**chosen, "primary": chosen.get("primary") or {}})
