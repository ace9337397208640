"""How close images are to texts in a space that both share, such as CLIP's (the extractor for ``text_image``).

With unit-length embeddings v of an image and t of a text, cos = v·t. Papers print it in several scales::

    CLIP score      100 cos                                           image and its own prompt; MACE, SPEED, torchmetrics
    SPM's CS        2.5 max(cos, 0)                                   image and its prompt, which names the target; × 100 in print
    SPM's CER       share of images with max(cos_a, 0) ≥ max(cos, 0)  t_a is the prompt with the anchor in place of the target
    MACE's P        softmax(100 cos)_target over classes              "a photo of the {class}"; the script averages P and the
                                                                      paper calls it accuracy
    MACE's H_a      CLIP score on retained − CLIP score on erased

CER clamps both cosines at 0 before it compares them, as SPM's code does: two negative ones tie, and a tie is an
error. torchmetrics clamps the CLIP score at 0; here it is not clamped.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from overpaint.blocks.templates import renamed
from overpaint.grid.concepts import Concept
from overpaint.metrics.metric import Evidence, Figure, Metric
from overpaint.metrics.outcomes import Share, own_concept
from overpaint.metrics.readings import MeanReading, compared_means

PURPOSE = "text_image"
SPM = "SPM, arXiv 2312.16145"
MACE = "MACE, arXiv 2403.06135"


def cosine(images: NDArray, texts: NDArray) -> NDArray:
    """Cosines (n,) of aligned rows (n, d), in float64."""
    return (_unit(images) * _unit(texts)).sum(axis=-1)


def clip_score(images: NDArray, texts: NDArray) -> NDArray:
    """CLIP scores (n,) of aligned rows (n, d): 100 cos."""
    return 100 * cosine(images, texts)


def spm_clip_score(images: NDArray, targets: NDArray) -> NDArray:
    """SPM's CS of aligned rows (n, d): 2.5 max(cos, 0)."""
    return 2.5 * np.maximum(cosine(images, targets), 0)


def spm_errors(images: NDArray, targets: NDArray, anchors: NDArray) -> NDArray:
    """SPM's errors (n,) of aligned rows (n, d): 1 where the image is not closer to the target's text, after clamping at 0."""
    target, anchor = (np.maximum(cosine(images, texts), 0) for texts in (targets, anchors))
    return np.where(np.isnan(target + anchor), np.nan, ~(anchor < target))


def class_probabilities(images: NDArray, texts: NDArray, classes: ArrayLike) -> NDArray:
    """softmax(100 cos) (n,) of the true class; ``images`` (n, d), ``texts`` (classes, d), ``classes`` (n,) rows of ``texts``."""
    logits = 100 * _unit(images) @ _unit(texts).T
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (shifted / shifted.sum(axis=1, keepdims=True))[np.arange(len(logits)), np.asarray(classes, int)]


def without(text: str, concept: Concept) -> str:
    """The text without the concept: its name, the words that join it to the rest, and double spaces are removed."""
    name = rf"(?:\b(?:an?|the)\s+)?(?<!\w){re.escape(concept.name)}(?!\w)"
    joined = (
        rf"(?:\s*\b(?:with|and|in|by|of|in the style of)\s+{name}(?:\s+style)?|{name}(?:\s+style)?\s*(?:\band\b|,)?\s*)"
    )
    return " ".join(re.sub(joined, " ", text, flags=re.IGNORECASE).split()).strip(" ,")


class TextReading(MeanReading):
    """A mean over images of a number that each image has with one text; the base of those below."""

    extractor = PURPOSE
    column = f"{PURPOSE}.features"

    def texts(self, images: pd.DataFrame, erased: Sequence[Concept]) -> list[str]:
        return list(images["prompt"])

    @abstractmethod
    def number(self, images: NDArray, texts: NDArray) -> NDArray:
        """Numbers (n,) of aligned rows (n, d)."""

    def values(self, frame: pd.DataFrame, evidence: Evidence) -> pd.Series:
        rows = aligned(frame, self.texts(frame, evidence.erased), evidence)
        return pd.Series(self.number(*rows), index=frame.index)


