"""The stored images of planned cells, one entry each, with their prompts and scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from overpaint.images.stages.score import SHOTS
from overpaint.run.plan import Plan
from overpaint.run.store import Store
from overpaint.run.tasks import Task


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


def batches(measured: Task, plan: Plan, store: Store) -> Iterator[tuple[Task, Task, list[dict[str, Any]]]]:
    """The batches of a cell's own images, without its comparisons: the task that made the images, the one that scored them, and
    the shots.

    Batches whose scores are not stored are left out.
    """
    for index, shots in enumerate(measured.config["shots"]["images"]):
        scored = plan.tasks[measured.inputs[f"images/{index}"]]
        if store.has(scored.stage, scored.key):
            found = shots or json.loads((store.read(scored.stage, scored.key) / SHOTS).read_text(encoding="utf-8"))
            yield plan.tasks[scored.inputs["images"]], scored, found


def entries(measured: Task, plan: Plan, store: Store) -> Iterator[Entry]:
    """The images of a cell itself, in the order in which they are measured."""
    for made, scored, shots in batches(measured, plan, store):
        for position, shot in enumerate(shots):
            yield Entry(measured.config["cell"], shot, made, scored, position)


#: Columns of `score_table` before the detector's labels.
SCORE_COLUMNS = (
    "model", "concepts", "method", "attack", "protocol", "budget", "seed", "role", "prompt", "concept", "expects",
    "variant", "prompt_id", "seed_index", "draw", "failed",
)  # fmt: skip


def score_table(plan: Plan, store: Store) -> pd.DataFrame:
    """The scores of every image of every cell: `SCORE_COLUMNS`, then one column a label of the detectors."""
    parts = []
    for _, measured in plan.cells:
        for made, scored, shots in batches(measured, plan, store):
            scores = pd.read_parquet(store.read(scored.stage, scored.key) / "scores.parquet")
            found = [
                Entry(measured.config["cell"], shot, made, scored, position) for position, shot in enumerate(shots)
            ]
            rows = pd.DataFrame(list(map(_described, found))).assign(failed=scores["failed"])
            parts.append(pd.concat([rows, scores.drop(columns=["features", "failed"], errors="ignore")], axis=1))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(SCORE_COLUMNS))


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
