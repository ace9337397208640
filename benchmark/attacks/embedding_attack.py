"""Embedding attacks: what the victim draws of text embeddings that stand for no text.

They say what the victim still knows, not what a user could ask for: nobody can type them. Three papers use one as a part,
all rows (77, width) of it given to the network in the place of a prompt's encoding; E is the unedited text encoder:

    rece_embedding   A = E(prompt) Mᵀ,  M = (G + rI)⁻¹ H     G = Σ WᵀW, H = Σ WᵀW° over the victim's and the unedited
                     model's key and value matrices: the rows whose outputs are nearest to what E(prompt)'s were, from RECE
                     (Gong et al., ECCV 2024, arXiv 2407.12383; see `methods.rece`). ``surrogate`` also pulls A to E(prompt)
                     and W A to W E(prompt).
    rab_embedding    E(prompt) + η v, with the concept vector v of `ring_a_bell`: RECE's test of Ring-A-Bell
    soft_prefix      E_v(prompt ⊕ δ), δ (k, width) free token embeddings read by the victim's encoder E_v, which minimise

                         mean (e(x_t, t, E_v(prompt ⊕ δ)) − e°(x_t, t, E(prompt)))²

                     the inner attack of AdvUnlearn (Zhang et al., NeurIPS 2024, arXiv 2405.15234; see
                     `methods.soft_prompts`); every step has its own x_t and t, on a roll-out by the victim for E(prompt).

The first two do not pass through the victim's text encoder: one that was edited is gone round, not defeated. What guards and
adapters do to the embedding while it is drawn, they do. Each draws one picture, from the plain image's start noise.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch.nn.functional import mse_loss

from overpaint.attacks.attack import Scene
from overpaint.attacks.prompt_search import Lesson, Search, Tries
from overpaint.attacks.ring_a_bell import concept_vector, contrasts
from overpaint.blocks import soft_prompts
from overpaint.blocks.draws import Draws
from overpaint.blocks.rollouts import compvis_rollout, rollout
from overpaint.blocks.soft_prompts import SoftPrompt
from overpaint.blocks.token_variables import text_within
from overpaint.errors import at_least
from overpaint.grid.registry import component
from overpaint.methods.rece import overlaps
from overpaint.models.diffusion import DiffusionModel


@dataclass(kw_only=True)
class EmbeddingAttack(Search):
    """One picture of an embedding for each plain image that does not show the concept."""

    worded: ClassVar[bool] = False

    @property
    def images(self) -> int:
        return 2

    @abstractmethod
    def embedding(self, scene: Scene, text: str, draws: Draws) -> torch.Tensor:
        """What is drawn for a prompt, (1, tokens, width)."""

    def search(self, scene: Scene, hunted: Sequence[Tries]) -> None:
        for tries in hunted:
            text = tries.shot.prompt.text
            with tries.ledger.counting(scene.victim):
                embedding = self.embedding(scene, text, tries.draws)
            tries.make(text, "embedding", embedding.to(scene.victim.dtype))


@dataclass(kw_only=True)
class ReceEmbedding(EmbeddingAttack):
    """Hyper-parameters; ``conf/attack/rece_embedding.yaml`` says what each means."""

    regulariser: Literal["zero", "surrogate"]
    r: float

    enters_by: ClassVar[str] = "embedding"

    def __post_init__(self):
        at_least(0, r=self.r)

    def embedding(self, scene: Scene, text: str, draws: Draws) -> torch.Tensor:
        victim = scene.victim
        with scene.unedited() as model, torch.no_grad():
            plain = model.encode([text], truncate=True)
            base = [p.weight.double() for p in model.projections("key", "value")]
        G, H = overlaps((p.weight for p in victim.projections("key", "value")), base)
        rece = component("method", "rece").build(
            {"regulariser": {"zero": "zero", "surrogate": "both"}[self.regulariser], "r": self.r}
        )
        rows = plain[0, : victim.tokens]  # what some families put behind them, no key or value sees
        found = rece.nearest_rows(rows.double(), G, H, None)
        return torch.cat([found.to(plain)[None], plain[:, victim.tokens :]], dim=1)


@dataclass(kw_only=True)
class RabEmbedding(EmbeddingAttack):
    """Hyper-parameters; ``conf/attack/rab_embedding.yaml`` says what each means."""

    eta: float

    enters_by: ClassVar[str] = "embedding"

    def embedding(self, scene: Scene, text: str, draws: Draws) -> torch.Tensor:
        with scene.unedited() as model, torch.no_grad():
            vector = concept_vector(model, contrasts(scene.concept, scene.catalogue))
            return model.encode([text], truncate=True) + self.eta * vector


@dataclass(kw_only=True)
class SoftPrefix(EmbeddingAttack):
    """Hyper-parameters; ``conf/attack/soft_prefix.yaml`` says what each means."""

    place: soft_prompts.Place
    tokens: int
    steps: int
    learning_rate: float
    method: Literal["pgd", "fast_at"]
    rollout_steps: int
    rollout_guidance: float
    compat: Literal["official", "intended"]

    def __post_init__(self):
        at_least(1, tokens=self.tokens, steps=self.steps)
        at_least(2, rollout_steps=self.rollout_steps)
        at_least(0, learning_rate=self.learning_rate)

    def embedding(self, scene: Scene, text: str, draws: Draws) -> torch.Tensor:
        victim, official = scene.victim, self.compat == "official"
        prompt = SoftPrompt(victim, text_within(victim, text, self.room(victim)), self.place, self.tokens, official)
        lessons = iter(self.lessons(scene, text, draws))

        def loss(rows: torch.Tensor) -> torch.Tensor:
            noised, t, wanted = next(lessons)
            predicted = victim.predict(noised, t, victim.encode_embeddings(rows, prompt.ids))
            return mse_loss(predicted.float(), wanted.float())

        start = prompt.random_start(draws)
        free = soft_prompts.attack(prompt, start, loss, self.steps, self.learning_rate, self.method, official)
        with torch.no_grad():
            return victim.encode_embeddings(prompt.rows(free), prompt.ids)

    def room(self, victim: DiffusionModel) -> int:
        """How many of a prompt's own words there is room for beside the free rows, of which ``add`` has one for each."""
        room = victim.tokens - 2
        return room // 2 if self.place == "add" else max(0, room - self.tokens)

    def shortened(self, scene: Scene) -> int:
        texts, room = dict.fromkeys(shot.prompt.text for shot in scene.shots), self.room(scene.victim)
        return sum(len(scene.victim.tokenizer(text).input_ids) - 2 > room for text in texts)

    def lessons(self, scene: Scene, text: str, draws: Draws) -> list[Lesson]:
        """x_t (1, c, h, w), t (1,) and e°(x_t, t, E(prompt)) of every step; they do not depend on δ."""
        victim = scene.victim
        with scene.unedited() as model, torch.no_grad():
            named = model.encode([text], truncate=True)
        visited = [self.noised(scene, text, named, draws) for _ in range(self.steps)]
        with scene.unedited() as model, torch.no_grad():
            times = [torch.tensor([t], device=victim.device) for _, t in visited]
            return [Lesson(x, t, model.predict(x, t, named)) for (x, _), t in zip(visited, times)]

    def noised(self, scene: Scene, text: str, named: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, int]:
        """x_t (1, c, h, w) and t on the victim's own way from noise to a picture of the prompt."""
        victim, S = scene.victim, self.rollout_steps
        k = draws.integer("k", 0, S)
        start = draws.noise("x_T", tuple(victim.noise([0], scene.protocol["size"]).shape), named)
        with torch.no_grad():
            guidance = victim.guidance(victim, named, victim.unconditional(), self.rollout_guidance, [text])
            if self.compat == "official":
                return compvis_rollout(victim, start, guidance, S, k, draws)
            return rollout(victim, start, guidance, "ddim", S, k)
