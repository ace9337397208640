"""The command line: a table of commands. The file of a command is imported when the command is called."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections import Counter
from importlib import import_module

import click

from overpaint.errors import UserError, unknown
from overpaint.grid.labels import printable

#: Command -> ``module:function``, and the line that `overpaint --help` shows.
COMMANDS = {
    "run": ("overpaint.commands.run:run", "Plan a grid, run or resume it, and print its table."),
    "attach": ("overpaint.commands.attach:attach", "Follow a run on a cluster, and print its table."),
    "plan": ("overpaint.commands.plan:plan", "Report what a run would do, without running it."),
    "status": ("overpaint.commands.status:status", "Report what runs, what failed, what is left, and what is stored."),
    "retry": ("overpaint.commands.retry:retry", "Forget failures, so that their tasks count as new."),
    "table": ("overpaint.commands.table:table", "Print tables from stored records."),
    "ledger": ("overpaint.commands.ledger:ledger", "Print figures of papers, side by side and beside your records."),
    "publish": ("overpaint.commands.publish:publish", "Write results as files for git, and check such files."),
    "compare": (
        "overpaint.commands.compare:compare",
        "Report what changed between two stores, result files or commits.",
    ),
    "site": ("overpaint.commands.site:site", "Write results and guides as static pages."),
    "show": ("overpaint.commands.show:show", "Draw images side by side, or write them as files."),
    "scores": ("overpaint.commands.scores:scores", "Print the scores of every image as CSV."),
    "score": ("overpaint.commands.score:score", "Measure pictures that other code made."),
    "erase": ("overpaint.commands.erase:erase", "Write one erasure as a safetensors file."),
    "export": ("overpaint.commands.export:export", "Write an erased model, or the prompts that an attack found."),
    "fetch": ("overpaint.commands.fetch:fetch", "Download the weights and prompt files that a grid needs."),
    "list": ("overpaint.commands.list:list_", "List methods, concepts, attacks, metrics and other groups."),
    "gc": ("overpaint.commands.gc:gc", "Report what the listed grids do not need, or delete it (--delete)."),
    "store": ("overpaint.commands.store:store", "Verify a store, merge another into it, or pack it into one file."),
    "doctor": ("overpaint.commands.doctor:doctor", "Report the libraries, devices and assets of this machine."),
}


class Commands(click.Group):
    """A group that imports a command when it is called, so that `overpaint --help` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        if cmd_name not in COMMANDS:
            raise unknown("command", cmd_name, COMMANDS)
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        return getattr(import_module(module), name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command and its arguments. Refuses options that are given twice, of which click takes the last, and empty ones."""
        name, command, rest = super().resolve_command(ctx, args)
        if command:
            values, _, given = command.make_parser(click.Context(command, ctx, name)).parse_args([*rest])
            for option, times in Counter(given).items():
                single = isinstance(option, click.Option) and not option.is_flag and not option.multiple
                if single and times > 1:
                    raise UserError(f"{option.opts[0]} is given twice: give it once")
                if single and values.get(option.name) == "":
                    raise UserError(f"{option.opts[0]} is empty: give a value, or leave it out")
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="overpaint")
@click.pass_context
def cli(context: click.Context) -> None:
    """Benchmark concept erasure in text-to-image diffusion models.

    Overrides are Hydra's: `overpaint run method=uce,esd concepts=church attack=none,cce`. A list is an axis of the
    grid. The same command continues an interrupted run.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _wait_politely() -> None:
    """Let idle OpenMP threads sleep instead of spin if other processes use the cores already.

    Measured on 2 cores: two runs side by side are 2.9 times faster this way; a run that is alone is 20 % slower.
    """
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1) / 2:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> None:
    """Entry point. Bad input is one sentence and exit code 2, an interruption 130."""
    _wait_politely()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # commands remove their temporary files, as after Ctrl-C
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(errors="replace")  # a table has characters, such as ↓, that Latin-1 lacks
    try:
        cli(standalone_mode=False)
    except UserError as error:
        click.echo(f"overpaint: {printable(str(error))}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        told = error.format_message()
        if isinstance(error, click.UsageError) and error.ctx:
            told = f"{told.rstrip('.')} ({error.ctx.command_path} --help)"
        click.echo(f"overpaint: {printable(told)}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        click.echo(f"overpaint: {error.strerror}: {error.filename or 'the output is incomplete'}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
