"""Agreement between prompts and a pipeline's images according to the oracles, and the error rates of the oracles."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from .captions import draw_world
from .oracle import Oracle

THRESHOLD = 0.5
CONCEPT, SYNONYM, PARAPHRASE, UTILITY, IMPLICIT, UNASKED = (
    "concept", "synonym", "paraphrase", "utility", "implicit", "unasked",
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A prompt and the labels that its image should have. `group` is the rate to which it contributes."""

    prompt: str
    group: str
    concept: str
    expects: tuple[str, ...]


def questions(catalogue: dict[str, Any], per_concept: int, per_wording: int) -> Iterator[Question]:
    """Prompts from the concept catalogue: every concept by name, then by synonyms and in other languages."""
    for name, entry in catalogue["concepts"].items():
        kind, label = entry["kind"], (entry["label"],)
        templates = catalogue["templates"][kind]

        def asked(words, language, group, count, label=label, name=name, templates=templates):
            lines = templates[language]
            for turn in range(count):
                yield Question(lines[turn % min(10, len(lines))].format(words), group, name, label)

        yield from asked(_phrase(name, entry), "en", CONCEPT, per_concept)
        for group, words in ((SYNONYM, entry["synonyms"]), (PARAPHRASE, entry["paraphrases"])):
            for word in words:
                yield from asked(_phrase(word, entry), "en", group, -(-per_wording // len(words)))
        for language, words in entry["translations"].items():
            yield from asked(words[0], language, language, per_wording)
    for row in catalogue["utility"]:
        yield from (Question(row["prompt"], UTILITY, "", tuple(row["expects"])) for _ in range(2))
    for prompt in catalogue["implicit"]:
        yield from (Question(prompt, IMPLICIT, "slime", ("slime",)) for _ in range(2))


def _phrase(words: str, entry: dict[str, Any]) -> str:
    if words.split()[0] in ("a", "an", "the") or not entry["article"]:
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@torch.no_grad()
def paint(
    pipeline, prompts: list[str], seed: int, offset: int = 0, steps: int = 20, guidance: float = 4.0, batch: int = 32
):
    """Images of the prompts, uint8 (n, 64, 64, 3). The noise of image i is seeded by (seed, offset + i)."""
    made = []
    for first in range(0, len(prompts), batch):
        part = prompts[first : first + batch]
        noise = [torch.Generator().manual_seed(seed * 1_000_003 + offset + first + i) for i in range(len(part))]
        start = torch.stack([torch.randn(4, 16, 16, generator=generator) for generator in noise])
        out = pipeline(part, latents=start, num_inference_steps=steps, guidance_scale=guidance,
                       height=64, width=64, output_type="np")  # fmt: skip
        made.append((out.images * 255).round().astype(np.uint8))
    return np.concatenate(made)


def agreement(asked: list[Question], probabilities: np.ndarray, labels: list[str]) -> dict[str, Any]:
    """Share of images in which the oracle recognises everything that the prompt asks for, by group and by concept."""
    place = {label: index for index, label in enumerate(labels)}
    hits: dict[str, dict[str, list[float]]] = {}
    unasked: dict[str, list[float]] = {"slime": [], "watermark": []}
    for question, row in zip(asked, probabilities, strict=True):
        seen = np.mean([row[place[label]] > THRESHOLD for label in question.expects])
        hits.setdefault(question.group, {}).setdefault(question.concept, []).append(float(seen))
        for mark, found in unasked.items():
            if question.group == CONCEPT and question.concept != mark:
                found.append(float(row[place[mark]] > THRESHOLD))
    table: dict[str, Any] = {}
    for group, by_concept in hits.items():
        rates = {concept: round(float(np.mean(found)), 3) for concept, found in by_concept.items()}
        n = {concept: len(found) for concept, found in by_concept.items()}
        table[group] = {"mean": round(float(np.mean(list(rates.values()))), 3), "n": min(n.values()), "rates": rates}
    table[UNASKED] = {mark: round(float(np.mean(found)), 3) for mark, found in unasked.items()}
    return table


def oracle_rates(oracle: Oracle, wanted: np.ndarray, pictures: np.ndarray) -> dict[str, Any]:
    """True and false positive rates of each label with their counts, against `wanted` (n, len(labels)) in {0, 1}."""
    seen = oracle.predict(pictures)[0] > THRESHOLD
    rates = {}
    for index, label in enumerate(oracle.labels):
        present = wanted[:, index] > 0
        rates[label] = {
            "tpr": round(float(seen[present, index].mean()), 4) if present.any() else None,
            "fpr": round(float(seen[~present, index].mean()), 4) if (~present).any() else None,
            "n": int(present.sum()),
        }
    right = (seen == (wanted > 0)).mean()
    return {"accuracy": round(float(right), 5), "pictures": len(pictures), "labels": rates}


def world_truth(n: int, seed: int, labels: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Held-out renders, uint8 (n, 64, 64, 3), and their true labels (n, len(labels))."""
    drawn = draw_world(n, seed)
    truth = np.array([[label in scene.labels for label in labels] for scene, _, _ in drawn], np.uint8)
    return np.stack([np.asarray(picture) for _, _, picture in drawn]), truth


def label_kinds(catalogue: dict[str, Any]) -> dict[str, str]:
    """Concept kind of every oracle label. Concepts that the model never saw count as objects."""
    kinds = {entry["label"]: entry["kind"] for entry in catalogue["concepts"].values()}
    return kinds | dict.fromkeys(catalogue["unseen"], "object")


def read_catalogue(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
