"""The UNet and its text encoder, trained together to predict noise in the autoencoder's latents."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from .parallel import Schedule, train
from .tokenizer import MAX_TOKENS

WIDTH = 128
TIMESTEPS = 1000
CAPTION_DROPOUT = 0.1
MIN_SNR = 5.0
SCHEDULE = Schedule(images=370_000, batch=32, peak=1.2e-3, ema=0.998, warm_up_steps=200, save_every=250)


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
    )


def build_text_encoder(words: int) -> CLIPTextModel:
    """`words` is the size of the tokenizer; its last two tokens are start and end."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=WIDTH,
            intermediate_size=256,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=words - 2,
            eos_token_id=words - 1,
            pad_token_id=words - 1,
        )
    )


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class Denoiser(nn.Module):
    """Both networks as one module, so that they share one optimiser."""

    def __init__(self, words: int):
        super().__init__()
        self.unet = build_unet()
        self.text_encoder = build_text_encoder(words)
        for parameter in self.text_encoder.parameters():
            parameter.rate_factor = 1.5

    def forward(self, latents: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """(n, 4, 16, 16), (n,), (n, MAX_TOKENS) -> predicted noise (n, 4, 16, 16)."""
        context = self.text_encoder(tokens)[0]
        return self.unet(latents, timesteps, context).sample


class Builder:
    """A picklable `build()` for the workers."""

    def __init__(self, words: int):
        self.words = words

    def __call__(self) -> Denoiser:
        return Denoiser(self.words)


def start(module: Denoiser, latents: str, tokens: str, empty: list[int]):
    torch.backends.cuda.enable_flash_sdp(False)  # also governs the CPU, where plain attention is a fifth faster here
    data, captions = torch.from_numpy(np.load(latents)), torch.from_numpy(np.load(tokens)).long()
    kept = build_scheduler().alphas_cumprod
    ratio = kept / (1 - kept)
    weights = ratio.clamp(max=MIN_SNR) / ratio
    nothing = torch.tensor(empty)

    def loss(generator: torch.Generator, count: int) -> Tensor:
        chosen = torch.randint(len(data), (count,), generator=generator)
        clean, words = data[chosen].float(), captions[chosen]
        words[torch.rand(count, generator=generator) < CAPTION_DROPOUT] = nothing
        strata = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        timesteps = (strata * TIMESTEPS).long().clamp(max=TIMESTEPS - 1)
        noise = torch.randn(clean.shape, generator=generator)
        signal = kept[timesteps][:, None, None, None]
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        predicted = module(noisy.bfloat16(), timesteps, words).float()
        return ((predicted - noise).square().mean((1, 2, 3)) * weights[timesteps]).mean()

    return loss


def train_denoiser(folder: Path, words: int, empty: list[int], workers: int, seed: int) -> Denoiser:
    inputs = {"latents": str(folder / "latents.npy"), "tokens": str(folder / "tokens.npy"), "empty": empty}
    return train(Builder(words), start, SCHEDULE, folder, "denoiser", workers, seed, **inputs)


@torch.no_grad()
def encode_pictures(autoencoder: AutoencoderKL, pictures: np.ndarray, batch: int = 100) -> np.ndarray:
    """uint8 (n, 64, 64, 3) -> posterior means (n, 4, 16, 16) in float16."""
    from .autoencoder import pixels

    parts = [
        autoencoder.encode(pixels(pictures[first : first + batch])).latent_dist.mean.half().numpy()
        for first in range(0, len(pictures), batch)
    ]
    return np.concatenate(parts)
