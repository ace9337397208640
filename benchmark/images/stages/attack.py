"""Stage *attack*: an attack searches for inputs with which the victim generates the concept.

The artefact holds the shots, token embeddings and images that the attack found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from overpaint.attacks.attack import COMPARISONS, NOT_GIVEN, Assault, AttackContext, Verdict
from overpaint.attacks.stored import write_assault
from overpaint.attacks.wording import ordinary_texts
from overpaint.grid.choices import Choice
from overpaint.grid.concepts import Catalogue, Concept, stored_concept
from overpaint.grid.prompts import Shot
from overpaint.images.returned import checked_assault, fewer_shots
from overpaint.images.stages.generate import erasure_cost, read_images, write_images
from overpaint.images.stages.score import scores
from overpaint.images.task_parts import check_content
from overpaint.images.tasks import build_attack

if TYPE_CHECKING:
    import torch


def run(task, inputs, folder, bench) -> dict:
    """Run one attack task; see `run_together`."""
    return run_together([task], inputs, [folder], bench)[0]


def run_together(tasks: Sequence, inputs: Mapping[str, Path], folders: Sequence[Path], bench) -> list[dict]:
    """Run tasks that differ in their shots only as one batch, with one output folder each.

    The elapsed seconds are divided equally between the tasks.
    """
    config, runtime = tasks[0].config, tasks[0].runtime
    check_content("attack", config)
    attack = build_attack(Choice(config["attack"], None, config["hyperparameters"]), config["seed"])
    with bench.victim(config, runtime, inputs.get("erasure"), f"attack={config['attack']}") as victim:
        attack.check_family(victim.family, config["attack"])
        contexts = [_context(task, inputs, bench, victim) for task in tasks]
        start = time.perf_counter()
        assaults = attack.run_together(contexts)
        seconds = (time.perf_counter() - start) / len(tasks)
        for assault in assaults:
            checked_assault(assault, f"attack={config['attack']}")
        notes = [_note(attack, context, assault) for context, assault in zip(contexts, assaults, strict=True)]
    for assault, folder in zip(assaults, folders, strict=True):
        assault.ledger.seconds = seconds
        assault.ledger.images = sum(shot.prompt.role not in COMPARISONS for shot in assault.shots)
        write_assault(folder, assault)
        if assault.painted:
            rows = [{"prompt": p.shot.prompt.text, "noise_seed": p.shot.noise_seed} for p in assault.painted]
            write_images(folder, [p.image for p in assault.painted], rows)
    return [
        {"cost": assault.ledger.as_dict()} | erasure_cost(inputs) | note
        for assault, note in zip(assaults, notes, strict=True)
    ]


def _note(attack, context: AttackContext, assault: Assault) -> dict[str, str]:
    """A manifest note with the numbers of truncated prompts and of missing shots; empty if there are none."""
    truncated, known = attack.shortened(context), len({shot.prompt.text for shot in context.shots})
    note = f"{truncated} of {known} prompts were truncated to the model's {context.victim.tokens} tokens"
    notes = [note] if truncated else []
    notes += filter(None, [fewer_shots(assault.shots, context.shots)])
    return {"note": "; ".join(notes)} if notes else {}


def _context(task, inputs: Mapping[str, Path], bench, victim) -> AttackContext:
    """What one task's attack gets to work with."""
    config = task.config
    protocol, concept = config.get("protocol", {}), stored_concept(config["concept"])

    def paint(
        texts: Sequence[str],
        seeds: Sequence[int],
        embeds: torch.Tensor | None = None,
        guidance: float | None = None,
        worded: bool = True,
    ) -> list[Image.Image | None]:
        return victim.sample(
            texts,
            seeds,
            embeds=embeds,
            worded=worded,
            steps=protocol["steps"],
            guidance_scale=guidance or protocol["guidance_scale"],
            scheduler=protocol["scheduler"],
            size=protocol["size"],
            batch_size=task.runtime["batch_size"],
            keep_failed=True,
        )

    judge, features = _judge(config, concept, bench, task.runtime.get("device")) if "judge" in config else (None, None)
    return AttackContext(
        concept,
        [Shot.from_dict(s) for s in config["shots"]],
        Catalogue(templates=config["templates"]),
        victim,
        examples=lambda n: _examples(config, concept, inputs, n, bench),
        ordinary=lambda n: _ordinary(config, concept, n, bench, paint),
        unedited=bench.unedited,
        adapted=bench.adapted,
        paint=paint if protocol else NOT_GIVEN,
        judge=judge,
        features=features,
        protocol=protocol,
        batch_size=task.runtime["batch_size"],
    )


def _judge(
    config: Mapping, concept: Concept, bench, device: str | None
) -> tuple[Callable[[Sequence], list[Verdict]] | None, Callable[[Sequence], torch.Tensor] | None]:
    """Functions from images to the detector's verdicts on one concept and to its features (n, d).

    Each is ``None`` if the detector has no such output; one gray image is scored to see which it has. If the detector fails
    on an image, or the image itself failed, the verdict is "not seen" with ``known`` false.
    """
    import torch

    settings, label = config["judge"], concept.label or concept.name
    detector = bench.detector(settings["detector"], settings["settings"], device)
    columns = scores(detector, [Image.new("RGB", (64, 64), "gray")], settings["detector"])

    def judge(images: Sequence) -> list[Verdict]:
        seen = scores(detector, images, settings["detector"])[label]
        return [
            Verdict(known and bool(score >= settings["threshold"]), float(score), known)
            for score, known in zip(seen.fillna(0.0), seen.notna().tolist(), strict=True)
        ]

    def features(images: Sequence) -> torch.Tensor:
        return torch.tensor(scores(detector, images, settings["detector"])["features"].tolist())

    return (judge if label in columns else None), (features if "features" in columns else None)


def _examples(config: Mapping, concept: Concept, inputs: Mapping[str, Path], count: int, bench) -> list[Image.Image]:
    """Example images of the concept: from the model's picture source, or generated by the unedited model."""
    if config.get("examples"):
        return bench.pictures(config["examples"]).examples(concept, count, config["seed"])
    found = [image for name in sorted(inputs) if name.startswith("examples") for image in read_images(inputs[name])]
    return [image for image in found if image is not None][:count]


def _ordinary(config: Mapping, concept: Concept, count: int, bench, paint) -> list[tuple]:
    """Images without the concept, with captions: from the model's picture source, or generated by the unedited model."""
    if config.get("examples"):
        return bench.pictures(config["examples"]).ordinary(concept, count, config["seed"])
    texts = ordinary_texts(concept, count)
    with bench.unedited():
        images = paint(texts, [config["seed"] + n for n in range(count)])
    return [(image, text) for image, text in zip(images, texts, strict=True) if image is not None]
