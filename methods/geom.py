"""Geom-Erasing: learned words for image regions describe where a concept is; a negative prompt of these words removes it.

Liu, Chen, Zhang, Han, Hong, Xu, Li, Yeung and Kwok, "Implicit Concept Removal of Diffusion Models", ECCV 2024, arXiv 2310.05873.
For concepts that appear without being asked for, such as watermarks, and that the model's own words do not control. An image
is divided into m × m bins, and each bin gets a new word ⟨l_ij⟩. A detector says which bins of a training image x_0 show the
concept c. Its caption y becomes

    y' = y, c, ⟨l_ij⟩ …                      with one word for each covered bin; y' = y if the image does not show c

Notation: x_t (b, 4, h, w) is a noised latent, ε its noise, T the number of cells of a latent, K of those in covered bins:

    loss = mean w (ε − e(x_t, y'))²         w = T/(K + α (T − K)) inside, α T/(K + α (T − K)) outside; its mean is 1

``train: tokens`` learns the rows of the new words only, ``kv`` and ``full`` fine-tune the denoiser with them. Images are then
made with "c, ⟨l_11⟩ … ⟨l_mm⟩" as the negative prompt.

There is no official code. The paper's equations are implemented; m, α, rates and lengths are ours. Training images are made
by the model itself: one half for captions that name the concept, which y leaves out, so that enough of them show it. Detectors
here give no boxes: a bin shows the concept if hiding it lowers the detector's score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from overpaint.blocks.concept_masks import attention_masks, concept_tokens
from overpaint.blocks.concept_scores import concept_scores, told
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.image_bank import ImageBank, diffused, paint, shuffled
from overpaint.blocks.learned_words import LearnedWords, mean_row
from overpaint.blocks.prior import Captions, check_captions, read_captions
from overpaint.blocks.templates import SCENES
from overpaint.blocks.training import Rule, Student, parameter_group, train
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Concept, Request
from overpaint.grid.labels import counted
from overpaint.grid.typed import construct
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.guidance import Guard, Guidance
from overpaint.models.lazily import torch

#: ``train`` -> the denoiser's parameters that are trained beside the new words.
GROUPS: dict[str, Rule] = {
    "kv": lambda p: p.attention == "cross" and p.role in ("key", "value"),
    "full": lambda p: True,
}
#: Joins a caption with a concept's name, by kind; other kinds use the first one.
NAMED = {"object": "{caption} with {name}", "style": "{caption} in {name} style"}
#: A bin shows the concept if at least this share of its pixels does.
COVERED = 0.25
#: A bin shows the concept if hiding it lowers the detector's score by at least this share of the largest drop.
DROP = 0.5


@dataclass(kw_only=True)
class Geom(Eraser):
    """Hyper-parameters of Geom-Erasing; ``conf/method/geom.yaml`` explains each."""

    train: Literal["tokens", "kv", "full"]
    regions: Literal["detector", "attention", "all"]
    detector: str | None
    threshold: float
    attention_threshold: float
    bins: int
    outside: float
    captions: Captions
    pictures: int
    picture_steps: int
    picture_guidance: float
    iterations: int
    batch_size: int
    token_learning_rate: float
    learning_rate: float
    weight_decay: float

    stacks: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False
    lengths: ClassVar[tuple[str, ...]] = ("iterations", "pictures")

    def __post_init__(self):
        check_captions(self.captions)
        at_least(1, bins=self.bins, pictures=self.pictures, picture_steps=self.picture_steps)
        at_least(1, iterations=self.iterations, batch_size=self.batch_size)
        at_least(0, learning_rate=self.learning_rate, token_learning_rate=self.token_learning_rate)
        at_least(0, weight_decay=self.weight_decay)
        if self.outside <= 0:
            raise UserError(f"outside takes a number above 0, got {self.outside:g}")
        if self.regions == "detector" and self.detector is None:
            raise UserError("regions=detector needs a detector (overpaint list detectors)")

    @property
    def acts_on(self) -> str:
        return "denoiser" if self.train == "full" else "conditioning"

    def detectors(self, request: Request) -> dict[str, dict[str, Any]]:
        asked = self.regions == "detector" and self.detector
        return {asked: told(asked, request.erase)} if asked else {}

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        draws, names = Draws(self.seed), [c.name for c in request.erase]
        words = location_words(self.bins)
        negative = ", ".join([*names, " ".join(words)])
        student = None if self.train == "tokens" else Student(model, parameter_group(model, GROUPS[self.train]))
        learner = LearnedWords(model, dict.fromkeys(words, mean_row(model, names)), student)
        check_fits(model, negative, learner.rows, len(names))
        bank, plain = self.images(model, request, draws)
        found = [self.found(bank, concept, draws) for concept in request.erase]  # for each concept, bins of each image
        captions = [
            placed(plain[row], [(name, where[row]) for name, where in zip(names, found, strict=True)])
            for row in range(len(bank))
        ]
        batches = shuffled(draws, "pictures", len(bank), self.batch_size)

        def loss() -> torch.Tensor:
            chosen = next(batches)
            covered = torch.stack(
                [torch.stack([found[n][row] for n in range(len(names))]).any(dim=0) for row in chosen]
            )
            texts = [captions[row] for row in chosen]
            latents = bank.latents(chosen, draws, "z")
            x_t, t, noise = diffused(model, latents, draws)
            truth = model.denoising_target(latents, noise, t)
            with learner.active():
                predicted = model.predict(x_t, t, model.encode(texts, truncate=True))
            weights = cell_weights(covered.to(latents.device), latents.shape[-1], self.outside)
            trace_values(x_t=x_t, t=t, captions=texts, weights=weights, pred=predicted.detach())
            return (weights * (predicted.float() - truth.float()).square()).mean()

        groups: list[dict[str, Any]] = [
            {"params": list(learner.rows.values()), "lr": self.token_learning_rate, "weight_decay": 0.0}
        ]
        if student:
            groups.append({"params": list(student.masters.values()), "lr": self.learning_rate})
        train(learner, torch.optim.AdamW(groups, weight_decay=self.weight_decay), self.iterations, loss)
        changes = student.changes() if student else {}
        seen = [int(sum(where.any() for where in each)) for each in found]
        settings = asdict(GeomGuard(text=negative, words=words))
        parts = {f"row.{n}": row.detach().clone() for n, row in enumerate(learner.rows.values())}
        with learner.active():
            truncated = model.too_long(captions)
        manifest = {"pictures": len(bank), "pictures_with_concept": seen, "captions_truncated": truncated}
        return Erasure("geom", "guard", changes, parts, settings, manifest)

    def images(self, model: DiffusionModel, request: Request, draws: Draws) -> tuple[ImageBank, list[str]]:
        """Images by the unedited model, and captions that name no concept. Every other image was made for a caption that does."""
        captions = read_captions(self.captions) or SCENES
        order = next(shuffled(draws, "captions", len(captions), self.pictures))
        plain, prompts = [captions[row] for row in order], []
        for number, caption in enumerate(plain):
            concept = request.erase[number // 2 % len(request.erase)]
            form = NAMED.get(concept.kind, NAMED["object"])
            prompts.append(caption if number % 2 else form.format(caption=caption, name=concept.name))
        steps, scale = self.picture_steps, self.picture_guidance
        return paint(model, prompts, draws, scheduler="dpm", steps=steps, guidance_scale=scale), plain

    def found(self, bank: ImageBank, concept: Concept, draws: Draws) -> list[torch.Tensor]:
        """The bins (m, m) of each image that show the concept, as boolean tensors."""
        if self.regions == "detector":
            return self.detected(bank, concept)
        return [self.attended(bank, row, concept, draws) for row in range(len(bank))]

    def attended(self, bank: ImageBank, row: int, concept: Concept, draws: Draws) -> torch.Tensor:
        """Bins by the model's own attention to the concept's name. An image whose prompt does not name it shows none."""
        model, prompt = bank.model, bank.captions[row]
        if concept.name not in prompt:
            return torch.zeros(self.bins, self.bins, dtype=torch.bool)
        if self.regions == "all":
            return torch.ones(self.bins, self.bins, dtype=torch.bool)
        tokens = concept_tokens(model, prompt, concept.name, end_tokens=False)
        latents = bank.posterior[0][[row]]
        (mask,) = attention_masks(model, latents, prompt, tokens, self.attention_threshold, draws)
        return in_bins(mask.float().cpu(), self.bins)

    def detected(self, bank: ImageBank, concept: Concept) -> list[torch.Tensor]:
        """Bins by a detector: in images that it scores at the threshold or above, those whose hiding lowers the score most."""
        assert self.detector  # checked by __post_init__
        scores = concept_scores("detector", self.detector, [concept], bank.model.device)
        found = []
        for image, score in zip(bank.images, scores(concept, bank.images), strict=True):
            where = torch.zeros(self.bins, self.bins, dtype=torch.bool)
            if score >= self.threshold:
                drops = torch.from_numpy(score - scores(concept, hidden(image, self.bins))).nan_to_num()
                where = drops.reshape(self.bins, self.bins) >= max(DROP * float(drops.max()), 1e-6)
            found.append(where)
        return found

    @classmethod
    def install(cls, model: DiffusionModel, erasure: Erasure) -> Callable[[], None]:
        plain, guard = model.guidance, construct(GeomGuard, erasure.settings, "this erasure's settings")
        rows = {word: erasure.parts[f"row.{n}"].to(model.device) for n, word in enumerate(guard.words)}
        if plain is not Guidance and not isinstance(plain, Placed):
            raise UserError("method=geom can be put only on another erasure of geom, not on other guards")
        placed = Placed([*(plain.prompts if isinstance(plain, Placed) else ()), (guard.text, rows)])
        check_fits(model, placed.text, placed.rows, len(placed.prompts), "request")
        return model.guided_by(placed)


@dataclass(frozen=True)
class GeomGuard:
    """What a stored erasure says: the negative prompt, and its new words in the order of their rows."""

    text: str
    words: list[str]


class Placed(Guard):
    """Guidance away from the concepts' names and the words for all places: the negative prompts of one or more erasures."""

    def __init__(self, prompts: Sequence[tuple[str, Mapping[str, torch.Tensor]]]):
        self.prompts = prompts
        texts: list[str] = []
        self.rows: dict[str, torch.Tensor] = {}
        for number, (text, words) in enumerate(prompts):  # each erasure has its own words of the same names
            for word, row in words.items():
                own = f"<{number}{word[1:]}"
                text, self.rows[own] = text.replace(word, own), row
            texts.append(text)
        self.text = ", ".join(texts)

    def __call__(self, model: DiffusionModel, positive, negative, scale: float, prompts=None) -> Guidance:
        with torch.no_grad(), model.learned_tokens(self.rows):
            unwanted = model.encode([self.text]).expand_as(positive)
        return Guidance(model, positive, unwanted, scale, prompts)


