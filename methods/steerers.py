"""Concept Steerers: a sparse autoencoder describes a concept inside the text encoder, and every prompt is steered away from it.

Kim and Ghadiyaram, "Concept Steerers: Leveraging K-Sparse Autoencoders for Test-Time Controllable Generations",
arXiv 2501.19066. Weights do not change. x (d,) is the output of one block of the text encoder at one position; with several
encoders, their outputs side by side. An autoencoder learns from the activations x of many prompts, at all positions:

    x̂    = W_d z + b,   z = TopK_k(ReLU(W_e (x − b) + b_l))              W_d (d, n), W_e (n, d); n = ``expansion`` · d
    loss = mean (x̂ − x)² / var + a · NMSE(W_d z_aux, x − x̂)              Adam; columns of W_d keep norm 1

z_aux are the largest scores among dead latents, which were not among the k for ``dead_tokens`` activations; the second
term revives them. NMSE is the mean squared error relative to that of the batch's mean. The concept's text gives activations
h (tokens, d) and a steering vector for each position, which is added to the block's output for prompts and subtracted from
it for the empty or the negative prompt:

    s = λ W_d ReLU(W_e (h − b) + b_l)                                     without TopK; λ = ``strength`` < 0 erases

Official code (``compat: official``) compares x̂ with x − b, so that W_d z approximates x − 2b, and adds b to both sides of
the second term, which then does not vanish when no latent is dead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from overpaint.blocks.adapters import edit_output
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.image_bank import shuffled
from overpaint.blocks.prior import Captions, check_captions, read_captions
from overpaint.blocks.sparse_autoencoders import (
    ADAM_EPSILON,
    SparseAutoencoder,
    check_file,
    check_latents,
    largest,
    read_autoencoder,
)
from overpaint.blocks.text_rows import TEXTS_AT_ONCE
from overpaint.blocks.training import train
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Request
from overpaint.grid.typed import check_type
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel, encoding_negative
from overpaint.models.erasure import Erasure
from overpaint.models.lazily import torch

#: Depth of the steered block by number of text encoders: block 9 of 12, and blocks 10 of 12 and 28 of 32.
DEPTHS = {1: 3 / 4, 2: 7 / 8}
#: Batches from which b and the variance are estimated, and the score above which a latent counts as used.
FIRST_BATCHES, FIRED = 8, 1e-3


@dataclass(kw_only=True)
class Steerers(Eraser):
    """Hyper-parameters of Concept Steerers; ``conf/method/steerers.yaml`` explains each."""

    compat: Literal["intended", "official"]
    text: str | None
    strength: float
    layers: list[int] | None
    autoencoder: str | None
    texts: Captions
    expansion: int
    k: int
    aux_k: int
    aux_weight: float
    dead_tokens: int
    iterations: int
    batch_size: int
    learning_rate: float

    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    acts_on: ClassVar[str] = "text_encoder"
    stacks: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False
    lengths: ClassVar[tuple[str, ...]] = ("iterations",)

    def __post_init__(self):
        check_file(self.autoencoder)
        if self.autoencoder is None:
            check_captions(self.texts)
        at_least(1, expansion=self.expansion, k=self.k, iterations=self.iterations, batch_size=self.batch_size)
        at_least(0, aux_k=self.aux_k, aux_weight=self.aux_weight, learning_rate=self.learning_rate)
        at_least(0, dead_tokens=self.dead_tokens)

    @property
    def draws(self) -> bool:
        return self.autoencoder is None

    def check(self, family: str | None, request: Request, name: str, sequential: bool = False) -> None:
        super().check(family, request, name, sequential)
        if self.autoencoder is None and not self.texts:
            raise UserError(f"method={name} needs texts to train its autoencoder, or the file of an autoencoder")

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        layers = self.steered(model)
        text = ", ".join(c.name for c in request.erase) if self.text is None else self.text
        concept = activations(model, layers, model.padded_ids([text]))[0]
        if self.autoencoder is None:
            rows = activations(model, layers, model.padded_ids(read_captions(self.texts), truncate=True))
            autoencoder = self.trained(rows.flatten(0, 1), Draws(self.seed))
        else:
            autoencoder = read_autoencoder(self.autoencoder, concept.shape[-1], concept)
        with torch.no_grad():
            s = self.strength * autoencoder.directions(autoencoder.encode(concept))
        trace_values(s=s)
        widths = [encoder.config.hidden_size for encoder in model.text_encoders]
        parts = {str(number): part.to(model.dtype).clone() for number, part in enumerate(s.split(widths, dim=-1))}
        return Erasure("steerers", "guard", parts=parts, settings={"layers": layers})

    def steered(self, model: DiffusionModel) -> list[int]:
        """The number of the steered block in each text encoder."""
        counts = [len(model.text_layers(encoder)) for encoder in range(len(model.text_encoders))]
        if self.layers is None:
            return [int(DEPTHS[len(counts)] * count) for count in counts]
        if len(self.layers) != len(counts) or any(not 0 <= n < c for n, c in zip(self.layers, counts, strict=True)):
            ranges = ", ".join(f"0 to {count - 1}" for count in counts)
            raise UserError(f"layers takes one block for each text encoder ({ranges}), got {self.layers}")
        return list(self.layers)

    def trained(self, rows: torch.Tensor, draws: Draws) -> SparseAutoencoder:
        """An autoencoder of the activations ``rows`` (n, d)."""
        batches = shuffled(draws, "rows", len(rows), self.batch_size)
        sample = draws.take("sample", lambda _: torch.cat([rows[next(batches)] for _ in range(FIRST_BATCHES)])).to(rows)
        latents = self.expansion * rows.shape[1]
        check_latents(latents, k=self.k)
        autoencoder = SparseAutoencoder.drawn(latents, sample, draws)
        scale = 1 / (sample - sample.mean(dim=0)).square().mean()
        objective = Objective(
            scale=float(scale),
            k=self.k,
            aux_k=min(self.aux_k, latents),
            aux_weight=self.aux_weight,
            dead_after=self.dead_tokens // self.batch_size,
            official=self.compat == "official",
            silent=torch.zeros(latents, dtype=torch.long, device=rows.device),
        )

        def loss() -> torch.Tensor:
            return objective(autoencoder, draws.take("x", lambda _: rows[next(batches)]).to(rows))

        def adjust() -> None:
            autoencoder.unit_columns()
            autoencoder.keep_norms()

        optimizer = torch.optim.Adam(autoencoder.masters.values(), lr=self.learning_rate, eps=ADAM_EPSILON)
        train(autoencoder, optimizer, self.iterations, loss, adjust=adjust)
        trace_values(autoencoder=autoencoder)
        return autoencoder

    @classmethod
    def install(cls, model: DiffusionModel, erasure: Erasure) -> Callable[[], None]:
        check_type(erasure.settings.get("layers"), list[int], "this erasure's settings: layers")
        layers = erasure.settings["layers"]
        steering = [erasure.parts[str(number)].to(model.device, model.dtype) for number in range(len(layers))]
        for encoder, s in zip(model.text_encoders, steering, strict=True):
            if s.shape != (model.tokens, encoder.config.hidden_size):
                raise UserError("this erasure does not fit the model: its text encoder has another width or length")
        removes = [
            edit_output(block, partial(steer, s)) for block, s in zip(blocks(model, layers), steering, strict=True)
        ]

        def remove() -> None:
            for undo in removes:
                undo()

        return remove


def steer(s: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A block's output x (n, length, d) plus s (tokens, d), or minus s for the empty or the negative prompt."""
    return x - s[: x.shape[1]] if encoding_negative() else x + s[: x.shape[1]]


