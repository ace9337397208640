"""Receler: small adapters after each cross-attention layer learn to remove a concept where the image attends to it.

Huang, Chang, Tsai, Lai, Yang and Wang, "Reliable Concept Erasing of Text-to-Image Diffusion Models via Lightweight
Erasers", ECCV 2024, arXiv 2311.17717. In each transformer block an adapter A of rank r (the paper's "eraser") changes
the output o (pixels, d) of cross-attention to o + A(o). U and u start at zero; the base network is not trained:

    A(o) = GELU(o Dᵀ + d) Uᵀ + u                                                D (r, d), U (d, r)

Notation: e0 is the base, e the network with adapters, c the concept's prompt, ∅ the empty prompt, x_t (batch, 4, h, w)
the latents of a roll-out by e for c. The adversarial vectors v (k, width) replace the positions after the concept's
tokens in the *encoding* of c, written c ⊕ v:

    M      = e0's attention to the concept's tokens at (x_t, c), min–max scaled per image, ≥ ``mask_threshold``
    v      ← Adam on mean (e(x_t, c ⊕ v) − e0(x_t, c))²                          ``inner_steps`` times; v persists
    target = e0(x_t, ∅) − η (e0(x_t, c) − e0(x_t, ∅))
    loss   = mean (e(x_t, c ⊕ v) − target)² + λ · mean over blocks of Σ (A ⊙ (1 − M))² / Σ (1 − M)

The loss reuses the prediction of the last inner step. The mask is computed from the 16 × 16 attention maps and resized
for the other layers. If the network has no maps of that size, the nearest size is used (12 for SD 2.1 at 768 pixels).

Official code (``compat: official``) writes v into a copy that it never uses: e always sees plain c, all inner steps are
equal, and v has no effect. Its timesteps do not match the noise level of x_t. ``intended`` inserts v into the prompt
and uses the timestep that matches x_t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import Any, ClassVar, Literal

from overpaint.blocks.adapters import hook_layers
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.rollouts import Noised, compvis_rollout, rollout
from overpaint.blocks.training import gradient, train
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Request
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.guidance import Guidance
from overpaint.models.lazily import functional, torch

#: Side of the attention maps that masks are computed from, as in MasaCtrl (arXiv 2304.08465).
MASK_SIDE = 16


@dataclass(kw_only=True)
class Receler(Eraser):
    """Hyper-parameters of Receler; ``conf/method/receler.yaml`` explains each."""

    compat: Literal["intended", "official"]
    rank: int
    negative_guidance: float
    start_guidance: float
    rollout_steps: int
    iterations: int
    learning_rate: float
    batch_size: int
    mask_threshold: float
    regulariser: float
    inner_steps: int
    vectors: int
    vector_learning_rate: float
    vector_weight_decay: float

    lengths: ClassVar[tuple[str, ...]] = ("iterations", "inner_steps")

    def __post_init__(self):
        at_least(
            1, rank=self.rank, iterations=self.iterations, batch_size=self.batch_size, inner_steps=self.inner_steps
        )
        at_least(2, rollout_steps=self.rollout_steps)
        at_least(0, learning_rate=self.learning_rate, regulariser=self.regulariser, vectors=self.vectors)
        at_least(0, vector_learning_rate=self.vector_learning_rate, vector_weight_decay=self.vector_weight_decay)

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        draws = Draws(self.seed)
        adapters = BlockAdapters.drawn(model, self.rank, draws)
        adversaries = [Adversary(self, model, c.name, draws) for c in request.erase]
        with torch.no_grad():
            nothing = model.encode([""]).expand(self.batch_size, -1, -1)

        def loss() -> torch.Tensor:
            adversary = adversaries[draws.integer("concept", 0, len(adversaries))]
            c = adversary.plain.expand_as(nothing)
            x_t, t = self.noised(model, adapters, c, nothing, draws)
            e_c, e_0, masks = self.base(model, x_t, t, c, nothing, adversary.words)
            target = e_0 - self.negative_guidance * (e_c - e_0)
            for _ in range(self.inner_steps):
                with adapters.active() as added:
                    predicted = model.predict(x_t, t, adversary.prompt().expand_as(nothing))
                adversary.step(functional.mse_loss(predicted.float(), e_c.float()))
            erase = functional.mse_loss(predicted.float(), target.float())
            trace_values(x_t=x_t, t=t, target=target, pred=predicted.detach(), erase=erase.detach(), masks=masks)
            trace_values(added={block: A.detach() for block, A in added.items()})
            return erase + self.regulariser * outside(added, masks)

        train(adapters, torch.optim.Adam(adapters.masters.values(), lr=self.learning_rate), self.iterations, loss)
        return Erasure("receler", "adapter", parts=adapters.parts(model.dtype))

    def noised(self, model: DiffusionModel, adapters: BlockAdapters, c, nothing, draws: Draws) -> Noised:
        """x_t (batch, 4, h, w) and t for one iteration."""
        k = draws.integer("k", 0, self.rollout_steps)
        start = draws.noise("x_T", (self.batch_size, *model.noise([0]).shape[1:]), c)
        guidance = Guidance(model, c, nothing, self.start_guidance)
        with adapters.active():
            if self.compat == "official":
                return compvis_rollout(model, start, guidance, self.rollout_steps, k, draws)
            return rollout(model, start, guidance, "ddim", self.rollout_steps, k)

    def base(self, model: DiffusionModel, x_t: torch.Tensor, t: float, c, nothing, words: slice):
        """e0(x_t, c) and e0(x_t, ∅), both (batch, 4, h, w), and the mask of each block."""
        with torch.no_grad(), model.attention_maps() as maps:
            e_c, e_0 = model.predict(x_t.repeat(2, 1, 1, 1), t, torch.cat([c, nothing])).chunk(2)
        maps = {block: found[: len(c)] for block, found in maps.items()}
        trace_values(attention=maps)
        return e_c, e_0, concept_masks(maps, words, self.mask_threshold)

    @classmethod
    def install(cls, model: DiffusionModel, erasure: Erasure) -> Callable[[], None]:
        return BlockAdapters(
            model, {name: part.to(model.device, model.dtype) for name, part in erasure.parts.items()}
        ).attach()


class BlockAdapters:
    """An adapter after the cross-attention of each transformer block.

    ``masters`` are its tensors, named ``<block>.{down,up}.{weight,bias}``.
    """

    def __init__(self, model: DiffusionModel, masters: Mapping[str, torch.Tensor]):
        self.layers: Mapping[str, Any] = model.cross_attention()
        self.masters = dict(masters)
        given = {name: tuple(tensor.shape) for name, tensor in masters.items()}
        rank = next((shape[0] for name, shape in given.items() if name.endswith("down.bias")), 0)
        if given != {name: shape for block, layer in self.layers.items() for name, shape in shapes(block, layer, rank)}:
            raise UserError("these adapters do not fit the model: its cross-attention has other layers or widths")

    @classmethod
    def drawn(cls, model: DiffusionModel, rank: int, draws: Draws) -> BlockAdapters:
        """New adapters, at least float32: D and d uniform in ±1/√width (`torch.nn.Linear`'s default), U and u zero."""
        like = torch.empty((), device=model.device, dtype=torch.promote_types(model.dtype, torch.float32))
        masters = {}
        for block, layer in model.cross_attention().items():
            for name, shape in shapes(block, layer, rank):
                bound = 0.0 if ".up." in name else width(layer) ** -0.5
                drawn = draws.take(f"start.{name}", partial(_uniform, shape, bound)).to(like)
                masters[name] = torch.nn.Parameter(drawn.clone())
        return cls(model, masters)

    def attach(self, added: dict[str, torch.Tensor] | None = None) -> Callable[[], None]:
        """Add A(o) to the output of each layer and keep it in ``added`` by block. Call the result to detach."""

        def add(block: str, layer: torch.nn.Module, inputs, o: torch.Tensor) -> torch.Tensor:
            D, d, U, u = (self.masters[f"{block}.{part}"].to(o) for part in PARTS)
            A = functional.linear(functional.gelu(functional.linear(o, D, d)), U, u)
            if added is not None:
                added[block] = A
            return o + A

        return hook_layers(self.layers, add)

    @contextmanager
    def active(self) -> Iterator[dict[str, torch.Tensor]]:
        """Attach the adapters inside the block; yields A(o) (batch, pixels, d) of the last forward by block."""
        added: dict[str, torch.Tensor] = {}
        detach = self.attach(added)
        try:
            yield added
        finally:
            detach()

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the network that the adapters are attached to."""
        return next(iter(self.layers.values())).to_out[0].weight.dtype

    def parts(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The trained tensors in the given precision, to be stored."""
        return {name: master.detach().to(dtype).clone() for name, master in self.masters.items()}


#: The tensors of one adapter: D, d, U and u.
PARTS = ("down.weight", "down.bias", "up.weight", "up.bias")


def shapes(block: str, layer: torch.nn.Module, rank: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of one adapter's tensors, in the order of ``PARTS``."""
    d = width(layer)
    return zip((f"{block}.{part}" for part in PARTS), ((rank, d), (rank,), (d, rank), (d,)), strict=True)


def width(layer: Any) -> int:
    """d, the width of a cross-attention layer's output."""
    return layer.to_out[0].out_features


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> torch.Tensor:
    return bound * (2 * torch.rand(shape, generator=generator) - 1)


class Adversary:
    """v (1, k, width), which follows a concept's tokens in its encoding (1, tokens, width), and v's optimiser."""

    def __init__(self, method: Receler, model: DiffusionModel, concept: str, draws: Draws):
        with torch.no_grad():
            self.plain = model.encode([concept])
        first = 1 + model.last_subject_token(concept)
        last = first + method.vectors
        if last > model.tokens:
            raise UserError(
                f"method=receler: vectors={method.vectors} and {concept!r} do not fit the {model.tokens} positions of a prompt"
            )
        self.words, self.places, self.written = slice(1, first), slice(first, last), method.compat == "intended"
        shape = (1, method.vectors, self.plain.shape[2])
        start = draws.take("vectors", lambda g: torch.rand(shape, generator=g))
        self.v = torch.nn.Parameter(start.to(self.plain.device, torch.promote_types(self.plain.dtype, torch.float32)))
        rate, decay = method.vector_learning_rate, method.vector_weight_decay
        self.optimizer = torch.optim.Adam([self.v], lr=rate, weight_decay=decay)

    def prompt(self) -> torch.Tensor:
        """c ⊕ v (1, tokens, width). With ``compat: official`` it equals c, and only the gradient reaches v."""
        v, c, places = self.v.to(self.plain.dtype), self.plain, self.places
        if not self.written:
            v = c[:, places] + (v - v.detach())
        return torch.cat([c[:, : places.start], v, c[:, places.stop :]], 1)

    def step(self, loss: torch.Tensor) -> None:
        """One optimiser step on v. The loss keeps its graph, which the adapters' step uses again."""
        self.v.grad = gradient(loss, self.v, self.plain.dtype, retain_graph=True)
        trace_values(adversary_loss=loss.detach(), adversary_gradient=self.v.grad)
        self.optimizer.step()
        self.optimizer.zero_grad()


def concept_masks(maps: Mapping[str, torch.Tensor], words: slice, threshold: float) -> dict[str, torch.Tensor]:
    """Masks (batch, side, side) by block: 1 where the image attends to the concept's tokens, 0 elsewhere.

    ``maps`` are attention probabilities (batch, heads, pixels, tokens) by block. The maps nearest to 16 × 16 pixels are
    averaged over heads, ``words`` and layers, min–max scaled per image, compared with ``threshold``, and resized.
    """
    sides = {block: isqrt(found.shape[2]) for block, found in maps.items()}
    side = min(sides.values(), key=lambda side: abs(side - MASK_SIDE))
    looked = [maps[block][..., words].mean((1, 3)) for block in maps if sides[block] == side]
    mean = torch.stack(looked).mean(0).unflatten(1, (side, side))
    low, high = mean.amin((1, 2), keepdim=True), mean.amax((1, 2), keepdim=True)
    mask = ((mean - low) / (high - low) >= threshold).to(mean)
    return {block: functional.interpolate(mask[None], (side, side))[0] for block, side in sides.items()}


def outside(added: Mapping[str, torch.Tensor], masks: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The regulariser: the mean square of A (batch, pixels, d) per channel and pixel outside the masks, over blocks."""
    terms = []
    for block, A in added.items():
        beyond = 1 - masks[block].flatten(1)
        terms.append((A.to(beyond).square().mean(-1) * beyond).sum() / (beyond.sum() + 1e-9))
    return torch.stack(terms).mean()
