"""EraseDiff: the concept's captions are trained towards the predictions of another caption, next to images that are retained.

Wu, Le, Hayat and Harandi, "Erasing Undesirable Influence in Diffusion Models", CVPR 2025, arXiv 2401.05779. Notation: D_f are
images of the concept with captions c, D_r retained images with captions c_r, c_p is the pseudo caption ("a photo of a
pokemon"), e the student, x_t and x_r noised latents (b, 4, h, w) of D_f and D_r with separate timesteps and noise:

    L_f  = mean (e(x_t, c) − y)²,   y = e(x_t, c_p) without gradient
    L_r  = mean (ε_r − e(x_r, c_r))²
    loss = L_r + λ (L_f − L_f(θ^K))                                           Adam; one pass over D_f is an epoch

θ^K are the weights after K passes on L_f alone from the epoch's weights, so L_f(θ^K) is a constant of the epoch. λ is fixed
(``forget_weight``), or with ``eta`` it is max(0, η − cos(∇L_r, ∇L_f)) over all of the denoiser's parameters. In both cases the
constant has no gradient, and ``intended`` leaves it and the K passes out.

Official code (``compat: official``) runs K times, in each epoch: one inner pass on L_f, a reset to the epoch's weights, and one
pass on the loss. Only the last of these passes is kept, but both kinds share Adam's moments, so the inner passes matter. It
draws the latents of y a second time from the images' posterior, with the same t and ε. Each step takes the first images of
D_f, for unsafe concepts also of D_r; otherwise random ones of D_r. ``intended`` shuffles both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, ClassVar, Literal

from overpaint.blocks.concept_pictures import (
    Caption,
    Encoded,
    Shown,
    check_pictures,
    concept_bank,
    concept_caption,
    encoded,
    enough,
    passes,
    stand_in,
)
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.image_bank import ImageBank, diffused, shuffled
from overpaint.blocks.training import COMPVIS_GROUPS, Rule, Student, gradients, mean_square, parameter_group, train
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Concept, Request
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.lazily import torch

#: ``train`` -> the parameters to train: ESD's groups, and attention of two blocks each.
GROUPS: dict[str, Rule] = COMPVIS_GROUPS | {
    "xlayer": lambda p: (
        p.attention == "cross" and p.name.startswith(("up_blocks.2.attentions.0.", "up_blocks.2.attentions.2."))
    ),
    "selflayer": lambda p: (
        p.attention == "self" and p.name.startswith(("down_blocks.1.attentions.0.", "down_blocks.2.attentions.0."))
    ),
}


@dataclass(kw_only=True)
class EraseDiff(Eraser):
    """Hyper-parameters of EraseDiff; ``conf/method/erasediff.yaml`` explains each."""

    compat: Literal["intended", "official"]
    train: Literal["full", "noxattn", "xattn", "selfattn", "notime", "xlayer", "selflayer"]
    forget_captions: list[str] | None
    pseudo_caption: str | None
    default_anchor: str
    template: str | None
    retain_template: str | None
    forget_weight: float
    eta: float | None
    inner_passes: int
    folder: str | None
    pictures: int
    retain_pictures: int
    picture_scheduler: str
    picture_steps: int
    picture_guidance: float
    epochs: int
    learning_rate: float
    batch_size: int

    added: ClassVar[Mapping[str, Any]] = {"forget_captions": None}

    @property
    def lengths(self) -> tuple[str, ...]:
        passed = ("epochs", "inner_passes") if self.compat == "official" else ("epochs",)
        return (*passed, "pictures", "retain_pictures") if self.folder is None else passed

    def __post_init__(self):
        at_least(1, pictures=self.pictures, retain_pictures=self.retain_pictures, picture_steps=self.picture_steps)
        at_least(1, epochs=self.epochs, batch_size=self.batch_size, inner_passes=self.inner_passes)
        at_least(0, learning_rate=self.learning_rate)
        if self.forget_captions is not None and not self.forget_captions:
            raise UserError("forget_captions takes a list of captions, or null for one caption by kind, got none")
        check_pictures(self.folder, template=self.template, retain_template=self.retain_template)

    def least(self, request: Request) -> Mapping[str, int]:
        return {"pictures": len(request.erase), "retain_pictures": len(request.retain or request.erase)}

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        draws = Draws(self.seed)
        retained: Sequence[Concept | None] = request.retain or [
            stand_in(concept, self.default_anchor) for concept in request.erase
        ]
        if self.folder is None:
            enough(pictures=(self.pictures, request.erase), retain_pictures=(self.retain_pictures, retained))
        named, kept = self.caption(self.template, self.forget_captions), self.caption(self.retain_template)
        forget, shown = self.bank(model, request.erase, self.pictures, named, draws)
        retain, _ = self.bank(model, retained, self.retain_pictures, kept, draws)
        pseudo = [self.pseudo(request.erase[owner], thing) for owner, thing in shown]
        embeds = encoded(model, [*forget.captions, *retain.captions, *pseudo])
        names = parameter_group(model, GROUPS[self.train])
        every = parameter_group(model, GROUPS["full"]) if self.eta is not None else names
        student = Student(model, every)  # the cosine of λ reads all gradients
        forget_rows, retain_rows = self.rows(request, forget, retain, draws)
        met: list[torch.Tensor] = []  # losses of an inner pass

        def forgetting() -> torch.Tensor:
            rows = next(forget_rows)
            x_t, t, noise = diffused(model, forget.latents(rows, draws, "z_f"), draws)
            x_p = x_t
            if self.compat == "official":
                x_p = model.add_noise(forget.latents(rows, draws, "z_p"), noise, t)
            with student.active():
                predicted = model.predict(x_t, t, embeds(forget.captions[row] for row in rows))
                with torch.no_grad():
                    target = model.predict(x_p, t, embeds(pseudo[row] for row in rows))
            loss = mean_square(predicted, target)
            trace_values(loss_forget=loss.detach())
            met.append(loss.detach())
            return loss

        def both() -> torch.Tensor:
            retaining = self.retaining(model, student, retain, next(retain_rows), embeds, draws)
            forget_loss = forgetting()
            weight = self.forget_weight if self.eta is None else self.balance(student, retaining, forget_loss)
            trace_values(loss_retain=retaining.detach(), weight=weight)
            return retaining + weight * (forget_loss - reached)

        trained = [student.masters[name] for name in names]
        optimizer = torch.optim.Adam(trained, lr=self.learning_rate)
        batches, reached = -(-len(forget) // self.batch_size), torch.zeros((), device=model.device)
        for _ in range(self.epochs):
            start = [master.detach().clone() for master in trained]
            for _ in range(self.inner_passes if self.compat == "official" else 1):
                if self.compat == "official":
                    met.clear()
                    train(student, optimizer, batches, forgetting, "inner steps")
                    reached = torch.stack(met).mean()
                    with torch.no_grad():
                        for master, before in zip(trained, start, strict=True):
                            master.copy_(before)
                train(student, optimizer, batches, both)
        changes = {name: change for name, change in student.changes().items() if name in set(names)}
        return Erasure("erasediff", changes=changes, manifest={"pictures": [len(forget), len(retain)]})

    def retaining(
        self, model: DiffusionModel, student: Student, retain: ImageBank, rows: list[int], embeds: Encoded, draws: Draws
    ) -> torch.Tensor:
        """L_r of these retained images."""
        z = retain.latents(rows, draws, "z_r")
        x_r, t, noise = diffused(model, z, draws, "_r")
        with student.active():
            predicted = model.predict(x_r, t, embeds(retain.captions[row] for row in rows))
        return mean_square(predicted, model.denoising_target(z, noise, t))

    def balance(self, student: Student, retaining: torch.Tensor, forgetting: torch.Tensor) -> float:
        """λ = max(0, η − cos(∇L_r, ∇L_f)), 0 where ∇L_f is zero."""
        assert self.eta is not None
        parameters = list(student.masters.values())
        flat = []
        for loss in (retaining, forgetting):
            found = gradients(loss, parameters, student.dtype, retain_graph=True)
            flat.append(torch.cat([g.flatten() for g in found if g is not None]))
        product = flat[0].double() @ flat[1].double()
        norms = [gradient.double().norm() for gradient in flat]
        if not norms[1]:
            return 0.0
        return max(0.0, self.eta - float(product / (norms[0] * norms[1] + 1e-8)))

    def rows(
        self, request: Request, forget: ImageBank, retain: ImageBank, draws: Draws
    ) -> tuple[Iterator[list[int]], Iterator[list[int]]]:
        """Endless batches of rows of D_f and D_r."""
        if self.compat == "intended":
            return (
                passes(draws, "forget", len(forget), self.batch_size),
                shuffled(draws, "retain", len(retain), self.batch_size),
            )
        first = [list(range(min(self.batch_size, len(bank)))) for bank in (forget, retain)]
        if all(concept.kind == "unsafe" for concept in request.erase):
            return cycle([first[0]]), cycle([first[1]])
        # a new permutation for every batch
        return cycle([first[0]]), (next(passes(draws, "retain", len(retain), self.batch_size)) for _ in cycle([0]))

    def pseudo(self, concept: Concept, thing: str) -> str:
        """c_p for an image of the concept."""
        if self.pseudo_caption is not None:
            return self.pseudo_caption
        return concept_caption(stand_in(concept, self.default_anchor), thing, self.template, self.default_anchor)

    def caption(self, template: str | None, given: Sequence[str] | None = None) -> Caption:
        """The captions of a bank: the ``given`` ones, an image each in turn, otherwise by ``template`` or kind."""
        if given:
            turn = cycle(given)
            return lambda concept, thing: next(turn)
        return lambda concept, thing: concept_caption(concept, thing, template, self.default_anchor)

    def bank(
        self, model: DiffusionModel, concepts: Sequence[Concept | None], count: int, caption: Caption, draws: Draws
    ) -> tuple[ImageBank, Shown]:
        """`concept_bank` with the settings of this method."""
        return concept_bank(
            model,
            concepts,
            count,
            caption,
            draws,
            folder=self.folder,
            scheduler=self.picture_scheduler,
            steps=self.picture_steps,
            guidance_scale=self.picture_guidance,
        )
