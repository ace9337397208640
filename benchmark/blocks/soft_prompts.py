"""Soft prompts: free token embeddings inside a prompt, learned against whatever a loss says of it.

The inner attack of AdvUnlearn (Zhang et al., NeurIPS 2024, arXiv 2405.15234), which any victim can be put to. A prompt
has n words and rows [BOS, words, rest]; k free rows δ (1, k, width) go among them, and as many of the rest are dropped:

    prefix_k, suffix_k, mid_k   before, behind and in the middle of the words
    insert_k                    row j behind (j + 1)·⌊n/(k + 1)⌋ words
    per_k_words                 row j behind 3j words
    replace_k                   prefix_k, the words' own rows being end rows
    add                         words + δ, with k = n, and n end rows behind

    pgd       δ ← Adam(δ, g)           g = ∇_δ loss(rows(δ)); each step draws its own latents and timestep
    fast_at   δ ← Adam(δ, sign g)

As released, n is the number of words between spaces and the k rows behind them are dropped, which are pieces of a longer
word (of six pieces, under prefix_k with k = 1, the second); g is a running sum of gradients (of signs and a gradient),
never zeroed; and the δ returned is that before the last step. ``released`` does all that; without it n counts word
pieces, rows are dropped at the end of the padding, g is the step's own and δ the last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch

from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.training import gradients
from overpaint.errors import UserError
from overpaint.models.diffusion import DiffusionModel

Place = Literal["prefix_k", "suffix_k", "mid_k", "insert_k", "per_k_words", "replace_k", "add"]
PLACES: tuple[str, ...] = get_args(Place)

#: Behind how many of n words each of k rows goes.
BEHIND: dict[str, Callable[[int, int], list[int]]] = {
    "prefix_k": lambda n, k: [0] * k,
    "replace_k": lambda n, k: [0] * k,
    "mid_k": lambda n, k: [n // 2] * k,
    "suffix_k": lambda n, k: [n] * k,
    "add": lambda n, k: [n] * k,
    "insert_k": lambda n, k: [(j + 1) * (n // (k + 1)) for j in range(k)],
    "per_k_words": lambda n, k: [min(3 * j, n) for j in range(k)],
}


class SoftPrompt:
    """A prompt with places for ``size`` free rows; ``plain`` (1, tokens, width) are its own, ``ids`` (1, tokens)."""

    def __init__(self, model: DiffusionModel, text: str, place: Place, size: int, released: bool = False):
        self.model, self.place = model, place
        own = model.padded_ids([text])
        self.plain = model.token_embeddings(own).detach()
        self.n = len(text.split()) if released else model.last_subject_token(text)
        self.size = self.n if place == "add" else size
        rest = model.tokens - 1 - self.n - self.size
        if rest < 1:
            raise UserError(f"{self.size} free rows and {text!r} do not fit the {model.tokens} positions of a prompt")
        behind = range(1 + self.n, model.tokens)
        self._rest = list(behind[self.size :] if released else behind[:rest])
        dropped = own[:, behind[: self.size]] if released else own[:, behind[rest:]]
        self.ids = self._arranged(own, torch.zeros_like(dropped) if place == "add" else dropped)

    def rows(self, free: torch.Tensor) -> torch.Tensor:
        """Token embeddings (1, tokens, width) with the free rows (1, k, width) in their places; differentiable."""
        return self._arranged(self.plain, free.to(self.plain))

    def random_start(self, draws: Draws) -> torch.Tensor:
        """The rows (1, k, width) of k random entries of the token table."""
        known = len(self.model.tokenizer)
        ids = draws.take("start", lambda g: torch.randint(0, known, (1, self.size), generator=g))
        return self.model.token_embeddings(ids.to(self.plain.device)).detach()

    def _arranged(self, own: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
        """The layout above, for rows (1, tokens, width) and ids (1, tokens) alike."""
        n, k = self.n, self.size
        words, rest = own[:, 1 : 1 + n], own[:, self._rest]
        if self.place == "add":
            words, free = words + free, rest[:, [0] * k]
        elif self.place == "replace_k":
            words = rest[:, [0] * n]
        place = [*range(1, n + 1), *(behind + 0.5 for behind in BEHIND[self.place](n, k))]
        order = sorted(range(n + k), key=place.__getitem__)
        return torch.cat([own[:, :1], torch.cat([words, free], 1)[:, order], rest], 1)


def attack(
    prompt: SoftPrompt,
    start: torch.Tensor,
    loss: Callable[[torch.Tensor], torch.Tensor],
    steps: int,
    learning_rate: float,
    method: Literal["pgd", "fast_at"] = "pgd",
    released: bool = False,
) -> torch.Tensor:
    """The free rows (1, k, width) that Adam finds from ``start`` for ``loss(rows)``, at least in float32.

    ``loss`` takes token embeddings (1, tokens, width) and draws what it needs anew at each call. On a victim it is, say,
    the distance of ``victim.predict(x_t, t, victim.encode_embeddings(rows, prompt.ids))`` from the original's prediction.
    """
    free = torch.nn.Parameter(start.detach().to(torch.promote_types(start.dtype, torch.float32), copy=True))
    optimizer = torch.optim.Adam([free], lr=learning_rate)
    used, before = torch.zeros_like(free), free.detach()
    with torch.enable_grad():
        for _ in range(steps):
            value = loss(prompt.rows(free))
            (gradient,) = gradients(value, [free], prompt.plain.dtype)
            used = used + gradient if released else gradient
            if method == "fast_at":
                used = used.sign()
            free.grad, before = used.clone(), free.detach().clone()
            optimizer.step()
            trace_values(attack_loss=value.detach(), attack_gradient=used, free=free.detach().clone())
    return before if released else free.detach()
