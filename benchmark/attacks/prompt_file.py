"""Replay: anybody's adversarial prompts, from a CSV, on any victim.

Published lists (I2P, UnlearnDiffAtk, P4D, Ring-A-Bell, MMA) and what `overpaint export attack=…` writes are read alike,
with their own seeds and guidance scales. A list that was made against one victim and is replayed on another measures
transfer.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from overpaint.attacks.attack import Assault, Attack, AttackContext
from overpaint.attacks.stored import read_assault
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Concept
from overpaint.grid.prompts import Prompt, Shot, read_prompts
from overpaint.grid.registry import component
from overpaint.run.store import MANIFEST


@dataclass(kw_only=True)
class PromptFile(Attack):
    """The first ``most`` prompts of ``file`` (``None``: all), one image each."""

    file: str | None
    most: int | None

    def __post_init__(self):
        at_least(1, most=1 if self.most is None else self.most)

    def images_for(self, concept: Concept, shots: Sequence[Shot]) -> int:
        """As many as the list has of one plain prompt, shared out over that prompt's shots."""
        listed, asked = (
            Counter(prompt.noise for prompt in own) for own in (self.prompts(concept), (s.prompt for s in shots))
        )
        return ceil(max(listed.values()) / max(asked.values(), default=1))

    def run(self, context: AttackContext) -> Assault:
        return Assault([Shot(replace(prompt, variant="replay"), 0) for prompt in self.prompts(context.concept)])

    def prompts(self, concept: Concept) -> list[Prompt]:
        if self.file is None:
            raise UserError("attack=replay needs attack.file=FILE.csv, a list with a 'prompt' column")
        label = concept.label or concept.name
        return read_prompts(self.file, "attacked", label, (label,))[: self.most]


def write_prompts(target: Path, folders: Iterable[Path]) -> int:
    """Write what stored attacks settled on, one row a prompt and seed, with where it comes from; returns the rows.

    Of an attack that searches with pictures of its own the last one of a plain image is taken, and whether its judge saw
    the concept there; of one whose prompts do not build on each other (`RandomPrefix`) all are.
    """
    rows = []
    for folder in folders:
        config = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["config"]
        assault, attack = read_assault(folder), component("attack", config["attack"]).load()
        if not attack.worded:
            raise UserError(f"attack={config['attack']} makes its pictures with more than words: no list can hold them")
        verdicts, searched = [p.verdict for p in assault.painted] or [None] * len(assault.shots), attack.paints
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
