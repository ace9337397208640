"""ABO (All but One): only the guidance of a concept is redirected, and the prediction without a prompt is held in place.

Hong, Lee and Woo, "All but One: Surgical Concept Erasing with Model Preservation in Text-to-Image Diffusion Models", AAAI
2024, arXiv 2312.12807. e0 is the base, e the student, ∅ the empty prompt, c the concept, a the alternative that the user
chooses (∅ without one), and x_t (batch, 4, h, w) a latent that the base has partly denoised for the prompt c:

    g(c)  = e(x_t, c) − e(x_t, ∅)                           the guidance term: the gradient of an implicit classifier
    loss  = mean (g(c) − g0(a))² + λ mean (e(x_t, ∅) − e0(x_t, ∅))²         Adam; g0 is the base's, g0(∅) = 0

Without the second term the student could reach the target by moving e(∅), and with it all images. At the first step e = e0,
so that the loss is the mean of (e0(x_t, c) − e0(x_t, a))².

The authors published no code. This is our reading of the abstract and the introduction: the paper's optimiser, learning rate,
layers, norm, λ and the sampling of x_t are not known, and the values in the YAML are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.rollouts import rollout
from overpaint.blocks.training import Rule, Student, parameter_group, train
from overpaint.errors import at_least
from overpaint.grid.concepts import Request
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.guidance import Guidance
from overpaint.models.lazily import functional, torch

#: ``train`` -> the parameters to train.
GROUPS: dict[str, Rule] = {
    "xattn": lambda p: p.attention == "cross",
    "kv": lambda p: p.attention == "cross" and p.role in ("key", "value"),
    "noxattn": lambda p: p.attention != "cross",
    "full": lambda p: True,
}
#: ``norm`` -> the distance between two predictions.
NORMS = {"l2": "mse_loss", "l1": "l1_loss"}


@dataclass(kw_only=True)
class ABO(Eraser):
    """Hyper-parameters of ABO; ``conf/method/abo.yaml`` explains each."""

    train: Literal["xattn", "kv", "noxattn", "full"]
    norm: Literal["l2", "l1"]
    default_anchor: str
    preserve_weight: float
    start_guidance: float
    rollout_steps: int
    iterations: int
    learning_rate: float
    batch_size: int

    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    lengths: ClassVar[tuple[str, ...]] = ("iterations",)

    def __post_init__(self):
        at_least(1, iterations=self.iterations, batch_size=self.batch_size)
        at_least(2, rollout_steps=self.rollout_steps)
        at_least(0, preserve_weight=self.preserve_weight, learning_rate=self.learning_rate)

    @property
    def acts_on(self) -> str:
        return "conditioning" if self.train == "kv" else "denoiser"

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        student = Student(model, parameter_group(model, GROUPS[self.train]))
        targets = list(zip([c.name for c in request.erase], request.anchors(self.default_anchor), strict=True))
        with torch.no_grad():
            texts = dict.fromkeys(["", *(text for pair in targets for text in pair)])
            nothing = model.unconditional()
            embeds = {text: model.encode([text]) if text else nothing for text in texts}
        draws, distance = Draws(self.seed), getattr(functional, NORMS[self.norm])
        shape = (self.batch_size, *model.noise([0]).shape[1:])

        def loss() -> torch.Tensor:
            concept, anchor = targets[draws.integer("concept", 0, len(targets))]
            k = draws.integer("k", 0, self.rollout_steps)
            start = draws.noise("x_T", shape, nothing)
            rows = {
                text: embeds[text].expand(self.batch_size, *embeds[text].shape[1:]) for text in ("", concept, anchor)
            }
            guidance = Guidance(model, rows[concept], nothing.expand_as(rows[concept]), self.start_guidance)
            x_t, t = rollout(model, start, guidance, "ddim", self.rollout_steps, k)
            twice = torch.cat([x_t, x_t])
            with torch.no_grad():
                base, other = model.predict(twice, t, torch.cat([rows[""], rows[anchor]])).chunk(2)
            with student.active():
                empty, named = model.predict(twice, t, torch.cat([rows[""], rows[concept]])).chunk(2)
            erasing = distance((named - empty).float(), (other - base).float())
            preserving = distance(empty.float(), base.float())
            trace_values(x_t=x_t, t=t, erasing=erasing.detach(), preserving=preserving.detach())
            return erasing + self.preserve_weight * preserving

        train(student, torch.optim.Adam(student.masters.values(), lr=self.learning_rate), self.iterations, loss)
        return Erasure("abo", changes=student.changes())
