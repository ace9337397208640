"""SDD: the network is fine-tuned so that a concept's prompt predicts what the empty prompt does; a moving average is kept.

Kim, Jung, Kim, Choi, Shin and Lee, "Towards Safe Self-Distillation of Internet-Scale Text-to-Image Diffusion Models", ICML 2023
workshop, arXiv 2307.05977. Notation: e is the student, ē the teacher, which starts as the base and follows the student as an
exponential moving average, ∅ the empty prompt, c one of the concepts, P all concepts joined by commas, and x_t (batch, 4, h, w)
a latent that ē has partly denoised for the prompt P with guidance s_g:

    target = sg[e(x_t, ∅)]                                                 of the student itself, without gradient
    loss   = mean (e(x_t, c) − target)²                                    AdamW on one group of parameters (``train``)
    ē ← m ē + (1 − m) e  after every step                                  m ``ema``; ē is the erasure

``mode`` chooses c: in turn (``iterative``), at random, one after the other (``sequential``), or c = P (``composite``).

Official code draws t within the 20 timesteps above the noise level of x_t. If it draws k = 0 steps of the roll-out, it takes
all of them and trains a finished image at the highest timesteps. Its ``sequential`` mode never leaves the first concept. At
s_g ≤ 1 it rolls out without a prompt, not with P alone. ``compat: official`` reproduces all four.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.rollouts import Noised, rollout
from overpaint.blocks.training import Rule, Student, parameter_group, train
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Request
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.guidance import Guidance
from overpaint.models.lazily import functional, torch

#: ``train`` -> the parameters to train.
GROUPS: dict[str, Rule] = {
    "xattn": lambda p: p.attention == "cross",
    "noxattn": lambda p: p.attention != "cross" and not _outside(p.name),
    "selfattn": lambda p: p.attention == "self",
    "notime": lambda p: not _outside(p.name),
    "full": lambda p: True,
}


def _outside(name: str) -> bool:
    """Whether the parameter is in the time embedding or the last convolution. The last norm is trained, unlike in ESD's code."""
    return name.startswith(("time_embedding.", "conv_out."))


@dataclass(kw_only=True)
class SDD(Eraser):
    """Hyper-parameters of SDD; ``conf/method/sdd.yaml`` explains each."""

    compat: Literal["intended", "official"]
    train: Literal["xattn", "noxattn", "selfattn", "notime", "full"]
    mode: Literal["iterative", "random", "sequential", "composite"]
    start_guidance: float
    rollout_steps: int
    iterations: int
    learning_rate: float
    weight_decay: float
    clip: float
    ema: float
    batch_size: int

    name: ClassVar[str] = "sdd"
    families: ClassVar[tuple[str, ...]] = ("sd",)
    lengths: ClassVar[tuple[str, ...]] = ("iterations",)

    def __post_init__(self):
        at_least(1, iterations=self.iterations, batch_size=self.batch_size)
        at_least(2, rollout_steps=self.rollout_steps)
        at_least(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay, clip=self.clip)
        if not 0 <= self.ema < 1:
            raise UserError(f"ema takes a number from 0 to below 1, got {self.ema:g}")

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        names = parameter_group(model, GROUPS[self.train])
        student, teacher = Student(model, names), Student(model, names)
        concepts = [c.name for c in request.erase]
        together = ", ".join(concepts)
        draws, turn = Draws(self.seed), iter(range(self.iterations))
        embeds = self.embeddings(model, request, draws)

        def loss() -> torch.Tensor:
            concept = self.concept(concepts, next(turn), draws)
            latents, t = self.noised(model, teacher, embeds[together], embeds[""], draws)
            rows = [embeds[text].expand(len(latents), -1, -1) for text in ("", concept)]
            with student.active():
                with torch.no_grad():
                    target = model.predict(latents, t, rows[0])
                predicted = model.predict(latents, t, rows[1])
            trace_values(x_t=latents, t=t, target=target, pred=predicted.detach())
            return functional.mse_loss(predicted.float(), target.float())

        def adjust() -> None:
            if self.clip:
                trace_values(clip_norm=torch.nn.utils.clip_grad_norm_(student.masters.values(), self.clip))

        def follow() -> None:
            with torch.no_grad():
                for name, followed in student.masters.items():
                    teacher.masters[name].lerp_(followed, 1 - self.ema)

        optimizer = torch.optim.AdamW(student.masters.values(), lr=self.learning_rate, weight_decay=self.weight_decay)
        train(student, optimizer, self.iterations, loss, adjust=adjust, after=follow)
        return Erasure(self.name, changes=teacher.changes())

    def embeddings(self, model: DiffusionModel, request: Request, draws: Draws) -> dict[str, torch.Tensor]:
        """The text encodings (1, tokens, width) of ∅, of each concept, and of all joined by commas, by text."""
        concepts = [c.name for c in request.erase]
        with torch.no_grad():
            return {text: model.encode([text]) for text in dict.fromkeys(["", *concepts, ", ".join(concepts)])}

    def steps_taken(self, draws: Draws) -> int:
        """k, the steps of an iteration's roll-out."""
        return draws.integer("k", 0, self.rollout_steps)

    def concept(self, concepts: Sequence[str], iteration: int, draws: Draws) -> str:
        """The text that is erased in one iteration."""
        if self.mode == "composite":
            return ", ".join(concepts)
        if self.mode == "random":
            return concepts[draws.integer("concept", 0, len(concepts))]
        if self.mode == "iterative":
            return concepts[iteration % len(concepts)]
        return concepts[0 if self.compat == "official" else iteration * len(concepts) // self.iterations]

    def noised(self, model: DiffusionModel, teacher: Student, named, nothing, draws: Draws) -> Noised:
        """x_t (batch, 4, h, w) and t for one iteration, from a roll-out of the teacher for all concepts together."""
        steps, total = self.rollout_steps, model.train_timesteps
        k = self.steps_taken(draws)
        start = draws.noise("x_T", (self.batch_size, *model.noise([0]).shape[1:]), nothing)
        prompt = nothing if self.compat == "official" and self.start_guidance <= 1 else named
        positive, negative = (embeds.expand(len(start), -1, -1) for embeds in (prompt, nothing))
        guidance = Guidance(model, positive, negative, self.start_guidance)
        with teacher.active():
            if self.compat == "intended":
                return rollout(model, start, guidance, "ddim", steps, k)
            if k:
                latents, _ = rollout(model, start, guidance, "ddim", steps, k)
            else:
                with torch.no_grad():
                    latents = model.denoise(start, guidance, "ddim", steps)
        width = total // steps
        return latents, draws.integer("t", total - width * (k + 1), total - width * k)
