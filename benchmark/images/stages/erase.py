"""Stage *erase*: a method erases concepts from a model. The artefact is the erasure file."""

from __future__ import annotations

from overpaint.errors import UserError
from overpaint.grid.concepts import Request, stored_concept
from overpaint.images.task_parts import check_content
from overpaint.methods.eraser import erase


def run(task, inputs, folder, bench) -> dict:
    """Write ``erasure.safetensors``. Seconds, peak memory and bytes go to the manifest.

    Raises a `UserError` if the method changed the model itself, if its erasure changes nothing or does not fit the model, or if a
    file that it reads has changed since the run was planned.
    """
    config = task.config
    check_content("method", config)
    model = bench.model(config, task.runtime)
    request = Request(
        tuple(map(stored_concept, config["erase"])),
        tuple(map(stored_concept, config["retain"])),
    )
    how = {"seed": config["seed"], "sequential": config.get("sequential", False), "merge": config.get("merge")}
    erasure = erase(model, config["method"], request=request, **how, **config["hyperparameters"])
    if not erasure.names and all(part.kind == "delta" for part in erasure.sequence):
        raise UserError(
            f"method={config['method']} returned an erasure that changes nothing; give it changes, or kind adapter or guard "
            "(docs/extending.md)"
        )
    cost = {k: erasure.manifest.pop(k) for k in ("seconds", "peak_bytes")}  # keeps the file identical between runs
    erasure.save(folder / "erasure.safetensors")
    return {"cost": cost | {"artefact_bytes": erasure.artefact_bytes}}
