"""A model's parameters by name, with the layers that hold them and what those layers do in attention."""

from __future__ import annotations

from dataclasses import dataclass, field

from overpaint.models.lazily import torch

#: Role of an attention projection -> how the name of its layer ends.
ROLES = {"key": "to_k", "value": "to_v", "query": "to_q", "out": "to_out.0"}


@dataclass(frozen=True)
class Parameter:
    """A parameter, described so that a method can choose by what a layer does and not by how it is called.

    Attributes:
        name: State-dict name.
        module: The layer that holds the parameter.
        attention: ``"cross"`` or ``"self"`` inside an attention layer, ``""`` elsewhere.
        role: ``"key"``, ``"value"``, ``"query"`` or ``"out"`` for the parameters of a projection, ``""`` elsewhere.
        stream: What a projection reads, ``"text"`` or ``"image"``; ``""`` elsewhere.
    """

    name: str
    module: torch.nn.Module
    attention: str = ""
    role: str = ""
    stream: str = ""

    @property
    def is_weight(self) -> bool:
        """Whether this is a layer's weight, not its bias."""
        return self.name.endswith(".weight")


@dataclass(frozen=True)
class Projection:
    """An attention projection: ``name`` is the state-dict name of its ``weight`` (out, in), ``stream`` what it reads."""

    name: str
    role: str
    module: torch.nn.Linear
    stream: str = "text"

    @property
    def weight(self) -> torch.Tensor:
        """W (out, in)."""
        return self.module.weight.data


@dataclass(frozen=True)
class TextLayer(Projection):
    """The second projection of the MLP in a text-encoder ``block``, which writes to the residual stream."""

    block: torch.nn.Module = field(kw_only=True)


def owners(part: torch.nn.Module) -> dict[str, tuple[torch.nn.Module, str]]:
    """Every parameter of a network by its name: the module that holds it and the attribute's name there."""
    found = {}
    for path, module in part.named_modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                found[f"{path}.{leaf}" if path else leaf] = (module, leaf)
    return found
