"""EMCID: the text encoder's MLPs are taught to say at a concept's last word what makes the anchor's picture.

Xiong, Wu, Xie, Wu, Li and Liu, "Editing Massive Concepts in Text-to-Image Diffusion Models", arXiv 2403.13807; the solve
is MEMIT's (Meng et al., ICLR 2023). Blocks l of the text encoder add W k to their residual stream, k (4d,) the input of
``fc2`` and W (d, 4d). A concept s has an anchor g, sentences with a place for either, and a position: s's last word piece.

Stage 1, one vector z (d,) a concept. With δ added to the stream h (d,) of the last edited block at that position,

    loss = mean (e(x_t, T_δ(s)) − e(x_t, T(g)))² + w_text mean (pool T_δ(s) − pool T(g))² + w_decay ‖δ‖/‖h‖²

Adam, ‖δ‖ ≤ c ‖h‖ after every step, z = h + δ; x_t (sentences, c, h, w) are noised pictures of the concept, pool is the
row of the end token. ``noise_loss: esd`` has e(∅) − μ (e(s) − e(∅)) for a target, ``off`` leaves the text loss alone.

Stage 2, blocks l_1 < … < l_m in order, the earlier ones already edited; K (n, 4d) are the inputs of block l's fc2 at the
positions, H (n, d) the stream behind the *last* block, both averaged over a concept's sentences, Z (n, d) the targets:

    R = (Z − H)/(m − i + 1)
    ΔW = a Rᵀ K (λ (2 − a) C + a KᵀK)⁻¹,    C (4d, 4d) = mean k kᵀ over the tokens of many captions, a = 2 ``edit_weight``

``num_edit_tokens`` r > 1 edits r positions a concept: its last word piece, the end token, and padding behind it; the text
loss then compares the rows at those positions. Prompts are encoded with their mask, and the network sees a context as
long as the longest one.

``compat: official`` is the released code: it holds Z against W k + b of the block being edited instead of the stream H,
so that a concept mapped to itself is not left alone and the stream moves away from Z, and h is that of the first sentence
instead of their mean. ``intended`` (the default) is what z was optimised for.

Not here: EWC instead of the decay (it needs a Fisher matrix that is not published), contrastive and full-padding text
losses, targets from true noise, supervision by SLD, SDXL's two encoders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from PIL import ImageOps

from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.image_bank import ImageBank, diffused, paint
from overpaint.blocks.prior import Captions, captions_file, read_captions
from overpaint.blocks.ridge import factored, stored
from overpaint.blocks.training import train
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Request
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel, TextLayer
from overpaint.models.erasure import Erasure, LowRank, Replacement
from overpaint.run.progress import steps

mse = torch.nn.functional.mse_loss


@dataclass(kw_only=True)
class EMCID(Eraser):
    """Hyper-parameters of EMCID; ``conf/method/emcid.yaml`` explains each."""

    compat: Literal["intended", "official"]
    layers: list[int] | None
    templates: list[str]
    noise_loss: Literal["anchor", "esd", "off"]
    esd_mu: float
    text_weight: float
    weight_decay: float
    clamp: float
    iterations: int
    z_learning_rate: float
    pictures: int
    picture_steps: int
    num_edit_tokens: int
    mom2_weight: float
    edit_weight: float
    mom2_captions: Captions
    default_anchor: str

    version: ClassVar[int] = 2
    acts_on: ClassVar[str] = "text_encoder"

    def __post_init__(self):
        captions_file(self.mom2_captions)
        at_least(0, iterations=self.iterations, z_learning_rate=self.z_learning_rate, text_weight=self.text_weight)
        at_least(0, weight_decay=self.weight_decay, clamp=self.clamp)
        at_least(1, pictures=self.pictures, picture_steps=self.picture_steps, num_edit_tokens=self.num_edit_tokens)
        if not 0 < self.edit_weight < 1 or self.mom2_weight <= 0:
            raise UserError(
                f"edit_weight lies between 0 and 1, mom2_weight above 0, got {self.edit_weight:g} and {self.mom2_weight:g}"
            )
        if not self.templates or not all(isinstance(t, str) and t.count("{}") == 1 for t in self.templates):
            raise UserError(f"templates takes sentences with one {{}} each, got {self.templates!r}")

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        layers = self.edited_layers(model)
        sources = [self.sentences(model, c.name) for c in request.erase]
        draws = Draws(self.seed)
        anchors = request.anchors(self.default_anchor)
        Z = torch.cat([self.target(model, layers[-1], *pair, draws) for pair in zip(sources, anchors)])
        trace_values(z=Z)
        moments, tokens = second_moments(model, layers, read_captions(self.mom2_captions))
        changes, conditions = self.write(model, layers, sources, Z, moments)
        return Erasure("emcid", changes=changes, manifest={"caption_tokens": tokens, "conditions": conditions})

    def edited_layers(self, model: DiffusionModel) -> list[TextLayer]:
        """The blocks to edit; all but the last unless they are given."""
        known = model.text_layers()
        chosen = list(range(len(known) - 1)) if self.layers is None else self.layers
        if not chosen or chosen != sorted(set(chosen) & set(range(len(known)))):
            raise UserError(
                f"layers takes ascending numbers of text-encoder blocks, 0 to {len(known) - 1}, got {chosen}"
            )
        return [known[number] for number in chosen]

    # --- stage 1 -----------------------------------------------------------------------------------------------

    def sentences(self, model: DiffusionModel, name: str) -> Sentences:
        return Sentences.of(model, self.templates, name, self.num_edit_tokens)

    def target(
        self, model: DiffusionModel, layer: TextLayer, source: Sentences, anchor: str, draws: Draws
    ) -> torch.Tensor:
        """Z (r, d) of one concept: what the stream behind the last edited block should be at its positions."""
        if self.noise_loss == "esd":
            anchored = Sentences.of(model, ["{}"] * len(self.templates), "", self.num_edit_tokens)
        else:
            anchored = self.sentences(model, anchor)
        with torch.no_grad(), passing(layer.block) as seen:
            plain = source.encode(model, anchored)
            h = source.rows(seen[layer.block][1])
            wanted = anchored.encode(model, source)
        h = h.mean(dim=0) if self.compat == "intended" else h[0]
        shift = Shift(layer, source, h)
        bank = None if self.noise_loss == "off" else self.paint(model, source, draws)

        def loss() -> torch.Tensor:
            with shift.active():
                encoded = source.encode(model, anchored)
            texts = self.text_loss(source, anchored, encoded, wanted)
            value = self.text_weight * texts + self.weight_decay * shift.size()
            if bank:
                x_t, t = self.noised(bank, len(source.texts), draws)
                with torch.no_grad():
                    target = model.predict(x_t, t, wanted)
                    if self.noise_loss == "esd":
                        target = target - self.esd_mu * (model.predict(x_t, t, plain) - target)
                predicted = model.predict(x_t, t, encoded)
                value = value + mse(*(part.to(value.dtype) for part in (predicted, target)))
            return value

        optimizer = torch.optim.Adam(shift.masters.values(), lr=self.z_learning_rate)
        optimizer.register_step_post_hook(lambda *_: shift.project(self.clamp))
        train(shift, optimizer, self.iterations, loss)
        return h + shift.delta.detach()

    def text_loss(self, source: Sentences, anchored: Sentences, encoded, wanted) -> torch.Tensor:
        """Between the end tokens' rows; of several edited positions, between the rows at those."""
        if self.num_edit_tokens == 1:
            return mse(source.ends(encoded), anchored.ends(wanted))
        return mse(source.rows(encoded), anchored.rows(wanted))

    def paint(self, model: DiffusionModel, source: Sentences, draws: Draws) -> ImageBank:
        """Pictures of the concept, a sentence after the other and all of them ``pictures`` times, mirrored or not."""
        options = {"scheduler": "pndm", "steps": self.picture_steps, "guidance_scale": 7.5}
        bank = paint(model, source.texts * self.pictures, draws, **options)
        images = [ImageOps.mirror(image) if draws.integer("mirror", 0, 2) else image for image in bank.images]
        return ImageBank(model, images, bank.captions)

    def noised(self, bank: ImageBank, sentences: int, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """x_t (n, c, h, w) and t (n,): one picture a sentence, at a timestep of its own."""
        rows = [draws.integer("picture_of", 0, self.pictures) * sentences + n for n in range(sentences)]
        x_t, t, _ = diffused(bank.model, bank.latents(rows, draws, "x0"), draws)
        return draws.take("x", lambda _: x_t).to(x_t), t

    # --- stage 2 -----------------------------------------------------------------------------------------------

    def write(
        self,
        model: DiffusionModel,
        layers: Sequence[TextLayer],
        sources: Sequence[Sentences],
        Z: torch.Tensor,
        moments: Sequence[torch.Tensor],
    ) -> tuple[dict[str, LowRank | Replacement], dict[str, float]]:
        """ΔW of every layer, for Z (n, d) and the layers' second moments C (4d, 4d); and the conditions of the solves."""
        changes, conditions, a = {}, {}, 2 * self.edit_weight
        for index in steps(len(layers), "layers"):
            layer, C = layers[index], moments[index].double()
            last = layer.module if self.compat == "official" else layers[-1].block
            with Erasure("emcid", changes=changes).attached(model):
                K, H = measured(model, sources, layer.module, last)
            R = (Z.double() - H) / (len(layers) - index)
            cholesky, conditions[layer.name] = factored(
                self.mom2_weight * (2 - a) * C + a * K.T @ K,
                f"mom2_captions: their tokens do not span the {len(C)} inputs of {layer.name}; give more captions",
            )
            changes[layer.name] = stored(LowRank(a * R.T, torch.cholesky_solve(K.T, cholesky).T), layer.weight)
        return changes, conditions


@dataclass(frozen=True)
class Sentences:
    """A concept in its sentences: ids and mask (n, tokens), and one-hot positions (n, tokens, r) of what is edited."""

    texts: list[str]
    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor

    @classmethod
    def of(cls, model: DiffusionModel, templates: Sequence[str], name: str, count: int) -> Sentences:
        """``count`` positions: the last word piece of the name, the end token, and padding behind that."""
        texts = [template.format(name) for template in templates]
        ids = model.padded_ids(texts)
        lengths = [len(model.token_ids(text)) for text in texts]
        if max(lengths) + max(0, count - 2) > model.tokens:
            raise UserError(
                f"num_edit_tokens={count} does not fit behind {max(texts, key=len)!r}: {model.tokens} tokens"
            )
        mask = torch.arange(model.tokens) < torch.tensor(lengths)[:, None]
        positions = torch.zeros(len(texts), model.tokens, count)
        for n, (template, length) in enumerate(zip(templates, lengths)):
            last = model.last_subject_token(template[: template.index("{}")] + name)
            for r, position in enumerate([last, *range(length - 1, length + count - 2)]):
                positions[n, position, r] = 1
        return cls(texts, ids, mask.long().to(ids.device), positions.to(ids.device, model.dtype))

    def rows(self, hidden: torch.Tensor) -> torch.Tensor:
        """Those of hidden states (n, tokens, d) at the edited positions: (n, r, d)."""
        return self.positions[:, : hidden.shape[1]].transpose(1, 2) @ hidden

    def ends(self, hidden: torch.Tensor) -> torch.Tensor:
        """The end token's row of each sentence (n, d)."""
        return hidden[torch.arange(len(hidden)), self.mask.sum(dim=1) - 1]

    def length(self) -> int:
        """Tokens of the longest sentence."""
        return int(self.mask.sum(dim=1).max())

    def encode(self, model: DiffusionModel, other: Sentences) -> torch.Tensor:
        """Embeddings (n, tokens, d), as long as the longest sentence; with padding to edit, as long as either's longest."""
        padding = self.positions.shape[2] - 2
        length = self.length() if padding < 0 else max(self.length(), other.length()) + padding
        return model.encode_ids(self.ids[:, :length], self.mask[:, :length])


class Shift:
    """δ (r, d), added to the output of a text-encoder block at the edited positions (r of them).

    Implemented by adding δ to the output of the block's fc2, which is equivalent since the block only adds that to its
    residual stream. A `overpaint.blocks.training.Trainable`.
    """

    def __init__(self, layer: TextLayer, source: Sentences, h: torch.Tensor):
        self.layer, self.source, self.h = layer, source, h
        self.delta = torch.nn.Parameter(torch.zeros_like(h, dtype=torch.promote_types(h.dtype, torch.float32)))
        self.masters = {"delta": self.delta}
        self.dtype = layer.weight.dtype

    @contextmanager
    def active(self) -> Iterator[None]:
        def add(module, arguments, output):
            return output + (self.source.positions[:, : output.shape[1]] @ self.delta.to(output.dtype))

        hook = self.layer.module.register_forward_hook(add)
        try:
            yield
        finally:
            hook.remove()

    def size(self) -> torch.Tensor:
        """‖δ‖/‖h‖², the mean over positions."""
        return (self.delta.norm(dim=1) / self.h.norm(dim=1) ** 2).mean()

    def project(self, clamp: float) -> None:
        """‖δ‖ ≤ clamp ‖h‖ at every position."""
        with torch.no_grad():
            largest = clamp * self.h.norm(dim=1, keepdim=True)
            norm = self.delta.norm(dim=1, keepdim=True)
            self.delta.mul_(torch.where(norm > largest, largest / norm, 1.0))


@contextmanager
def passing(*modules: torch.nn.Module) -> Iterator[dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]]]:
    """What goes into and comes out of modules in the latest forward inside the block."""
    seen = {}

    def look(module, arguments, output):
        seen[module] = arguments[0], output[0] if isinstance(output, tuple) else output

    hooks = [module.register_forward_hook(look) for module in dict.fromkeys(modules)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def measured(
    model: DiffusionModel, sources: Sequence[Sentences], fc2: torch.nn.Module, last: torch.nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """K (n, 4d), what fc2 is given at the edited positions, and H (n, d), what ``last`` says there: means of sentences."""
    keys, states = [], []
    with torch.no_grad(), passing(fc2, last) as seen:
        for source in sources:
            model.encode_ids(source.ids, source.mask)
            keys.append(source.rows(seen[fc2][0]).double().mean(dim=0))
            states.append(source.rows(seen[last][1]).double().mean(dim=0))
    return torch.cat(keys), torch.cat(states)


#: Captions encoded in one forward.
CAPTIONS_AT_ONCE = 64


def second_moments(
    model: DiffusionModel, layers: Sequence[TextLayer], captions: Sequence[str]
) -> tuple[list[torch.Tensor], int]:
    """C = mean k kᵀ (4d, 4d) of every layer over the tokens of the captions, begin and end included; and their number."""
    if not captions:
        raise UserError("mom2_captions: EMCID needs captions to know what else the text encoder says; got none")
    ids = model.padded_ids(captions, truncate=True)
    lengths = torch.tensor([len(model.token_ids(caption)) for caption in captions], device=ids.device)
    mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
    totals = [torch.zeros([layer.weight.shape[1]] * 2, dtype=torch.float64, device=ids.device) for layer in layers]
    with torch.no_grad(), passing(*(layer.module for layer in layers)) as seen:
        for start in steps(-(-len(ids) // CAPTIONS_AT_ONCE), "captions"):
            batch = slice(start * CAPTIONS_AT_ONCE, (start + 1) * CAPTIONS_AT_ONCE)
            model.encode_ids(ids[batch], mask[batch])
            for total, layer in zip(totals, layers):
                k = seen[layer.module][0][mask[batch].bool()].double()
                total += k.T @ k
    return [total / int(mask.sum()) for total in totals], int(mask.sum())
