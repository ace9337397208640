"""Stage *latency*: how much slower an image is with the erasure, measured in pairs that alternate with the unedited model.

Pairs cancel what else the machine does. The interval from the smallest to the largest of six ratios covers the median with
probability 1 − 2 · 0.5⁶ = 96.9 %, whatever their distribution.
"""

from __future__ import annotations

import json
import time

from overpaint.models.erasure import load_erasure
from overpaint.run.progress import steps

PAIRS = 6
#: Images of one measurement: enough for a batch, few enough to be quick.
IMAGES = 4
PROMPT = "a photo of a tree"


def run(task, inputs, folder, bench) -> dict:
    """``latency.json``: the ``ratios``. Changed weights run the same computation: their ratio is 1 and is not measured."""
    ratios = []
    if any(part.kind != "delta" for part in load_erasure(inputs["erasure"] / "erasure.safetensors").sequence):
        with bench.victim(task.config, task.runtime, inputs["erasure"]) as victim:
            _seconds(victim, task)  # the first call of a process pays for its warm-up
            for number in steps(PAIRS, "pairs"):
                with bench.unedited() as model:
                    before = _seconds(model, task) if number % 2 else 0.0
                edited = _seconds(victim, task)
                with bench.unedited() as model:
                    before = before or _seconds(model, task)
                ratios.append(edited / before)
    (folder / "latency.json").write_text(json.dumps({"ratios": ratios}), encoding="utf-8")
    return {}


def _seconds(model, task) -> float:
    protocol, count = task.config["protocol"], min(IMAGES, task.runtime["batch_size"])
    start = time.perf_counter()
    model.sample(
        [PROMPT] * count,
        range(count),
        steps=protocol["steps"],
        guidance_scale=protocol["guidance_scale"],
        scheduler=protocol["scheduler"],
        size=protocol["size"],
        batch_size=count,
        keep_failed=True,
    )
    return time.perf_counter() - start
