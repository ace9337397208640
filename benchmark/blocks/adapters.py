"""Low-rank branches beside a network's layers: y = Wx + up m down x, with a separate mixing matrix m for each image.

Forward hooks add the branches to Linear and Conv2d layers; the weights do not change. For an image with m = 0 the
branch is skipped instead of multiplied by zero, so that the network's output is unchanged to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

from overpaint.blocks.training import parameter_group
from overpaint.errors import UserError
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.lazily import functional, torch
from overpaint.models.parameters import Parameter

#: ``LAYER.down`` (rank, in, …) and ``LAYER.up`` (out, rank, …). For a convolution, down has the layer's kernel size and
#: up is 1 × 1.
Factors: TypeAlias = "Mapping[str, torch.Tensor]"


def transformer_layers(model: DiffusionModel) -> list[str]:
    """Names of the Linear and Conv2d layers inside the denoiser's transformers, in state-dict order."""

    def inside(p: Parameter) -> bool:
        layer = isinstance(p.module, torch.nn.Linear | torch.nn.Conv2d)
        return layer and ".attentions." in p.name and p.is_weight

    return [name.removesuffix(".weight") for name in parameter_group(model, inside)]


def fresh_factors(
    model: DiffusionModel, layers: Sequence[str], rank: int, generator: torch.Generator, bound: float = 1.0
) -> dict[str, torch.Tensor]:
    """New factors for each layer, at least in float32: ``up`` is zero, ``down`` uniform in ±``bound``/√fan_in.

    `torch.nn.init.kaiming_uniform_` has the bound 1 with a = √5, and √3 with a = 1. A convolution with fewer channels than
    ``rank`` gets that smaller rank.
    """
    owners, factors = model.parameter_owners(), {}
    for layer in layers:
        weight = getattr(*owners[f"{layer}.weight"]).detach()
        like = weight.new_empty((), dtype=torch.promote_types(weight.dtype, torch.float32))
        own = min(rank, *weight.shape[:2]) if weight.ndim > 2 else rank
        uniform = 2 * torch.rand(own, *weight.shape[1:], generator=generator, dtype=like.dtype) - 1
        factors[f"{layer}.down"] = bound * uniform.to(like) / math.sqrt(weight[0].numel())
        factors[f"{layer}.up"] = like.new_zeros(len(weight), own, *(1,) * (weight.ndim - 2))
    return factors


def side_by_side(adapters: Sequence[Factors]) -> dict[str, torch.Tensor]:
    """The factors of n adapters with the same layers and rank, concatenated along the rank."""
    return {
        name: torch.cat([adapter[name] for adapter in adapters], dim=0 if name.endswith(".down") else 1)
        for name in adapters[0]
    }


def hook_layers(layers: Mapping[str, torch.nn.Module], hook: Callable[..., torch.Tensor]) -> Callable[[], None]:
    """Register ``hook(name, module, inputs, output)`` on the forward of each layer; call the result to remove them."""
    hooks = [layer.register_forward_hook(partial(hook, name)) for name, layer in layers.items()]

    def remove() -> None:
        for handle in hooks:
            handle.remove()

    return remove


