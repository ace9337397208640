"""PEZ: gradient search for words whose text feature is close to that of an image or of another text.

Wen, Jain, Kirchenbauer, Goldblum, Geiping and Goldstein, "Hard Prompts Made Easy: Gradient-Based Discrete Optimization
for Prompt Tuning and Discovery", NeurIPS 2023, arXiv 2302.03668. No diffusion model is involved. With F a text
encoder's feature at the end token, y_1 … y_n target features, and Z (prompts, k, width) read as its nearest words w
(`token_variables`), each step:

    loss = λ (1 − mean cos(F(w), y)),   Z ← AdamW(Z, ∂loss at the nearest words)     y from a random batch of the targets

The result is the prompt, of all steps, whose mean cosine to all targets times λ is largest; λ < 0 leads away from the
targets. As an attack it needs no victim: words that mean a concept without naming it may evade an eraser that acts on
the name. Targets are images of the concept if there is a CLIP model, otherwise the text of the attacked prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, Literal

from overpaint.attacks.attack import Assault, Attack, AttackContext, Ledger, in_place_of_the_prompt
from overpaint.attacks.prompt_lists import attacked
from overpaint.blocks.clip import Clip, OwnTower, Tower
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.token_variables import Nearest, descend
from overpaint.errors import UserError, at_least
from overpaint.models.lazily import functional, torch


@dataclass(kw_only=True)
class HardPrompts(Attack):
    """Hyper-parameters; ``conf/attack/pez.yaml`` says what each means."""

    clip: str | None
    target: Literal["auto", "pictures", "text"]
    pictures: int
    tokens: int
    prompts: int
    steps: int
    batch_size: int | None
    learning_rate: float
    weight_decay: float
    loss_weight: float
    without_name: bool

    needs: ClassVar[str] = "model"
    unit: ClassVar[str] = "prompt"
    lengths: ClassVar[tuple[str, ...]] = ("steps",)
    networks: ClassVar[tuple[str, ...]] = ("clip",)

    def __post_init__(self):
        at_least(1, pictures=self.pictures, tokens=self.tokens, prompts=self.prompts, steps=self.steps)
        at_least(1, batch_size=self.batch_size)
        at_least(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        if self.target == "pictures" and self.clip is None:
            raise UserError("attack.target=pictures needs a CLIP model: set attack.clip to a folder or a hub id")

    @property
    def matched(self) -> Mapping[str, Any]:
        return in_place_of_the_prompt(self.tokens)

    @property
    def shown(self) -> bool:
        return self.clip is not None and self.target != "text"

    def run(self, context: AttackContext) -> Assault:
        """One search for each prompt. Its words are generated from the start noise of all the prompt's plain images."""
        ledger, found = Ledger(), []
        tower = OwnTower(context.victim) if self.clip is None else Clip.load(self.clip, context.victim.device)
        for prompt, shots in groupby(context.shots, key=lambda shot: shot.prompt):
            targets, draws = self.targets(context, tower, prompt.text), Draws.of(self.seed, prompt.id)
            text = self.invert(tower, targets, draws, context.concept.name if self.without_name else "")
            ledger.text_forwards += self.steps * self.prompts
            found += [attacked(shot, text, context.concept, "hard prompt") for shot in shots]
        return Assault(found, ledger=ledger)

    def targets(self, context: AttackContext, tower: Tower, text: str) -> torch.Tensor:
        """y (n, d): features of images of the concept, or of the text."""
        if not self.shown:
            return tower.text_features([text])
        return tower.image_features(context.concept_images(self.pictures, "pez"))

    def invert(self, tower: Tower, targets: torch.Tensor, draws: Draws, without: str = "") -> str:
        """The text of the best words for target features (n, d). The words of the text ``without`` are never used."""
        size = (self.prompts, self.tokens)
        ids = draws.take("init_ids", lambda g: torch.randint(len(tower.table), size, generator=g))
        variable = Nearest(tower.table, ids, tower.ids(without))
        optimizer = torch.optim.AdamW([variable.parameter], lr=self.learning_rate, weight_decay=self.weight_decay)
        targets, cosines = functional.normalize(targets.float(), dim=-1), torch.empty(0)

        def loss(step: int, ids: Sequence[torch.Tensor], rows: Sequence[torch.Tensor]) -> torch.Tensor:
            nonlocal cosines
            # `cosines` is (targets, prompts).
            cosines = targets @ functional.normalize(tower.features(*ids, *rows).float(), dim=-1).T
            return self.loss_weight * (1 - cosines[self.batch(len(targets), draws)].mean())

        best = (-float("inf"), ids[0])
        for _, (ids,) in descend([variable], optimizer, loss, [draws], self.steps):
            trace_values(cosines=cosines.detach())
            likeness, prompt = cosines.detach().mean(dim=0).max(dim=0)
            best = max(best, (self.loss_weight * float(likeness), ids[prompt]), key=lambda known: known[0])
        return tower.text(best[1].tolist())

    def batch(self, n: int, draws: Draws) -> torch.Tensor:
        """The indices of the targets that one step uses, out of n."""
        if self.batch_size is None:
            return torch.arange(n)
        return draws.take("perm", lambda g: torch.randperm(n, generator=g))[: self.batch_size]
