"""A denoiser that is compiled for sampling, without computations that a sampler repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def compiled_denoiser(
    denoiser: torch.nn.Module, of_the_text: Sequence[str] = (), before_the_text: Sequence[str] = ()
) -> Iterator[Callable[..., Any]]:
    """``torch.compile(denoiser)`` inside the block, called like the denoiser. Weights must not change inside the block.

    Args:
        denoiser: A network (latents, timesteps, encoder_hidden_states=text).
        of_the_text: Names of layers that read the text alone, the keys and values of cross-attention. Their outputs are
            computed once for each text instead of at every step.
        before_the_text: Names of layers that no text reaches. Under classifier-free guidance a batch holds each latent
            twice, and these layers compute it once.
    """
    known = {name: _Known(denoiser.get_submodule(name)) for name in of_the_text}
    halved = {name: _Halved(denoiser.get_submodule(name)) for name in before_the_text}
    with _replaced(denoiser, {**known, **halved}):
        yield _Compiled(torch.compile(denoiser), list(known.values()), list(halved.values()))


@contextmanager
def _replaced(network: torch.nn.Module, stand_ins: Mapping[str, torch.nn.Module]) -> Iterator[None]:
    """The network has these submodules in place of its own inside the block."""
    own = {name: network.get_submodule(name) for name in stand_ins}
    try:
        for name, stand_in in stand_ins.items():
            network.set_submodule(name, stand_in)
        yield
    finally:
        for name, layer in own.items():
            network.set_submodule(name, layer)


class _Known(torch.nn.Module):
    """A layer whose output is computed ahead."""

    def __init__(self, layer: torch.nn.Module):
        super().__init__()
        self.own = (layer,)  # not a submodule: the network calls it no more
        self.output: torch.Tensor | None = None

    def read(self, inputs: torch.Tensor) -> None:
        """Compute the output that all calls give from now on."""
        self.output = self.own[0](inputs)

    def forward(self, _: torch.Tensor) -> torch.Tensor | None:
        return self.output


class _Halved(torch.nn.Module):
    """A layer that computes the first half of a batch, and gives the second half the same outputs, if ``twice``."""

    def __init__(self, layer: torch.nn.Module):
        super().__init__()
        self.layer, self.twice = layer, False

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> Any:
        if not self.twice:
            return self.layer(*inputs, **named)
        halves = {name: tensor[: len(tensor) // 2] for name, tensor in named.items()}
        return _doubled(self.layer(*(tensor[: len(tensor) // 2] for tensor in inputs), **halves))


def _doubled(outputs: Any) -> Any:
    return torch.cat([outputs] * 2) if isinstance(outputs, torch.Tensor) else tuple(map(_doubled, outputs))


class _Compiled:
    def __init__(self, network: Callable[..., Any], known: Sequence[_Known], halved: Sequence[_Halved]):
        self.network, self.known, self.halved = network, known, halved
        self.text: torch.Tensor | None = None

    def __call__(
        self, latents: torch.Tensor, timesteps: Any, *, encoder_hidden_states: torch.Tensor, **more: Any
    ) -> Any:
        if self.text is None or not torch.equal(self.text, encoder_hidden_states):
            for known in self.known:
                known.read(encoder_hidden_states)
            self.text = encoder_hidden_states.clone()
        one_time = not isinstance(timesteps, torch.Tensor) or timesteps.ndim == 0
        twice = one_time and len(latents) % 2 == 0 and torch.equal(*latents.chunk(2))
        for half in self.halved:
            half.twice = twice
        return self.network(latents, timesteps, encoder_hidden_states=encoder_hidden_states, **more)
