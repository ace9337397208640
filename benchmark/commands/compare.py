"""`overpaint compare`: reports what changed between two sets of results."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import pandas as pd

from overpaint.commands.grids import ERR, own_keys, taken
from overpaint.commands.publish import RESULTS
from overpaint.errors import UserError, unknown
from overpaint.grid.paths import path_of
from overpaint.grid.registry import search
from overpaint.grid.typed import bare
from overpaint.report.changes import (
    CHANGED,
    GROUPS,
    Side,
    compared,
    differences,
    flat,
    nothing_in_common,
    runs_of,
    sheets,
)
from overpaint.report.claims import published
from overpaint.report.filters import narrowed
from overpaint.report.gathered import ARTEFACT
from overpaint.report.pooling import Outcomes
from overpaint.report.records import json_rows, stored_outcomes, stored_records
from overpaint.report.sheets import FORMATS, markdown, show
from overpaint.report.site.results import Results, read
from overpaint.report.views import view_named
from overpaint.run.store import Store

#: What a commit's results begin with.
GIT = "git:"


@click.command()
@click.argument("a")
@click.argument("b")
@click.argument("filters", nargs=-1)
@click.option("--show", "groups", default=CHANGED, help=f"Groups to list: {', '.join(GROUPS)}, or all.")
@click.option("--format", "form", default="terminal", help="terminal, md, csv or json.")
@click.option("--fail", is_flag=True, help="Exit code 1 if a figure changed, or if no figure is on both sides.")
def compare(a: str, b: str, filters: Sequence[str], groups: str, form: str, fail: bool) -> None:
    """Report what changed from A to B beyond noise.

    A and B are each a store, a result file, a folder of result files (overpaint publish), or the results of a commit:
    git:HEAD~3 reads leaderboards/results there, git:HEAD~3:PATH another file or folder. Filters are those of `overpaint table
    --from`, such as method=uce,esd concepts=church. ignore=budget,method compares figures although these labels differ.
    """
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    shown = list(GROUPS) if groups == "all" else [name.strip() for name in groups.split(",")]
    for name in shown:
        if name not in GROUPS:
            raise unknown("group", name, [*GROUPS, "all"], "--show")
    ignored, rest = taken(search(filters), "ignore")
    one, other = _chosen(*_sides(a, b), rest)
    view = view_named("facets")
    figures = compared(one, other, view, [name.strip() for name in ignored.split(",")] if ignored else [])
    differing = differences(figures, one, other)
    if form == "csv":
        sys.stdout.write(flat(figures).to_csv(index=False))
    elif form == "json":
        parts = {"differs": json_rows(differing), "figures": json_rows(figures)}
        counts = {name: int((figures["group"] == name).sum()) for name in GROUPS}
        text = json.dumps({"a": a, "b": b, "groups": counts} | parts, indent=1, ensure_ascii=False)
        sys.stdout.write(text + "\n")
    else:
        tables = sheets(figures, differing, one, other, shown, view)
        show(tables) if form == "terminal" else sys.stdout.write(markdown(tables))
    apart = nothing_in_common(figures, one, other)
    if apart and form in ("csv", "json"):  # the tables say it
        ERR.print(apart, style="yellow")
    if fail and (apart or (figures["group"] == CHANGED).any()):
        sys.exit(1)


def _chosen(a: Side, b: Side, filters: Sequence[str]) -> tuple[Side, Side]:
    """The records of both sides that the filters select. A value may occur on one side only."""
    if not filters:
        return a, b
    both = pd.concat([a.records.assign(side="a"), b.records.assign(side="b")], ignore_index=True)
    kept = narrowed(both, filters, f"{a.name} and {b.name}", own_keys())
    one, other = (kept[kept["side"] == side].drop(columns="side") for side in ("a", "b"))
    return replace(a, records=one), replace(b, records=other)


def _sides(a: str, b: str) -> tuple[Side, Side]:
    """Both sides. Folders that have experiments of the same names are compared experiment by experiment."""
    with tempfile.TemporaryDirectory() as folder:
        places = [_place(text, key, Path(folder) / key) for key, text in (("A", a), ("B", b))]
        found = [None if isinstance(place, Store) else read(place) for place in places]
        names = [{results.name for results in side or ()} for side in found]
        by_experiment = bool(names[0] & names[1])
        sides = [
            _stored(place, text) if isinstance(place, Store) else _claimed(place, results or [], text, by_experiment)
            for place, results, text in zip(places, found, (a, b), strict=True)
        ]
    return sides[0], sides[1]


def _place(text: str, key: str, scratch: Path) -> Store | Path:
    """The store, file or folder that a text names; the files of a commit are written to the folder ``scratch``."""
    path = path_of(text, key)
    if text.startswith(GIT):
        return _of_commit(text, key, scratch)
    if (path / "artefacts").is_dir():
        return Store(path)
    if path.is_file() or (path.is_dir() and next(path.rglob("*.json"), None)):
        return path
    what = "holds neither a store nor result files" if path.exists() else "does not exist"
    raise UserError(
        f"{key}={bare(text)} {what}: give a store, a result file or folder (overpaint publish), or {GIT}COMMIT for the results "
        "of a commit"
    )


def _of_commit(text: str, key: str, scratch: Path) -> Path:
    """The result files of a commit, ``git:COMMIT`` or ``git:COMMIT:PATH``, written below ``scratch``."""
    commit, _, path = text.removeprefix(GIT).partition(":")
    path = path or RESULTS
    inside = os.path.relpath(path)  # git writes the names of files relative to this folder
    found = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}")
    if found is None:
        raise UserError(f"{key}={bare(text)}: git knows no commit {bare(commit)} here")
    outside = inside.startswith(os.pardir)
    archive = None if outside else _git("archive", "--format=zip", found.decode().strip(), "--", inside)
    if archive is None:
        raise UserError(f"{key}={bare(text)}: the commit has no {bare(path)}")
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        files.extractall(scratch)
    return scratch / inside


def _git(*arguments: str) -> bytes | None:
    """What git prints; ``None`` if it fails."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise UserError(f"{GIT}COMMIT needs git, which is not installed") from None
    return done.stdout if done.returncode == 0 else None


def _stored(store: Store, name: str) -> Side:
    records = stored_records(store)
    if records.empty:
        raise UserError(f"{name} holds no figures: run something first (overpaint run)")
    outcomes = Outcomes(stored_outcomes(store, records))
    return Side(name, records.assign(experiment=""), outcomes, runs_of(store, list(records[ARTEFACT].unique())))


def _claimed(place: Path, found: Sequence[Results], name: str, by_experiment: bool) -> Side:
    """The results of files. Without ``by_experiment``, a figure of several experiments is the newest one."""
    runs = [run for results in found for run in results.runs]
    if not by_experiment:
        records, outcomes = published(place)
        return Side(name, records.assign(experiment=""), Outcomes(outcomes), runs)
    frames: list[pd.DataFrame] = []
    of_frames: list[pd.DataFrame] = []
    for results in found:
        renamed = [
            table.assign(**{ARTEFACT: results.name + "/" + table[ARTEFACT].astype(str)}) if len(table) else table
            for table in (results.records, results.outcomes)
        ]
        frames.append(renamed[0].assign(experiment=results.name))
        of_frames += [renamed[1]] if len(renamed[1]) else []
    outcomes = pd.concat(of_frames, ignore_index=True) if of_frames else pd.DataFrame()
    return Side(name, pd.concat(frames, ignore_index=True), Outcomes(outcomes), runs)
