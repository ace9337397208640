"""Benchmark the speed of the harness and write docs/performance.md (`make bench`).

``python scripts/bench.py`` measures every section of the page, ``python scripts/bench.py generation planning`` these sections;
the others keep their text. A figure is a ratio: what is compared runs in turns, in one run on one machine.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
PROTOCOL = {"scheduler": "dpm", "steps": 10, "guidance_scale": 4.0, "size": None}
WORDS = ("church", "house", "car", "cat", "boat", "fish", "tree", "star")


@dataclass(frozen=True)
class Figure:
    """A ratio: the median of several rounds, the lowest and the highest."""

    what: str
    ratio: float
    low: float
    high: float

    @classmethod
    def of(cls, what: str, ratios: Sequence[float]) -> Figure:
        return cls(what, statistics.median(ratios), min(ratios), max(ratios))


@dataclass(frozen=True)
class Section:
    """A part of the page. ``about`` says what is divided by what, ``measure`` returns the figures."""

    title: str
    about: str
    measure: Callable[[], list[Figure]]


@dataclass(frozen=True)
class Measured:
    """The figures of a section, the day, and the machine in words. No figures: not measured yet."""

    figures: Sequence[Figure] = ()
    day: str = ""
    machine: str = ""


HEAD = """# Performance

After reading this page you know how fast overpaint is, compared with what you would write without it. `make bench` measures
every section and writes this page; `python scripts/bench.py NAME` measures one section again. Unless its row says otherwise, a
figure is a ratio of times in one run on one machine: the median of several rounds, with the lowest and the highest. Other
machines have other ratios.
"""


def text_of(measured: Mapping[str, Measured]) -> str:
    """The page with these sections."""
    return "\n".join([HEAD, *(_section(name, measured.get(name, Measured())) for name in SECTIONS)])


def _section(name: str, measured: Measured) -> str:
    section, command = SECTIONS[name], f"`python scripts/bench.py {name}`"
    lines = [f"## {section.title}", "", section.about, ""]
    if not measured.figures:
        return "\n".join([*lines, f"Not measured yet: {command}.", ""])
    rows = [f"| {f.what} | {f.ratio:.3g} | {f.low:.3g} | {f.high:.3g} |" for f in measured.figures]
    said = f"Measured on {measured.day} by {command} on {measured.machine}."
    return "\n".join(
        [*lines, "| figure | ratio | lowest | highest |", "| --- | --- | --- | --- |", *rows, "", said, ""]
    )


def read(text: str) -> dict[str, Measured]:
    """The sections of a page that was written by `text_of`."""
    found = {}
    for name, section in SECTIONS.items():
        body = text.partition(f"## {section.title}\n")[2].partition("\n## ")[0]
        said = re.search(rf"^Measured on (\S+) by `python scripts/bench.py {re.escape(name)}` on (.+)\.$", body, re.M)
        rows = re.findall(r"^\| (.+)" + 3 * r" \| (\d[\d.e+-]*)" + r" \|$", body, re.M)
        figures = [Figure(what, *map(float, numbers)) for what, *numbers in rows]
        found[name] = Measured(figures, said[1], said[2]) if said else Measured()
    return found


def machine() -> str:
    """The processor, its cores, and the versions of what computes; nothing that names a machine."""
    try:
        listed = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        listed = None
    processor = listed[1] if listed else platform.processor() or platform.machine()
    libraries = ", ".join(
        f"{name} {version(name).partition('+')[0]}" for name in ("torch", "diffusers", "transformers")
    )
    return f"{processor} ({os.cpu_count()} cores), Python {platform.python_version()}, {libraries}"


def in_turns(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each work in each round, after one round that is not counted. Other load changes them little."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            start = time.process_time()
            work()
            if number:
                found[name].append(time.process_time() - start)
    return found


def divided(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(above, below, strict=True)]


class Samplers:
    """Functions that make the same images with other code: a loop over the pipeline, and stage *generate* with its files.

    ``made`` holds the pixels of each one's last images. Everything runs in one thread.
    """

    def __init__(self, batch_size: int = 32, batches: int = 2):
        import torch

        torch.set_num_threads(1)
        self.batch_size, self.count = batch_size, batch_size * batches
        self.shots = [[f"a picture of a {WORDS[i % len(WORDS)]}", 1000 + i, None] for i in range(self.count)]
        self.made: dict[str, Any] = {}

    def loop(self, layout: str = "contiguous_format") -> Callable[[], None]:
        """A loop of batches, with the network in this layout of memory; diffusers' own is contiguous."""
        import torch

        from overpaint.models.loading import load_pipeline

        model = load_pipeline("testbed", "float32", "cpu")
        pipeline = model.pipeline
        pipeline.unet.to(memory_format=getattr(torch, layout))
        pipeline.scheduler = model.scheduler(PROTOCOL["scheduler"])
        pipeline.set_progress_bar_config(disable=True)

        def work() -> None:
            images = []
            for start in range(0, self.count, self.batch_size):
                part = self.shots[start : start + self.batch_size]
                images += pipeline(
                    [text for text, _, _ in part],
                    num_inference_steps=PROTOCOL["steps"],
                    guidance_scale=PROTOCOL["guidance_scale"],
                    generator=[torch.Generator().manual_seed(seed) for _, seed, _ in part],
                ).images
            self._keep(f"loop {layout}", images)

        return work

    def stage(self, name: str, precision: str = "float32", **more: object) -> Callable[[], None]:
        """Stage *generate* in this precision, with ``more`` in the task's configuration."""
        from overpaint.images.stages import generate
        from overpaint.images.workbench import Workbench
        from overpaint.models.sources import resolve
        from overpaint.run.tasks import Task

        bench, runtime = Workbench(), {"path": resolve("testbed"), "device": "cpu", "batch_size": self.batch_size}
        config = {"model": "testbed", "precision": precision, "protocol": PROTOCOL, "shots": self.shots, **more}

        def work() -> None:
            with tempfile.TemporaryDirectory() as folder:
                generate.run(Task("generate", config, runtime=runtime), {}, Path(folder), bench)
                self._keep(name, generate.read_images(Path(folder)))

        return work

    def _keep(self, name: str, images: Sequence) -> None:
        import numpy as np

        self.made[name] = np.stack([np.asarray(image, dtype=int) for image in images])

    def differences(self, name: str, what: str, other: str) -> list[Figure]:
        """How far the pixels of two of them are apart, as figures."""
        apart = abs(self.made[name] - self.made[other])
        share = float((apart > 0).mean())
        return [
            Figure.of(f"largest difference of pixel values, of 255: {what}", [float(apart.max())]),
            Figure.of(f"share of pixel values that differ: {what}", [share]),
        ]


