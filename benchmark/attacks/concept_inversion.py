"""Concept inversion (CCE): a new word is learned from images of the concept, on the edited model.

Pham, Marshall, Cohen, Mittal and Hegde, "Circumventing Concept Erasure Methods for Text-to-Image Generative Models",
ICLR 2024, arXiv 2308.01508: textual inversion on the victim. AdamW trains v (width,), the input embedding of one
placeholder token, and nothing else. With x_0 latents of images, S captions that contain the placeholder, E the victim's
text encoder and e its network, adapters included:

    plain         loss = mean (ε − e(x_t, t, E_v(S)))²                                     x_t = √ᾱ x_0 + √(1−ᾱ) ε
    guided        loss = mean (g(x_t, t, E_v(S)) − c(x_t, t, E(concept)))²
    trajectory    the same at t_k, where g(·, t_1), …, g(·, t_k) share the guard's state, t_1 > … > t_k

g is the sampler's guided prediction with the guard, c the same without it, both at ``guidance_scale``: the word learns
to cancel the guard. ``trajectory`` draws n from window … T − 1 and visits ``visits`` different timesteps of n − window
… n − 1 with the same ε. The earlier ones enter the loss, and its gradient, through the guard's momentum.

``captions`` are sentences for the concept (S = "a photo of v"), or prompts (I2P mode: S = "v" before a prompt, and the
prompt takes the concept's place in c). In the official code every step encodes each image anew and draws from the
posterior. Here the posterior means, and those of mirrored images, are computed once. The official learning rate of 5e-3
is multiplied by batch size and accumulation steps, which gives 0.08 (4 × 4), and 0.02 for SLD (1 × 4). The official
code restores the other rows of the token table after each step; here they never change.

``compat: official`` compares the warm-up steps of a guard with momentum with the number of the batch in its epoch. ``intended``
compares them with the step at which the protocol's sampler reaches t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from PIL import ImageOps

from overpaint.attacks.attack import Assault, Attack, AttackContext, Ledger
from overpaint.attacks.prompt_lists import attacked
from overpaint.attacks.wording import sentences
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.templates import renamed
from overpaint.blocks.training import gradient
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Concept
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.guidance import Guidance, sampler_step
from overpaint.models.lazily import functional, torch
from overpaint.run.progress import steps

#: How often each image appears in an epoch of the official code.
REPEATS = 100


class TrainingBatch(NamedTuple):
    """What one batch is trained on.

    ``embeds`` (batch, tokens, width) encode the ``captions`` with the placeholder, ``asked`` are the texts that these
    stand for. ``latents`` x_0 and ``noise`` ε have shape (batch, c, h, w), ``timesteps`` (batch,).
    """

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
    lengths: ClassVar[tuple[str, ...]] = ("steps",)
    version: ClassVar[int] = 2

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
                total, reached = torch.zeros((), device=v.device), torch.zeros_like(v)
                for number in range(step * self.accumulation, (step + 1) * self.accumulation):
                    value = self.loss(context, branch, latents, draws, number) / self.accumulation
                    total, reached = total + value.detach(), reached + gradient(value, v, victim.dtype)
                v.grad = reached
                trace_values(loss=total, gradient=reached, row=v.detach().clone())
                optimizer.step()
        return Assault(self.shots(context), {self.placeholder: v.detach().clone()}, ledger)

    def loss(
        self, context: AttackContext, branch: str, latents: torch.Tensor, draws: Draws, number: int
    ) -> torch.Tensor:
        """The loss () of batch ``number``, counted from 0, in the chosen branch."""
        victim, lowest = context.victim, self.window if branch == "trajectory" else 0
        batch = self.training_batch(context, latents, draws, lowest)
        if branch == "plain":
            return self.plain(victim, batch)
        visits = batch.timesteps[None] if branch == "guided" else self.visited(batch.timesteps, draws)
        # a guard may ask for the step: officially, SLD's warm-up is compared with the batch's number in its epoch
        official = branch == "trajectory" and self.compat == "official"
        numbered = number % -(-REPEATS * self.pictures // self.batch_size) if official else None
        return self.through_guard(context, batch, visits, numbered)

    def check_window(self, victim: DiffusionModel) -> None:
        """Raise a `UserError` if the window is not smaller than the model's number of timesteps."""
        total = victim.train_timesteps
        if self.window >= total:
            raise UserError(f"attack.window takes fewer timesteps than the model's {total}, got {self.window}")

    def latents(self, context: AttackContext) -> torch.Tensor:
        """Latents (n, c, h, w) of the concept's images, followed by those of their mirror images."""
        pictures = context.concept_images(self.pictures, "cce")
        if self.mirror:
            pictures += [ImageOps.mirror(picture) for picture in pictures]
        blocks = [pictures[i : i + self.batch_size] for i in range(0, len(pictures), self.batch_size)]
        return torch.cat([context.victim.to_latents(block) for block in blocks]).to(context.victim.dtype)

    def start(self, victim: DiffusionModel, concept: Concept, draws: Draws) -> torch.Tensor:
        """v (width,): the initial word's row of the token table, or noise with the table's standard deviation."""
        table, word = victim.token_table.detach().float(), self.initial_word
        if word == "name":  # the last of the name's words that is a single token
            single = [own for own in concept.name.split() if len(victim.token_ids(own)) == 3]
            word = single[-1] if single else None
        if word is not None:
            ids = victim.token_ids(word)[1:-1]
            if len(ids) != 1:
                raise UserError(
                    f"attack.initial_word takes a word that is one token of the model, {word!r} is {len(ids)} tokens"
                )
            return table[ids[0]].clone()
        return table.std() * draws.noise("start", (table.shape[1],), table)

    def chosen_branch(self, context: AttackContext) -> str:
        """``branch``, or for ``auto`` the one that fits the victim's guard."""
        if self.branch != "auto":
            return self.branch
        if context.guard is None:
            return "plain"
        return "trajectory" if context.guard.stateful else "guided"

    def plain(self, victim: DiffusionModel, batch: TrainingBatch) -> torch.Tensor:
        """The denoising loss () of the conditional prediction, without guidance."""
        embeds, _, _, x0, noise, t = batch
        predicted = victim.predict(victim.add_noise(x0, noise, t), t, embeds)
        return functional.mse_loss(predicted.float(), victim.denoising_target(x0, noise, t).float())

    def through_guard(
        self, context: AttackContext, batch: TrainingBatch, visits: torch.Tensor, numbered: int | None
    ) -> torch.Tensor:
        """The loss () between the guarded prediction for the placeholder and the unguarded one for what it stands for.

        It is taken at the last of the timesteps ``visits`` (k, batch). The guard keeps its state from one to the next. It is
        told the sampler's step at each timestep, or ``numbered``.
        """
        victim, w = context.victim, self.guidance_scale
        sampler_steps = context.protocol.get("steps", victim.train_timesteps)
        embeds, captions, asked, x0, noise, _ = batch
        with torch.no_grad():
            wanted = victim.encode(asked, truncate=self.captions == "prompts")
            nothing = victim.unconditional().expand_as(embeds)
        guarded = victim.guidance(victim, embeds, nothing, w, captions)
        for t in visits:
            noised = victim.add_noise(x0, noise, t)
            reached = sampler_step(victim, t, sampler_steps) if numbered is None else numbered
            predicted = guarded(noised, t, reached + 0.5)  # never 0, because guards reset their state at step 0
        with torch.no_grad():
            goal = Guidance(victim, wanted, nothing, w)(noised, t, 0)
        return functional.mse_loss(predicted.float(), goal.float())

    def visited(self, ends: torch.Tensor, draws: Draws) -> torch.Tensor:
        """``visits`` timesteps (visits, batch), descending, drawn from the window before each of ``ends`` (batch,)."""
        orders = [draws.take("perm", lambda g: torch.randperm(self.window, generator=g)) for _ in ends]
        offsets = torch.stack(orders, dim=1)[: self.visits].sort(dim=0, descending=True).values
        return ends - self.window + offsets.to(ends.device)

    def training_batch(self, context: AttackContext, latents: torch.Tensor, draws: Draws, lowest: int) -> TrainingBatch:
        """A random batch, with timesteps from ``lowest`` on."""
        victim, size = context.victim, self.batch_size
        texts = {"sentences": self.sentences, "prompts": self.prompts}[self.captions]
        lines, asked = texts(context)
        chosen = draws.take("captions", lambda g: torch.randint(0, len(lines), (size,), generator=g)).tolist()
        x0 = draws.take("x0", lambda g: latents[torch.randint(0, len(latents), (size,), generator=g)])
        noise = draws.noise("noise", tuple(x0.shape), x0)
        t = draws.take("t", lambda g: victim.draw_timesteps(size, g, lowest)).to(x0.device)
        captions = [lines[i] for i in chosen]
        prompts = self.captions == "prompts"  # over-long prompts are truncated, as in image generation
        ids = draws.take("ids", lambda g: victim.padded_ids(captions, truncate=prompts))
        return TrainingBatch(victim.encode_ids(ids), captions, [asked[i] for i in chosen], x0, noise, t)

    def sentences(self, context: AttackContext) -> tuple[list[str], list[str]]:
        """Captions with the placeholder, and the text that each stands for: the concept's name."""
        words = f"{context.concept.article} {self.placeholder}".strip()
        lines = [line.format(words) for line in sentences(context.concept, context.catalogue)]
        return lines, [context.concept.name] * len(lines)

    def prompts(self, context: AttackContext) -> tuple[list[str], list[str]]:
        """The prompts with the placeholder before them, and the prompts themselves (I2P's do not name the concept)."""
        texts = [shot.prompt.text for shot in context.shots]
        return [f"{self.placeholder} {text}" for text in texts], texts

    def shots(self, context: AttackContext) -> list:
        """The shots with the placeholder in place of the concept's name, or before a prompt that does not name it.

        If it was learned before whole prompts (``captions: prompts``), it is before all of them, as in training.
        """
        found = []
        for shot in context.shots:
            text = shot.prompt.text
            named = None if self.captions == "prompts" else renamed(text, context.concept, self.placeholder)
            placed = named or f"{self.placeholder} {text}"
            found.append(attacked(shot, placed, context.concept, shot.prompt.variant))
        return found
