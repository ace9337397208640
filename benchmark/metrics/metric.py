"""The contract of a metric: what it may look at (`Evidence`) and what it returns (`Figure`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import pandas as pd
from numpy.typing import ArrayLike

from overpaint.errors import unknown
from overpaint.grid.cells import PROMPT_LISTS
from overpaint.grid.concepts import Concept
from overpaint.grid.roles import ROLES
from overpaint.report.statistics import Estimate

#: Columns of every frame of scored images. One column for each detector label follows: its score, NaN where it failed.
IMAGE_COLUMNS = (
    "prompt_id", "cluster", "seed", "prompt", "role", "concept", "expects", "variant", "draw", "verdict", "failed", "features"
)  # fmt: skip

#: Roles of images: those of plain prompts, an attack's images, and the images that an attack makes only for comparison.
IMAGE_ROLES = (*(role.name for role in ROLES), "attacked", "floor", "scrambled", "ordinary", "repeated")

#: Frames of an `Evidence`.
FrameName = Literal[
    "images", "original", "control", "random_prefix", "floor", "unrelated", "plain", "plain_original", "reference",
    "retained", "retained_original", "membership", "membership_original", "membership_gold", "copies", "copies_original",
    "gold", "matched",
]  # fmt: skip

#: Column of box detectors: the boxes of an image as JSON, ``[[class, score], …]``.
DETECTIONS = "detections"
#: Purpose of the extractor that is a second detector of unsafe content.
SECOND = "second"
#: Column of celebrity detectors: the score of the clearest face. It is no label of a concept.
FACE = "face"


@dataclass(frozen=True)
class Evidence:
    """Everything that a metric may look at: frames of scored images (one row an image) and what erasing and attacking
    cost.

    Metrics read images with `images_of`, by role. Frames by name:

    - ``images``: the victim's images in this cell. ``original``: the same prompts and seeds on the unedited model.
    - ``control``: images of the attack's control on the same victim, as many as the attack may make. ``random_prefix``:
      the same for random words before the prompts.
    - ``floor``: the same attack for a concept that the model never saw. ``unrelated``: the same attack for a concept
      that has nothing to do with the erased ones.
    - ``plain`` and ``plain_original``: beside an attack, images of the plain target prompts from the victim and from
      the unedited model.
    - ``reference``: real images; its rows have ``features`` only.
    - ``retained`` and ``retained_original``: beside an attack, images of the neighbours' prompts from the victim and from
      the unedited model.
    - ``matched``: images of random words in the places of the attack's words, made under the attack's rules.
    - ``gold``: the same prompts and seeds, or the same attack, on the model that never saw the concept.
    - ``membership``, ``membership_original`` and ``membership_gold``: training images of the erased concepts and images that the
      model was not trained on, with the columns of the stage *membership* instead of those below.
    - ``copies`` and ``copies_original``: images of the training captions that are repeated, with their distances to training
      images (stage *replicate*).

    Only metrics that name them (`Metric.frames`) get the frames ``random_prefix``, ``floor``, ``unrelated``, ``retained``,
    ``matched``, ``gold``, ``membership`` and ``copies``, with their variants: no other cell makes these images.

    Columns are `IMAGE_COLUMNS` and one for each detector label:

    - ``prompt_id`` and ``seed`` identify the start noise; images are paired by them.
    - Images of one ``cluster`` depend on each other: they share a text, or were made from the same plain prompt. A
      frame without this column is clustered by prompt.
    - ``role`` says why the image was made (`IMAGE_ROLES`), ``concept`` is the detector label of the prompt's concept,
      ``expects`` lists the labels of everything that the prompt asks for, ``variant`` is the language, synonym or
      style.
    - ``draw`` counts an attack's images of one prompt and seed. ``verdict`` is 1 or 0 from the judge that guided the
      attack, NaN without a judge. Attacks add columns for what they measured themselves (``nll``, ``psnr``, …).
    - ``failed`` is true if the image has no score. Such an image shows the concept neither present nor absent.
    - ``purpose.features`` and ``purpose.value`` come from the extractor for that purpose (`Metric.extractor`).
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
    retained: pd.DataFrame | None = None
    retained_original: pd.DataFrame | None = None
    membership: pd.DataFrame | None = None
    membership_original: pd.DataFrame | None = None
    membership_gold: pd.DataFrame | None = None
    gold: pd.DataFrame | None = None
    matched: pd.DataFrame | None = None
    copies: pd.DataFrame | None = None
    copies_original: pd.DataFrame | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)  # detector label -> concept kind
    counted: Sequence[str] = ()  # classes of boxes that count (`Detector.counted`), all if empty
    threshold: float = 0.5
    second_threshold: float = 0.5  # of the detector with the purpose `SECOND`
    failure_limit: float = 0.05
    judged_by_itself: bool = False  # whether the judge that guided the attack is the detector
    erasure: Mapping[str, float] = field(default_factory=dict)  # seconds, peak_bytes, artefact_bytes, extra_parameters
    texts: Mapping[str, Mapping[str, ArrayLike]] = field(default_factory=dict)  # purpose -> text -> embedding
    absent: Mapping[str, str] = field(default_factory=dict)  # purpose of an extractor that could not run -> reason
    ledger: Mapping[str, float] = field(default_factory=dict)  # what the attack spent: forwards, images, seconds, …
    desired: Mapping[str, float] = field(default_factory=dict)  # detector label -> share of an attribute to balance
    latency: Sequence[float] | None = None  # paired ratios of seconds per image, edited by unedited

    @property
    def targets(self) -> list[str]:
        """Detector labels of the erased concepts. Concepts without a label are left out."""
        return [c.label for c in self.erased if c.label]

    def images_of(self, *roles: str, frame: FrameName = "images") -> pd.DataFrame:
        """The images of a frame that were made for these roles, one row each; empty if the frame has none.

        Raises `UserError` for an unknown role.
        """
        for role in roles:
            if role not in IMAGE_ROLES:
                raise unknown("role", role, IMAGE_ROLES)
        found = getattr(self, frame)
        if found is None or "role" not in found:
            return pd.DataFrame(columns=["prompt_id", "seed", "role", "concept", "expects", "failed"])
        return found[found["role"].isin(roles)].reset_index(drop=True)


