"""The variational autoencoder: 64x64 RGB images to 4x16x16 latents with unit variance per channel."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from .parallel import Schedule, train

SCHEDULE = Schedule(images=44_000, batch=16, peak=3e-3, ema=0.995, weight_decay=0.0, save_every=250)


def build_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=64,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def pixels(pictures: np.ndarray | Tensor) -> Tensor:
    """uint8 (n, 64, 64, 3) -> float (n, 3, 64, 64) in [-1, 1]."""
    values = pictures if isinstance(pictures, Tensor) else torch.tensor(pictures)
    return values.permute(0, 3, 1, 2).float() / 127.5 - 1


def _chroma(images: Tensor) -> Tensor:
    """Two opponent-colour channels. Without a loss on them, the latents lose one colour axis."""
    red, green, blue = images.unbind(1)
    return torch.stack([red - green, blue - (red + green) / 2], 1)


def reconstruction_loss(made: Tensor, wanted: Tensor) -> Tensor:
    difference = made - wanted
    colour = _chroma(made) - _chroma(wanted)
    slopes = (difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()) / 2
    return (
        difference.square().mean()
        + 0.15 * difference.abs().mean()
        + 0.15 * slopes
        + 1.2 * (F.avg_pool2d(colour, 4).square().mean() + 0.3 * colour.square().mean())
    )


def start(module: AutoencoderKL, pictures: str):
    data = np.load(pictures, mmap_mode="r")

    def loss(generator: torch.Generator, count: int) -> Tensor:
        chosen = torch.randint(len(data), (count,), generator=generator).numpy()
        wanted = pixels(data[np.sort(chosen)])
        mean, log_variance = module.quant_conv(module.encoder(wanted.bfloat16())).chunk(2, 1)
        log_variance = log_variance.float().clamp(-12, 8)
        noise = torch.randn(mean.shape, generator=generator)
        latents = mean.float() + (0.5 * log_variance).exp() * noise
        made = module.decoder(module.post_quant_conv(latents.bfloat16())).float()
        divergence = 0.5 * (mean.float().square() + log_variance.exp() - 1 - log_variance).mean()
        return reconstruction_loss(made, wanted) + 2e-4 * divergence

    return loss


def train_autoencoder(pictures: Path, folder: Path, workers: int, seed: int) -> AutoencoderKL:
    module = train(build_autoencoder, start, SCHEDULE, folder, "vae", workers, seed, pictures=str(pictures))
    data = np.load(pictures, mmap_mode="r")
    normalise_latents(module, pixels(data[:2000]))
    return module


@torch.no_grad()
def normalise_latents(module: AutoencoderKL, images: Tensor) -> None:
    """Fold (z - mean) / std per channel into quant_conv and its inverse into post_quant_conv, so scaling_factor = 1."""
    means = torch.cat([module.encode(part).latent_dist.mean for part in images.split(100)])
    centre, spread = means.mean((0, 2, 3)), means.std((0, 2, 3))
    quant, post = module.quant_conv, module.post_quant_conv
    quant.weight[:4] /= spread[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - centre) / spread
    quant.bias[4:] -= 2 * spread.log()
    post.bias += post.weight[:, :, 0, 0] @ centre
    post.weight *= spread[None, :, None, None]
