"""MMA-Diffusion, text modality: words with a prompt's meaning but without banned words, by greedy coordinate gradient.

Yang, Gao, Wang, Ho, Xu and Xu, "MMA-Diffusion: MultiModal Attack on Diffusion Models", CVPR 2024, arXiv 2311.17516.
With F the text encoder's feature at the end token and w the k words of the state,

    loss(w) = 1 − cos(F(w), F(prompt)),   G = ∂loss/∂onehot(w) = ∂loss/∂T[w] Tᵀ      (k, vocabulary), T the token table

Each step makes n copies of w and replaces one word in each; positions are spread evenly over the copies. The new word
is drawn from the ``top`` words with the smallest gradient at that position that are not banned. Copies whose text would
be tokenized differently are dropped. The best remaining copy becomes the next state, even if it is worse than w. The
result is the best of all states.

``compat: official`` does what the released code does:

- Row i of its G is the gradient at position i of the prompt, where position 0 is the start token. The code uses it to
  replace word i, which is at position i + 1. The gradient at the last word is never used.
- A copy passes if its text has the same number of tokens, even if they are different tokens.
- Its text joins the words' names in the vocabulary. These misspell bytes that are not letters, and the last character
  is lost if the last token does not end a word.

``intended`` uses the right rows, and keeps decoded texts that are tokenized to the same words. If no copy passes, the
official code fails; here the state stays and new copies are drawn.

The official code bans every vocabulary entry that contains one of its words or of a handwritten list of fragments
(``na``, ``ke``, ``ak`` and ``nud`` for naked and nude). ``official`` here bans entries that contain a word of the
concept's name or synonyms, or that are a fragment of such a word. ``intended`` bans only the tokens of the name and the
synonyms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from string import ascii_lowercase
from typing import Any, ClassVar, Literal

from overpaint.attacks.attack import Assault, Attack, AttackContext, Ledger, in_place_of_the_prompt
from overpaint.attacks.prompt_lists import attacked
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.token_variables import Frame, full
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Concept
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.lazily import functional, torch
from overpaint.run.progress import steps

#: Rows in one forward pass of the text encoder.
CANDIDATES_AT_ONCE = 128
#: Shorter words ban no entries that contain them: an article would ban half the vocabulary.
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
    lengths: ClassVar[tuple[str, ...]] = ("steps", "restarts")

    def __post_init__(self):
        at_least(1, tokens=self.tokens, steps=self.steps, candidates=self.candidates, top=self.top)
        at_least(1, restarts=self.restarts)

    @property
    def matched(self) -> Mapping[str, Any]:
        return in_place_of_the_prompt(self.tokens)

    def run(self, context: AttackContext) -> Assault:
        """``restarts`` searches for each prompt. All its plain images are generated again with the best words."""
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
        """The first state: k random letters that are one token each."""
        if self.tokens > model.tokens - 2:
            raise UserError(f"attack.tokens={self.tokens} is too long: the model takes up to {model.tokens - 2} tokens")
        own = {letter: model.token_ids(letter)[1:-1] for letter in ascii_lowercase}
        known = [letter for letter, ids in own.items() if len(ids) == 1 and ids[0] not in forbidden]
        chosen = draws.take("start", lambda g: torch.randint(len(known), (self.tokens,), generator=g))
        return " ".join(known[n] for n in chosen.tolist())

    def search(
        self, model: DiffusionModel, target: torch.Tensor, state: str, forbidden: Sequence[int], draws: Draws
    ) -> tuple[str, float]:
        """The best state for a target feature (1, d), and its loss. ``forbidden`` ids are never inserted."""
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
            losses = 1 - functional.cosine_similarity(pooled(model, [model.token_ids(text) for text in texts]), target)
            state, value = texts[int(losses.argmin())], float(losses.min())
            trace_values(loss=value, state=state)
            best = min(best, (state, value), key=lambda known: known[1])
        return best

    def gradient(self, model: DiffusionModel, ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """G (k, vocabulary) for words (1, k): the loss's gradient in the one-hot rows of k positions."""
        k = ids.shape[1]
        padded = Frame(model, (), tuple(range(k))).padded(ids)[:, : k + 2]
        with torch.enable_grad():
            embeddings = full(model.token_embeddings(padded)).requires_grad_()
            read = model.encode_embeddings(embeddings.to(model.token_table), padded)[:, k + 1]
            loss = 1 - functional.cosine_similarity(read.float(), target)
            (gradient,) = torch.autograd.grad(loss.sum(), embeddings)
        first = 0 if self.compat == "official" else 1
        return gradient[0, first : first + k] @ full(model.token_table).T

    def exchanged(
        self, ids: torch.Tensor, gradient: torch.Tensor, forbidden: Sequence[int], draws: Draws
    ) -> torch.Tensor:
        """Copies (n, k) of words (1, k), each with one word replaced."""
        n, k = self.candidates, ids.shape[1]
        gradient[:, list(forbidden)] = float("inf")
        top = min(self.top, gradient.shape[1] - len(set(forbidden)))
        best = (-gradient).topk(top, dim=1).indices
        positions = torch.arange(n, device=ids.device) * k // n
        column = draws.take("draw", lambda g: torch.randint(top, (n,), generator=g)).reshape(n).to(ids.device)
        return ids.repeat(n, 1).scatter_(1, positions[:, None], best[positions, column][:, None])

    def passing(self, model: DiffusionModel, tried: torch.Tensor, state: str) -> list[str]:
        """The texts of those copies (n, k) whose tokens survive decoding and tokenizing again."""
        if self.compat == "official":
            texts = [joined(model, row) for row in tried.tolist()]
        else:
            texts = [model.tokenizer.decode(row).strip() for row in tried.tolist()]
        read = [model.token_ids(text)[1:-1] for text in texts]
        if self.compat == "official":
            alike = [len(again) == tried.shape[1] for again in read]
        else:
            alike = [again == row for again, row in zip(read, tried.tolist(), strict=True)]
        return [text for text, same in zip(texts, alike, strict=True) if same and text != state]


