"""Shared parts of fine-tuning erasers: choosing parameters, training copies of them, and the training loop.

`Trainable` is the protocol between the loop and what it trains. `Student` and `LowRankStudent` implement it here;
`overpaint.blocks.adapters.Branches` and the adapters of individual methods implement it elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeAlias

from overpaint.blocks.draws import Draws, trace_values
from overpaint.errors import UserError
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Replacement
from overpaint.models.lazily import torch
from overpaint.models.parameters import Parameter
from overpaint.run.progress import steps

#: Decides whether to train a parameter.
Rule = Callable[[Parameter], bool]

#: Loss scale for float16, whose smallest positive number is 6e-8: with Stable Diffusion's latent size, half of the
#: gradients in the backward pass are smaller than that. A power of two, so scaling does not round anything else.
LOSS_SCALE = 2.0**14

#: The groups of parameters of ESD's first code and of the methods that derive from it, by their names there.
COMPVIS_GROUPS: dict[str, Rule] = {
    "xattn": lambda p: p.attention == "cross",
    "noxattn": lambda p: p.attention != "cross" and not _outside(p.name),
    "selfattn": lambda p: p.attention == "self",
    "notime": lambda p: not _outside(p.name),
    "full": lambda p: True,
}


def _outside(name: str) -> bool:
    """Whether these codes exclude the parameter: it is in the time embedding or the output block."""
    return name.startswith(("time_embedding.", "conv_norm_out.", "conv_out."))


#: A parameter's place in a model: the module that holds it and its attribute there.
Place: TypeAlias = "tuple[torch.nn.Module, str]"


class Trainable(Protocol):
    """What `train` optimises: copies of weights, low-rank factors, or an adapter beside the weights."""

    @property
    def masters(self) -> Mapping[str, torch.Tensor]:
        """The trained parameters by name, in float32 or float64: half precision would lose Adam's small updates."""

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the model computes in; float16 needs loss scaling."""

    def active(self) -> AbstractContextManager[Any]:
        """Inside the block the model computes with ``masters``, and gradients reach them."""


def parameter_group(model: DiffusionModel, rule: Rule, part: Sequence[str] | None = None) -> list[str]:
    """Names of the parameters that ``rule`` selects, in the order of ``part`` (``None``: the denoiser's parameters).

    Raises:
        UserError: the rule selects nothing.
    """
    names = [p.name for p in model.parameters(model.denoiser_names if part is None else part) if rule(p)]
    if not names:
        raise UserError("this group of parameters is empty on this model: nothing would be trained")
    return names


def student_of(
    model: DiffusionModel, train: str, groups: Mapping[str, Rule], texts: Iterable[str], kept: Iterable[str]
) -> tuple[Student, dict[str, torch.Tensor]]:
    """The student of one of the ``groups`` of the denoiser's parameters, or, for ``train=embedding``, of the token tables.

    Of a token table, the tokens of ``texts`` that ``kept`` lacks learn: its mask (vocabulary,) is returned by its name.

    Raises:
        UserError: nothing would be trained.
    """
    if train != "embedding":
        return Student(model, parameter_group(model, groups[train])), {}
    pieces, others = ({piece for text in some for piece in model.token_ids(text)[1:-1]} for some in (texts, kept))
    if not pieces - others:
        raise UserError("train=embedding has nothing to train: the anchors contain all words of the concepts")
    student = Student(model, [name for name in model.text_encoder_names if name.endswith("token_embedding.weight")])
    rows = {}
    for name, master in student.masters.items():
        rows[name] = torch.zeros(len(master), dtype=torch.bool)
        rows[name][sorted(pieces - others)] = True
    return student, rows


@contextmanager
def swapped(places: Mapping[str, Place], parameters: Callable[[str], torch.Tensor]) -> Iterator[None]:
    """The model computes with ``parameters(name)`` at these places inside the block, in the places' own precision."""
    plain = {name: getattr(module, leaf) for name, (module, leaf) in places.items()}
    try:
        for name, (module, leaf) in places.items():
            # torch computes with any tensor here; its stubs expect a parameter
            module._parameters[leaf] = parameters(name).to(plain[name].dtype)  # type: ignore[assignment]
        yield
    finally:
        for name, (module, leaf) in places.items():
            module._parameters[leaf] = plain[name]


class Student:
    """Trained copies of some of a model's parameters; everything else is shared with the model.

    Masters are at least float32, since Adam's small updates are lost in half-precision weights.
    """

    def __init__(self, model: DiffusionModel, names: Sequence[str]):
        owners = model.parameter_owners()
        self._places = {name: owners[name] for name in names}
        self.masters: dict[str, torch.nn.Parameter] = {}
        for name, (module, leaf) in self._places.items():
            plain = getattr(module, leaf).detach()
            kind = torch.promote_types(plain.dtype, torch.float32)
            self.masters[name] = torch.nn.Parameter(plain.clone().to(kind))

    @property
    def dtype(self) -> torch.dtype:
        return precision(self._places)

    def active(self) -> AbstractContextManager[None]:
        return swapped(self._places, self.masters.__getitem__)

    def changes(self) -> dict[str, Replacement]:
        """The trained parameters, in the model's precision."""
        return {
            name: Replacement(self.masters[name].detach().to(getattr(module, leaf).dtype).clone())
            for name, (module, leaf) in self._places.items()
        }


class LowRankStudent:
    """A trained low-rank change W + up·down of some weight matrices (LoRA, Hu et al., arXiv 2106.09685).

    ``up`` (out, rank) starts at zero; ``down`` (rank, in) is drawn from N(0, 1/rank²). ``starts`` maps names to the
    matrices W to start from (``None``: the model's own), so that one training stage can continue another.
    """

    def __init__(
        self,
        model: DiffusionModel,
        names: Sequence[str],
        rank: int,
        draws: Draws,
        starts: Mapping[str, torch.Tensor] | None = None,
    ):
        owners = model.parameter_owners()
        self._places = {name: owners[name] for name in names}
        self.starts = {name: (starts or {}).get(name, getattr(*place).detach()) for name, place in self._places.items()}
        self.masters: dict[str, torch.nn.Parameter] = {}
        for name, start in self.starts.items():
            like = start.detach().float() if start.dtype != torch.float64 else start
            down = draws.noise(f"{name}:down", (rank, start.shape[1]), like) / rank
            self.masters[f"{name}:up"] = torch.nn.Parameter(like.new_zeros(start.shape[0], rank))
            self.masters[f"{name}:down"] = torch.nn.Parameter(down)

    @property
    def dtype(self) -> torch.dtype:
        return precision(self._places)

    def weight(self, name: str) -> torch.Tensor:
        """W + up·down (out, in), differentiable in both factors."""
        start = self.starts[name]
        return start + (self.masters[f"{name}:up"] @ self.masters[f"{name}:down"]).to(start.dtype)

    def active(self) -> AbstractContextManager[None]:
        return swapped(self._places, self.weight)


def precision(places: Mapping[str, Place]) -> torch.dtype:
    """The dtype of the parameters at these places."""
    return next(getattr(*place).dtype for place in places.values())


def train(
    student: Trainable,
    optimizer: torch.optim.Optimizer,
    iterations: int,
    loss: Callable[[], torch.Tensor],
    what: str = "iterations",
    adjust: Callable[[], object] | None = None,
    after: Callable[[], object] | None = None,
) -> None:
    """Run ``iterations`` optimiser steps on ``loss()``, which draws its own batch, and announce progress.

    ``adjust`` changes the gradients before each step (masking, clipping). ``after`` is called after each step (a schedule of the
    learning rate, a moving average). ``what`` names the steps in progress messages.
    """
    with torch.enable_grad():
        for _ in steps(iterations, what):
            optimizer.zero_grad(set_to_none=True)
            value = loss()
            backward(value, list(student.masters.values()), student.dtype)
            trace_values(loss=value.detach(), gradients={name: p.grad for name, p in student.masters.items()})
            if adjust:
                adjust()
            optimizer.step()
            if after:
                after()


def gradient_of(parameter: torch.Tensor) -> torch.Tensor:
    """The gradient that `backward` left on a parameter, for ``adjust`` to change in place."""
    if parameter.grad is None:
        raise RuntimeError("the loss does not depend on the parameter")
    return parameter.grad


def backward(loss: torch.Tensor, parameters: Sequence[torch.Tensor], kind: torch.dtype) -> None:
    """``loss.backward()``, with loss scaling if ``kind``, the network's precision, is float16.

    The parameters must not hold gradients yet: in float16 they are set, not accumulated.
    """
    if kind != torch.float16:
        loss.backward()
        return
    for parameter, gradient in zip(parameters, gradients(loss, parameters, kind), strict=True):
        parameter.grad = gradient


def gradient(
    loss: torch.Tensor, parameter: torch.Tensor, kind: torch.dtype, retain_graph: bool = False
) -> torch.Tensor:
    """∂loss/∂p for one parameter, on which the loss must depend; see `gradients`."""
    (found,) = gradients(loss, [parameter], kind, retain_graph)
    if found is None:
        raise RuntimeError("the loss does not depend on the parameter")
    return found


def gradients(
    loss: torch.Tensor, parameters: Sequence[torch.Tensor], kind: torch.dtype, retain_graph: bool = False
) -> list[torch.Tensor | None]:
    """∂loss/∂p for each parameter; ``None`` for a parameter that the loss does not depend on.

    If ``kind`` is float16, the loss is multiplied by `LOSS_SCALE` (by less if a gradient overflows) and the gradients
    are divided by it.
    """
    scale = LOSS_SCALE if kind == torch.float16 else 1.0
    while scale > 1:
        found = torch.autograd.grad(loss * scale, parameters, retain_graph=True, allow_unused=True)
        if all(gradient is None or gradient.isfinite().all() for gradient in found):
            return [None if gradient is None else gradient / scale for gradient in found]
        scale /= 4
    return list(torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True))


def mean_square(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The mean squared difference, in at least float32."""
    kind = torch.promote_types(one.dtype, torch.float32)
    return torch.nn.functional.mse_loss(one.to(kind), other.to(kind))
