"""Sparse autoencoders of a network's activations: many latents; k of them describe each activation.

An activation x (d,) and its latents z (n,), with W_e (n, d), W_d (d, n), b (d,) and b_l (n,):

    z = TopK_k(ReLU(W_e (x − b) + b_l)),        x̂ = W_d z + b

The columns of W_d have norm 1. At the start W_d = W_eᵀ, up to these norms, and b is the geometric median of some activations
(Gao et al., "Scaling and evaluating sparse autoencoders", ICLR 2025, arXiv 2406.04093).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from safetensors import SafetensorError

from overpaint.blocks.draws import Draws
from overpaint.blocks.training import gradient_of
from overpaint.errors import UserError
from overpaint.grid.assets import content_digest, located, referred
from overpaint.grid.paths import content_path, path_of
from overpaint.models.lazily import torch

#: Names of the tensors W_e, W_d, b_l and b.
TENSORS = ("encoder.weight", "decoder.weight", "latent_bias", "pre_bias")
#: Their names in files of EleutherAI's library, which stores W_dᵀ.
ELEUTHER = {"encoder.bias": "latent_bias", "b_dec": "pre_bias"}
#: Adam's ε in official trainings of sparse autoencoders.
ADAM_EPSILON = 6.25e-10
#: Most activations in a geometric median, and most iterations.
MEDIAN_ROWS, MEDIAN_ITERATIONS = 32768, 100


class SparseAutoencoder:
    """``masters`` are its tensors by the names in `TENSORS`; they may be trained (`overpaint.blocks.training.train`)."""

    def __init__(self, masters: Mapping[str, torch.Tensor]):
        self.masters = {name: torch.nn.Parameter(masters[name].detach().clone()) for name in TENSORS}

    @classmethod
    def drawn(cls, latents: int, sample: torch.Tensor, draws: Draws) -> SparseAutoencoder:
        """A new one for activations like ``sample`` (rows, d): W_e uniform in ±1/√d, the default of `torch.nn.Linear`."""
        width = sample.shape[1]
        encoder = draws.take("encoder", lambda g: (2 * torch.rand(latents, width, generator=g) - 1) / width**0.5)
        encoder = encoder.to(sample)
        tensors = (encoder, encoder.T, sample.new_zeros(latents), geometric_median(sample[:MEDIAN_ROWS]))
        made = cls(dict(zip(TENSORS, tensors, strict=True)))
        made.unit_columns()
        return made

    @property
    def dtype(self) -> torch.dtype:
        """Its own precision; float16 would need loss scaling."""
        return torch.float32

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()

    def __len__(self) -> int:
        """n, the number of latents."""
        return len(self.masters["latent_bias"])

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """W_e (x − b) + b_l (…, n) of activations x (…, d)."""
        encoder, _, latent_bias, pre_bias = self.masters.values()
        return torch.nn.functional.linear(x - pre_bias, encoder, latent_bias)

    def encode(self, x: torch.Tensor, k: int | None = None) -> torch.Tensor:
        """z (…, n) of activations x (…, d), with at most k latents on; ``None``: without a limit."""
        scores = self.scores(x)
        return scores.relu() if k is None else largest(scores, k).relu()

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """x̂ (…, d) of latents z (…, n)."""
        return self.directions(z) + self.masters["pre_bias"]

    def directions(self, z: torch.Tensor) -> torch.Tensor:
        """W_d z (…, d), without b."""
        return torch.nn.functional.linear(z, self.masters["decoder.weight"])

    def unit_columns(self) -> None:
        """Scale the columns of W_d to norm 1."""
        decoder = self.masters["decoder.weight"].data
        decoder /= decoder.norm(dim=0).clamp(min=torch.finfo(decoder.dtype).tiny)

    def keep_norms(self) -> None:
        """Remove from the gradient of W_d what would only change the norms of its columns."""
        decoder = self.masters["decoder.weight"]
        gradient = gradient_of(decoder)
        gradient -= (decoder.data * gradient).sum(dim=0) * decoder.data


def largest(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest entries of each row (…, n); all others are 0."""
    values, places = scores.topk(k, dim=-1)
    return torch.zeros_like(scores).scatter(-1, places, values)


def geometric_median(points: torch.Tensor) -> torch.Tensor:
    """The point (d,) with the smallest sum of distances to ``points`` (rows, d), by Weiszfeld's iterations from the mean."""
    median = points.mean(dim=0)
    for _ in range(MEDIAN_ITERATIONS):
        weights = 1 / (points - median).norm(dim=1).clamp(min=1e-6)
        found = (points * weights[:, None]).sum(dim=0) / weights.sum()
        if torch.equal(found, median):
            break
        median = found
    return median


def check_latents(latents: int, **counts: int) -> None:
    """Raise a `UserError` if a hyper-parameter such as k asks for more than all latents."""
    for name, count in counts.items():
        if count > latents:
            raise UserError(f"{name}={count} is more than the {latents} latents of the autoencoder")


def check_file(file: str | None) -> None:
    """Raise a `UserError` if an ``autoencoder`` setting names an asset that does not exist, or a file by a bare word.

    An asset need not be on this machine.
    """
    if file is not None and referred(file):
        content_digest(file)
    elif file is not None:
        content_path(file, "autoencoder")


def read_autoencoder(file: str, width: int, like: torch.Tensor) -> SparseAutoencoder:
    """The autoencoder of a safetensors file, for activations (…, ``width``) with the device and dtype of ``like``.

    Tensors are named as in `TENSORS`, or as in EleutherAI's library.
    """
    from safetensors.torch import load_file

    path = located(file) or path_of(file, "autoencoder")
    try:
        found = load_file(Path(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"autoencoder={file} is not a readable safetensors file ({error})") from None
    if "W_dec" in found:
        found["decoder.weight"] = found.pop("W_dec").T
    found = {ELEUTHER.get(name, name): tensor for name, tensor in found.items()}
    if missing := [name for name in TENSORS if name not in found]:
        raise UserError(f"autoencoder={file} has no tensor {missing[0]}; it needs {', '.join(TENSORS)}")
    latents = len(found["latent_bias"])
    shapes = [(latents, width), (width, latents), (latents,), (width,)]
    for name, shape in zip(TENSORS, shapes, strict=True):
        if tuple(found[name].shape) != shape:
            raise UserError(f"autoencoder={file}: {name} is {tuple(found[name].shape)}, and the model needs {shape}")
        if not found[name].isfinite().all():
            raise UserError(f"autoencoder={file}: {name} has non-finite values")
    return SparseAutoencoder({name: found[name].contiguous().to(like) for name in TENSORS})
