"""The contract of an attack: what it is given (`Scene`), and what it leaves (`Assault`) to be generated and judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, ClassVar

from overpaint.concepts import Catalogue, Concept
from overpaint.prompts import Shot

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from overpaint.models.diffusion import DiffusionModel


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


@dataclass(frozen=True)
class Scene:
    """What an attack is given.

    ``concept`` is what it shall bring back; ``shots`` the plain images of the same budget (prompts naming the concept,
    with seeds); ``catalogue`` the world's words; ``victim`` the model with the erasure attached, guards included
    (``None`` for attacks whose ``needs`` is ``"nothing"``); ``examples(n)`` gives n pictures of the concept.
    """

    concept: Concept
    shots: Sequence[Shot]
    catalogue: Catalogue
    victim: DiffusionModel | None = None
    examples: Callable[[int], list[Image]] | None = None


@dataclass(frozen=True)
class Assault:
    """What an attack leaves: shots to be made through the victim, and the words it learned for them."""

    shots: list[Shot]
    tokens: Mapping[str, torch.Tensor] = field(default_factory=dict)  # placeholder -> input embedding (width,)
    ledger: Ledger = field(default_factory=Ledger)


@dataclass(kw_only=True)
class Attack(ABC):
    """An attack. Fields are hyper-parameters, whose defaults live in ``conf/attack/<name>.yaml``.

    ``needs`` is what it looks at: ``"nothing"`` (a list of prompts, shared by all victims), ``"model"`` (the tokenizer;
    shared by all victims of one model) or ``"victim"``.
    """

    seed: int = 0

    version: ClassVar[int] = 1
    needs: ClassVar[str] = "nothing"

    @abstractmethod
    def run(self, scene: Scene) -> Assault:
        """Attack; the same scene and seed give the same assault. Shots have role ``attacked``."""
