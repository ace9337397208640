"""Stage *measure*: computes the figures of a cell from its scores and those of its comparisons. It opens no image."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from overpaint.errors import UserError
from overpaint.grid.concepts import stored_concept
from overpaint.grid.digests import canonical
from overpaint.grid.prompts import Shot, shared_noise
from overpaint.grid.registry import load_attribute
from overpaint.images.stages.score import SHOTS
from overpaint.metrics.metric import IMAGE_COLUMNS, SECOND, Evidence, Figure, Metric
from overpaint.report.records import OUTCOME_COLUMNS, RECORD_COLUMNS, RECORDS
from overpaint.run.store import read_manifest


def run(task, inputs, folder, bench) -> dict:
    """Write ``records.parquet`` with one row per figure, and ``outcomes.parquet`` with their outcomes."""
    found = measured(task.config, inputs)
    records = pd.DataFrame([row for row, _ in found], columns=list(RECORD_COLUMNS))
    tables = [table.assign(metric=row["metric"]) for row, table in found if table is not None]
    outcomes = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    outcomes.reindex(columns=OUTCOME_COLUMNS).to_parquet(folder / "outcomes.parquet", index=False)
    records.to_parquet(folder / "records.parquet", index=False)
    try:  # what cannot be read again must not be stored: it would stop every table of the store
        RECORDS.check(pq.read_table(folder / RECORDS.file))
    except ValueError as error:
        raise UserError(f"the figures cannot be stored: {error}") from error
    return {}


def figures(config: Mapping, inputs: Mapping[str, Path]) -> list[dict]:
    """Every figure of one cell as a row of `RECORD_COLUMNS`."""
    return [row for row, _ in measured(config, inputs)]


def measured(config: Mapping, inputs: Mapping[str, Path]) -> list[tuple[dict, pd.DataFrame | None]]:
    """Every figure of one cell as a row of `RECORD_COLUMNS`, with the outcomes that it was computed from, if any."""
    evidence = gather(config, inputs)
    judge = {"detector": _detector(config["detector"]), "threshold": config["threshold"]}
    found = []
    for name, reference in config["metrics"].items():
        metric: Metric = load_attribute(reference)()
        if metric.applies_to(config["cell"]["attack_name"]) and metric.relevant(evidence):
            for part, figure in _figures(metric, evidence, bool(config["detector"]["detector"])).items():
                named = f"{name}.{part}" if part else name
                if not isinstance(figure, Figure):
                    raise UserError(
                        f"metrics.metrics.{named} returned {type(figure).__name__}; measure returns a Figure (docs/extending.md)"
                    )
                about = judge | {"extractor": _extractor(config, metric)}
                found.append((_row(config, named, metric, figure, evidence) | about, figure.outcomes))
    return found


#: Why a figure that needs a detector is undefined without one.
NO_DETECTOR = "no detector: set model.detector"


def _figures(metric: Metric, evidence: Evidence, detected: bool) -> dict[str, Figure]:
    """The metric's figure (named ``""``) and those of its parts, undefined if its extractor could not run.

    ``detected`` says whether there is a detector.
    """
    if metric.extractor in evidence.absent and not metric.optional:
        return {"": Figure(None, why=evidence.absent[metric.extractor])}
    found = {"": metric.measure(evidence), **metric.parts(evidence)}
    if detected or not metric.needs_detector or (metric.extractor and not metric.optional):
        return found
    return {
        part: f if f.value is not None else Figure(None, against=f.against, why=NO_DETECTOR)
        for part, f in found.items()
    }


def _extractor(config: Mapping, metric: Metric) -> str | None:
    """The extractor's name, its version and a short hash of its settings; ``None`` if the metric reads none."""
    described = config.get("extractors", {}).get(metric.extractor, {})
    return _identified(described["name"], described["settings"]) if "name" in described else None


def _row(config: Mapping, name: str, metric: Metric, figure: Figure, evidence: Evidence) -> dict:
    cost = evidence.erasure if config["cell"]["attack_name"] == "none" else evidence.ledger
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
    values = {k: getattr(figure, k) for k in figure.__dataclass_fields__ if k != "outcomes"}
    return config["cell"] | described | values


def _detector(scored: Mapping) -> str:
    """The detector's name, its version and a short hash of all settings that affect its scores."""
    return _identified(scored["detector"], scored["settings"]) if scored["detector"] else ""


def _identified(name: str, settings: Mapping) -> str:
    identity = hashlib.sha256(canonical(settings).encode()).hexdigest()[:8]
    return f"{name} v{settings['version']} {identity}"


def gather(config: Mapping, inputs: Mapping[str, Path]) -> Evidence:
    """Read the cell's scores and costs from the folders of its inputs, named ``{frame}/{index}``."""
    plain = _plain_prompts(config["shots"])
    extractors = config.get("extractors", {})
    frames = {name: _frame(name, batches, inputs, plain, list(extractors)) for name, batches in config["shots"].items()}
    costs = {name: _costs(name, batches, inputs) for name, batches in config["shots"].items()}
    own = costs.get("images", [])
    empty, attack = pd.DataFrame(columns=list(IMAGE_COLUMNS)), Counter[str]()
    for cost in own:
        attack.update(cost["attack"])
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
        retained=frames.get("retained"),
        retained_original=frames.get("retained_original"),
        membership=_membership(inputs.get("membership")),
        membership_original=_membership(inputs.get("membership_original")),
        membership_gold=_membership(inputs.get("membership_gold")),
        gold=frames.get("gold"),
        matched=frames.get("matched"),
        copies=frames.get("copies"),
        copies_original=frames.get("copies_original"),
        kinds=config["kinds"],
        counted=config.get("counted", ()),
        desired=config.get("desired", {}),
        threshold=config["threshold"],
        second_threshold=extractors.get(SECOND, {}).get("threshold", Evidence.second_threshold),
        failure_limit=config["failure_limit"],
        judged_by_itself=config["judged_by_itself"],
        texts={purpose: _texts(inputs[f"texts/{purpose}"]) for purpose in extractors if f"texts/{purpose}" in inputs},
        absent={purpose: of["absent"] for purpose, of in extractors.items() if "absent" in of},
        erasure=next((cost["erasure"] for cost in own), {}),
        ledger=dict(attack),
        latency=_latency(inputs.get("latency")),
    )


