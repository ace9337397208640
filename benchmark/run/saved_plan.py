"""A plan as a Parquet file, so that workers on other machines do not plan again. Nothing in it is run when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from overpaint.errors import UserError
from overpaint.run.plan import Plan
from overpaint.run.tasks import Task

#: Format of the file. It is raised when older versions of this package could not read it, or would read it wrongly.
FORMAT = 1
TEXTS = ("stage", "label", "like", "loads")
MAPPINGS = ("config", "inputs", "stages", "versions", "sources", "runtime")


def save(plan: Plan, path: Path) -> None:
    """Write the tasks and bundles of all cells. The cells themselves are left out: workers do not use them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = {task.key for _, task in plan.opened().cells} | plan.again
    numbers: dict[int, int] = {}  # of bundles, by identity: all their tasks share one list
    rows: list[dict[str, Any]] = []
    for key, task in plan.tasks.items():
        bundle = plan.bundles.get(key)
        rows.append(
            {"key": key, "amount": task.amount, **{name: getattr(task, name) for name in TEXTS}}
            | {name: _text(getattr(task, name)) for name in MAPPINGS}
            | {"wanted": key in wanted}
            | {"bundle": numbers.setdefault(id(bundle), len(numbers)) if bundle else None}
            | {"place": [t.key for t in bundle].index(key) if bundle else None}
        )
    types = {**dict.fromkeys(("key", *TEXTS, *MAPPINGS), pa.string()), "amount": pa.int64(), "wanted": pa.bool_()}
    schema = pa.schema({**types, "bundle": pa.int64(), "place": pa.int64()})
    about = {"format": str(FORMAT), "track": plan.track}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema.with_metadata(about)), path, compression="zstd")


def load(path: Path) -> Plan:
    """The plan in a file of `save`; each of its cells is ``None``.

    Raises a `UserError` if there is no such file, if it is damaged, or if a newer version of this package wrote it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        written, track = int(about["format"]), about["track"]
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the plan {path} cannot be read ({reason}); run the same command again") from error
    if written > FORMAT:
        raise UserError(f"the plan {path} has format {written}, and this version of overpaint reads up to {FORMAT}")
    plan, bundles = Plan(track), dict[int, list[tuple[int, Task]]]()
    known: dict[str, Any] = {}
    for row in (row for part in table.to_batches(max_chunksize=1000) for row in part.to_pylist()):
        mappings = {name: _parsed(row[name], known) for name in MAPPINGS}
        task = Task(**mappings, **{name: row[name] for name in TEXTS}, amount=row["amount"], name=row["key"])
        plan.tasks[task.key] = task
        if row["wanted"]:
            plan.cells.append((None, task))
        if row["bundle"] is not None:
            bundles.setdefault(row["bundle"], []).append((row["place"], task))
    for places in bundles.values():
        bundle = [task for _, task in sorted(places, key=lambda place: place[0])]
        plan.bundles |= {task.key: bundle for task in bundle}
    return plan


def _parsed(text: str, known: dict[str, Any]) -> Any:
    """The mapping in a text of `_text`. Equal values are one object, as in the plan that was saved: tasks share most of them."""

    def shared(mapping: dict[str, Any]) -> dict[str, Any]:
        return {key: known.setdefault(_text(v), v) if isinstance(v, list | dict) else v for key, v in mapping.items()}

    if text not in known:
        known[text] = json.loads(text, object_hook=shared)
    return known[text]


def _text(value: Mapping[str, Any] | list[Any]) -> str:
    """A mapping or a list as JSON, in its own order: the order of rows in results follows it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else dict(value)
