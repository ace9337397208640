"""Settings that may differ within one table: HUB's tables have a detector, settings and attack prompts for each kind."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from overpaint.grid.labels import few
from overpaint.report.records import CELL, given_in, label_without, plain_name
from overpaint.report.views import View

#: Settings of `View.together` whose values are columns of records -> these columns.
COLUMNS = {"detector": ["detector", "threshold"], "budget": ["budget"]}
#: Settings of `View.together` that are components.
COMPONENTS = ("method", "attack")


def joined(records: pd.DataFrame, view: View) -> Iterator[tuple[pd.DataFrame, View, list[str]]]:
    """The records that share tables, the view for them, and a note about the settings that differ.

    A view with ``together`` joins results whose settings differ, one model at a time. The labels of its methods and attacks
    become their names, and that of its model loses the detector. A setting is joined only if every figure then still has one
    record: two settings of a method on one concept set stay apart. ``together`` of the resulting view has the settings that
    split nothing.
    """
    if not view.together:
        yield records, view, []
        return
    records = view.shown(records)
    models = records["model"]
    if "detector" in view.together:
        models = records.apply(label_without, axis=1, args=("model", "detector")) if len(records) else models
    for _, part in records.groupby(models, sort=False):
        key = part[[*CELL, "metric", *COLUMNS["detector"]]]
        together = []
        for name in view.together:
            tried = _without(name, key, part).assign(model=models if name == "detector" else key["model"])
            if name in COMPONENTS:
                alike = tried.duplicated(keep=False) & ~key.duplicated(keep=False)
                several = tried.loc[alike, name].unique()
                tried[name] = tried[name].where(~tried[name].isin(several), key[name])
            elif tried.duplicated().sum() > key.duplicated().sum():
                continue
            else:
                together.append(name)
            key = tried
        labels = {name: key[name] for name in ("model", *COMPONENTS)}
        yield part.assign(**labels), replace(view, together=tuple(together)), _differing(part, key, together)


def _without(name: str, key: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """What tells the records apart (``key``), without one setting."""
    if name in COMPONENTS:
        return key.assign(**{name: records[f"{name}_name"]})
    if name == "concepts":
        return key.assign(concepts=[_erased(record) for record in records.to_dict("records")])
    return key.drop(columns=COLUMNS[name])


def _erased(record: Mapping[Hashable, Any]) -> str:
    """The concept set of a record and the concepts that it erases, without other values that were set by hand."""
    return f"{plain_name(record, 'concepts')} {given_in(record, 'concepts').get('erase', '')}"


def _differing(records: pd.DataFrame, key: pd.DataFrame, together: list[str]) -> list[str]:
    """A note about joined settings that have several values: ``detectors (q16, vlm)``; empty if none has."""
    values = {f"{name}s": records[name] for setting in together for name in COLUMNS.get(setting, ())}
    for name in COMPONENTS:
        values |= {f"settings of {one}": labels for one, labels in records[name].groupby(key[name], sort=False)}
    known = {what: [*map(str, found.dropna().unique())] for what, found in values.items()}
    said = [f"{len(found)} {what} ({few(found, 3, '; ')})" for what, found in known.items() if len(found) > 1]
    return [f"Settings differ between the figures: {', '.join(said)}."] if said else []
