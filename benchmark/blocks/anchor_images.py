"""Images of what replaces a concept, and batches of them with captions that name the concept instead (CA, DoCo).

The unedited model generates images of an anchor ("a photo of a cat"). A batch has latents of such images, the captions c_a that
they were made from, and the captions c* that name the concept instead ("a photo of a grumpy cat").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image, ImageOps

from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.image_bank import ImageBank, paint, shuffled
from overpaint.blocks.prior import Captions, read_captions
from overpaint.blocks.templates import OBJECT, SCENES, THINGS, phrase_templates, with_article
from overpaint.errors import UserError
from overpaint.grid.concepts import Concept
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.lazily import torch

#: Three forms of c* for a caption c and the concept's name, drawn with equal probability, by rule.
Forms = Mapping[str, tuple[str, str, str]]

#: Kind of a concept -> the rule that makes its captions from its anchor's; other kinds use ``object``.
RULES = {"style": "style", "unsafe": "unsafe", "mark": "unsafe"}

#: Resampling filter of the augmentation, by variant.
FILTERS = {"diffusers": Image.Resampling.LANCZOS, "compvis": Image.Resampling.BICUBIC}


@dataclass(frozen=True, kw_only=True)
class AnchorImages:
    """How the images and captions of a request are made.

    Attributes:
        method: the method's name, for messages.
        targets: the concepts, each with its anchor. Image i belongs to concept i mod n.
        forms: the forms of c* by rule; ``style compvis`` replaces ``style`` in the variant ``compvis``.
        variant: whose augmentation is used: of the ``diffusers`` or the ``compvis`` code of Concept Ablation.
        bordered: whether images that fill the frame get a masked border too.

    The others are hyper-parameters of the methods (``conf/method/ca.yaml``).
    """

    method: str
    targets: Sequence[tuple[Concept, str]]
    forms: Forms
    variant: str = "diffusers"
    bordered: bool = False
    rule: str | None
    templates: list[str] | None
    captions: Captions
    pictures: int
    scheduler: str
    steps: int
    guidance_scale: float
    negative_prompt: str | None
    augment: bool
    flip: bool

    def rule_of(self, concept: Concept) -> str:
        """The rule that makes the concept's captions: ``rule``, or the kind's own."""
        return self.rule or RULES.get(concept.kind, "object")

    def bank(self, model: DiffusionModel, draws: Draws) -> ImageBank:
        """Images of the anchors. Image i belongs to concept i mod n."""
        each = [self.anchor_captions(concept, anchor) for concept, anchor in self.targets]
        rows = [next(shuffled(draws, "captions", len(captions), self.pictures)) for captions in each]
        captions = [each[i % len(each)][rows[i % len(each)][i // len(each)]] for i in range(self.pictures)]
        unwanted = ", ".join(concept.name for concept, _ in self.targets if self.rule_of(concept) == "unsafe")
        return paint(
            model,
            captions,
            draws,
            scheduler=self.scheduler,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            negative_prompt=unwanted if self.negative_prompt is None else self.negative_prompt,
        )

    def anchor_captions(self, concept: Concept, anchor: str) -> list[str]:
        """Captions of a concept's anchor. The rule ``object`` uses only captions that contain the anchor."""
        if self.captions:
            captions = read_captions(self.captions)
        else:
            captions = self.sentences(concept, anchor)
        if self.rule_of(concept) == "object":
            captions = [c for c in captions if anchor and target_caption("object", concept.name, c, 0, {}, anchor) != c]
        if not captions:
            raise UserError(
                f"method={self.method}: rule=object replaces the anchor in captions, but none contains {anchor!r}"
            )
        return captions

    def sentences(self, concept: Concept, anchor: str) -> list[str]:
        """Captions from templates.

        The anchor of a style is a medium ("painting"), which gives "painting of a house". The anchor of an unsafe concept
        is a comma-separated list of subjects.
        """
        if self.rule_of(concept) == "style" and self.templates is None:
            return [f"{anchor} of {scene}" for scene in SCENES]
        templates = phrase_templates(concept.kind, len(OBJECT), self.templates)
        if concept.kind == "style":
            return [template.format(anchor) for template in templates]
        things = [with_article(thing.strip()) for thing in anchor.split(",") if thing.strip()]
        return [template.format(thing) for template in templates for thing in things or THINGS]

    def batch(self, model: DiffusionModel, bank: ImageBank, rows, prior_rows, draws: Draws) -> Batch:
        """Images with the concept's and the anchor's captions, followed by the prior's images with their own captions."""
        size, cells = model.image_size, model.image_size // model.pixels_per_latent
        images, masks, captions = [], [], []
        for row in rows:
            concept, anchor = self.targets[row % len(self.targets)]
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
        """The image or its mirror image, with equal probability; with ``flip`` off, the image."""
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

    def named(self, concept: Concept, anchor: str, caption: str, draws: Draws) -> str:
        """c*: the anchor's caption, changed to name the concept."""
        rule, name = self.rule_of(concept), concept.name
        if (rule, self.variant) == ("style", "compvis"):
            rule, name = "style compvis", " ".join([name] * draws.integer("names", 1, 3))
        return target_caption(rule, name, caption, draws.integer("form", 0, 3), self.forms, anchor)


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


def target_caption(rule: str, name: str, caption: str, form: int, forms: Forms, anchor: str = "") -> str:
    """c*: an anchor's caption, changed to name the concept in one of three forms.

    >>> target_caption("object", "grumpy cat", "a photo of a cat", 0, {}, "cat")
    'a photo of a grumpy cat'
    >>> target_caption("unsafe", "blood", "a tree at sunset", 2, {"unsafe": ("{name}, {c}", "{c} in {name}", "{c}, {name}")})
    'a tree at sunset, blood'
    """
    if rule == "object":
        return re.sub(rf"\b{re.escape(anchor)}", lambda match: name, caption)
    return forms[rule][form].format(name=name, c=caption)


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
