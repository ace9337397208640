"""SalUn: the weights with the largest gradients for a concept are trained to predict another concept for its prompts.

Fan, Liu, Zhang, Wong, Wei and Liu, "SalUn: Empowering Machine Unlearning via Gradient-Based Weight Saliency in Both Image
Classification and Generation", ICLR 2024, arXiv 2310.12508. D_f are images of the concept with captions c, D_r images of
retained concepts with captions c_r, c_p are captions of a stand-in for the concept, x_t and x_r noised latents
(b, 4, h, w) of D_f and D_r, and e is the student:

    g    = |Σ_batches ∇_θ mean (ε − (1 + w) e(x_t, c) + w e(x_t, ∅))²|     over D_f, for the base; w ``saliency_guidance``
    m    = 1 for the fraction ``density`` of the denoiser's weights with the largest g, else 0
    loss = mean (e(x_t, c) − y)² + α mean (e(x_r, c_r) − ε_r)²,            y = e(x_t, c_p) without gradient
    θ   ← Adam with the gradient m ⊙ ∇loss                                  weights with m = 0 do not change

The gradient of g includes both predictions. The teacher in y is the current student. The two terms of the loss have
separate timesteps and noise.

The stand-in is the concept's anchor, else the next retained concept (in official code the next of ten classes), else the
default anchor; for styles, the default anchor is an image without a style. Official code trains on Imagenette's
photographs for objects and on 800 + 800 generated images for nudity. Here images are read from ``folder`` or generated.

``compat: official`` samples the latents of y separately from those of the student, with the same t and ε, and takes the
images of D_f in order (for unsafe concepts those of D_r too); ``intended`` uses the same latents and shuffles.
``saliency: abs`` sums |∇| over batches, so that gradients of different batches do not cancel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from overpaint.blocks.concept_pictures import (
    Encoded,
    Shown,
    check_pictures,
    concept_bank,
    concept_caption,
    encoded,
    enough,
    in_order,
    stand_in,
)
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.image_bank import ImageBank, diffused, shuffled
from overpaint.blocks.training import (
    Rule,
    Student,
    backward,
    gradient_of,
    mean_square,
    parameter_group,
    train,
)
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Concept, Request
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.lazily import torch
from overpaint.run.progress import steps

#: ``train`` -> the parameters to train, among those in the mask.
GROUPS: dict[str, Rule] = {
    "full": lambda p: True,
    "xattn": lambda p: p.attention == "cross",
}


@dataclass(kw_only=True)
class SalUn(Eraser):
    """Hyper-parameters of SalUn; ``conf/method/salun.yaml`` explains each."""

    compat: Literal["intended", "official"]
    train: Literal["full", "xattn"]
    density: float
    saliency: Literal["sum", "abs"]
    saliency_guidance: float
    retain_weight: float
    default_anchor: str
    template: str | None
    folder: str | None
    pictures: int
    retain_pictures: int
    picture_scheduler: str
    picture_steps: int
    picture_guidance: float
    epochs: int
    learning_rate: float
    batch_size: int

    version: ClassVar[int] = 2

    def __post_init__(self):
        at_least(1, pictures=self.pictures, retain_pictures=self.retain_pictures, picture_steps=self.picture_steps)
        at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        at_least(0, saliency_guidance=self.saliency_guidance, retain_weight=self.retain_weight)
        at_least(0, learning_rate=self.learning_rate)
        if not 0 < self.density <= 1:
            raise UserError(f"density takes a number above 0 and up to 1, got {self.density!r}")
        check_pictures(self.folder, template=self.template)

    @property
    def lengths(self) -> tuple[str, ...]:
        return ("epochs", "pictures", "retain_pictures") if self.folder is None else ("epochs",)

    def least(self, request: Request) -> Mapping[str, int]:
        return {"pictures": len(request.erase), "retain_pictures": len(request.retain or request.erase)}

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        draws = Draws(self.seed)
        stand_ins = [self.stand_in(request, index) for index in range(len(request.erase))]
        retained: Sequence[Concept | None] = request.retain or [concept for concept in stand_ins if concept] or [None]
        if self.folder is None:
            enough(pictures=(self.pictures, request.erase), retain_pictures=(self.retain_pictures, retained))
        forget, shown = self.bank(model, request.erase, self.pictures, draws)
        retain, _ = self.bank(model, retained, self.retain_pictures, draws)
        pseudo = [self.caption(stand_ins[owner], thing) for owner, thing in shown]
        embeds = encoded(model, ["", *forget.captions, *retain.captions, *pseudo])

        mask = self.mask(model, forget, embeds, draws) if self.density < 1 else {}
        student = Student(model, parameter_group(model, GROUPS[self.train]))
        ordered, unsafe = self.compat == "official", all(concept.kind == "unsafe" for concept in request.erase)
        forget_rows = self.rows("forget", forget, draws, ordered)
        retain_rows = self.rows("retain", retain, draws, ordered and unsafe)

        def loss() -> torch.Tensor:
            rows, kept = next(forget_rows), next(retain_rows)
            z_r = retain.latents(kept, draws, "z_remain")
            x_r, t_r, noise_r = diffused(model, z_r, draws, "_remain")
            z = forget.latents(rows, draws, "z_forget")
            x_t, t, noise = diffused(model, z, draws)
            x_p = x_t
            if self.compat == "official":
                x_p = model.add_noise(forget.latents(rows, draws, "z_pseudo"), noise, t)
            with student.active():
                predicted = model.predict(x_t, t, embeds(forget.captions[row] for row in rows))
                with torch.no_grad():
                    target = model.predict(x_p, t, embeds(pseudo[row] for row in rows))
                remembered = model.predict(x_r, t_r, embeds(retain.captions[row] for row in kept))
            forgetting = mean_square(predicted, target)
            trace_values(x_t=x_t, t=t, target=target, pred=predicted.detach(), forget_loss=forgetting.detach())
            return forgetting + self.retain_weight * mean_square(remembered, model.denoising_target(z_r, noise_r, t_r))

        def adjust() -> None:
            for name, parameter in student.masters.items():
                if name in mask:
                    gradient_of(parameter).mul_(mask[name])

        batches = -(-len(forget) // self.batch_size)
        optimizer = torch.optim.Adam(student.masters.values(), lr=self.learning_rate)
        train(student, optimizer, self.epochs * batches, loss, adjust=adjust)
        return Erasure("salun", changes=student.changes(), manifest={"pictures": [len(forget), len(retain)]})

    def rows(self, name: str, bank: ImageBank, draws: Draws, ordered: bool) -> Iterator[list[int]]:
        """Endless batches of a bank's rows, in order or shuffled."""
        order = in_order if ordered else partial(shuffled, draws, name)
        return order(len(bank), self.batch_size)

    def mask(self, model: DiffusionModel, bank: ImageBank, embeds: Encoded, draws: Draws) -> dict[str, torch.Tensor]:
        """m by name: a boolean mask in the shape of each parameter of the denoiser."""
        base = Student(model, parameter_group(model, GROUPS["full"]))
        total: dict[str, torch.Tensor] = {}
        w = self.saliency_guidance
        for batch in steps(-(-len(bank) // self.batch_size), "saliency"):
            rows = range(len(bank))[batch * self.batch_size : (batch + 1) * self.batch_size]
            z = bank.latents(rows, draws, "z")
            x_t, t, noise = diffused(model, z, draws)
            with torch.enable_grad(), base.active():
                named = model.predict(x_t, t, embeds(bank.captions[row] for row in rows))
                nothing = model.predict(x_t, t, embeds("" for row in rows))
                error = mean_square((1 + w) * named - w * nothing, model.denoising_target(z, noise, t))
                backward(error, list(base.masters.values()), model.dtype)
            trace_values(saliency_loss=error.detach())
            for name, parameter in base.masters.items():
                gradient = gradient_of(parameter) if self.saliency == "sum" else gradient_of(parameter).abs_()
                total[name] = gradient if name not in total else total[name].add_(gradient)
                parameter.grad = None
        mask = largest({name: gradient.abs_() for name, gradient in total.items()}, self.density)
        trace_values(mask=mask)
        return mask

    def stand_in(self, request: Request, index: int) -> Concept | None:
        """The stand-in of an erased concept; ``None`` for the empty anchor, which means the unconditional prompt."""
        concept = request.erase[index]
        if concept.anchor is None and request.retain:
            return request.retain[index % len(request.retain)]
        return stand_in(concept, self.default_anchor, request.retain)

    def bank(
        self, model: DiffusionModel, concepts: Sequence[Concept | None], count: int, draws: Draws
    ) -> tuple[ImageBank, Shown]:
        """Images of concepts and what each shows: all images of ``folder``, or ``count`` generated ones."""
        return concept_bank(
            model,
            concepts,
            count,
            self.caption,
            draws,
            folder=self.folder,
            scheduler=self.picture_scheduler,
            steps=self.picture_steps,
            guidance_scale=self.picture_guidance,
        )

    def caption(self, concept: Concept | None, thing: str) -> str:
        """The caption of an image of a concept; the default anchor of a style is an image without a style."""
        return concept_caption(concept, thing, self.template, self.default_anchor)


def largest(scores: Mapping[str, torch.Tensor], density: float) -> dict[str, torch.Tensor]:
    """Boolean masks of the fraction ``density`` of all scores that is largest, over all tensors together.

    Among scores equal to the smallest one selected, the first ones are selected.
    """
    flat = torch.cat([score.flatten() for score in scores.values()])
    count = max(1, int(density * len(flat)))
    level = flat.kthvalue(len(flat) - count + 1).values
    chosen = flat > level
    chosen[(flat == level).nonzero().flatten()[: count - int(chosen.sum())]] = True
    parts = chosen.split([score.numel() for score in scores.values()])
    return {name: part.view_as(score) for (name, score), part in zip(scores.items(), parts, strict=True)}
