"""Concept inversion (CCE): a new word is learned from pictures of the concept, on the edited model.

Pham, Marshall, Cohen, Mittal and Hegde, "Circumventing Concept Erasure Methods for Text-to-Image Generative Models",
ICLR 2024, arXiv 2308.01508: textual inversion on the victim. Only v (width,), the input embedding of one placeholder
token, is learned; with x_0 latents of pictures, captions S built from templates around the placeholder, E the victim's
text encoder and e its network, adapters included:

    plain              loss = mean (ε − e(x_t, t, E_v(S)))²                                     x_t = √ᾱ x_0 + √(1−ᾱ) ε
    negative_prompt    loss = mean (g(x_t, t, E_v(S)) − c(x_t, t, E(concept)))²                 AdamW on v

where g is the guarded and c the unguarded classifier-free guidance of the sampler, at ``guidance_scale``: the word
learns to cancel the guard. The official code encodes each picture anew in every step and draws from the posterior; here
the posterior means, and their mirror images, are computed once. Its learning rate of 5e-3 is multiplied by batch size
and accumulation steps (4 × 4), which makes 0.08. It restores the other rows of the table after each step; here they
cannot change at all.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from PIL import ImageOps
from torch.nn.functional import mse_loss

from overpaint.attacks.attack import Assault, Attack, Ledger, Scene
from overpaint.attacks.prompt_lists import attacked
from overpaint.attacks.wording import renamed, sentences
from overpaint.errors import UserError, at_least
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.guidance import Guidance
from overpaint.progress import steps
from overpaint.replay import Draws, show


@dataclass(kw_only=True)
class ConceptInversion(Attack):
    """Hyper-parameters; ``conf/attack/cce.yaml`` says what each means."""

    placeholder: str
    initial_word: str | None
    pictures: int
    mirror: bool
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    branch: Literal["auto", "plain", "negative_prompt"]
    guidance_scale: float

    needs: ClassVar[str] = "victim"

    def __post_init__(self):
        at_least(0, steps=self.steps, learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        at_least(1, pictures=self.pictures, batch_size=self.batch_size)

    def run(self, scene: Scene) -> Assault:
        victim, started = scene.victim, time.perf_counter()
        draws, ledger = Draws(self.seed), Ledger()
        latents = self.latents(scene)
        v = torch.nn.Parameter(self.start(victim, draws))
        optimizer = torch.optim.AdamW([v], lr=self.learning_rate, weight_decay=self.weight_decay)
        loss = self.through_guard if self.chosen_branch(victim) == "negative_prompt" else self.plain
        with victim.learned_tokens({self.placeholder: v}), torch.enable_grad():
            for _ in steps(self.steps, "inversion steps"):
                optimizer.zero_grad(set_to_none=True)
                value = loss(scene, latents, draws, ledger)
                value.backward()
                show(loss=value.detach(), gradient=v.grad, row=v.detach().clone())
                optimizer.step()
        ledger.seconds = time.perf_counter() - started
        return Assault(self.shots(scene), {self.placeholder: v.detach().clone()}, ledger)

    def latents(self, scene: Scene) -> torch.Tensor:
        """Latents (n, c, h, w) of the concept's pictures, mirror images behind them."""
        pictures = list(scene.examples(self.pictures)) if scene.examples else []
        if not pictures:
            raise UserError(f"attack=cce needs pictures of {scene.concept.name!r}, and there are none")
        if self.mirror:
            pictures += [ImageOps.mirror(picture) for picture in pictures]
        blocks = [pictures[i : i + self.batch_size] for i in range(0, len(pictures), self.batch_size)]
        return torch.cat([scene.victim.to_latents(block) for block in blocks]).to(scene.victim.dtype)

    def start(self, victim: DiffusionModel, draws: Draws) -> torch.Tensor:
        """v (width,): the initial word's last row of the victim's table, or noise of the table's own spread."""
        table = victim.token_table.detach().float()
        if self.initial_word is not None:
            return table[victim.token_ids(self.initial_word)[-2]].clone()
        return table.std() * draws.noise("start", (table.shape[1],), table)

    def chosen_branch(self, victim: DiffusionModel) -> str:
        if self.branch != "auto":
            return self.branch
        return "negative_prompt" if getattr(victim.guidance, "guard", "") == "negative_prompt" else "plain"

    def plain(self, scene: Scene, latents: torch.Tensor, draws: Draws, ledger: Ledger) -> torch.Tensor:
        """The denoising loss of the prompted prediction, without guidance."""
        victim = scene.victim
        embeds, x0, noise, t = self.batch(scene, latents, draws)
        predicted = victim.predict(victim.add_noise(x0, noise, t), t, embeds)
        self.spend(ledger, forwards=1, backwards=1)
        return mse_loss(predicted.float(), victim.denoising_target(x0, noise, t).float())

    def through_guard(self, scene: Scene, latents: torch.Tensor, draws: Draws, ledger: Ledger) -> torch.Tensor:
        """The distance from the guarded prediction for the placeholder to the unguarded one for the concept."""
        victim, w = scene.victim, self.guidance_scale
        embeds, x0, noise, t = self.batch(scene, latents, draws)
        noised = victim.add_noise(x0, noise, t)
        with torch.no_grad():
            named, nothing = (e.expand_as(embeds) for e in victim.encode([scene.concept.name, ""])[:, None])
            wanted = Guidance(victim, named, nothing, w)(noised, t, 0)
        predicted = victim.guidance(victim, embeds, nothing, w)(noised, t, 0)
        self.spend(ledger, forwards=4, backwards=2)
        return mse_loss(predicted.float(), wanted.float())

    def batch(self, scene: Scene, latents: torch.Tensor, draws: Draws):
        """Caption embeddings, x_0, ε and t (b,) of one step: everything that is drawn."""
        victim, size = scene.victim, self.batch_size
        lines = sentences(scene.concept, scene.catalogue)
        words = f"{scene.concept.article} {self.placeholder}".strip()

        def captions(generator: torch.Generator) -> torch.Tensor:
            chosen = torch.randint(0, len(lines), (size,), generator=generator).tolist()
            return victim.padded_ids([lines[i].format(words) for i in chosen])

        ids = draws.take("ids", captions)
        x0 = draws.take("x0", lambda g: latents[torch.randint(0, len(latents), (size,), generator=g)])
        noise = draws.noise("noise", tuple(x0.shape), x0)
        t = draws.take("t", lambda g: torch.randint(0, len(victim.alphas_cumprod), (size,), generator=g)).to(x0.device)
        return victim.encode_ids(ids), x0, noise, t

    def spend(self, ledger: Ledger, forwards: int, backwards: int) -> None:
        ledger.forwards += forwards * self.batch_size
        ledger.backwards += backwards * self.batch_size
        ledger.text_forwards += self.batch_size

    def shots(self, scene: Scene) -> list:
        """The scene's shots with the placeholder for the concept's name; where it is not named, before the prompt."""
        found = []
        for shot in scene.shots:
            text = shot.prompt.text
            placed = renamed(text, scene.concept, self.placeholder) or f"{self.placeholder} {text}"
            found.append(attacked(shot, placed, scene.concept, shot.prompt.variant))
        return found
