"""Soft prompts: free token embeddings inside a prompt, optimised for a loss.

This is the inner attack of AdvUnlearn (Zhang et al., NeurIPS 2024, arXiv 2405.15234), usable with any loss. A prompt has
n words and the rows [BOS, words, rest]. k free rows δ (1, k, width) are inserted, and k rows of the rest are dropped:

    prefix_k, suffix_k, mid_k   before, after and in the middle of the words
    insert_k                    row j after (j + 1)·⌊n/(k + 1)⌋ words
    per_k_words                 row j after 3j words
    replace_k                   as prefix_k, with the words' rows replaced by end rows
    add                         words + δ with k = n, followed by n end rows

    pgd       δ ← Adam(δ, g)           g = ∇_δ loss(rows(δ)); each step draws its own latents and timestep
    fast_at   δ ← Adam(δ, sign g)

With ``released=True``, the attack has three properties of the released code. n is the number of words separated by
spaces, so if a word has several tokens, the k dropped rows are tokens of that word. g accumulates over all steps because
gradients are never zeroed. The result is δ before the last step. Otherwise n counts tokens, rows are dropped from the
end of the padding, g is the gradient of the current step, and the result is δ after the last step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.training import gradient
from overpaint.errors import UserError
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.lazily import torch

Place = Literal["prefix_k", "suffix_k", "mid_k", "insert_k", "per_k_words", "replace_k", "add"]
PLACES: tuple[str, ...] = get_args(Place)

#: For each layout, the number of words (of n) before each of the k rows.
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
    """A prompt with places for ``size`` free rows.

    ``plain`` (1, tokens, width) are the token embeddings of the prompt itself, ``ids`` (1, tokens) the token ids of the
    prompt with its places.
    """

    def __init__(self, model: DiffusionModel, text: str, place: Place, size: int, released: bool = False):
        self.model, self.place = model, place
        own = model.padded_ids([text])
        self.plain = model.token_embeddings(own).detach()
        self.n = len(text.split()) if released else model.last_subject_token(text)
        self.size = self.n if place == "add" else size
        rest = model.tokens - 1 - self.n - self.size
        if rest < 1:
            raise UserError(f"{self.size} free rows and {text!r} exceed the {model.tokens} positions of a prompt")
        behind = range(1 + self.n, model.tokens)
        self._rest = list(behind[self.size :] if released else behind[:rest])
        dropped = own[:, behind[: self.size]] if released else own[:, behind[rest:]]
        self.ids = self._arranged(own, torch.zeros_like(dropped) if place == "add" else dropped)

    def rows(self, free: torch.Tensor) -> torch.Tensor:
        """Token embeddings (1, tokens, width) with the free rows (1, k, width) in place; differentiable in them."""
        return self._arranged(self.plain, free.to(self.plain))

    def random_start(self, draws: Draws) -> torch.Tensor:
        """The embeddings (1, k, width) of k random tokens."""
        known = len(self.model.tokenizer)
        ids = draws.take("start", lambda g: torch.randint(0, known, (1, self.size), generator=g))
        return self.model.token_embeddings(ids.to(self.plain.device)).detach()

    def _arranged(self, own: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
        """Apply the layout to rows (1, tokens, width) or ids (1, tokens)."""
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
    """Minimise ``loss(rows)`` with Adam from ``start`` and return the free rows (1, k, width), at least float32.

    ``loss`` takes token embeddings (1, tokens, width) and draws its own latents at each call. For an attack on a victim,
    it is the distance between ``victim.predict(x_t, t, victim.encode_embeddings(rows, prompt.ids))`` and the original
    model's prediction.
    """
    free = torch.nn.Parameter(start.detach().to(torch.promote_types(start.dtype, torch.float32), copy=True))
    optimizer = torch.optim.Adam([free], lr=learning_rate)
    used, before = torch.zeros_like(free), free.detach()
    with torch.enable_grad():
        for _ in range(steps):
            value = loss(prompt.rows(free))
            found = gradient(value, free, prompt.plain.dtype)
            used = used + found if released else found
            if method == "fast_at":
                used = used.sign()
            free.grad, before = used.clone(), free.detach().clone()
            optimizer.step()
            trace_values(attack_loss=value.detach(), attack_gradient=used, free=free.detach().clone())
    return before if released else free.detach()
