"""Directions: a learned vector per concept, added inside the denoiser, turns the images of all prompts away from it.

Li, Shen, Torr, Tresp and Gu, "Self-Discovering Interpretable Diffusion Latent Directions for Responsible Text-to-Image
Generation", CVPR 2024, arXiv 2311.17216. Weights do not change. v_c (channels, h, w) is added to the output of the middle
block ("h-space") at all timesteps; e(x_t, y; v) is the prediction with it. The model makes pictures from a prompt p; v is
trained on them with a caption y that differs from p, and learns the difference:

    loss = mean (e(x_t, y; Σ v_c) − ε)²                     Adam on v only; x_t is a noised picture, Σ over its concepts

``learn`` chooses p and y for a concept c with anchor a. ``negative`` is the paper's way to safe images, ``concept`` its way
to find a concept, which a negative ``strength`` removes:

    negative:  p = y = "a photo of c", with c as the negative prompt        v is "not c"
    anchor:    p = "a photo of a",  y = "a photo of c"                      v is "a instead of c"
    concept:   p = "a photo of c",  y = "a photo of a"                      v is "c"

Images of all prompts are generated with z Σ v_c, z ``strength``, in the prediction for the prompt only, not in that for the
empty one. As in official code, captions are padded to the longest one of a batch, and v starts from U(±0.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from overpaint.blocks.adapters import edit_output
from overpaint.blocks.draws import Draws, trace_values
from overpaint.blocks.image_bank import ImageBank, diffused, paint, shuffled
from overpaint.blocks.templates import phrase_templates
from overpaint.blocks.training import train
from overpaint.errors import UserError, at_least
from overpaint.grid.concepts import Concept, Request
from overpaint.grid.typed import check_type
from overpaint.methods.eraser import Eraser
from overpaint.models.diffusion import DiffusionModel
from overpaint.models.erasure import Erasure
from overpaint.models.guidance import Guard, Guidance, GuidanceMaker
from overpaint.models.lazily import functional, torch

#: The layer that a vector is added to.
LAYER = "mid_block"
#: Bound of the uniform distribution from which v starts: official code has a layer with 100 inputs, one per concept.
BOUND = 0.1
#: Prompts of a concept, if there are no templates.
SENTENCES = 32


@dataclass(kw_only=True)
class Directions(Eraser):
    """Hyper-parameters; ``conf/method/directions.yaml`` explains each."""

    learn: Literal["negative", "anchor", "concept"]
    strength: float
    default_anchor: str
    text: str | None
    templates: list[str] | None
    pictures: int
    picture_scheduler: str
    picture_steps: int
    picture_guidance: float
    epochs: int
    batch_size: int
    learning_rate: float

    stacks: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False
    lengths: ClassVar[tuple[str, ...]] = ("pictures", "epochs")

    def __post_init__(self):
        at_least(1, pictures=self.pictures, picture_steps=self.picture_steps, epochs=self.epochs)
        at_least(1, batch_size=self.batch_size)
        at_least(0, learning_rate=self.learning_rate)

    def erase(self, model: DiffusionModel, request: Request) -> Erasure:
        draws = Draws(self.seed)
        examples: list[Example] = []
        for number, (concept, anchor) in enumerate(
            zip(request.erase, request.anchors(self.default_anchor), strict=True)
        ):
            examples += self.examples(concept, anchor, number)
        bank = self.bank(model, examples, draws)
        captions = [(example.caption, example.concept) for example in examples]
        directions = self.trained(model, bank, captions, len(request.erase), draws)
        parts = {str(number): v.detach().to(model.dtype).clone() for number, v in enumerate(directions.vectors())}
        return Erasure("directions", "guard", parts=parts, settings={"strength": self.strength})

    def examples(self, concept: Concept, anchor: str, number: int) -> list[Example]:
        """The pictures to make for concept ``number``: their prompts, and the captions that they are trained with."""
        templates = phrase_templates(concept.kind, SENTENCES, self.templates)
        named, other = ([t.format(text) for t in templates] for text in (concept.phrase, anchor))
        unwanted = concept.name if self.text is None else self.text
        prompts, captions, negative = {
            "negative": (named, named, unwanted),
            "anchor": (other, named, ""),
            "concept": (named, other, ""),
        }[self.learn]
        rows = [place % len(templates) for place in range(self.pictures)]
        return [Example(prompts[row], negative, captions[row], number) for row in rows]

    def bank(self, model: DiffusionModel, examples: Sequence[Example], draws: Draws) -> ImageBank:
        """The pictures of the examples, in their order."""
        images = []
        for negative in dict.fromkeys(example.negative for example in examples):
            prompts = [example.prompt for example in examples if example.negative == negative]
            images += paint(
                model,
                prompts,
                draws,
                scheduler=self.picture_scheduler,
                steps=self.picture_steps,
                guidance_scale=self.picture_guidance,
                negative_prompt=negative,
            ).images
        return ImageBank(model, images, [example.caption for example in examples])

    def trained(
        self, model: DiffusionModel, bank: ImageBank, captions: Sequence[tuple[str, int]], concepts: int, draws: Draws
    ) -> Vectors:
        """Vectors of all concepts, trained on pictures with a caption and the number of a concept each."""
        vectors = Vectors.drawn(model, concepts, draws)
        batches = shuffled(draws, "pictures", len(captions), self.batch_size)

        def loss() -> torch.Tensor:
            rows = next(batches)
            x_t, t, noise = diffused(model, latents := bank.latents(rows, draws, "z"), draws)
            ids = draws.take("input_ids", lambda _: shortest_ids(model, [captions[row][0] for row in rows]))
            shown = draws.take("condition", lambda _: torch.eye(concepts)[[captions[row][1] for row in rows]])
            with vectors.active():
                vectors.shown = shown.to(vectors.matrix)
                predicted = model.predict(x_t, t, model.encode_ids(ids.to(model.device)))
            target = model.denoising_target(latents, noise, t)
            trace_values(pred=predicted.detach())
            return functional.mse_loss(predicted.float(), target.float())

        optimizer = torch.optim.Adam(vectors.masters.values(), lr=self.learning_rate)
        train(vectors, optimizer, self.epochs * max(1, len(captions) // self.batch_size), loss)
        return vectors

    @classmethod
    def install(cls, model: DiffusionModel, erasure: Erasure) -> Callable[[], None]:
        check_type(erasure.settings.get("strength"), float, "this erasure's settings: strength")
        strength = erasure.settings["strength"]
        total = torch.stack([part.to(model.device, model.dtype) for part in erasure.parts.values()]).sum(dim=0)
        guard = DirectionGuard().on(model.guidance)
        remove_hook = edit_output(model.feature_maps()[LAYER], guard.adding(strength * total))
        restore = model.guided_by(guard)

        def remove() -> None:
            remove_hook()
            restore()

        return remove


class Example(NamedTuple):
    """A picture's prompt and negative prompt, the caption that it is trained with, and the number of its concept."""

    prompt: str
    negative: str
    caption: str
    concept: int


