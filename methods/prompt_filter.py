"""Prompt filter: prompts that ask for a concept are refused or rewritten before the model reads them.

The guardrail of most services, and the baseline of attacks on prompts. It has no paper of its own; as a baseline: Rando et
al., arXiv 2210.04610, and Liu et al., "Latent Guard", ECCV 2024, arXiv 2404.08031. Weights do not change. A prompt is
caught by one of three rules:

    words        it contains one of the words or phrases: as written, in singular or plural, or as the same token ids
    embedding    max_k cos(E(prompt), E(phrase_k)) ≥ τ                      E: features of a text encoder
    classifier   P(label | prompt) ≥ τ                                      of a text classifier

τ of ``embedding`` is given, or calibrated: the share ``false_positives`` of ordinary captions is caught. A refused prompt
gives the black image, as services do: at every call the prediction is the one that leads to its latents z,

    ε = (x_t − √ᾱ_t z) / √(1−ᾱ_t)

so that every sampler ends there. ``action: rewrite`` puts the anchor in place of the words found, or removes them.

A filter reads texts. Prompts that are given as embeddings pass it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, ClassVar, Literal

from overpaint.blocks.clip import Clip, OwnTower, Tower
from overpaint.blocks.prior import Captions, check_captions, read_captions
from overpaint.errors import AssetMissing, UserError, at_least, unknown
from overpaint.grid.assets import located
from overpaint.grid.concepts import Request
from overpaint.grid.paths import path_of
from overpaint.grid.typed import construct
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.guidance import Guard, Guidance, GuidanceMaker
from overpaint.models.lazily import torch

#: Prompts per forward of a text encoder or classifier.
PROMPTS_AT_ONCE = 64


@dataclass(kw_only=True)
class PromptFilter(Eraser):
    """Hyper-parameters; ``conf/method/prompt_filter.yaml`` explains each."""

    rule: Literal["words", "embedding", "classifier"]
    action: Literal["refuse", "rewrite"]
    words: list[str]
    synonyms: bool
    match: Literal["exact", "plural", "tokens"]
    clip: str | None
    classifier: str | None
    label: str
    threshold: float | None
    calibration: Captions
    false_positives: float

    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    acts_on: ClassVar[str] = "text_encoder"
    draws: ClassVar[bool] = False
    stacks: ClassVar[bool] = True
    reads_prompts: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False

    def __post_init__(self):
        if not 0 < self.false_positives < 1:
            raise UserError(f"false_positives takes a number between 0 and 1, got {self.false_positives!r}")
        at_least(-1, threshold=self.threshold)
        if self.threshold is not None and self.threshold > 1:
            raise UserError(f"threshold takes a number up to 1, got {self.threshold!r}")
        if self.action == "rewrite" and (self.rule != "words" or self.match == "tokens"):
            raise UserError(
                "action=rewrite needs rule=words with match=exact or plural: it has to know which words to replace"
            )
        if self.rule == "classifier" and self.classifier is None:
            raise UserError("rule=classifier needs a text classifier: classifier=FOLDER or a hub id like owner/name")
        if self.rule == "classifier" and self.threshold is None:
            raise UserError("rule=classifier needs a threshold, such as threshold=0.5")
        check_captions(self.calibration)
        if self.rule == "embedding" and self.threshold is None and not self.calibration:
            raise UserError(
                "rule=embedding needs a threshold, or ordinary captions to calibrate it: calibration=FILE.csv"
            )

    @property
    def networks(self) -> tuple[str, ...]:
        return {"embedding": ("clip",), "classifier": ("classifier",)}.get(self.rule, ())

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        rule = Rule(
            kind=self.rule,
            action=self.action,
            phrases=self.phrases(request),
            match=self.match,
            source=self.clip if self.rule == "embedding" else self.classifier,
            label=self.label,
            threshold=self.threshold,
        )
        if self.rule == "embedding" and self.threshold is None:
            scores = rule.scores(model, read_captions(self.calibration))
            rule = construct(
                Rule, asdict(rule) | {"threshold": float(scores.quantile(1 - self.false_positives))}, "rule"
            )
        rule.caught(model, [""])  # raises now, not during sampling, if the text encoder or classifier cannot be loaded
        return Erasure("prompt_filter", "guard", settings=asdict(rule))

    def phrases(self, request: Request) -> dict[str, str]:
        """The phrases to look for, each with its replacement: the concept's anchor, or an empty text."""
        found = {}
        for concept in request.erase:
            for phrase in (concept.name, *(concept.synonyms if self.synonyms else ())):
                found[phrase] = concept.anchor or ""
        return found | {word: "" for word in self.words}

    @classmethod
    def install(cls, model: DiffusionModel, erasure: Erasure) -> Callable[[], None]:
        rule = construct(Rule, erasure.settings, "this erasure's settings")
        return model.guided_by(FilterGuard(rule, model.guidance))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What is caught, and what happens to it. ``source`` is the CLIP model or the classifier of ``kind``."""

    kind: Literal["words", "embedding", "classifier"]
    action: Literal["refuse", "rewrite"]
    phrases: dict[str, str]
    match: Literal["exact", "plural", "tokens"]
    source: str | None
    label: str
    threshold: float | None

    def caught(self, model: DiffusionModel, prompts: Sequence[str]) -> list[bool]:
        """Whether each prompt is caught."""
        if self.kind == "words":
            return [any(self.stands(model, phrase, prompt) for phrase in self.phrases) for prompt in prompts]
        return [score >= (self.threshold or 0.0) for score in self.scores(model, prompts).tolist()]

    def stands(self, model: DiffusionModel, phrase: str, prompt: str) -> bool:
        """Whether the prompt contains the phrase."""
        if self.match == "tokens":
            wanted, ids = (model.tokenizer(text).input_ids[1:-1] for text in (phrase, prompt))
            return (
                any(ids[i : i + len(wanted)] == wanted for i in range(len(ids) - len(wanted) + 1)) if wanted else False
            )
        return bool(pattern(phrase, self.match == "plural").search(prompt))

    def rewritten(self, prompt: str) -> str:
        """The prompt with the phrases replaced, the longest first, and without double spaces."""
        for phrase in sorted(self.phrases, key=len, reverse=True):
            literal = self.phrases[phrase].replace("\\", r"\\")
            prompt = pattern(phrase, self.match == "plural").sub(literal, prompt)
        return " ".join(prompt.split())

    def scores(self, model: DiffusionModel, prompts: Sequence[str]) -> torch.Tensor:
        """Scores (n,), float32: the largest cosine to a phrase, or the probability of the label."""
        parts = [prompts[i : i + PROMPTS_AT_ONCE] for i in range(0, len(prompts), PROMPTS_AT_ONCE)]
        if self.kind == "classifier":
            return torch.cat([probabilities(str(self.source), self.label, list(part), model.device) for part in parts])
        tower = text_tower(model, self.source)
        wanted, *given = (
            torch.nn.functional.normalize(tower.text_features(texts).float(), dim=1)
            for texts in (list(self.phrases), *parts)
        )
        return (torch.cat(given) @ wanted.T).max(dim=1).values.cpu()


@cache
def pattern(phrase: str, plural: bool) -> re.Pattern[str]:
    """Finds the phrase as whole words in any case; with ``plural`` also the singular and plural of its last word."""
    *first, last = [re.escape(word) for word in phrase.split()] or [""]
    words = r"\s+".join([*first, f"(?:{'|'.join(numbers(last))})" if plural else last])
    return re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)


def numbers(word: str) -> list[str]:
    """The word with the regular English endings of its singular and plural."""
    endings = {r"(?<=[^aeiou])y$": "ies", r"(?<=[^aeiou])ies$": "y", r"(?<=[sxzh])es$": "", r"(?<=[^s])s$": ""}
    changed = [re.sub(ending, new, word, flags=re.IGNORECASE) for ending, new in endings.items()]
    return list(dict.fromkeys([word, *changed, f"{word}s", f"{word}es"]))


def text_tower(model: DiffusionModel, clip: str | None) -> Tower:
    """The text encoder of a CLIP model, or the diffusion model's own."""
    return Clip.load(clip, model.device) if clip else OwnTower(model)