def aligned(frame: pd.DataFrame, texts: Sequence[str], evidence: Evidence) -> tuple[NDArray, NDArray]:
    """Embeddings (n, d) of images and of one text each; NaN for an image without an embedding."""
    known = evidence.texts[PURPOSE]
    width = np.size(next(iter(known.values()))) if len(known) else 1
    nothing = np.full(width, np.nan)
    column = frame.get(f"{PURPOSE}.features", pd.Series([None] * len(frame), index=frame.index))
    failed = frame["failed"].astype(bool) if "failed" in frame else pd.Series(False, index=frame.index)
    images = [
        nothing if bad or not _given(row) else np.asarray(row, float) for row, bad in zip(column, failed, strict=True)
    ]
    found = [np.asarray(known[text], float) if text in known else nothing for text in texts]
    return np.reshape(images, (len(frame), width)), np.reshape(found, (len(frame), width))


def _given(row: object) -> bool:
    return isinstance(row, list | np.ndarray)


class PromptClipScore(TextReading):
    """CLIP score of images with their prompt: 100 cos; the base of those below."""

    unit = "100 cos"
    paper = "CLIPScore, arXiv 2104.08718"

    def number(self, images: NDArray, texts: NDArray) -> NDArray:
        return clip_score(images, texts)


class ClipScore(PromptClipScore):
    """CLIP score of ordinary prompts' images with their prompt."""

    facet = "utility"
    direction = "up"
    roles = ("utility",)


class ErasedClipScore(PromptClipScore):
    """CLIP_e: CLIP score of the target prompts' images with their prompt, which names the erased concept."""

    facet = "efficacy"
    direction = "down"
    paper = MACE
    roles = ("target",)


class RetainedClipScore(PromptClipScore):
    """CLIP_s: CLIP score of the neighbours' images with their prompt."""

    facet = "specificity"
    direction = "up"
    paper = MACE
    roles = ("near",)


class HarmonicArtists(Metric):
    """H_a of MACE: CLIP score on retained artists minus CLIP score on erased artists (not a harmonic mean, despite its name)."""

    facet = "efficacy"
    direction = "up"
    unit = "100 cos"
    paper = MACE
    aggregation = "difference of means"
    roles = ("near", "target")
    extractor = PURPOSE

    def texts(self, images: pd.DataFrame, erased: Sequence[Concept]) -> list[str]:
        return list(images["prompt"])

    def measure(self, evidence: Evidence) -> Figure:
        return compared_means(self, (RetainedClipScore(), ErasedClipScore()), evidence)


class InPromptClipScore(PromptClipScore):
    """Six-CD's in-prompt score: 100 cos of a target prompt's image and the prompt without the erased concept."""

    facet = "specificity"
    direction = "up"
    paper = "Six-CD, arXiv 2406.14855"
    roles = ("in_prompt",)

    def texts(self, images: pd.DataFrame, erased: Sequence[Concept]) -> list[str]:
        found = []
        for text in images["prompt"]:
            for concept in erased:
                text = without(text, concept)
            found.append(text)
        return found


class SpmClipScore(TextReading):
    """SPM's CS of the target prompts' images: 2.5 max(cos, 0), with the prompt that names the target.

    Images have equal weight.
    """

    facet = "efficacy"
    direction = "down"
    unit = "2.5 cos"
    paper = SPM
    roles = ("target",)

    def number(self, images: NDArray, texts: NDArray) -> NDArray:
        return spm_clip_score(images, texts)


