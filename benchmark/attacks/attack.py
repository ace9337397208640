"""The contract of an attack: what it is given (`AttackContext`) and what it returns (`Assault`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn, Protocol, TypedDict

from overpaint.errors import UserError
from overpaint.grid.concepts import Catalogue, Concept
from overpaint.grid.lengths import Shortenable
from overpaint.grid.prompts import Shot

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from overpaint.models.diffusion import DiffusionModel
    from overpaint.models.erasure import TensorChange
    from overpaint.models.guidance import Guard


#: Roles of images that an attack makes for comparison: from scrambled images of the concept, and from ordinary images.
COMPARISONS = ("scrambled", "ordinary")


@dataclass
class Ledger:
    """What an attack spent. ``forwards`` and ``backwards`` count denoiser evaluations, one per image in a batch."""

    forwards: int = 0
    backwards: int = 0
    text_forwards: int = 0
    images: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Every count by name."""
        return asdict(self)

    def add(self, other: Ledger) -> None:
        """Add what another ledger counted."""
        for key, spent in other.as_dict().items():
            setattr(self, key, getattr(self, key) + spent)

    @contextmanager
    def counting(self, model: DiffusionModel) -> Iterator[None]:
        """Count the model's evaluations inside the block, image generation included.

        A forward pass that records gradients is taken to have a backward pass.
        """
        with counting(model, [self]):
            yield


