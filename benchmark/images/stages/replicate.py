"""Stage *replicate*: how close images of repeated training captions are to the training images themselves.

``replication.parquet`` has one row per image: ``own``, the root mean squared distance of its pixels in [0, 1] to the
caption's training image, and ``nearest``, the mean distance to the `NEAREST` closest of other training images, and
``closest``, the least of them.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from overpaint.images.stages.extract import read_prompts
from overpaint.images.stages.generate import read_images

#: Other training images that an image is compared with (Carlini et al., arXiv 2301.13188, use 50 of them for the mean).
OTHERS, NEAREST = 1_000, 50


def run(task, inputs, folder, bench) -> dict:
    """Write ``replication.parquet``."""
    source = bench.pictures(task.runtime["pictures"])
    own = {caption: image for image, caption in source.repeated()}
    images, prompts = read_images(inputs["images"]), read_prompts(inputs["images"])
    others = np.stack([_pixels(image) for image in source.ordinary_training(OTHERS)])
    rows = [
        (np.nan,) * 3 if image is None else distances(_pixels(image, own[text].size), _pixels(own[text]), others)
        for image, text in zip(images, prompts, strict=True)
    ]
    pd.DataFrame(rows, columns=["own", "nearest", "closest"]).to_parquet(folder / "replication.parquet", index=False)
    return {"images": len(images)}


def distances(image: NDArray, own: NDArray, others: NDArray) -> tuple[float, float, float]:
    """Distances of an image (d,): to its training image (d,), the mean to the nearest of ``others`` (n, d), and the least."""
    away = np.sort(np.sqrt(((others - image) ** 2).mean(axis=1)))
    return float(np.sqrt(((image - own) ** 2).mean())), float(away[:NEAREST].mean()), float(away[0])


def _pixels(image, size: tuple[int, int] | None = None) -> NDArray:
    shown = image.convert("RGB")
    shown = shown if size in (None, shown.size) else shown.resize(size)
    return np.asarray(shown, np.float32).ravel() / 255
