"""How every number was made: commands, libraries, versions and hashes, from the records and their files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from overpaint.report.site.documents import Section
from overpaint.report.site.pages import Content, Page
from overpaint.report.site.results import Results
from overpaint.report.statistics import VERSION
from overpaint.report.tables import provenance


def pages(content: Content, origin: str) -> Iterator[Page]:
    """The page. ``origin`` says where the records were read."""
    values = {"results": [about(results) for results in content.results], "origin": origin, "statistics": VERSION}
    text = "command versions hashes libraries statistics seeds detectors provenance"
    yield Page(
        "made.html",
        "made.html",
        "How every number was made",
        values,
        [Section("made.html", "", "How every number was made", text)],
    )


def about(results: Results) -> dict[str, Any]:
    """What is known of how the results of an experiment were made."""
    records = results.records
    of = provenance(records)
    listed = {
        name: sorted(map(str, records[name].dropna().unique())) for name in ("model", "protocol", "budget", "metrics")
    }
    seeds = sorted(records["seed"].dropna().unique())
    statistics = sorted(records["statistics"].dropna().unique()) if "statistics" in records else []
    metrics = records.drop_duplicates("metric")[
        ["metric", "facet", "direction", "unit", "aggregation", "version", "paper"]
    ]
    return {
        "name": results.name,
        "waived": results.waived,
        "runs": [_run(run) for run in results.runs],
        "records": of.records,
        "cells": len(of.settings),
        "settings": of.settings,
        "detectors": of.detectors,
        "versions": of.versions,
        "labels": listed,
        "seeds": [f"{seed:.0f}" for seed in seeds],
        "statistics": [f"{version:.0f}" for version in statistics],
        "metrics": [
            ["" if pd.isna(v) else _plain(v) for v in row] for row in metrics.itertuples(index=False, name=None)
        ],
    }


def _run(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run with every entry, as text; what a file does not state is empty."""

    def entries(name: str) -> list[tuple[str, str]]:
        value = run.get(name)
        return [(str(key), str(inner)) for key, inner in value.items()] if isinstance(value, Mapping) else []

    models = run.get("models")
    return {
        "command": str(run.get("command") or "not stated"),
        "machine": str(run.get("machine") or "not stated"),
        "libraries": entries("libraries"),
        "models": list(map(str, models)) if isinstance(models, list) else [],
        "assets": entries("assets"),
    }


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
