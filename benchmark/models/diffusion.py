"""The one place that knows architectures. Everything else asks a `DiffusionModel`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
)
from PIL import Image

from overpaint.errors import UserError, unknown
from overpaint.models.guidance import Guidance

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "dpm": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "lms": LMSDiscreteScheduler,
}
#: What the family's own configurations say, for pipelines whose scheduler file is silent about it.
SCHEDULER_OPTIONS = {"ddim": {"clip_sample": False}, "pndm": {"skip_prk_steps": True}}


@dataclass(frozen=True)
class Projection:
    """One attention projection: ``name`` is its state-dict name (with ``.weight``), ``weight`` is (out, in)."""

    name: str
    role: str
    module: torch.nn.Linear

    @property
    def weight(self) -> torch.Tensor:
        return self.module.weight.data


@dataclass(frozen=True)
class TextLayer(Projection):
    """The second projection of a text-encoder block's MLP, and the block: what it adds to the residual stream."""

    block: torch.nn.Module


class DiffusionModel:
    """A latent diffusion model of the SD 1 / SD 2 family: one CLIP text encoder, a UNet with ``attn2`` cross-attention.

    The text encoder runs without attention mask on prompts padded to the tokenizer's length, as the family's own
    pipelines do. `guidance` is what composes predictions in `sample`; a guard erasure replaces it while attached.
    """

    family = "sd"

    def __init__(self, pipeline):
        self.pipeline = pipeline
        self.tokenizer, self.text_encoder = pipeline.tokenizer, pipeline.text_encoder
        self.unet, self.vae = pipeline.unet, pipeline.vae
        for part in (self.text_encoder, self.unet, self.vae):
            part.requires_grad_(False).eval()
        if self.device.type == "cpu":
            self.unet.to(memory_format=torch.channels_last)
        self.guidance: Callable[..., Guidance] = Guidance

    # --- facts -------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device  # the network's own property searches all its modules for hooks

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    @property
    def tokens(self) -> int:
        """Number of text positions a prompt is padded to (77 for CLIP)."""
        return self.tokenizer.model_max_length

    @property
    def pixels_per_latent(self) -> int:
        """Side in pixels of what one latent stands for (8 for Stable Diffusion)."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def image_size(self) -> int:
        """Side of a native image in pixels."""
        return self.unet.config.sample_size * self.pixels_per_latent

    @property
    def text_encoders(self) -> list[torch.nn.Module]:
        """Every text encoder; the first one's is the tokenizer."""
        return [self.text_encoder]

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """ᾱ_t for t = 0 … T−1, float32."""
        return self._alphas

    @cached_property
    def _alphas(self) -> torch.Tensor:
        return self.scheduler("ddim").alphas_cumprod.to(self.device)

    def scheduler(self, name: str):
        """A fresh scheduler with this model's noise schedule."""
        if name not in SCHEDULERS:
            raise unknown("scheduler", name, SCHEDULERS)
        return SCHEDULERS[name].from_config(self.pipeline.scheduler.config, **SCHEDULER_OPTIONS.get(name, {}))

    # --- text side ---------------------------------------------------------------------------------------------

    def token_ids(self, text: str) -> list[int]:
        """BOS, word pieces, EOT; no padding, cut to the model's length."""
        return self.tokenizer(text, truncation=True, max_length=self.tokens).input_ids

    def last_subject_token(self, text: str) -> int:
        """Position of the last word piece: the number of ids minus two, 0 (the BOS row) for the empty string."""
        return len(self.token_ids(text)) - 2

    def padded_ids(self, texts: Sequence[str], truncate: bool = False) -> torch.Tensor:
        """(n, tokens) ids. A text that does not fit is cut, or an error: a concept's name must not lose its end."""
        ids = self.tokenizer(list(texts), padding="max_length", max_length=self.tokens, truncation=truncate).input_ids
        for text, row in zip(texts, ids):
            if len(row) > self.tokens:
                raise UserError(f"prompt has {len(row)} tokens, the model takes {self.tokens}: {text!r}")
        return torch.tensor(ids, device=self.device)

    def too_long(self, texts: Sequence[str]) -> int:
        """How many of these texts the model reads only the beginning of."""
        return sum(len(row) > self.tokens for row in self.tokenizer(list(texts)).input_ids)

    def encode(self, texts: Sequence[str], truncate: bool = False) -> torch.Tensor:
        """Text embeddings (n, tokens, width) after the final layer norm."""
        return self.encode_ids(self.padded_ids(texts, truncate))

    def encode_ids(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Embeddings (n, tokens, width) of padded ids (n, tokens); differentiable in the encoder's parameters.

        ``mask`` (n, tokens) is 1 where a token may be attended to; without one padding is text like any other.
        """
        return self.text_encoder(ids, attention_mask=mask)[0]

    def with_text_encoders_of_now(self) -> DiffusionModel:
        """This model with copies of its text encoders, which stay as they are now; all else it shares with this one."""
        view = copy(self)
        for name in ("text_encoder", "text_encoder_2"):
            if hasattr(self, name):
                setattr(view, name, deepcopy(getattr(self, name)))
        return view

    def encoder_ids(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """The padded ids (n, tokens) as each text encoder reads them."""
        return [ids]

    def unconditional(self, negative_prompt: str = "") -> torch.Tensor:
        """What a sampler's guidance moves away from, (1, tokens, width): the empty prompt, or a negative one."""
        return self.encode([negative_prompt])

    @property
    def token_table(self) -> torch.Tensor:
        """Input embeddings (words, width) of all words; several encoders' lie side by side."""
        tables = [encoder.get_input_embeddings().weight for encoder in self.text_encoders]
        return tables[0] if len(tables) == 1 else torch.cat(tables, dim=-1)

    def token_embeddings(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows (n, tokens, width) of the token table for ids (n, tokens), learned words included."""
        parts = zip(self.text_encoders, self.encoder_ids(ids))
        return torch.cat([encoder.get_input_embeddings()(own) for encoder, own in parts], dim=-1)

    def encode_embeddings(self, embeddings: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, tokens, width) of token embeddings (n, tokens, width) put in the place of the table's rows.

        Differentiable in ``embeddings``. ``ids`` (n, tokens) tell the encoder where a prompt ends.
        """
        with self._tables(lambda table, columns: GivenEmbeddings(embeddings[..., columns])):
            return self.encode_ids(ids)

    @contextmanager
    def _tables(self, stand_in: Callable[[torch.nn.Module, slice], torch.nn.Module]) -> Iterator[None]:
        """Another module in the place of each encoder's token table, made from it and its columns of `token_table`."""
        plain, start = [encoder.get_input_embeddings() for encoder in self.text_encoders], 0
        try:
            for encoder, table in zip(self.text_encoders, plain):
                width = table.weight.shape[1]
                encoder.set_input_embeddings(stand_in(table, slice(start, start + width)))
                start += width
            yield
        finally:
            for encoder, table in zip(self.text_encoders, plain):
                encoder.set_input_embeddings(table)

    @contextmanager
    def learned_tokens(self, tokens: dict[str, torch.Tensor]) -> Iterator[None]:
        """Add placeholder words with their input embeddings (width,) for the duration of the block.

        The embeddings are read at every encoding and are differentiable: an attack trains them inside the block. The
        model's own table is neither copied nor changed.
        """
        if not tokens:
            yield
            return
        width = sum(encoder.get_input_embeddings().weight.shape[1] for encoder in self.text_encoders)
        for word, row in tokens.items():
            if row.shape != (width,):
                shape = tuple(row.shape)
                raise UserError(f"the learned word {word!r} has shape {shape}, {self.family} takes ({width},)")
        tokenizer, rows = self.tokenizer, list(tokens.values())
        extended = extended_tokenizer(tokenizer, list(tokens))
        try:
            self.tokenizer = extended
            with self._tables(lambda table, columns: ExtendedTable(table.weight, len(tokenizer), rows, columns)):
                yield
        finally:
            self.tokenizer = tokenizer

    # --- denoiser ----------------------------------------------------------------------------------------------

    def predict(self, latents: torch.Tensor, timesteps, embeds: torch.Tensor) -> torch.Tensor:
        """The network's output (noise, or velocity for v-prediction models) for latents (b, c, h, w).

        ``timesteps`` is one for all, one a row, or one a row of a batch that is stacked several times in ``latents``.
        """
        if isinstance(timesteps, torch.Tensor) and timesteps.ndim == 1:
            timesteps = timesteps.repeat(len(latents) // len(timesteps))
        return self.unet(latents, timesteps, **self.conditioning(latents, embeds), return_dict=False)[0]

    def conditioning(self, latents: torch.Tensor, embeds: torch.Tensor) -> dict[str, Any]:
        """What the network is told besides latents (b, c, h, w) and timesteps, from text embeddings (b, tokens, width)."""
        return {"encoder_hidden_states": embeds}

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε for latents and noise (b, c, h, w) and timesteps (b,)."""
        signal, deviation = self._levels(latents, timesteps)
        return signal * latents + deviation * noise

    def denoising_target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the network is trained to say of x_t, from x_0, ε and t: ε, or the velocity √ᾱ ε − √(1−ᾱ) x_0."""
        if self.pipeline.scheduler.config.prediction_type == "epsilon":
            return noise
        signal, deviation = self._levels(latents, timesteps)
        return signal * noise - deviation * latents

    def _levels(self, latents: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """√ᾱ_t and √(1−ᾱ_t), (b, 1, 1, 1) like latents (b, c, h, w), of timesteps (b,).

        Roots are taken before they are rounded: in bfloat16 1 − ᾱ is 0 at the lowest timesteps.
        """
        alpha = self._alphas[timesteps].to(torch.promote_types(latents.dtype, torch.float32))[:, None, None, None]
        return alpha.sqrt().to(latents), (1 - alpha).sqrt().to(latents)

    def projections(self, *roles: str) -> list[Projection]:
        """Cross-attention projections by role (``key``, ``value``, ``query``, ``out``) in state-dict order."""
        suffixes = {"key": "attn2.to_k", "value": "attn2.to_v", "query": "attn2.to_q", "out": "attn2.to_out.0"}
        for role in roles:
            if role not in suffixes:
                raise unknown("projection role", role, suffixes)
        found = []
        for name, module in self.unet.named_modules():
            for role in roles:
                if name.endswith(suffixes[role]):
                    found.append(Projection(f"{name}.weight", role, module))
        return found

    def text_layers(self) -> list[TextLayer]:
        """The blocks of the text encoder from the first to the last, each with its MLP's second projection."""
        names = {module: name for name, (module, leaf) in self.parameter_owners().items() if leaf == "weight"}
        blocks = [m for m in self.text_encoder.modules() if isinstance(getattr(m, "mlp", None), torch.nn.Module)]
        return [TextLayer(names[block.mlp.fc2], "text", block.mlp.fc2, block) for block in blocks]

    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Every parameter an erasure may change, under its diffusers state-dict name.

        UNet names are plain; text-encoder names carry ``text_model.`` as published files do.
        """
        return {name: getattr(module, leaf) for name, (module, leaf) in self.parameter_owners().items()}

    def parameter_owners(self) -> dict[str, tuple[torch.nn.Module, str]]:
        """For every name of `named_parameters`, the module that holds it and what it is called there."""
        prefix = "text_model."  # published files have it; newer versions of transformers do not
        text = {
            name if name.startswith(prefix) else prefix + name: place
            for name, place in owners(self.text_encoder).items()
        }
        return owners(self.unet) | text

    @property
    def text_encoder_names(self) -> list[str]:
        """Names of `named_parameters` that belong to the text encoders, in their own order."""
        denoiser = set(self.denoiser_names)
        return [name for name in self.parameter_owners() if name not in denoiser]

    @property
    def denoiser_names(self) -> list[str]:
        """Names of `named_parameters` that belong to the denoiser, in its own order."""
        return [name for name, _ in self.unet.named_parameters()]

    # --- pixels ------------------------------------------------------------------------------------------------

    def to_latents(self, images: Sequence[Image.Image], generator: torch.Generator | None = None) -> torch.Tensor:
        """Scaled latents of PIL images: the posterior mean, or a draw from it when a generator is given."""
        return self.pixels_to_latents(self._pixels(images), generator)

    def pixels_to_latents(self, pixels: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """`to_latents` of pixels (n, 3, height, width), which the autoencoder knows in [−1, 1]."""
        posterior = self._posterior(pixels)
        latents = posterior.mean if generator is None else posterior.sample(generator)
        return (latents * self.vae.config.scaling_factor).to(self.dtype)

    def posterior(self, images: Sequence[Image.Image], black: float = -1.0) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation, both (n, c, h, w), of the scaled latents of PIL images, shown from ``black`` to 1."""
        posterior, scale = self._posterior(self._pixels(images, black)), self.vae.config.scaling_factor
        return (posterior.mean * scale).to(self.dtype), (posterior.std * scale).to(self.dtype)

    def _pixels(self, images: Sequence[Image.Image], black: float = -1.0) -> torch.Tensor:
        if any(image is None for image in images):
            raise UserError("a picture to be encoded failed when it was made: its values were no finite numbers")
        pixels = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in images])
        pixels = pixels / (255 / (1 - black)) + black
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _posterior(self, pixels: torch.Tensor):
        with torch.no_grad():
            return self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist

    def to_images(self, latents: torch.Tensor) -> list[Image.Image | None]:
        """Decode scaled latents to PIL images; ``None`` where a pixel is no finite number, which is no picture of anything."""
        with torch.no_grad():
            pixels = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor, return_dict=False)[0]
        finite = pixels.isfinite().flatten(1).all(dim=1).tolist()
        array = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(image) if made else None for image, made in zip(array, finite)]

    def noise(self, seeds: Sequence[int], size: int | None = None) -> torch.Tensor:
        """Start noise, one CPU generator a seed, so that it depends on nothing but the seed: (n, c, h, w)."""
        side, left = divmod(size or self.image_size, self.pixels_per_latent)
        if left:
            raise UserError(f"images of this model have a side of whole {self.pixels_per_latent} pixels, got {size}")
        shape = (1, self.unet.config.in_channels, side, side)
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
        return torch.cat(drawn).to(self.device, self.dtype)

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int = 20,
        guidance_scale: float = 7.5,
        scheduler: str = "ddim",
        size: int | None = None,
        batch_size: int = 16,
        negative_prompt: str = "",
        embeds: torch.Tensor | None = None,
        on_batch: Callable[[int], None] | None = None,
        keep_failed: bool = False,
    ) -> list[Image.Image | None]:
        """Images for prompts and seeds (one each). An image depends on its prompt and seed, not on its batch.

        Of a prompt that is longer than the model reads (`too_long`) the end is cut, as in diffusers and published protocols.
        ``seeds`` seed one CPU generator an image; ``embeds`` (n, tokens, width) stand for the prompts' encodings where
        they are given; ``on_batch`` is told how many images a batch finished. An image that holds values which are no
        finite numbers (a broken or overflowing model) is an error, or ``None`` with ``keep_failed``.
        """
        if isinstance(prompts, str) or isinstance(seeds, int):
            raise UserError(f"sample() takes lists of prompts and seeds, got {prompts!r} and {seeds!r}")
        if len(prompts) != len(seeds):
            raise UserError(f"sample() takes one seed a prompt, got {len(prompts)} prompts and {len(seeds)} seeds")
        images: list[Image.Image | None] = []
        with torch.no_grad():
            if embeds is None:
                embeds = self._encoded_once(prompts, batch_size)
            nothing = self.unconditional(negative_prompt)
            for start in range(0, len(prompts), batch_size):
                texts, drawn = prompts[start : start + batch_size], seeds[start : start + batch_size]
                positive = embeds[start : start + batch_size]
                guidance = self.guidance(self, positive, nothing.expand_as(positive), guidance_scale, texts)
                latents = self.denoise(self.noise(drawn, size), guidance, scheduler, steps)
                images += self.to_images(latents)
                if on_batch:
                    on_batch(len(texts))
        failed = images.count(None)
        if failed and not keep_failed:
            raise UserError(
                f"{failed} of {len(images)} images hold values that are no finite numbers: the model or its erasure is "
                f"broken, or too large for {str(self.dtype).removeprefix('torch.')}"
            )
        return images

    def _encoded_once(self, prompts: Sequence[str], batch_size: int) -> torch.Tensor:
        """Encodings (n, tokens, width) of prompts, equal ones computed once."""
        distinct = list(dict.fromkeys(prompts))
        blocks = [distinct[start : start + batch_size] for start in range(0, len(distinct), batch_size)]
        encoded = torch.cat([self.encode(block, truncate=True) for block in blocks])
        return encoded[[distinct.index(text) for text in prompts]]

    def denoise(self, noise: torch.Tensor, guidance: Guidance, scheduler: str, steps: int, stop: int | None = None):
        """Run the scheduler from unit noise; ``stop`` ends after that many steps. Returns latents like ``noise``."""
        schedule = self.scheduler(scheduler)
        schedule.set_timesteps(steps, device=self.device)
        latents = noise * schedule.init_noise_sigma
        for step, timestep in enumerate(schedule.timesteps[:stop]):
            scaled = schedule.scale_model_input(latents, timestep)
            latents = schedule.step(guidance(scaled, timestep, step), timestep, latents, return_dict=False)[0]
        return latents


