"""Token variables: continuous variables that a prompt attack optimises and reads as tokens of the vocabulary.

    Simplex   P (1, k, vocabulary), one distribution per row     read as a sample; at the end, as the most likely token
    Nearest   Z (n, k, width), one free embedding per row        read as the token with the largest cosine similarity

Every prompt that is tried consists of tokens w of the vocabulary, with their embeddings T[w] in the token table T. The
straight-through estimator passes the gradient to the variable as if reading were the identity:

    Simplex   ∂P = clamp(∂onehot(w), −1, 1),  ∂onehot(w) = ∂T[w] Tᵀ      UnlearnDiffAtk, arXiv 2310.11868
    Nearest   ∂Z = ∂T[w]                                                 PEZ, arXiv 2302.03668; Prompting4Debugging

`Frame` places the tokens in a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.soft_prompts import BEHIND
from overpaint.blocks.training import gradients
from overpaint.errors import UserError, unknown
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.lazily import functional, torch
from overpaint.run.progress import steps


class TokenVariable(Protocol):
    """A variable that reads as tokens. ``parameter`` is optimised, at least in float32."""

    parameter: torch.nn.Parameter

    def draw(self, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (n, k) to try and their embeddings (n, k, width), whose gradient reaches the variable."""

    def ids(self) -> torch.Tensor:
        """The token ids (n, k) that the variable reads as."""

    def settle(self) -> None:
        """Project the variable back onto its feasible set after an optimiser step."""


