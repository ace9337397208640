"""Stage *measure*: from the scores of a cell and of what it is compared to, to its figures. No image is opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from overpaint.attacks.attack import Assault, Verdict
from overpaint.grid.concepts import stored_concept
from overpaint.grid.prompts import Shot
from overpaint.grid.registry import load_attribute
from overpaint.images.stages.attack import read_assault
from overpaint.metrics.metric import IMAGE_COLUMNS, Evidence, Figure, Metric
from overpaint.report.records import RECORD_COLUMNS
from overpaint.run.store import MANIFEST
from overpaint.run.tasks import canonical


def run(task, inputs, folder, bench) -> dict:
    records = pd.DataFrame(figures(task.config, inputs), columns=list(RECORD_COLUMNS))
    records.to_parquet(folder / "records.parquet", index=False)
    return {"presets": task.config["presets"]}


def figures(config: Mapping, inputs: Mapping[str, Path]) -> list[dict]:
    """Every figure of one cell as a row of `RECORD_COLUMNS`."""
    evidence = gather(config, inputs)
    judge = {"detector": _detector(inputs), "threshold": config["threshold"]}
    rows = []
    for name, reference in config["metrics"].items():
        metric: Metric = load_attribute(reference)()
        if not metric.applies_to(config["cell"]["attack"].split()[0]):
            continue
        if not metric.relevant(evidence):
            continue
        figure = metric.measure(evidence)
        rows.append(_row(config, name, metric, figure, evidence) | judge)
    return rows


def _row(config: Mapping, name: str, metric: Metric, figure: Figure, evidence: Evidence) -> dict:
    cost = evidence.ledger if config["cell"]["attack"] != "none" else evidence.erasure
    described = {
        "scope": config["scope"],
        "facet": metric.facet,
        "metric": name,
        "direction": metric.direction,
        "unit": metric.unit,
        "aggregation": metric.aggregation,
        "version": metric.version,
        "paper": metric.paper,
        "seconds": cost.get("seconds"),
    }
    values = {k: getattr(figure, k) for k in figure.__dataclass_fields__}
    return config["cell"] | described | values


def _detector(inputs: Mapping[str, Path]) -> str:
    """Who looked at the cell's images: name, version and a short hash of everything that decides its scores."""
    place = next((folder for name, folder in sorted(inputs.items()) if name.endswith("/scores")), None)
    if place is None:
        return ""
    config = json.loads((place / MANIFEST).read_text(encoding="utf-8"))["config"]
    identity = hashlib.sha256(canonical(config["settings"]).encode()).hexdigest()[:8]
    return f"{config['detector']} v{config['settings']['version']} {identity}"


def gather(config: Mapping, inputs: Mapping[str, Path]) -> Evidence:
    """Read the cell's scores and costs from the folders of its inputs."""
    plain = _plain_prompts(config["shots"])
    frames = {name: _frame(name, batches, inputs, plain) for name, batches in config["shots"].items()}
    empty = _empty()
    made = {name: _costs(inputs, f"{name}/", "/images") for name in ("images", "original")}
    ledger = [_cost(folder) for key, folder in inputs.items() if key.startswith("images/") and "/assault/" in key]
    return Evidence(
        erased=list(map(stored_concept, config["erased"])),
        images=frames.get("images", empty),
        original=frames.get("original", empty),
        control=frames.get("control"),
        random_prefix=frames.get("random_prefix"),
        floor=frames.get("floor"),
        unrelated=frames.get("unrelated"),
        plain=frames.get("plain"),
        plain_original=frames.get("plain_original"),
        reference=frames.get("reference"),
        kinds=config["kinds"],
        threshold=config["threshold"],
        failure_limit=config["failure_limit"],
        judged_by_itself=config["judged_by_itself"],
        erasure=_cost(inputs["erasure"]) if "erasure" in inputs else {},
        ledger={key: sum(c.get(key, 0) for c in ledger) for key in (ledger[0] if ledger else {})},
        seconds_per_image=_fastest(made["images"]),
        original_seconds_per_image=_fastest(made["original"]),
    )


