"""The one place that knows architectures. Everything else asks a `DiffusionModel`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

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
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def tokens(self) -> int:
        """Number of text positions a prompt is padded to (77 for CLIP)."""
        return self.tokenizer.model_max_length

    @property
    def image_size(self) -> int:
        """Side of a native image in pixels."""
        return self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

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

    def padded_ids(self, texts: Sequence[str]) -> torch.Tensor:
        """(n, tokens) ids. A prompt that does not fit is an error: silent truncation changes what is measured."""
        ids = self.tokenizer(list(texts), padding="max_length", max_length=self.tokens, truncation=False).input_ids
        for text, row in zip(texts, ids):
            if len(row) > self.tokens:
                raise UserError(f"prompt has {len(row)} tokens, the model takes {self.tokens}: {text!r}")
        return torch.tensor(ids, device=self.device)

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Text embeddings (n, tokens, width) after the final layer norm."""
        return self.encode_ids(self.padded_ids(texts))

    def encode_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, tokens, width) of padded ids (n, tokens); differentiable in the encoder's parameters."""
        return self.text_encoder(ids)[0]

    def token_embeddings(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows (n, tokens, width) of the token table for ids (n, tokens), learned words included."""
        return self.text_encoder.get_input_embeddings()(ids)

    def encode_embeddings(self, embeddings: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, tokens, width) of token embeddings (n, tokens, width) put in the place of the table's rows.

        Differentiable in ``embeddings``. ``ids`` (n, tokens) tell the encoder where a prompt ends.
        """
        table = self.text_encoder.get_input_embeddings()
        try:
            self.text_encoder.set_input_embeddings(GivenEmbeddings(embeddings))
            return self.encode_ids(ids)
        finally:
            self.text_encoder.set_input_embeddings(table)

    @contextmanager
    def learned_tokens(self, tokens: dict[str, torch.Tensor]) -> Iterator[None]:
        """Add placeholder words with their input embeddings (width,) for the duration of the block.

        The embeddings are read at every encoding and are differentiable: an attack trains them inside the block. The
        model's own table is neither copied nor changed.
        """
        if not tokens:
            yield
            return
        table, tokenizer = self.text_encoder.get_input_embeddings(), self.tokenizer
        extended = extended_tokenizer(tokenizer, list(tokens))
        try:
            self.tokenizer = extended
            self.text_encoder.set_input_embeddings(ExtendedTable(table.weight, len(tokenizer), list(tokens.values())))
            yield
        finally:
            self.tokenizer = tokenizer
            self.text_encoder.set_input_embeddings(table)

    # --- denoiser ----------------------------------------------------------------------------------------------

    def predict(self, latents: torch.Tensor, timesteps, embeds: torch.Tensor) -> torch.Tensor:
        """The network's output (noise, or velocity for v-prediction models) for latents (b, c, h, w).

        ``timesteps`` is one for all, one a row, or one a row of a batch that is stacked several times in ``latents``.
        """
        if isinstance(timesteps, torch.Tensor) and timesteps.ndim == 1:
            timesteps = timesteps.repeat(len(latents) // len(timesteps))
        return self.unet(latents, timesteps, encoder_hidden_states=embeds, return_dict=False)[0]

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε for latents and noise (b, c, h, w) and timesteps (b,)."""
        alpha = self._alphas[timesteps].to(latents)[:, None, None, None]
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise

    def denoising_target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the network is trained to say of x_t, from x_0, ε and t: ε, or the velocity √ᾱ ε − √(1−ᾱ) x_0."""
        if self.pipeline.scheduler.config.prediction_type == "epsilon":
            return noise
        alpha = self._alphas[timesteps].to(latents)[:, None, None, None]
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents

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

    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Every parameter an erasure may change, under its diffusers state-dict name.

        UNet names are plain; text-encoder names carry ``text_model.`` as in the files on disk.
        """
        return {name: getattr(module, leaf) for name, (module, leaf) in self.parameter_owners().items()}

    def parameter_owners(self) -> dict[str, tuple[torch.nn.Module, str]]:
        """For every name of `named_parameters`, the module that holds it and what it is called there."""
        owners = {}
        for part, prefix in ((self.unet, ""), (self.text_encoder, "text_model.")):
            for path, module in part.named_modules():
                for leaf in module._parameters:
                    name = f"{path}.{leaf}" if path else leaf
                    if module._parameters[leaf] is not None:
                        owners[name if name.startswith(prefix) else prefix + name] = (module, leaf)
        return owners

    @property
    def text_encoder_names(self) -> list[str]:
        """Names of `named_parameters` that belong to the text encoder, in its own order."""
        denoiser = set(self.denoiser_names)
        return [name for name in self.parameter_owners() if name not in denoiser]

    @property
    def denoiser_names(self) -> list[str]:
        """Names of `named_parameters` that belong to the denoiser, in its own order."""
        return [name for name, _ in self.unet.named_parameters()]

    # --- pixels ------------------------------------------------------------------------------------------------

    def to_latents(self, images: Sequence[Image.Image], generator: torch.Generator | None = None) -> torch.Tensor:
        """Scaled latents of PIL images: the posterior mean, or a draw from it when a generator is given."""
        pixels = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in images]) / 127.5 - 1
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device, self.vae.dtype)
        with torch.no_grad():
            posterior = self.vae.encode(batch).latent_dist
        latents = posterior.mean if generator is None else posterior.sample(generator)
        return latents * self.vae.config.scaling_factor

    def to_images(self, latents: torch.Tensor) -> list[Image.Image]:
        """Decode scaled latents to PIL images."""
        with torch.no_grad():
            pixels = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor, return_dict=False)[0]
        array = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(image) for image in array]

    def noise(self, seeds: Sequence[int], size: int | None = None) -> torch.Tensor:
        """Start noise, one CPU generator a seed, so that it depends on nothing but the seed: (n, c, h, w)."""
        side = (size or self.image_size) // 2 ** (len(self.vae.config.block_out_channels) - 1)
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
        on_batch: Callable[[int], None] | None = None,
    ) -> list[Image.Image]:
        """Images for prompts and seeds (one each). An image depends on its prompt and seed, not on its batch.

        ``seeds`` seed one CPU generator an image; ``on_batch`` is told how many images a batch finished.
        """
        if len(prompts) != len(seeds):
            raise UserError(f"sample() takes one seed a prompt, got {len(prompts)} prompts and {len(seeds)} seeds")
        images: list[Image.Image] = []
        with torch.no_grad():
            distinct = list(dict.fromkeys(prompts))
            embeds = {}
            for start in range(0, len(distinct), batch_size):
                block = distinct[start : start + batch_size]
                embeds |= dict(zip(block, self.encode(block)))
            nothing = self.encode([negative_prompt])
            for start in range(0, len(prompts), batch_size):
                texts, drawn = prompts[start : start + batch_size], seeds[start : start + batch_size]
                positive = torch.stack([embeds[text] for text in texts])
                guidance = self.guidance(self, positive, nothing.expand_as(positive), guidance_scale, texts)
                latents = self.denoise(self.noise(drawn, size), guidance, scheduler, steps)
                images += self.to_images(latents)
                if on_batch:
                    on_batch(len(texts))
        return images

    def denoise(self, noise: torch.Tensor, guidance: Guidance, scheduler: str, steps: int, stop: int | None = None):
        """Run the scheduler from unit noise; ``stop`` ends after that many steps. Returns latents like ``noise``."""
        schedule = self.scheduler(scheduler)
        schedule.set_timesteps(steps, device=self.device)
        latents = noise * schedule.init_noise_sigma
        for step, timestep in enumerate(schedule.timesteps[:stop]):
            scaled = schedule.scale_model_input(latents, timestep)
            latents = schedule.step(guidance(scaled, timestep, step), timestep, latents, return_dict=False)[0]
        return latents


class GivenEmbeddings(torch.nn.Module):
    """Stands in for a token table: answers every lookup with the given embeddings (batch, tokens, width)."""

    def __init__(self, embeddings: torch.Tensor):
        super().__init__()
        self.embeddings = embeddings

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.embeddings


class ExtendedTable(torch.nn.Module):
    """A token table with extra rows behind the known ids; only the extra rows can be learned."""

    def __init__(self, weight: torch.nn.Parameter, known: int, rows: Sequence[torch.Tensor]):
        super().__init__()
        self.weight, self.known, self.rows = weight, known, list(rows)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings (batch, tokens, width) of ids (batch, tokens)."""
        found = torch.nn.functional.embedding(ids.clamp(max=self.known - 1), self.weight)
        for offset, row in enumerate(self.rows):
            found = torch.where((ids == self.known + offset)[..., None], row.to(found), found)
        return found


def extended_tokenizer(tokenizer, words: list[str]):
    """A copy of the tokenizer in which each of ``words`` is one new token."""
    from copy import deepcopy

    copy = deepcopy(tokenizer)
    copy.add_tokens(words)
    if copy.convert_tokens_to_ids(words) != list(range(len(tokenizer), len(tokenizer) + len(words))):
        raise UserError(f"placeholder words must be new to the tokenizer, got {words}")
    return copy
