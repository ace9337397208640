"""Stage *compare*: similarity of each image to the unedited model's image with the same prompt and noise.

The result is ``similarity.parquet``, one row per image.
"""

from __future__ import annotations

from overpaint.images.stages.generate import read_images
from overpaint.metrics.similarity import similarity


def run(task, inputs, folder, bench) -> dict:
    """Write ``similarity.parquet``."""
    images, originals = read_images(inputs["images"]), read_images(inputs["original"])
    similarity(images, originals).to_parquet(folder / "similarity.parquet", index=False)
    return {}