def edit_output(layer: torch.nn.Module, edit: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
    """Replace the output x of a layer by ``edit(x)``, also if the layer returns it in a tuple; call the result to undo it.

    The edit precedes hooks that record outputs, such as those with which transformers collects hidden states.
    """

    def replaced(module: torch.nn.Module, inputs: tuple, output: Any) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    return layer.register_forward_hook(replaced, prepend=True).remove


def edit_at_times(
    model: DiffusionModel, layer: torch.nn.Module, edit: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> Callable[[], None]:
    """`edit_output` of a layer of the denoiser with ``edit(x, times)``; times (b,) are those of the rows of x (b, …)."""
    now: list[Any] = [0.0]

    def watch(module: torch.nn.Module, inputs: tuple) -> None:
        now[0] = inputs[1]

    def edited(x: torch.Tensor) -> torch.Tensor:
        return edit(x, torch.as_tensor(now[0], device=x.device).expand(len(x)))

    removes = [model.denoiser.register_forward_pre_hook(watch).remove, edit_output(layer, edited)]

    def remove() -> None:
        for undo in removes:
            undo()

    return remove


class Branches:
    """The branches of n adapters, stacked by `side_by_side`. They add scale · Σ_ij m_ij up_i down_j x to their layers.

    ``scale`` is one number, or one for each layer. Each image has a mixing matrix m (n, n). The identity turns every adapter
    fully on; a diagonal m gives each adapter its own strength. ``masters`` are the factors; they may be trained
    (`overpaint.blocks.training.Trainable`).
    """

    def __init__(
        self, model: DiffusionModel, factors: Factors, adapters: int = 1, scale: float | Mapping[str, float] = 1.0
    ):
        self.masters, self.adapters, self.scale = dict(factors), adapters, scale
        self._mixing: torch.Tensor | None = None  # (images, n, n); None: off
        self._on: torch.Tensor | None = None  # (images,): which images have m ≠ 0; None: all
        self._modules: dict[str, torch.nn.Linear | torch.nn.Conv2d] = {}
        owners = model.parameter_owners()
        for layer in (name.removesuffix(".down") for name in factors if name.endswith(".down")):
            down, up = factors[f"{layer}.down"], factors[f"{layer}.up"]
            module, _ = owners.get(f"{layer}.weight", (None, ""))
            if not isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                raise UserError(f"this adapter does not fit the model: the model has no layer {layer}")
            fits = module.weight.shape == (len(up), *down.shape[1:])
            if not fits or up.shape[1] != len(down) or len(down) % adapters:
                raise UserError(f"this adapter does not fit the model: the model has no layer {layer} of that shape")
            self._modules[layer] = module

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self._modules.values())).weight.dtype

    def mix(self, mixing: float | torch.Tensor) -> None:
        """Set m: (n, n), (images, n, n), or a number as the strength of all adapters on all images.

        A forward's batch may repeat the images, as classifier-free guidance does.
        """
        like = next(iter(self.masters.values()))
        if not isinstance(mixing, torch.Tensor):
            mixing = mixing * torch.eye(self.adapters, dtype=like.dtype)
        mixing = mixing.reshape(-1, self.adapters, self.adapters)
        on = mixing.flatten(1).any(dim=1)
        self._mixing = mixing.to(like) if on.any() else None
        self._on = None if on.all() else on.to(like.device)

    @contextmanager
    def at(self, mixing: float | torch.Tensor) -> Iterator[None]:
        """Use this m inside the block."""
        before = self._mixing, self._on
        try:
            self.mix(mixing)
            yield
        finally:
            self._mixing, self._on = before

    def attach(self) -> Callable[[], None]:
        """Add the branches to their layers; they stay off until `mix` or `at`. Call the result to remove them."""
        return hook_layers(self._modules, self._add)

    @contextmanager
    def active(self, mixing: float | torch.Tensor = 1.0) -> Iterator[None]:
        """Attach the branches with this m inside the block."""
        remove = self.attach()
        try:
            with self.at(mixing):
                yield
        finally:
            remove()

    def _add(self, layer: str, module: Any, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        """The layer's output (rows, …) plus its branch, on the rows of images with m ≠ 0."""
        if self._mixing is None:
            return output
        (x,) = inputs
        down, up = (self.masters[f"{layer}.{side}"].to(x.dtype) for side in ("down", "up"))
        repeats = len(x) // len(self._mixing)
        m = self._mixing.to(x.dtype).repeat(repeats, 1, 1)
        if isinstance(module, torch.nn.Conv2d):
            hidden = functional.conv2d(x, down, None, module.stride, module.padding, module.dilation).movedim(1, -1)
        else:
            hidden = functional.linear(x, down)
        mixed = torch.einsum("bij,b...jr->b...ir", m, hidden.unflatten(-1, (self.adapters, -1))).flatten(-2)
        branch = functional.linear(mixed, up.flatten(1))
        scale = self.scale[layer] if isinstance(self.scale, Mapping) else self.scale
        added = output + scale * (branch.movedim(-1, 1) if isinstance(module, torch.nn.Conv2d) else branch)
        if self._on is None:
            return added
        return torch.where(self._on.repeat(repeats).view(-1, *(1,) * (output.ndim - 1)), added, output)
