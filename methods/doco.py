"""DoCo (Domain Correction): adversarial training pulls the predictions for the concept's captions to those for its anchor's.

Wu, Zhou, Yang, Wang, Chang, Zhu, Hu, Zhou and Yang, "Unlearning Concepts in Diffusion Model via Concept Domain Correction and
Concept Preserving Gradient", AAAI 2025, arXiv 2405.15304. The images and captions are those of Concept Ablation. Notation: x_t
(b, 4, h, w) is a noised latent of an image of the anchor, c_a its caption, c* the caption that names the concept instead, e
the student, e0 the base, D a discriminator of latents with logits (b, h', w'), and x̂_0(·) the clean latent of a prediction:

    critic     = BCE(D(x̂_0(e0(x_t, c_a))), 0) + BCE(D(x̂_0(e(x_t, c*))), 1)                     Adam on D, in every step
    correction = BCE(D(x̂_0(e(x_t, c*))), 0)                       after ``warmup`` steps; AdamW on the student, before D's step
    prior      = mean (e(x'_t, c_a) − ε')²

With ``surgery``, g and h are the gradients of correction and prior, each clipped to norm ``max_norm``. Where g opposes h in a
tensor of the student, the part along h is removed, and h itself is never applied:

    g ← g − λ (g·ĥ) ĥ    where g·ĥ < 0, ĥ = h/‖h‖                                              λ ``surgery_strength``

Without surgery, the loss is correction + 0.1 · ``prior_weight`` · prior, and its gradient is clipped.

Official code differs in four ways, which ``compat: official`` reproduces. It subtracts λ cos(g, h) ĥ, which has unit scale
while g is far shorter, so that a tensor with conflict is trained on the prior instead; and it does so in cross-attention only,
whatever is trained. D's step includes the gradient that the student's loss leaves on D, which pulls D(x̂_0(c*)) to the undecided
middle. The student starts one step later. Hyphens in the concept's name become spaces.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from overpaint.blocks.anchor_images import AnchorImages, Batch, Forms, detached_begin
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.image_bank import diffused, shuffled
from overpaint.blocks.prior import Captions, check_captions
from overpaint.blocks.training import Rule, Student, gradients, student_of
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Concept, Request
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.lazily import functional, torch
from overpaint.run.progress import steps

#: ``train`` -> the denoiser's parameters to train. ``embedding`` trains token embeddings of the text encoder instead.
GROUPS: dict[str, Rule] = {
    "kv": lambda p: p.attention == "cross" and p.role in ("key", "value"),
    "full": lambda p: True,
}

#: Rule -> three forms of c* for a caption c and the concept's name, drawn with equal probability.
FORMS: Forms = {
    "style": ("{c}, in the style of {name}", "in {name}'s style, {c}", "in {name}'s style, {c}"),
    "unsafe": ("{name}, {c}", "in {name}'s style, {c}", "in {name}'s style, {c}"),
    "memorization": ("{name}",) * 3,
}

#: Factor of the prior's loss without surgery.
PRIOR = 0.1
#: Slope of D's activations below zero, and Adam's betas for D.
SLOPE, BETAS = 0.2, (0.5, 0.999)


@dataclass(kw_only=True)
class DoCo(Eraser):
    """Hyper-parameters of DoCo; ``conf/method/doco.yaml`` explains each."""

    compat: Literal["intended", "official"]
    loss: Literal["model", "noise"]
    train: Literal["kv", "full", "embedding"]
    rule: Literal["style", "object", "unsafe", "memorization"] | None
    default_anchor: str
    templates: list[str] | None
    captions: Captions
    pictures: int
    picture_scheduler: str
    picture_steps: int
    picture_guidance: float
    negative_prompt: str | None
    augment: bool
    flip: bool
    surgery: bool
    surgery_strength: float
    prior: bool
    prior_weight: float
    widths: list[int]
    critic_learning_rate: float
    warmup: int
    iterations: int
    learning_rate: float
    scale_learning_rate: bool
    batch_size: int
    weight_decay: float
    max_norm: float

    lengths: ClassVar[tuple[str, ...]] = ("iterations", "pictures")
    paced: ClassVar[Mapping[str, str]] = {"warmup": "iterations"}

    def __post_init__(self):
        check_captions(self.captions)
        at_least(1, pictures=self.pictures, picture_steps=self.picture_steps, iterations=self.iterations)
        at_least(1, batch_size=self.batch_size)
        at_least(0, learning_rate=self.learning_rate, critic_learning_rate=self.critic_learning_rate)
        at_least(0, weight_decay=self.weight_decay, max_norm=self.max_norm, warmup=self.warmup)
        at_least(0, prior_weight=self.prior_weight, surgery_strength=self.surgery_strength)
        if not self.widths or min(self.widths) < 1:
            raise UserError(
                f"widths takes the channels of the discriminator's layers, each 1 or more, got {self.widths!r}"
            )
        if self.surgery and not self.prior:
            raise UserError("surgery=true needs prior=true: it compares the gradients of both losses")
        if self.warmup >= self.iterations:
            raise UserError(f"warmup={self.warmup} must be smaller than iterations={self.iterations}")

    @property
    def first(self) -> int:
        """The first step that trains the student, counted from 0: one later in the official code, but not after the last."""
        return min(self.warmup + (self.compat == "official"), self.iterations - 1)

    @property
    def rate(self) -> float:
        """The student's learning rate. The official commands multiply it by the batch size."""
        return self.learning_rate * (self.batch_size if self.scale_learning_rate else 1)

    @property
    def decay(self) -> float:
        """Weight decay; 0 for token embeddings, since it would shrink those of all other words too."""
        return 0.0 if self.train == "embedding" else self.weight_decay

    def least(self, request: Request) -> Mapping[str, int]:
        return {"pictures": len(request.erase)}

    @property
    def acts_on(self) -> str:
        return {"kv": "conditioning", "embedding": "text_encoder"}.get(self.train, "denoiser")

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        draws = Draws(self.seed)
        targets = [
            (self.spoken(concept), anchor)
            for concept, anchor in zip(request.erase, request.anchors(self.default_anchor), strict=True)
        ]
        images = self.images(targets)
        bank = images.bank(model, draws)
        texts, anchors = [concept.name for concept, _ in targets], [anchor for _, anchor in targets]
        student, rows = student_of(model, self.train, GROUPS, texts, anchors)
        operable = set(student.masters)
        if self.compat == "official":
            operable &= {p.name for p in model.parameters(model.denoiser_names) if p.attention == "cross"}
        critic = Critic(self, draws)
        optimizer = torch.optim.AdamW(student.masters.values(), lr=self.rate, weight_decay=self.decay)
        corrected = shuffled(draws, "pictures", len(bank), self.batch_size)
        preserved = shuffled(draws, "prior_pictures", len(bank), self.batch_size)
        with torch.enable_grad(), detached_begin(model):
            for step in steps(self.iterations, "iterations"):
                prior_pictures = next(preserved) if self.prior else []
                batch = images.batch(model, bank, next(corrected), prior_pictures, draws)
                corrects = step >= self.first
                concept, anchor, prior = self.predictions(model, student, batch, corrects, draws)
                trace_values(x0_anchor=anchor, x0_concept=concept.detach())
                left = self.correct(student, rows, operable, optimizer, critic, concept, prior) if corrects else None
                critic.learn(anchor, concept.detach(), left)
        return Erasure("doco", changes=student.changes(), manifest={"pictures": len(bank)})

    def spoken(self, concept: Concept) -> Concept:
        """The concept as captions name it."""
        return replace(concept, name=concept.name.replace("-", " ")) if self.compat == "official" else concept

    def images(self, targets: list[tuple[Concept, str]]) -> AnchorImages:
        """Images of the anchors, with captions for both."""
        return AnchorImages(
            method="doco",
            targets=targets,
            forms=FORMS,
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

    def predictions(
        self, model: DiffusionModel, student: Student, batch: Batch, corrects: bool, draws: Draws
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """x̂_0(e(x_t, c*)) and x̂_0(e0(x_t, c_a)) (b, 4, h, w), and the prior's loss if there is a prior."""
        x_t, t, noise = diffused(model, batch.latents, draws)
        truth, rows = model.denoising_target(batch.latents, noise, t), len(batch.anchor_ids)
        with torch.set_grad_enabled(corrects), student.active():
            predicted = model.predict(x_t, t, model.encode_ids(batch.ids))
        target = truth[:rows]
        if self.loss == "model":
            with torch.no_grad():
                target = model.predict(x_t[:rows], t[:rows], model.encode_ids(batch.anchor_ids))
        concept, anchor = (model.clean_of(output, x_t[:rows], t[:rows]) for output in (predicted[:rows], target))
        prior = functional.mse_loss(predicted[rows:].float(), truth[rows:].float()) if self.prior else None
        return concept, anchor, prior

    def correct(
        self,
        student: Student,
        rows: Mapping[str, torch.Tensor],
        operable: Collection[str],
        optimizer,
        critic: Critic,
        concept: torch.Tensor,
        prior,
    ) -> list[torch.Tensor]:
        """One optimiser step on the student.

        Args:
            rows: For each trained token table, a mask of the rows that learn.
            operable: Names of the tensors that surgery acts on.
            concept: x̂_0(e(x_t, c*)) (b, 4, h, w).
            prior: The prior's loss, or ``None``.

        Returns:
            The gradient of the student's loss on D's parameters.
        """
        correction = critic.loss(concept, 0.0)
        trace_values(correction=correction.detach(), prior=None if prior is None else prior.detach())
        if self.surgery:
            h, _ = reached(prior, student, rows, retain_graph=True)
            trace_values(prior_gradients=dict(zip(student.masters, h, strict=True)))
            h = self.clipped(h)
            g, left = reached(correction, student, rows, critic.parameters)
            trace_values(gradients=dict(zip(student.masters, g, strict=True)))
            g = [
                self.operated(own, other) if name in operable else own
                for name, own, other in zip(student.masters, self.clipped(g), h, strict=True)
            ]
        else:
            loss = correction if prior is None else correction + PRIOR * self.prior_weight * prior
            g, left = reached(loss, student, rows, critic.parameters)
            trace_values(gradients=dict(zip(student.masters, g, strict=True)))
            g = self.clipped(g)
        for master, gradient in zip(student.masters.values(), g, strict=True):
            master.grad = gradient
        trace_values(stepped=dict(zip(student.masters, g, strict=True)))
        optimizer.step()
        return left

    def clipped(self, found: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The gradients, scaled so that all together have at most the norm ``max_norm`` (0: unchanged)."""
        total = torch.nn.utils.get_total_norm(found)
        trace_values(clip_norm=total)
        scale = (self.max_norm / (total + 1e-6)).clamp(max=1) if self.max_norm else 1.0
        return [gradient * scale for gradient in found]

    def operated(self, g: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """g without its component against h, for the gradients g and h of one tensor."""
        direction = h / (h.norm() + 1e-8)
        along = (g * direction).sum()
        if self.compat == "official":
            along = along / (g.norm() + 1e-8)
        return g - self.surgery_strength * along.clamp(max=0) * direction


def reached(
    loss: torch.Tensor,
    student: Student,
    rows: Mapping[str, torch.Tensor],
    others: Sequence[torch.Tensor] = (),
    retain_graph: bool = False,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """∂loss/∂p for the student's parameters, 0 outside the ``rows`` of token tables, and for ``others``."""
    parameters = [*student.masters.values(), *others]
    found = gradients(loss, parameters, student.dtype, retain_graph)
    full = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    for name, g in zip(student.masters, full, strict=False):
        if name in rows:
            g[~rows[name]] = 0
    return full[: len(student.masters)], full[len(student.masters) :]


class Critic:
    """D and its optimiser. D is built for the size of the first latents that it sees."""

    def __init__(self, method: DoCo, draws: Draws):
        self.method, self.draws = method, draws
        self.network: torch.nn.Module | None = None

    def built(self, latents: torch.Tensor) -> torch.nn.Module:
        """D for latents (b, c, h, w), with parameters in at least float32."""
        if self.network is None:
            seed = self.draws.integer("critic_seed", 0, 2**31)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                network = discriminator(latents.shape[1], min(latents.shape[-2:]), self.method.widths)
            network.load_state_dict(self.draws.take("critic", lambda g: network.state_dict()))
            kind = torch.promote_types(latents.dtype, torch.float32)
            self.network = network.to(latents.device, kind).requires_grad_(True).train()
            rate = self.method.critic_learning_rate
            self.optimizer = torch.optim.Adam(self.network.parameters(), lr=rate, betas=BETAS)
        return self.network

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """D's parameters; none before it is built."""
        return list(self.network.parameters()) if self.network else []

    def loss(self, latents: torch.Tensor, label: float) -> torch.Tensor:
        """BCE(D(latents), label), averaged over logits. The concept's label is 1."""
        network = self.built(latents)
        logits = network(latents.to(next(network.parameters()).dtype))
        value = functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
        trace_values(bce=value.detach())
        return value

    def learn(self, anchor: torch.Tensor, concept: torch.Tensor, left: Sequence[torch.Tensor] | None) -> None:
        """One step of D on x̂_0 of the anchor and of the concept (b, 4, h, w).

        ``left`` is the gradient of the student's loss on D's parameters, which official code never clears.
        """
        loss = self.loss(anchor, 0.0) + self.loss(concept, 1.0)
        found = torch.autograd.grad(loss, self.parameters)
        if left and self.method.compat == "official":
            found = tuple(own + other for own, other in zip(found, left, strict=True))
        for parameter, gradient in zip(self.parameters, found, strict=True):
            parameter.grad = gradient
        assert self.network is not None  # `loss` builds it
        names = [name for name, _ in self.network.named_parameters()]
        trace_values(critic_gradients=dict(zip(names, found, strict=True)))
        self.optimizer.step()
        trace_values(critic={name: p.detach().clone() for name, p in self.network.named_parameters()})


def discriminator(channels: int, side: int, widths: Sequence[int]) -> torch.nn.Sequential:
    """A PatchGAN discriminator of latents (b, channels, side, side): logits (b, 1, h', w').

    Each layer halves the side; the first one has no batch normalisation. Layers that would leave less than two cells are left
    out: the four of the official code need latents of 32 × 32, and 16 × 16 have three.
    """
    layers: list[torch.nn.Module] = []
    for number, width in enumerate(widths):
        if side < 4:
            break
        layers.append(torch.nn.Conv2d(channels, width, 4, stride=2, padding=1))
        if number:
            layers.append(torch.nn.BatchNorm2d(width))
        layers.append(torch.nn.LeakyReLU(SLOPE))
        channels, side = width, side // 2
    return torch.nn.Sequential(
        *layers, torch.nn.Conv2d(channels, 1, 4 if side > 1 else 1, padding=1 if side > 1 else 0)
    )