def pooled(model: DiffusionModel, ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """F (n, d) for n texts' ids of one length, from start to end token. Causal attention never sees padding."""
    with torch.no_grad():
        rows = torch.tensor(ids, device=model.device)
        return torch.cat(
            [model.encode_ids(block)[:, block.shape[1] - 1].float() for block in rows.split(CANDIDATES_AT_ONCE)]
        )


def joined(model: DiffusionModel, words: list[int]) -> str:
    """The words' vocabulary names, joined, without the last character (a space if the last token ends a word)."""
    return "".join(model.tokenizer.convert_ids_to_tokens(words)).replace("</w>", " ")[:-1]


def banned(model: DiffusionModel, concept: Concept, compat: str) -> list[int]:
    """Ids of the concept's name, its synonyms and special tokens; ``official`` adds entries that contain them."""
    texts = (concept.name, *concept.synonyms)
    known = {*model.tokenizer.all_special_ids, *(piece for text in texts for piece in model.token_ids(text)[1:-1])}
    if compat == "official":
        words = [word for text in texts for word in text.lower().split() if len(word) >= SHORTEST]
        known.update(containing(model, words), fragments(model, words))
    return sorted(known)


def containing(model: DiffusionModel, words: Sequence[str]) -> list[int]:
    """Ids of the vocabulary entries whose name contains one of these words."""
    return sorted(i for name, i in model.tokenizer.get_vocab().items() if any(word in name for word in words))


def fragments(model: DiffusionModel, words: Sequence[str]) -> list[int]:
    """Ids of the vocabulary entries of at least two letters that are part of one of these words."""
    names = {name: name.removesuffix("</w>") for name in model.tokenizer.get_vocab()}
    found = [name for name, part in names.items() if len(part) > 1 and any(part in word for word in words)]
    return sorted(model.tokenizer.convert_tokens_to_ids(found))