def owners(part: torch.nn.Module) -> dict[str, tuple[torch.nn.Module, str]]:
    """For every parameter of a network, by its name there: the module that holds it and what it is called there."""
    found = {}
    for path, module in part.named_modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                found[f"{path}.{leaf}" if path else leaf] = (module, leaf)
    return found


class GivenEmbeddings(torch.nn.Module):
    """Stands in for a token table: answers every lookup with the given embeddings (batch, tokens, width)."""

    def __init__(self, embeddings: torch.Tensor):
        super().__init__()
        self.embeddings = embeddings

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.embeddings


class ExtendedTable(torch.nn.Module):
    """A token table with extra rows behind the known ids; only the extra rows, of which it has ``columns``, can be learned."""

    def __init__(self, weight: torch.nn.Parameter, known: int, rows: Sequence[torch.Tensor], columns: slice):
        super().__init__()
        self.weight, self.known, self.rows, self.columns = weight, known, list(rows), columns

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings (batch, tokens, width) of ids (batch, tokens)."""
        found = torch.nn.functional.embedding(ids.clamp(max=self.known - 1), self.weight)
        for offset, row in enumerate(self.rows):
            found = torch.where((ids == self.known + offset)[..., None], row[self.columns].to(found), found)
        return found


def extended_tokenizer(tokenizer, words: list[str]):
    """A copy of the tokenizer in which each of ``words`` is one new token."""
    from copy import deepcopy

    copy = deepcopy(tokenizer)
    copy.add_tokens(words)
    if copy.convert_tokens_to_ids(words) != list(range(len(tokenizer), len(tokenizer) + len(words))):
        raise UserError(f"placeholder words must be new to the tokenizer, got {words}")
    return copy
