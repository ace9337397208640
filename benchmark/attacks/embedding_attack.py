"""Embedding attacks: images that the victim generates from text embeddings which no text has.

They show what the victim still knows. They do not show what a user could ask for, because nobody can type an embedding.
Three papers use such an attack as one part of their work. The network is given all rows (tokens, width) of an embedding
in place of a prompt's encoding. With E the unedited text encoder:

    rece_embedding   A = E(prompt) Mᵀ,  M = (G + rI)⁻¹ H     G = Σ WᵀW, H = Σ WᵀW° over the victim's and the unedited
                     model's key and value matrices: the rows whose outputs are closest to those that E(prompt) had,
                     from RECE (Gong et al., ECCV 2024, arXiv 2407.12383; see `blocks.adversarial_rows`). ``surrogate``
                     also pulls A to E(prompt) and W A to W E(prompt).
    rab_embedding    E(prompt) + η v, with the concept vector v of `ring_a_bell`: RECE's test of Ring-A-Bell
    soft_prefix      E_v(prompt ⊕ δ): the victim's encoder E_v reads free token embeddings δ (k, width), which minimise

                         mean (e(x_t, t, E_v(prompt ⊕ δ)) − e°(x_t, t, E(prompt)))²

                     the inner attack of AdvUnlearn (Zhang et al., NeurIPS 2024, arXiv 2405.15234; see
                     `blocks.soft_prompts`). Every step has its own x_t and t, on a roll-out of the victim for
                     E(prompt).

The first two bypass the victim's text encoder: an edited encoder is avoided, not defeated. Guards and adapters act on
the embedding as on any other. Each attack generates one image from the plain image's start noise.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from overpaint.attacks.attack import AttackContext
from overpaint.attacks.prompt_search import SearchAttack, Targets, Trial
from overpaint.attacks.ring_a_bell import concept_vector, contrasts
from overpaint.blocks import soft_prompts
from overpaint.blocks.adversarial_rows import adversarial_rows, overlaps
from overpaint.blocks.draws import Draws
from overpaint.blocks.rollouts import Noised, compvis_rollout, rollout
from overpaint.blocks.soft_prompts import SoftPrompt
from overpaint.blocks.token_variables import text_within
from overpaint.errors import at_least
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.lazily import functional, torch


@dataclass(kw_only=True)
class EmbeddingAttack(SearchAttack):
    """One image of an embedding for each plain image that does not show the concept."""

    worded: ClassVar[bool] = False

    @property
    def images(self) -> int:
        return 2

    @abstractmethod
    def embedding(self, context: AttackContext, text: str, draws: Draws) -> torch.Tensor:
        """The embedding (1, tokens, width) that is generated in place of a prompt's."""

    def search(self, context: AttackContext, trials: Sequence[Trial]) -> None:
        for trial in trials:
            text = trial.shot.prompt.text
            with trial.ledger.counting(context.victim):
                embedding = self.embedding(context, text, trial.draws)
            worded = self.enters_by == "prompt"  # the prompt with free rows; other embeddings are of no text
            trial.make(text, "embedding", embedding.to(context.victim.dtype), worded)


@dataclass(kw_only=True)
class ReceEmbedding(EmbeddingAttack):
    """Hyper-parameters; ``conf/attack/rece_embedding.yaml`` says what each means."""

    regulariser: Literal["zero", "surrogate"]
    r: float

    enters_by: ClassVar[str] = "embedding"
    draws: ClassVar[bool] = False

    def __post_init__(self):
        at_least(0, r=self.r)

    def embedding(self, context: AttackContext, text: str, draws: Draws) -> torch.Tensor:
        victim = context.victim
        with context.unedited() as model, torch.no_grad():
            plain = model.encode([text], truncate=True)
            base = [p.weight.double() for p in model.projections("key", "value", stream="text")]
        G, H = overlaps((p.weight for p in victim.projections("key", "value", stream="text")), base)
        rows = plain[0, : victim.tokens]  # keys and values never see what some families append to them
        found = adversarial_rows(rows.double(), G, H, self.r, "both" if self.regulariser == "surrogate" else "zero")
        return torch.cat([found.to(plain)[None], plain[:, victim.tokens :]], dim=1)


@dataclass(kw_only=True)
class RabEmbedding(EmbeddingAttack):
    """Hyper-parameters; ``conf/attack/rab_embedding.yaml`` says what each means."""

    eta: float

    enters_by: ClassVar[str] = "embedding"
    draws: ClassVar[bool] = False

    def embedding(self, context: AttackContext, text: str, draws: Draws) -> torch.Tensor:
        with context.unedited() as model, torch.no_grad():
            vector = concept_vector(model, contrasts(context.concept, context.catalogue))
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

    lengths: ClassVar[tuple[str, ...]] = ("steps",)

    def __post_init__(self):
        at_least(1, tokens=self.tokens, steps=self.steps)
        at_least(2, rollout_steps=self.rollout_steps)
        at_least(0, learning_rate=self.learning_rate)

    def embedding(self, context: AttackContext, text: str, draws: Draws) -> torch.Tensor:
        victim, official = context.victim, self.compat == "official"
        prompt = SoftPrompt(victim, text_within(victim, text, self.room(victim)), self.place, self.tokens, official)
        targets = iter(self.targets(context, text, draws))

        def loss(rows: torch.Tensor) -> torch.Tensor:
            noised, t, wanted = next(targets)
            predicted = victim.predict(noised, t, victim.encode_embeddings(rows, prompt.ids))
            return functional.mse_loss(predicted.float(), wanted.float())

        start = prompt.random_start(draws)
        free = soft_prompts.attack(prompt, start, loss, self.steps, self.learning_rate, self.method, official)
        with torch.no_grad():
            return victim.encode_embeddings(prompt.rows(free), prompt.ids)

    def room(self, victim: DiffusionModel) -> int:
        """The number of a prompt's own tokens that fit beside the free rows; ``add`` has one free row per token."""
        room = victim.tokens - 2
        return room // 2 if self.place == "add" else max(0, room - self.tokens)

    def shortened(self, context: AttackContext) -> int:
        texts, room = dict.fromkeys(shot.prompt.text for shot in context.shots), self.room(context.victim)
        return sum(len(context.victim.tokenizer(text).input_ids) - 2 > room for text in texts)

    def targets(self, context: AttackContext, text: str, draws: Draws) -> list[Targets]:
        """x_t (1, c, h, w), t (1,) and e°(x_t, t, E(prompt)) of every step; none of them depends on δ."""
        victim = context.victim
        with context.unedited() as model, torch.no_grad():
            named = model.encode([text], truncate=True)
        visited = [self.noised(context, text, named, draws) for _ in range(self.steps)]
        with context.unedited() as model, torch.no_grad():
            times = [torch.tensor([t], device=victim.device) for _, t in visited]
            return [Targets(x, t, model.predict(x, t, named)) for (x, _), t in zip(visited, times, strict=True)]

    def noised(self, context: AttackContext, text: str, named: torch.Tensor, draws: Draws) -> Noised:
        """x_t (1, c, h, w) and t on the victim's trajectory from noise to an image of the prompt."""
        victim, S = context.victim, self.rollout_steps
        k = draws.integer("k", 0, S)
        start = draws.noise("x_T", tuple(victim.noise([0], context.protocol["size"]).shape), named)
        with torch.no_grad():
            guidance = victim.guidance(victim, named, victim.unconditional(), self.rollout_guidance, [text])
            if self.compat == "official":
                return compvis_rollout(victim, start, guidance, S, k, draws)
            return rollout(victim, start, guidance, "ddim", S, k)