def _plain_prompts(shots: Mapping[str, list]) -> pd.DataFrame:
    """The plain prompts beside an attack, by id, with the ``first`` id that has the same text."""
    found = [(s["noise"], s["text"]) for batch in shots.get("plain", ()) for s in batch]
    plain = pd.DataFrame(found, columns=["id", "text"]).drop_duplicates("id").set_index("id", drop=False)
    return plain.assign(first=plain.groupby("text")["id"].transform("first"))


def _frame(name: str, batches: list, inputs: Mapping[str, Path], plain: pd.DataFrame) -> pd.DataFrame:
    """The scored images of one frame with what is known of each; without a detector, those that an attack measured."""
    parts = []
    for index, shots in enumerate(batches):
        place = f"{name}/{index}"
        scores = inputs.get(f"{place}/scores")
        described = pd.DataFrame() if name == "reference" else _planned(shots, place, inputs, plain)
        if scores is not None:
            parts.append(pd.concat([described, pd.read_parquet(scores / "scores.parquet")], axis=1))
        elif not {*described.columns} <= {*IMAGE_COLUMNS}:
            parts.append(described.assign(failed=False))
    return pd.concat(parts, ignore_index=True) if parts else _empty()


def _planned(shots: list | None, place: str, inputs: Mapping[str, Path], plain: pd.DataFrame) -> pd.DataFrame:
    """What the planner knows of a batch's images, or the attacks that decided them.

    Images of one text are one cluster, whichever prompts they stand for; what an attack found is one with everything that
    it made of the same plain text. Clusters of plain texts are named by their first prompt.
    """
    if shots is not None:
        frame = _described([Shot.from_dict(s) for s in shots])
        made_of = pd.Series([s.get("plain", "") for s in shots], dtype=object)
        by_text = plain.drop_duplicates("text").set_index("text")["first"]
        clusters = made_of.map(plain["first"]).fillna(made_of).where(made_of != "", _named(frame["prompt"], by_text))
    else:
        found = [read_assault(inputs[key]) for key in sorted(inputs) if key.startswith(f"{place}/assault/")]
        frame = pd.concat([_of_assault(assault) for assault in found], ignore_index=True)
        clusters = _named(frame["prompt_id"], plain["first"])
    return frame.assign(cluster=clusters)


def _named(values: pd.Series, names: pd.Series) -> pd.Series:
    """The values' names, themselves where they have none."""
    return values.map(names).fillna(values)


def _of_assault(assault: Assault) -> pd.DataFrame:
    """What an attack's shots are, with the verdicts of the judge that guided it and its own readings."""
    frame = _described(assault.shots)
    if assault.painted:
        frame["verdict"] = [_said(p.verdict) for p in assault.painted]
        frame = frame.join(pd.DataFrame([dict(p.readings) for p in assault.painted]))
    return frame


def _said(verdict: Verdict | None) -> float:
    return float(verdict.success) if verdict and verdict.known else np.nan


def _described(shots: Sequence[Shot]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt_id": [s.prompt.noise for s in shots],
            "seed": [s.index for s in shots],
            "prompt": [s.prompt.text for s in shots],
            "role": [s.prompt.role for s in shots],
            "concept": [s.prompt.concept for s in shots],
            "expects": [list(s.prompt.expects) for s in shots],
            "variant": [s.prompt.variant for s in shots],
            "draw": [s.draw for s in shots],
            "verdict": np.nan,
        }
    )


def _empty() -> pd.DataFrame:
    return pd.DataFrame(columns=list(IMAGE_COLUMNS))


def _cost(folder: Path) -> dict:
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("cost", {})


def _costs(inputs: Mapping[str, Path], start: str, end: str) -> list[dict]:
    return [_cost(folder) for name, folder in inputs.items() if name.startswith(start) and name.endswith(end)]


def _fastest(costs: list[dict]) -> float | None:
    return min((c["seconds_per_image"] for c in costs if c.get("seconds_per_image")), default=None)
