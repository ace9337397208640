"""Stage *generate*: the victim samples images under the protocol; Hugging Face `datasets` can read the Parquet file."""

from __future__ import annotations

import io
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from overpaint.attacks.stored import read_assault
from overpaint.run.progress import announce
from overpaint.run.store import read_manifest

if TYPE_CHECKING:
    import torch

    from overpaint.grid.prompts import Shot


def run(task, inputs, folder, bench) -> dict:
    """Write ``images.parquet`` with the images of the task's shots, or of the shots that its attacks chose."""
    config, protocol = task.config, task.config["protocol"]
    shots = config["shots"]
    tokens: dict[str, torch.Tensor] = {}
    if shots is None:
        shots = []
        for name in sorted(name for name in inputs if name.startswith("assault")):
            assault = read_assault(inputs[name])
            shots += [shot_row(s, protocol["size"]) for s in assault.shots]
            tokens |= assault.tokens
    groups = defaultdict(list)
    for index, (_, _, guidance, *size) in enumerate(shots):
        groups[guidance or protocol["guidance_scale"], tuple(size[0]) if size else protocol["size"]].append(index)
    images: list[Image.Image | None] = [None] * len(shots)
    with bench.victim(config, task.runtime, inputs.get("erasure")) as victim, victim.learned_tokens(tokens):
        start, done = time.perf_counter(), 0

        def finished(count: int) -> None:
            nonlocal done
            done += count
            announce(done, len(shots), "images")

        for (guidance, size), indices in groups.items():
            made = victim.sample(
                [shots[i][0] for i in indices],
                [shots[i][1] for i in indices],
                steps=protocol["steps"],
                guidance_scale=guidance,
                scheduler=protocol["scheduler"],
                size=size,
                batch_size=task.runtime["batch_size"],
                on_batch=finished,
                keep_failed=True,
            )
            for index, image in zip(indices, made, strict=True):
                images[index] = image
        seconds = time.perf_counter() - start
        truncated = victim.too_long([text for text, *_ in shots])
    rows = [{"prompt": t, "noise_seed": s, "guidance_scale": g or protocol["guidance_scale"]} for t, s, g, *_ in shots]
    write_images(folder, images, rows)
    cost = {"images": len(shots), "seconds": seconds}
    note = f"{truncated} of {len(shots)} prompts were truncated to the model's {victim.tokens} tokens"
    return {"cost": cost} | erasure_cost(inputs) | ({"note": note} if truncated else {})


def shot_row(shot: Shot, size: int | None) -> list:
    """A shot in a task's configuration: text, noise seed, guidance scale, and the width and height that its list gives, unless
    the protocol gives a ``size`` for all."""
    prompt = shot.prompt
    return [
        prompt.text,
        shot.noise_seed,
        prompt.guidance,
        *([list(prompt.size)] if prompt.size and size is None else ()),
    ]


def erasure_cost(inputs: Mapping[str, Path]) -> dict[str, dict]:
    """Cost of the erasure behind these images. It is copied into their manifest, so that the erasure can be deleted."""
    return {"erasure": read_manifest(inputs["erasure"])["cost"]} if "erasure" in inputs else {}


def write_images(folder: Path, images: Sequence[Image.Image | None], rows: list[dict]) -> None:
    """Write ``images.parquet``: the columns of ``rows`` and an ``image`` column of PNG bytes in the Hugging Face layout.

    A failed image (``None``) is stored as null.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"image": [image and {"bytes": _png(image), "path": None} for image in images]}
    types = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
    for name, kind in (("prompt", pa.string()), ("noise_seed", pa.int64()), ("guidance_scale", pa.float64())):
        if rows and name in rows[0]:
            columns[name] = [row[name] for row in rows]
            types.append((name, kind))
    features = {"image": {"_type": "Image"}} | {
        n: {"dtype": {"prompt": "string", "noise_seed": "int64"}.get(n, "float64"), "_type": "Value"}
        for n in columns
        if n != "image"
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table(columns, schema=pa.schema(types, metadata=metadata))
    pq.write_table(table, folder / "images.parquet", compression="none")


def read_images(folder: Path) -> list[Image.Image | None]:
    """The images of an artefact, in order; ``None`` for a failed image."""
    import pyarrow.parquet as pq

    column = pq.read_table(folder / "images.parquet", columns=["image"]).column("image").to_pylist()
    return [entry and Image.open(io.BytesIO(entry["bytes"])).convert("RGB") for entry in column]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()
