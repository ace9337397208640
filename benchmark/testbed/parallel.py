"""Training on a few CPU cores: single-thread workers that share one set of parameters.

Each worker computes the gradients of its part of the batch in bfloat16. The workers then split the AdamW update of the
float32 master copy between them. On a busy machine, several single-threaded processes lose less time than one process
with several threads."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi
from multiprocessing import parent_process
from pathlib import Path
from typing import TypeVar

import torch
import torch.multiprocessing as multiprocessing
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a training run: a warm-up and a cosine decay, both counted in images."""

    images: int
    batch: int  # summed over all workers
    peak: float
    ema: float
    weight_decay: float = 0.01
    warm_up_steps: int = 100
    final: float = 0.02  # final learning rate as a fraction of the peak
    save_every: int = 500  # steps
    stop: int | None = None  # number of images after which to stop before the end of the cosine

    @property
    def steps(self) -> int:
        return (self.stop or self.images) // self.batch

    def rate(self, step: int) -> float:
        progress = min(1.0, step * self.batch / self.images)
        cosine = self.final + (1 - self.final) * 0.5 * (1 + cos(pi * progress))
        return self.peak * min(1.0, (step + 1) / self.warm_up_steps) * cosine

    def ema_at(self, step: int) -> float:
        return min(self.ema, (1 + step) / (10 + step))


class SharedParameters:
    """The flat parameters of a module in shared memory: bfloat16 working copy, float32 master, moments and EMA."""

    def __init__(self, module: nn.Module, workers: int):
        flat = nn.utils.parameters_to_vector(module.parameters()).detach().float()
        self.workers = workers
        self.master = flat.clone().share_memory_()
        self.ema = flat.clone().share_memory_()
        self.first = torch.zeros_like(flat).share_memory_()
        self.second = torch.zeros_like(flat).share_memory_()
        self.working = flat.bfloat16().share_memory_()
        self.gradients = torch.zeros(workers, flat.numel(), dtype=torch.bfloat16).share_memory_()
        self.squares = torch.zeros(workers).share_memory_()
        self.losses = torch.zeros(workers).share_memory_()
        self.barrier = multiprocessing.get_context("spawn").Barrier(workers)

    def bind(self, module: nn.Module, rank: int) -> None:
        """Make the module's parameters and gradients views of the shared buffers."""
        offset = 0
        for parameter in module.parameters():
            span = slice(offset, offset + parameter.numel())
            parameter.data = self.working[span].view(parameter.shape)
            parameter.grad = self.gradients[rank, span].view(parameter.shape)
            offset += parameter.numel()
        for name, buffer in module.named_buffers():
            if buffer.is_floating_point():
                raise TypeError(f"floating-point buffer {name} would not be shared between workers")

    def copy_to(self, module: nn.Module, source: Tensor) -> None:
        """Write one of the flat float32 copies into an ordinary float32 module."""
        nn.utils.vector_to_parameters(source.clone(), module.parameters())

    def update(self, rank: int, step: int, schedule: Schedule, scale: Tensor, betas=(0.9, 0.99), clip=1.0) -> None:
        """Do one AdamW step. Worker `rank` updates its own share. `scale` is a learning-rate factor per parameter."""
        self.barrier.wait()
        share = (self.master.numel() + self.workers - 1) // self.workers
        span = slice(rank * share, min((rank + 1) * share, self.master.numel()))
        gradient = self.gradients[:, span].float().mean(0)
        self.squares[rank] = gradient.square().sum()
        self.barrier.wait()
        gradient *= min(1.0, clip / (float(self.squares.sum()) ** 0.5 + 1e-6))
        first, second, master = self.first[span], self.second[span], self.master[span]
        first.lerp_(gradient, 1 - betas[0])
        second.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
        rate = schedule.rate(step) * scale[span]
        corrected = (second / (1 - betas[1] ** (step + 1))).sqrt_().add_(1e-8)
        master.mul_(1 - schedule.weight_decay * rate)
        master.sub_(rate * first / (1 - betas[0] ** (step + 1)) / corrected)
        self.ema[span].lerp_(master, 1 - schedule.ema_at(step))
        self.working[span].copy_(master)
        self.gradients[rank].zero_()
        self.barrier.wait()

    def save(self, path: Path, step: int) -> None:
        state = {name: getattr(self, name) for name in ("master", "ema", "first", "second")}
        temporary = path.with_suffix(".partial")
        save_file({k: v.clone() for k, v in state.items()}, temporary, {"step": str(step)})
        os.replace(temporary, path)

    def load(self, path: Path) -> int:
        """Restore a checkpoint and return the number of steps at which it was saved."""
        with safe_open(path, "pt") as file:
            for name in ("master", "ema", "first", "second"):
                getattr(self, name).copy_(file.get_tensor(name))
            step = int(file.metadata()["step"])
        self.working.copy_(self.master)
        return step


