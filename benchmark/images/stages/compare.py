"""Stage *compare*: every image beside the unedited model's image of the same prompt and noise (``similarity.parquet``)."""

from __future__ import annotations

from overpaint.images.stages.generate import read_images
from overpaint.metrics.similarity import similarity


def run(task, inputs, folder, bench) -> dict:
    images, originals = read_images(inputs["images"]), read_images(inputs["original"])
    similarity(images, originals).to_parquet(folder / "similarity.parquet", index=False)
    return {}
