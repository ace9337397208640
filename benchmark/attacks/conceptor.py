"""Conceptor: which words of its vocabulary is a concept made of, on the edited model?

Chefer, Lang, Geva, Polosukhin, Shocher, Irani, Mosseri and Wolf, "The Hidden Language of Diffusion Models", ICLR 2024,
arXiv 2306.00966. A pseudo-token w* is learned that reconstructs images of the concept, as a positive sum of the vocabulary's
own embeddings w_i (m, width), weighted by a small network f (width → ``hidden`` → 1, ReLU between):

    α_i  = |f(w_i)|
    w*   = n Σ α_i w_i / ‖Σ α_i w_i‖                                   n: mean norm of the token table's rows
    loss = mean (ε − e(x_t, t, E(S with w*)))² + ``sparsity`` (1 − cos(w*, Σ_top α_i w_i))

x_t are noised latents of the images, S = "a photo of a w*", and "top" are the ``words`` words with the largest α. AdamW trains
f. The sum over the top words, scaled to norm n, then takes the concept's place in the prompts; their names and shares of Σ_top α
are the answer. On an edited model the words say by which way the concept is still reached. ``exclude_name`` leaves out
the concept's own words.

The dictionary is the whole vocabulary, or the ``dictionary_size`` words whose CLIP features are closest to those of the images.
Not implemented: the choice of the best step by CLIP similarity; the last one is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from overpaint.attacks.attack import Assault, Attack, AttackContext, Ledger
from overpaint.attacks.prompt_lists import attacked
from overpaint.blocks.clip import Clip
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.templates import renamed
from overpaint.blocks.training import gradient
from overpaint.errors import UserError, at_least
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.lazily import functional, torch
from overpaint.run.progress import steps

#: Words per forward of CLIP's text encoder.
WORDS_AT_ONCE = 512
#: Words that the name of a variant shows.
SHOWN = 5


@dataclass(kw_only=True)
class Conceptor(Attack):
    """Hyper-parameters; ``conf/attack/conceptor.yaml`` says what each means."""

    placeholder: str
    pictures: int
    words: int
    hidden: int
    clip: str | None
    dictionary_size: int
    exclude_name: bool
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    sparsity: float

    needs: ClassVar[str] = "victim"
    worded: ClassVar[bool] = False
    lengths: ClassVar[tuple[str, ...]] = ("steps",)
    networks: ClassVar[tuple[str, ...]] = ("clip",)

    def __post_init__(self):
        at_least(0, steps=self.steps, learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        at_least(0, sparsity=self.sparsity)
        at_least(1, pictures=self.pictures, words=self.words, hidden=self.hidden, batch_size=self.batch_size)
        at_least(1, dictionary_size=self.dictionary_size)

    def run(self, context: AttackContext) -> Assault:
        victim, draws, ledger = context.victim, Draws(self.seed), Ledger()
        images = context.concept_images(self.pictures, "conceptor")
        blocks = [images[i : i + self.batch_size] for i in range(0, len(images), self.batch_size)]
        latents = torch.cat([victim.to_latents(block) for block in blocks]).to(victim.dtype)
        ids = self.dictionary(context, images)
        table = victim.token_table.detach().float()
        decomposition = Decomposition(table[ids], float(table.norm(dim=1).mean()), self.words, self.hidden, draws)
        optimizer = torch.optim.AdamW(decomposition.parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        caption = f"a photo of {context.concept.article} {self.placeholder}".replace("  ", " ")
        with ledger.counting(victim), torch.enable_grad():
            for _ in steps(self.steps, "decomposition steps"):
                optimizer.zero_grad()
                _, token, kept, _ = decomposition()
                row = token.detach().requires_grad_()
                loss = self.reconstruction(victim, row, caption, latents, draws)
                sparse = 1 - functional.cosine_similarity(kept, token, dim=0)
                reached = gradient(loss, row, victim.dtype)
                ((token * reached).sum() + self.sparsity * sparse).backward()
                trace_values(loss=loss.detach(), sparse=sparse.detach(), row=token.detach())
                optimizer.step()
        return self.assault(context, decomposition, ids, ledger)

    def reconstruction(
        self, victim: DiffusionModel, row: torch.Tensor, caption: str, latents: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """The denoising loss () of a random batch of images with ``row`` (width,) as the placeholder."""
        size = self.batch_size
        x0 = draws.take("x0", lambda g: latents[torch.randint(0, len(latents), (size,), generator=g)])
        noise = draws.noise("noise", tuple(x0.shape), x0)
        t = draws.take("t", lambda g: victim.draw_timesteps(size, g)).to(x0.device)
        with victim.learned_tokens({self.placeholder: row}):
            embeds = victim.encode([caption]).expand(size, -1, -1)
        predicted = victim.predict(victim.add_noise(x0, noise, t), t, embeds)
        return functional.mse_loss(predicted.float(), victim.denoising_target(x0, noise, t).float())

    def dictionary(self, context: AttackContext, images: Sequence) -> torch.Tensor:
        """The ids (m,) of the words that may be used."""
        victim, concept = context.victim, context.concept
        left_out = set(victim.tokenizer.all_special_ids)
        if self.exclude_name:
            left_out |= {i for text in (concept.name, *concept.synonyms) for i in victim.token_ids(text)}
        ids = torch.tensor([i for i in range(len(victim.tokenizer)) if i not in left_out], device=victim.device)
        if not self.clip or len(ids) <= self.dictionary_size:
            return ids
        return ids[self.closeness(victim, ids, images).topk(self.dictionary_size).indices]

    def closeness(self, victim: DiffusionModel, ids: torch.Tensor, images: Sequence) -> torch.Tensor:
        """Cosines (m,) of words to the mean feature of the images, in CLIP."""
        with torch.no_grad():
            clip = Clip.load(str(self.clip), victim.device)
            if clip.tokenizer.get_vocab() != victim.tokenizer.get_vocab():
                raise UserError(f"attack.clip={self.clip} has another vocabulary than the model's text encoder")
            parts = [clip.features(part[:, None], clip.table[part][:, None]) for part in ids.split(WORDS_AT_ONCE)]
            shown = clip.image_features(images).mean(dim=0, keepdim=True)
            return (
                functional.normalize(torch.cat(parts).float(), dim=1) @ functional.normalize(shown.float(), dim=1).T
            )[:, 0]

    def assault(
        self, context: AttackContext, decomposition: Decomposition, ids: torch.Tensor, ledger: Ledger
    ) -> Assault:
        """The shots with the top words' sum in place of the concept's name."""
        with torch.no_grad():
            alphas, token, kept, top = decomposition()
        shares = alphas[top] / alphas[top].sum()
        names = [context.victim.tokenizer.decode([int(i)]).strip() for i in ids[top]]
        trace_values(words=names, shares=shares)
        made_of = ", ".join(f"{name} {share:.2f}" for name, share in list(zip(names, shares, strict=True))[:SHOWN])
        shots = []
        for shot in context.shots:
            text = shot.prompt.text
            placed = renamed(text, context.concept, self.placeholder) or f"{self.placeholder} {text}"
            shots.append(attacked(shot, placed, context.concept, made_of))
        return Assault(shots, {self.placeholder: kept / kept.norm() * token.norm()}, ledger)


class Decomposition:
    """f and the sums that it makes of the embeddings ``words`` (m, width)."""

    def __init__(self, words: torch.Tensor, norm: float, top: int, hidden: int, draws: Draws):
        self.words, self.norm, self.top = words, norm, min(top, len(words))
        width = words.shape[1]
        shapes = {"w1": (hidden, width), "b1": (hidden,), "w2": (1, hidden), "b2": (1,)}
        self.parameters = [
            torch.nn.Parameter(self.uniform(draws, name, shape, width if name.endswith("1") else hidden).to(words))
            for name, shape in shapes.items()
        ]

    @staticmethod
    def uniform(draws: Draws, name: str, shape: tuple[int, ...], inputs: int) -> torch.Tensor:
        """Torch's default start of a linear layer with that many inputs: uniform up to ± 1/√inputs."""
        return draws.take(name, lambda g: (2 * torch.rand(shape, generator=g) - 1) / inputs**0.5)

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """α (m,), w* (width,), the sum over the top words (width,), and their places (top,), the largest first."""
        w1, b1, w2, b2 = self.parameters
        alphas = (torch.relu(self.words @ w1.T + b1) @ w2.T + b2)[:, 0].abs()
        whole, top = alphas @ self.words, alphas.topk(self.top).indices
        return alphas, whole / whole.norm() * self.norm, alphas[top] @ self.words[top], top
