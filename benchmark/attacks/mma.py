"""MMA-Diffusion, text modality: words that mean a prompt and hold none of the banned ones, by greedy coordinate gradient.

Yang, Gao, Wang, Ho, Xu and Xu, "MMA-Diffusion: MultiModal Attack on Diffusion Models", CVPR 2024, arXiv 2311.17516. With F
the text encoder's feature at the end token and w the k words of the state,

    loss(w) = 1 − cos(F(w), F(prompt)),   G = ∂loss/∂onehot(w) = ∂loss/∂T[w] Tᵀ      (k, vocabulary), T the token table

Each step: in n copies of w one word is exchanged, positions evenly spread over the copies, for one of the ``top`` with the
least gradient there that are not banned, drawn at random. Copies whose text would be tokenised otherwise are dropped; the
best of the others is the next state, better than w or not. The best of all states is the prompt.

``compat: official`` is the released code: row i of its G belongs to position i of the prompt, which begins with the start
token, so that it is used for the word before (the last word's own is not used at all); a copy passes if its text has as many
tokens, though they be others; and its text is the words' names in the vocabulary, which misspell bytes that are no letters
and lose the last character of a last word that goes on. ``intended`` takes the right rows and keeps decoded texts that read
back as the very same words.
Where no copy passes, the official code breaks; here the state stays, and others are drawn.

The official code bans what contains one of its words, anywhere in the vocabulary, and what contains a fragment of one: a list
written by hand, ``na``, ``ke``, ``ak`` and ``nud`` for naked and nude. ``official`` here: what contains a word of the concept's
name and synonyms, or is a fragment of one. ``intended`` bans the pieces that they consist of and no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from string import ascii_lowercase
from typing import ClassVar, Literal

import torch
from torch.nn.functional import cosine_similarity

from overpaint.attacks.attack import Assault, Attack, AttackContext, Ledger
from overpaint.attacks.prompt_lists import attacked
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.token_variables import Frame, full
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Concept
from overpaint.models.diffusion import DiffusionModel
from overpaint.run.progress import steps

#: Prompts that are encoded at once.
CANDIDATES_AT_ONCE = 128
#: Letters of the shortest word that bans what contains it; an article would ban half the vocabulary.
SHORTEST = 3


@dataclass(kw_only=True)
class MMA(Attack):
    """Hyper-parameters; ``conf/attack/mma.yaml`` says what each means."""

    tokens: int
    steps: int
    candidates: int
    top: int
    restarts: int
    compat: Literal["official", "intended"]

    version: ClassVar[int] = 3
    needs: ClassVar[str] = "model"
    unit: ClassVar[str] = "prompt"

    def __post_init__(self):
        at_least(1, tokens=self.tokens, steps=self.steps, candidates=self.candidates, top=self.top)
        at_least(1, restarts=self.restarts)

    def run(self, context: AttackContext) -> Assault:
        """One search a prompt and restart; the best one's words serve all the prompt's plain images' start noises."""
        model, ledger, found = context.victim, Ledger(), []
        forbidden = banned(model, context.concept, self.compat)
        with ledger.counting(model):
            for prompt, shots in groupby(context.shots, key=lambda shot: shot.prompt):
                target, draws = pooled(model, [model.token_ids(prompt.text)]), Draws.of(self.seed, prompt.id)
                tries = [
                    self.search(model, target, self.start(model, forbidden, draws), forbidden, draws)
                    for _ in range(self.restarts)
                ]
                text, _ = min(tries, key=lambda known: known[1])
                found += [attacked(shot, text, context.concept, "mma") for shot in shots]
        return Assault(found, ledger=ledger)

    def start(self, model: DiffusionModel, forbidden: Sequence[int], draws: Draws) -> str:
        """k random letters, of those that are words by themselves."""
        if self.tokens > model.tokens - 2:
            raise UserError(f"tokens={self.tokens} do not fit: the model takes {model.tokens - 2}")
        own = {letter: model.token_ids(letter)[1:-1] for letter in ascii_lowercase}
        known = [letter for letter, ids in own.items() if len(ids) == 1 and ids[0] not in forbidden]
        chosen = draws.take("start", lambda g: torch.randint(len(known), (self.tokens,), generator=g))
        return " ".join(known[n] for n in chosen.tolist())

    def search(
        self, model: DiffusionModel, target: torch.Tensor, state: str, forbidden: Sequence[int], draws: Draws
    ) -> tuple[str, float]:
        """The best state for a target feature (1, d), and its loss, from a state on; ``forbidden`` ids are never put in."""
        best = (state, float("inf"))
        for _ in steps(self.steps, "search steps"):
            ids = torch.tensor([model.token_ids(state)[1:-1]], device=model.device)
            gradient = self.gradient(model, ids, target)
            tried = self.exchanged(ids, gradient, forbidden, draws)
            texts = self.passing(model, tried, state)
            trace_values(gradient=gradient, candidates=tried, texts=texts)
            if not texts:
                continue
            texts = list(dict.fromkeys(texts))
            losses = 1 - cosine_similarity(pooled(model, [model.token_ids(text) for text in texts]), target)
            state, value = texts[int(losses.argmin())], float(losses.min())
            trace_values(loss=value, state=state)
            best = min(best, (state, value), key=lambda known: known[1])
        return best

    def gradient(self, model: DiffusionModel, ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """G (k, vocabulary) for words (1, k): of the loss in the one-hot rows of k positions of the prompt."""
        k = ids.shape[1]
        padded = Frame(model, (), tuple(range(k))).padded(ids)[:, : k + 2]
        with torch.enable_grad():
            embeddings = full(model.token_embeddings(padded)).requires_grad_()
            read = model.encode_embeddings(embeddings.to(model.token_table), padded)[:, k + 1]
            loss = 1 - cosine_similarity(read.float(), target)
            (gradient,) = torch.autograd.grad(loss.sum(), embeddings)
        first = 0 if self.compat == "official" else 1
        return gradient[0, first : first + k] @ full(model.token_table).T

    def exchanged(
        self, ids: torch.Tensor, gradient: torch.Tensor, forbidden: Sequence[int], draws: Draws
    ) -> torch.Tensor:
        """Copies (n, k) of words (1, k), each with one of them exchanged."""
        n, k = self.candidates, ids.shape[1]
        gradient[:, list(forbidden)] = float("inf")
        top = min(self.top, gradient.shape[1] - len(set(forbidden)))
        best = (-gradient).topk(top, dim=1).indices
        positions = torch.arange(n, device=ids.device) * k // n
        column = draws.take("draw", lambda g: torch.randint(top, (n,), generator=g)).reshape(n).to(ids.device)
        return ids.repeat(n, 1).scatter_(1, positions[:, None], best[positions, column][:, None])

    def passing(self, model: DiffusionModel, tried: torch.Tensor, state: str) -> list[str]:
        """The texts of those of the copies (n, k) that another reader would tokenise alike."""
        if self.compat == "official":
            texts = [joined(model, row) for row in tried.tolist()]
        else:
            texts = [model.tokenizer.decode(row).strip() for row in tried.tolist()]
        read = [model.token_ids(text)[1:-1] for text in texts]
        if self.compat == "official":
            alike = [len(again) == tried.shape[1] for again in read]
        else:
            alike = [again == row for again, row in zip(read, tried.tolist())]
        return [text for text, same in zip(texts, alike) if same and text != state]


@torch.no_grad()
def pooled(model: DiffusionModel, ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """F (n, d) of as many texts' ids, all of one length, from start to end token; what would stand behind is not seen."""
    rows = torch.tensor(ids, device=model.device)
    return torch.cat(
        [model.encode_ids(block)[:, block.shape[1] - 1].float() for block in rows.split(CANDIDATES_AT_ONCE)]
    )


def joined(model: DiffusionModel, words: list[int]) -> str:
    """The words' names in the vocabulary, one after the other, less the last character: a space where the last word ends."""
    return "".join(model.tokenizer.convert_ids_to_tokens(words)).replace("</w>", " ")[:-1]


def banned(model: DiffusionModel, concept: Concept, compat: str) -> list[int]:
    """The pieces of the concept's name and synonyms, and the special words; ``official``: what contains them, too."""
    texts = (concept.name, *concept.synonyms)
    known = {*model.tokenizer.all_special_ids, *(piece for text in texts for piece in model.token_ids(text)[1:-1])}
    if compat == "official":
        words = [word for text in texts for word in text.lower().split() if len(word) >= SHORTEST]
        known.update(containing(model, words), fragments(model, words))
    return sorted(known)


def containing(model: DiffusionModel, words: Sequence[str]) -> list[int]:
    """The vocabulary's entries that have one of these words anywhere in their name."""
    return sorted(i for name, i in model.tokenizer.get_vocab().items() if any(word in name for word in words))


def fragments(model: DiffusionModel, words: Sequence[str]) -> list[int]:
    """The vocabulary's entries of two letters and more that are a part of one of these words."""
    names = {name: name.removesuffix("</w>") for name in model.tokenizer.get_vocab()}
    found = [name for name, part in names.items() if len(part) > 1 and any(part in word for word in words)]
    return sorted(model.tokenizer.convert_tokens_to_ids(found))
