"""`overpaint retry`: forgets recorded failures."""

from __future__ import annotations

from collections.abc import Sequence

import click

from overpaint.commands.grids import ERR, store_and_grid
from overpaint.errors import UserError
from overpaint.grid.labels import counted, printable


@click.command()
@click.argument("what", nargs=-1)
def retry(what: Sequence[str]) -> None:
    """Forget failures: those of tasks whose keys begin with WHAT, of the grid of the overrides, or all.

    A forgotten task counts as not tried: `overpaint status` no longer lists it, workers of a run that is still going may try it
    again, and its next attempt is the first. Nothing runs here. `overpaint run` tries failed tasks again in any case.
    """
    prefixes = [word for word in what if "=" not in word]
    store, grid = store_and_grid([word for word in what if "=" in word])
    failures = store.failures()
    tasks = grid.plan.opened().tasks if grid and failures else {}
    chosen = {key: f for key, f in failures.items() if grid is None or key in tasks}
    for prefix in prefixes:
        if not any(key.startswith(prefix) for key in chosen):
            keys = ", ".join(sorted(chosen)[:5]) or "none"
            raise UserError(f"no failed task has a key that begins with {prefix!r} (failed: {keys})")
    if prefixes:
        chosen = {key: failure for key, failure in chosen.items() if key.startswith(tuple(prefixes))}
    for key, failure in chosen.items():
        try:
            store.forget_failure(key)
        except OSError as error:
            raise store.unwritable(error) from error
        click.echo(printable(f"{key}  {failure.task}  (attempt {failure.attempt}: {failure.reason})"))
    if chosen:
        ERR.print(
            f"{counted(len(chosen), 'failure')} forgotten; overpaint run with their grid's overrides makes these tasks"
        )
    else:
        ERR.print("no failures are recorded")
