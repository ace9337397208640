"""The track of text-to-image models."""

from __future__ import annotations

import gc
import os
import platform
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any

from overpaint.errors import UserError, message, unknown
from overpaint.grid.assets import referred
from overpaint.grid.cells import Cell, cell_from
from overpaint.grid.labels import counted
from overpaint.grid.roles import role_shots
from overpaint.images.contact_sheets import contact_sheets
from overpaint.images.extractions import extractor_names, extractor_settings
from overpaint.images.gallery import makers
from overpaint.images.planner import make_plan
from overpaint.images.tasks import cell_assets, cell_networks, hub_names
from overpaint.images.workbench import Workbench
from overpaint.models.sources import has_network, hub_network, hub_snapshot, image_size, local_folder, resolve
from overpaint.report.power import (
    BETWEEN_ERASERS,
    WITHIN_PROMPT,
    largest_share_shown_equal,
    smallest_detectable_difference,
)
from overpaint.report.statistics import MARGIN
from overpaint.report.views import view_named
from overpaint.run.plan import Plan
from overpaint.run.store import Store
from overpaint.run.tasks import Task
from overpaint.run.track import Track

#: Names of devices on which every method and attack runs. Closed forms need float64, which MPS lacks.
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
#: Where Linux describes the CPU.
CPUINFO = Path("/proc/cpuinfo")
#: Stages of almost every grid.
STAGES = ("attack", "erase", "generate", "measure", "score")


class Images(Track):
    """Erase, attack, generate, score, measure; every stage computes with torch."""

    slow_modules = (
        "overpaint.models.loading",
        "overpaint.models.schedulers",
        *(f"overpaint.images.stages.{name}" for name in STAGES),
    )

    def cell(self, config: Mapping[str, Any], explicit: frozenset[str]) -> Cell:
        return cell_from(config, explicit)

    def assets(self, cells: Iterable[Cell]) -> list[str]:
        return list(dict.fromkeys(name for cell in cells for name in cell_assets(cell)))

    def optional_assets(self, cells: Iterable[Cell]) -> list[str]:
        return referred([extractor_settings(name) for name in _extractors(cells)])

    def models(self, cells: Iterable[Cell]) -> Mapping[str, Callable[[], Path]]:
        cells = list(cells)
        paths = {resolve(path): path for path in dict.fromkeys(cell.model.path for cell in cells)}
        missing = [path for source, path in paths.items() if not Path(source).is_dir() and hub_snapshot(source) is None]
        named = hub_names(extractor_settings(name).get("weights") for name in _extractors(cells))
        named += [name for cell in cells for name in cell_networks(cell)]
        further = {name: partial(hub_network, name) for name in dict.fromkeys(named) if not has_network(name)}
        return further | {path: partial(local_folder, path) for path in missing}

    def plan(self, cells: Iterable[Cell]) -> Plan:
        return make_plan(cells)

    def bench(self) -> Workbench:
        return Workbench()

    def check_name(self, device: str) -> None:
        if not DEVICE.fullmatch(device):
            raise unknown("engine.device", device, ["auto", "cpu", "cuda", "cuda:0"])

    def devices(self, asked: str) -> list[str]:
        import torch

        self.check_name(asked)
        if asked == "auto":
            asked = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.empty(0, device=asked)
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
            reason = str(error).splitlines()[0]
            raise UserError(f"engine.device={asked} is not a device of this machine: {reason}") from None
        return [f"cuda:{n}" for n in range(torch.cuda.device_count())] if asked == "cuda" else [asked]

    def check_compiler(self) -> None:
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as torch chooses it
        if not shutil.which(compiler):
            raise UserError(f"engine.compile=true needs a C++ compiler, and this machine has no {compiler}")

    def probe(self, device: str) -> None:
        """CUDA repeats an error that has broken the process's context, such as an illegal memory access, at every call."""
        import torch

        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    def make_room(self, error: BaseException, bench: Workbench) -> bool:
        """Drop detectors and extractors, which a process keeps from task to task, if memory ran out beside them."""
        import torch

        if not _memory_ran_out(error) or not bench.drop_networks():
            return False
        traceback.clear_frames(error.__traceback__)  # which hold tensors of the task
        gc.collect()
        torch.cuda.empty_cache()
        return True

    def advice(self, error: BaseException, task: Task, device: str) -> str | None:
        """What to do if a device ran out of memory."""
        if not _memory_ran_out(error):
            return None
        now = f" (now {task.runtime['batch_size']})" if "batch_size" in task.runtime else ""
        return (
            f"{self.processor(device)} ran out of memory: set a smaller protocol.batch_size{now} or "
            "model.precision=bfloat16, and run the same command again; what is stored is kept"
        )

    def hardware(self, device: str) -> str:
        import torch

        return torch.cuda.get_device_name(device) if device.startswith("cuda") else super().hardware(device)

    def machine(self, device: str) -> str:
        """The graphics card's name, or the CPU's architecture, vector instructions and model."""
        import torch

        if device.startswith("cuda"):
            return self.hardware(device)
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {cpu_model()}"

    def power(self, cells: Sequence[Cell]) -> list[str]:
        """What the tests can show at the actual number of prompts: the smallest paired difference, and equality."""
        return list(dict.fromkeys([*_power_of_primary_tests(cells), *_power_of_verdicts(cells)]))

    def standard_images(self, tasks: Iterable[Task]) -> float:
        """An image counts by its steps and pixels; without a given size, one of a model that is not on this machine has 512²."""
        work = 0.0
        for task in tasks:
            protocol, rows = task.config["protocol"], task.config["shots"] or ()
            native = (protocol["size"] or image_size(task.runtime["path"]) or 512) ** 2
            pixels = [prod(size[0]) if size else native for _, _, _, *size in rows] or [native * task.amount]
            work += sum(pixels) / 512**2 * protocol["steps"] / 50
        return work

    def images(self, plan: Plan) -> list[Task]:
        return makers(plan)

    def sheets(self, plan: Plan, store: Store, folder: Path) -> list[Path]:
        return contact_sheets(plan, store, folder)

    def settle(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)


