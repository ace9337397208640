"""PEZ: hard prompts by gradient. Words whose text feature is that of a picture, or of another text; no diffusion model.

Wen, Jain, Kirchenbauer, Goldblum, Geiping and Goldstein, "Hard Prompts Made Easy: Gradient-Based Discrete Optimization for
Prompt Tuning and Discovery", NeurIPS 2023, arXiv 2302.03668. With F a text encoder's feature at the end token, y_1 … y_n
target features, and Z (prompts, k, width) read as its nearest words w (`token_variables`), each step:

    loss = λ (1 − mean cos(F(w), y)),   Z ← AdamW(Z, ∂loss at the nearest words)     y from a random batch of the targets

The prompt that is kept is the one of all steps whose mean cosine to all targets, times λ, is largest; λ < 0 leads away
from them. As an attack it needs no victim: words that never name a concept and yet mean it may pass what erased its name.
Targets are pictures of the concept, where there is a CLIP model, or the text of the prompt that is attacked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, Literal

import torch
from torch.nn.functional import normalize

from overpaint.attacks.attack import Assault, Attack, AttackContext, Ledger
from overpaint.attacks.prompt_lists import attacked
from overpaint.blocks.clip import Clip, OwnTower, Tower
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.token_variables import Nearest, descend
from overpaint.errors import UserError, at_least


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

    def __post_init__(self):
        at_least(1, pictures=self.pictures, tokens=self.tokens, prompts=self.prompts, steps=self.steps)
        at_least(1, batch_size=1 if self.batch_size is None else self.batch_size)
        at_least(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        if self.target == "pictures" and self.clip is None:
            raise UserError("attack=pez: target=pictures needs a CLIP model (clip=FOLDER or a hub id)")

    @property
    def shown(self) -> bool:
        return self.clip is not None and self.target != "text"

    def run(self, context: AttackContext) -> Assault:
        """One search a prompt; its words are drawn from the start noise of each of the prompt's plain images."""
        ledger, found = Ledger(), []
        tower = OwnTower(context.victim) if self.clip is None else Clip.load(self.clip, context.victim.device)
        for prompt, shots in groupby(context.shots, key=lambda shot: shot.prompt):
            targets, draws = self.targets(context, tower, prompt.text), Draws.of(self.seed, prompt.id)
            text = self.invert(tower, targets, draws, context.concept.name if self.without_name else "")
            ledger.text_forwards += self.steps * self.prompts
            found += [attacked(shot, text, context.concept, "hard prompt") for shot in shots]
        return Assault(found, ledger=ledger)

    def targets(self, context: AttackContext, tower: Tower, text: str) -> torch.Tensor:
        """y (n, d): features of pictures of the concept, or of the text."""
        if not self.shown:
            return tower.text_features([text])
        pictures = list(context.examples(self.pictures)) if context.examples else []
        if not pictures:
            raise UserError(
                f"attack=pez needs pictures of {context.concept.name!r}, and there are none (or target=text)"
            )
        return tower.image_features(pictures)

    def invert(self, tower: Tower, targets: torch.Tensor, draws: Draws, without: str = "") -> str:
        """The text of the best words for target features (n, d), ``without`` the words of a text."""
        size = (self.prompts, self.tokens)
        ids = draws.take("init_ids", lambda g: torch.randint(len(tower.table), size, generator=g))
        variable = Nearest(tower.table, ids, tower.ids(without))
        optimizer = torch.optim.AdamW([variable.parameter], lr=self.learning_rate, weight_decay=self.weight_decay)
        targets, cosines = normalize(targets.float(), dim=-1), None

        def loss(step: int, ids: Sequence[torch.Tensor], rows: Sequence[torch.Tensor]) -> torch.Tensor:
            nonlocal cosines
            cosines = targets @ normalize(tower.features(*ids, *rows).float(), dim=-1).T  # (targets, prompts)
            return self.loss_weight * (1 - cosines[self.batch(len(targets), draws)].mean())

        best = (-float("inf"), ids[0])
        for _, (ids,) in descend([variable], optimizer, loss, [draws], self.steps):
            trace_values(cosines=cosines.detach())
            likeness, prompt = cosines.detach().mean(dim=0).max(dim=0)
            best = max(best, (self.loss_weight * float(likeness), ids[prompt]), key=lambda known: known[0])
        return tower.text(best[1].tolist())

    def batch(self, n: int, draws: Draws) -> torch.Tensor:
        """Which of n targets a step looks at."""
        if self.batch_size is None:
            return torch.arange(n)
        return draws.take("perm", lambda g: torch.randperm(n, generator=g))[: self.batch_size]
