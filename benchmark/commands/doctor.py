"""`overpaint doctor`: reports the libraries, devices, assets and store of this machine."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

import click

from overpaint.commands.grids import taken
from overpaint.commands.list import said_size
from overpaint.errors import UserError
from overpaint.grid.assets import asset
from overpaint.grid.labels import bytes_said, counted, printable
from overpaint.grid.registry import broken_packages, component, components, search
from overpaint.grid.typed import bare
from overpaint.run.store import Store

LIBRARIES = ("torch", "diffusers", "transformers", "hydra-core", "torchmetrics", "pandas", "pyarrow")
EXTRAS = {"nudenet": "nudenet", "ray": "ray", "submitit": "slurm", "torchvision": "torchvision", "wandb": "wandb"}


@click.command()
@click.argument("overrides", nargs=-1)
def doctor(overrides: Sequence[str]) -> None:
    """Report the libraries, devices, assets and store of this machine."""
    store, rest = taken(search(overrides), "store")
    if rest:
        raise UserError(f"doctor takes store=DIR and hydra.searchpath=[…], got {bare(rest[0])}")
    for line in report(store):
        click.echo(printable(line))


def report(store: str | None) -> Iterator[str]:
    """Lines of `overpaint doctor`."""
    place = Store.chosen(store)
    yield f"overpaint {version('overpaint')}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield f"cores: {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}"
    yield from (f"{name}: {_version(name) or 'MISSING'}" for name in LIBRARIES)
    for name, extra in EXTRAS.items():
        yield f"{name}: {_version(name) or f'not installed (pip install overpaint[{extra}])'}"
    yield from _devices()
    yield from _assets()
    for name in components("detector"):
        try:
            files = component("detector", name).build().assets()
            yield f"detector {name}: present ({', '.join(files) or 'no files needed'})"
        except UserError as error:
            yield f"detector {name}: MISSING, {error}"
    yield from broken_packages()
    if place.root.is_dir():
        sizes = [size for stage in place.stages() for size in place.listed(stage).column("bytes").values()]
        yield f"store {place.root}: {counted(len(sizes), 'artefact')}, {bytes_said(sum(sizes))}"
    else:
        yield f"store {place.root}: not there yet"
    anchor = next(p for p in (place.root, *place.root.parents) if p.exists())
    yield f"disk: {bytes_said(shutil.disk_usage(anchor).free)} free"


def _assets() -> Iterator[str]:
    for name in components("asset"):
        try:
            found = asset(name)
            about = f"{said_size(found)}, licence {found.licence}"
            yield (
                f"asset {name}: present, {about}"
                if found.present()
                else f"asset {name}: MISSING, {about}; {found.command}"
            )
        except UserError as error:
            yield f"asset {name}: cannot be used: {error}"


def _devices() -> Iterator[str]:
    import torch

    if not torch.cuda.is_available():
        yield "GPUs: none (everything runs on the CPU)"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"GPU {index}: {properties.name}, {bytes_said(properties.total_memory)}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
