"""`overpaint erase`: writes one erasure to a file, without a store."""

from __future__ import annotations

from collections.abc import Sequence

import click

from overpaint.commands.grids import ERR, single_cell, taken
from overpaint.commands.targets import target, whole
from overpaint.errors import UserError
from overpaint.grid.lengths import shortenings
from overpaint.methods.eraser import erase as erase_concepts
from overpaint.models import load_model
from overpaint.run.progress import watched


@click.command()
@click.argument("overrides", nargs=-1)
@click.option("--overwrite", is_flag=True, help="Replace out=FILE where it exists.")
def erase(overrides: Sequence[str], overwrite: bool) -> None:
    """Write one erasure as a safetensors file: overpaint erase model=… method=… concepts=… out=FILE."""
    out, rest = taken(overrides, "out")
    if not out:
        raise UserError("say where to write the erasure: out=FILE.safetensors")
    cell = single_cell(rest, "erase")
    if cell.method.name == "none":
        raise UserError("method=none erases nothing: choose another method (overpaint list methods)")
    path = target(out, ".safetensors", overwrite)
    model = load_model(cell.model.path, cell.model.precision)
    name = cell.method.label
    for note in shortenings([cell]):
        ERR.print(f"note: {note}", style="yellow")
    concepts = cell.concepts
    how = {"request": concepts.request, "sequential": concepts.sequential, "merge": concepts.merge, "seed": cell.seed}
    with ERR.status(f"{name} …") as status, watched(lambda *step: status.update(f"{name}: {_said(*step)}")):
        erasure = erase_concepts(model, cell.method.name, **how, **cell.method.values)
    with whole(path) as partial:
        erasure.save(partial)
    cost = erasure.manifest
    ERR.print(
        f"{out}: {erasure.kind}, {len(erasure.names) + len(erasure.parts)} tensors, "
        f"{cost['artefact_bytes'] / 1e6:.3g} MB, {cost['seconds']} s, peak {cost['peak_bytes'] / 1e9:.2f} GB"
    )


def _said(done: int, total: int, what: str) -> str:
    return f"{done}/{total} {what}"