def check_fits(
    model: DiffusionModel, text: str, rows: Mapping[str, torch.Tensor], count: int, what: str = "concept"
) -> None:
    """Raise a `UserError` if the negative prompt is too long: truncated, it would leave concepts and places out."""
    with model.learned_tokens(rows):
        tokens = len(model.tokenizer(text).input_ids)
    if tokens > model.tokens:
        raise UserError(
            f"geom's negative prompt for {counted(count, what)} has {tokens} tokens, the model takes {model.tokens}: "
            f"erase fewer {what}s, or lower geom.bins (an image has bins · bins location words)"
        )


def location_words(bins: int) -> list[str]:
    """The new words of all bins, row by row."""
    return [f"<l{row}-{column}>" for row in range(bins) for column in range(bins)]


def placed(caption: str, found: Sequence[tuple[str, torch.Tensor]]) -> str:
    """y': the caption with the names of the concepts that the image shows and the words of the bins (m, m) that show them.

    >>> placed("a house", [("watermark", torch.tensor([[False, False], [False, True]]))])
    'a house, watermark, <l1-1>'
    """
    parts = [caption]
    for name, bins in found:
        words = [
            word for word, covered in zip(location_words(len(bins)), bins.flatten().tolist(), strict=True) if covered
        ]
        parts += [name, " ".join(words)] if words else []
    return ", ".join(parts)


