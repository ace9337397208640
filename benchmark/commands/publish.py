"""`overpaint publish`: writes stored results as small files for git, and checks such files."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import click
import pandas as pd

from overpaint.commands.grids import ERR, Grid, planned, taken
from overpaint.commands.targets import whole
from overpaint.errors import UserError
from overpaint.grid.digests import canonical
from overpaint.grid.labels import counted
from overpaint.grid.paths import path_of
from overpaint.grid.registry import CIRCUMSTANCES
from overpaint.report.changes import runs_of
from overpaint.report.claims import claim_files, claims_of, file_name, hashes, merged, read_claim, text_of
from overpaint.report.eligibility import violations
from overpaint.report.gathered import ARTEFACT, as_frame
from overpaint.report.records import STAGE, stored_outcomes, stored_records
from overpaint.run.display import steps_shown

#: Where results are written without out=.
RESULTS = "leaderboards/results"


@click.command()
@click.argument("overrides", nargs=-1)
@click.option(
    "--check", "folder", metavar="DIR", help="Check the result files below DIR instead, and name every violation."
)
def publish(overrides: Sequence[str], folder: str | None) -> None:
    """Write the stored results of a grid as one JSON file per method, without images and prompts.

    out=DIR is the folder (default: leaderboards/results), name=NAME the folder in it (default: the experiment). Files that exist
    keep the records of other cells. `overpaint table --from DIR` reads them.
    """
    if folder:
        if overrides:
            raise UserError(f"publish --check takes no overrides, got {overrides[0]}")
        check(path_of(folder, "--check"))
        return
    out, rest = taken(overrides, "out")
    name, rest = taken(rest, "name")
    name = name or taken(rest, "experiment")[0]
    if not name or Path(name).name != name or name == os.pardir:
        given = f", got {name!r}" if name else ""
        raise UserError(f"publish needs experiment=NAME or name=NAME, a folder's name{given}")
    target = path_of(out or RESULTS, "out") / name
    written(planned(rest), rest, target)


def check(folder: Path) -> None:
    """Print one sentence per violation; exit code 2 if there is one."""
    with steps_shown(ERR):
        found = violations(folder)
    for sentence in found:
        click.echo(sentence, err=True)
    if found:
        sys.exit(2)
    ERR.print(f"{folder}: {len(claim_files(folder))} result files are eligible")


def written(grid: Grid, overrides: Sequence[str], folder: Path) -> None:
    """Write the files of a grid. Raises a `UserError` if a cell is not stored."""
    lacking = [cell for cell, task in grid.plan.cells if not grid.store.has(STAGE, task.key)]
    if lacking:
        raise UserError(
            f"{len(lacking)} of {len(grid.plan.cells)} cells are not stored in {grid.store.root}: run them first "
            f"({shlex.join(['overpaint', 'run', *overrides])})"
        )
    records = stored_records(grid.store, grid.plan)
    if records.empty:
        raise UserError(f"{grid.store.root} holds no figures of this grid")
    claims = claims_of(records, as_frame(stored_outcomes(grid.store, records)), provenance(grid, overrides, records))
    files = {folder / file_name(method): claim for method, claim in claims.items()}
    texts = {path: text_of(merged(read_claim(path), c) if path.exists() else c) for path, c in files.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    for path, text in texts.items():
        with whole(path) as partial:
            partial.write_text(text, encoding="utf-8")
        ERR.print(f"{path}: {counted(len(files[path].records), 'record')}")


def provenance(grid: Grid, overrides: Sequence[str], records: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """How each method's records were made: the command, libraries, processor, and hashes of models and asset files.

    There is one entry for each set of libraries and processor that made a part of the records, such as their images.
    """
    keys = [override.split("=")[0] for override in overrides]
    deciding = [key == "engine.compile" or key.split(".")[0] not in CIRCUMSTANCES for key in keys]
    models, assets = hashes(task.config for task in grid.plan.opened().tasks.values())
    command = shlex.join(["overpaint", "run", *compress(overrides, deciding)])
    found: dict[str, list[dict[str, Any]]] = {}
    for method, own in records.groupby("method_name"):
        made = {
            canonical([run["libraries"], run["machine"]]): run
            for run in runs_of(grid.store, list(own[ARTEFACT].unique()))
        }
        found[str(method)] = [
            {
                "command": command,
                "libraries": run["libraries"],
                "machine": run["machine"],
                "models": models,
                "assets": assets,
            }
            for _, run in sorted(made.items())
        ]
    return found
