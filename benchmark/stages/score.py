"""Stage *score*: a detector looks at every image of a batch. Thresholds are applied later, when figures are measured."""

from __future__ import annotations

import math

from overpaint.stages.generate import read_images


def run(task, inputs, folder, bench) -> dict:
    detector = bench.detector(task.config["detector"], task.config["settings"])
    images = read_images(inputs["images"])
    frame = detector.score(images)
    frame.to_parquet(folder / "scores.parquet", index=False)
    failed = int(frame["failed"].sum()) if len(frame) else 0
    return {"images": len(images), "failed": failed, "share_failed": failed / len(images) if images else math.nan}