def shortest_ids(model: DiffusionModel, captions: Sequence[str]) -> torch.Tensor:
    """Ids (n, length) of captions, padded to the longest one only."""
    length = max(len(model.token_ids(caption)) for caption in captions)
    return model.padded_ids(captions, truncate=True)[:, :length]


class Vectors:
    """The trained vectors: the columns of ``matrix`` (channels · h · w, concepts).

    ``shown`` (b, concepts) has a 1 for each vector that is added to a row of the batch, else 0.
    """

    def __init__(self, model: DiffusionModel, start: torch.Tensor, shape: tuple[int, ...]):
        self.layer, self.shape, self.dtype = model.feature_maps()[LAYER], shape, model.dtype
        self.matrix = torch.nn.Parameter(
            start.to(model.device, torch.promote_types(model.dtype, torch.float32)).clone()
        )
        self.masters = {"directions": self.matrix}
        self.shown = torch.ones(1, start.shape[1])

    @classmethod
    def drawn(cls, model: DiffusionModel, concepts: int, draws: Draws) -> Vectors:
        """Vectors with start values from U(±`BOUND`)."""
        shape = h_space(model)
        size = (torch.Size(shape).numel(), concepts)
        return cls(model, draws.take("start", lambda g: BOUND * (2 * torch.rand(size, generator=g) - 1)), shape)

    def vectors(self) -> list[torch.Tensor]:
        """v (channels, h, w) of each concept."""
        return [column.unflatten(0, self.shape) for column in self.matrix.unbind(dim=1)]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Add the vectors that are `shown` to the middle block's output, inside the ``with`` block."""

        def add(h: torch.Tensor) -> torch.Tensor:
            return h + (self.shown @ self.matrix.T).unflatten(1, self.shape).to(h)

        remove = edit_output(self.layer, add)
        try:
            yield
        finally:
            remove()


def h_space(model: DiffusionModel) -> tuple[int, ...]:
    """The shape (channels, h, w) of the middle block's output for a native image."""
    found: list[torch.Tensor] = []

    def keep(h: torch.Tensor) -> torch.Tensor:
        found.append(h)
        return h

    remove = edit_output(model.feature_maps()[LAYER], keep)
    try:
        with torch.no_grad():
            model.predict(model.noise([0]), 0, model.encode([""]))
    finally:
        remove()
    return tuple(found[0].shape[1:])


class DirectionGuard(Guard):
    """Creates the guidance of each batch of images, which adds the vectors to predictions for prompts only.

    Predictions that an attack requests without a guidance are all for prompts, and all get the vectors.
    """

    def __init__(self) -> None:
        #: The rows of the middle block's output that get the vectors.
        self.rows = slice(None)

    def on(self, guidance: GuidanceMaker) -> DirectionGuard:
        """The guard of a model that has ``guidance``: one for several erasures, whose vectors are summed.

        Raises:
            UserError: the model has another kind of guard.
        """
        if guidance is Guidance:
            return self
        if not isinstance(guidance, DirectionGuard):
            raise UserError("method=directions can be combined only with other directions")
        return guidance

    def adding(self, v: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """A function that adds v (channels, h, w) to the chosen rows of the middle block's output (b, channels, h, w)."""

        def add(h: torch.Tensor) -> torch.Tensor:
            if h.shape[1:] != v.shape:
                shapes = " and ".join(" × ".join(map(str, shape)) for shape in (v.shape, h.shape[1:]))
                raise UserError(f"this direction fits images of one size only: it and the middle block are {shapes}")
            h = h.clone()
            h[self.rows] += v.to(h)
            return h

        return add

    def __call__(self, model: DiffusionModel, positive, negative, scale: float, prompts=None) -> Guidance:
        return DirectedGuidance(self, model, positive, negative, scale, prompts)


class DirectedGuidance(Guidance):
    """Classifier-free guidance with the vectors in the prediction for the prompt only."""

    def __init__(self, guard: DirectionGuard, *guidance: Any):
        super().__init__(*guidance)
        self.guard_of_model = guard

    def __call__(self, latents: torch.Tensor, timestep, step: float) -> torch.Tensor:
        before = self.guard_of_model.rows
        self.guard_of_model.rows = slice(len(latents) if self.scale > 1 else 0, None)
        try:
            return super().__call__(latents, timestep, step)
        finally:
            self.guard_of_model.rows = before
