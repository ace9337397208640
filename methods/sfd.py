"""SFD: a one-step generator is distilled from the model. For the concept, it learns the model's prediction for another prompt.

Chen, Zhang and Zhou, "Score Forgetting Distillation: A Swift, Data-Free Method for Machine Unlearning in Diffusion Models", ICLR
2025, arXiv 2409.11219. Notation: φ is the model, which stays; G is the generator and ψ the score of its images, both copies of
the network; z (b, 4, h, w) is noise, q(x, t) adds noise ε to latents x, t is drawn from [20, 980), and x̂_0(θ, x, t, c) is
the clean latent of the guided prediction of θ for x with scale κ. One step of the generator at the timestep t_G makes an image:

    x_g = x̂_0(G, q(0, t_G), t_G, c)                                                        without guidance; q's noise is z

Every iteration first trains ψ to denoise G's images, for prompts c that stay and for prompts c_f of the concept:

    score = Σ (ε − ε̂(ψ, q(x_g, t), t, c))² / b

and then G, where y_ψ = x̂_0(ψ, q(x_g, t), t, c), y_φ is the same of φ, and w = mean |x_g − y_φ| without gradient:

    generator = Σ (y_φ − y_ψ) ((y_φ − x_g) − α (y_φ − y_ψ)) / w / b

For c_f, y_φ is predicted for the override c_o, the prompt with the anchor instead of the concept. The gradient passes through
φ and ψ to x_g. Of ψ's prompts, one in ten is replaced by the empty prompt. Negative prompts may replace ∅ in the guidance of
each prediction (``negative_in``). Both networks are trained with Adam.

The erasure is G, and it samples in one step: for every sampler, number of steps and guidance scale, its images are
x_g of the sampler's start noise. Official code starts from a published one-step generator (``generator``). Without one, the first
``distil_iterations`` distil the model as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, NamedTuple

from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.prior import Captions, check_captions, read_captions
from overpaint.blocks.templates import SCENES, phrase_templates
from overpaint.blocks.training import Student, gradients
from overpaint.errors import UserError, at_least
from overpaint.grid.assets import referred
from overpaint.grid.concepts import Request
from overpaint.grid.typed import construct
from overpaint.methods.eraser import Eraser
from overpaint.models import checkpoints
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.guidance import Guard, Guidance
from overpaint.models.lazily import torch
from overpaint.models.noise_schedule import Times
from overpaint.run.progress import steps

#: Sentences about a concept, unless ``forget_prompts`` gives others.
SENTENCES = 12
#: Adam's betas, and the smallest w.
BETAS, SMALLEST = (0.0, 0.999), 1e-5


class Row(NamedTuple):
    """One prompt of a batch: what the generator reads, what y_φ reads, and the negative prompt."""

    prompt: str
    override: str
    negative: str = ""


@dataclass(kw_only=True)
class SFD(Eraser):
    """Hyper-parameters of SFD; ``conf/method/sfd.yaml`` explains each."""

    generator: str | None
    generator_timestep: int
    sampling_steps: int
    default_anchor: str
    captions: Captions
    forget_prompts: Captions
    override_prompts: Captions
    keywords: Captions
    negative_prompts: Captions
    negative_in: list[Literal["score", "fake", "true"]]
    retain_negative: bool
    override_in_fake: bool
    score_retain: float
    score_forget: float
    generator_retain: float
    generator_forget: float
    score_guidance: float
    fake_guidance: float
    true_guidance: float
    alpha: float
    dropout: float
    lowest: int
    highest: int
    distil_iterations: int
    iterations: int
    batch_size: int
    score_learning_rate: float
    learning_rate: float

    version: ClassVar[int] = 2
    stacks: ClassVar[bool] = False
    mergeable: ClassVar[bool] = False
    networks: ClassVar[tuple[str, ...]] = ("generator",)
    lengths: ClassVar[tuple[str, ...]] = ("iterations", "distil_iterations")

    def __post_init__(self):
        for prompts in (
            self.captions,
            self.forget_prompts,
            self.override_prompts,
            self.keywords,
            self.negative_prompts,
        ):
            check_captions(prompts)
        at_least(1, iterations=self.iterations, batch_size=self.batch_size, sampling_steps=self.sampling_steps)
        at_least(0, distil_iterations=self.distil_iterations, lowest=self.lowest)
        at_least(0, learning_rate=self.learning_rate, score_learning_rate=self.score_learning_rate)
        at_least(0, score_retain=self.score_retain, score_forget=self.score_forget)
        at_least(0, generator_retain=self.generator_retain, generator_forget=self.generator_forget)
        at_least(self.lowest + 1, highest=self.highest)
        at_least(1, generator_timestep=self.generator_timestep)
        if not 0 <= self.dropout <= 1:
            raise UserError(f"dropout takes a number from 0 to 1, got {self.dropout:g}")
        if self.retain_negative and not self.negative_prompts:
            raise UserError("retain_negative=true needs negative_prompts")

    def check(self, family: str | None, request: Request, name: str, sequential: bool = False) -> None:
        super().check(family, request, name, sequential)
        if self.generator is not None and not referred(self.generator):
            checkpoints.local_checkpoint(self.generator, f"method.generator={self.generator}")

    @property
    def advice(self) -> Sequence[str]:
        if self.generator is not None or self.distil_iterations:
            return ()
        return [
            "method=sfd starts from the model itself, which was not trained to generate in one step: set sfd.generator to a "
            "one-step generator (officially SiD-LSG's), or sfd.distil_iterations to the iterations that distil one from the model"
        ]

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        if max(self.highest - 1, self.generator_timestep) >= model.train_timesteps:
            raise UserError(
                f"method=sfd: highest and generator_timestep are timesteps, of {model.train_timesteps} in all"
            )
        names, draws = list(model.denoiser_names), Draws(self.seed)
        generator, score = Student(model, names), Student(model, names)
        self.start(model, generator, draws)
        distillation = Distillation(self, model, generator, score, Prompts(self, request), draws)
        with torch.enable_grad():
            for _ in steps(self.distil_iterations, "distillation steps"):
                distillation.step(forgets=False)
            for _ in steps(self.iterations, "iterations"):
                distillation.step(forgets=True)
        settings = asdict(OneStepSettings(timestep=self.generator_timestep, steps=self.sampling_steps))
        return Erasure("sfd", "guard", changes=generator.changes(), settings=settings)

    def start(self, model: DiffusionModel, generator: Student, draws: Draws) -> None:
        """Set the generator's first weights: those of the file ``generator``, or else the model's own."""

        def read(_: torch.Generator) -> Mapping[str, torch.Tensor]:
            if self.generator is None:
                return {}
            path = checkpoints.checkpoint_path(self.generator, f"method.generator={self.generator}")
            return {name: change.tensor for name, change in checkpoints.changes_of(model, path).items()}

        with torch.no_grad():
            for name, tensor in draws.take("generator", read).items():
                if name in generator.masters:
                    generator.masters[name].copy_(tensor)

    @classmethod
    def install(cls, model: DiffusionModel, erasure: Erasure) -> Callable[[], None]:
        return model.guided_by(OneStep(construct(OneStepSettings, erasure.settings, "this erasure's settings")))


class Distillation:
    """The generator G, the score ψ of its images, and their optimisers."""

    def __init__(
        self, method: SFD, model: DiffusionModel, generator: Student, score: Student, prompts: Prompts, draws: Draws
    ):
        self.method, self.model, self.prompts, self.draws = method, model, prompts, draws
        self.generator, self.score = generator, score
        self.generator_optimizer = adam(generator, method.learning_rate)
        self.score_optimizer = adam(score, method.score_learning_rate)

    def step(self, forgets: bool) -> None:
        """One step of ψ, then one of G, each on prompts that stay and, with ``forgets``, on prompts of the concept."""
        own = self.method
        self.descend(self.score, self.score_optimizer, self.score_loss, forgets, own.score_retain, own.score_forget)
        weights = own.generator_retain, own.generator_forget
        self.descend(self.generator, self.generator_optimizer, self.generator_loss, forgets, *weights)

    def descend(self, student: Student, optimizer, loss, forgets: bool, retain: float, forget: float) -> None:
        """One optimiser step on both kinds of prompts, whose gradients are added with their weights."""
        parameters = list(student.masters.values())
        total = [torch.zeros_like(p) for p in parameters]
        for forgotten, weight in ((False, retain), (True, forget if forgets else 0.0)):
            if not weight and forgotten:
                continue
            value = loss(forgotten)
            trace_values(loss=value.detach())
            found = gradients(weight * value, parameters, student.dtype)
            total = [a if g is None else a + g for a, g in zip(total, found, strict=True)]
        for parameter, gradient in zip(parameters, total, strict=True):
            parameter.grad = gradient
        trace_values(gradients=dict(zip(student.masters, total, strict=True)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def score_loss(self, forgotten: bool) -> torch.Tensor:
        """The error of ψ's prediction of the noise in G's images, summed over an image and averaged over images."""
        own, rows = self.method, self.rows(forgotten)
        if own.score_guidance != 1 or own.fake_guidance != 1:
            rows = [Row("", "", "") if self.dropped() else row for row in rows]
            if own.override_in_fake and forgotten and own.negative_prompts:  # the official code's condition
                rows = [row._replace(prompt=row.override) for row in rows]
        z, noise = self.noise("z"), self.noise("noise")
        with torch.no_grad():
            images = self.generated(z, rows)
        t = self.timesteps()
        with self.score.active():
            x_t, output = self.guided(images, noise, t, [row.prompt for row in rows], own.score_guidance, rows, "score")
        return (self.model.noise_of(output, x_t, t) - noise).float().square().sum() / len(rows)

    def generator_loss(self, forgotten: bool) -> torch.Tensor:
        """The loss of G's images, summed over an image and averaged over images."""
        own, rows = self.method, self.rows(forgotten)
        z, noise = self.noise("z"), self.noise("noise")
        t = self.timesteps()
        images = self.generated(z, rows)
        fakes = [row.override if own.override_in_fake else row.prompt for row in rows]
        with self.score.active():
            x_t, output = self.guided(images, noise, t, fakes, own.fake_guidance, rows, "fake")
        fake = self.model.clean_of(output, x_t, t).float()
        trues = [row.override for row in rows]
        x_t, output = self.guided(images, noise, t, trues, own.true_guidance, rows, "true")
        true = self.model.clean_of(output, x_t, t).float()
        trace_values(fake=fake.detach(), true=true.detach())
        return discrepancy(images.float(), true, fake, own.alpha)

    def generated(self, z: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """x_g (b, 4, h, w), the generator's images as latents."""
        embeds = self.encoded([row.prompt for row in rows])
        with self.generator.active():
            images = one_step(self.model, z, embeds, self.method.generator_timestep)
        trace_values(generated=images.detach(), prompts=[row.prompt for row in rows])
        return images

    def guided(
        self,
        images: torch.Tensor,
        noise: torch.Tensor,
        t: torch.Tensor,
        prompts: list[str],
        scale: float,
        rows,
        where: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """q(x_g, t), and the network's guided output for it."""
        negatives = [row.negative if where in self.method.negative_in else "" for row in rows]
        x_t, output = denoised(self.model, images, noise, t, self.encoded(prompts), self.encoded(negatives), scale)
        trace_values(where=where, output=output.detach(), x_t=x_t.detach(), prompts=prompts, negatives=negatives)
        return x_t, output

    def encoded(self, prompts: Sequence[str]) -> torch.Tensor:
        """Encodings (b, tokens, width) of prompts, truncated to the text encoder's length."""
        with torch.no_grad():
            return self.model.encode(prompts, truncate=True)

    def rows(self, forgotten: bool) -> list[Row]:
        """A batch of prompts that stay, or of the concept's."""
        deal = self.prompts.forget if forgotten else self.prompts.retain
        name = "forget" if forgotten else "retain"
        return [Row(*row) for row in self.draws.take(name, lambda g: deal(self.method.batch_size, g))]

    def dropped(self) -> bool:
        """Whether to replace a prompt of ψ by the empty one, drawn with probability ``dropout``."""
        return bool(self.draws.take("dropped", lambda g: torch.rand((), generator=g) < self.method.dropout))

    def noise(self, name: str) -> torch.Tensor:
        """Noise (b, 4, h, w) for one draw of this name."""
        like = self.model.noise([0])
        return self.draws.noise(name, (self.method.batch_size, *like.shape[1:]), like)

    def timesteps(self) -> torch.Tensor:
        """t (b,), uniform integers from ``lowest`` to below ``highest``."""
        low, high, count = self.method.lowest, self.method.highest, self.method.batch_size
        return self.draws.take("t", lambda g: torch.randint(low, high, (count,), generator=g)).to(self.model.device)


class Prompts:
    """The prompts that stay, and those of the concepts with their overrides."""

    def __init__(self, method: SFD, request: Request):
        self.method, self.negatives = method, read_captions(method.negative_prompts)
        self.keywords = read_captions(method.keywords)
        pairs = list(zip(request.erase, request.anchors(method.default_anchor), strict=True))
        self.pairs: list[tuple[str, str]] = []
        given, overrides = read_captions(method.forget_prompts), read_captions(method.override_prompts)
        by_name = given and not overrides and not self.keywords  # the anchor replaces a concept's name in the prompts
        for concept, anchor in pairs:
            prompts = given or [t.format(concept.phrase) for t in phrase_templates(concept.kind, SENTENCES)]
            if by_name:
                naming = [prompt for prompt in prompts if names(prompt, concept.name)]
                if not naming:
                    raise UserError(
                        f"method=sfd: none of {len(given)} forget_prompts names {concept.name!r}, so its anchor replaces "
                        "nothing; name it, or give override_prompts"
                    )
                prompts = naming if len(pairs) > 1 else prompts
            for prompt in prompts:
                instead = overrides or [prompt if self.keywords else replaced(prompt, concept.name, anchor)]
                self.pairs += [(prompt, override) for override in instead]
        kept = read_captions(method.captions) or [
            *(t.format(c.phrase) for c in request.retain for t in phrase_templates(c.kind, SENTENCES)),
            *SCENES,
        ]
        self.kept = [caption for caption in kept if not any(names(caption, c.name) for c in request.erase)]
        if not self.kept:
            raise UserError("method=sfd: all captions name the concept; captions takes prompts that stay")

    def retain(self, count: int, generator: torch.Generator) -> list[Row]:
        """Prompts that stay. Each is its own override."""
        chosen = [self.kept[i] for i in drawn(len(self.kept), count, generator)]
        negative = [self.negative(generator) if self.method.retain_negative else "" for _ in chosen]
        return [Row(prompt, prompt, word) for prompt, word in zip(chosen, negative, strict=True)]

    def forget(self, count: int, generator: torch.Generator) -> list[Row]:
        """Prompts of the concept. A random keyword is put before or after a prompt, but not its override."""
        rows = []
        for i in drawn(len(self.pairs), count, generator):
            prompt, override = self.pairs[i]
            if self.keywords:
                word = self.keywords[drawn(len(self.keywords), 1, generator)[0]]
                prompt = f"{word} {prompt}" if drawn(2, 1, generator)[0] else f"{prompt}, {word}"
            rows.append(Row(prompt, override, self.negative(generator)))
        return rows

    def negative(self, generator: torch.Generator) -> str:
        """A random negative prompt; empty if there are none."""
        return self.negatives[drawn(len(self.negatives), 1, generator)[0]] if self.negatives else ""


def drawn(below: int, count: int, generator: torch.Generator) -> list[int]:
    """Uniform integers from 0 to ``below`` − 1."""
    return torch.randint(below, (count,), generator=generator).tolist()


def names(prompt: str, concept: str) -> bool:
    """Whether a prompt names the concept."""
    return _name(concept).search(prompt) is not None


def replaced(prompt: str, concept: str, anchor: str) -> str:
    """The prompt with the anchor instead of the concept; case is ignored, and parts of longer words stay.

    >>> replaced("a sketch of VAN GOGH", "van gogh", "a man")
    'a sketch of a man'
    >>> replaced("a can on canvas", "can", "bottle")
    'a bottle on canvas'
    """
    return _name(concept).sub(lambda match: anchor, prompt)


def _name(concept: str) -> re.Pattern[str]:
    """Matches a concept's name as whole words, in any case."""
    return re.compile(rf"(?<!\w){re.escape(concept)}(?!\w)", re.IGNORECASE)


def adam(student: Student, rate: float) -> torch.optim.Adam:
    """An optimiser of the student with this learning rate."""
    return torch.optim.Adam(student.masters.values(), lr=rate, betas=BETAS)


def one_step(
    model: DiffusionModel,
    z: torch.Tensor,
    embeds: torch.Tensor,
    timestep: int,
    count: int = 1,
    redraw: Callable[[int], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Clean latents (b, 4, h, w) that the generator makes of noise z in ``count`` steps.

    Step i predicts the clean latents at ⌊timestep (1 − i/count)⌋, from the last ones with fresh noise ``redraw(i − 1)``.
    """
    clean = torch.zeros_like(z)
    for number in range(count):
        noise = z if not number or redraw is None else redraw(number - 1)
        t = torch.full((len(z),), int(timestep * (1 - number / count)), device=z.device)
        x_t = model.add_noise(clean, noise, t)
        clean = model.clean_of(model.predict(x_t, t, embeds), x_t, t)
    return clean


def denoised(
    model: DiffusionModel,
    clean: torch.Tensor,
    noise: torch.Tensor,
    t: torch.Tensor,
    embeds: torch.Tensor,
    negative: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean latents with noise added, x_t (b, 4, h, w), and the network's output for them with guidance ``scale``."""
    x_t = model.add_noise(clean, noise, t)
    if scale == 1:
        return x_t, model.predict(x_t, t, embeds)
    both = model.predict(x_t.repeat(2, 1, 1, 1), t, torch.cat([negative, embeds]))
    without, named = both.chunk(2)
    return x_t, without + scale * (named - without)


def discrepancy(images: torch.Tensor, true: torch.Tensor, fake: torch.Tensor, alpha: float) -> torch.Tensor:
    """Σ (y_φ − y_ψ) ((y_φ − x_g) − α (y_φ − y_ψ)) / w / b for x_g, y_φ and y_ψ (b, 4, h, w)."""
    weight = (images - true).abs().mean(dim=(1, 2, 3), keepdim=True).detach().clamp(min=SMALLEST)
    difference = true - fake
    return (difference * ((true - images) - alpha * difference) / weight).sum() / len(images)


@dataclass(frozen=True)
class OneStepSettings:
    """What a stored erasure says: the generator's timestep, and its steps."""

    timestep: int
    steps: int


@dataclass(frozen=True)
class OneStep(Guard):
    """Makes the guidance of each batch of images, which leads every sampler to x_g of its start noise."""

    settings: OneStepSettings
    stateful: ClassVar[bool] = True

    def __call__(self, model: DiffusionModel, positive, negative, scale: float, prompts=None) -> Guidance:
        return Towards(self.settings, model, positive, negative, scale, prompts)


class Towards(Guidance):
    """Predictions that lead every sampler to x_g: at each step, those whose clean latents are x_g.

    x_g is made at step 0. Without it (attacks call single steps), the prediction is the generator's own at that timestep.
    """

    def __init__(self, settings: OneStepSettings, model, positive, negative, scale, prompts=None):
        super().__init__(model, positive, negative, scale, prompts)
        self.settings = settings
        self.clean: torch.Tensor | None = None

    def __call__(self, latents: torch.Tensor, timestep: Times, step: float) -> torch.Tensor:
        if step == 0:
            self.clean = self.image(latents)
        if self.clean is None:
            return self.model.predict(latents, timestep, self.positive)
        t = torch.as_tensor(timestep, device=latents.device).expand(len(latents))
        signal, deviation = self.model.levels(t, latents)
        return self.model.denoising_target(self.clean, (latents - signal * self.clean) / deviation, t)

    def image(self, z: torch.Tensor) -> torch.Tensor:
        """x_g (b, 4, h, w). The noise of later steps is a function of an image's start noise."""
        keys = [row.detach().float().cpu().numpy().tobytes().hex() for row in z] if self.settings.steps > 1 else []
        draws = [Draws.of("sfd", key) for key in keys]

        def redraw(_: int) -> torch.Tensor:
            return torch.cat([own.noise("redraw", (1, *z.shape[1:]), z) for own in draws])

        return one_step(self.model, z, self.positive, self.settings.timestep, self.settings.steps, redraw)
