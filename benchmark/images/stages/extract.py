"""Stage *extract*: an extractor reads a batch of images, or embeds texts, for metrics that need more than scores.

For images the result is ``extracted.parquet``, one row per image; for texts it is ``texts.parquet`` with columns ``text`` and
``features``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from overpaint.images.returned import checked_embeddings, checked_readings
from overpaint.images.stages.generate import read_images
from overpaint.images.stages.score import scores

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.extractors.extractor import Extractor


def run(task, inputs, folder, bench) -> dict:
    """Write ``extracted.parquet`` or ``texts.parquet``."""
    name, settings = task.config["extractor"], task.config["settings"]
    if settings.get("detector"):
        detector = bench.detector(name, settings, task.runtime["device"])
        frame = scores(detector, read_images(inputs["images"]), name).drop(columns="failed")
        frame.to_parquet(folder / "extracted.parquet", index=False)
        return {}
    extractor = bench.extractor(name, settings, task.runtime["device"])
    if "texts" in task.config:
        texts = task.config["texts"]
        rows = checked_embeddings(extractor.texts(texts), len(texts), f"extractor={name}")
        table = pd.DataFrame({"text": texts, "features": rows})
        table.to_parquet(folder / "texts.parquet", index=False)
        return {"texts": len(table)}
    images, prompts = read_images(inputs["images"]), read_prompts(inputs["images"])
    originals = read_images(inputs["original"]) if "original" in inputs else None
    frame = extracted(extractor, images, prompts, originals, name)
    frame.to_parquet(folder / "extracted.parquet", index=False)
    return {"images": len(images)}


def read_prompts(folder: Path) -> list[str]:
    """The prompts of an artefact's images, in order."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "images.parquet")
    return table.column("prompt").to_pylist() if "prompt" in table.column_names else [""] * len(table)


def extracted(
    extractor: Extractor,
    images: Sequence[Image | None],
    prompts: Sequence[str],
    originals: Sequence[Image | None] | None = None,
    name: str = "",
) -> pd.DataFrame:
    """`Extractor.extract` of the images, one row each. A failed image (``None``), or one with a failed original, has nulls.

    ``name`` is the extractor's name for errors, without one its class's. Raises `UserError` for wrong readings.
    """
    beside = images if originals is None else originals
    shown = [
        n for n, pair in enumerate(zip(images, beside, strict=True)) if pair[0] is not None and pair[1] is not None
    ]
    chosen = [image for n in shown if (image := images[n]) is not None]
    others = [image for n in shown if (image := beside[n]) is not None]
    found = extractor.extract(chosen, [prompts[n] for n in shown], None if originals is None else others)
    found = checked_readings(found, len(shown), f"extractor={name or type(extractor).__name__}")
    found = found.set_axis(shown).reindex(range(len(images)))
    if "features" in found:
        found["features"] = found["features"].astype(object).where(found["features"].notna(), None)
    return found