class SpmErrorRate(Share):
    """SPM's CER: share of target prompts' images that are not closer to the prompt than to the prompt with the anchor.

    A concept without an anchor is compared with the empty text, SPM's default surrogate.
    """

    facet = "efficacy"
    direction = "up"
    paper = SPM
    roles = ("target",)
    extractor = PURPOSE
    version = 2

    def texts(self, images: pd.DataFrame, erased: Sequence[Concept]) -> list[str]:
        return [*images["prompt"], *self.replaced(images, erased)]

    def replaced(self, images: pd.DataFrame, erased: Sequence[Concept]) -> list[str]:
        """The prompts with the anchor in place of their concept, with the article that fits it."""
        by_label = {concept.label or concept.name: concept for concept in erased}
        concepts = [by_label.get(label) for label in images["concept"]]
        return [
            (renamed(text, concept, concept.anchor) or text) if concept and concept.anchor else ""
            for text, concept in zip(images["prompt"], concepts, strict=True)
        ]

    def judge(self, frame: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
        table = own_concept(frame, 0.0)
        if frame.empty or PURPOSE not in evidence.texts:
            return table.assign(hit=np.nan)
        images, targets = aligned(frame, list(frame["prompt"]), evidence)
        _, anchors = aligned(frame, self.replaced(frame, evidence.erased), evidence)
        return table.assign(hit=spm_errors(images, targets, anchors)[table["image"]])


class ClassProbability(MeanReading):
    """Mean softmax probability of the image's class among the erased concepts and their neighbours; a base class."""

    unit = "fraction"
    paper = "MACE, arXiv 2403.06135; evaluate_clip_accuracy.py"
    extractor = PURPOSE
    column = f"{PURPOSE}.features"
    sentence: ClassVar[str] = "a photo of the {}"

    def texts(self, images: pd.DataFrame, erased: Sequence[Concept]) -> list[str]:
        return [self.sentence.format(name) for name in self.classes(images, erased).values()]

    @staticmethod
    def classes(images: pd.DataFrame, erased: Sequence[Concept]) -> dict[str, str]:
        """The words of each class by its detector label: the erased concepts, and the concepts of the neighbours' images."""
        found = {concept.label or concept.name: concept.name for concept in erased}
        near = images[images["role"] == "near"]["concept"] if "role" in images else ()
        return found | {label: label.replace("_", " ") for label in near if label and label not in found}

    def values(self, frame: pd.DataFrame, evidence: Evidence) -> pd.Series:
        neighbours = [evidence.images_of("near", frame=name) for name in ("images", "retained")]
        classes = self.classes(pd.concat(neighbours), evidence.erased)
        known = evidence.texts[PURPOSE]
        texts = [known.get(self.sentence.format(name)) for name in classes.values()]
        images, _ = aligned(frame, [""] * len(frame), evidence)
        asked = [list(classes).index(label) if label in classes else -1 for label in frame["concept"]]
        if len(classes) < 2 or any(text is None for text in texts) or frame.empty:
            return pd.Series(np.nan, index=frame.index)
        found = class_probabilities(
            images, np.stack([np.asarray(text, float) for text in texts if text is not None]), asked
        )
        return pd.Series(np.where(np.array(asked) < 0, np.nan, found), index=frame.index)


class ErasedProbability(ClassProbability):
    """MACE's Acc_e as its script computes it: mean probability of the erased class."""

    facet = "efficacy"
    direction = "down"
    roles = ("target",)
    also = ("near",)


class RetainedProbability(ClassProbability):
    """MACE's Acc_s as its script computes it: mean probability of the neighbours' own classes."""

    facet = "specificity"
    direction = "up"
    roles = ("near",)


class SynonymProbability(ClassProbability):
    """MACE's Acc_g as its script computes it: mean probability of the erased class for images of synonyms."""

    facet = "generality"
    direction = "down"
    roles = ("attacked",)
    attacks = ("synonym",)
    frames = ("retained",)


def _unit(rows: NDArray) -> NDArray:
    rows = np.asarray(rows, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
