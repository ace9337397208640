"""From scored images to outcomes, and from outcomes to a figure: what every metric that is a share of images has in
common.

*Outcomes* are a frame of one row for each image and label asked about: ``prompt_id``, ``seed``, ``cluster``, ``label``,
``image`` (its row among those asked) and ``hit``: 1 present, 0 absent, NaN unknown. One unknown label makes the whole
image failed. A ``stratum`` column, where there is one, names groups whose shares are averaged with equal weight.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from overpaint.metrics.metric import Evidence, Figure, Metric
from overpaint.report import statistics
from overpaint.report.statistics import Estimate

KEYS = ["prompt_id", "seed", "label"]


class Tally(NamedTuple):
    """Images that could be judged, and images that could not."""

    judged: int
    failed: int

    def refusal(self, limit: float, what: str) -> str:
        """Why no figure may be given, or an empty string."""
        if self.judged + self.failed == 0:
            return f"no {what}"
        if self.judged == 0:
            return f"all {self.failed} {what} failed"
        share = self.failed / (self.judged + self.failed)
        return f"{self.failed} of {self.judged + self.failed} {what} failed, limit {limit:.0%}" if share > limit else ""


def has_readings(frame: pd.DataFrame | None, column: str) -> bool:
    """Whether any image of the frame has a value in this column, which only some attacks leave."""
    return frame is not None and column in frame and bool(frame[column].notna().any())


def clusters(frame: pd.DataFrame) -> pd.Series:
    """Which images depend on each other: the frame's clusters, or its prompts where it has none."""
    return frame["cluster"] if "cluster" in frame else frame["prompt_id"]


def outcomes(frame: pd.DataFrame, labels: Iterable[Collection[str | None]], threshold: float) -> pd.DataFrame:
    """Whether each image shows each of the labels asked about it (one collection for each row of ``frame``).

    An image that nothing visible is asked about is left out; a label that the detector does not know is unknown.
    """
    asked = [[label for label in dict.fromkeys(row) if isinstance(label, str) and label] for row in labels]
    image = np.repeat(np.arange(len(frame)), [len(row) for row in asked])
    table = frame[["prompt_id", "seed"]].assign(cluster=clusters(frame)).iloc[image].reset_index(drop=True)
    table["label"] = [label for row in asked for label in row]
    table["image"] = image
    scores = np.full(len(table), np.nan)
    for label, places in table.groupby("label").indices.items():
        if label in frame:
            scores[places] = pd.to_numeric(frame[label], errors="coerce").to_numpy(float)[image[places]]
    unknown = np.isnan(scores) | frame["failed"].to_numpy(bool)[image]
    unknown = pd.Series(unknown).groupby(image).transform("any").to_numpy(bool)
    table["hit"] = np.where(unknown, np.nan, scores >= threshold)
    return table


def own_concept(frame: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Whether each image shows the concept that its prompt is about."""
    return outcomes(frame, [(label,) for label in frame["concept"]], threshold)


def tally(table: pd.DataFrame) -> Tally:
    """Images judged and images failed among outcomes."""
    judged = table.drop_duplicates("image")["hit"].notna()
    return Tally(int(judged.sum()), int((~judged).sum()))


def share(table: pd.DataFrame) -> Estimate:
    """The share of positive outcomes, resampled by cluster."""
    return statistics.proportion(table["hit"], table["cluster"], table.get("stratum"))


def unjudged(table: pd.DataFrame) -> list[str]:
    """Labels of which no image was judged."""
    return [label for label, judged in table.groupby("label")["hit"].count().items() if not judged]


def difference(these: pd.DataFrame, those: pd.DataFrame) -> Estimate:
    """Share of these outcomes minus that of those: paired where most of them correspond, unpaired otherwise.

    Undefined where a stratum has no judged pair: the mean over the others would be another figure.
    """
    keys = [*KEYS, "stratum"] if "stratum" in these else KEYS
    if not (these.duplicated(keys).any() or those.duplicated(keys).any()):
        pairs = these.merge(those, on=keys, suffixes=("", "_other"))
        if 2 * len(pairs) >= max(len(these), len(those)):  # else the difference would be of others than the shares
            if "stratum" in pairs and unjudged(pairs.assign(hit=pairs["hit"] + pairs["hit_other"])):
                return Estimate(None)
            return statistics.paired_difference(
                pairs["hit"], pairs["hit_other"], pairs["cluster"], pairs.get("stratum")
            )
    return statistics.unpaired_difference(these["hit"], those["hit"], these["cluster"], those["cluster"])


def compare(
    these: pd.DataFrame, those: pd.DataFrame | None, limit: float, what: str, against: str = "original"
) -> Figure:
    """The figure of these outcomes, beside those of the original model or the control.

    A mean over labels is undefined as soon as one of them has no judged image, however few of all images failed.
    """
    count, unseen = tally(these), unjudged(these)
    reasons = [count.refusal(limit, what)]
    if unseen and (reasons[0] or "stratum" in these):
        reasons.append(f"none was judged for {', '.join(unseen)}")
    if why := "; ".join(filter(None, reasons)):
        return Figure(None, n=count.judged, failed=count.failed, against=against, why=why)
    own = share(these)
    figure = {"n": count.judged, "failed": count.failed, "against": against}
    if those is None or tally(those).refusal(limit, what) or ("stratum" in those and unjudged(those)):
        return Figure(own.value, own.low, own.high, **figure)
    gap = difference(these, those)
    return Figure(
        own.value,
        own.low,
        own.high,
        difference=gap.value,
        difference_low=gap.low,
        difference_high=gap.high,
        p_value=gap.p_value,
        **figure | {against: share(those).value},
    )


class Share(Metric):
    """A metric that is a share of images (or of what they should show), set against the original model's share.

    A subclass says in `judge` which outcomes of a frame count; the class attributes say the rest.
    """

    version = 2

    def judge(self, frame: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
        """Outcomes of the rows of ``frame`` that have this metric's roles."""
        return own_concept(frame, evidence.threshold)

    def measure(self, evidence: Evidence) -> Figure:
        these, those = (
            self.judge(evidence.images_of(*self.roles, frame=frame), evidence) for frame in ("images", "original")
        )
        return compare(these, those, evidence.failure_limit, f"{'/'.join(self.roles)} images")


def asking(labels: Callable[[object], Collection[str]], frame: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Outcomes of the labels that ``labels`` picks from what each prompt expects."""
    return outcomes(frame, [labels(_listed(expects)) for expects in frame["expects"]], threshold)


def _listed(expects: object) -> list[str]:
    """The expected labels; Parquet gives arrays, and an unset cell is ``None`` or NaN."""
    return list(expects) if isinstance(expects, list | tuple | np.ndarray) else []
