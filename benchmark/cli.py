"""The command line. Heavy imports happen inside the commands, so that `overpaint --help` is quick."""

from __future__ import annotations

import os
import sys

import click

OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="overpaint")
def cli() -> None:
    """Benchmark concept erasure in text-to-image diffusion models.

    Overrides are Hydra's: `overpaint run method=uce,esd concepts=church attack=none,cce`. A list is an axis of the
    grid. The same command continues an interrupted run.
    """


@cli.command(context_settings=OVERRIDES)
@click.option("-m", "--multirun", is_flag=True, help="Accepted for Hydra's sake; lists are always swept.")
@click.option("--cfg", type=click.Choice(["job"]), help="Print the composed configuration of the first cell and stop.")
@click.pass_context
def run(context: click.Context, multirun: bool, cfg: str | None) -> None:
    """Plan a grid, run or resume it, and print its table. Without arguments: the demo."""
    if cfg:
        from omegaconf import OmegaConf

        click.echo(OmegaConf.to_yaml(_compose(context.args)[0].config))
        return
    from overpaint.commands import run_grid

    sys.exit(run_grid(_compose(context.args)))


@cli.command(context_settings=OVERRIDES)
@click.option("-m", "--multirun", is_flag=True, hidden=True)
@click.pass_context
def plan(context: click.Context, multirun: bool) -> None:
    """Say what a run would do: tasks, images, what is stored, time, and what the budget can detect."""
    from overpaint.commands import describe_plan

    describe_plan(_compose(context.args))


@cli.command(context_settings=OVERRIDES)
@click.option("--format", "form", default="terminal", help="terminal, md, csv, json or latex.")
@click.option("--view", default="facets", help="facets (every figure), or one of `overpaint list views`.")
@click.pass_context
def table(context: click.Context, form: str, view: str) -> None:
    """Print tables from stored records: of the grid that the overrides span, or of the whole store."""
    from overpaint.commands import print_table

    print_table(context.args, form, view)


@cli.command(context_settings=OVERRIDES)
@click.pass_context
def erase(context: click.Context) -> None:
    """Just the erasure, as a safetensors file: overpaint erase model=… method=… concepts=… out=FILE."""
    from overpaint.commands import erase_to_file

    out, overrides = _take(context.args, "out")
    if not out:
        raise click.UsageError("say where to write it: out=FILE.safetensors")
    erase_to_file(_compose(overrides, default=False), out)


@cli.command(context_settings=OVERRIDES)
@click.pass_context
def export(context: click.Context) -> None:
    """A diffusers folder with an erasure applied (erasure=FILE model=… out=DIR), or the prompts that an attack found
    (attack=KEY out=FILE.csv, the key of a stored attack or an attack's name with the overrides of its cell)."""
    from overpaint.commands import export_pipeline, export_prompts

    out, rest = _take(context.args, "out")
    file, overrides = _take(rest, "erasure")
    if out and file:
        export_pipeline(_compose(overrides, default=False), file, out)
    elif out and any(o.startswith("attack=") for o in overrides):
        export_prompts(overrides, out)
    else:
        raise click.UsageError("give erasure=FILE.safetensors and out=DIR, or attack=KEY and out=FILE.csv")


@cli.command(name="list")
@click.argument("what")
def list_(what: str) -> None:
    """List methods, concepts, attacks, metrics, detectors, models or experiments, one a line."""
    from overpaint.listing import lines

    for line in lines(what):
        click.echo(line)


@cli.command(context_settings=OVERRIDES)
@click.pass_context
def doctor(context: click.Context) -> None:
    """Say what this machine has: libraries, devices, assets, the store."""
    from overpaint.doctor import report

    store, rest = _take(context.args, "store")
    if rest:
        raise click.UsageError(f"doctor takes store=DIR alone, got {rest[0]}")
    for line in report(store):
        click.echo(line)


def _compose(overrides: list[str], default: bool = True):
    """The cells of a command's overrides; the demo's where they say only where and how."""
    from overpaint.grid.composition import CIRCUMSTANCES, compose_cells

    keys = [o.split("=")[0].lstrip("+~").split(".")[0] for o in overrides]
    if default and all(key in CIRCUMSTANCES for key in keys):
        overrides = ["experiment=demo", *overrides]
    return compose_cells(overrides)


def _take(overrides: list[str], key: str) -> tuple[str | None, list[str]]:
    """The value of ``key=value`` among the overrides, and the others."""
    found = [o.split("=", 1)[1] for o in overrides if o.startswith(f"{key}=")]
    return (found[-1] if found else None), [o for o in overrides if not o.startswith(f"{key}=")]


def _wait_politely() -> None:
    """Where other processes use the cores already, let idle OpenMP threads sleep instead of spin.

    Measured on 2 cores: two runs side by side are 2.9 times faster so; a run that is alone is 20 % slower.
    """
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1) / 2:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> None:
    """Entry point: bad input is one sentence and exit code 2, an interruption 130."""
    from overpaint.errors import UserError
    from overpaint.run.store import CorruptArtefact

    _wait_politely()
    try:
        cli(standalone_mode=False)
    except UserError as error:
        click.echo(f"overpaint: {error}", err=True)
        sys.exit(2)
    except CorruptArtefact as error:
        click.echo(f"overpaint: {error} by `overpaint run`", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
