"""MACE: a closed-form edit removes what context words say about the concept, LoRA removes its attention, both are fused.

Lu, Wang, Li, Liu and Kong, "MACE: Mass Concept Erasure in Diffusion Models", CVPR 2024, arXiv 2403.06135. For each
cross-attention key and value projection W0 (o, d), and a concept c with anchor m in 30 sentences each:

    refine   T = [Σ (G − K)ᵀ K] (λI + Σ KᵀK + s B)⁻¹                      (d, d), the same for all layers
             W1 = W0 + W0 T                        K, G (n, d): rows of c's and m's sentences, except c's and m's own
    learn    loss = Σ_l ‖A_l[pixels of c, tokens S]‖_F                    a rank-1 change U D of W1 for each concept
    fuse     W = W1 + [Σ_i U_i D_i C_i + s (W0 − W1) B] (λI + Σ_i C_i + s B)⁻¹,   C_i = Σ EᵀE over all rows of c_i

B = Σ EᵀE over all rows of many captions, plus ``domain_weight`` times that of the retained concepts; their outputs under
W0 are preserved. A_l (heads, pixels, tokens) is the attention of layer l for a sentence of c and a noised image of c. S
are the positions of c's tokens and, with ``end_tokens``, of all end tokens (including the padding with SD 1.x, which
pads with end tokens). With ``importance``, t follows p(t) ∝ σ(0.05 (t − 200)) − σ(0.05 (t − 400)), the range in which
image content is decided. K and G pair the tokens that both sentences share at their start and at their end, and the
padding; ``all_words`` pairs all positions.

Official code multiplies B by s twice in ``refine`` and normalises images for the autoencoder with ImageNet's mean and
deviation; ``compat: official`` reproduces both. It also sums and inverts in float32 for each layer, which is not
reproduced.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from overpaint.blocks.concept_masks import Segmenter, attention_masks, concept_tokens
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.image_bank import ImageBank, paint, read_folder, shuffled
from overpaint.blocks.prior import Captions, caption_statistics, check_captions, read_captions
from overpaint.blocks.ridge import Ridge, factor
from overpaint.blocks.templates import phrase_templates
from overpaint.blocks.text_rows import TextRows
from overpaint.blocks.training import LowRankStudent, train
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Concept, Request
from overpaint.grid.paths import content_path
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure, LowRank, Replacement
from overpaint.models.lazily import torch

#: Official code normalises training images with these values instead of to [−1, 1].
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Weights: TypeAlias = "Mapping[str, torch.Tensor]"


@dataclass(kw_only=True)
class MACE(Eraser):
    """Hyper-parameters of MACE; ``conf/method/mace.yaml`` explains each."""

    compat: Literal["intended", "official"]
    default_anchor: str
    templates: list[str] | None
    phrases: int
    all_words: bool
    lamb: float
    preserve_scale: float
    fuse_preserve_scale: float
    prior_captions: Captions
    domain_weight: float
    folder: str | None
    pictures: int
    picture_steps: int
    picture_guidance: float
    masks: Literal["all", "attention", "segmenter", "folder"]
    attention_threshold: float
    box_threshold: float
    detector: str
    segmenter: str
    rank: int
    learning_rate: float
    iterations: int
    importance: bool
    end_tokens: bool

    version: ClassVar[int] = 2
    acts_on: ClassVar[str] = "conditioning"
    lengths: ClassVar[tuple[str, ...]] = ("iterations", "pictures")

    @property
    def networks(self) -> tuple[str, ...]:
        return ("detector", "segmenter") if self.masks == "segmenter" else ()

    def __post_init__(self):
        check_captions(self.prior_captions)
        if self.folder is not None and not content_path(self.folder, "folder").is_dir():
            raise UserError(
                f"folder={self.folder} is not a folder; it takes a folder with a subfolder of images for each concept"
            )
        if self.masks == "folder" and self.folder is None:
            raise UserError(
                "masks=folder needs a folder: set folder to one that has '<concept>' and '<concept> mask' inside"
            )
        at_least(1, phrases=self.phrases, pictures=self.pictures, picture_steps=self.picture_steps)
        at_least(1, rank=self.rank, iterations=self.iterations)
        at_least(0, lamb=self.lamb, preserve_scale=self.preserve_scale, fuse_preserve_scale=self.fuse_preserve_scale)
        at_least(0, learning_rate=self.learning_rate, domain_weight=self.domain_weight)

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        segmenter = self.load_segmenter(model, request)
        templates = [phrase_templates(c.kind, self.phrases, self.templates) for c in request.erase]
        sentences = [[t.format(c.name) for t in own] for c, own in zip(request.erase, templates, strict=True)]
        anchored = [
            [t.format(m) for t in own] for m, own in zip(request.anchors(self.default_anchor), templates, strict=True)
        ]

        B = self.prior(model, request)
        s = self.preserve_scale**2 if self.compat == "official" else self.preserve_scale
        pairs = [list(zip(*both, strict=True)) for both in zip(sentences, anchored, strict=True)]
        refined = refine(model, pairs, s * B, self.lamb, self.all_words)
        draws, changes = Draws(self.seed), []
        for concept, own in zip(request.erase, sentences, strict=True):
            pictures = self.paint(model, concept, draws)
            masks = self.masked(concept, pictures, segmenter, draws)
            changes.append(self.learn(model, concept, own, pictures, masks, refined, draws))
        fused = fuse(model, sentences, changes, refined, self.fuse_preserve_scale * B, self.lamb)
        kinds = {p.name: p.weight.dtype for p in model.projections("key", "value", stream="text")}
        return Erasure("mace", changes={name: Replacement(W.to(kinds[name])) for name, W in fused.items()})

    def prior(self, model: DiffusionModel, request: Request) -> torch.Tensor:
        """B (d, d): captions plus ``domain_weight`` times the retained concepts. Captions are not read if s is 0."""
        used = self.preserve_scale or self.fuse_preserve_scale
        captions, _ = caption_statistics(model, read_captions(self.prior_captions) if used else [])
        domain, _ = caption_statistics(model, [c.name for c in request.retain] if used else [])
        return captions + self.domain_weight * domain

    def paint(self, model: DiffusionModel, concept: Concept, draws: Draws) -> ImageBank:
        """Images of the concept: those of ``folder``, or images by the unedited model."""
        prompt = "a photo in the style of {}" if concept.kind == "style" else "a photo of the {}"
        steps, scale = self.picture_steps, self.picture_guidance
        if self.folder is not None:
            images = read_folder(model, Path(self.folder) / concept.name)
            return ImageBank(model, images, [prompt.format(concept.name)] * len(images))
        prompts = [prompt.format(concept.name)] * self.pictures
        return paint(model, prompts, draws, scheduler="dpm", steps=steps, guidance_scale=scale)

    def load_segmenter(self, model: DiffusionModel, request: Request) -> Segmenter | None:
        """The segmenter, if it is needed. Loaded first, so that missing weights raise an error before hours of work."""
        needed = self.masks == "segmenter" and any(c.kind != "style" for c in request.erase)
        return Segmenter(self.detector, self.segmenter, self.box_threshold, model.device) if needed else None

    def masked(self, concept: Concept, pictures: ImageBank, segmenter, draws: Draws) -> Sequence[torch.Tensor]:
        """A boolean mask (h, w) for each image of where it shows the concept; a style fills the whole image."""
        model = pictures.model
        if concept.kind == "style" or self.masks == "all":
            return torch.ones(len(pictures), 1, 1, dtype=torch.bool, device=model.device).unbind()
        if self.masks == "folder":
            return self.given_masks(model, concept, len(pictures))
        if self.masks == "segmenter":
            return [segmenter(image, concept.name) for image in pictures.images]
        tokens = concept_tokens(model, pictures.captions[0], concept.name, end_tokens=False)
        latents, _ = pictures.posterior
        return attention_masks(model, latents, pictures.captions[0], tokens, self.attention_threshold, draws).unbind()

    def given_masks(self, model: DiffusionModel, concept: Concept, count: int) -> list[torch.Tensor]:
        """The masks (h, w) in ``folder``, white where the concept is, in the order of the images' names."""
        place = Path(str(self.folder)) / f"{concept.name} mask"
        masks = [torch.from_numpy(np.asarray(image.convert("L")) > 127) for image in read_folder(model, place)]
        if len(masks) != count:
            raise UserError(f"{place} has {len(masks)} masks for {count} images of {concept.name}")
        return [mask.to(model.device) for mask in masks]

    def learn(
        self,
        model: DiffusionModel,
        concept: Concept,
        sentences: Sequence[str],
        pictures: ImageBank,
        masks: Sequence[torch.Tensor],
        refined: Weights,
        draws: Draws,
    ) -> dict[str, LowRank]:
        """Train the change U D of every projection on top of W1 (``refined``)."""
        starts = {p.name: refined[p.name].to(p.weight.dtype) for p in model.projections("key", "value", stream="text")}
        student = LowRankStudent(model, list(starts), self.rank, draws, starts=starts)
        with torch.no_grad():
            embeds = model.encode(sentences)
        tokens = [concept_tokens(model, sentence, concept.name, self.end_tokens) for sentence in sentences]
        timesteps = model.train_timesteps
        likely = focal_timesteps(timesteps) if self.importance else torch.ones(timesteps)
        latents = official_latents if self.compat == "official" else ImageBank.latents
        order = shuffled(draws, "order", len(pictures), 1)

        def loss() -> torch.Tensor:
            (image,), n = next(order), draws.integer("sentence", 0, len(sentences))
            x_0 = latents(pictures, [image], draws, "x_0")
            t = draws.take("t", lambda g: torch.multinomial(likely, 1, generator=g)).to(model.device)
            x_t = model.add_noise(x_0, draws.noise("noise", x_0.shape, x_0), t)
            with student.active(), model.attention_maps() as maps:
                model.predict(x_t, t, embeds[n : n + 1])
            trace_values(x_t=x_t, t=t, tokens=tokens[n], mask=masks[image])
            return attention_loss(maps.values(), tokens[n], masks[image])

        def clip() -> None:
            torch.nn.utils.clip_grad_norm_(student.masters.values(), 1.0)

        optimizer = torch.optim.AdamW(student.masters.values(), lr=self.learning_rate)
        train(student, optimizer, self.iterations, loss, adjust=clip)
        factors = {name: master.detach() for name, master in student.masters.items()}
        return {name: LowRank(factors[f"{name}:up"], factors[f"{name}:down"]) for name in starts}


