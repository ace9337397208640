"""AdvUnlearn: adversarial training of the text encoder against prompts with learned token embeddings.

Zhang, Chen, Jia, Zhang, Fan, Liu, Hong, Ding and Liu, "Defensive Unlearning with Adversarial Training for Robust Concept
Erasure in Diffusion Models", NeurIPS 2024, arXiv 2405.15234. T0 and e0 are the frozen text encoder and denoiser, T and e
the current ones (``train`` selects which is trained), c the concept's prompt, r retained prompts, δ free token embeddings
inserted into c (`soft_prompts`), and x_t (batch, 4, h, w) a roll-out by e for the prompt's encoding by T0:

    δ      = argmin mean (e(x_t, T(c ⊕ δ)) − e0(x_t, T0(c)))²               ``attack_steps`` of Adam; not in the warm-up
    target = e0(x_t, T0(∅)) − η (e0(x_t, T0(c)) − e0(x_t, T0(∅)))
    erase  = mean (e(x_t, T(c ⊕ δ)) − target)²
    retain = mean (e(x_t, T(r)) − e0(x_t, T0(r)))²

``retain_train: reg`` minimises erase + γ retain (γ is ``retain_weight``) at a common t. ``iter`` takes one step on erase
and then ``retain_steps`` steps on retain with the same optimiser. Retained prompts are drawn without replacement.

``compat: official`` reproduces the released code. c is measured in words separated by spaces, the gradients of δ
accumulate over the attack, and its last step is dropped (`soft_prompts`). ``attack_init: latest`` starts from rows 1…k of
the last prompt, which are the concept's own rows under ``suffix_k``. Timesteps do not match the noise level of x_t. If
``layers`` contains 1, layers 10 and 11 are trained too. ``intended`` does none of this.

Not implemented: ``condition_embd`` (the denoiser gets token embeddings without the text encoder) and groups of single UNet
layers. The official list of 243 objects, chosen by a language model, is replaced by the request's retained concepts or
the objects of COCO.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import ClassVar, Literal

from overpaint.blocks import soft_prompts
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.rollouts import Noised, compvis_rollout, rollout
from overpaint.blocks.soft_prompts import SoftPrompt
from overpaint.blocks.training import Rule, Student, parameter_group, train
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Request
from overpaint.methods.eraser import Eraser
from overpaint.methods.esd import GROUPS
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.guidance import Guidance
from overpaint.models.lazily import functional, torch
from overpaint.models.parameters import Parameter

#: ``train`` -> the denoiser's parameters to train; ``text_encoder`` is not among them.
UNET_GROUPS: dict[str, Rule] = {
    "xattn": GROUPS["x"],
    "selfattn": GROUPS["selfattn"],
    "noxattn": GROUPS["u"],
    "notime": lambda p: GROUPS["u"](p) or GROUPS["x"](p),
    "full": GROUPS["full"],
}

#: The object categories of COCO (Lin et al., 2014), retained if a request retains nothing.
COCO = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,bench,"
    "bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,"
    "snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,"
    "knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,"
    "dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,"
    "vase,scissors,teddy bear,hair drier,toothbrush"
).split(",")


@dataclass(kw_only=True)
class AdvUnlearn(Eraser):
    """Hyper-parameters of AdvUnlearn; ``conf/method/advunlearn.yaml`` explains each."""

    compat: Literal["intended", "official"]
    train: Literal["text_encoder", "xattn", "selfattn", "noxattn", "notime", "full"]
    layers: list[int] | None
    sublayers: Literal["all", "ffn", "attn"]
    train_norm: bool
    negative_guidance: float
    start_guidance: float
    rollout_steps: int
    iterations: int
    learning_rate: float
    batch_size: int
    retain_train: Literal["reg", "iter"]
    retain_prompts: list[str] | None
    retain_batch: int
    retain_weight: float
    retain_steps: int
    warmup: int
    attack_every: int
    attack_method: Literal["pgd", "fast_at"]
    attack_type: soft_prompts.Place
    attack_tokens: int
    attack_init: Literal["random", "latest"]
    attack_steps: int
    attack_learning_rate: float

    lengths: ClassVar[tuple[str, ...]] = ("iterations", "attack_steps")
    paced: ClassVar[Mapping[str, str]] = {"warmup": "iterations", "attack_every": "iterations"}

    def __post_init__(self):
        at_least(0, learning_rate=self.learning_rate, attack_learning_rate=self.attack_learning_rate)
        at_least(0, retain_weight=self.retain_weight, retain_steps=self.retain_steps, warmup=self.warmup)
        at_least(1, iterations=self.iterations, batch_size=self.batch_size, retain_batch=self.retain_batch)
        at_least(1, attack_steps=self.attack_steps, attack_tokens=self.attack_tokens, attack_every=self.attack_every)
        at_least(2, rollout_steps=self.rollout_steps)
        given = self.retain_prompts
        if given is not None and not (given and all(isinstance(prompt, str) for prompt in given)):
            raise UserError(f"retain_prompts takes a list with at least one text, got {self.retain_prompts!r}")
        if self.train != "text_encoder" and (self.layers is not None or self.sublayers != "all" or self.train_norm):
            raise UserError(f"layers, sublayers and train_norm need train=text_encoder, got train={self.train}")

    @property
    def acts_on(self) -> str:
        return "text_encoder" if self.train == "text_encoder" else "denoiser"

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        student = Student(model, self.group(model))
        concepts = [c.name for c in request.erase]
        run = Run(self, model, student, self.retained(request), Draws(self.seed))
        turns = 1 + (self.retain_steps if self.retain_train == "iter" else 0)
        step = count()

        def loss() -> torch.Tensor:
            iteration, turn = divmod(next(step), turns)
            if turn:
                return run.retain_loss()
            if iteration % self.attack_every == 0:
                concept = concepts[run.draws.integer("concept", 0, len(concepts))]
                run.turn_to(concept, attacked=iteration >= self.warmup)
            return run.erase_loss()

        train(student, torch.optim.Adam(student.masters.values(), lr=self.learning_rate), self.iterations * turns, loss)
        return Erasure("advunlearn", changes=student.changes())

    def group(self, model: DiffusionModel) -> list[str]:
        """The names of the trained parameters."""
        if self.train != "text_encoder":
            return parameter_group(model, UNET_GROUPS[self.train])
        return parameter_group(model, self.in_text_encoder, model.text_encoder_names)

    def in_text_encoder(self, p: Parameter) -> bool:
        """The rule for ``train: text_encoder``: the chosen layers and the final norm, never the embeddings."""
        name = p.name.removeprefix("text_model.")
        if name.startswith("final_layer_norm."):
            return self.train_norm or (self.layers is None and self.sublayers == "all")
        end = "" if self.compat == "official" else "."
        layers = ("",) if self.layers is None else tuple(f"{n}{end}" for n in self.layers)
        part = {"all": "", "ffn": ".mlp.", "attn": ".self_attn."}[self.sublayers]
        return name.startswith(tuple(f"encoder.layers.{layer}" for layer in layers)) and part in name

    def retained(self, request: Request) -> list[str]:
        """``retain_prompts``, else prompts of the retained concepts, else of COCO's objects.

        COCO's objects that share a word with an erased concept are left out.
        """
        if self.retain_prompts is not None:
            return self.retain_prompts
        if request.retain:
            sentence = {"style": "a picture in {} style"}
            return [sentence.get(c.kind, "a photo of {}").format(c.phrase) for c in request.retain]
        erased = {word for c in request.erase for text in (c.name, *c.synonyms) for word in text.lower().split()}
        return [f"a photo of {name}" for name in COCO if not erased & set(name.split())]


class Run:
    """The state of a training run: the current concept, its adversarial rows, and the two losses."""

    def __init__(self, method: AdvUnlearn, model: DiffusionModel, student: Student, prompts: list[str], draws: Draws):
        self.method, self.model, self.student, self.draws = method, model, student, draws
        self.deck = Deck(prompts, method.retain_batch, draws)
        self.nothing = self.encoded([""])
        self.latest: torch.Tensor | None = None

    def turn_to(self, concept: str, attacked: bool) -> None:
        """Make this the current concept, with (``attacked``) or without a new adversarial δ in its prompt."""
        method, official = self.method, self.method.compat == "official"
        self.named = self.encoded([concept]).expand(method.batch_size, -1, -1)
        self.prompt = SoftPrompt(self.model, concept, method.attack_type, method.attack_tokens, official)
        self.ids, self.rows = self.model.padded_ids([concept]), self.prompt.plain
        if attacked:
            free = soft_prompts.attack(
                self.prompt, self.start(), self.attack_loss, method.attack_steps, method.attack_learning_rate,
                method.attack_method, official,
            )  # fmt: skip
            self.ids, self.rows = self.prompt.ids, self.prompt.rows(free)
            self.latest = self.rows[:, 1:] if official else free
            trace_values(adversarial=self.rows, ids=self.ids)

    def start(self) -> torch.Tensor:
        """The initial free rows (1, k, width) of an attack."""
        k = self.prompt.size
        if self.method.attack_init == "random" or self.latest is None or self.latest.shape[1] < k:
            return self.prompt.random_start(self.draws)
        return self.latest[:, :k]

    def attack_loss(self, rows: torch.Tensor) -> torch.Tensor:
        """mean (e(x_t, T(c ⊕ δ)) − e0(x_t, T0(c)))² for the token embeddings ``rows`` (1, tokens, width) of c ⊕ δ."""
        x_t, t = self.noised(self.named)
        with torch.no_grad():
            wanted = self.model.predict(x_t, t, self.named)
        with self.student.active():
            predicted = self.model.predict(x_t, t, self.asked(rows, self.prompt.ids))
        return functional.mse_loss(predicted.float(), wanted.float())

    def erase_loss(self) -> torch.Tensor:
        """The erasing loss for the current concept; with ``retain_train: reg``, plus the retaining loss at the same t."""
        method, model, size = self.method, self.model, self.method.batch_size
        kept = self.deck.deal() if method.retain_train == "reg" else []
        wanted = [self.named, self.encoded(kept)] if kept else [self.named]
        x_t, t = self.noised(*wanted)
        with torch.no_grad():
            base = model.predict(x_t, t, torch.cat(wanted))
            nothing = model.predict(x_t[:size], t, self.nothing.expand_as(self.named))
        target = nothing - method.negative_guidance * (base[:size] - nothing)
        with self.student.active():
            asked = [self.asked(self.rows, self.ids), *([model.encode(kept)] if kept else [])]
            predicted = model.predict(x_t, t, torch.cat(asked))
        erase = functional.mse_loss(predicted[:size].float(), target.float())
        retain = functional.mse_loss(predicted[size:].float(), base[size:].float()) if kept else erase.new_zeros(())
        trace_values(x_t=x_t, t=t, erase=erase.detach(), retain=retain.detach())
        return erase + method.retain_weight * retain

    def retain_loss(self) -> torch.Tensor:
        """The retaining loss on its own."""
        kept = self.deck.deal()
        wanted = self.encoded(kept)
        x_t, t = self.noised(wanted)
        with torch.no_grad():
            base = self.model.predict(x_t, t, wanted)
        with self.student.active():
            loss = functional.mse_loss(self.model.predict(x_t, t, self.model.encode(kept)).float(), base.float())
        trace_values(x_t=x_t, t=t, retain=loss.detach())
        return loss

    def encoded(self, texts: list[str]) -> torch.Tensor:
        """Encodings (n, tokens, width) by T0."""
        with torch.no_grad():
            return self.model.encode(texts)

    def asked(self, rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The encoding of token embeddings (1, tokens, width), repeated for the batch: (batch, tokens, width)."""
        return self.model.encode_embeddings(rows, ids).expand_as(self.named)

    def noised(self, *prompts: torch.Tensor) -> Noised:
        """x_t and t for the encodings (b, tokens, width) of several groups of prompts, with a common t."""
        method, model = self.method, self.model
        k = self.draws.integer("k", 0, method.rollout_steps)
        shape = model.noise([0]).shape[1:]
        start = torch.cat([self.draws.noise("x_T", (len(p), *shape), p) for p in prompts])
        positive = torch.cat(prompts)
        guidance = Guidance(model, positive, self.nothing.expand_as(positive), method.start_guidance)
        with self.student.active():
            if method.compat == "official":
                return compvis_rollout(model, start, guidance, method.rollout_steps, k, self.draws)
            return rollout(model, start, guidance, "ddim", method.rollout_steps, k)


class Deck:
    """Draws ``hand`` prompts at a time without replacement; starts again once fewer than ``hand`` are left."""

    def __init__(self, prompts: list[str], hand: int, draws: Draws):
        self.prompts, self.hand, self.draws = prompts, min(hand, len(prompts)), draws
        self.left: list[str] = []

    def deal(self) -> list[str]:
        """The next prompts; all of them if there are fewer than ``hand``."""
        return self.draws.take("retain", self._deal)

    def _deal(self, generator: torch.Generator) -> list[str]:
        if len(self.left) < self.hand:
            self.left = list(self.prompts)
        order = torch.randperm(len(self.left), generator=generator).tolist()
        dealt = [self.left[i] for i in order[: self.hand]]
        self.left = [self.left[i] for i in order[self.hand :]]
        return dealt
