"""Training of the oracles, on renders and on their autoencoder round trips, so that they also work on model samples."""

from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from . import membership
from .autoencoder import pixels
from .canvas import STYLES
from .oracle import FILES, Oracle
from .parallel import Schedule, train
from .shapes import UNSEEN
from .world import LABELLED, Scene, random_item, random_scene, render

SCHEDULES = {
    "a": Schedule(images=150_000, batch=64, peak=3e-3, ema=0.995, weight_decay=0.02, save_every=500),
    "b": Schedule(images=150_000, batch=64, peak=3e-3, ema=0.995, weight_decay=0.02, save_every=500),
}
UNSEEN_PICTURES = 4_000
ROUND_TRIPS = 20_000
LATENT_NOISE = 0.35  # maximum noise added to latents before decoding; it imitates a denoiser's artefacts


def target(scene: Scene) -> np.ndarray:
    """The oracle's training target: 0 or 1 for each of LABELLED, then the index of the style."""
    shown = scene.labels
    return np.array([*(name in shown for name in LABELLED), STYLES.index(scene.style)], np.uint8)


def unseen_scene(index: int) -> Scene:
    """A random scene with its first item replaced by an object that the denoiser never sees."""
    rng = Random(f"unseen/{index}")
    scene = random_scene(rng)
    first = scene.items[0]
    position = first.position if first.colour else "centre"
    item = random_item(rng, position, rng.choice(UNSEEN))
    return Scene((item, *scene.items[1:]), scene.style, scene.background, scene.slime, scene.watermark, scene.jitter)


def round_trips_of(arguments: tuple[Path, int, int]) -> np.ndarray:
    """Decoded images of some latents of the training set. Half of the latents are noisy."""
    folder, first, last = arguments
    torch.set_num_threads(1)
    autoencoder = AutoencoderKL.from_pretrained(folder / "vae").eval()
    latents = torch.from_numpy(np.load(folder / "latents.npy", mmap_mode="r")[first:last].astype(np.float32))
    generator = torch.Generator().manual_seed(first)
    strength = torch.rand(len(latents), 1, 1, 1, generator=generator) * 2 - 1
    latents = latents + strength.clamp(min=0) * LATENT_NOISE * torch.randn(latents.shape, generator=generator)
    with torch.no_grad():
        parts = [autoencoder.decode(part).sample for part in latents.split(100)]
    values = ((torch.cat(parts).clamp(-1, 1) + 1) * 127.5).round().byte()
    return values.permute(0, 2, 3, 1).numpy()


def start(module: Oracle, data: str):
    base = Path(data)
    sources = [np.load(base / f"{name}.npy", mmap_mode="r") for name in ("pictures", "round_trips", "unseen")]
    answers = [torch.from_numpy(np.load(base / f"{name}.npy")) for name in ("labels", "unseen_labels")]
    answers.insert(1, answers[0])
    shares = torch.tensor([0.45, 0.47, 0.08])

    def loss(generator: torch.Generator, count: int) -> Tensor:
        source = torch.multinomial(shares, count, replacement=True, generator=generator)
        places = [int(torch.randint(len(sources[s]), (1,), generator=generator)) for s in source]
        images = pixels(np.stack([sources[s][i] for s, i in zip(source, places, strict=True)]))
        wanted = torch.stack([answers[s][i] for s, i in zip(source, places, strict=True)])
        out = module(_disturbed(images, generator).bfloat16())
        present = F.binary_cross_entropy_with_logits(out["objects"].float(), wanted[:, :-1].float())
        return 6 * present + 0.5 * F.cross_entropy(out["styles"].float(), wanted[:, -1].long())

    return loss


def _disturbed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Augment images with small shifts, contrast and brightness changes and noise, and blur every third image."""
    count = len(images)
    down, right = torch.randint(-3, 4, (2,), generator=generator).tolist()
    images = F.pad(images, (3, 3, 3, 3), mode="replicate")[:, :, 3 + down : 67 + down, 3 + right : 67 + right].clone()
    images[::3] = 0.5 * images[::3] + 0.5 * F.avg_pool2d(F.pad(images[::3], (1, 1, 1, 1), mode="replicate"), 3, 1)
    gain = 1 + 0.15 * torch.randn(count, 1, 1, 1, generator=generator)
    shift = 0.08 * torch.randn(count, 3, 1, 1, generator=generator)
    return images * gain + shift + 0.06 * torch.randn(images.shape, generator=generator)


class Builder:
    """A picklable function that builds the network in each worker."""

    def __init__(self, which: str):
        self.which = which

    def __call__(self) -> Oracle:
        return Oracle(self.which)


def train_oracle(which: str, folder: Path, workers: int, seed: int) -> Oracle:
    name = Path(FILES[which]).stem
    seed = seed + 1000 * ("ab".index(which) + 1)
    return train(Builder(which), start, SCHEDULES[which], folder, name, workers, seed, data=str(folder))


def save_oracle(oracle: Oracle, which: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{FILES[which]}.partial"
    save_file({name: value.half().contiguous() for name, value in oracle.state_dict().items()}, temporary)
    temporary.replace(folder / FILES[which])


def unseen_pictures(first: int = 0, count: int = UNSEEN_PICTURES) -> tuple[np.ndarray, np.ndarray]:
    """Images with an unseen object, and their targets."""
    scenes = [unseen_scene(index) for index in range(first, first + count)]
    return np.stack([np.asarray(render(s)) for s in scenes]), np.stack([target(s) for s in scenes])


def training_labels() -> np.ndarray:
    return np.stack([target(membership.scene(index)) for index in range(membership.TRAINING_SIZE)])
