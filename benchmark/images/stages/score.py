"""Stage *score*: extracts everything that a measurement needs from a batch of images, so that it opens no image itself.

``scores.parquet`` has the detector's scores, one row per image. Thresholds are applied later. ``shots.json`` holds the shots
that attacks chose. The manifest holds the cost of the images, of their erasure and of their attacks.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from overpaint.images.returned import checked_scores
from overpaint.images.stages.generate import read_images
from overpaint.run.store import read_manifest

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.detectors.detector import Detector

SHOTS = "shots.json"


def run(task, inputs, folder, bench) -> dict:
    """Write ``scores.parquet``, and ``shots.json`` if an attack chose the shots."""
    images = read_images(inputs["images"])
    if task.config["detector"]:
        detector = bench.detector(task.config["detector"], task.config["settings"], task.runtime.get("device"))
        frame = scores(detector, images, task.config["detector"])
    else:
        frame = pd.DataFrame({"failed": [image is None for image in images]})
    frame.to_parquet(folder / "scores.parquet", index=False)
    attacks = [inputs[name] for name in sorted(inputs) if name.startswith("assault/")]
    if not attacks and (inputs["images"] / SHOTS).is_file():  # the attack generated the images itself
        attacks = [inputs["images"]]
    rows = [row for place in attacks for row in json.loads((place / SHOTS).read_text(encoding="utf-8"))]
    if attacks:
        (folder / SHOTS).write_text(json.dumps(rows), encoding="utf-8")
    failed = int(frame["failed"].sum()) if len(frame) else 0
    share = failed / len(images) if images else math.nan
    return {"images": len(images), "failed": failed, "share_failed": share, "made": _costs(inputs["images"], attacks)}


def _costs(images: Path, attacks: Sequence[Path]) -> Mapping[str, Mapping[str, float]]:
    """The cost of the ``images``, of their ``erasure``, and of all ``attack`` runs together."""
    made = read_manifest(images)
    spent: Counter[str] = Counter()
    for place in attacks:
        spent.update(read_manifest(place).get("cost", {}))
    return {"images": made.get("cost", {}), "erasure": made.get("erasure", {}), "attack": dict(spent)}


def scores(detector: Detector, images: Sequence[Image | None], name: str = "") -> pd.DataFrame:
    """`Detector.score` of the images, one row each. A failed image (``None``) gets NaN scores without being scored.

    ``name`` is the detector's name for errors, without one its class's. Raises `UserError` for wrong scores.
    """
    shown = [number for number, image in enumerate(images) if image is not None]
    found = detector.score([image for image in images if image is not None])
    who = f"detector={name or type(detector).__name__}"
    frame = checked_scores(found, len(shown), who, getattr(detector, "labels", None))
    if len(shown) == len(images):
        return frame
    frame = frame.set_axis(shown).reindex(range(len(images)))
    frame["failed"] = frame["failed"].ne(False)
    for column in ("features", "detections", "answers"):
        if column in frame:
            frame[column] = frame[column].astype(object).where(frame[column].notna(), None)
    return frame