def blocks(model: DiffusionModel, layers: Sequence[int]) -> list[torch.nn.Module]:
    """The block with this number in each text encoder."""
    return [model.text_layers(encoder)[number].block for encoder, number in enumerate(layers)]


def activations(model: DiffusionModel, layers: Sequence[int], ids: torch.Tensor) -> torch.Tensor:
    """Outputs (n, tokens, d) of one block of each text encoder, side by side, for padded ids (n, tokens); at least float32."""
    found: list[list[torch.Tensor]] = [[] for _ in layers]

    def keep(kept: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        kept.append(x.to(torch.promote_types(x.dtype, torch.float32)))
        return x

    removes = [
        edit_output(block, partial(keep, kept)) for block, kept in zip(blocks(model, layers), found, strict=True)
    ]
    try:
        with torch.no_grad():
            for batch in ids.split(TEXTS_AT_ONCE):
                model.encode_ids(batch)
    finally:
        for remove in removes:
            remove()
    return torch.cat([torch.cat(kept) for kept in found], dim=-1)


@dataclass(kw_only=True)
class Objective:
    """The loss of an autoencoder. ``silent`` (n,) counts the batches since each latent was last used."""

    scale: float  # 1 / var
    k: int
    aux_k: int
    aux_weight: float
    dead_after: int  # batches
    official: bool
    silent: torch.Tensor

    def __call__(self, autoencoder: SparseAutoencoder, x: torch.Tensor) -> torch.Tensor:
        """The loss on a batch of activations x (rows, d)."""
        scores = autoencoder.scores(x)
        z = largest(scores, self.k)
        with torch.no_grad():
            self.silent = torch.where((z > FIRED).any(dim=0), 1, self.silent + 1)
        made = autoencoder.decode(z.relu())
        b = autoencoder.masters["pre_bias"]
        mse = self.scale * (made - (x - b if self.official else x)).square().mean()
        aux = self.auxiliary(autoencoder, scores, x, made.detach())
        trace_values(mse=mse.detach(), aux=aux.detach(), recons=made.detach(), silent=self.silent)
        trace_values(l0=(scores > 0).float().sum(dim=-1).mean())
        return mse + aux

    def auxiliary(self, autoencoder: SparseAutoencoder, scores, x: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        """The second term, from scores (rows, n), x and x̂ (rows, d)."""
        dead = self.silent > self.dead_after
        if not self.aux_k or not (self.official or dead.any()):
            return scores.new_zeros(())
        revived = largest(scores * dead, self.aux_k).relu()
        b = autoencoder.masters["pre_bias"]
        if self.official:
            guess, rest = autoencoder.decode(revived), x - b - made + b.detach()
        else:
            guess, rest = autoencoder.directions(revived), x - made
        spread = (rest - rest.mean(dim=0)).square().mean()
        return self.aux_weight * ((guess - rest).square().mean() / spread).nan_to_num(0)
