"""Speed of the harness, each figure paired with what it is compared to in one run: `make bench`."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from overpaint.models.loading import load_pipeline
from overpaint.models.sources import resolve
from overpaint.stages import generate
from overpaint.tasks import Task
from overpaint.workbench import Workbench

PROTOCOL = {"scheduler": "ddim", "steps": 20, "guidance_scale": 4.0, "size": None}
WORDS = ("church", "house", "car", "cat", "boat", "fish", "tree", "star")


def images_per_second(batch_size: int = 32, batches: int = 3, rounds: int = 5) -> dict[str, float]:
    """The generate stage (model hooks, PNG, Parquet) against a bare batched loop over the same diffusers pipeline."""
    count = batch_size * batches
    shots = [[f"a picture of a {WORDS[i % len(WORDS)]}", 1000 + i, None] for i in range(count)]
    bench = Workbench()
    model = bench.model(resolve("testbed"), "float32", "cpu")
    pipeline = load_pipeline("testbed", "float32", "cpu").pipeline
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.scheduler = model.scheduler("ddim")
    pipeline.set_progress_bar_config(disable=True)
    runtime = {"path": resolve("testbed"), "device": "cpu", "batch_size": batch_size}
    config = {"model": "testbed", "precision": "float32", "protocol": PROTOCOL, "shots": shots}
    task = Task("generate", config, runtime=runtime)

    def harness() -> None:
        with tempfile.TemporaryDirectory() as folder:
            generate.run(task, {}, Path(folder), bench)

    def bare() -> None:
        for start in range(0, count, batch_size):
            part = shots[start : start + batch_size]
            generators = [torch.Generator().manual_seed(seed) for _, seed, _ in part]
            pipeline(
                [text for text, _, _ in part],
                num_inference_steps=PROTOCOL["steps"],
                guidance_scale=PROTOCOL["guidance_scale"],
                generator=generators,
            )

    harness(), bare()
    ratios, speeds = [], {"harness": [], "bare": []}
    for _ in range(rounds):
        for name, work in (("harness", harness), ("bare", bare)):
            start = time.perf_counter()
            work()
            speeds[name].append(count / (time.perf_counter() - start))
        ratios.append(speeds["harness"][-1] / speeds["bare"][-1])
    return {
        "harness_images_per_second": statistics.median(speeds["harness"]),
        "bare_images_per_second": statistics.median(speeds["bare"]),
        "ratio_median": statistics.median(ratios),
        "ratio_lowest": min(ratios),
    }


def start_up(*arguments: str, rounds: int = 7) -> float:
    """Median seconds of a command line from start to exit."""
    command = [str(Path(sys.executable).parent / "overpaint"), *arguments]
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    figures = {
        "help_seconds": start_up("--help"),
        "list_methods_seconds": start_up("list", "methods"),
        **images_per_second(),
    }
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=1))


if __name__ == "__main__":
    main()
