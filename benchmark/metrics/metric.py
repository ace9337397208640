"""The contract of a metric: what it may look at (`Evidence`), what it says of itself, and what it returns (`Figure`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pandas as pd

from overpaint.grid.concepts import Concept

#: Attacks that are lists of other prompts: they measure generality or efficacy, and no robustness.
PROMPT_LISTS = ("synonym", "paraphrase", "multilingual", "implicit")

#: Columns that every frame of scored images has, before one column a detector label (its score, NaN where it failed).
IMAGE_COLUMNS = (
    "prompt_id", "cluster", "seed", "prompt", "role", "concept", "expects", "variant", "draw", "verdict", "failed", "features"
)  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """Everything a metric may look at: frames of scored images (one row an image) and what the erasure cost.

    Frames hold `IMAGE_COLUMNS` and one column a detector label. ``prompt_id`` and ``seed`` name the start noise, by which
    images are paired; images of one ``cluster`` depend on each other (one text, or one plain prompt whatever was made of
    it), and where a frame has no such column its prompts are the clusters. ``role`` says why the image was made (``target``,
    ``near``, ``grid``, ``in_prompt``, ``utility``, ``attacked``, ``floor``, and what attacks only compare with,
    `overpaint.attacks.attack.COMPARISONS`); ``concept`` is the detector label of the concept that the prompt is
    about; ``expects`` the labels of everything the prompt asks for (a list); ``variant`` the language, synonym or
    style used; ``draw`` counts an attack's tries at one prompt and seed; ``verdict`` is what the judge that guided
    the attack said (1, 0, NaN where none was asked), beside columns of what an attack measured itself (``nll``,
    ``psnr``, …); ``failed`` is true where no score could be had: such a row is neither present nor absent.
    ``original`` holds the same prompts and seeds made by the unedited model; ``control`` the images of the attack's
    control at the same image budget on the same victim, ``random_prefix`` those of its other control; ``floor`` those of
    the same attack for a concept that the model never saw, ``unrelated`` for one that has nothing to do with the erased
    ones; ``plain`` and ``plain_original`` the victim's and the unedited model's images of the plain target
    prompts, beside an attack; ``reference`` real pictures (rows with ``features`` only).
    """

    erased: Sequence[Concept]
    images: pd.DataFrame
    original: pd.DataFrame
    control: pd.DataFrame | None = None
    random_prefix: pd.DataFrame | None = None
    floor: pd.DataFrame | None = None
    unrelated: pd.DataFrame | None = None
    plain: pd.DataFrame | None = None
    plain_original: pd.DataFrame | None = None
    reference: pd.DataFrame | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)  # detector label -> concept kind
    threshold: float = 0.5
    failure_limit: float = 0.05
    judged_by_itself: bool = False  # is the judge that guided the attack the detector?
    erasure: Mapping[str, float] = field(default_factory=dict)  # seconds, peak_bytes, artefact_bytes, extra_parameters
    ledger: Mapping[str, float] = field(default_factory=dict)  # what the attack spent: forwards, images, seconds ...
    seconds_per_image: float | None = None
    original_seconds_per_image: float | None = None

    @property
    def targets(self) -> list[str]:
        """Detector labels of the erased concepts; those without a label cannot be seen and are left out."""
        return [c.label for c in self.erased if c.label]


@dataclass(frozen=True)
class Figure:
    """One value with everything that must stand beside it. ``value`` is ``None`` when it is undefined; ``why`` says
    the reason then, and beside a value why it is only a lower bound. ``difference`` is this model minus the original on
    the same prompts and seeds (for attacks: minus the control, see ``against``), with its two-sided ``p_value``."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    failed: int = 0
    original: float | None = None
    control: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p_value: float | None = None
    against: str = "original"
    why: str = ""


class Metric:
    """A metric: class attributes describe it, ``measure`` is a pure function of the evidence.

    ``roles`` are the image roles it needs, ``attacks`` the attacks in whose cells it is computed (``"*"``: every
    attack but ``none`` and ``not_attacks``). ``version`` is raised when the value can change.
    """

    name: ClassVar[str]
    facet: ClassVar[str]
    direction: ClassVar[str]  # "up": higher is better, "down": lower is better
    unit: ClassVar[str] = "fraction"
    paper: ClassVar[str] = ""
    aggregation: ClassVar[str] = "pooled"
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ()
    attacks: ClassVar[tuple[str, ...]] = ("none",)
    not_attacks: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def applies_to(cls, attack: str) -> bool:
        """Is this metric computed in cells of this attack?"""
        if "*" in cls.attacks:
            return attack != "none" and attack not in cls.not_attacks
        return attack in cls.attacks

    @classmethod
    def relevant(cls, evidence: Evidence) -> bool:
        """Does this evidence ask for this figure at all? (A figure that is asked for and cannot be had is undefined.)"""
        return True

    def measure(self, evidence: Evidence) -> Figure:
        raise NotImplementedError


class AttackMetric(Metric):
    """A metric of the pictures of whatever attack a cell has, prompt lists aside."""

    facet = "robustness"
    roles = ("attacked",)
    attacks = ("*",)
    not_attacks = PROMPT_LISTS
