"""What fine-tuning erasers share: the choice of parameters, the student, and the loop around a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from overpaint.blocks.draws import Draws, trace_values
from overpaint.errors import UserError
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Replacement
from overpaint.run.progress import steps

#: Whether a parameter is trained: told by its state-dict name and the layer that holds it.
Rule = Callable[[str, torch.nn.Module], bool]

#: What a loss is multiplied by in float16, whose smallest number is 6e-8: at latents of Stable Diffusion's size half of the
#: gradients on the way back lie below it. A power of two, so that nothing else is rounded.
LOSS_SCALE = 2.0**14


def parameter_group(model: DiffusionModel, rule: Rule, part: Sequence[str] | None = None) -> list[str]:
    """Names that a rule picks from a part of the model (``None``: the denoiser), in its order; none is an error."""
    owners = model.parameter_owners()
    names = [name for name in (model.denoiser_names if part is None else part) if rule(name, owners[name][0])]
    if not names:
        raise UserError("this group of parameters is empty on this model: nothing would be trained")
    return names


class Student:
    """Trained copies of a few of a model's parameters; the rest is the model's own, so memory is that of the copies.

    Masters are at least float32: Adam's small updates are lost in half precision weights.
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
        """What the model computes in."""
        return precision(self._places)

    @contextmanager
    def active(self) -> Iterator[None]:
        """The model computes with the student's parameters inside the block, and gradients reach them."""
        plain = {name: module._parameters[leaf] for name, (module, leaf) in self._places.items()}
        try:
            for name, (module, leaf) in self._places.items():
                module._parameters[leaf] = self.masters[name].to(plain[name].dtype)
            yield
        finally:
            for name, (module, leaf) in self._places.items():
                module._parameters[leaf] = plain[name]

    def changes(self) -> dict[str, Replacement]:
        """What was trained, in the model's own precision."""
        return {
            name: Replacement(self.masters[name].detach().to(getattr(module, leaf).dtype).clone())
            for name, (module, leaf) in self._places.items()
        }


class LowRankStudent:
    """A trained low-rank change W + up·down of a few weight matrices (LoRA): up (out, r) zero, down (r, in) drawn.

    ``starts`` (the matrices to change, by name; ``None``: the model's own) lets a stage begin where another one ended.
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
        """What the model computes in."""
        return precision(self._places)

    def weight(self, name: str) -> torch.Tensor:
        """W + up·down (out, in), differentiable in both factors."""
        start = self.starts[name]
        return start + (self.masters[f"{name}:up"] @ self.masters[f"{name}:down"]).to(start.dtype)

    @contextmanager
    def active(self) -> Iterator[None]:
        """The model computes with the changed matrices inside the block, and gradients reach the factors."""
        plain = {name: module._parameters[leaf] for name, (module, leaf) in self._places.items()}
        try:
            for name, (module, leaf) in self._places.items():
                module._parameters[leaf] = self.weight(name)
            yield
        finally:
            for name, (module, leaf) in self._places.items():
                module._parameters[leaf] = plain[name]


def precision(places: Mapping[str, tuple[torch.nn.Module, str]]) -> torch.dtype:
    """The type of the parameters at these places."""
    return next(getattr(*place).dtype for place in places.values())


def train(
    student: Student | LowRankStudent,
    optimizer: torch.optim.Optimizer,
    iterations: int,
    loss: Callable[[], torch.Tensor],
    what: str = "iterations",
    adjust: Callable[[], None] | None = None,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> None:
    """``iterations`` times: draw and compute the loss, backward, one optimiser step. Progress is announced.

    ``adjust`` works on the gradients before the step (a mask, clipping); ``schedule`` moves the learning rate after it.
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
            if schedule:
                schedule.step()


def backward(loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter], kind: torch.dtype) -> None:
    """``loss.backward()`` for parameters without gradients, of a network that computes in ``kind``."""
    if kind != torch.float16:
        loss.backward()
        return
    for parameter, gradient in zip(parameters, gradients(loss, parameters, kind)):
        parameter.grad = gradient


def gradients(
    loss: torch.Tensor, parameters: Sequence[torch.Tensor], kind: torch.dtype, retain_graph: bool = False
) -> list[torch.Tensor | None]:
    """∂loss/∂p for each parameter, ``None`` where it has no part in the loss.

    In float16 they are those of a multiple of the loss, divided by it: `LOSS_SCALE`, or less where that overflows.
    """
    scale = LOSS_SCALE if kind == torch.float16 else 1.0
    while scale > 1:
        found = torch.autograd.grad(loss * scale, parameters, retain_graph=True, allow_unused=True)
        if all(gradient is None or gradient.isfinite().all() for gradient in found):
            return [None if gradient is None else gradient / scale for gradient in found]
        scale /= 4
    return list(torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True))
