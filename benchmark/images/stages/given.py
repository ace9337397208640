"""Stage *given*: takes pictures that other code made into the store."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from overpaint.errors import changed
from overpaint.images.stages.generate import write_images
from overpaint.run.store import file_hash


def run(task, inputs, folder, bench) -> dict:
    """Write ``images.parquet`` with the pictures and their prompts. A file that is not a readable picture is a failed image.

    Raises:
        UserError: A file changed after the run was planned.
    """
    images: list[Image.Image | None] = []
    unreadable = 0
    for name, content in zip(task.runtime["files"], task.config["files"], strict=True):
        if file_hash(Path(name)) != content:
            raise changed(name)
        try:
            with Image.open(name) as picture:
                images.append(picture.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            images.append(None)
            unreadable += 1
    write_images(folder, images, [{"prompt": text} for text in task.config["prompts"]])
    return {"note": f"{unreadable} of {len(images)} files are not readable pictures"} if unreadable else {}
