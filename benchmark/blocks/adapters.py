"""Low-rank branches beside a network's layers, y = Wx + up m down x, with a mixing m of its own for every image.

They are hooked onto Linear and Conv2d layers and leave the weights alone. Where m is zero the branch is skipped, not
multiplied by zero, so that the network is itself bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch.nn.functional import conv2d, linear

from overpaint.errors import UserError
from overpaint.models.diffusion import DiffusionModel

#: ``LAYER.down`` (rank, in, …) and ``LAYER.up`` (out, rank, …); of a convolution down has its kernel, up is 1 × 1.
Factors = Mapping[str, torch.Tensor]


def fresh_factors(
    model: DiffusionModel, layers: Sequence[str], rank: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """For every layer down uniform within ±1/√fan-in (Kaiming's rule with a = √5) and up zero, in float32 at least."""
    owners, factors = model.parameter_owners(), {}
    for layer in layers:
        weight = getattr(*owners[f"{layer}.weight"]).detach()
        like = weight.new_empty((), dtype=torch.promote_types(weight.dtype, torch.float32))
        uniform = 2 * torch.rand(rank, *weight.shape[1:], generator=generator, dtype=like.dtype) - 1
        factors[f"{layer}.down"] = uniform.to(like) / math.sqrt(weight[0].numel())
        factors[f"{layer}.up"] = like.new_zeros(len(weight), rank, *(1,) * (weight.ndim - 2))
    return factors


def side_by_side(adapters: Sequence[Factors]) -> dict[str, torch.Tensor]:
    """The factors of n adapters of the same layers and rank, stacked along the rank."""
    return {
        name: torch.cat([adapter[name] for adapter in adapters], dim=0 if name.endswith(".down") else 1)
        for name in adapters[0]
    }


class Branches:
    """The branches of n adapters, stacked as by `side_by_side`: they add scale · Σ_ij m_ij up_i down_j x to their layers.

    m (n, n), one an image, is the identity where each adapter acts fully and diagonal where each has a strength.
    ``masters`` are the factors, which may be parameters to train.
    """

    def __init__(self, model: DiffusionModel, factors: Factors, adapters: int = 1, scale: float = 1.0):
        self.masters, self.adapters, self.scale = dict(factors), adapters, scale
        self._mixing: torch.Tensor | None = None  # (images, n, n); None: off
        self._on: torch.Tensor | None = None  # which images have a branch, where not all have
        self._modules: dict[str, torch.nn.Module] = {}
        owners = model.parameter_owners()
        for layer in (name.removesuffix(".down") for name in factors if name.endswith(".down")):
            down, up = factors[f"{layer}.down"], factors[f"{layer}.up"]
            module, _ = owners.get(f"{layer}.weight", (None, ""))
            if module is None or module.weight.shape != (len(up), *down.shape[1:]):
                raise UserError(f"this adapter does not fit the model: it has a branch at {layer}")
            self._modules[layer] = module

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return next(iter(self._modules.values())).weight.dtype

    def mix(self, mixing: float | torch.Tensor) -> None:
        """Set m, (n, n) or (images, n, n), or one strength for all. A batch may stack its images several times."""
        like = next(iter(self.masters.values()))
        if not isinstance(mixing, torch.Tensor):
            mixing = mixing * torch.eye(self.adapters, dtype=like.dtype)
        mixing = mixing.reshape(-1, self.adapters, self.adapters)
        on = mixing.flatten(1).any(dim=1)
        self._mixing = mixing.to(like) if on.any() else None
        self._on = None if on.all() else on.to(like.device)

    @contextmanager
    def at(self, mixing: float | torch.Tensor) -> Iterator[None]:
        """Another m inside the block."""
        before = self._mixing, self._on
        try:
            self.mix(mixing)
            yield
        finally:
            self._mixing, self._on = before

    def attach(self) -> Callable[[], None]:
        """Hook the branches onto their layers, off until they are mixed; the returned function takes them away."""
        hooks = [module.register_forward_hook(partial(self._add, layer)) for layer, module in self._modules.items()]

        def remove() -> None:
            for hook in hooks:
                hook.remove()

        return remove

    @contextmanager
    def active(self, mixing: float | torch.Tensor = 1.0) -> Iterator[None]:
        """The model computes with the branches inside the block, and gradients reach the factors."""
        remove = self.attach()
        try:
            with self.at(mixing):
                yield
        finally:
            remove()

    def _add(self, layer: str, module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        """What a layer makes of its input (rows, …), with what its branch adds."""
        if self._mixing is None:
            return output
        (x,) = inputs
        down, up = (self.masters[f"{layer}.{side}"].to(x.dtype) for side in ("down", "up"))
        repeats = len(x) // len(self._mixing)
        m = self._mixing.to(x.dtype).repeat(repeats, 1, 1)
        convolution = isinstance(module, torch.nn.Conv2d)
        if convolution:
            hidden = conv2d(x, down, None, module.stride, module.padding, module.dilation).movedim(1, -1)
        else:
            hidden = linear(x, down)
        mixed = torch.einsum("bij,b...jr->b...ir", m, hidden.unflatten(-1, (self.adapters, -1))).flatten(-2)
        branch = linear(mixed, up.flatten(1))
        added = output + self.scale * (branch.movedim(-1, 1) if convolution else branch)
        if self._on is None:
            return added
        return torch.where(self._on.repeat(repeats).view(-1, *(1,) * (output.ndim - 1)), added, output)
