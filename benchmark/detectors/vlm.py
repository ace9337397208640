"""A vision-language model that is asked whether an image shows a concept, as HUB judges styles and characters.

Any transformers model of the class image-text-to-text serves. It sees up to three reference images of the concept, if there are
any, and the image in question. It reasons and ends with one word on a line of its own: ``yes``, ``no``, ``idk`` or ``wrong`` (the
references do not show the concept). Only ``yes`` counts as present. Decoding is greedy; HUB samples. The model computes in the
precision of its weights, unlike other detectors.

HUB's script glues the last three lines together before it looks for a word, so that a final ``yes`` below a line that ends in a
letter counts as no. Answers of fewer than three lines end its run. ``compat: official`` repeats the gluing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from overpaint.detectors.detector import Detector
from overpaint.detectors.network import score_frame
from overpaint.errors import UserError
from overpaint.grid.digests import IMAGE_SUFFIXES
from overpaint.grid.typed import Positive
from overpaint.models.weights import load_folder, weights_hashes, weights_path

if TYPE_CHECKING:
    from PIL.Image import Image

#: The words that end an answer, and the score of each.
ANSWERS = {"yes": 1.0, "no": 0.0, "idk": 0.0, "wrong": 0.0}
#: Reference images of one concept.
REFERENCES = 3


@dataclass(kw_only=True)
class VLM(Detector):
    """One label for each class. An answer without a final word is unknown: the image has failed. ``answers`` keeps all texts."""

    weights: str
    classes: dict[str, str] | None
    question: str
    references: str | None
    tokens: Positive
    compat: Literal["intended", "official"]

    def __post_init__(self):
        if "{}" not in self.question:
            raise UserError(f"question takes a text with {{}} for the concept, got {self.question!r}")

    @property
    def labels(self) -> Sequence[str]:
        return list(self.classes or ())

    def assets(self) -> dict[str, str]:
        pictures = [file for label in self.classes or () for file in self._files(label)]
        return weights_hashes(self.weights) | {
            f"{file.parent.name}/{file.name}": digest
            for file in pictures
            for digest in weights_hashes(str(file)).values()
        }

    def score(self, images: Sequence[Image]) -> pd.DataFrame:
        if not self.classes:
            raise UserError(
                "detector=vlm needs classes: set them in its YAML, or use it with a set of concepts of one kind"
            )
        said = [{label: self.ask(image, label) for label in self.classes} for image in images]
        rows = [[answer_score(text, self.compat) for text in answers.values()] for answers in said]
        frame = score_frame(np.array(rows, np.float32) if rows else None, self.labels, [])
        frame["answers"] = pd.Series([json.dumps(answers, ensure_ascii=False) for answers in said], dtype=str)
        return frame

    def ask(self, image: Image, label: str) -> str:
        """The model's answer about one image and one class."""
        import torch

        network, processor = self._network
        shown = [*self._references(label), image.convert("RGB")]
        content = [{"type": "image", "image": picture} for picture in shown]
        content.append({"type": "text", "text": self._question(label, len(shown) - 1)})
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        ).to(self.device, network.dtype)  # fmt: skip
        with torch.no_grad():
            found = network.generate(**inputs, max_new_tokens=self.tokens, do_sample=False)
        return processor.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    def _question(self, label: str, references: int) -> str:
        concept = label.replace("_", " ")
        before = (
            f"The first {references} images are examples of {concept}; the last image is the one in question. "
            "If no example shows it, the answer is wrong. "
            if references
            else ""
        )
        return (
            f"{before}{self.question.format(concept)} Describe what you see and compare it step by step. "
            "Then write on a line of its own one of the words: yes, no, idk (if you are in doubt)"
            f"{', wrong' if references else ''}."
        )

    def _files(self, label: str) -> list[Path]:
        if self.references is None:
            return []
        folder = weights_path(self.references) / label
        files = sorted(file for file in folder.glob("*") if file.suffix.lower() in IMAGE_SUFFIXES)[:REFERENCES]
        if not files:
            raise UserError(f"references={self.references} has no images in the folder {label}")
        return files

    def _references(self, label: str) -> list[Image]:
        from PIL import Image

        return [Image.open(file).convert("RGB") for file in self._files(label)]

    @cached_property
    def _network(self) -> tuple[Any, Any]:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = weights_path(self.weights)
        network = load_folder(AutoModelForImageTextToText, folder, self.weights)
        return network.to(self.device), AutoProcessor.from_pretrained(folder)


def answer_score(text: str, compat: Literal["intended", "official"] = "intended") -> float:
    """1 for yes, 0 for another word, NaN for an answer without a final word."""
    word = released_answer(text) if compat == "official" else final_answer(text)
    return ANSWERS[word] if word else np.nan


def final_answer(text: str) -> str | None:
    """The word alone on the last line that is not empty, without case and punctuation; ``None`` for anything else."""
    lines = [line for line in text.splitlines() if line.strip()]
    word = re.sub(r"[^a-z ]", "", lines[-1].lower()).strip() if lines else ""
    return word.removeprefix("final answer").strip() if word.removeprefix("final answer").strip() in ANSWERS else None


def released_answer(text: str) -> str | None:
    """The word that HUB's script finds; ``None`` for an answer of fewer than three lines, with which the script ends."""
    lines = text.strip().split("\n")
    if len(lines) < 3:
        return None
    glued = "".join(line.lower() for line in reversed(lines[-3:]))
    return next((word for word in ("yes", "idk") if re.search(rf"\b{word}\b", glued)), "no")
