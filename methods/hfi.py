"""HFI: feedback on images is inverted into words of the model, and these are erased by safe self-distillation.

Kim, Jung, Kim, Choi, Shin and Lee, "Safeguard Text-to-Image Diffusion Models with Human Feedback Inversion", ECCV 2024, arXiv
2407.21032. The model makes images x_i of a concept, and a judge gives each a reward r_i: how much it shows what is unwanted. New
words v* (their rows of the token table) are trained to stand for the images, each as much as it is rewarded:

    inversion = mean_i r_i/r̄ · mean (ε − e0(x_t, s(v*)))²        s a sentence, r̄ the mean reward; AdamW on v* alone

Then SDD (`overpaint.methods.sdd`) erases v* instead of the concept's name, and draws its timesteps from T · Beta(b, b), which
prefers the middle of the trajectory. With equal rewards the first part is textual inversion, with b = 1 the second part is SDD.

There is no official code, and the paper's human feedback is not published. Here the judge is a detector; without one, all
rewards are equal. Numbers of words, steps and rates of the inversion are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from overpaint.blocks.concept_scores import concept_scores, told
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.image_bank import ImageBank, diffused, paint, shuffled
from overpaint.blocks.learned_words import LearnedWords, mean_row
from overpaint.blocks.templates import phrase_templates
from overpaint.blocks.training import train
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Concept, Request
from overpaint.methods.sdd import SDD
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.lazily import torch

#: Sentences of the images and of the inversion.
SENTENCES = 8


@dataclass(kw_only=True)
class HFI(SDD):
    """Hyper-parameters of HFI; ``conf/method/hfi.yaml`` explains each."""

    reward: str | None
    pictures: int
    picture_steps: int
    picture_guidance: float
    words: int
    inversion_steps: int
    inversion_batch_size: int
    inversion_learning_rate: float
    beta: float

    name: ClassVar[str] = "hfi"
    lengths: ClassVar[tuple[str, ...]] = ("iterations", "inversion_steps", "pictures")

    def __post_init__(self):
        super().__post_init__()
        at_least(1, pictures=self.pictures, picture_steps=self.picture_steps, words=self.words)
        at_least(1, inversion_steps=self.inversion_steps, inversion_batch_size=self.inversion_batch_size)
        at_least(0, inversion_learning_rate=self.inversion_learning_rate)
        if self.beta <= 0:
            raise UserError(f"beta takes a number above 0, got {self.beta:g}")

    def detectors(self, request: Request) -> dict[str, dict[str, Any]]:
        return {self.reward: told(self.reward, request.erase)} if self.reward else {}

    def embeddings(self, model: DiffusionModel, request: Request, draws: Draws) -> dict[str, torch.Tensor]:
        """As in SDD, with the inverted words in place of the concepts' names."""
        rows: dict[str, torch.Tensor] = {}
        stands: dict[str, str] = {}
        for number, concept in enumerate(request.erase):
            found = self.inverted(model, concept, f"<hfi{number}", draws)
            stands[concept.name] = " ".join(found)
            rows |= found
        stands[", ".join(stands)] = ", ".join(stands.values())
        with torch.no_grad(), model.learned_tokens(rows):
            return {name: model.encode([text]) for name, text in {"": "", **stands}.items()}

    def inverted(self, model: DiffusionModel, concept: Concept, prefix: str, draws: Draws) -> dict[str, torch.Tensor]:
        """The new words for a concept, and their rows (width,)."""
        templates = phrase_templates(concept.kind, SENTENCES)
        prompts = [templates[i % len(templates)].format(concept.phrase) for i in range(self.pictures)]
        steps, scale = self.picture_steps, self.picture_guidance
        bank = paint(model, prompts, draws, scheduler="dpm", steps=steps, guidance_scale=scale)
        rewards = torch.from_numpy(self.rewards(bank, concept)).to(model.device)
        words = [f"{prefix}-{number}>" for number in range(self.words)]
        learner = LearnedWords(model, dict.fromkeys(words, mean_row(model, [concept.name])))
        batches = shuffled(draws, "pictures", len(bank), self.inversion_batch_size)

        def loss() -> torch.Tensor:
            chosen = next(batches)
            latents = bank.latents(chosen, draws, "z")
            x_t, t, noise = diffused(model, latents, draws)
            truth = model.denoising_target(latents, noise, t)
            sentences = [
                templates[draws.integer("sentence", 0, len(templates))].format(" ".join(words)) for _ in chosen
            ]
            with learner.active():
                predicted = model.predict(x_t, t, model.encode(sentences))
            errors = (predicted.float() - truth.float()).square().mean(dim=(1, 2, 3))
            trace_values(sentences=sentences, errors=errors.detach(), weights=rewards[chosen])
            return (rewards[chosen].to(errors) * errors).mean()

        optimizer = torch.optim.AdamW(learner.rows.values(), lr=self.inversion_learning_rate, weight_decay=0.0)
        train(learner, optimizer, self.inversion_steps, loss, "inversion steps")
        return {word: row.detach() for word, row in learner.rows.items()}

    def rewards(self, bank: ImageBank, concept: Concept) -> np.ndarray:
        """r_i/r̄ (n,) of all images; 1 without a judge. An image that the judge fails on gets none."""
        if self.reward is None:
            return np.ones(len(bank))
        scores = concept_scores("reward", self.reward, [concept], bank.model.device)
        found = np.nan_to_num(scores(concept, bank.images))
        if not found.any():
            raise UserError(
                f"reward={self.reward} sees {concept.name!r} in none of {len(bank)} images; make more (pictures=…) or "
                "leave reward out"
            )
        return found / found.mean()

    def steps_taken(self, draws: Draws) -> int:
        """k, the steps of an iteration's roll-out, from S · Beta(b, b)."""
        if self.beta == 1:
            return super().steps_taken(draws)

        def draw(generator: torch.Generator) -> int:
            seed = int(torch.randint(2**31, (1,), generator=generator))
            return min(
                int(np.random.default_rng(seed).beta(self.beta, self.beta) * self.rollout_steps), self.rollout_steps - 1
            )

        return int(draws.take("k", draw))
