"""SAFREE: during sampling, the tokens of a prompt that lie close to unwanted phrases are projected away from them.

Yoon, Yu, Patil, Yao and Bansal, "SAFREE: Training-Free and Adaptive Guard for Safe Text-to-Image and Video Generation",
ICLR 2025, arXiv 2410.12761. Weights do not change. Notation: p_j (width,) is row j of a prompt's encoding, and a text's
summary is the row of its end token. C (width, phrases) are the summaries of the unwanted phrases. I (width, n) are those of
the prompt with one of its n tokens replaced at a time. P_C and P_I (width, width) project onto their columns:

    d_i  = ‖(1 − P_C) I_i‖                                     the distance of the prompt without token i from the phrases
    p_i ← (1 − P_C) P_I p_i     for trigger tokens: those with d_i ≥ (1 + α) mean_{j≠i} d_j, α ``margin``, and an only token
    β    = 1 − mean_j cos(p_j, (1 − P_C) P_I p_j)              over all rows from the begin token to the end token
    t'   = round(m σ(2k (10 β − b)))                           the self-validating filter: steps 0 … t' use the edited rows

A prompt in which no token is a trigger is left unchanged, and only prompts near the phrases are edited for long. Latent
re-attention evaluates the original prompt as well. In the decoder's skip connections it compares the low frequencies s
(edited) and o (original) of both, and where Re s > Re o it multiplies s by ``scales``.

The released code differs. It never calls re-attention; its function for that replaces s by the constant in ``scales``
wherever Re s ≥ Re o (``reattention: released``). It also makes the phrases the negative prompt of every image. For SDXL it
edits the columns of the second encoder only, with its pooled vectors in place of the rows of end tokens, in all steps. ``compat:
official`` reproduces the last two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Literal, NamedTuple

from overpaint.blocks.draws import trace_values
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Request
from overpaint.grid.typed import construct
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.guidance import Guard, Guidance, GuidanceMaker
from overpaint.models.lazily import functional, torch

Filter = Literal["sigmoid", "tanh", "none"]
Reattention = Literal["paper", "released", "none"]

#: The token that replaces each token of a prompt in turn: the first of the vocabulary, "!" in CLIP's.
MASKED = 0


@dataclass(kw_only=True)
class SAFREE(Eraser):
    """Hyper-parameters of SAFREE; ``conf/method/safree.yaml`` explains each."""

    compat: Literal["intended", "official"]
    phrases: list[str] | None
    margin: float
    filter: Filter
    filter_steps: int
    filter_scale: float
    filter_midpoint: float
    first_step: int
    last_step: int
    reattention: Reattention
    scales: list[float]
    window: int

    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    acts_on: ClassVar[str] = "conditioning"
    draws: ClassVar[bool] = False
    stacks: ClassVar[bool] = True
    reads_prompts: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False

    def __post_init__(self):
        at_least(0, margin=self.margin, filter_steps=self.filter_steps, window=self.window)
        if self.phrases is not None and not any(phrase.strip() for phrase in self.phrases):
            raise UserError(
                "phrases takes a list of unwanted texts, or null for the names of the concepts, got no text"
            )
        if len(self.scales) != 2:
            raise UserError(f"scales takes two numbers, for the widest and the next layers, got {self.scales!r}")

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        settings = asdict(self) | {"phrases": self.phrases or [c.name for c in request.erase]}
        guard = construct(TokenGuard, {k: v for k, v in settings.items() if k != "seed"}, "method=safree")
        model.padded_ids(guard.on(model.guidance).phrases)  # raises now, not during sampling, if a phrase is too long
        guard.check(model)
        return Erasure("safree", "guard", settings=asdict(guard))

    @classmethod
    def install(cls, model: DiffusionModel, erasure: Erasure) -> Callable[[], None]:
        guard = construct(TokenGuard, erasure.settings, "this erasure's settings").on(model.guidance)
        guard.check(model)
        return model.guided_by(guard)


class Edited(NamedTuple):
    """Encodings (n, rows, columns) of prompts with their trigger tokens projected, and the last step (n,) that uses each."""

    embeds: torch.Tensor
    last: torch.Tensor


@dataclass(frozen=True)
class TokenGuard(Guard):
    """Creates the `Guidance` of each batch of images. Learned embeddings without a prompt are not edited: they have no tokens."""

    compat: Literal["intended", "official"]
    phrases: list[str]
    margin: float
    filter: Filter
    filter_steps: int
    filter_scale: float
    filter_midpoint: float
    first_step: int
    last_step: int
    reattention: Reattention
    scales: list[float]
    window: int

    method: ClassVar[str] = "safree"
    joins: ClassVar[str] = "phrases"

    def on(self, guidance: GuidanceMaker) -> TokenGuard:
        merged = super().on(guidance)
        return merged if merged is self else replace(merged, phrases=list(dict.fromkeys(merged.phrases)))

    def check(self, model: DiffusionModel) -> None:
        """Raise a `UserError` if ``compat: official`` is not defined for the model."""
        if self.pooled(model):
            pooled = model.layout["pooled"].width
            if pooled != (own := model.text_encoders[-1].config.hidden_size):
                raise UserError(
                    f"method=safree: compat=official projects the second encoder's rows, which are {own} wide, with its pooled "
                    f"vectors, which are {pooled} wide; use compat=intended"
                )

    def __call__(self, model: DiffusionModel, positive, negative, scale: float, prompts=None) -> Guidance:
        if self.compat == "official":
            with torch.no_grad():
                negative = model.encode([", ".join(self.phrases)], truncate=True).expand_as(positive)
        if prompts is None:
            return Guidance(model, positive, negative, scale)
        return TokenGuidance(self, self.edited(model, prompts, positive), model, positive, negative, scale, prompts)

    def edited(self, model: DiffusionModel, prompts: Sequence[str], embeds: torch.Tensor) -> Edited:
        """Edit the encodings (n, rows, columns) of prompts; differentiable in ``embeds``.

        Equal rows of equal prompts are edited alike.
        """
        with torch.no_grad():
            C = self.summaries(model, model.padded_ids(self.phrases))
            masked = {prompt: self.masked(model, prompt, C[:0]) for prompt in dict.fromkeys(prompts)}
        P_C, edited, last = projector(C.T), embeds.clone(), []
        for row, prompt in enumerate(prompts):
            tokens, P_I = len(masked[prompt]), projector(masked[prompt].T)
            p, own = (model.parts(part[row])["clip"][:, -C.shape[1] :] for part in (embeds, edited))  # views
            inside = p.double() @ P_I  # of rows; both matrices are symmetric
            projected = inside - inside @ P_C
            some = slice(0, tokens + 2)  # from the begin token to the end token
            beta = 1 - float(functional.cosine_similarity(p.detach().double()[some], projected.detach()[some]).mean())
            trigger = triggers(masked[prompt], P_C, self.margin)
            named = slice(1, tokens + 1)
            own[named] = torch.where(trigger[:, None], projected[named].to(p), p[named])
            last.append(self.last_step if self.all_steps(model) else self.until(beta))
            trace_values(C=C, P_C=P_C, masked=masked[prompt], P_I=P_I, orth=projected, beta=beta, trigger=trigger)
        return Edited(edited, torch.tensor(last, device=embeds.device))

    def masked(self, model: DiffusionModel, prompt: str, nothing: torch.Tensor) -> torch.Tensor:
        """Iᵀ (n, width): the summaries of the prompt with each of its n tokens masked in turn; ``nothing`` if n is 0."""
        tokens = len(model.token_ids(prompt)) - 2
        if not tokens:
            return nothing
        ids = model.padded_ids([prompt], truncate=True).repeat(tokens, 1)
        places = torch.arange(tokens, device=ids.device)
        ids[places, places + 1] = MASKED
        return self.summaries(model, ids)

    def summaries(self, model: DiffusionModel, ids: torch.Tensor) -> torch.Tensor:
        """The summaries (n, width), float64, of texts with padded ids (n, tokens)."""
        parts = model.parts(model.encode_ids(ids))
        if self.pooled(model):
            return parts["pooled"][:, 0].double()
        ends = (ids == model.tokenizer.eos_token_id).int().argmax(dim=1)
        return parts["clip"][torch.arange(len(ids), device=ids.device), ends].double()

    def until(self, beta: float) -> int:
        """t', the last step that uses the edited rows: the self-validating filter for β."""
        if self.filter == "none":
            return self.last_step
        return filtered_steps(beta, self.filter, self.filter_steps, self.filter_scale, self.filter_midpoint)

    def pooled(self, model: DiffusionModel) -> bool:
        """Whether texts are summarised by the second encoder's pooled vector, as the released code for SDXL does."""
        return self.compat == "official" and "pooled" in model.layout

    def all_steps(self, model: DiffusionModel) -> bool:
        """Whether the filter and re-attention are off, as in the released code for SDXL."""
        return self.filter == "none" or self.pooled(model)

    def reattends(self, model: DiffusionModel) -> bool:
        """Whether latent re-attention is on; it is off for SDXL, as in the released code."""
        return self.reattention != "none" and not self.pooled(model)

    def starts(self) -> int:
        """The first step that uses the edited rows. The filter has no such bound."""
        return self.first_step if self.filter == "none" else 0

    @contextmanager
    def attending(self, model: DiffusionModel, images: int) -> Iterator[None]:
        """Filter the skip connections while the network reads rows whose last but one ``images`` are edited prompts
        and the last ``images`` the original ones.

        Filtered are the layers whose backbone is as wide as the network's widest level, or as the next one.
        """
        skips = model.skip_connections()
        widths = sorted({width for _, width in skips.values()}, reverse=True)
        scale_of = dict(zip(widths, self.scales, strict=False))

        def filtered(layer, inputs: tuple, width: int) -> tuple:
            (backbone, skip), rest = inputs[0].tensor_split([width], dim=1), inputs[1:]
            edited, original = skip[-2 * images : -images], skip[-images:]
            new = attenuated(edited, original, self.window, scale_of[width], self.reattention == "released")
            skip = torch.cat([skip[: -2 * images], new, original])
            return torch.cat([backbone, skip], dim=1), *rest

        hooks = [
            layer.register_forward_pre_hook(lambda layer, inputs, width=width: filtered(layer, inputs, width))
            for layer, width in skips.values()
            if width in scale_of
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class TokenGuidance(Guidance):
    """Guidance with the edited prompts in the first steps and the original ones later."""

    def __init__(self, settings: TokenGuard, edited: Edited, *guidance):
        super().__init__(*guidance)
        self.settings, self.edited = settings, edited

    def at(self, step: float) -> torch.Tensor:
        """The encodings (b, rows, columns) of the prompts at this step."""
        on = (self.edited.last >= step) & (step >= self.settings.starts())
        return torch.where(on[:, None, None], self.edited.embeds, self.positive)

    def __call__(self, latents: torch.Tensor, timestep, step: float) -> torch.Tensor:
        guided, third = self.scale > 1, self.settings.reattends(self.model)
        rows = [*[self.negative][: int(guided)], self.at(step), *[self.positive][: int(third)]]
        with self.settings.attending(self.model, len(latents)) if third else nullcontext():
            found = self.model.predict(torch.cat([latents] * len(rows)), timestep, torch.cat(rows)).chunk(len(rows))
        if not guided:
            return found[0]
        nothing, wanted = found[:2]
        return nothing + self.scale * (wanted - nothing)


def projector(columns: torch.Tensor) -> torch.Tensor:
    """The orthogonal projector (width, width) onto the span of columns (width, n).

    The released E (EᵀE)⁺ Eᵀ is the same in exact arithmetic and loses twice as many digits.
    """
    left, sizes, _ = torch.linalg.svd(columns.double(), full_matrices=False)
    tolerance = max(columns.shape) * torch.finfo(torch.float64).eps * (sizes.max() if len(sizes) else 0)
    basis = left[:, sizes > tolerance]
    return basis @ basis.T


def triggers(masked: torch.Tensor, P_C: torch.Tensor, margin: float) -> torch.Tensor:
    """Which of a prompt's n tokens are triggers (n,), from Iᵀ (n, width)."""
    distances = (masked - masked @ P_C).norm(dim=1)
    others = (distances.sum() - distances) / (len(distances) - 1)  # not a number for an only token
    return ~(distances < (1 + margin) * others)


def filtered_steps(beta: float, form: str, steps: int, scale: float, midpoint: float) -> int:
    """t' = round(m σ(2k (10 β − b))) or round(m/2 (1 + tanh(k (10 β − b)))), which are equal up to rounding."""
    x = scale * (10 * beta - midpoint)
    if form == "tanh":
        return round(steps / 2 * (math.tanh(x) + 1))
    return round(steps / (1 + math.exp(-2 * x))) if x > -300 else 0


def attenuated(edited: torch.Tensor, original: torch.Tensor, window: int, scale: float, released: bool) -> torch.Tensor:
    """Features (b, c, h, w) of edited prompts, with low frequencies weakened that exceed those of the original prompts.

    Low are the ``window`` frequencies below zero, zero itself, and ``window`` − 1 above it, in both directions.
    """
    kind = torch.promote_types(edited.dtype, torch.float32)
    s, o = (torch.fft.fftshift(torch.fft.fft2(x.to(kind)), dim=(-2, -1)) for x in (edited, original))
    row, column = (side // 2 for side in edited.shape[-2:])
    low = (..., slice(max(0, row - window), row + window), slice(max(0, column - window), column + window))
    if released:
        s[low] = torch.where(o[low].real - s[low].real > 0, s[low], torch.tensor(scale, dtype=s.dtype, device=s.device))
    else:
        s[low] = torch.where(s[low].real > o[low].real, scale * s[low], s[low])
    return torch.fft.ifft2(torch.fft.ifftshift(s, dim=(-2, -1))).real.to(edited.dtype)