def generation(rounds: int = 8) -> list[Figure]:
    """Stage *generate* beside loops over the same pipeline."""
    samplers = Samplers()
    works = {
        "loop": samplers.loop(),
        "channels last": samplers.loop("channels_last"),
        "stage": samplers.stage("stage"),
    }
    seconds = in_turns(works, rounds)
    return [
        Figure.of(
            f"the loop / stage generate ({samplers.count * rounds} images each)",
            divided(seconds["loop"], seconds["stage"]),
        ),
        Figure.of("the loop, channels last / stage generate", divided(seconds["channels last"], seconds["stage"])),
        *samplers.differences("loop channels_last", "the loop with another layout of memory", "loop contiguous_format"),
    ]


def compilation(rounds: int = 4) -> list[Figure]:
    """``engine.compile=true`` and ``model.precision=bfloat16`` beside the loop and the plain stage."""
    samplers = Samplers()
    works = {
        "loop": samplers.loop(),
        "stage": samplers.stage("stage"),
        "compiled": samplers.stage("compiled", compiled=1),
        "bfloat16": samplers.stage("bfloat16", precision="bfloat16"),
    }
    start = time.perf_counter()
    works["compiled"]()
    warm_up = time.perf_counter() - start
    start = time.perf_counter()
    works["stage"]()
    plain = time.perf_counter() - start
    seconds = in_turns(works, rounds)
    print(f"compilation and {samplers.count} images: {warm_up:.0f} s", file=sys.stderr)
    return [
        Figure.of("the loop / engine.compile=true", divided(seconds["loop"], seconds["compiled"])),
        Figure.of("stage generate / engine.compile=true", divided(seconds["stage"], seconds["compiled"])),
        Figure.of("the loop / model.precision=bfloat16", divided(seconds["loop"], seconds["bfloat16"])),
        Figure.of(f"the first {samplers.count} images compiled / the same images plain", [warm_up / plain]),
        *samplers.differences("compiled", "engine.compile=true", "stage"),
        *samplers.differences("bfloat16", "model.precision=bfloat16", "stage"),
    ]