def cell_weights(covered: torch.Tensor, side: int, outside: float) -> torch.Tensor:
    """w (b, 1, side, side) for covered bins (b, m, m); the mean over a latent's cells is 1."""
    inside = torch.nn.functional.interpolate(covered[:, None].float(), (side, side))
    total = side * side
    K = inside.sum(dim=(1, 2, 3), keepdim=True)
    return torch.where(inside > 0, 1.0, outside) * total / (K + outside * (total - K))


def in_bins(mask: torch.Tensor, bins: int) -> torch.Tensor:
    """The bins (m, m) that a mask (h, w) of zeros and ones covers by a share of at least ``COVERED``."""
    return torch.nn.functional.adaptive_avg_pool2d(mask[None], bins)[0] >= COVERED


def hidden(image: Image.Image, bins: int) -> list[Image.Image]:
    """m · m copies of an image, each with one bin filled with the image's mean colour."""
    pixels = np.asarray(image.convert("RGB"))
    mean = pixels.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
    rows, columns = (np.linspace(0, side, bins + 1).round().astype(int) for side in pixels.shape[:2])
    copies = []
    for row in range(bins):
        for column in range(bins):
            copy = pixels.copy()
            copy[rows[row] : rows[row + 1], columns[column] : columns[column + 1]] = mean
            copies.append(Image.fromarray(copy))
    return copies
