"""The cost of an erasure: to make it, to store it, and to generate each image with it. The cost of an attack."""

from __future__ import annotations

import math
from typing import ClassVar

from overpaint.metrics.metric import PROMPT_LISTS, AttackMetric, Evidence, Figure, Metric


class ErasureCost(Metric):
    """A number that was measured while erasing."""

    facet = "sustainability"
    direction = "down"
    paper = "HUB, arXiv 2410.05664"
    aggregation = "one erasure"
    metered: ClassVar[str]

    def measure(self, evidence: Evidence) -> Figure:
        value = _number(evidence.erasure.get(self.metered))
        return Figure(None, why=f"{self.metered} was not measured") if value is None else Figure(value, n=1)


class EraseSeconds(ErasureCost):
    """Wall-clock seconds from the request to the finished erasure, including all preparation by the method."""

    unit = "seconds"
    metered = "seconds"


class ErasePeakBytes(ErasureCost):
    """Peak memory while erasing, of the accelerator, or of the process on a CPU."""

    unit = "bytes"
    metered = "peak_bytes"


class ArtefactBytes(ErasureCost):
    """Bytes to store beside the base model: from a few kilobytes to a full U-Net."""

    unit = "bytes"
    metered = "artefact_bytes"


class LatencyRatio(Metric):
    """Seconds per image with the erasure, divided by those of the original model at equal steps and batch size."""

    facet = "sustainability"
    direction = "down"
    unit = "ratio"
    paper = "SAFREE, arXiv 2410.12761"
    aggregation = "one erasure"

    def measure(self, evidence: Evidence) -> Figure:
        here, there = _number(evidence.seconds_per_image), _number(evidence.original_seconds_per_image)
        if here is None or not there:
            return Figure(None, why="seconds per image were not measured for both models")
        return Figure(here / there, n=1, original=1.0, difference=here / there - 1)


class AttackCost(AttackMetric):
    """The mean that an attack spent on one plain image (a prompt with its seed). A concept that costs more is harder to
    bring back."""

    direction = "up"
    paper = "UnlearnDiffAtk, arXiv 2310.11868"
    aggregation = "total over plain images"
    version = 2
    roles = ()  # read from the ledger, not from images
    not_attacks = (*PROMPT_LISTS, "random_prefix", "seed_search")
    metered: ClassVar[str]

    def measure(self, evidence: Evidence) -> Figure:
        spent, attacked = _number(evidence.ledger.get(self.metered)), evidence.images_of("attacked")
        plain = len(attacked[["prompt_id", "seed"]].drop_duplicates())
        if spent is None or not plain:
            return Figure(None, why=f"the attack's {self.metered} were not measured")
        return Figure(spent / plain, n=plain)


class AttackImages(AttackCost):
    """Images that the attack generated for one plain image, the last one included."""

    unit = "images"
    metered = "images"


class AttackForwards(AttackCost):
    """Denoiser evaluations for one plain image, before the found images are generated for the table."""

    unit = "forwards"
    metered = "forwards"


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