def sharing() -> list[Figure]:
    """Images that the demo's cells ask for, by those that its plan makes."""
    from overpaint.commands.grids import planned

    with tempfile.TemporaryDirectory() as store:
        plan = planned(["experiment=demo", f"store={store}"]).plan.opened()
    work = {task.key: task.amount for task in plan.tasks.values()}
    asked = 0
    for _, measure in plan.cells:
        needed, waiting = set(), [measure.key]
        while waiting:
            task = plan.tasks[waiting.pop()]
            if task.key not in needed:
                needed.add(task.key)
                waiting += task.inputs.values()
        asked += sum(work[key] for key in needed if plan.tasks[key].stage == "generate")
    made = sum(work[task.key] for task in plan.tasks.values() if task.stage == "generate")
    return [Figure.of(f"images that each cell alone would make / the {made} of the demo's grid", [asked / made])]


#: Closed-form erasers, each with its settings.
CLOSED_FORM = {
    "uce current": ("uce", {"variant": "current"}),
    "uce legacy": ("uce", {"variant": "legacy"}),
    "rece": ("rece", {}),
    "speed": ("speed", {}),
}


def closed_form(retained: int = 100) -> list[Figure]:
    """Closed-form edits of random weights with Stable Diffusion 1.4's shape (860 M UNet, 32 key/value matrices)."""
    from build_random_sd import random_pipeline

    import overpaint
    from overpaint.models.diffusion import DiffusionModel
    from overpaint.models.meter import Meter

    model = DiffusionModel(random_pipeline())
    names = [f"concept {first}{second}" for first in "abcdefghijklmno" for second in "abcdefghijklmno"]
    clock = _Encoding(model)
    found = []
    for label, (method, values) in CLOSED_FORM.items():
        total, encode = {}, {}
        for count in (1, 100):
            with Meter("cpu") as before:
                pass
            clock.seconds, start = 0.0, time.perf_counter()
            erasure = overpaint.erase(
                model, method, erase=names[:count], anchor="art", retain=names[100 : 100 + retained], **values
            )
            total[count], encode[count] = time.perf_counter() - start, clock.seconds
            print(
                f"{label}, {count} concept(s), {retained} retained: {encode[count]:.2f} s in the text encoder, "
                f"{total[count] - encode[count]:.2f} s elsewhere, {erasure.artefact_bytes / 1e6:.3g} MB, "
                f"{(erasure.manifest['peak_bytes'] - before.peak_bytes) / 1e9:.2f} GB above the model",
                file=sys.stderr,
            )
        found.append(Figure.of(f"{label}: 100 concepts / 1 concept", [total[100] / total[1]]))
        found.append(
            Figure.of(f"{label}: 100 concepts, all seconds / those in the text encoder", [total[100] / encode[100]])
        )
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


