"""CA (Concept Ablation, also AC): the concept's captions get the same predictions as the anchor's, on images of the anchor.

Kumari, Zhang, Wang, Shechtman, Zhang and Zhu, "Ablating Concepts in Text-to-Image Diffusion Models", ICCV 2023,
arXiv 2303.13516. The unedited model generates images of an anchor ("a photo of a cat"). Notation: x_t (b, 4, h, w) is a
noised latent of such an image, c_a its caption, c* the caption that names the concept instead ("a photo of a grumpy
cat"), e the student, and M (b, 1, h, w) the mask of latents that show the image rather than augmentation padding:

    ablation = mean_i [ Σ_{chw} M (e(x_t, c*) − y)² / Σ_{hw} M ]
    y        = e(x_t, c_a)  without gradient (``loss: model``), or the true noise ε (``loss: noise``)
    loss     = ablation + prior_weight · mean (e(x'_t, c_a) − ε')²        the second term with ``prior`` only

The optimiser is AdamW with gradients clipped to norm ``max_norm``. The teacher in y is the current student, not the base.
In cross-attention, no gradient flows through the keys and values of the begin token. The ablation term sums over the four
channels, so it is four times a mean squared error, which matters for the balance with the prior and for clipping.

The authors published two codes (``variant``); ``OFFICIAL`` has their constants:

``diffusers``  the current repository. This variant was compared with runs of it.
``compvis``    the code of the paper's figures; this variant follows its source only. It differs from ``diffusers``: a
               third caption form for styles, the artist's name twice in half of the captions, no clipping, no doubled
               learning rate with the prior, and images scaled to 60 % or more stay at full size. Its images come from
               stochastic DDIM (η = 1), here from DDIM; it also augments the prior's images.

``compat: official`` masks a border of one latent cell in images that fill the frame, as the ``diffusers`` code does.
``intended`` masks only around images that are pasted into a larger frame.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from PIL import Image, ImageOps

from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.image_bank import THINGS, ImageBank, diffused, paint, shuffled, with_article
from overpaint.blocks.prior import Captions, check_captions, read_captions
from overpaint.blocks.templates import OBJECT, phrase_templates
from overpaint.blocks.training import Rule, Student, gradient_of, parameter_group, train
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Concept, Request
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure

#: Defaults of each official code, used where the YAML says null; ``max_norm`` 0 means no clipping. The ``compvis`` code has
#: the prior weight 0.2 with a prior term summed over four channels, hence 0.8 here.
OFFICIAL = {
    "diffusers": {"prior_weight": 1.0, "max_norm": 1.0, "picture_scheduler": "dpm", "picture_steps": 25},
    "compvis": {"prior_weight": 0.8, "max_norm": 0.0, "picture_scheduler": "ddim", "picture_steps": 200},
}

#: ``train`` -> the denoiser's parameters to train. ``embedding`` trains token embeddings of the text encoder instead.
GROUPS: dict[str, Rule] = {
    "kv": lambda p: p.attention == "cross" and p.role in ("key", "value"),
    "attn": lambda p: p.role != "",
    "full": lambda p: True,
}

#: Kind of a concept -> the rule that makes its captions from its anchor's; other kinds use ``object``.
RULES = {"style": "style", "unsafe": "unsafe", "mark": "unsafe"}

#: Rule -> three forms of c* for a caption c and the concept's name, drawn with equal probability.
FORMS = {
    "style": ("{c}, in the style of {name}", "in {name}'s style, {c}", "in {name}'s style, {c}"),
    "style compvis": ("{c}, in the style of {name}", "in {name}'s style, {c}", "{name} inspired painting, {c}"),
    "unsafe": ("{name}, {c}", "in {name} style, {c}", "{c}, {name}"),
    "memorization": ("{name}",) * 3,
}

#: Resampling filter of the augmentation, by variant.
FILTERS = {"diffusers": Image.Resampling.LANCZOS, "compvis": Image.Resampling.BICUBIC}

#: Places in the anchor captions of a style.
PLACES = ("", " at night", " in the meadow", " at dusk", " under a blue sky", " in the desert")


@dataclass(kw_only=True)
class CA(Eraser):
    """Hyper-parameters of CA; ``conf/method/ca.yaml`` explains each."""

    variant: Literal["diffusers", "compvis"]
    compat: Literal["intended", "official"]
    loss: Literal["model", "noise"]
    train: Literal["kv", "attn", "full", "embedding"]
    rule: Literal["style", "object", "unsafe", "memorization"] | None
    default_anchor: str
    templates: list[str] | None
    captions: Captions
    pictures: int
    picture_scheduler: str | None
    picture_steps: int | None
    picture_guidance: float
    negative_prompt: str | None
    augment: bool
    flip: bool
    prior: bool
    prior_weight: float | None
    iterations: int
    learning_rate: float
    scale_learning_rate: bool
    batch_size: int
    weight_decay: float
    max_norm: float | None

    version: ClassVar[int] = 2
    lengths: ClassVar[tuple[str, ...]] = ("iterations", "pictures")

    def __post_init__(self):
        for name, value in OFFICIAL[self.variant].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        check_captions(self.captions)
        at_least(1, pictures=self.pictures, picture_steps=self.picture_steps, iterations=self.iterations)
        at_least(1, batch_size=self.batch_size)
        at_least(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay, max_norm=self.max_norm)
        at_least(0, prior_weight=self.prior_weight)

    def least(self, request: Request) -> Mapping[str, int]:
        return {"pictures": len(request.erase)}

    @property
    def acts_on(self) -> str:
        return {"kv": "conditioning", "embedding": "text_encoder"}.get(self.train, "denoiser")

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        draws = Draws(self.seed)
        targets = list(zip(request.erase, request.anchors(self.default_anchor), strict=True))
        bank = self.bank(model, targets, draws)
        student, learns = self.student(model, targets)
        optimizer = torch.optim.AdamW(student.masters.values(), lr=self.rate, weight_decay=self.decay)
        ablated = shuffled(draws, "pictures", len(bank), self.batch_size)
        preserved = shuffled(draws, "prior_pictures", len(bank), self.batch_size)

        prior_weight = self.prior_weight
        assert prior_weight is not None  # `__post_init__` fills it

        def loss() -> torch.Tensor:
            prior_rows = next(preserved) if self.prior else []
            batch = self.batch(model, bank, targets, next(ablated), prior_rows, draws)
            x_t, t, noise = diffused(model, batch.latents, draws)
            truth, rows = model.denoising_target(batch.latents, noise, t), len(batch.anchor_ids)
            with student.active():
                predicted = model.predict(x_t, t, model.encode_ids(batch.ids))
                target = truth[:rows]
                if self.loss == "model":
                    with torch.no_grad():
                        target = model.predict(x_t[:rows], t[:rows], model.encode_ids(batch.anchor_ids))
            trace_values(x_t=x_t, t=t, target=target, pred=predicted.detach())
            ablation = masked_error(predicted[:rows], target, batch.mask[:rows])
            if not self.prior:
                return ablation
            return ablation + prior_weight * torch.nn.functional.mse_loss(
                predicted[rows:].float(), truth[rows:].float()
            )

        def adjust() -> None:
            for name, rows in learns.items():
                gradient_of(student.masters[name])[~rows] = 0
            if self.max_norm:
                trace_values(clip_norm=torch.nn.utils.clip_grad_norm_(student.masters.values(), self.max_norm))

        with detached_begin(model):
            train(student, optimizer, self.iterations, loss, adjust=adjust)
        return Erasure("ca", changes=student.changes(), manifest={"pictures": len(bank)})

    @property
    def rate(self) -> float:
        """The optimiser's learning rate. Official code multiplies it by the batch size and, with the prior, by two."""
        if not self.scale_learning_rate:
            return self.learning_rate
        return self.learning_rate * self.batch_size * (2 if self.prior and self.variant == "diffusers" else 1)

    @property
    def decay(self) -> float:
        """Weight decay; 0 for token embeddings, since it would shrink those of all other words too."""
        return 0.0 if self.train == "embedding" else self.weight_decay

    def student(self, model: DiffusionModel, targets) -> tuple[Student, dict[str, torch.Tensor]]:
        """The student, and for a token table the mask (vocabulary,) of its trained rows.

        These are the tokens of the concepts that are not tokens of the anchors.
        """
        if self.train != "embedding":
            return Student(model, parameter_group(model, GROUPS[self.train])), {}
        pieces, kept = (
            {piece for text in texts for piece in model.token_ids(text)[1:-1]}
            for texts in ([concept.name for concept, _ in targets], [anchor for _, anchor in targets])
        )
        if not pieces - kept:
            raise UserError(
                "method=ca: train=embedding has nothing to train: the anchors contain all words of the concepts"
            )
        names = [name for name in model.text_encoder_names if name.endswith("token_embedding.weight")]
        student = Student(model, names)
        rows = torch.zeros(len(student.masters[names[0]]), dtype=torch.bool)
        rows[sorted(pieces - kept)] = True
        return student, {name: rows for name in names}

    # --- captions and images -----------------------------------------------------------------------------------

    def rule_of(self, concept: Concept) -> str:
        """The rule that makes the concept's captions: the hyper-parameter ``rule`` or the kind's own."""
        return self.rule or RULES.get(concept.kind, "object")

    def bank(self, model: DiffusionModel, targets: list[tuple[Concept, str]], draws: Draws) -> ImageBank:
        """Images of the anchors. Image i belongs to concept i mod n."""
        each = [self.anchor_captions(concept, anchor) for concept, anchor in targets]
        rows = [next(shuffled(draws, "captions", len(captions), self.pictures)) for captions in each]
        captions = [each[i % len(each)][rows[i % len(each)][i // len(each)]] for i in range(self.pictures)]
        unwanted = ", ".join(concept.name for concept, _ in targets if self.rule_of(concept) == "unsafe")
        assert self.picture_scheduler is not None and self.picture_steps is not None  # `__post_init__` fills them
        return paint(
            model,
            captions,
            draws,
            scheduler=self.picture_scheduler,
            steps=self.picture_steps,
            guidance_scale=self.picture_guidance,
            negative_prompt=unwanted if self.negative_prompt is None else self.negative_prompt,
        )

    def anchor_captions(self, concept: Concept, anchor: str) -> list[str]:
        """Captions of a concept's anchor. The rule ``object`` uses only captions that contain the anchor."""
        if self.captions:
            captions = read_captions(self.captions)
        else:
            captions = self.sentences(concept, anchor)
        if self.rule_of(concept) == "object":
            captions = [c for c in captions if anchor and target_caption("object", concept.name, c, 0, anchor) != c]
        if not captions:
            raise UserError(f"method=ca: rule=object replaces the anchor in captions, but none contains {anchor!r}")
        return captions

    def sentences(self, concept: Concept, anchor: str) -> list[str]:
        """Captions from templates.

        The anchor of a style is a medium ("painting"), which gives "painting of a house". The anchor of an unsafe concept
        is a comma-separated list of subjects.
        """
        if self.rule_of(concept) == "style" and self.templates is None:
            return [f"{anchor} of {thing}{place}" for place in PLACES for thing in THINGS]
        templates = phrase_templates(concept.kind, len(OBJECT), self.templates)
        if concept.kind == "style":
            return [template.format(anchor) for template in templates]
        things = [with_article(thing.strip()) for thing in anchor.split(",") if thing.strip()]
        return [template.format(thing) for template in templates for thing in things or THINGS]

    def batch(self, model: DiffusionModel, bank: ImageBank, targets, rows, prior_rows, draws: Draws) -> Batch:
        """Images with the concept's and the anchor's captions, followed by the prior's images with their own captions."""
        size, cells = model.image_size, model.image_size // model.pixels_per_latent
        images, masks, captions = [], [], []
        for row in rows:
            concept, anchor = targets[row % len(targets)]
            placement = self.placement(size, draws)
            picture, resample = self.flipped(bank.images[row], draws), FILTERS[self.variant]
            image, mask = place(picture, placement, cells, self.bordered, resample)
            named = self.named(concept, anchor, bank.captions[row], draws)
            images.append(image)
            masks.append(mask)
            captions.append(size_prefix(placement.scale / size, draws) + named)
        for row in prior_rows:
            images.append(self.flipped(bank.images[row], draws))
            masks.append(torch.ones(1, cells, cells))
            captions.append(bank.captions[row])
        anchor_captions = [bank.captions[row] for row in rows]
        trace_values(captions=captions, anchor_captions=anchor_captions)
        return Batch(
            draws.take("z", lambda g: model.to_latents(images, g)).to(model.device, model.dtype),
            draws.take("mask", lambda g: torch.stack(masks)).to(model.device),
            draws.take("input_ids", lambda g: model.padded_ids(captions, truncate=True)).to(model.device),
            draws.take("anchor_ids", lambda g: model.padded_ids(anchor_captions, truncate=True)).to(model.device),
        )

    def flipped(self, image: Image.Image, draws: Draws) -> Image.Image:
        return ImageOps.mirror(image) if self.flip and draws.integer("flip", 0, 2) else image

    def placement(self, size: int, draws: Draws) -> Placement:
        """Draw an augmentation: 66 % of the images are shrunk and pasted into the frame, the others are zoomed in."""
        if not self.augment:
            return Placement(size, 0, 0)
        if draws.integer("percent", 0, 100) < 66:
            scale = draws.integer("scale", size // 3, size + 1)
        else:
            scale = draws.integer("scale", int(1.2 * size), int(1.4 * size))
        if self.variant == "compvis" and 0.6 * size <= scale <= size:
            scale = size
        return Placement(scale, *(draws.integer(side, 0, abs(size - scale) + 1) for side in ("top", "left")))

    @property
    def bordered(self) -> bool:
        """Whether images that fill the frame get a masked border too."""
        return self.variant == "diffusers" and self.compat == "official"

    def named(self, concept: Concept, anchor: str, caption: str, draws: Draws) -> str:
        """c*: the anchor's caption, changed to name the concept."""
        rule, name = self.rule_of(concept), concept.name
        if (rule, self.variant) == ("style", "compvis"):
            rule, name = "style compvis", " ".join([name] * draws.integer("names", 1, 3))
        return target_caption(rule, name, caption, draws.integer("form", 0, 3), anchor)


class Batch(NamedTuple):
    """Latents (b, 4, h, w), masks (b, 1, h, w), and token ids (b, tokens) of the concept's and of the anchor's captions.

    ``anchor_ids`` has no rows for the prior's images.
    """

    latents: torch.Tensor
    mask: torch.Tensor
    ids: torch.Tensor
    anchor_ids: torch.Tensor


class Placement(NamedTuple):
    """Side of the resized image and its top left corner in the frame, in pixels.

    If the image is larger than the frame, the corner is that of the frame in the image.
    """

    scale: int
    top: int
    left: int


def place(
    image: Image.Image, at: Placement, cells: int, bordered: bool, resample: Image.Resampling
) -> tuple[Image.Image, torch.Tensor]:
    """The image pasted on grey or cropped, and the mask (1, cells, cells) of the latents that show it.

    The mask of a pasted image leaves out one cell on each side, because the encoder mixes them with the grey background.
    """
    size = image.width
    if at.scale == size and not bordered:
        return image, torch.ones(1, cells, cells)
    resized = image.resize((at.scale, at.scale), resample)
    if at.scale > size:
        return resized.crop((at.left, at.top, at.left + size, at.top + size)), torch.ones(1, cells, cells)
    frame = Image.new("RGB", (size, size), (128, 128, 128))
    frame.paste(resized, (at.left, at.top))
    cell, mask = size // cells, torch.zeros(1, cells, cells)
    rows, columns = (slice(low // cell + 1, (low + at.scale) // cell - 1) for low in (at.top, at.left))
    mask[:, rows, columns] = 1
    return frame, mask


def size_prefix(scale: float, draws: Draws) -> str:
    """A prefix of the concept's caption for an image scaled to this fraction of the frame; anchor captions have none."""
    if 0.6 <= scale <= 1:
        return ""
    words = ("a far away ", "very small ") if scale < 1 else ("zoomed in ", "close up ")
    return words[draws.integer("prefix", 0, 2)]


def target_caption(rule: str, name: str, caption: str, form: int, anchor: str = "") -> str:
    """c*: an anchor's caption, changed to name the concept in one of three forms.

    >>> target_caption("object", "grumpy cat", "a photo of a cat", 0, "cat")
    'a photo of a grumpy cat'
    >>> target_caption("style", "van gogh", "a tree at sunset", 1)
    "in van gogh's style, a tree at sunset"
    """
    if rule == "object":
        return re.sub(rf"\b{re.escape(anchor)}", lambda match: name, caption)
    return FORMS[rule][form].format(name=name, c=caption)


def masked_error(predicted: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Squared error of (b, 4, h, w), summed over channels, averaged over the cells in ``mask``, then over the batch."""
    errors = (predicted.float() - target.float()).square() * mask
    return (errors.sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)).mean()


@contextmanager
def detached_begin(model: DiffusionModel) -> Iterator[None]:
    """Inside the block, no gradient flows through the begin token's keys and values; outputs are unchanged bit for bit."""

    def detach(module, inputs, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)

    hooks = [layer.module.register_forward_hook(detach) for layer in model.projections("key", "value", stream="text")]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