def _memory_ran_out(error: BaseException) -> bool:
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in message(error)


@cache
def cpu_model() -> str:
    """The CPU's model as Linux names and numbers it, such as ``Intel(R) Xeon(R) Processor (207)``; elsewhere Python's name."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.is_file() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" not in found:
        return platform.processor() or "unknown CPU"
    return f"{found['model name']} ({found['model']})" if "model" in found else found["model name"]


def _extractors(cells: Iterable[Cell]) -> list[str]:
    """The extractors of all cells, by name."""
    return list(dict.fromkeys(name for cell in cells for name in extractor_names(cell).values() if name))


def _power_of_primary_tests(cells: Sequence[Cell]) -> Iterator[str]:
    """A sentence for each concept set and budget whose figures include primary endpoints of view ``facets``."""
    attacks = {cell.attack.label for cell in cells if cell.attack.control}
    endpoints = view_named("facets").primary
    for cell in {(id(cell.concepts), id(cell.budget), id(cell.metrics)): cell for cell in cells}.values():
        facets = [facet for facet, endpoint in endpoints.items() if endpoint["metric"] in cell.metrics.metrics]
        tests = sum(len(attacks) if facet == "robustness" else 1 for facet in facets)
        if tests:
            shots = role_shots("target", cell.concepts, cell.budget)
            prompts, seeds = len({shot.prompt.id for shot in shots}), cell.budget.seeds
            yield (
                f"{cell.labels['concepts']}, budget {cell.labels['budget']}: {counted(prompts, 'target prompt')} × "
                f"{counted(seeds, 'image')} {_shown(prompts, seeds, tests, tests)} "
                f"(80 % power, 5 % level, Holm over {counted(tests, 'primary test')})"
            )


def _power_of_verdicts(cells: Sequence[Cell]) -> Iterator[str]:
    """A sentence for view ``chance_tests``, if its figure is measured: all erasers and concept sets count together."""
    chosen = [c for c in cells if "attack_beyond_chance" in c.metrics.metrics and c.method.name != "none"]
    attacks = {cell.attack.label for cell in chosen} - {"none"}
    if not attacks:
        return
    erasers = len({cell.labels["method"] for cell in chosen})
    sets = {id(cell.concepts): cell for cell in chosen}.values()
    prompts = sum(len({shot.prompt.id for shot in role_shots("target", cell.concepts, cell.budget)}) for cell in sets)
    yield (
        f"attack_beyond_chance, all together: {counted(prompts, 'target prompt')} × {counted(erasers, 'eraser')} "
        f"{_shown(prompts, erasers, len(attacks), 1, BETWEEN_ERASERS)} (80 % power, 5 % level, differences by Holm over "
        f"{counted(len(attacks), 'attack')}; view chance_tests)"
    )


def _shown(prompts: int, seeds: int, tests: int, equality_tests: int, correlation: float = WITHIN_PROMPT) -> str:
    smallest = smallest_detectable_difference(prompts, seeds, tests, within_prompt=correlation)
    found = "no paired difference" if smallest is None else f"a paired difference of about {smallest:.2f}"
    alike = largest_share_shown_equal(prompts, seeds, equality_tests, correlation)
    equal = (
        f"cannot show equality within {MARGIN:.2f}"
        if alike is None
        else f"show equality within {MARGIN:.2f} if at most {alike:.1%} of the pairs differ"
    )
    return f"detect {found} and {equal}"
