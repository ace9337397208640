"""Probes: sampling with the victim away from its usual trajectory. Nothing is learned or searched.

Completion: the unedited model does the first steps from noise to image, the victim does the rest ("Unlearning or
Concealment? A Critical Analysis and Evaluation Metrics for Unlearning in Diffusion Models", arXiv 2409.05668; "When are
concepts erased from diffusion models?", arXiv 2505.17013). For a fraction f and T timesteps

    t ≥ round(T − T f)   x ← step(x, t, unedited guidance)          below it   x ← step(x, t, victim's guidance)

The first repository uses PNDM. Its second pipeline restarts the multi-step method, so that noise level and timestep are
one step apart from there on. It sets DDIM's η = 1, which PNDM ignores; under DDIM both parts would draw the same noise.
It reads f = 0 as "no fraction": both models sample all steps, one after the other. ``compat: official`` does all this.
``intended`` passes the scheduler's state on to the victim and has one source of noise for both models; f = 0 is the
victim and f = 1 the unedited model.

Noise probe (arXiv 2505.17013): stochastic DDIM with η ≥ 1 times its own noise σ_t, and the added noise scaled by v ≥ 1
again. If η σ_t exceeds the noise that x_{t−1} should have, the released code uses the absolute value:

    x_{t−1} = √ᾱ_{t−1} x̂_0 + √|1 − ᾱ_{t−1} − η² σ_t²| e + v η σ_t z                                 z ~ N(0, I)

For v = 1 and η² σ_t² ≤ 1 − ᾱ_{t−1} the noise level is therefore correct for every η; η = 0 is DDIM.

The model that does a step also encodes the text and composes the prediction, with the victim's own text encoder and
guards.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar, Literal

from overpaint.attacks.attack import Assault, Attack, AttackContext, Ledger, Painted
from overpaint.attacks.prompt_lists import attacked
from overpaint.blocks.draws import Draws
from overpaint.errors import UserError, at_least
from overpaint.grid.prompts import Shot
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.guidance import Guidance
from overpaint.models.lazily import torch
from overpaint.run.progress import steps

#: Images in one batch.
IMAGES_AT_ONCE = 8


@dataclass(kw_only=True)
class Probe(Attack):
    """What the probes share: each plain image is generated several times, in a different way each time."""

    steps: int | None

    needs: ClassVar[str] = "victim"
    paints: ClassVar[bool] = True
    worded: ClassVar[bool] = False
    lengths: ClassVar[tuple[str, ...]] = ("steps",)

    def __post_init__(self):
        if self.steps is not None:
            at_least(1, steps=self.steps)

    @abstractmethod
    def latents(self, context: AttackContext, shots: Sequence[Shot]) -> Iterator[tuple[str, torch.Tensor]]:
        """For every way its name and the final latents (n, c, h, w) of the shots."""

    def run(self, context: AttackContext) -> Assault:
        ledger, parts = Ledger(), batches(context.shots)
        painted: list[Painted] = []
        with ledger.counting(context.victim), torch.no_grad():
            for number in steps(len(parts), "batches"):
                for draw, (variant, latents) in enumerate(self.latents(context, parts[number])):
                    images = context.victim.to_images(latents)
                    made = [attacked(shot, shot.prompt.text, context.concept, variant) for shot in parts[number]]
                    for shot, image, verdict in zip(made, images, context.verdicts(images), strict=True):
                        painted.append(Painted(replace(shot, draw=draw), image, verdict))
        ledger.images = len(painted)
        return Assault([p.shot for p in painted], ledger=ledger, painted=painted)

    def guidance(self, model: DiffusionModel, context: AttackContext, shots: Sequence[Shot]) -> Guidance:
        """The guidance of the model, in its present state, for these shots."""
        texts = [shot.prompt.text for shot in shots]
        scale = shots[0].prompt.guidance or context.protocol["guidance_scale"]
        embeds = model.encode(texts, truncate=True)
        return model.guidance(model, embeds, model.unconditional().expand_as(embeds), scale, texts)

    def schedule(self, context: AttackContext, name: str):
        """A new scheduler with its timesteps set."""
        return context.victim.scheduler(name, self.steps or context.protocol["steps"])


@dataclass(kw_only=True)
class Completion(Probe):
    """Hyper-parameters; ``conf/attack/completion.yaml`` says what each means."""

    fractions: list[float]
    scheduler: str | None
    eta: float
    compat: Literal["intended", "official"]

    enters_by: ClassVar[str] = "image"
    draws: ClassVar[bool] = False
    combined: ClassVar[tuple[str, ...]] = ("fractions",)

    def __post_init__(self):
        if not self.fractions or not all(0 <= f <= 1 for f in self.fractions):
            raise UserError(f"fractions takes numbers from 0 to 1, got {self.fractions!r}")
        if len(set(self.fractions)) < len(self.fractions):
            raise UserError(f"fractions takes each number once, got {self.fractions!r}")
        at_least(0, eta=self.eta)
        super().__post_init__()

    @property
    def images(self) -> int:
        return len(self.fractions)

    def latents(self, context: AttackContext, shots: Sequence[Shot]) -> Iterator[tuple[str, torch.Tensor]]:
        victim, seeds = context.victim, [shot.noise_seed for shot in shots]
        name = self.scheduler or context.protocol["scheduler"]
        if self.eta and name != "ddim":
            raise UserError(f"attack.eta={self.eta} needs attack.scheduler=ddim, got {name}")
        schedule = self.schedule(context, name)
        start = victim.noise(seeds, context.protocol["size"])
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = step_noise(generators, len(schedule.timesteps), start) if self.eta else None
        cuts = {f: self.cut(f, schedule.timesteps, victim.train_timesteps) for f in self.fractions}
        with context.unedited() as model:
            halves = self.halves(
                self.guidance(model, context, shots), schedule, start, {stop for stop, _ in cuts.values()}, noise
            )
        for fraction, (stop, begin) in cuts.items():
            half, handed = halves[stop]
            if self.compat == "official":
                handed = self.schedule(context, name)
                own = noise  # from the first step on
            else:
                handed = deepcopy(handed)
                own = None if noise is None else noise[begin:]
            guidance = self.guidance(victim, context, shots)
            yield f"fraction {fraction:g}", walk(guidance, handed, half, begin, None, self.eta, own)

    def cut(self, fraction: float, timesteps: torch.Tensor, total: int) -> tuple[int, int]:
        """The number of steps that the unedited model does, and the step at which the victim begins."""
        before = int((timesteps >= round(total - total * fraction)).sum())
        return (len(timesteps), 0) if self.compat == "official" and not fraction else (before, before)

    def halves(self, guidance: Guidance, schedule, start: torch.Tensor, stops: set[int], noise) -> dict:
        """The unedited model's latents after each of ``stops`` steps, with a copy of the scheduler at that point."""
        found, done, latents = {}, 0, start * schedule.init_noise_sigma
        for stop in sorted(stops):
            latents = walk(guidance, schedule, latents, done, stop, self.eta, None if noise is None else noise[done:])
            found[stop], done = (latents, deepcopy(schedule)), stop
        return found


