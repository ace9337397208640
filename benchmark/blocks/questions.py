"""Questions to a vision-language model about an image, and the final words of its answers.

Any transformers model of the class image-text-to-text serves. It reasons and ends with one word on a line of its own: ``yes``,
``no``, ``idk`` or ``wrong`` (reference images do not show the concept). Decoding is greedy. The model computes in the precision
of its weights.

HUB's script glues the last three lines together before it looks for a word, so that a final ``yes`` below a line that ends in a
letter counts as no. Answers of fewer than three lines end its run. ``compat: official`` repeats the gluing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from overpaint.errors import UserError
from overpaint.grid.typed import Positive
from overpaint.models.weights import load_folder, weights_path

if TYPE_CHECKING:
    from PIL.Image import Image

#: The words that end an answer, and the score of each.
ANSWERS = {"yes": 1.0, "no": 0.0, "idk": 0.0, "wrong": 0.0}


@dataclass(kw_only=True)
class Asking:
    """A network that is asked about images; the base of detectors and extractors that do so.

    ``question`` is a text with ``{}`` for what is asked about. ``device`` is where the network runs.
    """

    weights: str
    question: str
    tokens: Positive
    compat: Literal["intended", "official"]

    device = "cpu"

    def __post_init__(self):
        if "{}" not in self.question:
            raise UserError(f"question takes a text with {{}} for the concept, got {self.question!r}")

    def answer(self, shown: Sequence[Image], asked: str) -> str:
        """The answer to the question whether the last image shows what is ``asked``; the images before it are examples."""
        import torch

        network, processor = self._network
        content = [{"type": "image", "image": picture} for picture in shown]
        content.append({"type": "text", "text": self._question(asked, len(shown) - 1)})
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