def attack(prompts: int = 20, alone: int = 3) -> list[Figure]:
    """UnlearnDiffAtk (testbed preset, UCE victim): all prompts in one process, and ``alone`` of them in a process each."""
    with tempfile.TemporaryDirectory() as folder:
        stores = [f"{folder}/together", f"{folder}/alone"]
        for store in stores:
            _in_a_process(store, prompts, "none")  # makes the erasure in advance
        together = _in_a_process(stores[0], prompts, "all")
        one_by_one = [_in_a_process(stores[1], prompts, str(n * prompts // alone)) for n in range(alone)]
    ratios = [found["seconds"] * prompts / together["seconds"] for found in one_by_one]
    forwards = [found["forwards"] * prompts / together["forwards"] for found in one_by_one]
    return [
        Figure.of("seconds per prompt: one process per prompt / one process", ratios),
        Figure.of("evaluations of the network per prompt: one process per prompt / one process", forwards),
    ]


def _in_a_process(store: str, prompts: int, which: str) -> dict[str, float]:
    """The result of `attack_prompts` in a separate process, with its wall-clock seconds."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--attack", store, str(prompts), which]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout) | {"seconds": time.perf_counter() - start}


def attack_prompts(store: str, prompts: int, which: str) -> dict[str, float]:
    """Attack none, all or the n-th of the prompts (``which``), like `overpaint run`.

    Returns how often weights were read, and the number of forward passes.
    """
    from overpaint.commands.grids import prepare
    from overpaint.grid.composition import compose_cells
    from overpaint.images.workbench import Workbench
    from overpaint.run.executor import execute
    from overpaint.run.store import MANIFEST

    overrides = ["method=uce", "attack=uda", "concepts=church", f"budget.target_prompts={prompts}", f"store={store}"]
    grid = prepare(compose_cells(overrides))
    plan, place = grid.plan.opened(), grid.store
    place.prepare()
    bench, quiet = Workbench(), SimpleNamespace(noted=lambda *note: None)
    erased = [t for t in plan.tasks.values() if t.stage == "attack" and "erasure" in t.inputs]
    wanted = [t for t in erased if t.config["concept"]["name"] == "church"]
    erase = plan.tasks[wanted[0].inputs["erasure"]]
    if which == "none":
        bundles = [[erase]]
    elif which == "all":
        bundles = [plan.bundles[t.key] for t in wanted if t is plan.bundles[t.key][0]]
    else:
        bundles = [[wanted[int(which)]]]
    made = [task for bundle in bundles for task in execute(bundle, plan.track, place, bench, "cpu", quiet)]
    costs = [json.loads((place.path(t.stage, t.key) / MANIFEST).read_text())["cost"] for t in made]
    return {"loads": bench.loads, "forwards": sum(cost.get("forwards", 0) for cost in costs)}


def processor_seconds(*command: str) -> float:
    """Processor seconds of a Python process with these arguments, its child processes included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def start_up(rounds: int = 7) -> list[Figure]:
    """Commands beside imports of what they would need at least."""
    program, found = ("-m", "overpaint.cli"), {}
    commands = {
        "python": ("-c", "pass"),
        "torch": ("-c", "import torch"),
        "help": (*program, "--help"),
        "list": (*program, "list", "methods"),
    }
    for _ in range(rounds):
        for name, command in commands.items():
            found.setdefault(name, []).append(processor_seconds(*command))
    return [
        Figure.of("overpaint --help / an empty Python program", divided(found["help"], found["python"])),
        Figure.of("overpaint --help / import torch", divided(found["help"], found["torch"])),
        Figure.of("overpaint list methods / import torch", divided(found["list"], found["torch"])),
    ]


#: A program that plans a grid of 50 concept sets, 20 attacks and the settings of a method in its argument.
PLANNING = """
import sys
from overpaint.commands.grids import planned
from overpaint.grid.concepts import load_catalogue

names = [name for name, concept in load_catalogue("testbed").concepts.items() if concept.label][:25]
grid = planned([
    "concepts=inline", f"concepts.erase={','.join(names)}", "concepts.anchor=null,thing",
    "method=uce", "uce.lamb=" + ",".join(f"{n / 10}" for n in range(1, int(sys.argv[1]) + 1)),
    "attack=none,uda,p4d_n,p4d_k,rab,cce,pez,mma,soft_prefix,synonym,paraphrase,multilingual,inversion,relearn,seed_search,"
    "rece_embedding,rab_embedding,p4d_uda,random_prefix,concept_arithmetic", "store=" + sys.argv[2],
])
assert len(grid.plan.cells) == 1000 * int(sys.argv[1])
"""


def planning(rounds: int = 3) -> list[Figure]:
    """Plans of 1,000 and of 100,000 cells, imports included."""
    found: dict[str, list[float]] = {"1": [], "100": [], "torch": []}
    with tempfile.TemporaryDirectory() as store:
        for _ in range(rounds):
            found["torch"].append(processor_seconds("-c", "import torch, diffusers, transformers"))
            for settings in ("1", "100"):
                found[settings].append(processor_seconds("-c", PLANNING, settings, store))
    seconds = statistics.median(found["100"])
    print(f"100,000 cells: {seconds:.1f} processor seconds", file=sys.stderr)
    return [
        Figure.of("plan of 100,000 cells / plan of 1,000 cells", divided(found["100"], found["1"])),
        Figure.of(
            "plan of 100,000 cells / import of torch, diffusers and transformers", divided(found["100"], found["torch"])
        ),
    ]


def workers() -> list[Figure]:
    """A part of the demo's grid in one process, and with a worker a core, each from an empty store."""
    seconds = {}
    for engine in ("inline", "local"):
        with tempfile.TemporaryDirectory() as store:
            grid = ("experiment=demo", "concepts=church", f"engine={engine}", f"store={store}")
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "overpaint.cli", "run", *grid],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            seconds[engine] = time.perf_counter() - start
            print(f"engine={engine}: {seconds[engine]:.0f} s", file=sys.stderr)
    return [Figure.of("engine=inline / engine=local", [seconds["inline"] / seconds["local"]])]


def stores() -> list[Figure]:
    """Commands on a store of 20,000 artefacts, and the look at what is stored, without and with the index."""
    import bench_store

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bench_store.make(root, 4000, 500, 16000)
        measured = bench_store.measure(root)
    return [
        Figure.of(f"{name}: without the index / with it", [before / max(after, 1e-3)])
        for name, (before, after) in measured.items()
    ]


SECTIONS = {
    "generation": Section(
        "Generation",
        "Seconds of a plain loop of batches over the same `StableDiffusionPipeline` (the testbed, 32 images a batch, 10 steps\n"
        "of DPM-Solver++), divided by seconds of overpaint's stage *generate*, which also writes PNG and Parquet: above 1,\n"
        "overpaint is faster. Processor seconds of one thread.",
        generation,
    ),
    "compilation": Section(
        "Compiled networks and half precision",
        "The same images with `engine.compile=true` and with `model.precision=bfloat16`, and what they change and cost.\n"
        "The first images include the compilation, in wall-clock seconds; torch keeps compiled code on disk.",
        compilation,
    ),
    "sharing": Section(
        "Images that are not made twice",
        "Images that a harness would generate if it ran every cell separately, divided by the images of the plan.",
        sharing,
    ),
    "attack": Section(
        "An attack on many prompts",
        "UnlearnDiffAtk on twenty prompts. Official scripts start a process per prompt, which loads the model again.",
        attack,
    ),
    "closed-form": Section(
        "Closed-form erasers",
        "Random float32 weights of Stable Diffusion 1.4's shape, 100 retained concepts. Wall-clock seconds.",
        closed_form,
    ),
    "start-up": Section("Start of commands", "Processor seconds of whole processes.", start_up),
    "planning": Section(
        "Planning",
        "Processor seconds of whole processes that plan settings of a method × 50 concept sets × 20 attacks.",
        planning,
    ),
    "workers": Section(
        "Several workers",
        "Wall-clock seconds of `overpaint run experiment=demo concepts=church` from an empty store: in one process with one\n"
        "thread, divided by those with a worker per CPU core.",
        workers,
    ),
    "stores": Section(
        "Large stores",
        "A store of 20,000 artefacts. Wall-clock seconds before the index of the store is written, divided by those after.",
        stores,
    ),
}


def main(names: Sequence[str]) -> None:
    unknown = set(names) - set(SECTIONS)
    if unknown:
        raise SystemExit(f"unknown section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    for name in names or SECTIONS:
        figures = SECTIONS[name].measure()
        measured = read(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
        measured[name] = Measured(figures, date.today().isoformat(), machine())
        PAGE.write_text(text_of(measured), encoding="utf-8")
        for figure in figures:
            print(f"{figure.what}: {figure.ratio:.3g} [{figure.low:.3g}, {figure.high:.3g}]", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--attack"]:
        print(json.dumps(attack_prompts(sys.argv[2], int(sys.argv[3]), sys.argv[4])))
    else:
        main(sys.argv[1:])
