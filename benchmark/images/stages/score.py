"""Stage *score*: a detector looks at every image of a batch. Thresholds are applied later, when figures are measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from overpaint.images.stages.generate import read_images

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.detectors.detector import Detector


def run(task, inputs, folder, bench) -> dict:
    detector = bench.detector(task.config["detector"], task.config["settings"])
    images = read_images(inputs["images"])
    frame = scores(detector, images)
    frame.to_parquet(folder / "scores.parquet", index=False)
    failed = int(frame["failed"].sum()) if len(frame) else 0
    return {"images": len(images), "failed": failed, "share_failed": failed / len(images) if images else math.nan}


def scores(detector: Detector, images: Sequence[Image | None]) -> pd.DataFrame:
    """`Detector.score` of the images, one row each; those that failed when they were made are not shown to it, and fail."""
    shown = [number for number, image in enumerate(images) if image is not None]
    frame = detector.score([images[number] for number in shown])
    if len(shown) == len(images):
        return frame
    frame = frame.set_axis(shown).reindex(range(len(images)))
    frame["failed"] = frame["failed"].ne(False)
    if "features" in frame:
        frame["features"] = frame["features"].astype(object).where(frame["features"].notna(), None)
    return frame