def probabilities(source: str, label: str, prompts: list[str], device: torch.device) -> torch.Tensor:
    """P(label | prompt) (n,) of a transformers text classifier."""
    with torch.no_grad():
        network, tokenizer = classifier_at(source, device)
        names = {name.lower(): number for number, name in network.config.id2label.items()}
        if label.lower() not in names:
            raise unknown("label", label, network.config.id2label.values(), f"classifier {source}")
        inputs = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt").to(device)
        return network(**inputs).logits.softmax(dim=1)[:, names[label.lower()]].float().cpu()


@cache
def classifier_at(source: str, device: torch.device) -> tuple[Any, Any]:
    """A transformers text classifier and its tokenizer, from an asset, a folder or the hub."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = located(source) or path_of(source, "classifier")
    if not folder.is_dir() and source.count("/") != 1:
        raise UserError(
            f"classifier folder {source} does not exist (classifier takes a folder or a hub id like owner/name)"
        )
    place = str(folder) if folder.is_dir() else source
    try:
        network = AutoModelForSequenceClassification.from_pretrained(place, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(place)
    except OSError as error:
        raise AssetMissing(f"cannot load the text classifier {source}: {str(error).splitlines()[0]}") from error
    return network.to(device).eval().requires_grad_(False), tokenizer


@dataclass(frozen=True)
class FilterGuard(Guard):
    """Creates the `Guidance` of each batch of images, on top of that of ``inner``, which may be another guard."""

    rule: Rule
    inner: GuidanceMaker

    @property
    def stateful(self) -> bool:  # type: ignore[override]  # a constant of the other guards
        return self.inner.guard is not None and self.inner.guard.stateful

    def without_empty_prompt(self, model: DiffusionModel, scale: float):
        return self.inner.guard and self.inner.guard.without_empty_prompt(model, scale)

    def __call__(self, model: DiffusionModel, positive, negative, scale: float, prompts=None) -> Guidance:
        caught = self.rule.caught(model, prompts) if prompts else []
        if not any(caught):
            return self.inner(model, positive, negative, scale, prompts)
        if self.rule.action == "rewrite":
            prompts = [self.rule.rewritten(text) if hit else text for text, hit in zip(prompts, caught, strict=True)]
            with torch.no_grad():
                encoded = model.encode(prompts, truncate=True)
            where = torch.tensor(caught, device=positive.device)[:, None, None]
            return self.inner(model, torch.where(where, encoded, positive), negative, scale, prompts)
        inner = self.inner(model, positive, negative, scale, prompts)
        return RefusedGuidance(inner, torch.tensor(caught, device=positive.device))


class RefusedGuidance(Guidance):
    """The guidance of a batch of images; those in ``refused`` (batch,) end as the black image."""

    def __init__(self, inner: Guidance, refused: torch.Tensor):
        super().__init__(inner.model, inner.positive, inner.negative, inner.scale, inner.prompts)
        self.inner, self.refused = inner, refused
        self._black: torch.Tensor | None = None

    def __call__(self, latents: torch.Tensor, timestep, step: float) -> torch.Tensor:
        predicted = self.inner(latents, timestep, step)
        black, (signal, deviation) = self.black(latents), self.model.levels(timestep, latents)
        noise = (latents - signal * black) / deviation
        refusal = self.model.denoising_target(black, noise, timestep).to(predicted)
        return torch.where(self.refused[:, None, None, None], refusal, predicted)

    def black(self, latents: torch.Tensor) -> torch.Tensor:
        """The black image's latents, in the shape of ``latents`` (batch, c, h, w)."""
        if self._black is None:
            height, width = (side * self.model.pixels_per_latent for side in latents.shape[-2:])
            self._black = self.model.pixels_to_latents(-torch.ones(1, 3, height, width))
        return self._black.to(latents).expand_as(latents)