@dataclass(kw_only=True)
class NoiseProbe(Probe):
    """Hyper-parameters; ``conf/attack/noise_probe.yaml`` says what each means."""

    etas: list[float]
    variance_scales: list[float]

    version: ClassVar[int] = 2
    combined: ClassVar[tuple[str, ...]] = ("etas", "variance_scales")

    def __post_init__(self):
        for name, values in (("etas", self.etas), ("variance_scales", self.variance_scales)):
            if not values or len(set(values)) < len(values):
                raise UserError(f"{name} takes numbers, each once, got {values!r}")
            at_least(0, **{name: min(values)})
        super().__post_init__()

    @property
    def images(self) -> int:
        return len(self.etas) * len(self.variance_scales)

    def latents(self, context: AttackContext, shots: Sequence[Shot]) -> Iterator[tuple[str, torch.Tensor]]:
        """Every pair of η and v from the plain images' start noise, each with step noise of its own."""
        victim = context.victim
        start = victim.noise([shot.noise_seed for shot in shots], context.protocol["size"])
        for eta, scale in product(self.etas, self.variance_scales):
            schedule, guidance = self.schedule(context, "ddim"), self.guidance(victim, context, shots)
            variant = f"eta {eta:g}, noise {scale:g}"
            sources = [Draws.of(self.seed, shot.prompt.noise, shot.index, variant).generator for shot in shots]
            noise, latents = step_noise(sources, len(schedule.timesteps), start), start
            for number, t in enumerate(schedule.timesteps):
                predicted = guidance(latents, t, number)
                latents = victim.stochastic_step(schedule, predicted, t, latents, eta, scale * noise[number])
            yield variant, latents


def batches(shots: Sequence[Shot]) -> list[list[Shot]]:
    """The shots in batches of at most `IMAGES_AT_ONCE` that share a guidance scale."""
    alike: dict[float | None, list[Shot]] = {}
    for shot in shots:
        alike.setdefault(shot.prompt.guidance, []).append(shot)
    return [part[i : i + IMAGES_AT_ONCE] for part in alike.values() for i in range(0, len(part), IMAGES_AT_ONCE)]


def repainted(
    context: AttackContext, variant: str, draw: int = 0, readings: Mapping[str, float] | None = None
) -> list[Painted]:
    """All plain images, generated and judged again from the model as it is now, with the same prompts and noise."""
    painted: list[Painted] = []
    for part in batches(context.shots):
        texts, seeds = [s.prompt.text for s in part], [s.noise_seed for s in part]
        with torch.no_grad():
            images = context.paint(texts, seeds, guidance=part[0].prompt.guidance)
        made = [replace(attacked(s, s.prompt.text, context.concept, variant), draw=draw) for s in part]
        found = zip(made, images, context.verdicts(images), strict=True)
        painted += [Painted(shot, image, verdict, readings or {}) for shot, image, verdict in found]
    return painted


def step_noise(sources: Sequence[torch.Generator], count: int, start: torch.Tensor) -> torch.Tensor:
    """Noise (count, n, c, h, w) for ``count`` steps: each image's generator continues after its start noise."""
    drawn = [[torch.randn(start.shape[1:], generator=g) for _ in range(count + 1)][1:] for g in sources]
    return torch.stack([torch.stack(own) for own in drawn], dim=1).to(start)


def walk(
    guidance: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor],
    schedule,
    latents: torch.Tensor,
    begin: int,
    stop: int | None,
    eta: float = 0.0,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """Latents (n, c, h, w) after the scheduler's steps ``begin`` to ``stop``, from latents at step ``begin``.

    With ``eta`` > 0 (DDIM only) the steps take their noise from ``noise`` (steps, n, c, h, w).
    """
    for number, timestep in enumerate(schedule.timesteps[begin:stop]):
        predicted = guidance(schedule.scale_model_input(latents, timestep), timestep, begin + number)
        random = {"eta": eta, "variance_noise": noise[number]} if eta and noise is not None else {}
        latents = schedule.step(predicted, timestep, latents, return_dict=False, **random)[0]
    return latents
