"""Benchmark the speed of the harness (`make bench`). Every figure and its baseline are measured in the same run."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from overpaint.commands.grids import prepare
from overpaint.grid.composition import compose_cells
from overpaint.images.stages import generate
from overpaint.images.workbench import Workbench
from overpaint.models.loading import load_pipeline
from overpaint.models.sources import resolve
from overpaint.run.executor import execute
from overpaint.run.store import MANIFEST
from overpaint.run.tasks import Task

PROTOCOL = {"scheduler": "ddim", "steps": 20, "guidance_scale": 4.0, "size": None}
WORDS = ("church", "house", "car", "cat", "boat", "fish", "tree", "star")


def images_per_second(batch_size: int = 32, batches: int = 3, rounds: int = 5) -> dict[str, float]:
    """Images per second of the generate stage (hooks, PNG, Parquet) and of a plain batched loop over the same pipeline."""
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


#: Seconds of the official scripts and of a 20-line reference on weights of this shape, for comparison.
CLOSED_FORM = {
    "uce current": ("uce", {"variant": "current"}),
    "uce legacy": ("uce", {"variant": "legacy"}),
    "rece": ("rece", {}),
    "speed": ("speed", {}),
}


def closed_form_seconds(retained: int = 100) -> dict[str, dict[str, float]]:
    """Seconds of closed-form edits on random weights with Stable Diffusion 1.4's shape (860 M UNet, 32 key/value matrices).

    The edits erase one concept with ``retained`` retained concepts, and then a hundred concepts at once. ``encode`` is the time
    in the text encoder; ``solve`` is the rest.
    """
    from build_random_sd import random_pipeline

    import overpaint
    from overpaint.models.diffusion import DiffusionModel
    from overpaint.models.meter import Meter

    model = DiffusionModel(random_pipeline())
    names = [f"concept {first}{second}" for first in "abcdefghijklmno" for second in "abcdefghijklmno"]
    clock = _Encoding(model)
    found: dict[str, dict[str, float]] = {}
    for label, (method, values) in CLOSED_FORM.items():
        for count in (1, 100):
            clock.seconds = 0.0
            with Meter("cpu") as before:
                pass
            start = time.perf_counter()
            erasure = overpaint.erase(
                model, method, erase=names[:count], anchor="art", retain=names[100 : 100 + retained], **values
            )
            total = time.perf_counter() - start
            found[f"{label}, {count} concept{'s' * (count > 1)}, {retained} retained"] = {
                "encode_seconds": clock.seconds,
                "solve_seconds": total - clock.seconds,
                "megabytes": erasure.artefact_bytes / 1e6,
                "peak_gigabytes_above_model": (erasure.manifest["peak_bytes"] - before.peak_bytes) / 1e9,
            }
    return found


class _Encoding:
    """Measures the seconds that a model spends in its text encoder."""

    def __init__(self, model):
        self.seconds, encode = 0.0, model.encode_ids

        def timed(*arguments, **options):
            start = time.perf_counter()
            try:
                return encode(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - start

        model.encode_ids = timed


def attack_seconds(prompts: int = 20, alone: int = 3) -> dict[str, float]:
    """UnlearnDiffAtk (testbed preset, UCE victim) on all prompts in one process, and in one process per prompt.

    Returns wall-clock seconds from start to exit and denoiser evaluations, both per prompt. The second variant runs only
    ``alone`` prompts.
    """
    with tempfile.TemporaryDirectory() as folder:
        stores = [f"{folder}/together", f"{folder}/alone"]
        for store in stores:
            _in_a_process(store, prompts, "none")  # makes the erasure in advance
        together = _in_a_process(stores[0], prompts, "all")
        one_by_one = [_in_a_process(stores[1], prompts, str(n * prompts // alone)) for n in range(alone)]
    apart = {key: statistics.mean(found[key] for found in one_by_one) for key in together}
    return {
        "prompts": prompts,
        "model_loads": together["loads"],
        "together_seconds_per_prompt": together["seconds"] / prompts,
        "alone_seconds_per_prompt": apart["seconds"],
        "ratio": apart["seconds"] * prompts / together["seconds"],
        "together_forwards_per_prompt": together["forwards"] / prompts,
        "alone_forwards_per_prompt": apart["forwards"],
    }


def _in_a_process(store: str, prompts: int, which: str) -> dict[str, float]:
    """The result of `attack_prompts` in a separate process, with its wall-clock seconds."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "attack", store, str(prompts), which]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout) | {"seconds": time.perf_counter() - start}


def attack_prompts(store: str, prompts: int, which: str) -> dict[str, float]:
    """Attack none, all or the n-th of the prompts (``which``), like `overpaint run`.

    Returns how often weights were read, and the number of forward passes.
    """
    overrides = ["method=uce", "attack=uda", "concepts=church", f"budget.target_prompts={prompts}", f"store={store}"]
    grid = prepare(compose_cells(overrides))
    plan, place = grid.plan, grid.store
    place.prepare()
    bench, quiet = Workbench(), SimpleNamespace(stepped=lambda *step: None)
    erased = [t for t in plan.tasks.values() if t.stage == "attack" and "erasure" in t.inputs]
    wanted = [t for t in erased if t.config["concept"]["name"] == "church"]
    erase = plan.tasks[wanted[0].inputs["erasure"]]
    if which == "none":
        bundles = [[erase]]
    elif which == "all":
        bundles = [plan.bundles[t.key] for t in wanted if t is plan.bundles[t.key][0]]
    else:
        bundles = [[wanted[int(which)]]]
    made = [task for bundle in bundles for task in execute(bundle, plan, place, bench, "cpu", quiet)]
    costs = [json.loads((place.path(t.stage, t.key) / MANIFEST).read_text())["cost"] for t in made]
    return {"loads": bench.loads, "forwards": sum(cost.get("forwards", 0) for cost in costs)}


def start_up(*arguments: str, rounds: int = 7) -> float:
    """Median wall-clock seconds of a command from start to exit."""
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
    print("attack", json.dumps({name: round(value, 3) for name, value in attack_seconds().items()}))
    for name, measured in closed_form_seconds().items():
        print(name, json.dumps({key: round(value, 3) for key, value in measured.items()}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["attack"]:
        print(json.dumps(attack_prompts(sys.argv[2], int(sys.argv[3]), sys.argv[4])))
    else:
        main()
