"""Prompt files: adversarial prompts from a CSV, on any victim.

Published lists (I2P, UnlearnDiffAtk, P4D, Ring-A-Bell, MMA) and the output of `overpaint export attack=…` are read in
the same way, with their own seeds and guidance scales. A list that was found on one victim measures transfer on
another.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError

from overpaint.attacks.attack import Assault, Attack, AttackContext
from overpaint.attacks.stored import read_assault
from overpaint.errors import AssetMissing, UserError, at_least
from overpaint.grid.concepts import Concept
from overpaint.grid.prompt_files import read_prompts
from overpaint.grid.prompts import Prompt, Shot
from overpaint.grid.registry import component
from overpaint.run.store import MANIFEST


@dataclass(kw_only=True)
class PromptFile(Attack):
    """The first ``most`` prompts of ``file`` (``None``: all of them), one image each."""

    file: str | None
    most: int | None

    draws: ClassVar[bool] = False
    lengths: ClassVar[tuple[str, ...]] = ("most",)
    endless: ClassVar[tuple[str, ...]] = ("most",)

    def __post_init__(self):
        at_least(1, most=self.most)

    def images_for(self, concept: Concept, shots: Sequence[Shot]) -> int:
        """The most rows that the list has for one plain prompt, divided by the number of that prompt's shots."""
        listed, asked = (
            Counter(prompt.noise for prompt in own) for own in (self.prompts(concept), (s.prompt for s in shots))
        )
        return ceil(max(listed.values()) / max(asked.values(), default=1))

    def run(self, context: AttackContext) -> Assault:
        return Assault(
            [Shot(replace(prompt, variant=prompt.variant or "replay"), 0) for prompt in self.prompts(context.concept)]
        )

    def prompts(self, concept: Concept) -> list[Prompt]:
        """The first ``most`` prompts of the file: those about the concept, if it has any. Raises a `UserError` without a file."""
        if self.file is None:
            raise UserError(
                "attack=replay needs a list of prompts: set attack.file=FILE.csv, a CSV with a 'prompt' column"
            )
        label = concept.label or concept.name
        try:
            read = read_prompts(self.file, "attacked", label, (label,), about=(concept.name, label))
            return read[: self.most]
        except AssetMissing:  # a plan counts `most` prompts; a run is refused before it starts
            return [Prompt(f"row {n} of {self.file}", "attacked", label, (label,)) for n in range(self.most or 1)]


def write_prompts(target: Path, folders: Iterable[Path]) -> int:
    """Write the prompts that stored attacks found to a CSV, one row for each prompt and seed, and return the number of
    rows.

    ``folders`` are stored assaults (`overpaint.attacks.stored`). An attack that generates its own images contributes
    the last prompt of each plain image, and whether the judge saw the concept there. An attack whose prompts are
    independent (`RandomPrefix`) contributes all of them. Raises `UserError` if the images of an attack do not come from
    texts.
    """
    rows = [row for folder in folders for row in _rows(folder)]
    if not rows:
        raise UserError("the stored attacks hold no prompts")
    with target.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


def _rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of one stored assault."""
    try:
        config = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["config"]
        name, concept, assault = str(config["attack"]), str(config["concept"]["name"]), read_assault(folder)
        attack: type[Attack] = component("attack", name).load()
        if not attack.worded:
            raise UserError(f"attack={name} cannot be exported: its images do not come from prompts alone")
        if not all(isinstance(text, str) for s in assault.shots for text in (s.prompt.text, s.prompt.noise)):
            raise TypeError("a prompt is not text")
        verdicts, searched = [p.verdict for p in assault.painted] or [None] * len(assault.shots), attack.paints
        if not all(verdict is None or isinstance(verdict.success, bool) for verdict in verdicts):
            raise TypeError("a verdict is not true or false")
        made = zip(assault.shots, verdicts, strict=True)
        settled = {(s.prompt.noise, s.index, 0 if searched else s.draw): (s, verdict) for s, verdict in made}
        return [
            {
                "prompt": shot.prompt.text,
                "evaluation_seed": shot.noise_seed,
                "evaluation_guidance": shot.prompt.guidance or "",
                "width": shot.prompt.size[0] if shot.prompt.size else "",
                "height": shot.prompt.size[1] if shot.prompt.size else "",
                "id": f"{shot.prompt.noise}-{shot.index}" + (f"-{shot.draw}" if shot.draw and not searched else ""),
                "plain_id": shot.prompt.noise,
                "concept": concept,
                "attack": name,
                "success": int(verdict.success) if verdict and verdict.known else "",
            }
            for shot, verdict in settled.values()
        ]
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError, SafetensorError) as error:
        raise UserError(f"the stored attack {folder} cannot be read ({type(error).__name__}: {error})") from error
