"""Relearning: the victim is trained on a few images, and the concept is measured again as training goes on.

There are two forms. With images of the concept, an attacker teaches it again: a model that needs fewer steps than one
that never knew the concept had not forgotten it (few-shot recovery; Gao et al., "Meta-Unlearning on Diffusion Models",
ICCV 2025, arXiv 2410.12777). With unrelated images nobody attacks: ordinary fine-tuning alone may bring the concept
back (SPQR, arXiv 2511.19558). `overpaint.attacks.fine_tuning` says how it is trained.

After each number of steps in ``curve``, all plain images are generated again: draw k is the k-th point, and 0 steps are
the victim itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from overpaint.attacks.attack import Assault, AttackContext, Ledger, Painted
from overpaint.attacks.fine_tuning import FineTuning
from overpaint.attacks.probes import repainted
from overpaint.attacks.wording import sentences
from overpaint.blocks.draws import Draws
from overpaint.errors import UserError
from overpaint.models.lazily import torch


@dataclass(kw_only=True)
class Relearning(FineTuning):
    """Hyper-parameters; ``conf/attack/relearn.yaml`` says what each means."""

    data: Literal["concept", "unrelated"]
    curve: list[int]

    version: ClassVar[int] = 2
    lengths: ClassVar[tuple[str, ...]] = ("curve", "pictures")

    def __post_init__(self):
        super().__post_init__()
        if not self.curve or min(self.curve) < 0 or any(b <= a for a, b in pairwise(self.curve)):
            raise UserError(f"curve takes increasing numbers of steps, the first at least 0, got {self.curve!r}")

    @property
    def images(self) -> int:
        return len(self.curve)

    def run(self, context: AttackContext) -> Assault:
        victim, ledger = context.victim, Ledger()
        painted: list[Painted] = []
        draws = Draws.of(self.seed, context.concept.name)
        with ledger.counting(victim):
            latents, captions = self.lessons(context)
            with self.student(victim, draws) as student:
                learn = self.trainer(victim, student, latents, captions, draws)
                for number, (done, wanted) in enumerate(pairwise([0, *self.curve])):
                    learn(wanted - done)
                    with student.active():
                        painted += repainted(context, f"step {wanted}", number, {"steps": wanted})
        ledger.images = len(painted)
        return Assault([p.shot for p in painted], ledger=ledger, painted=painted)

    def lessons(self, context: AttackContext) -> tuple[torch.Tensor, list[list[str]]]:
        """Latents (n, c, h, w) of the images, and for each image its possible captions."""
        pictures, captions = self.unrelated(context) if self.data == "unrelated" else self.of_concept(context)
        return context.victim.to_latents(pictures), captions

    def of_concept(self, context: AttackContext) -> tuple[list, list[list[str]]]:
        """Images of the concept, and for each image its possible captions."""
        pictures = context.concept_images(self.pictures, "relearn")
        words = f"{context.concept.article} {context.concept.name}".strip()
        lines = [line.format(words) for line in sentences(context.concept, context.catalogue)]
        return pictures, [lines] * len(pictures)