def _plain_prompts(shots: Mapping[str, list]) -> pd.DataFrame:
    """The plain prompts of an attacked cell, by id. ``first`` is the first id with the same text."""
    found = [(s["noise"], s["text"]) for batch in shots.get("plain", ()) for s in batch]
    plain = pd.DataFrame(found, columns=["id", "text"]).drop_duplicates("id").set_index("id", drop=False)
    return plain.assign(first=plain.groupby("text")["id"].transform("first"))


def _membership(folder: Path | None) -> pd.DataFrame | None:
    """The scores of training images and of others, if they were computed."""
    return None if folder is None else pd.read_parquet(folder / "membership.parquet")


def _texts(folder: Path) -> dict[str, np.ndarray]:
    """Embeddings by text."""
    table = pd.read_parquet(folder / "texts.parquet")
    return dict(zip(table["text"], table["features"], strict=True))


def _frame(
    name: str, batches: list, inputs: Mapping[str, Path], plain: pd.DataFrame, purposes: Sequence[str]
) -> pd.DataFrame:
    """The images of one frame, one row each: their descriptions joined with the scores of the detector and extractors.

    Without a detector, only images that an attack measured itself are included.
    """
    shared = shared_noise(Shot.from_dict(shot) for shots in batches for shot in shots or ())
    parts = []
    for index, shots in enumerate(batches):
        folder = inputs[f"{name}/{index}"]
        scores = pd.read_parquet(folder / "scores.parquet")
        if name == "reference":
            described = pd.DataFrame()
        elif shots is not None:
            described = _known_images(shots, plain, shared)
        else:
            described = _found_images(json.loads((folder / SHOTS).read_text(encoding="utf-8")), plain)
        if name == "images" and f"similarity/{index}" in inputs:
            described = described.join(pd.read_parquet(inputs[f"similarity/{index}"] / "similarity.parquet"))
        if f"replication/{name}/{index}" in inputs:
            described = described.join(pd.read_parquet(inputs[f"replication/{name}/{index}"] / "replication.parquet"))
        for purpose in purposes:
            if (read := inputs.get(f"extracted/{purpose}/{name}/{index}")) is not None:
                scores = scores.join(pd.read_parquet(read / "extracted.parquet").add_prefix(f"{purpose}."))
        if {*scores.columns, *described.columns} - {*IMAGE_COLUMNS}:
            parts.append(pd.concat([described, scores], axis=1))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(IMAGE_COLUMNS))


def _known_images(shots: Sequence[dict], plain: pd.DataFrame, shared: Collection[str]) -> pd.DataFrame:
    """Descriptions of images that the planner knew. All images of one text form one cluster.

    A prompt that was derived from a plain prompt joins the cluster of that prompt. The cluster of a plain text is named by the
    first prompt with that text. Translations of one prompt (``shared``: their noise) form one cluster, and have ids of their own.
    """
    known = [Shot.from_dict(s) for s in shots]
    frame = _described(known)
    made_of = pd.Series([s.get("plain", "") for s in shots], dtype=object)
    by_text = plain.drop_duplicates("text").set_index("text")["first"]
    of_plain = made_of.map(plain["first"]).fillna(made_of)
    of_text = frame["prompt"].map(by_text).fillna(frame["prompt"])
    frame = frame.assign(cluster=of_plain.where(made_of != "", of_text))
    translated = frame["prompt_id"].isin(shared)
    ids = pd.Series([shot.prompt.id for shot in known], dtype=object)
    return frame.assign(
        cluster=frame["cluster"].mask(translated, frame["prompt_id"]),
        prompt_id=frame["prompt_id"].mask(translated, ids),
    )


def _found_images(rows: Sequence[dict], plain: pd.DataFrame) -> pd.DataFrame:
    """Descriptions of images whose shots an attack chose. All images derived from one plain text form one cluster.

    The columns include the judge's verdicts and the attack's own readings.
    """
    frame = _described([Shot.from_dict({k: v for k, v in row.items() if k not in FOUND}) for row in rows])
    frame["verdict"] = [_verdict(row.get("verdict")) for row in rows]
    frame = frame.join(pd.DataFrame([row.get("readings", {}) for row in rows]))
    return frame.assign(cluster=frame["prompt_id"].map(plain["first"]).fillna(frame["prompt_id"]))


#: Keys of a stored shot that an attack adds to the shot itself.
FOUND = ("verdict", "readings", "provenance")


def _verdict(stored: Sequence | None) -> float:
    """1 or 0 for the judge's verdict; NaN if there was no judge or it failed."""
    if not stored:
        return np.nan
    success, _, known = stored
    return float(success) if known else np.nan


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


def _costs(name: str, batches: list, inputs: Mapping[str, Path]) -> list[dict]:
    """The cost of each batch of a frame, split into images, erasure and attacks."""
    return [read_manifest(inputs[f"{name}/{index}"])["made"] for index in range(len(batches))]


def _latency(folder: Path | None) -> list[float] | None:
    """Ratios of seconds per image, edited over unedited; ``[1.0]`` if the erasure only changes weights."""
    if folder is None:
        return None
    return json.loads((folder / "latency.json").read_text(encoding="utf-8"))["ratios"] or [1.0]