class Simplex:
    """k rows on the probability simplex over the vocabulary, initialised to the uniform distribution."""

    def __init__(self, table: torch.Tensor, k: int, projection: Literal["exact", "bisection"] = "exact"):
        self.table = full(table)
        self.project = {"exact": onto_simplex, "bisection": onto_simplex_by_bisection}[projection]
        self.parameter = torch.nn.Parameter(self.table.new_full((1, k, len(table)), 1 / len(table)))

    def draw(self, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        from overpaint.blocks.straight_through import StraightThrough

        P = self.parameter.detach()[0].cpu()
        ids = draws.take("ids", lambda g: torch.multinomial(P, 1, generator=g)[:, 0]).to(self.table.device)[None]
        chosen = functional.one_hot(ids, len(self.table)).to(self.table)
        return ids, StraightThrough.apply(self.parameter, chosen, 1.0) @ self.table

    def ids(self) -> torch.Tensor:
        return self.parameter.detach().argmax(dim=-1)

    def settle(self) -> None:
        self.parameter.data = self.project(self.parameter.data)


class Nearest:
    """n prompts of k free embeddings, each read as the nearest token and initialised to the tokens ``ids`` (n, k).

    ``forbidden`` token ids are never read.
    """

    def __init__(self, table: torch.Tensor, ids: torch.Tensor, forbidden: Sequence[int] = ()):
        self.table, self.forbidden = full(table), list(forbidden)
        self.directions = functional.normalize(self.table, dim=-1)
        self.parameter = torch.nn.Parameter(self.table[ids.to(self.table.device)])

    def draw(self, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        from overpaint.blocks.straight_through import StraightThrough

        ids = self.ids()
        return ids, StraightThrough.apply(self.parameter, self.table[ids], None)

    def ids(self) -> torch.Tensor:
        cosines = functional.normalize(self.parameter.detach(), dim=-1) @ self.directions.T
        cosines[..., self.forbidden] = -float("inf")
        return cosines.argmax(dim=-1)

    def settle(self) -> None:
        pass


def full(table: torch.Tensor) -> torch.Tensor:
    """The table, at least in float32: gradients of single tokens underflow in half precision."""
    return table.detach().to(torch.promote_types(table.dtype, torch.float32))


def onto_simplex(rows: torch.Tensor) -> torch.Tensor:
    """Project rows onto the probability simplex: max(x − μ, 0), with μ such that each row sums to 1."""
    ordered = rows.double().sort(dim=-1, descending=True).values
    shifts = (ordered.cumsum(dim=-1) - 1) / torch.arange(1, rows.shape[-1] + 1, device=rows.device)
    support = (ordered > shifts).sum(dim=-1, keepdim=True)
    return (rows.double() - shifts.gather(-1, support - 1)).clamp(min=0).to(rows.dtype)


def onto_simplex_by_bisection(rows: torch.Tensor, tolerance: float = 1e-5) -> torch.Tensor:
    """UnlearnDiffAtk's projection, which finds μ by bisection up to ``tolerance``.

    It is coarse: the sum of a row can differ from 1 by up to ``tolerance`` times its number of non-zero entries.
    """
    found = [_shifted(row, tolerance) for row in rows.reshape(-1, rows.shape[-1])]
    return torch.stack(found).reshape(rows.shape)


def _shifted(row: torch.Tensor, tolerance: float) -> torch.Tensor:
    clipped = row.clamp(0, 1)
    if abs(float(clipped.sum()) - 1) <= tolerance:
        return clipped
    low, high = float(row.min() - 1), float(row.max())
    while high - low > tolerance:
        shift = (low + high) / 2
        excess = float((row - shift).clamp(0, 1).sum() - 1)
        if excess == 0:
            break
        low, high = (shift, high) if excess > 0 else (low, shift)
    return (row - shift).clamp(0, 1)


#: The layouts of `BEHIND` that insert tokens and keep the prompt's own.
Location = Literal["prefix_k", "suffix_k", "mid_k", "insert_k", "per_k_words"]
LOCATIONS: tuple[str, ...] = get_args(Location)


def places(location: str, words: int, k: int) -> tuple[int, ...]:
    """Positions of k inserted tokens in a prompt of ``words`` tokens, counted from the first one after the start token.

    ``insert_k`` inserts one after every ⌊words / (k + 1)⌋ tokens, ``per_k_words`` one before tokens 0, 3, 6, …
    """
    if location not in LOCATIONS:
        raise unknown("location", location, LOCATIONS)
    return tuple(behind + j for j, behind in enumerate(BEHIND[location](words, k)))


@dataclass(frozen=True)
class Frame:
    """A prompt with places between its tokens, to be filled with the tokens of a token variable.

    ``words`` are the prompt's own token ids. With ``ended`` an end token follows the last token. The remaining positions
    are filled with the id ``padding`` (``None``: the tokenizer's padding token).
    """

    model: DiffusionModel
    words: tuple[int, ...]
    places: tuple[int, ...]
    ended: bool = True
    padding: int | None = None

    def __post_init__(self):
        length, room = len(self.words) + len(self.places), self.model.tokens - 2
        if length > room:
            raise UserError(
                f"a prompt of {len(self.words)} tokens with {len(self.places)} inserted ones is too long: the model "
                f"takes {room}"
            )

    @classmethod
    def around(cls, model: DiffusionModel, text: str, location: str, k: int) -> Frame:
        """The frame of a text with k places at ``location``. The text is truncated to leave room for them."""
        words = model.token_ids(text)[1:-1][: max(0, model.tokens - 2 - k)]
        return cls(model, tuple(words), places(location, len(words), k))

    @classmethod
    def before_every(
        cls, model: DiffusionModel, text: str, every: int, ended: bool = True, padding: int | None = None
    ) -> Frame:
        """The frame of a text with a place before every ``every`` tokens. The text is truncated to leave room for them."""
        words = model.token_ids(text)[1:-1]
        while len(words) + len(words) // every + 1 > model.tokens - 2:
            words = words[:-1]
        return cls(model, tuple(words), tuple(j * (every + 1) for j in range(len(words) // every + 1)), ended, padding)

    def filled(self, ids: Sequence[int]) -> list[int]:
        """All ids of the prompt, without start and end, with k ids in the places."""
        inserted, words = dict(zip(self.places, ids, strict=True)), iter(self.words)
        length = len(self.words) + len(self.places)
        return [inserted[i] if i in inserted else next(words) for i in range(length)]

    def padded(self, ids: torch.Tensor) -> torch.Tensor:
        """The input ids (n, tokens) of the text encoder, with ids (n, k) in the places."""
        known = self.model.tokenizer
        padding = known.pad_token_id if self.padding is None else self.padding
        rows = [
            [known.bos_token_id, *self.filled(row), *([known.eos_token_id] if self.ended else [])]
            for row in ids.tolist()
        ]
        return torch.tensor([row + [padding] * (self.model.tokens - len(row)) for row in rows], device=ids.device)

    def encode(self, ids: torch.Tensor, rows: torch.Tensor, by: DiffusionModel | None = None) -> torch.Tensor:
        """Text embeddings (n, tokens, width) with the token embeddings ``rows`` (n, k, width) in the places.

        Differentiable in ``rows``. ``by`` is the model whose text encoder is used (default: ``self.model``).
        """
        return encoded([self], [ids], [rows], by)

    def embedded(self, padded: torch.Tensor, rows: torch.Tensor, reader: DiffusionModel) -> torch.Tensor:
        """Token embeddings (n, tokens, width) of padded ids (n, tokens) with ``rows`` (n, k, width) in the places."""
        known = reader.token_embeddings(padded).detach()
        where = torch.tensor(self.places, dtype=torch.long, device=known.device) + 1
        return known.index_copy(1, where, rows.to(known))

    def text(self, ids: Sequence[int]) -> str:
        """The filled prompt as text."""
        return text_of(self.model, self.filled(ids))


def encoded(
    frames: Sequence[Frame],
    ids: Sequence[torch.Tensor],
    rows: Sequence[torch.Tensor],
    by: DiffusionModel | None = None,
) -> torch.Tensor:
    """`Frame.encode` of several frames, each with its ids (n, k) and rows (n, k, width), in one pass of the encoder."""
    reader = by or frames[0].model
    padded = [frame.padded(own) for frame, own in zip(frames, ids, strict=True)]
    embedded = [frame.embedded(p, own, reader) for frame, p, own in zip(frames, padded, rows, strict=True)]
    return reader.encode_embeddings(torch.cat(embedded), torch.cat(padded))


def text_of(model: DiffusionModel, ids: Sequence[int]) -> str:
    """The text of token ids without special tokens, truncated to the model's length.

    Decoded text can have more tokens than ``ids``, because arbitrary ids can decode to characters that are tokenized
    differently.
    """
    known = model.tokenizer
    ids = [i for i in ids if i not in known.all_special_ids]
    text = known.decode(ids).strip()
    while ids and len(known(text).input_ids) > model.tokens:
        ids = ids[:-1]
        text = known.decode(ids).strip()
    return text


def text_within(model: DiffusionModel, text: str, most: int) -> str:
    """The text, truncated to at most ``most`` tokens."""
    known = model.tokenizer
    ids = known(text).input_ids[1:-1]
    for length in range(most, -1, -1):
        if len(known(text).input_ids) - 2 <= most:
            break
        text = text_of(model, ids[:length])
    return text


def descend(
    variables: Sequence[TokenVariable],
    optimizer: torch.optim.Optimizer,
    loss: Callable[[int, Sequence[torch.Tensor], Sequence[torch.Tensor]], torch.Tensor],
    draws: Sequence[Draws],
    count: int,
    kind: torch.dtype | None = None,
) -> Iterator[tuple[int, Sequence[torch.Tensor]]]:
    """Run ``count`` steps of several independent searches in one batch.

    ``loss(step, ids, embeddings)`` returns one value per variable, which depends only on that variable's tokens. The
    optimiser must update entries independently of each other, as Adam does, and skip parameters without a gradient.
    ``kind`` is the precision of the network, by default float32: in float16 the loss is scaled (`gradients`) down to the
    token embeddings, but not from there to the variables, which may clamp gradients. Before each update, yields the step
    and the ids (n, k) that each variable tries.
    """
    kind, parameters = kind or torch.float32, [variable.parameter for variable in variables]
    for step in steps(count, "search steps"):
        with torch.enable_grad():
            ids, rows = zip(*(variable.draw(own) for variable, own in zip(variables, draws, strict=True)), strict=True)
            values = loss(step, ids, rows).reshape(len(variables))
            reached = torch.autograd.grad(rows, parameters, gradients(values.sum(), rows, kind))
        if not all(gradient.isfinite().all() for gradient in reached):
            hint = "; use model.precision=float32" if kind == torch.float16 else ""
            raise UserError(f"the gradient of the search is non-finite at step {step}{hint}")
        for each in zip(values.detach(), ids, reached, strict=True):
            trace_values(**dict(zip(("loss", "ids", "gradient"), each, strict=True)))
        yield step, ids
        for parameter, gradient in zip(parameters, reached, strict=True):
            parameter.grad = gradient
        optimizer.step()
        for variable in variables:
            trace_values(variable=variable.parameter.detach().clone())
            variable.settle()
            variable.parameter.grad = None