Loss = Callable[[torch.Generator, int], Tensor]
Network = TypeVar("Network", bound=nn.Module)


def set_rate_factor(module: nn.Module, factor: float) -> None:
    """Make `train` multiply the learning rate of the module's parameters by `factor`."""
    for parameter in module.parameters():
        parameter.rate_factor = factor  # type: ignore[attr-defined]  # torch's stubs allow no attributes on tensors


def train(build: Callable[[], Network], start: Callable[..., Loss], schedule: Schedule, folder: Path, name: str,
          workers: int = 2, seed: int = 0, initial: dict[str, Tensor] | None = None, **inputs) -> Network:  # fmt: skip
    """Train the network `build()` and return it with its EMA weights, in float32.

    `initial` gives parameters to start from. `start(module, **inputs)` runs in every worker and returns
    `loss(generator, count)`; both must be importable. An interrupted run continues from `folder/name.safetensors`.
    """
    torch.manual_seed(seed)
    module = build()
    if initial:
        module.load_state_dict(initial, strict=False)
    shared = SharedParameters(module, workers)
    checkpoint = folder / f"{name}.safetensors"
    done = shared.load(checkpoint) if checkpoint.exists() else 0
    if done < schedule.steps:
        arguments = (shared, build, start, schedule, folder, name, done, seed, inputs)
        spawn(_work, arguments, nprocs=workers)
    shared.copy_to(module, shared.ema)
    return module.eval()


def _work(rank, shared, build, start, schedule, folder, name, done, seed, inputs) -> None:
    torch.set_num_threads(1)
    module = build().bfloat16()
    scale = torch.cat([torch.full((p.numel(),), getattr(p, "rate_factor", 1.0)) for p in module.parameters()])
    shared.bind(module, rank)
    loss_of = start(module, **inputs)
    generator, parent = torch.Generator(), parent_process()
    began, losses = time.time(), []
    for step in range(done, schedule.steps):
        if parent is not None and not parent.is_alive():
            shared.barrier.abort()  # the other workers would wait for this one
            return
        generator.manual_seed((seed * 1_000_003 + step) * shared.workers + rank)
        loss = loss_of(generator, schedule.batch // shared.workers)
        loss.backward()
        shared.losses[rank] = loss.detach()
        shared.update(rank, step, schedule, scale)
        losses.append(float(shared.losses.mean()))
        if rank == 0 and ((step + 1) % 50 == 0 or step + 1 == schedule.steps):
            speed = (step + 1 - done) * schedule.batch / (time.time() - began)
            line = {"stage": name, "step": step + 1, "images": (step + 1) * schedule.batch,
                    "loss": round(sum(losses) / len(losses), 5), "rate": round(schedule.rate(step), 7),
                    "images_per_second": round(speed, 1), "seconds": round(time.time() - began, 1)}  # fmt: skip
            losses.clear()
            print(json.dumps(line), flush=True)
            with open(folder / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
        if rank == 0 and ((step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps):
            shared.save(folder / f"{name}.safetensors", step + 1)
        shared.barrier.wait()
