"""`overpaint erase`: writes one erasure to a file, without a store."""

from __future__ import annotations

from collections.abc import Sequence

import click

from overpaint.commands.grids import ERR, refuse_keys, single_cell, taken
from overpaint.commands.targets import check_writable, target, whole
from overpaint.errors import UserError
from overpaint.grid.labels import bytes_said
from overpaint.grid.lengths import shortenings
from overpaint.images.tasks import build_method
from overpaint.methods.eraser import erase as erase_concepts
from overpaint.models import load_model
from overpaint.run.progress import watched


@click.command()
@click.argument("overrides", nargs=-1)
@click.option("--overwrite", is_flag=True, help="Replace out=FILE where it exists.")
def erase(overrides: Sequence[str], overwrite: bool) -> None:
    """Write one erasure as a safetensors file: overpaint erase model=… method=… concepts=… out=FILE."""
    out, rest = taken(overrides, "out")
    made = [override for override in rest if override != "attack=none"]
    refuse_keys(made, ("attack", "protocol", "metrics"), "erase makes and measures no image; leave it out")
    cell, device = single_cell(rest, "erase")
    if not out:
        raise UserError("say where to write the erasure: out=FILE.safetensors")
    if cell.method.name == "none":
        raise UserError("method=none erases nothing: choose another method (overpaint list methods)")
    path = target(out, ".safetensors", overwrite)
    check_writable(path)
    notes = build_method(cell.method, 0).notes_on(cell.model.path)
    for note in (*shortenings([cell]), *notes):
        ERR.print(f"note: {note}", style="yellow")
    model = load_model(cell.model.path, cell.model.precision, device)
    name, concepts = cell.method.label, cell.concepts
    how = {"request": concepts.request, "sequential": concepts.sequential, "merge": concepts.merge, "seed": cell.seed}

    def step(done: int, total: int, what: str) -> None:
        status.update(f"{name}: {done}/{total} {what}")

    with ERR.status(f"{name} …") as status, watched(step):
        erasure = erase_concepts(model, cell.method.name, **how, **cell.method.values)
    with whole(path) as partial:
        erasure.save(partial)
    cost = erasure.manifest
    ERR.print(
        f"{out}: {erasure.kind}, {len(erasure.names) + len(erasure.parts)} tensors, "
        f"{bytes_said(cost['artefact_bytes'])}, {cost['seconds']} s, peak {bytes_said(cost['peak_bytes'])}"
    )
