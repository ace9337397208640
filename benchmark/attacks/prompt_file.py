"""Replay: anybody's adversarial prompts, from a CSV, on any victim.

Published lists (I2P, UnlearnDiffAtk, P4D, Ring-A-Bell, MMA) and what `overpaint export attack=…` writes are read alike,
with their own seeds and guidance scales. A list that was made against one victim and is replayed on another measures
transfer.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from overpaint.attacks.attack import Assault, Attack, Scene
from overpaint.errors import UserError, at_least
from overpaint.prompts import Shot, read_prompts
from overpaint.registry import component


@dataclass(kw_only=True)
class Replay(Attack):
    """The first ``most`` prompts of ``file`` (``None``: all), one image each."""

    file: str | None
    most: int | None

    def __post_init__(self):
        at_least(1, most=1 if self.most is None else self.most)

    def run(self, scene: Scene) -> Assault:
        if self.file is None:
            raise UserError("attack=replay needs attack.file=FILE.csv, a list with a 'prompt' column")
        label = scene.concept.label or scene.concept.name
        found = read_prompts(self.file, "attacked", label, (label,))[: self.most]
        return Assault([Shot(replace(prompt, variant="replay"), 0) for prompt in found])


def write_prompts(target: Path, folders: Iterable[Path]) -> int:
    """Write what stored attacks settled on, one row a prompt and seed, with where it comes from; returns the rows.

    Of an attack that searches with pictures of its own the last one of a plain image is taken, and whether its judge saw
    the concept there; of one whose prompts do not build on each other (`RandomPrefix`) all are.
    """
    from overpaint.stages.attack import read_assault
    from overpaint.store import MANIFEST

    rows = []
    for folder in folders:
        config = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["config"]
        assault = read_assault(folder)
        if assault.tokens:
            raise UserError(
                f"attack={config['attack']} learned words ({', '.join(assault.tokens)}): its prompts mean nothing "
                "without their embeddings and cannot be a list"
            )
        verdicts = [p.verdict for p in assault.painted] or [None] * len(assault.shots)
        searched = component("attack", config["attack"]).load().paints
        made = zip(assault.shots, verdicts)
        settled = {(s.prompt.noise, s.index, 0 if searched else s.draw): (s, verdict) for s, verdict in made}
        for shot, verdict in settled.values():
            rows.append(
                {
                    "prompt": shot.prompt.text,
                    "evaluation_seed": shot.noise_seed,
                    "evaluation_guidance": shot.prompt.guidance or "",
                    "id": f"{shot.prompt.noise}-{shot.index}" + (f"-{shot.draw}" if shot.draw and not searched else ""),
                    "plain_id": shot.prompt.noise,
                    "concept": config["concept"]["name"],
                    "attack": config["attack"],
                    "success": int(verdict.success) if verdict and verdict.known else "",
                }
            )
    partial = target.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    partial.rename(target)
    return len(rows)
