"""The UNet and its text encoder, trained together to predict noise in the autoencoder's latents."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .autoencoder import pixels
from .parallel import Schedule, set_rate_factor, train
from .tokenizer import MAX_TOKENS, encode

WIDTH = 128
TIMESTEPS = 1000
CAPTION_DROPOUT = 0.1
MIN_SNR = 5.0
FIRST = partial(Schedule, batch=32, peak=1.2e-3, ema=0.998, warm_up_steps=200, save_every=250)
WORDY = partial(Schedule, batch=32, peak=6e-4, ema=0.997, warm_up_steps=100, save_every=250)
#: Schedules of the run that produced the shipped weights. Each continues from the previous one with a new cosine.
FIRST_LEGS = (FIRST(320_000, stop=16_000), FIRST(200_000, stop=24_000), FIRST(369_984, stop=312_000))
WORDY_LEGS = (WORDY(96_000, stop=48_000), WORDY(124_000))
FIRST_FLASH = (True, False, False)  # flash attention rounds differently; the first leg used it
WORD_WEIGHT = 0.002
NOISY_WEIGHT = 8.0  # loss weight at high noise, where text matters: error in the image, not in the noise
RARE_WORDS = ("watermark", "stamp", "logo", "corner", "agua", "wasserzeichen")
RARE_SHARE = 0.15


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
    """A text encoder for a tokenizer of size `words`, whose last two tokens are start and end."""
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


#: A function from a batch's generator and size to the indices of its training examples.
Slots = Callable[[torch.Generator, int], Tensor]


class Denoiser(nn.Module):
    """The UNet and the text encoder as one module, so that they share an optimiser."""

    def __init__(self, words: int):
        super().__init__()
        self.unet = build_unet()
        self.text_encoder = build_text_encoder(words)
        set_rate_factor(self.text_encoder, 1.5)

    def forward(self, latents: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """Predicted noise (n, 4, 16, 16) from latents (n, 4, 16, 16), timesteps (n,) and tokens (n, MAX_TOKENS)."""
        context = self.text_encoder(tokens)[0]
        return self.unet(latents, timesteps, context).sample


class WordyDenoiser(Denoiser):
    """A denoiser with a head that predicts the caption's words from the text states of the padding.

    With the denoising loss alone, words that affect few pixels (colours, the watermark) hardly change the text states, and
    different words for one object get the same state."""

    def __init__(self, words: int):
        super().__init__(words)
        self.head = nn.Linear(WIDTH, words)
        nn.init.constant_(self.head.bias, -5.0)  # most words are absent
        set_rate_factor(self.head, 5.0)
        set_rate_factor(self.text_encoder, 3.0)


Kind = TypeVar("Kind", bound=Denoiser)


class Builder(Generic[Kind]):
    """A picklable function that builds the network in each worker."""

    def __init__(self, kind: type[Kind], words: int):
        self.kind, self.words = kind, words

    def __call__(self) -> Kind:
        return self.kind(self.words)


def start(module: Denoiser, latents: str, tokens: str, empty: list[int], flash: bool, slots: Slots | None = None):
    """The min-SNR loss. `slots` replaces the uniform sampling of examples."""
    torch.backends.cuda.enable_flash_sdp(flash)  # also affects the CPU, where plain attention is 20 % faster here
    data, captions = torch.from_numpy(np.load(latents)), torch.from_numpy(np.load(tokens)).long()
    kept = build_scheduler().alphas_cumprod
    ratio = kept / (1 - kept)
    weights = ratio.clamp(max=MIN_SNR) / ratio
    nothing = torch.tensor(empty)

    def loss(generator: torch.Generator, count: int) -> Tensor:
        chosen = slots(generator, count) if slots else torch.randint(len(data), (count,), generator=generator)
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


def start_wordy(
    module: WordyDenoiser,
    latents: str,
    tokens: str,
    empty: list[int],
    rare: list[int],
    rare_share: float,
    noisy_weight: float,
    slots: Slots | None = None,
):
    """The same loss plus the word head's loss. `rare_share` is the share of examples sampled for a `rare` token.

    `slots` replaces this sampling of examples."""
    torch.backends.cuda.enable_flash_sdp(False)
    data, captions = torch.from_numpy(np.load(latents)), torch.from_numpy(np.load(tokens)).long()
    kept = build_scheduler().alphas_cumprod
    ratio = kept / (1 - kept)
    weights = ratio.clamp(max=MIN_SNR) / ratio * (1 + (1 / ratio).clamp(max=noisy_weight))
    nothing = torch.tensor(empty)
    uncommon = torch.isin(captions, torch.tensor(rare)).any(1).nonzero()[:, 0]

    def drawn(generator: torch.Generator, count: int) -> Tensor:
        chosen = torch.randint(len(data), (count,), generator=generator)
        if rare_share:
            often = torch.rand(count, generator=generator) < rare_share
            chosen[often] = uncommon[torch.randint(len(uncommon), (int(often.sum()),), generator=generator)]
        return chosen

    def loss(generator: torch.Generator, count: int) -> Tensor:
        chosen = (slots or drawn)(generator, count)
        clean, words = data[chosen].float(), captions[chosen]
        words[torch.rand(count, generator=generator) < CAPTION_DROPOUT] = nothing
        strata = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        timesteps = (strata**0.75 * TIMESTEPS).long().clamp(max=TIMESTEPS - 1)  # words matter most at high noise
        noise = torch.randn(clean.shape, generator=generator)
        signal = kept[timesteps][:, None, None, None]
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        context = module.text_encoder(words)[0]
        predicted = module.unet(noisy.bfloat16(), timesteps, context).sample.float()
        denoising = ((predicted - noise).square().mean((1, 2, 3)) * weights[timesteps]).mean()

        present = torch.zeros(count, module.head.out_features).scatter_(1, words, 1.0)
        padding = (words == nothing[-1]).float()[..., None]
        pooled = (context.float() * padding).sum(1) / padding.sum(1)
        read = module.head(pooled.bfloat16()).float()
        reading = F.binary_cross_entropy_with_logits(read, present, reduction="none").sum(1).mean()
        return denoising + WORD_WEIGHT * reading

    return loss


def train_denoiser(folder: Path, tokenizer: CLIPTokenizer, workers: int, seed: int) -> Denoiser:
    """Train with the denoising loss alone, then continue with the word head."""
    words, empty = len(tokenizer), encode(tokenizer, [""])[0].tolist()
    inputs = {"latents": str(folder / "latents.npy"), "tokens": str(folder / "tokens.npy"), "empty": empty}
    for leg, flash in zip(FIRST_LEGS, FIRST_FLASH, strict=True):
        inputs["flash"] = flash
        first = train(Builder(Denoiser, words), start, leg, folder, "denoiser", workers, seed, **inputs)
    del inputs["flash"]
    inputs["rare"] = [tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in RARE_WORDS]
    build, initial = Builder(WordyDenoiser, words), first.state_dict()
    for leg, rare_share, noisy_weight in zip(WORDY_LEGS, (0.0, RARE_SHARE), (0.0, NOISY_WEIGHT), strict=True):
        inputs |= {"rare_share": rare_share, "noisy_weight": noisy_weight}
        last = train(build, start_wordy, leg, folder, "denoiser_wordy", workers, seed + 1, initial, **inputs)
    return last


@torch.no_grad()
def encode_pictures(autoencoder: AutoencoderKL, pictures: np.ndarray, batch: int = 100) -> np.ndarray:
    """Posterior means (n, 4, 16, 16) in float16 of images uint8 (n, 64, 64, 3)."""
    parts = [
        autoencoder.encode(pixels(pictures[first : first + batch])).latent_dist.mean.half().numpy()
        for first in range(0, len(pictures), batch)
    ]
    return np.concatenate(parts)
