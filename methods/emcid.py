"""EMCID: a closed-form edit of the text encoder's MLPs writes, at the concept's last token, a vector for the anchor's image.

Xiong, Wu, Xie, Wu, Li and Liu, "Editing Massive Concepts in Text-to-Image Diffusion Models", arXiv 2403.13807; the solve
is MEMIT's (Meng et al., ICLR 2023). Block l of the text encoder adds W k to the residual stream; k (4d,) is the input of
``fc2`` and W (d, 4d) its weight. A concept s and its anchor g share sentence templates. The edited position is the last
token of s.

Stage 1 optimises one vector z (d,) per concept. With δ added to the stream h (d,) after the last edited block:

    loss = mean (e(x_t, T_δ(s)) − e(x_t, T(g)))² + w_text mean (pool T_δ(s) − pool T(g))² + w_decay ‖δ‖/‖h‖²

The optimiser is Adam with ‖δ‖ ≤ c ‖h‖ after every step; z = h + δ. x_t (sentences, c, h, w) are noised images of the concept,
and pool is the row of the end token. ``noise_loss: esd`` uses the target e(∅) − μ (e(s) − e(∅)); ``off`` uses only the
text loss.

Stage 2 edits the blocks l_1 < … < l_m in order. K (n, 4d) are the inputs of block l_i's fc2 at the edited positions, H
(n, d) the stream after the *last* block, both averaged over a concept's sentences, and Z (n, d) the targets of stage 1:

    R = (Z − H)/(m − i + 1)
    ΔW = a Rᵀ K (λ (2 − a) C + a KᵀK)⁻¹,    C (4d, 4d) = mean k kᵀ over the tokens of many captions, a = 2 ``edit_weight``

``num_edit_tokens`` r > 1 edits r positions per concept: its last token, the end token, and padding after it. The text
loss then compares the rows at these positions. Prompts are encoded with their attention mask, and the denoiser sees only
the length of the longest prompt.

``compat: official`` reproduces the released code. It compares Z with W k + b of the edited block instead of the stream H,
so that even a concept mapped to itself changes. It takes h from the first sentence instead of the mean. ``intended``
(the default) is consistent with what z is optimised for.

Not implemented: EWC instead of the decay (its Fisher matrix is not published), contrastive and full-padding text losses,
targets from the true noise, supervision by SLD, and SDXL's two encoders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from PIL import ImageOps

from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.image_bank import ImageBank, diffused, paint
from overpaint.blocks.prior import Captions, check_captions, read_captions
from overpaint.blocks.ridge import factored, stored
from overpaint.blocks.training import train
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Request
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure, LowRank, Replacement
from overpaint.models.lazily import functional, torch
from overpaint.models.parameters import TextLayer
from overpaint.run.progress import steps


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
    picture_guidance: float
    num_edit_tokens: int
    mom2_weight: float
    edit_weight: float
    mom2_captions: Captions
    default_anchor: str

    version: ClassVar[int] = 2
    acts_on: ClassVar[str] = "text_encoder"
    lengths: ClassVar[tuple[str, ...]] = ("iterations", "pictures")
    added: ClassVar[Mapping[str, Any]] = {"picture_guidance": 7.5}

    def __post_init__(self):
        check_captions(self.mom2_captions)
        at_least(0, iterations=self.iterations, z_learning_rate=self.z_learning_rate, text_weight=self.text_weight)
        at_least(0, weight_decay=self.weight_decay, clamp=self.clamp)
        at_least(1, pictures=self.pictures, picture_steps=self.picture_steps, num_edit_tokens=self.num_edit_tokens)
        if not 0 < self.edit_weight < 1 or self.mom2_weight <= 0:
            raise UserError(
                f"edit_weight takes a number between 0 and 1 and mom2_weight one above 0, got {self.edit_weight:g} and "
                f"{self.mom2_weight:g}"
            )
        if not self.templates or not all(isinstance(t, str) and t.count("{}") == 1 for t in self.templates):
            raise UserError(f"templates takes sentences with one {{}} each, got {self.templates!r}")

    def check(self, family: str | None, request: Request, name: str, sequential: bool = False) -> None:
        super().check(family, request, name, sequential)
        if not self.mom2_captions:
            raise UserError(
                f"method={name} needs {name}.mom2_captions, captions whose tokens should stay unchanged: a collection, a CSV "
                "file with a prompt column (such as asset:coco_30k/coco_30k.csv) or a list of texts"
            )

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        layers = self.edited_layers(model)
        sources = [self.sentences(model, c.name) for c in request.erase]
        draws = Draws(self.seed)
        anchors = request.anchors(self.default_anchor)
        Z = torch.cat([self.target(model, layers[-1], *pair, draws) for pair in zip(sources, anchors, strict=True)])
        trace_values(z=Z)
        moments, tokens = second_moments(model, layers, read_captions(self.mom2_captions))
        changes, conditions = self.write(model, layers, sources, Z, moments)
        return Erasure("emcid", changes=changes, manifest={"caption_tokens": tokens, "conditions": conditions})

    def edited_layers(self, model: DiffusionModel) -> list[TextLayer]:
        """The blocks to edit: ``layers``, or all except the last."""
        known = model.text_layers()
        chosen = list(range(len(known) - 1)) if self.layers is None else self.layers
        if not chosen or chosen != sorted(set(chosen) & set(range(len(known)))):
            raise UserError(
                f"layers takes the numbers of text-encoder blocks (0 to {len(known) - 1}) in ascending order, got {chosen}"
            )
        return [known[number] for number in chosen]

    def sentences(self, model: DiffusionModel, name: str) -> Sentences:
        """The templates, filled with a name."""
        return Sentences.of(model, self.templates, name, self.num_edit_tokens)

    def target(
        self, model: DiffusionModel, layer: TextLayer, source: Sentences, anchor: str, draws: Draws
    ) -> torch.Tensor:
        """Z (r, d) of one concept: the target of the stream after the last edited block at the edited positions."""
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
                value = value + functional.mse_loss(predicted.to(value.dtype), target.to(value.dtype))
            return value

        optimizer = torch.optim.Adam(shift.masters.values(), lr=self.z_learning_rate)
        optimizer.register_step_post_hook(lambda *_: shift.project(self.clamp))
        train(shift, optimizer, self.iterations, loss)
        return h + shift.delta.detach()

    def text_loss(self, source: Sentences, anchored: Sentences, encoded, wanted) -> torch.Tensor:
        """The mean squared error of the end tokens' rows or, with several edited positions, of the rows at these."""
        if self.num_edit_tokens == 1:
            return functional.mse_loss(source.ends(encoded), anchored.ends(wanted))
        return functional.mse_loss(source.rows(encoded), anchored.rows(wanted))

    def paint(self, model: DiffusionModel, source: Sentences, draws: Draws) -> ImageBank:
        """``pictures`` images of the concept for each sentence, randomly mirrored."""
        captions = source.texts * self.pictures
        bank = paint(
            model, captions, draws, scheduler="pndm", steps=self.picture_steps, guidance_scale=self.picture_guidance
        )
        images = [ImageOps.mirror(image) if draws.integer("mirror", 0, 2) else image for image in bank.images]
        return ImageBank(model, images, bank.captions)

    def noised(self, bank: ImageBank, sentences: int, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """x_t (n, c, h, w) and t (n,): one image per sentence, each with its own timestep."""
        rows = [draws.integer("picture_of", 0, self.pictures) * sentences + n for n in range(sentences)]
        x_t, t, _ = diffused(bank.model, bank.latents(rows, draws, "x0"), draws)
        return draws.take("x", lambda _: x_t).to(x_t), t

    def write(
        self,
        model: DiffusionModel,
        layers: Sequence[TextLayer],
        sources: Sequence[Sentences],
        Z: torch.Tensor,
        moments: Sequence[torch.Tensor],
    ) -> tuple[dict[str, LowRank | Replacement], dict[str, float]]:
        """ΔW of every layer and the condition numbers of the solves, for Z (n, d) and second moments C (4d, 4d)."""
        changes: dict[str, LowRank | Replacement] = {}
        conditions, a = {}, 2 * self.edit_weight
        for index in steps(len(layers), "layers"):
            layer, C = layers[index], moments[index].double()
            last = layer.module if self.compat == "official" else layers[-1].block
            with Erasure("emcid", changes=changes).attached(model):
                K, H = measured(model, sources, layer.module, last)
            R = (Z.double() - H) / (len(layers) - index)
            cholesky, conditions[layer.name] = factored(
                self.mom2_weight * (2 - a) * C + a * K.T @ K,
                f"mom2_captions: the captions' tokens do not span the {len(C)} inputs of {layer.name}; use more captions",
            )
            changes[layer.name] = stored(LowRank(a * R.T, torch.cholesky_solve(K.T, cholesky).T), layer.weight)
        return changes, conditions


@dataclass(frozen=True)
class Sentences:
    """Sentences with a concept: token ids and mask (n, tokens), and the edited positions, one-hot (n, tokens, r)."""

    texts: list[str]
    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor

    @classmethod
    def of(cls, model: DiffusionModel, templates: Sequence[str], name: str, count: int) -> Sentences:
        """Sentences with ``count`` edited positions: the last token of the name, the end token, and padding after it."""
        texts = [template.format(name) for template in templates]
        ids = model.padded_ids(texts)
        lengths = [len(model.token_ids(text)) for text in texts]
        if max(lengths) + max(0, count - 2) > model.tokens:
            raise UserError(
                f"num_edit_tokens={count} and {max(texts, key=len)!r} exceed the {model.tokens} positions of a prompt"
            )
        mask = torch.arange(model.tokens) < torch.tensor(lengths)[:, None]
        positions = torch.zeros(len(texts), model.tokens, count)
        for n, (template, length) in enumerate(zip(templates, lengths, strict=True)):
            last = model.last_subject_token(template[: template.index("{}")] + name)
            for r, position in enumerate([last, *range(length - 1, length + count - 2)]):
                positions[n, position, r] = 1
        return cls(texts, ids, mask.long().to(ids.device), positions.to(ids.device, model.dtype))

    def rows(self, hidden: torch.Tensor) -> torch.Tensor:
        """The rows (n, r, d) of hidden states (n, tokens, d) at the edited positions."""
        return self.positions[:, : hidden.shape[1]].transpose(1, 2) @ hidden

    def ends(self, hidden: torch.Tensor) -> torch.Tensor:
        """The end token's row of each sentence (n, d)."""
        return hidden[torch.arange(len(hidden)), self.mask.sum(dim=1) - 1]

    def length(self) -> int:
        """The number of tokens of the longest sentence."""
        return int(self.mask.sum(dim=1).max())

    def encode(self, model: DiffusionModel, other: Sentences) -> torch.Tensor:
        """Embeddings (n, tokens, d), truncated to the longest sentence.

        If padding is edited, the length also covers it and the longest sentence of ``other``.
        """
        padding = self.positions.shape[2] - 2
        length = self.length() if padding < 0 else max(self.length(), other.length()) + padding
        return model.encode_ids(self.ids[:, :length], self.mask[:, :length])


class Shift:
    """δ (r, d), added to the output of a text-encoder block at the r edited positions.

    It is added to the output of the block's fc2, which is equivalent, because the block adds this output to the stream.
    `train` optimises it (`overpaint.blocks.training.Trainable`).
    """

    def __init__(self, layer: TextLayer, source: Sentences, h: torch.Tensor):
        self.layer, self.source, self.h = layer, source, h
        self.delta = torch.nn.Parameter(torch.zeros_like(h, dtype=torch.promote_types(h.dtype, torch.float32)))
        self.masters = {"delta": self.delta}
        self.dtype = layer.weight.dtype

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside the block δ is added."""

        def add(module, arguments, output):
            return output + (self.source.positions[:, : output.shape[1]] @ self.delta.to(output.dtype))

        hook = self.layer.module.register_forward_hook(add)
        try:
            yield
        finally:
            hook.remove()

    def size(self) -> torch.Tensor:
        """‖δ‖/‖h‖², averaged over positions."""
        return (self.delta.norm(dim=1) / self.h.norm(dim=1) ** 2).mean()

    def project(self, clamp: float) -> None:
        """Shrink δ to ‖δ‖ ≤ ``clamp`` ‖h‖ at every position."""
        with torch.no_grad():
            largest = clamp * self.h.norm(dim=1, keepdim=True)
            norm = self.delta.norm(dim=1, keepdim=True)
            self.delta.mul_(torch.where(norm > largest, largest / norm, 1.0))


@contextmanager
def passing(*modules: torch.nn.Module) -> Iterator[dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]]]:
    """Record the first input and the output of each module in the latest forward inside the block."""
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
    """K (n, 4d), the inputs of ``fc2``, and H (n, d), the outputs of ``last``, at the edited positions; means over sentences."""
    keys, states = [], []
    with torch.no_grad(), passing(fc2, last) as seen:
        for source in sources:
            model.encode_ids(source.ids, source.mask)
            keys.append(source.rows(seen[fc2][0]).double().mean(dim=0))
            states.append(source.rows(seen[last][1]).double().mean(dim=0))
    return torch.cat(keys), torch.cat(states)


#: Captions per forward of the text encoder.
CAPTIONS_AT_ONCE = 64


def second_moments(
    model: DiffusionModel, layers: Sequence[TextLayer], captions: Sequence[str]
) -> tuple[list[torch.Tensor], int]:
    """C = mean k kᵀ (4d, 4d) of every layer over all tokens of the captions, and the number of tokens.

    Begin and end tokens are included, padding is not. Captions are truncated to the model's length.
    """
    ids = model.padded_ids(captions, truncate=True)
    lengths = torch.tensor([len(model.token_ids(caption)) for caption in captions], device=ids.device)
    mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
    totals = [torch.zeros([layer.weight.shape[1]] * 2, dtype=torch.float64, device=ids.device) for layer in layers]
    with torch.no_grad(), passing(*(layer.module for layer in layers)) as seen:
        for start in steps(-(-len(ids) // CAPTIONS_AT_ONCE), "captions"):
            batch = slice(start * CAPTIONS_AT_ONCE, (start + 1) * CAPTIONS_AT_ONCE)
            model.encode_ids(ids[batch], mask[batch])
            for total, layer in zip(totals, layers, strict=True):
                k = seen[layer.module][0][mask[batch].bool()].double()
                total += k.T @ k
    return [total / int(mask.sum()) for total in totals], int(mask.sum())
