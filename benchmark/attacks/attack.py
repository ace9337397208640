"""The contract of an attack: what it is given (`AttackContext`), and what it leaves (`Assault`) to be generated and judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from overpaint.errors import UserError
from overpaint.grid.concepts import Catalogue, Concept
from overpaint.grid.prompts import Shot

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from overpaint.models.diffusion import DiffusionModel
    from overpaint.models.guidance import Guard


#: Roles of pictures that an attack makes beside its own: of the concept's pictures scrambled, of ordinary pictures.
COMPARISONS = ("scrambled", "ordinary")


@dataclass
class Ledger:
    """What an attack spent. ``forwards`` and ``backwards`` count denoiser evaluations, one an image in the batch."""

    forwards: int = 0
    backwards: int = 0
    text_forwards: int = 0
    images: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    @contextmanager
    def counting(self, model: DiffusionModel) -> Iterator[None]:
        """Count what the model evaluates inside the block, behind pictures too; a recorded forward has its backward."""
        with counting(model, [self]):
            yield


@contextmanager
def counting(model: DiffusionModel, ledgers: Sequence[Ledger]) -> Iterator[None]:
    """Count what the model evaluates inside the block for several ledgers in equal parts; what serves all at once (an
    empty prompt's encoding) counts for each, as if it had been alone."""
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
    """What an attack may know of a picture: whether its judge sees the concept, and how sure it is. A judge that failed
    says no, and that it is not ``known``."""

    success: bool
    score: float
    known: bool = True


class Provenance(NamedTuple):
    """How a search came to a prompt: the whole prompt's token ids without start and end, whether its text reads back as
    them, and the loss of every step since the picture before."""

    ids: Sequence[int]
    stable: bool
    losses: Sequence[float]


class Painted(NamedTuple):
    """A picture that an attack made, for which shot, what its judge said (``None``: not asked), what the attack itself
    measured on the way (by name; see `overpaint.metrics.inversion`), and how a search came to it (`Provenance`). No image:
    it failed when it was made."""

    shot: Shot
    image: Image | None
    verdict: Verdict | None = None
    readings: Mapping[str, float] = {}
    provenance: Provenance | None = None


@dataclass(frozen=True)
class AttackContext:
    """What an attack is given.

    ``concept`` is what it shall bring back; ``shots`` the plain images of the same budget (prompts naming the concept,
    with seeds); ``catalogue`` the world's words; ``victim`` the model with the erasure attached, guards included
    (``None`` for attacks whose ``needs`` is ``"nothing"``); ``examples(n)`` gives n pictures of the concept,
    ``ordinary(n)`` n pictures of other things and their captions, if any.

    ``with unedited() as model:`` lifts the erasure for the block, for attacks that know the original model;
    ``paint(texts, seeds, embeds)`` makes pictures through the victim under the benchmark's protocol (``embeds``
    (n, tokens, width) takes the place of the texts' encodings; ``None`` for a picture that failed); ``judge(images)``
    gives a `Verdict` each.
    ``protocol`` says how pictures are made: scheduler, steps, guidance_scale, size; ``batch_size`` how many the network
    takes at once. ``features(images)`` (n, width), where there is an image encoder, tells how alike pictures are.
    """

    concept: Concept
    shots: Sequence[Shot]
    catalogue: Catalogue
    victim: DiffusionModel | None = None
    examples: Callable[[int], list[Image]] | None = None
    ordinary: Callable[[int], list[tuple[Image, str]]] | None = None
    unedited: Callable[[], AbstractContextManager[DiffusionModel]] | None = None
    paint: Callable[..., list[Image]] | None = None
    judge: Callable[[Sequence[Image]], list[Verdict]] | None = None
    protocol: Mapping[str, object] = field(default_factory=dict)
    batch_size: int = 8
    features: Callable[[Sequence[Image]], torch.Tensor] | None = None

    @property
    def guard(self) -> Guard | None:
        """The sampler guard attached to the victim, if any."""
        return getattr(self.victim.guidance, "guard", None)


@dataclass(frozen=True)
class Assault:
    """What an attack leaves: shots to be made through the victim and the words it learned for them, or, from attacks
    that make their own pictures, the pictures in the order in which they were made (``shots`` are theirs then)."""

    shots: list[Shot]
    tokens: Mapping[str, torch.Tensor] = field(default_factory=dict)  # placeholder -> input embedding (width,)
    ledger: Ledger = field(default_factory=Ledger)
    painted: list[Painted] = field(default_factory=list)


@dataclass(kw_only=True)
class Attack(ABC):
    """An attack. Fields are hyper-parameters, whose defaults live in ``conf/attack/<name>.yaml``.

    ``needs`` is what it looks at: ``"nothing"`` (a list of prompts, shared by all victims), ``"model"`` (the tokenizer
    and text encoder; shared by all victims of one model) or ``"victim"``. ``unit`` is what one run of it is for: all
    prompts of a ``"concept"``, or each ``"prompt"`` by itself, stored and resumed by itself. ``paints`` says that it
    makes its own pictures; `images` how many a shot at most, which is what its control gets (`images_for`); `shown`
    whether it is shown pictures of the concept. ``enters_by`` is where it comes in (`overpaint.grid.scope.ENTRIES`);
    ``worded`` says that texts and seeds alone make its pictures again, so that they can be a list. ``together`` is how
    many shots it attacks at once, where that is faster (`run_together`).
    """

    seed: int = 0

    version: ClassVar[int] = 1
    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    needs: ClassVar[str] = "nothing"
    unit: ClassVar[str] = "concept"
    paints: ClassVar[bool] = False
    enters_by: ClassVar[str] = "prompt"
    worded: ClassVar[bool] = True
    together: ClassVar[int] = 1

    @property
    def images(self) -> int:
        """The most images it makes for one shot."""
        return 1

    def images_for(self, concept: Concept, shots: Sequence[Shot]) -> int:
        """The most images it makes for one of these plain shots of a concept; 0 where it can make none."""
        return self.images

    @property
    def shown(self) -> bool:
        """Is it shown pictures of the concept?"""
        return self.needs == "victim"

    def check_family(self, family: str, name: str) -> None:
        """Refuse a model of a family that this attack does not run on; ``name`` is the attack's name in ``attack=``."""
        if self.needs != "nothing" and family not in self.families:
            raise UserError(f"attack={name} runs on models of the families {', '.join(self.families)}, not on {family}")

    def check(self, judged: bool) -> None:  # noqa: B027 - most have nothing to refuse
        """Refuse settings with which it can find nothing; ``judged``: is there something that judges its pictures?"""

    def shortened(self, context: AttackContext) -> int:
        """How many of the context's prompts it reads without their end, since the model takes no more."""
        return context.victim.too_long(list(dict.fromkeys(shot.prompt.text for shot in context.shots)))

    @abstractmethod
    def run(self, context: AttackContext) -> Assault:
        """Attack; the same context and seed give the same assault.

        Shots have role ``attacked``; what an attack makes only to compare has one of `COMPARISONS`.
        """

    def run_together(self, contexts: Sequence[AttackContext]) -> list[Assault]:
        """What `run` makes, but for rounding, of each of several contexts that differ in their shots alone."""
        return [self.run(context) for context in contexts]
