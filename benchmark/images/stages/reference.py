"""Stage *reference*: real pictures for distances between distributions, from the source in ``model.reference``."""

from __future__ import annotations

from overpaint.errors import changed
from overpaint.images.stages.generate import write_images


def run(task, inputs, folder, bench) -> dict:
    """Write ``images.parquet``. Raises a `UserError` if the source changed after planning."""
    source, count = bench.pictures(task.runtime["pictures"]), task.runtime["count"]
    if source.identity(count) != task.config:
        raise changed(f"model.reference={task.runtime['pictures']}")
    found = source.references(count)
    write_images(folder, [image for image, _ in found], [{"prompt": text} for _, text in found])
    return {}
