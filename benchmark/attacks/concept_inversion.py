"""Concept inversion (CCE): a new word is learned from pictures of the concept, on the edited model.

Pham, Marshall, Cohen, Mittal and Hegde, "Circumventing Concept Erasure Methods for Text-to-Image Generative Models",
ICLR 2024, arXiv 2308.01508: textual inversion on the victim. Only v (width,), the input embedding of one placeholder
token, is learned, by AdamW; with x_0 latents of pictures, captions S around the placeholder, E the victim's text encoder
and e its network, adapters included:

    plain         loss = mean (ε − e(x_t, t, E_v(S)))²                                     x_t = √ᾱ x_0 + √(1−ᾱ) ε
    guided        loss = mean (g(x_t, t, E_v(S)) − c(x_t, t, E(concept)))²
    trajectory    the same at t_k, where g(·, t_1), …, g(·, t_k) share the guard's state, t_1 > … > t_k

where g is the guarded and c the unguarded classifier-free guidance of the sampler, at ``guidance_scale``: the word
learns to cancel the guard. For ``trajectory``, n is drawn from window … T − 1 and the t_i are ``visits`` different timesteps of
n − window … n − 1, all with the same ε; the earlier ones enter the loss through the momentum, and so does their gradient.

``captions`` are sentences for the concept (S = "a photo of v"), or prompts (I2P mode: S = "v" before a prompt, which then
takes the concept's place in c). The official code encodes each picture anew in every step and draws from the posterior;
here the posterior means, and their mirror images, are computed once. Its learning rate of 5e-3 is multiplied by batch
size and accumulation steps, which makes 0.08 (4 × 4), and 0.02 for SLD (1 × 4). It restores the other rows of the table
after each step; here they cannot change at all.

``compat: official`` compares SLD's warm-up with the number of the batch in its epoch; ``intended`` with how far a sampler
with as many steps as there are timesteps would be at t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from PIL import ImageOps
from torch.nn.functional import mse_loss

from overpaint.attacks.attack import Assault, Attack, AttackContext, Ledger
from overpaint.attacks.prompt_lists import attacked
from overpaint.attacks.wording import renamed, sentences
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.training import gradients
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Concept
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.guidance import Guidance
from overpaint.run.progress import steps

#: How often an epoch of the official code shows each picture.
REPEATS = 100


class Lesson(NamedTuple):
    """Embeddings (batch, tokens, width) of captions with the placeholder, their texts, the texts they stand for; x_0 and
    ε (batch, c, h, w) and timesteps (batch,)."""

    embeds: torch.Tensor
    captions: list[str]
    asked: list[str]
    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor


@dataclass(kw_only=True)
class ConceptInversion(Attack):
    """Hyper-parameters; ``conf/attack/cce.yaml`` says what each means."""

    placeholder: str
    initial_word: str | None
    pictures: int
    mirror: bool
    captions: Literal["sentences", "prompts"]
    steps: int
    batch_size: int
    accumulation: int
    learning_rate: float
    weight_decay: float
    branch: Literal["auto", "plain", "guided", "trajectory"]
    guidance_scale: float
    window: int
    visits: int
    compat: Literal["official", "intended"]

    needs: ClassVar[str] = "victim"
    worded: ClassVar[bool] = False

    def __post_init__(self):
        at_least(0, steps=self.steps, learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        at_least(1, pictures=self.pictures, batch_size=self.batch_size, visits=self.visits)
        at_least(1, accumulation=self.accumulation)
        at_least(self.visits, window=self.window)

    def run(self, context: AttackContext) -> Assault:
        victim, draws, ledger = context.victim, Draws(self.seed), Ledger()
        branch = self.chosen_branch(context)
        if branch == "trajectory":
            self.check_window(victim)
        latents = self.latents(context)
        v = torch.nn.Parameter(self.start(victim, context.concept, draws))
        optimizer = torch.optim.AdamW([v], lr=self.learning_rate, weight_decay=self.weight_decay)
        with ledger.counting(victim), victim.learned_tokens({self.placeholder: v}), torch.enable_grad():
            for step in steps(self.steps, "inversion steps"):
                total, v.grad = 0.0, torch.zeros_like(v)
                for batch in range(step * self.accumulation, (step + 1) * self.accumulation):
                    value = self.loss(context, branch, latents, draws, batch) / self.accumulation
                    (gradient,) = gradients(value, [v], victim.dtype)
                    total, v.grad = total + value.detach(), v.grad + gradient
                trace_values(loss=total, gradient=v.grad, row=v.detach().clone())
                optimizer.step()
        return Assault(self.shots(context), {self.placeholder: v.detach().clone()}, ledger)

    def loss(
        self, context: AttackContext, branch: str, latents: torch.Tensor, draws: Draws, batch: int
    ) -> torch.Tensor:
        """The loss of batch number ``batch``, as the victim's guard asks for it."""
        victim = context.victim
        lesson = self.lesson(context, latents, draws, lowest=self.window if branch == "trajectory" else 0)
        if branch == "plain":
            return self.plain(victim, lesson)
        if branch == "guided":
            return self.through_guard(victim, lesson, lesson.timesteps[None], batch)
        return self.through_guard(victim, lesson, self.visited(lesson.timesteps, draws), batch)

    def check_window(self, victim: DiffusionModel) -> None:
        total = victim.train_timesteps
        if self.window >= total:
            raise UserError(f"window takes fewer than the model's {total} timesteps, got {self.window}")

    def latents(self, context: AttackContext) -> torch.Tensor:
        """Latents (n, c, h, w) of the concept's pictures, mirror images behind them."""
        pictures = list(context.examples(self.pictures)) if context.examples else []
        if not pictures:
            raise UserError(f"attack=cce needs pictures of {context.concept.name!r}, and there are none")
        if self.mirror:
            pictures += [ImageOps.mirror(picture) for picture in pictures]
        blocks = [pictures[i : i + self.batch_size] for i in range(0, len(pictures), self.batch_size)]
        return torch.cat([context.victim.to_latents(block) for block in blocks]).to(context.victim.dtype)

    def start(self, victim: DiffusionModel, concept: Concept, draws: Draws) -> torch.Tensor:
        """v (width,): the initial word's row of the victim's table, or noise of the table's own spread."""
        table, word = victim.token_table.detach().float(), self.initial_word
        if word == "name":  # the last of its words that is one token, if any
            single = [own for own in concept.name.split() if len(victim.token_ids(own)) == 3]
            word = single[-1] if single else None
        if word is not None:
            ids = victim.token_ids(word)[1:-1]
            if len(ids) != 1:
                raise UserError(f"initial_word takes one token of the model's, {word!r} is {len(ids)}")
            return table[ids[0]].clone()
        return table.std() * draws.noise("start", (table.shape[1],), table)

    def chosen_branch(self, context: AttackContext) -> str:
        """``branch``, or for ``auto`` the one that fits the victim's guard."""
        if self.branch != "auto":
            return self.branch
        if context.guard is None:
            return "plain"
        return "trajectory" if context.guard.stateful else "guided"

    def plain(self, victim: DiffusionModel, lesson: Lesson) -> torch.Tensor:
        """The denoising loss of the prompted prediction, without guidance."""
        embeds, _, _, x0, noise, t = lesson
        predicted = victim.predict(victim.add_noise(x0, noise, t), t, embeds)
        return mse_loss(predicted.float(), victim.denoising_target(x0, noise, t).float())

    def through_guard(self, victim: DiffusionModel, lesson: Lesson, visits: torch.Tensor, batch: int) -> torch.Tensor:
        """The distance from the guarded prediction for the placeholder to the unguarded one for what it stands for,
        at the last of the timesteps ``visits`` (k, batch); the guard keeps its state from one to the next."""
        counted = batch % -(-REPEATS * self.pictures // self.batch_size) + 0.5  # never step 0, where guards begin anew
        embeds, captions, asked, x0, noise, _ = lesson
        w, total = self.guidance_scale, victim.train_timesteps
        with torch.no_grad():
            wanted = victim.encode(asked, truncate=self.captions == "prompts")
            nothing = victim.unconditional().expand_as(embeds)
        guarded = victim.guidance(victim, embeds, nothing, w, captions)
        for t in visits:
            noised = victim.add_noise(x0, noise, t)
            predicted = guarded(noised, t, counted if self.compat == "official" else total - int(t[0]))
        with torch.no_grad():
            goal = Guidance(victim, wanted, nothing, w)(noised, t, 0)
        return mse_loss(predicted.float(), goal.float())

    def visited(self, ends: torch.Tensor, draws: Draws) -> torch.Tensor:
        """``visits`` timesteps (visits, batch) in descending order out of the window before each of ``ends`` (batch,)."""
        orders = [draws.take("perm", lambda g: torch.randperm(self.window, generator=g)) for _ in ends]
        offsets = torch.stack(orders, dim=1)[: self.visits].sort(dim=0, descending=True).values
        return ends - self.window + offsets.to(ends.device)

    def lesson(self, context: AttackContext, latents: torch.Tensor, draws: Draws, lowest: int) -> Lesson:
        """What one step learns from: everything that is drawn, timesteps from ``lowest`` on."""
        victim, size = context.victim, self.batch_size
        texts = {"sentences": self.sentences, "prompts": self.prompts}[self.captions]
        lines, asked = texts(context)
        chosen = draws.take("captions", lambda g: torch.randint(0, len(lines), (size,), generator=g)).tolist()
        x0 = draws.take("x0", lambda g: latents[torch.randint(0, len(latents), (size,), generator=g)])
        noise = draws.noise("noise", tuple(x0.shape), x0)
        t = draws.take("t", lambda g: victim.draw_timesteps(size, g, lowest)).to(x0.device)
        captions = [lines[i] for i in chosen]
        prompts = self.captions == "prompts"  # of which the end is cut where they are too long, as when they are drawn
        ids = draws.take("ids", lambda g: victim.padded_ids(captions, truncate=prompts))
        return Lesson(victim.encode_ids(ids), captions, [asked[i] for i in chosen], x0, noise, t)

    def sentences(self, context: AttackContext) -> tuple[list[str], list[str]]:
        """Captions with the placeholder, and what they stand for: the concept, whatever the sentence."""
        words = f"{context.concept.article} {self.placeholder}".strip()
        lines = [line.format(words) for line in sentences(context.concept, context.catalogue)]
        return lines, [context.concept.name] * len(lines)

    def prompts(self, context: AttackContext) -> tuple[list[str], list[str]]:
        """The context's prompts behind the placeholder, and the prompts: as I2P's, which do not name the concept."""
        texts = [shot.prompt.text for shot in context.shots]
        return [f"{self.placeholder} {text}" for text in texts], texts

    def shots(self, context: AttackContext) -> list:
        """The context's shots with the placeholder for the concept's name; where it is not named, before the prompt."""
        found = []
        for shot in context.shots:
            text = shot.prompt.text
            placed = renamed(text, context.concept, self.placeholder) or f"{self.placeholder} {text}"
            found.append(attacked(shot, placed, context.concept, shot.prompt.variant))
        return found
