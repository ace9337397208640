"""Stage *reference*: real pictures for FID and KID, drawn by the world's renderer or taken from a folder."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from overpaint.errors import UserError
from overpaint.images.stages.generate import write_images
from overpaint.run.store import file_hash

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def run(task, inputs, folder, bench) -> dict:
    config = task.config
    if config.get("source") == "world":
        from overpaint.testbed.world import draw_world

        drawn = draw_world(config["n"], config["seed"])
        write_images(folder, [image for _, _, image in drawn], [{"prompt": caption} for _, caption, _ in drawn])
        return {}
    found = {sha: path for path, sha in image_files(task.runtime["folder"], len(config["files"]))}
    write_images(folder, [Image.open(found[sha]).convert("RGB") for sha in config["files"]], [])
    return {}


def image_files(folder: str, count: int) -> list[tuple[Path, str]]:
    """The first ``count`` pictures of a folder by name, with their hashes."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"model.reference={folder} is not a folder of images")
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)[:count]
    if not files:
        raise UserError(f"model.reference={folder} holds no image ({', '.join(SUFFIXES)})")
    return [(p, file_hash(p)) for p in files]