@contextmanager
def counting(model: DiffusionModel, ledgers: Sequence[Ledger]) -> Iterator[None]:
    """Count the model's evaluations inside the block, in equal parts for several ledgers.

    An evaluation that serves all at once, such as encoding the empty prompt, counts in full for each ledger.
    """
    import torch

    def share(inputs) -> int:
        return max(1, len(inputs[0]) // len(ledgers))

    def denoised(module, inputs) -> None:
        for ledger in ledgers:
            ledger.forwards += share(inputs)
            ledger.backwards += share(inputs) * torch.is_grad_enabled()

    def read(module, inputs) -> None:
        for ledger in ledgers:
            ledger.text_forwards += share(inputs)

    watched = [(model.denoiser, denoised), (model.text_encoder, read)]
    hooks = [part.register_forward_pre_hook(hook) for part, hook in watched]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Verdict(NamedTuple):
    """What an attack may know about an image: whether its judge sees the concept, and the judge's score.

    If the judge failed, ``success`` and ``known`` are false.
    """

    success: bool
    score: float
    known: bool = True


class Provenance(NamedTuple):
    """How a search came to a prompt.

    ``ids`` are the token ids of the whole prompt without start and end token, ``stable`` says whether its text is
    tokenized to the same ids, ``losses`` are those of every step since the previous image.
    """

    ids: Sequence[int]
    stable: bool
    losses: Sequence[float]


class Painted(NamedTuple):
    """An image that an attack made, with its shot.

    ``image`` is ``None`` if generation failed, ``verdict`` is ``None`` without a judge. ``readings`` are what the
    attack itself measured, by name (see `overpaint.metrics.inversion`), ``provenance`` says how a search came to the
    image.
    """

    shot: Shot
    image: Image | None
    verdict: Verdict | None = None
    readings: Mapping[str, float] = {}
    provenance: Provenance | None = None


class ImageProtocol(TypedDict, total=False):
    """How the benchmark generates images."""

    scheduler: str
    steps: int
    guidance_scale: float
    size: int | None


class Paint(Protocol):
    """Generates images from the victim; see `AttackContext`."""

    def __call__(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        embeds: torch.Tensor | None = None,
        guidance: float | None = None,
        worded: bool = True,
    ) -> list[Image | None]: ...


class NotGiven:
    """Stands for what an attack is not given. It is false in a condition; any other use raises an error that says so."""

    message = 'an attack whose `needs` is "nothing" has no victim, no unedited model and no way to make images'

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(self.message)

    def __call__(self, *arguments: object, **options: object) -> NoReturn:
        raise TypeError(self.message)


#: The default of the fields of `AttackContext` that an attack with another `needs` may rely on.
NOT_GIVEN: Any = NotGiven()


@dataclass(frozen=True)
class AttackContext:
    """What an attack is given.

    - ``concept``: the concept to bring back. ``catalogue``: the words of its world.
    - ``shots``: the plain images of the same budget, as prompts that name the concept, with seeds.
    - ``victim``: the model with the erasure attached, guards included. Like ``unedited`` and ``paint`` it is `NOT_GIVEN`
      if the attack ``needs`` ``"nothing"``.
    - ``examples(n)``: n images of the concept. ``ordinary(n)``: n images of other things, with their captions.
    - ``with unedited() as model:`` detaches the erasure inside the block, for attacks that know the original model.
    - ``with adapted(change) as model:`` puts ``change(name, tensor)`` in place of the own tensors of the victim's adapters inside
      the block, for attacks on weights.
    - ``paint(texts, seeds, embeds=None, guidance=None, worded=True)``: images from the victim under the benchmark's protocol,
      ``None`` where generation failed. ``embeds`` (n, tokens, width) replace the encodings of the texts. With ``worded=False``,
      they are of no text, and guards read none.
    - ``judge(images)``: a `Verdict` for each image. ``features(images)``: feature vectors (n, width) to compare images
      by. Either is ``None`` if the model's configuration has no such network.
    - ``protocol``: scheduler, steps, guidance_scale and size. ``batch_size``: rows in one forward pass.
    """

    concept: Concept
    shots: Sequence[Shot]
    catalogue: Catalogue
    victim: DiffusionModel = NOT_GIVEN
    examples: Callable[[int], list[Image]] | None = None
    ordinary: Callable[[int], list[tuple[Image, str]]] | None = None
    unedited: Callable[[], AbstractContextManager[DiffusionModel]] = NOT_GIVEN
    paint: Paint = NOT_GIVEN
    judge: Callable[[Sequence[Image | None]], list[Verdict]] | None = None
    protocol: ImageProtocol = field(default_factory=ImageProtocol)
    batch_size: int = 8
    features: Callable[[Sequence[Image]], torch.Tensor] | None = None
    adapted: Callable[[TensorChange], AbstractContextManager[DiffusionModel]] = NOT_GIVEN

    def verdicts(self, images: Sequence[Image | None]) -> list[Verdict | None]:
        """A verdict for each image, or ``None`` for each without a judge."""
        return list(self.judge(images)) if self.judge else [None] * len(images)

    def concept_images(self, count: int, attack: str) -> list[Image]:
        """Up to ``count`` images of the concept. Raises `UserError`, which names the ``attack``, if there are none."""
        images = list(self.examples(count)) if self.examples else []
        if not images:
            raise UserError(f"attack={attack} needs images of {self.concept.name!r}, and there are none")
        return images

    @property
    def guard(self) -> Guard | None:
        """The sampler guard attached to the victim, if any."""
        return self.victim.guidance.guard


@dataclass(frozen=True)
class Assault:
    """What an attack returns.

    Either ``shots`` to be generated from the victim, with the ``tokens`` that the attack learned for their prompts. Or,
    if the attack generates its own images, these in order in ``painted``, and their shots in ``shots``.
    """

    shots: list[Shot]
    tokens: Mapping[str, torch.Tensor] = field(default_factory=dict)  # placeholder -> input embedding (width,)
    ledger: Ledger = field(default_factory=Ledger)
    painted: list[Painted] = field(default_factory=list)


@dataclass(kw_only=True)
class Attack(Shortenable, ABC):
    """An attack. Fields are hyper-parameters; their defaults are in ``conf/attack/<name>.yaml``.

    Class attributes describe it:

    - ``version`` is raised when its result can change.
    - ``families`` are the model families on which it runs (`check_family`).
    - ``needs`` is what it works on: ``"nothing"`` (it changes prompts; all victims share the result), ``"model"``
      (tokenizer and text encoder; all victims of one model share the result) or ``"victim"``.
    - ``unit`` is what one run covers, is stored and resumed by: all prompts of a ``"concept"``, or one ``"prompt"``.
    - ``paints`` says that it generates its own images.
    - ``enters_by`` is the place where it enters the model (`overpaint.grid.scope.ENTRIES`).
    - ``worded`` says that texts and seeds are enough to generate its images again, so that they can be exported as a
      list.
    - ``merges`` says that it scales the erasure. Methods whose erasures cannot be scaled are refused (`Eraser.mergeable`).
    - ``together`` is the number of shots that it attacks side by side (`run_together`).
    - ``draws`` says whether the result depends on the seed. An attack that does not draw is run for one seed only.
    - ``lengths``, ``endless``, ``combined`` and ``paced`` are the hyper-parameters that a budget may shorten
      (`overpaint.grid.lengths.Shortenable`).
    """

    seed: int = 0

    version: ClassVar[int] = 1
    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    needs: ClassVar[str] = "nothing"
    unit: ClassVar[str] = "concept"
    paints: ClassVar[bool] = False
    enters_by: ClassVar[str] = "prompt"
    worded: ClassVar[bool] = True
    merges: ClassVar[bool] = False
    together: ClassVar[int] = 1
    draws: ClassVar[bool] = True

    @property
    def images(self) -> int:
        """The most images that it makes for one shot. Its control makes as many."""
        return 1

    @property
    def matched(self) -> Mapping[str, Any] | None:
        """The settings with which ``random_words`` does what this attack does, but for the search; ``None`` if it cannot."""
        return None

    def images_for(self, concept: Concept, shots: Sequence[Shot]) -> int:
        """The most images that it makes for one of these plain shots of a concept; 0 if it can make none."""
        return self.images

    @property
    def networks(self) -> tuple[str, ...]:
        """Hyper-parameters that name a network that the attack loads from the hub. Its commit is part of keys."""
        return ()

    @property
    def shown(self) -> bool:
        """Whether it is shown images of the concept."""
        return self.needs == "victim"

    def check_family(self, family: str | None, name: str) -> None:
        """Refuse a model of a family that this attack does not run on; ``name`` is the attack's name in ``attack=``.

        ``family`` is ``None`` for a hub model that is not known before it is downloaded.
        """
        if self.needs != "nothing" and family and family not in self.families:
            raise UserError(f"attack={name} runs on models of the families {', '.join(self.families)}, not on {family}")

    def check(self, judged: bool) -> None:
        """Refuse settings that cannot find anything; ``judged`` says whether a judge looks at its images."""

    def shortened(self, context: AttackContext) -> int:
        """How many of the context's prompts it truncates because they are over-long."""
        return context.victim.too_long(list(dict.fromkeys(shot.prompt.text for shot in context.shots)))

    @abstractmethod
    def run(self, context: AttackContext) -> Assault:
        """Run the attack. The same context and seed give the same assault.

        Shots have the role ``attacked``; those of images for comparison have one of `COMPARISONS`.
        """

    def run_together(self, contexts: Sequence[AttackContext]) -> list[Assault]:
        """`run` for several contexts that differ only in their shots, with the same results up to rounding."""
        return [self.run(context) for context in contexts]


def in_place_of_the_prompt(tokens: int) -> Mapping[str, Any]:
    """`Attack.matched` of an attack that makes one text of words, in place of the prompt, without a judge."""
    return {"place": "whole", "tokens": tokens, "tries": 1, "plain": False, "stop_early": False}
