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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from overpaint.blocks.anchor_images import AnchorImages, Forms, detached_begin
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.image_bank import diffused, shuffled
from overpaint.blocks.prior import Captions, check_captions
from overpaint.blocks.training import Rule, gradient_of, student_of, train
from overpaint.errors import at_least
from overpaint.grid.concepts import Concept, Request
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.lazily import torch

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

#: Rule -> three forms of c* for a caption c and the concept's name, drawn with equal probability.
FORMS: Forms = {
    "style": ("{c}, in the style of {name}", "in {name}'s style, {c}", "in {name}'s style, {c}"),
    "style compvis": ("{c}, in the style of {name}", "in {name}'s style, {c}", "{name} inspired painting, {c}"),
    "unsafe": ("{name}, {c}", "in {name} style, {c}", "{c}, {name}"),
    "memorization": ("{name}",) * 3,
}


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
        images = self.images(targets)
        bank = images.bank(model, draws)
        texts, anchors = [concept.name for concept, _ in targets], [anchor for _, anchor in targets]
        student, learns = student_of(model, self.train, GROUPS, texts, anchors)
        optimizer = torch.optim.AdamW(student.masters.values(), lr=self.rate, weight_decay=self.decay)
        ablated = shuffled(draws, "pictures", len(bank), self.batch_size)
        preserved = shuffled(draws, "prior_pictures", len(bank), self.batch_size)

        prior_weight = self.prior_weight
        assert prior_weight is not None  # `__post_init__` fills it

        def loss() -> torch.Tensor:
            prior_rows = next(preserved) if self.prior else []
            batch = images.batch(model, bank, next(ablated), prior_rows, draws)
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

    def images(self, targets: list[tuple[Concept, str]]) -> AnchorImages:
        """Images of the anchors, with captions for both."""
        assert self.picture_scheduler is not None and self.picture_steps is not None  # `__post_init__` fills them
        return AnchorImages(
            method="ca",
            targets=targets,
            forms=FORMS,
            variant=self.variant,
            bordered=self.variant == "diffusers" and self.compat == "official",
            rule=self.rule,
            templates=self.templates,
            captions=self.captions,
            pictures=self.pictures,
            scheduler=self.picture_scheduler,
            steps=self.picture_steps,
            guidance_scale=self.picture_guidance,
            negative_prompt=self.negative_prompt,
            augment=self.augment,
            flip=self.flip,
        )

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


def masked_error(predicted: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Squared error of (b, 4, h, w), summed over channels, averaged over the cells in ``mask``, then over the batch."""
    errors = (predicted.float() - target.float()).square() * mask
    return (errors.sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)).mean()