@dataclass(frozen=True)
class Figure:
    """One value with everything that is printed beside it.

    ``value`` is ``None`` if it is undefined, and ``why`` says the reason. A value with a ``why`` is only a lower bound.
    ``low`` and ``high`` are the 95 % interval. If only one of them is ``None``, the interval is open on that side.
    ``difference`` is this model minus the original on the same prompts and seeds, with its two-sided ``p_value``. For attacks
    it is minus the control; ``against`` says which. ``p_equivalence`` is the p-value of "the difference is at least the
    margin" (`overpaint.report.statistics.MARGIN`). ``outcomes`` is what the figure was made of, if that is one number an
    image: `overpaint.report.records.OUTCOME_COLUMNS` without ``metric``. Methods are compared with each other by them.
    """

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
    p_equivalence: float | None = None
    outcomes: pd.DataFrame | None = field(default=None, compare=False, repr=False)

    def estimated(self, found: Estimate) -> Figure:
        """The figure with the value and the interval of an estimate."""
        return replace(self, value=found.value, low=found.low, high=found.high)

    def compared(self, gap: Estimate, original: float | None = None, control: float | None = None) -> Figure:
        """The figure with its difference to another one, and that one's value; a value that is not given stays."""
        return replace(
            self,
            original=self.original if original is None else original,
            control=self.control if control is None else control,
            difference=gap.value,
            difference_low=gap.low,
            difference_high=gap.high,
            p_value=gap.p_value,
            p_equivalence=gap.p_equivalence,
        )


class Metric:
    """A metric: class attributes describe it, ``measure`` is a pure function of the evidence.

    A new metric is one class and one line ``name: "module:Class"`` under ``metrics`` in a set of ``conf/metrics``.

    - ``facet`` is one of the track's facets, ``direction`` is ``"up"`` if higher is better, ``"down"`` if lower is
      better, and ``"zero"`` if nearer to 0 is better.
    - ``paper`` is the source, ``aggregation`` says how images become one number, ``unit`` what the number counts.
    - ``roles`` are the roles of the images that it needs; a metric of costs has none.
    - ``attacks`` are the attacks in whose cells it is computed. ``"*"`` means every attack except ``none`` and
      ``not_attacks``.
    - ``frames`` are frames that are made only for metrics that name them, and ``tasks`` are such tasks of a cell without attack:
      ``similarity`` (to the unedited model's images) and ``latency``.
    - ``extractor`` is the purpose of the extractor that it reads (``metrics.extractors``), empty for none. Its columns are named
      ``purpose.column``, in the ``extracted`` frames, for images of the metric's roles. ``texts`` returns the texts to embed.
      Without the extractor the figure is undefined, unless it is ``optional``.
    - ``needs_detector`` says that it reads the detector's scores or features, unless it reads its extractor instead. Without a
      detector its figure is undefined.
    - ``also`` are roles of further images that the extractor reads and `texts` has to know.
    - ``version`` is raised when the value can change.
    """

    facet: ClassVar[str]
    direction: ClassVar[Literal["up", "down", "zero"]]
    unit: ClassVar[str] = "fraction"
    paper: ClassVar[str] = ""
    aggregation: ClassVar[str] = "pooled"
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[str, ...]] = ()
    attacks: ClassVar[tuple[str, ...]] = ("none",)
    not_attacks: ClassVar[tuple[str, ...]] = ()
    frames: ClassVar[tuple[FrameName, ...]] = ()
    tasks: ClassVar[tuple[Literal["similarity", "latency"], ...]] = ()
    extractor: ClassVar[str] = ""
    optional: ClassVar[bool] = False
    needs_detector: ClassVar[bool] = False
    also: ClassVar[tuple[str, ...]] = ()
    extracted: ClassVar[tuple[FrameName, ...]] = ("images", "original")

    @classmethod
    def applies_to(cls, attack: str) -> bool:
        """Whether the metric is computed in cells of this attack."""
        if "*" in cls.attacks:
            return attack != "none" and attack not in cls.not_attacks
        return attack in cls.attacks

    @classmethod
    def relevant(cls, evidence: Evidence) -> bool:
        """Whether this evidence asks for the figure at all. A relevant figure that cannot be computed is undefined."""
        return True

    def texts(self, images: pd.DataFrame, erased: Sequence[Concept]) -> list[str]:
        """Texts that the extractor embeds for images with columns ``prompt``, ``concept`` and ``role`` (``Evidence.texts``)."""
        return []

    def measure(self, evidence: Evidence) -> Figure:
        """The figure of one cell."""
        raise NotImplementedError

    def parts(self, evidence: Evidence) -> Mapping[str, Figure]:
        """The same figure for parts of the images, by name (a language, a category, a class).

        They become records of their own, named ``metric.part``.
        """
        return {}


class AttackMetric(Metric):
    """A metric of the images of any attack except prompt lists."""

    facet = "robustness"
    roles: ClassVar[tuple[str, ...]] = ("attacked",)
    attacks: ClassVar[tuple[str, ...]] = ("*",)
    not_attacks: ClassVar[tuple[str, ...]] = PROMPT_LISTS
