"""Stage *attack*: an attack looks for a way back through the victim; its shots and learned words are the artefact."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from overpaint.concepts import Catalogue, stored_concept
from overpaint.prompts import Shot


def run(task, inputs, folder, bench) -> dict:
    from safetensors.torch import save_file

    from overpaint.attacks.attack import Scene
    from overpaint.cells import Choice
    from overpaint.planning import build_attack

    config = task.config
    attack = build_attack(Choice(config["attack"], None, config["hyperparameters"]), config["seed"])
    concept = stored_concept(config["concept"])
    shots = [Shot.from_dict(s) for s in config["shots"]]
    with bench.victim(config, task.runtime, inputs.get("erasure")) as victim:
        words = Catalogue(templates=config["templates"])
        scene = Scene(concept, shots, words, victim, lambda n: _examples(config, concept, inputs, n))
        start = time.perf_counter()
        assault = attack.run(scene)
        assault.ledger.seconds = time.perf_counter() - start
    assault.ledger.images = len(assault.shots)
    (folder / "shots.json").write_text(json.dumps([s.as_dict() for s in assault.shots]), encoding="utf-8")
    save_file({k: v.detach().contiguous().cpu() for k, v in assault.tokens.items()}, folder / "tokens.safetensors")
    return {"cost": assault.ledger.as_dict()}


def read_assault(folder: Path) -> tuple[list[Shot], dict]:
    """The shots and learned words that an attack left in its folder."""
    from safetensors.torch import load_file

    shots = [Shot.from_dict(s) for s in json.loads((folder / "shots.json").read_text(encoding="utf-8"))]
    return shots, load_file(folder / "tokens.safetensors")


def _examples(config: Mapping, concept, inputs: Mapping[str, Path], count: int) -> Sequence:
    """Pictures of the concept: drawn by the world's renderer, or made by the unedited model."""
    if config.get("examples") == "world":
        from overpaint.testbed.world import draw_concept

        return draw_concept(concept.label or concept.name, count, seed=config["seed"] + 1)
    from overpaint.stages.generate import read_images

    found = [image for name in sorted(inputs) if name.startswith("examples") for image in read_images(inputs[name])]
    return found[:count]
