"""The stored images of planned cells, one entry each, with their prompts and scores."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from overpaint.grid.digests import canonical
from overpaint.images.stages.score import SHOTS
from overpaint.report.gathered import ARTEFACT, Kind, as_frame, gathered
from overpaint.run.plan import Plan
from overpaint.run.store import CorruptArtefact, Store
from overpaint.run.tasks import Task

#: The stage that scores images.
STAGE = "score"
#: Keys of its configuration that decide which labels it writes.
JUDGED = ("detector", "settings")
#: Columns of its file that are not shown.
HIDDEN = ("features",)


@dataclass(frozen=True)
class Entry:
    """One image.

    Attributes:
        cell: the columns that assign the image to its cell, as in a record.
        shot: the prompt and the seed index (`Shot.as_dict`), with what an attack added.
        made: the task that made the image, and ``position``, its row there.
        scored: the task that scored it.
    """

    cell: Mapping[str, Any]
    shot: Mapping[str, Any]
    made: Task
    scored: Task
    position: int


def batches(
    measured: Task, plan: Plan, store: Store, stored: Collection[str] | None = None
) -> Iterator[tuple[Task, Task, list[dict[str, Any]]]]:
    """The batches of a cell's own images, without its comparisons: the task that made the images, the one that scored them, and
    the shots.

    Batches whose scores are not stored are left out; ``stored`` holds the keys of stored scores, if they are known.
    """
    for index, shots in enumerate(measured.config["shots"]["images"]):
        scored = plan.tasks[measured.inputs[f"images/{index}"]]
        if store.has(scored.stage, scored.key) if stored is None else scored.key in stored:
            found = shots or json.loads((store.read(scored.stage, scored.key) / SHOTS).read_text(encoding="utf-8"))
            yield plan.tasks[scored.inputs["images"]], scored, found


def entries(measured: Task, plan: Plan, store: Store) -> Iterator[Entry]:
    """The images of a cell itself, in the order in which they are measured."""
    for made, scored, shots in batches(measured, plan, store):
        for position, shot in enumerate(shots):
            yield Entry(measured.config["cell"], shot, made, scored, position)


def makers(plan: Plan) -> list[Task]:
    """The tasks that made the images of the cells themselves."""
    inputs = [item for _, measured in plan.opened().cells for item in measured.inputs.items()]
    scored = [plan.tasks[key] for name, key in inputs if name.startswith("images/")]
    return [plan.tasks[key] for key in dict.fromkeys(task.inputs["images"] for task in scored)]


def incomplete(plan: Plan, store: Store) -> list[Task]:
    """The cells of which some images have no stored scores, as their tasks of stage *measure*."""
    stored = store.listed(STAGE).keys
    return [
        measured
        for _, measured in plan.opened().cells
        if any(measured.inputs[f"images/{n}"] not in stored for n in range(len(measured.config["shots"]["images"])))
    ]


#: Columns of `score_table` before the detector's labels.
SCORE_COLUMNS = (
    "model", "concepts", "method", "attack", "protocol", "budget", "seed", "role", "prompt", "concept", "expects",
    "variant", "prompt_id", "seed_index", "draw", "failed",
)  # fmt: skip


def _checked_scores(rows: pa.Table) -> pa.Table:
    """The rows without features. Raises a `ValueError` if they are not those of a detector."""
    if "failed" not in rows.column_names:
        raise ValueError("scores.parquet has no column 'failed'")
    return rows.drop_columns([name for name in HIDDEN if name in rows.column_names])


SCORES = Kind("scores.parquet", ("failed",), _checked_scores)


def score_table(plan: Plan, store: Store) -> pd.DataFrame:
    """The scores of every image of every cell: `SCORE_COLUMNS`, then one column a label of the detectors."""
    listing = store.listed(STAGE)
    found = [
        (measured, batch)
        for _, measured in plan.opened().cells
        for batch in batches(measured, plan, store, listing.keys)
    ]
    if not found:
        return pd.DataFrame(columns=list(SCORE_COLUMNS))
    keys = {scored.key for _, (_, scored, _) in found}
    scores = as_frame(gathered(listing, SCORES, keys, None))
    rows, places = [], []
    rows_of = scores.groupby(ARTEFACT).indices
    for measured, (made, scored, shots) in found:
        own = rows_of.get(scored.key, ())
        if len(own) != len(shots):
            raise CorruptArtefact(STAGE, scored.key, f"scores of {len(own)} images instead of {len(shots)}")
        cell = measured.config["cell"]
        rows += [_described(Entry(cell, shot, made, scored, position)) for position, shot in enumerate(shots)]
        places += list(own)
    scores = scores.drop(columns=ARTEFACT).take(places).reset_index(drop=True)
    labels = _labels([scored for _, (_, scored, _) in found], store)
    return pd.concat([pd.DataFrame(rows), scores[["failed", *labels]]], axis=1)


def _labels(scored: Iterable[Task], store: Store) -> list[str]:
    """The columns that detectors wrote, in the order of their files and of the tasks."""
    firsts: dict[str, Task] = {}  # a task of each detector
    for task in scored:
        firsts.setdefault(canonical([task.config.get(name) for name in JUDGED]), task)
    files = [pq.read_schema(store.read(task.stage, task.key) / SCORES.file).names for task in firsts.values()]
    return [name for name in dict.fromkeys(chain.from_iterable(files)) if name not in ("failed", *HIDDEN)]


def _described(entry: Entry) -> dict[str, Any]:
    shot = entry.shot
    cell = {key: entry.cell[key] for key in ("model", "concepts", "method", "attack", "protocol", "budget", "seed")}
    return cell | {
        "role": shot["role"],
        "prompt": shot["text"],
        "concept": shot["concept"],
        "expects": ";".join(shot["expects"]),
        "variant": shot["variant"],
        "prompt_id": shot["noise"],
        "seed_index": shot["index"],
        "draw": shot.get("draw", 0),
    }