def refine(
    model: DiffusionModel, pairs: Iterable[Sequence[tuple[str, str]]], prior: torch.Tensor, lamb: float, all_words: bool
) -> dict[str, torch.Tensor]:
    """W1 (o, d), float64, of every projection.

    ``pairs`` has the (concept, anchor) sentences of each concept; ``prior`` is s B (d, d).
    """
    grams, moved = torch.zeros_like(prior), torch.zeros_like(prior)
    everything = list(range(model.tokens))
    for sentences in pairs:
        rows = TextRows(model, [text for pair in sentences for text in pair])
        for old, new in sentences:
            i, j = (everything, everything) if all_words else aligned(model, old, new)
            K, G = rows.all(old)[i], rows.all(new)[j]
            grams += K.T @ K
            moved += (G - K).T @ K
    T = shared_factor(grams + prior, lamb).solve(moved)
    return {p.name: p.weight.double() + p.weight.double() @ T for p in model.projections("key", "value", stream="text")}


def fuse(
    model: DiffusionModel,
    sentences: Sequence[Sequence[str]],
    changes: Sequence[Mapping[str, LowRank]],
    refined: Weights,
    prior: torch.Tensor,
    lamb: float,
) -> dict[str, torch.Tensor]:
    """W (o, d), float64, of every projection: a least-squares fit to all changes.

    For the sentences of concept i the fit is to W1 + U_i D_i, and for the captions (``prior``, s B) to W0.
    """
    C = [caption_statistics(model, own)[0] for own in sentences]
    shared = shared_factor(sum(C) + prior, lamb)
    fused = {}
    for p in model.projections("key", "value", stream="text"):
        W0, W1 = p.weight.double(), refined[p.name].double()
        wanted = sum(
            change[p.name].up.double() @ (change[p.name].down.double() @ C_i)
            for change, C_i in zip(changes, C, strict=True)
        )
        fused[p.name] = W1 + shared.solve(wanted + (W0 - W1) @ prior)
    return fused


