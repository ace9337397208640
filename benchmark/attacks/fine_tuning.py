"""Fine-tuning: what the attacks that train a part of the denoiser share.

With a model's weights θ and everything attached to it,

    loss = mean (y − e_θ(x_t, t, E(caption)))²          y = ε or the velocity; AdamW on a part of θ, gradients clipped

Training changes copies; the model's weights stay as they are. Low-rank changes W + (α/r)·up·down are added and removed by peft
and start with up = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from overpaint.attacks.attack import Attack, AttackContext
from overpaint.attacks.wording import ordinary_texts
from overpaint.blocks.draws import Draws
from overpaint.blocks.training import Student, Trainable, parameter_group, train
from overpaint.errors import UserError, at_least
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import LowRank
from overpaint.models.lazily import functional, torch

if TYPE_CHECKING:
    from PIL.Image import Image

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

    def __init__(self, model: DiffusionModel, names: Sequence[str], rank: int, alpha: float, draws: Draws):
        from peft import LoraConfig

        self.denoiser, self.names, self.scale = model.denoiser, names, alpha / rank
        layers = [name.removesuffix(".weight") for name in names]
        with torch.random.fork_rng(devices=[] if model.device.type == "cpu" else [model.device]):
            torch.manual_seed(draws.integer("adapter", 0, 2**31))  # peft uses the global generator
            lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers)  # type: ignore[arg-type]  # any number
            self.denoiser.add_adapter(lora)
        self.dtype = model.dtype
        self.masters = {name: p for name, p in self.denoiser.named_parameters() if p.requires_grad}
        for master in self.masters.values():
            master.data = master.data.to(torch.promote_types(master.dtype, torch.float32))

    def active(self) -> AbstractContextManager[None]:
        """The change is always active."""
        return nullcontext()

    def changes(self) -> dict[str, LowRank]:
        """The trained change of each weight."""
        found = {}
        for name in self.names:
            layer = name.removesuffix(".weight")
            down, up = (self.masters[f"{layer}.lora_{side}.default.weight"].detach() for side in "AB")
            found[name] = LowRank(self.scale * up, down)
        return found

    def remove(self) -> None:
        """Restore the original layers."""
        self.denoiser.unload_lora()


@dataclass(kw_only=True)
class FineTuning(Attack):
    """The hyper-parameters of training."""

    pictures: int
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

    def __post_init__(self):
        at_least(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay, alpha=self.alpha)
        at_least(1, pictures=self.pictures, batch_size=self.batch_size, rank=self.rank)
        if self.clip <= 0:
            raise UserError(f"clip takes a number above 0, got {self.clip!r}")

    @contextmanager
    def student(self, model: DiffusionModel, draws: Draws) -> Iterator[Student | Adapter]:
        """Trainable copies of the model's weights, or low-rank changes that are removed at the end of the block."""
        names = parameter_group(model, RULES[self.train])
        if self.train != "attention_lora":
            yield Student(model, names)
            return
        adapter = Adapter(model, names, self.rank, self.alpha, draws)
        try:
            yield adapter
        finally:
            adapter.remove()

    def trainer(
        self, model: DiffusionModel, student: Trainable, latents, captions: list[list[str]], draws: Draws
    ) -> Callable[[int], None]:
        """A function that trains the student for a number of further steps."""
        learning = list(student.masters.values())
        optimizer = torch.optim.AdamW(learning, lr=self.learning_rate, weight_decay=self.weight_decay)

        def further(steps: int) -> None:
            train(
                student,
                optimizer,
                steps,
                lambda: self.loss(model, student, latents, captions, draws),
                "fine-tuning steps",
                adjust=lambda: torch.nn.utils.clip_grad_norm_(learning, self.clip),
            )

        return further

    def loss(
        self, model: DiffusionModel, student: Trainable, latents, captions: list[list[str]], draws: Draws
    ) -> torch.Tensor:
        """The denoising loss of a random batch of images with latents (n, c, h, w) and their possible captions."""
        size = self.batch_size
        rows = draws.take("rows", lambda g: torch.randint(0, len(latents), (size,), generator=g))
        own = [captions[row] for row in rows.tolist()]
        texts = [lines[draws.integer("captions", 0, len(lines))] for lines in own]
        x0 = latents[rows]
        noise = draws.noise("noise", tuple(x0.shape), x0)
        t = draws.take("t", lambda g: model.draw_timesteps(size, g)).to(x0.device)
        with torch.no_grad():
            embeds = model.encode(texts)
        with student.active():
            predicted = model.predict(model.add_noise(x0, noise, t), t, embeds)
        return functional.mse_loss(predicted.float(), model.denoising_target(x0, noise, t).float())

    def unrelated(self, context: AttackContext) -> tuple[list[Image], list[list[str]]]:
        """The unedited model's images of ordinary things other than the concept, and their captions."""
        texts = ordinary_texts(context.concept, self.pictures)
        seeds = [Draws.of(self.seed, "unrelated", n).generator.initial_seed() for n in range(self.pictures)]
        with context.unedited():
            images = context.paint(texts, seeds)
        made = [(image, [text]) for image, text in zip(images, texts, strict=True) if image is not None]
        return [image for image, _ in made], [captions for _, captions in made]
