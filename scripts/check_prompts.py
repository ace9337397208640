"""Measure whether the unedited testbed paints what the catalogue's sentences ask for.

    python scripts/check_prompts.py --out datasets/testbed/prompts.csv --first 24    # the figures of the testbed's card
    python scripts/check_prompts.py --out new.csv --kinds object,style --first 50    # target templates 51, 52, … of two kinds

Each target template of a kind is filled with all concepts of that kind, each sentence for ordinary prompts with all concepts of
its kinds. Images use the testbed's protocol. Their noise has seed indices that no budget reaches. Oracle *a* scores them.
``agreement`` is the share of the requested labels that it sees.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from overpaint.grid.composition import compose_cells
from overpaint.grid.concepts import Catalogue, load_catalogue
from overpaint.grid.prompts import Prompt, Shot
from overpaint.grid.registry import component
from overpaint.models import load_model

#: Images per target template and per sentence for ordinary prompts, approximately: they are spread evenly over the concepts.
IMAGES, ORDINARY_IMAGES = 24, 16
#: First seed index.
FRESH = 1000
THRESHOLD = 0.5
ORDINARY = "utility"


class Question(NamedTuple):
    """An image to make: its sentence, and its shot with the labels that it asks for."""

    group: str
    sentence: str
    shot: Shot


def questions(catalogue: Catalogue, kinds: list[str], first: int) -> Iterator[Question]:
    """Questions about the target templates of some kinds from number ``first`` on, and about ordinary sentences."""
    for kind in kinds:
        concepts = catalogue.of_kind(kind)
        for line in catalogue.templates.get(kind, {}).get("en", ())[first:]:
            for concept in concepts:
                yield from _asked(kind, line, line.format(concept.phrase), [concept.label], IMAGES / len(concepts))
    if ORDINARY in kinds:
        for row in catalogue.utility_templates:
            also = row.get("expects", [])
            concepts = [c for c in catalogue.of_kind(*row["kinds"]) if c.label not in also]
            for concept in concepts:
                text = row["prompt"].format(concept.phrase, name=concept.name)
                yield from _asked(
                    ORDINARY, row["prompt"], text, [concept.label, *also], ORDINARY_IMAGES / len(concepts)
                )


def _asked(group: str, sentence: str, text: str, expects: list, images: float) -> Iterator[Question]:
    prompt = Prompt(text, group, expects=tuple(expects))
    yield from (Question(group, sentence, Shot(prompt, FRESH + i)) for i in range(max(1, round(images))))


def agreement(asked: list[Question]) -> Iterator[tuple[str, str, int, float]]:
    """Group, sentence, number of images and agreement of each sentence, in order."""
    protocol = compose_cells(["method=none", "concepts=church", "attack=none"])[0].config["protocol"]
    how = {key: protocol[key] for key in ("scheduler", "steps", "guidance_scale", "batch_size")}
    model, detector = load_model("testbed"), component("detector", "oracle").build()
    sentences: dict[tuple[str, str], list[Question]] = {}
    for question in asked:
        sentences.setdefault((question.group, question.sentence), []).append(question)
    for (group, sentence), part in sentences.items():
        images = model.sample([q.shot.prompt.text for q in part], [q.shot.noise_seed for q in part], **how)
        scores = detector.score(images)
        seen = [
            float(row[label] >= THRESHOLD) for q, (_, row) in zip(part, scores.iterrows(), strict=True)
            for label in q.shot.prompt.expects
        ]  # fmt: skip
        yield group, sentence, len(part), sum(seen) / len(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="CSV to write")
    parser.add_argument("--kinds", help=f"comma-separated kinds of concepts, and {ORDINARY} (default: all)")
    parser.add_argument("--first", type=int, default=0, help="leave out this many templates of each kind")
    given = parser.parse_args()
    catalogue = load_catalogue("testbed")
    kinds = given.kinds.split(",") if given.kinds else [*catalogue.templates, ORDINARY]
    with given.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("kind", "sentence", "images", "agreement"))
        for group, sentence, count, share in agreement(list(questions(catalogue, kinds, given.first))):
            writer.writerow((group, sentence, count, f"{share:.3f}"))
            file.flush()


if __name__ == "__main__":
    main()
