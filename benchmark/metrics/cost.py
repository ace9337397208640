"""The cost of an erasure: to make it, to store it, and to generate each image with it. The cost of an attack."""

from __future__ import annotations

import math
import statistics
from typing import ClassVar

from overpaint.grid.cells import PROMPT_LISTS
from overpaint.metrics.metric import AttackMetric, Evidence, Figure, Metric


class ErasureCost(Metric):
    """A number that was measured while erasing."""

    facet = "sustainability"
    direction = "down"
    paper = "HUB, arXiv 2410.05664"
    aggregation = "one erasure"
    metered: ClassVar[str]

    def measure(self, evidence: Evidence) -> Figure:
        value = _number(evidence.erasure.get(self.metered))
        if value is None:
            why = (
                f"{self.metered} was not kept with these images"
                if evidence.latency
                else "no erasure was made for these images"
            )
            return Figure(None, why=why)
        return Figure(value, n=1)


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
    """Median ratio of seconds per image, with the erasure by without, in pairs that alternate on one machine.

    It is exactly 1, and has no interval, where an erasure changes weights only: the computation is the same.
    """

    facet = "sustainability"
    direction = "down"
    unit = "ratio"
    paper = "SAFREE, arXiv 2410.12761"
    aggregation = "median of pairs"
    version = 2
    tasks = ("latency",)

    def measure(self, evidence: Evidence) -> Figure:
        ratios = evidence.latency
        if not ratios:
            return Figure(None, why="no erasure was made for these images")
        value = statistics.median(ratios)
        low, high = (min(ratios), max(ratios)) if len(ratios) > 1 else (None, None)
        return Figure(value, low, high, n=len(ratios), original=1.0, difference=value - 1)


class AttackCost(AttackMetric):
    """The mean that an attack spent on one plain image (a prompt with its seed). A concept that costs more is harder to
    bring back."""

    direction = "up"
    paper = "UnlearnDiffAtk, arXiv 2310.11868"
    aggregation = "total over plain images"
    version = 2
    roles = ()  # read from the ledger, not from images
    not_attacks = (*PROMPT_LISTS, "random_prefix", "random_words", "seed_search")
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
