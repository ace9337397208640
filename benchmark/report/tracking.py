"""Trackers send the results of a sweep to other services. A tracker only reads; it does not affect what is computed."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import pandas as pd
import pyarrow as pa

from overpaint.errors import AssetMissing
from overpaint.grid.labels import few
from overpaint.report.figure_text import Reasons, entry_text, head_text, row_text, with_own_n
from overpaint.report.pooling import Outcomes, pooled
from overpaint.report.records import CELL
from overpaint.report.rendering import tables_if_any
from overpaint.report.tables import GIVEN, SETTINGS, Table, given_on_concepts, provenance, several_of, under
from overpaint.report.views import view_named

#: The views whose tables are sent: every figure of a concept set, and means over concept sets.
VIEWS = ("facets", "methods")


@dataclass(frozen=True)
class Sweep:
    """The results of one grid.

    Attributes:
        key: the same for the same cells (`sweep_key`).
        records: see `overpaint.report.records`.
        folder: the folder for files of the tracker, which makes one of its own in it.
        outcomes: returns the outcomes behind the records; called only by a tracker that sends tables.
        sheets: contact sheets, with images of unsafe concepts blurred.
    """

    key: str
    records: pd.DataFrame
    folder: Path
    outcomes: Callable[[], pa.Table | None] = lambda: None
    sheets: Sequence[Path] = ()


def sweep_key(keys: Iterable[str]) -> str:
    """The key of a sweep, from the keys of the tasks that make its records: 16 hex digits."""
    return hashlib.sha256("\n".join(sorted(set(keys))).encode()).hexdigest()[:16]


class Tracker(Protocol):
    """Sends a sweep somewhere. It is called once per run of a grid, after the last task."""

    def send(self, sweep: Sweep) -> None: ...


@dataclass(kw_only=True)
class StoreOnly:
    """Figures stay in the store."""

    def send(self, sweep: Sweep) -> None:
        """Do nothing."""


@dataclass(kw_only=True)
class WandB:
    """Weights & Biases, one run per sweep. A missing library is reported before anything runs.

    The run's id is the key of the sweep, so that the same grid continues its run.
    """

    project: str
    mode: Literal["offline", "online", "disabled"]
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise AssetMissing("tracker=wandb needs the extra: pip install 'overpaint[wandb]'") from error

    def send(self, sweep: Sweep) -> None:
        """Write the tables, sheets and summary figures of a sweep. Files of wandb go to ``sweep.folder``.

        Does nothing without records. Errors of wandb are raised.
        """
        import wandb

        records = sweep.records
        if records.empty:
            return
        config = config_of(records)
        quiet = wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True, login_timeout=30)
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            id=sweep.key,
            resume="allow",
            name=name_of(config),
            group=self.group or ", ".join([*config["models"], *config["budgets"]]),
            job_type="sweep",
            tags=[*self.tags, *config["kinds"]],
            config=config,
            dir=str(sweep.folder),
            settings=quiet,
        )
        try:
            outcomes = sweep.outcomes()
            shown = dict(tables_of(records, outcomes))
            media: dict[str, Any] = {
                name: wandb.Table(columns=[*columns], data=[*rows]) for name, (columns, rows) in shown.items()
            }
            names = _slugs(path.stem for path in sweep.sheets)
            media |= {f"sheets/{names[path.stem]}": wandb.Image(str(path), caption=path.stem) for path in sweep.sheets}
            run.log(media)
            run.summary.update(summary_of(records, outcomes))
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish()


def config_of(records: pd.DataFrame) -> dict[str, Any]:
    """What a sweep spans: the values of each label, versions of components, and detectors."""
    spans = {f"{name}s" if name not in ("concepts", "metrics") else name: _values(records, name) for name in CELL}
    of = provenance(records)
    versions = {name: list(found) if len(found) > 1 else found[0] for name, found in of.versions.items()}
    cells = len(records[CELL].drop_duplicates())
    return spans | {"versions": versions, "detectors": list(of.detectors), "cells": cells}


def _values(records: pd.DataFrame, name: str) -> list:
    return [value.item() if hasattr(value, "item") else value for value in records[name].dropna().unique()]


def name_of(config: Mapping[str, Any]) -> str:
    """A short name for people: ``uce, esd on church, car; none, cce``."""
    methods, concepts, attacks = (few(map(str, config[name]), 4) for name in ("methods", "concepts", "attacks"))
    return f"{methods} on {concepts}; {attacks}"


def tables_of(
    records: pd.DataFrame, outcomes: pa.Table | None
) -> Iterator[tuple[str, tuple[list[str], list[list[Any]]]]]:
    """Tables by name: all figures as numbers (``figures``), the cells, and the tables of `VIEWS` with intervals as text."""
    columns = [
        *CELL,
        *"facet metric direction unit value low high n failed original control difference p_value".split(),
        *"difference_low difference_high why detector threshold settings".split(),
    ]
    figures = records.reindex(columns=columns)
    yield "figures", (columns, [list(map(_plain, row)) for row in figures.to_numpy(object)])
    counts = records.groupby(CELL, sort=False, dropna=False)["value"].agg(["size", "count"]).reset_index()
    yield "cells", ([*CELL, "figures", "defined"], [list(map(_plain, row)) for row in counts.to_numpy(object)])
    for view in VIEWS:
        shown = tables_if_any(records, view, outcomes)
        names = _slugs(table.title for table in shown)
        for table in shown:
            yield f"{view}/{names[table.title]}" if len(shown) > 1 else view, _as_text(table)


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    value = value.item() if hasattr(value, "item") else value
    return None if value is None or value != value else value


def _as_text(table: Table) -> tuple[list[str], list[list[Any]]]:
    """The columns and rows of a table, figures with their intervals and marks as text. A head that occurs twice is numbered."""
    heads = [*table.heads, *map(head_text, table.columns)]
    columns = [head if heads.count(head) == 1 else f"{head} ({place})" for place, head in enumerate(heads)]
    return columns, [
        [*row.names[:-1], row_text(row), *(with_own_n(entry_text(e, _Spelled()), e, row) for e in row.entries)]
        for row in table.rows
    ]


class _Spelled(Reasons):
    """Reasons in full, because the tables of a tracker have no notes."""

    def of(self, why: str) -> str:
        return f" ({why})" if why else ""


def summary_of(records: pd.DataFrame, outcomes: pa.Table | None) -> dict[str, float]:
    """The primary endpoints of view ``facets`` for every method and attack: means over concepts and seeds with intervals.

    Models, protocols, budgets, values set by hand on concepts and other settings of which there are several are part of a
    figure's name, and never averaged.
    """
    known = Outcomes(outcomes)
    records = records.assign(**{GIVEN: given_on_concepts(records)})
    several = several_of(records, ["model", GIVEN, *(name for name in SETTINGS if name != "seed")])
    found: dict[str, float] = {}
    for endpoint in view_named("facets").primary.values():
        chosen = records[records["metric"] == endpoint["metric"]]
        for (method, attack, *values), part in chosen.groupby(["method", "attack", *several], sort=False, dropna=False):
            mean = pooled(part.to_dict("records"), "value", known)
            if mean is None or mean.estimate.value is None:
                continue
            attacked = "" if attack == "none" else f" under {attack}"
            for name in ("value", "low", "high", "n"):
                number = getattr(mean.estimate, name)
                if number is not None:
                    found[f"{method}/{endpoint['metric']}{attacked}{under(several, values)}/{name}"] = number
    return found


#: Most characters of a name on W&B.
LONGEST = 100


def _slugs(texts: Iterable[str]) -> dict[str, str]:
    """Names of these texts for W&B. A name that is truncated, or that another text has too, ends in a hash of its text."""
    found = {text: re.sub(r"[^\w.+=-]+", "_", text).strip("_") for text in texts}
    counts = Counter(found.values())
    return {
        text: _hashed(name, text) if len(name) > LONGEST or counts[name] > 1 else name for text, name in found.items()
    }


def _hashed(name: str, text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name[: LONGEST - 9]}_{digest}"
