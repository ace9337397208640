"""Relearning: the victim is trained on a few images, and the concept is measured again as training goes on.

There are two forms. With images of the concept, an attacker teaches it again: a model that needs fewer steps than one
that never knew the concept had not forgotten it (few-shot recovery; Gao et al., "Meta-Unlearning on Diffusion Models",
ICCV 2025, arXiv 2410.12777). With unrelated images nobody attacks: ordinary fine-tuning alone may bring the concept
back (SPQR, arXiv 2511.19558). In both forms, on the victim with weights θ and everything attached to it,

    loss = mean (y − e_θ(x_t, t, E(caption)))²          y = ε or the velocity; AdamW on a part of θ, gradients clipped

After each number of steps in ``curve``, all plain images are generated again: draw k is the k-th point, and 0 steps are
the victim itself. Training changes copies; the victim's weights stay as they are. Low-rank changes W + (α/r)·up·down
are added and removed by peft and start with up = 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal

from overpaint.attacks.attack import Assault, Attack, AttackContext, Ledger, Painted
from overpaint.attacks.probes import batches
from overpaint.attacks.prompt_lists import attacked
from overpaint.attacks.wording import ordinary_texts, sentences
from overpaint.blocks.draws import Draws
from overpaint.blocks.training import Student, Trainable, parameter_group, train
from overpaint.errors import UserError, at_least
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.lazily import functional, torch

#: ``train`` -> the parameters of the denoiser that are trained.
RULES = {
    "xattn_kv": lambda p: p.attention == "cross" and p.role in ("key", "value") and p.is_weight,
    "attention_lora": lambda p: p.role != "" and p.is_weight,
    "full": lambda p: True,
}


class Adapter:
    """A trained low-rank change W + (alpha/rank)·up·down of the linear layers whose weights are ``names``, by peft.

    The factors are at least float32, because Adam's ε underflows in half precision.
    """

    def __init__(self, victim: DiffusionModel, names: Sequence[str], rank: int, alpha: float, draws: Draws):
        from peft import LoraConfig

        self.denoiser = victim.denoiser
        layers = [name.removesuffix(".weight") for name in names]
        with torch.random.fork_rng(devices=[] if victim.device.type == "cpu" else [victim.device]):
            torch.manual_seed(draws.integer("adapter", 0, 2**31))  # peft uses the global generator
            lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers)  # type: ignore[arg-type]  # any number
            self.denoiser.add_adapter(lora)
        self.dtype = victim.dtype
        self.masters = {name: p for name, p in self.denoiser.named_parameters() if p.requires_grad}
        for master in self.masters.values():
            master.data = master.data.to(torch.promote_types(master.dtype, torch.float32))

    def active(self) -> AbstractContextManager[None]:
        """The change is always active."""
        return nullcontext()

    def remove(self) -> None:
        """Restore the original layers."""
        self.denoiser.unload_lora()


@dataclass(kw_only=True)
class Relearning(Attack):
    """Hyper-parameters; ``conf/attack/relearn.yaml`` says what each means."""

    data: Literal["concept", "unrelated"]
    pictures: int
    curve: list[int]
    train: Literal["xattn_kv", "attention_lora", "full"]
    rank: int
    alpha: float
    batch_size: int
    learning_rate: float
    weight_decay: float
    clip: float

    needs: ClassVar[str] = "victim"
    paints: ClassVar[bool] = True
    worded: ClassVar[bool] = False
    version: ClassVar[int] = 2
    lengths: ClassVar[tuple[str, ...]] = ("curve", "pictures")

    def __post_init__(self):
        at_least(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay, alpha=self.alpha)
        at_least(1, pictures=self.pictures, batch_size=self.batch_size, rank=self.rank)
        if not self.curve or min(self.curve) < 0 or any(b <= a for a, b in pairwise(self.curve)):
            raise UserError(f"curve takes increasing numbers of steps, the first at least 0, got {self.curve!r}")
        if self.clip <= 0:
            raise UserError(f"clip takes a number above 0, got {self.clip!r}")

    @property
    def images(self) -> int:
        return len(self.curve)

    def run(self, context: AttackContext) -> Assault:
        victim, ledger, painted = context.victim, Ledger(), []
        draws = Draws.of(self.seed, context.concept.name)
        with ledger.counting(victim):
            latents, captions = self.lessons(context)
            with self.student(victim, draws) as student:
                learning = list(student.masters.values())
                optimizer = torch.optim.AdamW(learning, lr=self.learning_rate, weight_decay=self.weight_decay)
                for number, (done, wanted) in enumerate(pairwise([0, *self.curve])):
                    train(
                        student,
                        optimizer,
                        wanted - done,
                        lambda: self.loss(victim, student, latents, captions, draws),
                        "fine-tuning steps",
                        adjust=lambda: torch.nn.utils.clip_grad_norm_(learning, self.clip),
                    )
                    painted += self.paint(context, student, wanted, number)
        ledger.images = len(painted)
        return Assault([p.shot for p in painted], ledger=ledger, painted=painted)

    @contextmanager
    def student(self, victim: DiffusionModel, draws: Draws) -> Iterator[Trainable]:
        """Trainable copies of the victim's weights, or low-rank changes that are removed at the end of the block."""
        names = parameter_group(victim, RULES[self.train])
        if self.train != "attention_lora":
            yield Student(victim, names)
            return
        adapter = Adapter(victim, names, self.rank, self.alpha, draws)
        try:
            yield adapter
        finally:
            adapter.remove()

    def lessons(self, context: AttackContext) -> tuple[torch.Tensor, list[list[str]]]:
        """Latents (n, c, h, w) of the images, and for each image its possible captions."""
        pictures, captions = self.unrelated(context) if self.data == "unrelated" else self.of_concept(context)
        return context.victim.to_latents(pictures), captions

    def of_concept(self, context: AttackContext) -> tuple[list, list[list[str]]]:
        pictures = context.concept_images(self.pictures, "relearn")
        words = f"{context.concept.article} {context.concept.name}".strip()
        lines = [line.format(words) for line in sentences(context.concept, context.catalogue)]
        return pictures, [lines] * len(pictures)

    def unrelated(self, context: AttackContext) -> tuple[list, list[list[str]]]:
        """The unedited model's images of ordinary things other than the concept."""
        texts = ordinary_texts(context.concept, self.pictures)
        seeds = [Draws.of(self.seed, "unrelated", n).generator.initial_seed() for n in range(self.pictures)]
        with context.unedited():
            made = [
                (image, [text])
                for image, text in zip(context.paint(texts, seeds), texts, strict=True)
                if image is not None
            ]
        return [image for image, _ in made], [captions for _, captions in made]

    def loss(
        self, victim: DiffusionModel, student: Trainable, latents, captions: list[list[str]], draws: Draws
    ) -> torch.Tensor:
        """The denoising loss of a random batch."""
        size = self.batch_size
        rows = draws.take("rows", lambda g: torch.randint(0, len(latents), (size,), generator=g))
        own = [captions[row] for row in rows.tolist()]
        texts = [lines[draws.integer("captions", 0, len(lines))] for lines in own]
        x0 = latents[rows]
        noise = draws.noise("noise", tuple(x0.shape), x0)
        t = draws.take("t", lambda g: victim.draw_timesteps(size, g)).to(x0.device)
        with torch.no_grad():
            embeds = victim.encode(texts)
        with student.active():
            predicted = victim.predict(victim.add_noise(x0, noise, t), t, embeds)
        return functional.mse_loss(predicted.float(), victim.denoising_target(x0, noise, t).float())

    def paint(self, context: AttackContext, student, step: int, number: int) -> list[Painted]:
        """All plain images, generated and judged, from the fine-tuned victim."""
        painted: list[Painted] = []
        for part in batches(context.shots):
            texts, seeds = [s.prompt.text for s in part], [s.noise_seed for s in part]
            with torch.no_grad(), student.active():
                images = context.paint(texts, seeds, guidance=part[0].prompt.guidance)
            made = [attacked(shot, shot.prompt.text, context.concept, f"step {step}") for shot in part]
            for shot, image, verdict in zip(made, images, context.verdicts(images), strict=True):
                painted.append(Painted(replace(shot, draw=number), image, verdict, {"steps": step}))
        return painted