def shared_factor(grams: torch.Tensor, lamb: float) -> Ridge:
    """λI + grams (d, d), factored. The rows are already summed: 100 concepts have 200,000 of them."""
    return factor(grams.new_empty(0, len(grams)), grams, lamb)


def aligned(model: DiffusionModel, old: str, new: str) -> tuple[list[int], list[int]]:
    """The positions that two sentences share if they differ in one phrase: before it, after it, and in the padding."""
    a, b = model.token_ids(old), model.token_ids(new)
    first = common(a, b)
    last = common(a[first:][::-1], b[first:][::-1])
    padding = model.tokens - max(len(a), len(b))
    i, j = ([*range(first), *range(len(ids) - last, len(ids) + padding)] for ids in (a, b))
    return i, j


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the common prefix of two lists of ids."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def attention_loss(maps: Iterable[torch.Tensor], tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Σ_l ‖A_l[pixels, tokens]‖_F for maps A_l (…, heads, pixels, all tokens).

    ``tokens`` (all tokens,) and ``mask`` (h, w) are boolean. The mask is resized to each layer (nearest neighbour).
    """
    norms = []
    for A in maps:
        side = math.isqrt(A.shape[-2])
        inside = torch.nn.functional.interpolate(mask[None, None].float(), (side, side), mode="nearest") > 0.5
        chosen = A[..., inside.flatten(), :][..., tokens]
        norms.append(torch.linalg.vector_norm(chosen, dtype=torch.promote_types(A.dtype, torch.float32)))
    return reduce(torch.add, norms)


def focal_timesteps(total: int) -> torch.Tensor:
    """p(t) for t = 0 … total − 1, float64: a plateau from t = 200 to 400, where image content is decided."""
    t = torch.arange(total, dtype=torch.float64)
    likely = torch.sigmoid(0.05 * (t - 200)) - torch.sigmoid(0.05 * (t - 400))
    return likely / likely.sum()


def official_latents(pictures: ImageBank, rows: Sequence[int], draws: Draws, name: str) -> torch.Tensor:
    """`ImageBank.latents` of images that are normalised with ImageNet's mean and deviation."""
    pixels = torch.from_numpy(np.stack([np.asarray(pictures.images[row], dtype=np.float32) for row in rows]) / 255)
    normalised = (pixels - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_DEVIATION)
    return draws.take(name, lambda g: pictures.model.pixels_to_latents(normalised.permute(0, 3, 1, 2), g))
