"""Stage *latency*: ratio of sampling times with and without the erasure, measured in pairs of runs.

Pairs cancel slow changes in the load of the machine. For any distribution, the interval from the smallest to the largest of
six independent ratios covers the median with probability 1 − 2 · 0.5⁶ = 96.9 %.
"""

from __future__ import annotations

import json
import time

from overpaint.models.erasure import load_erasure
from overpaint.run.progress import steps

PAIRS = 6
#: Images per measurement. Their number does not depend on ``protocol.batch_size``, which keys do not contain.
IMAGES = 4
PROMPT = "a photo of a tree"


def run(task, inputs, folder, bench) -> dict:
    """Write the ``ratios`` to ``latency.json``.

    The list is empty for an erasure that only changes weights: the computation is the same, so the ratio counts as 1.
    """
    ratios = []
    if any(part.kind != "delta" for part in load_erasure(inputs["erasure"] / "erasure.safetensors").sequence):
        with bench.victim(task.config, task.runtime, inputs["erasure"]) as victim:
            _seconds(victim, task)  # warm-up: the first call of a process is slower
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
    protocol = task.config["protocol"]
    start = time.perf_counter()
    model.sample(
        [PROMPT] * IMAGES,
        range(IMAGES),
        steps=protocol["steps"],
        guidance_scale=protocol["guidance_scale"],
        scheduler=protocol["scheduler"],
        size=protocol["size"],
        batch_size=min(IMAGES, task.runtime["batch_size"]),
        keep_failed=True,
    )
    return time.perf_counter() - start
