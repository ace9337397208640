"""What an erasure costs: to make, to keep, and at every image afterwards."""

from __future__ import annotations

import math
from typing import ClassVar

from overpaint.metrics.metric import PROMPT_LISTS, AttackMetric, Evidence, Figure, Metric


class ErasureCost(Metric):
    """A number that was metered while erasing."""

    facet = "sustainability"
    direction = "down"
    paper = "HUB, arXiv 2410.05664"
    aggregation = "one erasure"
    metered: ClassVar[str]

    def measure(self, evidence: Evidence) -> Figure:
        value = _number(evidence.erasure.get(self.metered))
        return Figure(None, why=f"{self.metered} was not metered") if value is None else Figure(value, n=1)


class EraseSeconds(ErasureCost):
    """Wall-clock seconds from the request to the finished erasure, with the preparation of whatever the method needs."""

    unit = "seconds"
    metered = "seconds"


class ErasePeakBytes(ErasureCost):
    """Peak memory while erasing: of the accelerator, or of the process on a CPU."""

    unit = "bytes"
    metered = "peak_bytes"


class ArtefactBytes(ErasureCost):
    """Bytes that must be kept beside the base model: a full U-Net for some methods, a few kilobytes for others."""

    unit = "bytes"
    metered = "artefact_bytes"


class LatencyRatio(Metric):
    """Seconds an image takes with the erasure attached, relative to the original model's at equal steps and batch."""

    facet = "sustainability"
    direction = "down"
    unit = "ratio"
    paper = "SAFREE, arXiv 2410.12761"
    aggregation = "one erasure"

    def measure(self, evidence: Evidence) -> Figure:
        here, there = _number(evidence.seconds_per_image), _number(evidence.original_seconds_per_image)
        if here is None or not there:
            return Figure(None, why="seconds per image were not metered for both models")
        return Figure(here / there, n=1, original=1.0, difference=here / there - 1)


class AttackCost(AttackMetric):
    """What an attack spent on one plain image, a prompt with its seed, on average: the more, the harder the concept is to
    bring back."""

    direction = "up"
    paper = "UnlearnDiffAtk, arXiv 2310.11868"
    aggregation = "total over plain images"
    version = 2
    roles = ()  # of the ledger, not of pictures
    not_attacks = (*PROMPT_LISTS, "random_prefix", "seed_search")
    metered: ClassVar[str]

    def measure(self, evidence: Evidence) -> Figure:
        spent, attacked = _number(evidence.ledger.get(self.metered)), evidence.images_of("attacked")
        plain = len(attacked[["prompt_id", "seed"]].drop_duplicates())
        if spent is None or not plain:
            return Figure(None, why=f"the attack's {self.metered} were not metered")
        return Figure(spent / plain, n=plain)


class AttackImages(AttackCost):
    """Images made for a plain one, the one it stopped at included."""

    unit = "images"
    metered = "images"


class AttackForwards(AttackCost):
    """Denoiser evaluations for a plain image, before any picture that it settled on is made for the table."""

    unit = "forwards"
    metered = "forwards"


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
