"""Plan every experiment of a published table on Stable Diffusion 1.4, and write what they cost into docs/experiments.md.

    python scripts/write_costs.py                            # plans what is not planned yet, then writes the table
    python scripts/write_costs.py --images-per-second 4      # GPU hours at another speed; nothing is planned again

Plans are made one at a time, each in a process of its own with low priority: the largest take minutes and over a gigabyte. What
is known is kept in a file (``--known``), so that an interrupted run continues; delete it to plan everything again. Nothing is
downloaded, and no model is run. The page says in comments where the table belongs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from textwrap import fill

from overpaint.commands.grids import planned
from overpaint.commands.list import lines
from overpaint.run.plan import by_stage
from overpaint.run.track import track

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "experiments.md"
BLOCK = re.compile(r"(<!-- costs -->\n).*?(<!-- end -->)", re.S)
HEAD = "| experiment | cells | tasks | erasures | attacks | images | GPU hours |\n|---|--:|--:|--:|--:|--:|--:|"


def published() -> list[str]:
    """The experiments of published tables: those that say what a paper's table needs, not those on the drawn world."""
    return [line.split()[0] for line in lines("experiments") if "(arXiv" in line]


def cost(experiment: str) -> dict[str, float]:
    """The counts of an experiment's plan with an empty store; ``work`` is in images of 512² pixels and 50 steps."""
    with tempfile.TemporaryDirectory() as folder:
        grid = planned([f"experiment={experiment}", "model=sd14", f"store={folder}/store"], partial=True)
        more = grid.plan.unopened(grid.store)
        grid.plan.advance(grid.store, most=1)  # one cell, because lists without their files give all images one size
    images = [task for task in grid.plan.tasks.values() if task.stage == "generate"]
    opened = sum(task.amount for task in images)
    count = sum(work.amount * number for work, number in more.items() if work.stage == "generate")
    stages = by_stage((), more)
    return {
        "cells": len(grid.plan.cells),
        "tasks": stages.total(),
        "erasures": stages["erase"],
        "attacks": stages["attack"],
        "images": count,
        "work": track(grid.plan.track).standard_images(images) * count / max(1, opened),
    }


def lowest_priority(assets: str) -> None:
    """Set up a planning process: it yields to all others, and finds no asset and no hub."""
    os.nice(19)
    os.environ |= {"OVERPAINT_ASSETS": assets, "HF_HUB_OFFLINE": "1"}


def plan_missing(known: Path) -> dict[str, dict[str, float]]:
    """The costs of all published experiments. Those that the file lacks are planned, and added to it one by one."""
    found = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
    known.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as empty:
        for name in [name for name in published() if name not in found]:
            print(f"planning {name}", flush=True)
            with ProcessPoolExecutor(1, get_context("spawn"), lowest_priority, (empty,)) as process:
                found[name] = process.submit(cost, name).result()
            known.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return {name: found[name] for name in published()}


def table(costs: dict[str, dict[str, float]], images_per_second: float) -> str:
    """The costs in Markdown, with the date and the speed that they assume."""
    rows = []
    for name, counts in costs.items():
        hours = counts["work"] / images_per_second / 3600
        cells = [f"{counts[key]:,}" for key in ("cells", "tasks", "erasures", "attacks", "images")]
        rows.append(" | ".join([f"| `{name}`", *cells, f"{hours:,.1f} |" if hours < 100 else f"{hours:,.0f} |"]))
    hours = sum(counts["work"] for counts in costs.values()) / images_per_second / 3600
    said = (
        f"Planned on {date.today()} with `model=sd14` and an empty store. GPU hours are those of the images at an assumed "
        f"{images_per_second:g} image{'s' * (images_per_second != 1)} per second (512² pixels, 50 steps); all rows together "
        f"take {hours:,.0f}."
    )
    return "\n".join([fill(said, 130), "", HEAD, *rows, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--known", type=Path, default=ROOT / "outputs" / "experiment_costs.json", help="planned before")
    parser.add_argument("--images-per-second", type=float, default=1.0, help="speed of one GPU (512² pixels, 50 steps)")
    args = parser.parse_args()
    text = table(plan_missing(args.known), args.images_per_second)
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BLOCK.sub(lambda block: block[1] + text + block[2], page), encoding="utf-8")


if __name__ == "__main__":
    main()
